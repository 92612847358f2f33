"""What travels between a caller and the network's process, and how: JSON and plain arrays.

A message is a line of JSON followed by the arrays that the line names, in NumPy's own
format. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.inference.result import (
    FoundSlices,
    Options,
    Progress,
    ScalarMap,
    Segmentation,
)
from napari_pancreas_seg.volume import CTVolume, Grid, Source

__all__ = [
    "OUT_OF_MEMORY",
    "Message",
    "progress_message",
    "progress_of",
    "receive",
    "result_message",
    "segmentation_of",
    "send",
    "volume_of",
]

OUT_OF_MEMORY = 137
"""Status of a child whose memory ran out, as where the system kills it for that."""

Array = npt.NDArray[Any]
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
    """Turn what a card or a timing may hold into what JSON knows."""
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
    if step.slices is None:
        return header, {}
    arrays: dict[str, Array] = {
        "z": step.slices.z,
        "rows": step.slices.map_rows,
        "mask": step.slices.mask,
    }
    for word, part in step.slices.maps.items():
        arrays[f"{word} values"] = part.values
        arrays[f"{word} affine"] = part.grid.affine
    depths = {word: part.grid.shape[0] for word, part in step.slices.maps.items()}
    return {**header, "maps": depths}, arrays


def progress_of(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Progress:
    """Undo `progress_message`."""
    slices = None
    if arrays:
        maps = {}
        for word, depth in header["maps"].items():
            values = arrays[f"{word} values"]
            grid = Grid((depth, *values.shape[1:]), arrays[f"{word} affine"])
            maps[word] = ScalarMap(values, grid)
        slices = FoundSlices(arrays["z"], arrays["mask"], maps, arrays["rows"])
    return Progress(header["stage"], header["done"], header["total"], slices)


def result_message(result: Segmentation) -> Message:
    """Build the message that carries the result of a run."""
    maps = {"probability": result.probability}
    maps |= {f"probability {name}": each for name, each in result.probabilities.items()}
    maps |= {f"attention {number}": gate for number, gate in enumerate(result.attention)}
    arrays: dict[str, Array] = {
        "mask": result.mask,
        "affine": result.grid.affine,
        "expected dice": result.expected_dice,
        "plausible": result.plausible,
    }
    for name, scalar_map in maps.items():
        arrays[f"{name} values"] = scalar_map.values
        arrays[f"{name} affine"] = scalar_map.grid.affine
    header: dict[str, Any] = {
        "reply": "result",
        "gates": len(result.attention),
        "classes": list(result.probabilities),
        "threshold": result.threshold,
        "model": dict(result.model),
        "seconds": dict(result.seconds),
        "options": asdict(result.options),
        "notes": list(result.notes),
    }
    return header, arrays


def segmentation_of(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Segmentation:
    """Undo `result_message`."""

    def scalar_map(name: str) -> ScalarMap:
        values = arrays[f"{name} values"]
        return ScalarMap(values, Grid(values.shape, arrays[f"{name} affine"]))

    mask = arrays["mask"]
    return Segmentation(
        mask=mask,
        probability=scalar_map("probability"),
        attention=tuple(scalar_map(f"attention {number}") for number in range(header["gates"])),
        grid=Grid(mask.shape, arrays["affine"]),
        threshold=header["threshold"],
        model=header["model"],
        seconds=header["seconds"],
        options=Options(**header["options"]),
        notes=tuple(header["notes"]),
        expected_dice=arrays["expected dice"],
        plausible=arrays["plausible"],
        probabilities={
            name: scalar_map(f"probability {name}") for name in header.get("classes", ())
        },
    )
