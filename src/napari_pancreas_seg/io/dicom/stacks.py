"""From the slices in some files to stacks, and to the one stack that is the CT."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom.files import DicomFile
from napari_pancreas_seg.io.dicom.slices import SPLITS, Plane, Slice

__all__ = ["SAME_PLACE_MM", "Stack", "choose", "stacks_of"]

SAME_PLACE_MM = 1e-3
"""Images closer than that lie at the same place."""

_PARALLEL = 1e-3
"""How much direction cosines of one stack may differ: they are often written with few digits."""

_MOST_PARTS = 60
"""Phases of a perfusion CT, at most."""

_WORDS = {
    "AcquisitionNumber": "acquisition",
    "ConvolutionKernel": "kernel",
    "SliceThickness": "thickness (mm)",
}
_PLAIN = re.compile(r"[\w.+-]{1,12}")

_MOST_NAMED = 12
"""How many choices a sentence lists."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Images of one series that are of the same size, spacing and orientation.

    Parameters
    ----------
    slices : tuple of Slice
        In no particular order.
    part : str
        What tells it from other stacks at the same place, in words; empty if there is none.
    """

    slices: tuple[Slice, ...]
    part: str = ""

    @property
    def first(self) -> Slice:
        """Any of its slices, for what they all share."""
        return self.slices[0]

    @property
    def is_volume(self) -> bool:
        """Whether it can be a CT volume with more than one slice."""
        return not self.first.fault and len(self.slices) > 1

    def describe(self) -> str:
        """Say what it is, without anything that could name a patient."""
        plane = self.first.plane
        words = [self.first.modality or "unnamed modality"]
        words.append(f"{plane.columns}×{plane.rows}×{len(self.slices)}")
        if plane.spacing is not None:
            rows, columns = plane.spacing
            words.append(f"{columns:.2f}×{rows:.2f}×{self._step():.2f} mm")
        return ", ".join([*words, self.part] if self.part else words)

    def _step(self) -> float:
        positions = [s.plane.position for s in self.slices if s.plane.position is not None]
        if len(positions) < 2:
            return self.first.plane.thickness
        corners = np.array(positions)
        return float(np.linalg.norm(np.ptp(corners, axis=0))) / (len(positions) - 1)


def stacks_of(slices: Iterable[Slice]) -> list[Stack]:
    """Group slices: by series, or what stands for it, then by size, spacing and orientation.

    Several volumes at the same place in one series, such as the phases of a perfusion CT, become
    a stack each if a header says which image belongs to which.
    """
    groups: dict[tuple[tuple[str, ...], str], list[list[Slice]]] = defaultdict(list)
    for item in slices:
        alike = groups[item.series, item.fault]
        for group in alike:
            if _same_plane(group[0].plane, item.plane):
                group.append(item)
                break
        else:
            alike.append([item])
    found = [group for alike in groups.values() for group in alike]
    return [stack for group in found for stack in _parts(group)]


def choose(
    name: str, stacks: Sequence[Stack], series: str | None, wanted: DicomFile | None
) -> tuple[Stack, tuple[str, ...]]:
    """Find the one CT volume.

    Parameters
    ----------
    name : str
        What was given, for messages.
    stacks : sequence of Stack
        All there are.
    series : str, optional
        Number or UID of a series, or the place of a stack in the list that a refusal gives.
    wanted : DicomFile, optional
        A file that must be in it.

    Raises
    ------
    PancreasSegError
        If there is none, or there are several and none was chosen.
    """
    if series is not None:
        candidates = _matching(name, stacks, series)
    elif wanted is not None:
        candidates = [stack for stack in stacks if any(s.file is wanted for s in stack.slices)]
    else:
        candidates = list(stacks)
    volumes = [stack for stack in candidates if stack.is_volume]
    if not volumes:  # a CT may have one slice
        volumes = [stack for stack in candidates if not stack.first.fault]
    if not volumes:
        raise PancreasSegError(_nothing(name, candidates))
    if len(volumes) > 1:
        raise PancreasSegError(
            f"'{name}' holds {len(volumes)} CT volumes; choose one by the number before its "
            "colon (--series, or series= in Python), or open one of its files: "
            f"{_list(volumes, stacks)}."
        )
    chosen = volumes[0]
    # What is next to a CT that somebody chose is no news.
    rest = [] if series is not None or wanted is not None else list(stacks)
    rest += [stack for stack in stacks if stack.first.series == chosen.first.series]
    left_out = [stack for stack in dict.fromkeys(rest) if stack is not chosen]
    return chosen, _notes(left_out)


def _same_plane(one: Plane, other: Plane) -> bool:
    if (one.rows, one.columns) != (other.rows, other.columns):
        return False
    for a, b, tolerance in (
        (one.spacing, other.spacing, 1e-4),
        (one.orientation, other.orientation, _PARALLEL),
    ):
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None and np.abs(np.subtract(a, b)).max() > tolerance:
            return False
    return True


def _parts(group: list[Slice]) -> list[Stack]:
    """Split what lies at the same place by the first mark that tells it apart."""
    if group[0].fault or not _has_repeats(group):
        return [Stack(tuple(group))]
    for mark, keyword in enumerate(SPLITS):
        parts: dict[str, list[Slice]] = defaultdict(list)
        for item in group:
            parts[item.marks[mark]].append(item)
        if 1 < len(parts) <= _MOST_PARTS and all(
            len(part) > 1 and not _has_repeats(part) for part in parts.values()
        ):
            return [
                Stack(tuple(part), _word(keyword, value, place))
                for place, (value, part) in enumerate(sorted(parts.items()), start=1)
            ]
    return [Stack(tuple(group))]


def _has_repeats(group: list[Slice]) -> bool:
    positions = [s.plane.position for s in group if s.plane.position is not None]
    if len(positions) < 2:
        return False
    cells = np.rint(np.array(positions) / (10 * SAME_PLACE_MM))
    return len(np.unique(cells, axis=0)) < len(positions)


def _word(keyword: str, value: str, place: int) -> str:
    word = _WORDS.get(keyword)
    # A damaged value may hold anything, the patient's name too.
    return f"phase {place}" if word is None or not _PLAIN.fullmatch(value) else f"{word} {value}"


def _key(stack: Stack, stacks: Sequence[Stack]) -> str:
    """What chooses a stack: its series number if no other has it, else its place in the list."""
    number = stack.first.number
    if number is not None and sum(other.first.number == number for other in stacks) == 1:
        return str(number)
    return f"#{stacks.index(stack) + 1}"


def _list(some: Sequence[Stack], stacks: Sequence[Stack]) -> str:
    named = [f"{_key(stack, stacks)}: {stack.describe()}" for stack in some[:_MOST_NAMED]]
    more = [f"and {len(some) - _MOST_NAMED} more"] if len(some) > _MOST_NAMED else []
    return "; ".join(named + more)


def _matching(name: str, stacks: Sequence[Stack], series: str) -> list[Stack]:
    asked = series.strip()
    by_place = [s for n, s in enumerate(stacks, start=1) if asked.removeprefix("#") == str(n)]
    for found in (
        by_place if asked.startswith("#") else [],
        [stack for stack in stacks if asked and stack.first.uid == asked],
        [s for s in stacks if s.first.number is not None and str(s.first.number) == asked],
        by_place,
    ):
        if found:
            return found
    raise PancreasSegError(
        f"'{name}' holds no series '{series}'; it holds {_list(stacks, stacks)}."
    )


def _nothing(name: str, stacks: Sequence[Stack]) -> str:
    kinds = Counter[str]()
    for stack in stacks:
        kinds[stack.first.fault] += len(stack.slices)
    if len(kinds) == 1:
        (fault,) = kinds
        return f"'{name}' is no CT volume: it is {fault}; give the series of a CT."
    counts = ", ".join(f"{count} that are {fault}" for fault, count in kinds.most_common(6))
    return f"'{name}' holds no CT volume, only images {counts}; give the series of a CT."


def _notes(left_out: Sequence[Stack]) -> tuple[str, ...]:
    if not left_out:
        return ()
    kinds = Counter[str]()
    for stack in left_out:
        kinds[stack.first.fault or "a CT slice of another size or orientation"] += len(stack.slices)
    counts = "; ".join(f"{count} × {kind}" for kind, count in kinds.most_common(6))
    return (f"Beside the slices of this CT lie other DICOM objects, left out: {counts}.",)
