"""The CTs of a folder, corrected one after the other: the state of each, kept between starts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from napari_pancreas_seg.cohort.cases import Case, find_cases
from napari_pancreas_seg.cohort.given import GivenMasks
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import stem
from napari_pancreas_seg.io.files import escaped, user_folder, write_json
from napari_pancreas_seg.io.table import read_rows

logger = logging.getLogger(__name__)

_VERSION = 1


class Status(StrEnum):
    """How far a case is; what comes later includes what comes before."""

    NEW = "new"
    SEGMENTED = "segmented"
    CORRECTED = "corrected"
    REVIEWED = "reviewed"
    EXPORTED = "exported"


@dataclass(frozen=True)
class WorklistCase:
    """A CT, its mask, how far it is; `reviewed` are slices of the mask with this `digest`."""

    name: str
    source: Path
    mask: Path
    status: Status = Status.NEW
    slice: int | None = None
    reviewed: tuple[int, ...] = ()
    digest: str = ""
    given: tuple[GivenMasks, Path] | None = None  # masks of others, and the case's own among them
    series: str | None = None  # as the command that made the mask read the CT
    force: bool = False


def state_folder() -> Path:
    """Return the folder of saved worklists, in the application's data folder."""
    return user_folder("worklists")


def remember_inputs(
    output: Path, inputs: Sequence[Path], state: Path, made: Iterable[Case] = ()
) -> None:
    """Remember of an output folder where its CTs lie, beside those of earlier commands.

    Of the cases whose masks were `made`, also how their CTs were read.
    """
    folder = output.absolute()
    file = state / f"{_hash(folder)}.json"
    known, new = remembered_inputs(folder, state), [path.absolute() for path in inputs]
    if not any(_within(new, command) for command in known):
        known = [*(command for command in known if not _within(command, new)), new]
    places = [[str(path) for path in command] for command in known]
    memory = _with_output({"version": _VERSION, **_read(file)}, folder)
    memory |= {"folder": str(folder), "inputs": places}
    read: dict[str, Any] = memory.get("read", {})
    for case in made:
        read[case.maps] = {"series": case.series, "force": case.force}
    memory["read"] = {name: how for name, how in read.items() if any(how.values())}
    write_json(file, memory, overwrite=True)


def remembered_inputs(output: Path, state: Path) -> list[list[Path]]:
    """Where the CTs of an output folder lie, those of each command; empty folders were moved."""
    known = _read(state / f"{_hash(output.absolute())}.json").get("inputs", [])
    commands = [known] if all(isinstance(one, str) for one in known) else known  # of one, earlier
    found = [[p for p in map(Path, one) if p.is_file() or any(p.glob("*"))] for one in commands]
    return [command for command in found if command]


def known_cases(commands: Sequence[Sequence[Path]], output: Path, state_folder: Path) -> list[Case]:
    """List the cases of commands with one output folder, read as when their masks were made."""
    read = _read(state_folder / f"{_hash(output.absolute())}.json").get("read", {})
    cases = find_cases(commands, output)
    return [replace(case, **read[case.maps]) if case.maps in read else case for case in cases]


def _within(paths: Sequence[Path], folders: Sequence[Path]) -> bool:
    return all({path, *path.parents} & {*folders} for path in paths)


def read_marks(path: Path, mark: str) -> set[str]:
    """Masks (names as in tables) with a mark, from a CSV of the quality page, or its folder."""
    found = [path] if path.is_file() else list(path.glob("marks*.csv"))
    if not found:
        raise PancreasSegError(
            f"'{path.name}' holds no marks.csv; save it on the quality page, and put it there."
        )
    file = max(found, key=lambda one: one.stat().st_mtime)
    rows = read_rows(file, {"mask", "mark"})
    named = {row["mask"] for row in rows if row["mark"] == mark and row["mask"]}
    if not named:
        raise PancreasSegError(f"No case in '{file.name}' is marked '{mark}'.")
    return named


class Worklist:
    """The CTs of a folder and how far each is, remembered between starts in `state_folder`.

    Masks lie in `output`, named as ``segment FOLDER -o OUTPUT`` names them: by default the folder
    used before, else one beside the CTs'. `folder` may also be one CT, or such an output folder, if
    this computer knows its CTs. A case without a mask has that of `masks`; `only` are masks' names.
    """

    def __init__(
        self,
        folder: str | Path,
        state_folder: Path,
        output: Path | None = None,
        *,
        masks: GivenMasks | None = None,
        only: Set[str] | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._state = state_folder
        self._file = state_folder / f"{_hash(self.folder)}.json"
        self._memory = _read(self._file)
        known = self._memory.get("output")
        remembered = Path(known) if isinstance(known, str) and known else None
        one = self.folder.is_file()
        beside = self.folder.with_name(f"{stem(self.folder) if one else self.folder.name}_masks")
        self.output = output or remembered or beside
        self.masks = masks or _masks(self._memory.get("masks"))
        self.only = only
        self._inputs = remembered_inputs(self.folder, state_folder)
        first = self._inputs[0] if self._inputs else []  # so names stay when others are added
        ours = self.folder.parent if one else self.folder
        self._base = first[0] if len(first) == 1 and first[0].is_dir() else ours
        self.cases = self._list(self.output)
        names = [case.name for case in self.cases]
        last = self._memory.get("current")
        self.current = names.index(last) if last in names else 0

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def case(self) -> WorklistCase:
        """The case that is open, or was last."""
        return self.cases[self.current]

    @property
    def next_case(self) -> WorklistCase | None:
        """The case after the one that is open; None for the last."""
        return self.cases[self.current + 1] if self.current + 1 < len(self) else None

    def go_to(self, index: int) -> WorklistCase:
        """Make another case the one that is open, and remember it."""
        if not 0 <= index < len(self):
            word = "first" if index < 0 else "last"
            raise PancreasSegError(f"This is the {word} case of the worklist.")
        self.current = index
        self._save()
        return self.case

    def next_unfinished(self) -> int | None:
        """Index of the next case that is not exported; after the last comes the first."""
        order = [(self.current + step) % len(self) for step in range(1, len(self) + 1)]
        return next((i for i in order if self.cases[i].status is not Status.EXPORTED), None)

    def update(self, index: int, **changes: Any) -> None:
        """Change fields of a case and remember it; None leaves a field as it is."""
        if changes.get("reviewed") is None:
            changes["digest"] = None  # it belongs to `reviewed`
        given = {name: value for name, value in changes.items() if value is not None}
        changed = replace(self.cases[index], **given)
        if changed != self.cases[index]:
            self.cases[index] = changed
            self._save()

    def counts(self) -> dict[Status, int]:
        """How many cases there are of each status."""
        return {status: sum(case.status is status for case in self.cases) for status in Status}

    def mask_in(self, output: str | Path, index: int) -> Path:
        """Say where a case's mask is, or would be, in another folder."""
        known = {case.name: case.mask for case in self._list(Path(output).absolute())}
        return known.get(self.cases[index].name, self.cases[index].mask)

    def use_output(self, output: str | Path) -> None:
        """Keep masks in another folder from now on; those written so far stay where they are."""
        chosen = Path(output).absolute()
        found = {case.name: case for case in self._list(chosen)}
        # What has come meanwhile waits until the folder is opened again: places are not to shift.
        self.cases = [found.get(case.name, case) for case in self.cases]
        self.output = chosen
        self._save()

    def _list(self, output: Path) -> list[WorklistCase]:
        cases = []
        masks = None if self.masks is None else replace(self.masks)  # its folder is listed anew
        saved = _with_output(self._memory, output)["cases"]
        listed = list(known_cases(self._inputs or [[self.folder]], output, self._state))
        theirs = {} if masks is None else masks.find_each(listed)
        for case in listed:
            if self.only is not None and escaped(case.mask.name) not in self.only:
                continue
            source = case.source.absolute()
            below = source.is_relative_to(self._base)
            name = source.relative_to(self._base).as_posix() if below else str(source)
            known = saved.get(name) or saved.get(str(source), {})  # of files without their folder
            found = theirs.get(case.maps)
            given = None if masks is None or found is None else (masks, found)
            has_mask = case.mask.exists() or given is not None
            status = _checked(known.get("status"), has_mask)
            slices = known.get("reviewed")
            reviewed = tuple(filter(_is_slice, slices if isinstance(slices, list) else ()))
            last = known.get("slice") if _is_slice(known.get("slice")) else None
            digest = str(known.get("digest", ""))
            how = (status, last, reviewed, digest, given, case.series, case.force)
            cases.append(WorklistCase(name, case.source, case.mask, *how))
        if not cases:
            raise PancreasSegError("None of these CTs is among the marked cases.")
        return cases

    def _save(self) -> None:
        # What is known of CTs that are not there just now (a disk that is not mounted) stays.
        memory = _with_output(self._memory, self.output)
        cases = dict(memory["cases"])
        for case in self.cases:
            cases[case.name] = {
                "status": str(case.status),
                "slice": case.slice,
                "reviewed": list(case.reviewed),
                "digest": case.digest,
            }
        masks = "" if self.masks is None else str(self.masks.folder.absolute())
        self._memory = {
            "version": _VERSION,
            "folder": str(self.folder),
            "output": memory["output"],
            "others": memory["others"],
            "inputs": memory.get("inputs", []),
            "read": memory.get("read", {}),
            "masks": None if self.masks is None else asdict(self.masks) | {"folder": masks},
            "current": self.case.name,
            "cases": cases,
        }
        write_json(self._file, self._memory, overwrite=True, indent=None)  # quicker by far


def _with_output(memory: dict[str, Any], output: Path) -> dict[str, Any]:
    """Change the output folder in what is remembered; of each the cases' masks are its own."""
    folder, last = str(output.absolute()), memory.get("output") or output
    others = dict(memory.get("others", {}))
    others[str(Path(last).absolute())] = memory.get("cases", {})
    return {**memory, "output": folder, "cases": others.pop(folder, {}), "others": others}


def _checked(word: Any, has_mask: bool) -> Status:
    """Read a saved status, corrected by what is on the disk."""
    if not has_mask:
        return Status.NEW
    later = [status for status in Status if status is not Status.NEW]
    return Status(word) if word in later else Status.SEGMENTED


def _read(file: Path) -> dict[str, Any]:
    """Read the saved state; empty if there is none, or it cannot be read."""
    try:
        memory = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        logger.warning("The saved state of a worklist cannot be read; it starts anew")
        return {}
    if not isinstance(memory, dict) or not isinstance(memory.get("cases", {}), dict):
        return {}
    memory["cases"] = _only_dicts(memory.get("cases", {}))
    others = memory.get("others")
    others = _only_dicts(others) if isinstance(others, dict) else {}
    memory["others"] = {folder: _only_dicts(cases) for folder, cases in others.items()}
    if not isinstance(memory.get("output"), str):
        memory["output"] = ""
    read = memory.get("read")
    memory["read"] = {
        name: {"series": how.get("series"), "force": bool(how.get("force"))}
        for name, how in (read.items() if isinstance(read, dict) else ())
        if isinstance(how, dict)
    }
    return memory


def _only_dicts(known: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in known.items() if isinstance(one, dict)}


def _masks(known: Any) -> GivenMasks | None:
    """Read what is remembered of masks by others."""
    if not isinstance(known, dict) or not isinstance(known.get("folder"), str):
        return None
    value = known.get("value")
    values = value if isinstance(value, list) else [value]
    of_labels = all(isinstance(one, int) for one in values)
    return GivenMasks(Path(known["folder"]), value if of_labels else None, str(known.get("by", "")))


def _hash(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]


def _is_slice(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 100_000
