"""The CTs of a folder, corrected one after the other: the state of each, kept between starts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from napari_pancreas_seg.cohort.cases import find_inputs, plan
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import write_json

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
    """A case of a worklist: its CT, where its mask is kept, and how far it is.

    `name`: the CT's path in the worklist's folder; `slice`: last on screen, counted from the feet;
    `reviewed`: slices of the mask with this `digest`.
    """

    name: str
    source: Path
    mask: Path
    status: Status = Status.NEW
    slice: int | None = None
    reviewed: tuple[int, ...] = ()
    digest: str = ""


class Worklist:
    """The CTs of a folder and how far each is, remembered between starts in `state_folder`.

    Masks lie in `output`, named as ``segment FOLDER -o OUTPUT`` names them: by default the folder
    used before, else one beside the CTs' folder. Nothing is created before there is a mask to
    write. PancreasSegError if the folder holds no CT, two CTs would have the same mask, or nothing
    can be written into the output folder.
    """

    def __init__(self, folder: str | Path, state_folder: Path, output: Path | None = None) -> None:
        self.folder = Path(folder).absolute()
        self._file = state_folder / f"{_hash(self.folder)}.json"
        self._memory = _read(self._file)
        known = self._memory.get("output")
        remembered = Path(known) if isinstance(known, str) and known else None
        beside = self.folder.with_name(f"{self.folder.name}_masks")
        self.output = output or remembered or beside
        self.cases = self._list()
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

    def use_output(self, output: str | Path) -> None:
        """Keep masks in another folder from now on; those written so far stay where they are."""
        before, self.output = self.output, Path(output).absolute()
        try:
            self.cases = self._list()
        except PancreasSegError:
            self.output = before
            raise
        self._save()

    def _list(self) -> list[WorklistCase]:
        cases = []
        for case in plan(find_inputs([self.folder]), self.output):
            source = case.source.absolute()
            below = source.is_relative_to(self.folder)
            name = source.relative_to(self.folder).as_posix() if below else str(source)
            known = self._memory.get("cases", {}).get(name, {})
            status = _checked(known.get("status"), case.mask.exists())
            slices = known.get("reviewed")
            reviewed = tuple(filter(_is_slice, slices if isinstance(slices, list) else ()))
            last = known.get("slice") if _is_slice(known.get("slice")) else None
            digest = str(known.get("digest", ""))
            cases.append(WorklistCase(name, case.source, case.mask, status, last, reviewed, digest))
        return cases

    def _save(self) -> None:
        # What is known of CTs that are not there just now (a disk that is not mounted) stays.
        cases = dict(self._memory.get("cases", {}))
        for case in self.cases:
            cases[case.name] = {
                "status": str(case.status),
                "slice": case.slice,
                "reviewed": list(case.reviewed),
                "digest": case.digest,
            }
        self._memory = {
            "version": _VERSION,
            "folder": str(self.folder),
            "output": str(self.output),
            "current": self.case.name,
            "cases": cases,
        }
        write_json(self._file, self._memory, overwrite=True)


def _checked(word: Any, has_mask: bool) -> Status:
    """Read a saved status, corrected by what is on the disk."""
    if not has_mask:
        return Status.NEW
    try:
        status = Status(word)
    except ValueError:
        return Status.SEGMENTED
    return Status.SEGMENTED if status is Status.NEW else status


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
    memory["cases"] = {
        name: known for name, known in memory.get("cases", {}).items() if isinstance(known, dict)
    }
    return memory


def _hash(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]


def _is_slice(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 100_000
