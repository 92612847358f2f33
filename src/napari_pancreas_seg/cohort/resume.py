"""The result of an earlier run, and whether this run would make the same.

The CT's SHA-256 decides; but to hash 10,000 CTs is to read terabytes, so a stamp of the CT's files
(paths, sizes, times) is tried first.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.cohort.cases import Case, is_ours
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import saving
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.inference.saving import card_sha256, read_sidecar, same_mask
from napari_pancreas_seg.io import report_path, suffix_of
from napari_pancreas_seg.io.dicom.files import is_dicom_file
from napari_pancreas_seg.io.files import walk
from napari_pancreas_seg.io.suffixes import PAIR
from napari_pancreas_seg.volume import CTVolume

_NOT_OF_THE_RESULT = {"device", "batch_size", "first_slice"}
"""Options that do not change the mask."""

_DETACHED = (".nhdr", ".mhd", *PAIR)
"""Endings of files that are only half of an image."""


@dataclass(frozen=True)
class PreviousResult:
    """An earlier result: the `difference` in how it was made; `certain`: of the same CT."""

    case: Case
    record: Mapping[str, Any]
    difference: str | None
    certain: bool

    @property
    def done(self) -> bool:
        """Whether the case needs nothing more, as far as is known without reading the CT."""
        return self.certain and self.difference is None

    def refusal(self) -> PancreasSegError:
        """Why it must not be replaced."""
        return PancreasSegError(
            f"'{self.case.mask.name}' exists already, was made "
            f"{self.difference or 'from another CT'}, and was left as it is; choose another "
            "folder or allow overwriting (--overwrite)."
        )

    def beside(self, volume: CTVolume) -> PreviousResult:
        """What is known of it now that the CT was read."""
        # With `force` only some CTs have other values; their notes say so.
        forced = bool(saving.left_by_run(self.record).get("force"))
        if self.case.force != forced and not {*volume.notes} <= {*self.record.get("notes", ())}:
            return replace(self, difference="with other options (force)")
        return replace(self, certain=saving.is_sidecar(self.case.sidecar, volume))


def find_previous(
    case: Case, card: Mapping[str, Any], options: Options, outputs: OutputOptions
) -> PreviousResult | None:
    """Find the earlier result of a case without reading its CT; None if there is none of ours."""
    if not os.path.isfile(case.mask):
        return None
    record = read_sidecar(case.sidecar)
    if record is None:
        return None
    left = saving.left_by_run(record)
    stamp, suffix = left.get("source_stamp"), suffix_of(case.mask).lower()
    difference = (
        _other_method(record, left, card, options)
        or _missing(case, left, outputs)
        or ("in another format" if left.get("suffix", suffix) != suffix else None)
        or ("by another hand" if outputs.overwrite and not same_mask(case.mask, left) else None)
    )
    certain = (
        stamp is not None
        and case.force == bool(left.get("force"))
        and stamp == source_stamp(case.source, case.series)
    )
    if not certain and difference is None and _other_size(case.source, record):
        difference = "from another CT"
    return PreviousResult(case, record, difference, certain)


def check_free(case: Case, outputs: OutputOptions) -> tuple[OutputOptions, Path | None]:
    """Refuse a case with files in its way; return how to write, and a killed run's folder.

    What such a run left may be replaced, and so may the record of a mask that was deleted.
    """
    files = case.mask, case.maps, case.source
    try:
        saving.check_targets(*files, outputs)
    except PancreasSegError:
        if not outputs.resume:
            raise
        interrupted = _find_interrupted(case, outputs)
        if interrupted is None and not _mask_was_deleted(case, outputs):
            raise
        anew = replace(outputs, overwrite=True)
        saving.check_targets(*files, anew)
        return anew, interrupted
    return outputs, None


def _mask_was_deleted(case: Case, outputs: OutputOptions) -> bool:
    """Whether nothing is in the way of a case but what was written with a mask that has gone."""
    left = saving.left_by_run(read_sidecar(case.sidecar))
    made = saving.maps_beside(case.mask, case.maps, left)
    made += [report_path(case.mask)] if left.get("report") else []
    return (
        left.get("suffix") == suffix_of(case.mask).lower()
        and not os.path.lexists(case.mask)
        and all(
            path in made or not path.exists()
            for path in saving.more_targets(case.mask, case.maps, outputs)
        )
    )


def _find_interrupted(case: Case, outputs: OutputOptions) -> Path | None:
    """Find the hidden folder of a run that was killed while it moved the files of a case."""
    if case.sidecar.exists():
        return None
    for path in case.mask.parent.glob(f".*.part/{glob.escape(case.sidecar.name)}"):
        left = saving.left_by_run(read_sidecar(path))
        if left and _came_from(path.parent, case, outputs, left):
            return path.parent
    return None


def _came_from(folder: Path, case: Case, outputs: OutputOptions, left: Mapping[str, Any]) -> bool:
    """Whether the files in the way of a case came from a hidden folder."""
    if not (
        same_mask(case.mask, left) if case.mask.exists() else (folder / case.mask.name).exists()
    ):
        return False
    made = [case.probability.name] if left.get("probability") else []
    made += [report_path(case.mask).name] if left.get("report") else []
    made += [case.attention(k).name for k in range(1, _attention_maps(left) + 1)]
    return all(
        path.name in made and not (folder / path.name).exists()
        for path in saving.more_targets(case.mask, case.maps, outputs)
        if path.exists()
    )


def source_stamp(path: Path, series: str | None = None) -> str | None:
    """Hash of paths, sizes and times of a CT's files; None if that does not tell enough."""
    if path.name.lower().endswith(_DETACHED) or is_dicom_file(path):
        return None  # a file of DICOM stands for the series around it
    try:
        files = [path] if path.is_file() else _below(path)
        states = sorted(
            f"{file.relative_to(path)} {found.st_size} {found.st_mtime_ns}"
            for file, found in zip(files, map(Path.stat, files), strict=True)
        )
    except OSError:
        return None
    if not states:
        return None
    # Two links to one CT are the same CT.
    text = "\n".join([series or "", os.path.realpath(path), *states])
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def _below(folder: Path) -> list[Path]:
    """Files in a folder and below it, without those that a run writes."""
    return [
        item
        for here, _, names in walk(folder)
        for item in (here / name for name in names)
        if not any(part.startswith(".") for part in item.relative_to(folder).parts)
        and not is_ours(item)
        and item.is_file()
    ]


def _other_method(
    record: Mapping[str, Any], left: Mapping[str, Any], card: Mapping[str, Any], options: Options
) -> str | None:
    """Say how a mask was made, if it would be made otherwise now."""
    version = record.get("program", {}).get("version")
    if version != __version__:
        return f"by version {version} of this program"
    if record.get("mask_by"):
        return f"by {record['mask_by']}"
    model = record.get("model", {})
    if any(model.get(key) != card.get(key) for key in model) or (
        left.get("card_sha256", card_sha256(card)) != card_sha256(card)
    ):
        return f"by another model ({model.get('name')} {model.get('version')})"
    if not left:
        return None  # from the window: with what options, a person has decided
    then = record.get("options", {})
    now = json.loads(json.dumps(asdict(options), default=str))  # as they come back from JSON
    differing = [
        name for name in now if name not in _NOT_OF_THE_RESULT and then.get(name) != now[name]
    ]
    return f"with other options ({', '.join(differing)})" if differing else None


def _missing(case: Case, left: Mapping[str, Any], outputs: OutputOptions) -> str | None:
    number = _attention_maps(left) if outputs.attention else 0
    maps = [case.probability] if outputs.probability else []
    maps += [case.attention(k) for k in range(1, number + 1)]
    if number < 0 or not all(path.is_file() for path in maps):
        return "without the maps that are wanted now"
    if outputs.report and not report_path(case.mask).is_file():
        return "without the report that is wanted now"
    return None


def _attention_maps(left: Mapping[str, Any]) -> int:
    """How many attention maps were written, or -1 if they were not asked for."""
    number = left.get("attention")
    return number if isinstance(number, int) else -1


def _other_size(source: Path, record: Mapping[str, Any]) -> bool:
    """Whether a single file has another size than the CT that a mask was made from."""
    found = record.get("source", {})
    try:  # a file of DICOM may stand for another one
        single = found["files"] == 1 and found["format"] != "dicom" and source.is_file()
        return bool(single and found["bytes"] != source.stat().st_size)
    except (OSError, KeyError):
        return False
