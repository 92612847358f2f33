"""Messages between a caller and the network's process: JSON and plain arrays.

A message is a line of JSON followed by the arrays that the line names, in NumPy's own
format. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.inference.result import (
    FoundSlices,
    Options,
    Progress,
    ScalarMap,
    Segmentation,
)
from napari_pancreas_seg.volume import CTVolume, Grid, Source

OUT_OF_MEMORY = 137
"""Status of a child whose memory ran out, as where the system kills it for that."""

_PLAIN = ("threshold", "model", "seconds", "notes", "scan")
"""Fields of a result that travel as JSON."""

Message = tuple[dict[str, Any], dict[str, Array]]


class _Stream:
    """A pipe without ``fileno``, so that NumPy does not try to seek in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.write = file.read, file.write


def send(file: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a message to a pipe."""
    line = json.dumps({**header, "arrays": list(arrays)}, default=_plain)
    file.write(line.encode() + b"\n")
    for array in arrays.values():
        np.lib.format.write_array(_Stream(file), np.asarray(array), allow_pickle=False)
    file.flush()


def receive(file: IO[bytes]) -> Message | None:
    """Read the next message from a pipe; None when the other side has closed it."""
    line = file.readline()
    if not line:
        return None
    header = json.loads(line)
    stream = _Stream(file)
    return header, {
        name: np.lib.format.read_array(stream, allow_pickle=False) for name in header.pop("arrays")
    }


def _plain(value: Any) -> Any:
    """Turn values of a card or a timing into what JSON knows."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def volume_of(arrays: Mapping[str, Array]) -> CTVolume:
    """Build the CT from its ``hu`` (Z, Y, X) and ``affine`` (4, 4)."""
    hu, affine = arrays["hu"], arrays["affine"]
    as_is = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)
    return CTVolume(hu, Grid(hu.shape, affine), Source(None, "array", hu.shape, affine, as_is))


def progress_message(step: Progress) -> Message:
    """Build the message that carries a step of a run."""
    header = {"reply": "progress", "stage": step.stage, "done": step.done, "total": step.total}
    found = step.slices
    if found is None:
        return header, {}
    shapes, arrays = _pack(found.maps)
    return {**header, "maps": shapes}, {
        "z": found.z,
        "rows": found.map_rows,
        "mask": found.mask,
        **arrays,
    }


def progress_of(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Progress:
    """Undo `progress_message`."""
    slices = None
    if arrays:
        maps = _unpack(header["maps"], arrays)
        slices = FoundSlices(arrays["z"], arrays["mask"], maps, arrays["rows"])
    return Progress(header["stage"], header["done"], header["total"], slices)


def result_message(result: Segmentation) -> Message:
    """Build the message that carries the result of a run."""
    maps = {"probability": result.probability}
    maps |= {f"probability {name}": each for name, each in result.probabilities.items()}
    maps |= {f"attention {number}": gate for number, gate in enumerate(result.attention)}
    shapes, arrays = _pack(maps)
    header: dict[str, Any] = {
        "reply": "result",
        "maps": shapes,
        "classes": list(result.probabilities),
        "options": asdict(result.options),
        **{name: getattr(result, name) for name in _PLAIN},
    }
    return header, {
        "mask": result.mask,
        "affine": result.grid.affine,
        "expected dice": result.expected_dice,
        "plausible": result.plausible,
        **arrays,
    }


def segmentation_of(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Segmentation:
    """Undo `result_message`."""
    maps, mask = _unpack(header["maps"], arrays), arrays["mask"]
    return Segmentation(
        mask=mask,
        probability=maps["probability"],
        attention=tuple(each for word, each in maps.items() if word.startswith("attention ")),
        grid=Grid(mask.shape, arrays["affine"]),
        options=Options(**header["options"]),
        expected_dice=arrays["expected dice"],
        plausible=arrays["plausible"],
        probabilities={name: maps[f"probability {name}"] for name in header["classes"]},
        **{name: header[name] for name in _PLAIN if name != "notes"},
        notes=tuple(header["notes"]),
    )


def _pack(maps: Mapping[str, ScalarMap]) -> tuple[dict[str, list[int]], dict[str, Array]]:
    """Shapes of the maps' grids by their words, and their values and affines."""
    arrays: dict[str, Array] = {}
    for word, each in maps.items():
        arrays |= {f"{word} values": each.values, f"{word} affine": each.grid.affine}
    return {word: list(each.grid.shape) for word, each in maps.items()}, arrays


def _unpack(
    shapes: Mapping[str, Sequence[int]], arrays: Mapping[str, Array]
) -> dict[str, ScalarMap]:
    return {
        word: ScalarMap(arrays[f"{word} values"], Grid((z, y, x), arrays[f"{word} affine"]))
        for word, (z, y, x) in shapes.items()
    }
