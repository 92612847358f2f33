"""From the slices in some files to stacks, and to the one stack that is the CT."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Floats
from napari_pancreas_seg.errors import PancreasSegError, few
from napari_pancreas_seg.io.dicom.files import DicomFile
from napari_pancreas_seg.io.dicom.slices import SPLITS, Plane, Slice

SAME_PLACE_MM = 1e-3
"""Images closer than that lie at the same place."""

UNEVEN = 0.25
"""A gap may differ from the usual one by that part of it, a slice be that far from its place."""

_PARALLEL = 1e-3
"""How much direction cosines of one stack may differ: they are often written with few digits."""

_MOST_PARTS = 60  # phases of a perfusion CT, at most

_PLAIN = re.compile(r"[\w.+-]{1,16}")

_ODD = 0.1  # share of a stack's slices that may differ from all the others by mistake

_SEPARATE = (
    "Each slice of this CT has a series UID of its own (an anonymiser may have changed them): they "
    "were taken as one series."
)

_FEWEST = 4  # slices of a part, where chance could make fewer an evenly spaced one

_OTHER = "a CT slice of another size, orientation or phase"

_MOST_NAMED = 12  # how many choices a sentence lists


@dataclass(frozen=True, eq=False)
class Stack:
    """Images of one series that are of the same size, spacing and orientation."""

    slices: tuple[Slice, ...]  # in no particular order
    part: str = ""  # what tells it from others of its series, in words; empty if nothing need
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Slice:
        """Any of its slices, for what they all share."""
        return self.slices[0]

    @property
    def is_volume(self) -> bool:
        """Whether it can be a CT volume with more than one slice."""
        # The images by which the contrast agent is watched all lie at one place.
        several = len(self.slices) > 1 and self._step() > SAME_PLACE_MM
        return not self.first.fault and several

    def describe(self) -> str:
        """Say what it is, without anything that could name a patient."""
        plane = self.first.plane
        words = [self.first.modality or "unnamed modality"]
        words.append(f"{plane.columns}×{plane.rows}×{len(self.slices)}")
        if plane.spacing is not None:
            rows, columns = plane.spacing
            words.append(f"{columns:.2f}×{rows:.2f}×{self._step():.2f} mm")
        return ", ".join(filter(None, (*words, _direction(plane), self.part)))

    def _step(self) -> float:
        positions = [s.plane.position for s in self.slices if s.plane.position is not None]
        if len(positions) < 2:
            return self.first.plane.thickness
        corners = np.array(positions)
        return float(np.linalg.norm(np.ptp(corners, axis=0))) / (len(positions) - 1)


def stacks_of(slices: Iterable[Slice]) -> list[Stack]:
    """Group slices by series, size, spacing, orientation, and what tells volumes apart."""
    groups: dict[tuple[tuple[str, ...], str, bool], list[list[Slice]]] = defaultdict(list)
    for item in slices:
        _put(item, groups[item.series, item.fault, bool(item.doubts)])
    found = [group for alike in groups.values() for group in alike]
    return [stack for group in _joined(found) for stack in _parts(group)]


def odd_slices(ordered: Sequence[Slice]) -> tuple[str, ...]:
    """Note the few slices within a stack whose header differs from all the others'."""
    for mark, word in enumerate(SPLITS.values()):
        counts = Counter(item.marks[mark] for item in ordered)
        usual, count = counts.most_common(1)[0]
        odd = [k for k, item in enumerate(ordered) if item.marks[mark] != usual]
        # A block at an end, or times that differ from slice to slice, are as they should be.
        if word == "time" or not 0 < len(odd) <= _ODD * len(ordered) or count < 3:
            continue
        if 0 in odd or len(ordered) - 1 in odd:
            continue
        return (
            f"In this CT of {len(ordered)} slices, {numbered(odd)} differ from the others in the "
            f"header's {word}: they may belong to another phase or reconstruction.",
        )
    return ()


def numbered(places: Sequence[int]) -> str:
    """Name slices in a note: by their places, as sidecars keep it, and files name patients."""
    return few([f"no. {k + 1}" for k in places], 3)


def choose(
    name: str, stacks: Sequence[Stack], series: str | None, wanted: DicomFile | None
) -> tuple[Stack, tuple[str, ...]]:
    """Find the one CT volume."""
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
    # What may not be a CT gives way to what is one.
    volumes = [stack for stack in volumes if not stack.first.doubts] or volumes
    if len(volumes) > 3 and all(len(stack.slices) == 1 for stack in volumes):
        raise PancreasSegError(
            f"'{name}' holds {len(volumes)} single CT slices, which are not one evenly spaced "
            "series; export the series again, or open one of the files."
        )
    if len(volumes) > 1:
        raise PancreasSegError(
            f"'{name}' holds {len(volumes)} CT volumes: {_list(volumes, stacks)}; open one of "
            "their files",
            option=", or choose one by the number before its colon (--series; series= in Python).",
        )
    chosen = volumes[0]
    # What is next to a CT that somebody chose is no news.
    rest = [] if series is not None or wanted is not None else list(stacks)
    rest += [stack for stack in stacks if stack.first.series == chosen.first.series]
    left_out = [stack for stack in dict.fromkeys(rest) if stack is not chosen]
    return chosen, (*chosen.first.doubts, *chosen.notes, *_notes(left_out))


def _same_plane(one: Plane, other: Plane) -> bool:
    def near(a: Any, b: Any, tolerance: float) -> bool:
        if a is None or b is None:
            return a is b
        return bool(np.abs(np.subtract(a, b)).max() <= tolerance)

    return (
        (one.rows, one.columns) == (other.rows, other.columns)
        and near(one.spacing, other.spacing, 1e-4)
        and near(one.orientation, other.orientation, _PARALLEL)
    )


def _put(item: Slice, alike: list[list[Slice]]) -> None:
    """Add a slice to the stack of its size, spacing and orientation."""
    for group in alike:
        if _same_plane(group[0].plane, item.plane):
            group.append(item)
            return
    alike.append([item])


def _joined(groups: list[list[Slice]]) -> list[list[Slice]]:
    """Join slices with a series UID each, if together they are one evenly spaced stack."""
    lone = [group[0] for group in groups if len(group) == 1 and not group[0].fault]
    alike: list[list[Slice]] = []
    for item in lone:
        _put(item, alike)
    for together in alike:
        if len(together) > 2 and not _has_repeats(together) and _is_even(together):
            members = {id(item) for item in together}
            groups = [group for group in groups if id(group[0]) not in members]
            groups.append(together)
    return groups


def _parts(group: list[Slice]) -> list[Stack]:
    """Split what is more than one volume by what of the header tells its parts apart."""
    separate = len(group) > 2 and len({item.uid for item in group}) == len(group)
    whole = [Stack(tuple(group), notes=(_SEPARATE,) if separate else ())]
    repeats = _has_repeats(group)
    if group[0].fault or (not repeats and _is_even(group)):
        return whole
    splits = list(_splits(group))
    for words, parts in splits:
        least = 2 if repeats else _FEWEST
        good = all(len(p) >= least and not _has_repeats(p) and _is_even(p) for p in parts)
        if good and (repeats or _are_apart(parts)):
            return _stacks(words, parts)
    for words, parts in splits:
        if repeats and all(len(p) > 1 and not _has_repeats(p) for p in parts):
            return _stacks(words, parts)
    # A few slices of another phase among those of a whole one.
    for words, parts in splits:
        largest = max(parts, key=len)
        if repeats and len(largest) >= (1 - _ODD) * len(group) and not _has_repeats(largest):
            return _stacks(words, parts)
    return whole


def _splits(group: list[Slice]) -> Iterator[tuple[list[str], list[list[Slice]]]]:
    """Yield the ways of splitting slices: by one mark, by two, by their order in the series."""
    names = list(SPLITS.values())
    for count in (1, 2):
        for marks in itertools.combinations(range(len(names)), count):
            by_value: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
            for item in group:
                by_value[tuple(item.marks[mark] for mark in marks)].append(item)
            if 1 < len(by_value) <= _MOST_PARTS:
                ordered = sorted(by_value.items())
                found = [names[mark] for mark in marks]
                words = [_word(found, value, ordered, n) for n, (value, _) in enumerate(ordered)]
                yield words, [part for _, part in ordered]
    numbered = sorted(group, key=lambda item: item.instance)
    if len({item.instance for item in group}) == len(group):
        heights = _heights(numbered)
        if heights is not None and len(heights) > 3:
            steps = np.diff(heights)
            # Where the next volume begins, the stack starts again.
            cuts = np.flatnonzero(np.sign(steps) != np.sign(np.median(steps))) + 1
            if 0 < len(cuts) < _MOST_PARTS:
                edges = [0, *cuts.tolist(), len(group)]
                parts = [numbered[a:b] for a, b in itertools.pairwise(edges)]
                yield [f"part {n}" for n in range(1, len(parts) + 1)], parts


def _stacks(words: Sequence[str], parts: Sequence[list[Slice]]) -> list[Stack]:
    return [Stack(tuple(part), word) for word, part in zip(words, parts, strict=True)]


def _word(
    names: Sequence[str],
    value: tuple[str, ...],
    ordered: Sequence[tuple[tuple[str, ...], list[Slice]]],
    place: int,
) -> str:
    """Describe what distinguishes a part, without the odd text that a damaged header may hold."""
    parts = []
    for k, name in enumerate(names):
        if not value[k]:
            parts.append(f"without {name}")
            continue
        texts = [other[k] for other, _ in ordered]
        pieces = re.split(r"[^\w.+-]+", value[k])
        others = [set(re.split(r"[^\w.+-]+", text)) for text in texts if text != value[k]]
        own = [word for word in pieces if word and not any(word in other for other in others)]
        if name in ("description", "time") or not own or not _PLAIN.fullmatch(own[0]):
            parts.append(f"{'phase' if name == 'time' else name} {place + 1}")
        else:
            parts.append(f"{name} {own[0]}")
    return ", ".join(parts)


def _heights(group: Sequence[Slice]) -> Floats | None:
    """Where slices lie along their normal in mm; None if a header does not say."""
    orientation = group[0].plane.orientation
    positions = [item.plane.position for item in group]
    if orientation is None or any(position is None for position in positions):
        return None
    return np.array(positions) @ np.cross(orientation[:3], orientation[3:])


def _is_even(group: Sequence[Slice]) -> bool:
    """Whether slices are one evenly spaced stack, as far as the headers say."""
    heights = _heights(group)
    if heights is None or len(heights) < 3:
        return True
    gaps = np.diff(np.sort(heights))
    usual = float(np.median(gaps))
    return bool(usual > 0 and np.abs(gaps - usual).max() <= UNEVEN * usual)


def _are_apart(parts: Sequence[Sequence[Slice]]) -> bool:
    """Whether parts are volumes by themselves, not one with slices missing between two blocks."""
    found = [_heights(part) for part in parts]
    ranges = sorted(
        (float(h.min()), float(h.max()), float(np.ptp(h)) / (len(h) - 1))
        for h in found
        if h is not None
    )
    steps = [step for _, _, step in ranges]
    overlap = any(a[1] > b[0] for a, b in itertools.pairwise(ranges))
    return overlap or (bool(steps) and max(steps) - min(steps) > 0.02 * max(steps))


def _has_repeats(group: Sequence[Slice]) -> bool:
    positions = [s.plane.position for s in group if s.plane.position is not None]
    if len(positions) < 2:
        return False
    cells = np.rint(np.array(positions) / (10 * SAME_PLACE_MM))
    return len(np.unique(cells, axis=0)) < len(positions)


def _direction(plane: Plane) -> str:
    """Name an orientation that is not the usual one."""
    if plane.orientation is None:
        return ""
    normal = np.abs(np.cross(plane.orientation[:3], plane.orientation[3:]))
    return ("sagittal", "coronal", "")[int(normal.argmax())]


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
    kinds = Counter(stack.first.fault for stack in stacks for _ in stack.slices)
    if len(kinds) == 1:
        (fault,) = kinds
        return f"'{name}' is not a CT volume: it is {fault}; give the series of a CT."
    counts = ", ".join(f"{count} that are {fault}" for fault, count in kinds.most_common(6))
    return f"'{name}' holds no CT volume, only images {counts}; give the series of a CT."


def _notes(left_out: Sequence[Stack]) -> tuple[str, ...]:
    if not left_out:
        return ()
    kinds: Counter[str] = Counter()
    for stack in left_out:  # of what is no CT, an object counts, however many frames it has
        fault, slices = stack.first.fault, stack.slices
        kinds[fault or _OTHER] += len({item.file for item in slices} if fault else slices)
    counts = "; ".join(f"{count} × {kind}" for kind, count in kinds.most_common(6))
    return (f"Beside the slices of this CT lie other DICOM objects, left out: {counts}.",)
