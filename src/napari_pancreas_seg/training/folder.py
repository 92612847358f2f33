"""The folder of a training: what lies in it, and whether a training may begin or go on there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import make_folder, read_json, write_json
from napari_pancreas_seg.training.data.cache import files_of_case
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase
from napari_pancreas_seg.training.fit.devices import POLICIES, choose_policy
from napari_pancreas_seg.training.fit.loop import CHECKPOINT

OUT_OF_FOLD = "out_of_fold.json"
"""Dice of each patient held back, for several thresholds; before any temperature. It is written
last: where it lies, the training is done."""
RECIPE, BUNDLE = "recipe.json", "bundle"
SUMMARY = "crossvalidation.json"
ALIKE = ("float32", "mixed_bfloat16")
"""Precisions between which a training may change: their checkpoints hold the same."""
LENGTH = ("steps", "patience", "averaging")
"""Settings that may change between stop and resume: the length, and with it the averaging."""


def is_done(output: Path) -> bool:
    """Whether a folder holds a training that came to its end."""
    return (output / OUT_OF_FOLD).exists() and (output / BUNDLE).is_dir()


def fold_folder(output: Path, fold: int) -> Path:
    """Folder of one fold's training."""
    return output / f"fold{fold}"


def claim(output: Path, recipe: dict[str, Any], resume: bool, once: bool) -> bool:
    """Make the folder, or check that it holds the same training; return whether that is done."""
    check_free(output, resume, folds=False)
    make_folder(output)
    before = recipe_in(output)
    now = json.loads(json.dumps(recipe))
    done = resume and once and is_done(output)
    if before is not None and resume:
        _check_same(output, before, now, () if done else LENGTH)
    if not done and before != now:
        (output / OUT_OF_FOLD).unlink(missing_ok=True)  # it was done, and is so no longer
        write_json(output / RECIPE, now, overwrite=True)
    return done


def check_free(output: Path, resume: bool, *, folds: bool) -> None:
    """Refuse a folder that holds a training, or with `resume` one of the other kind."""
    several = (output / SUMMARY).exists() or (fold_folder(output, 0) / CHECKPOINT).exists()
    one = any((output / name).exists() for name in (CHECKPOINT, OUT_OF_FOLD))
    one = one or ((output / BUNDLE).exists() and not several)
    other = one if folds else several
    if other:
        what = "a training of one model" if folds else "a cross-validation (--all-folds)"
        raise PancreasSegError(f"{output} holds {what}: choose another folder.")
    if (one or (output / SUMMARY).exists()) and not resume:
        raise PancreasSegError(
            f"{output} holds a training already: go on with --resume, or choose another folder."
        )


def recipe_in(output: Path) -> dict[str, Any] | None:
    """The recipe of a training that was begun in a folder."""
    path = output / RECIPE
    return read_json(path) if path.exists() else None


def policy_after(before: Mapping[str, Any]) -> str:
    """The best precision in which a training goes on."""
    policy, best = before.get("policy", "auto"), choose_policy("auto")
    return best if {policy, best} <= {*ALIKE} or policy not in POLICIES else policy


def files_stamp(case: LabelledCase) -> list[float] | None:
    """Size and time of a case's files; None where one cannot be found."""
    try:
        found = [file.stat() for file in files_of_case(case)]
    except OSError:
        return None
    return [sum(f.st_size for f in found), max(f.st_mtime for f in found)]


def changed_cases(before: Any, now: Mapping[str, list[float] | None]) -> list[str]:
    """Cases whose files are not what they were, by their `files_stamp` of then and now."""
    known = before if isinstance(before, Mapping) else {}  # an older version wrote none
    return [name for name, stamp in now.items() if known.get(name, stamp) != stamp]


def _check_same(
    output: Path, before: dict[str, Any], now: dict[str, Any], free: Sequence[str]
) -> None:
    """Refuse a folder of another recipe; an older version may have written fewer keys."""
    changed = {k for k in (now.keys() & before.keys()) - {*free, "files"} if before[k] != now[k]}
    if {before.get("policy"), now.get("policy")} <= {*ALIKE}:
        changed -= {"policy"}
    changed |= {k for k in ("crops", "phantoms") if before.get(k)}  # no training has these now
    if changed == {"patients"}:
        raise PancreasSegError(
            f"{output} was trained on other patients, or held others back: go on with the data "
            "set as it was, or choose another folder."
        )
    if changed:
        changed -= {"patients"}  # another split has others anyway
        short = {k for k in changed if all(isinstance(r.get(k), str | int) for r in (before, now))}
        what = ", ".join(
            f"{k} ({before[k]}, now {now[k]})" if k in short else k for k in sorted(changed)
        )
        raise PancreasSegError(
            f"{output} was trained with another {what}; give the former one again, or choose "
            "another folder."
        )
