"""Messages between a caller and the network's process: a line of JSON, then arrays.

A message is a dict of plain data, arrays, and what `_CLASSES` lists. The arrays follow the line in
NumPy's own format, in the order in which the line names them. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
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

_ARRAY, _CLASS = "an array", "of class"
"""Keys of what stands in the line for an array, and for an object with its fields."""

_CLASSES: dict[str, Any] = {
    each.__name__: each for each in (FoundSlices, Grid, Options, Progress, ScalarMap, Segmentation)
}

Message = dict[str, Any]


class _Stream:
    """A pipe without ``fileno``, so that NumPy does not try to seek in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.write = file.read, file.write


def send(file: IO[bytes], message: Message) -> None:
    """Write a message to a pipe. The CT of a result stays: who asked for the result has it."""
    arrays: list[Array] = []

    def plain(value: Any) -> Any:
        name = type(value).__name__
        if isinstance(value, np.ndarray):
            arrays.append(value)
            return {_ARRAY: len(arrays)}
        if name in _CLASSES:
            fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
            return {_CLASS: name, **fields}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return dict(value)
        return None if isinstance(value, CTVolume) else str(value)

    file.write(json.dumps(message, default=plain).encode() + b"\n")
    for array in arrays:
        np.lib.format.write_array(_Stream(file), array, allow_pickle=False)
    file.flush()


def receive(file: IO[bytes]) -> Message | None:
    """Read the next message from a pipe; None when the other side has closed it."""
    stream = _Stream(file)

    def made(data: dict[str, Any]) -> Any:
        if _ARRAY in data:
            return np.lib.format.read_array(stream, allow_pickle=False)
        if _CLASS not in data:
            return data
        kind = _CLASSES[data.pop(_CLASS)]  # its sequences are all tuples
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})

    line = file.readline()
    return json.loads(line, object_hook=made) if line else None


def volume_of(message: Message) -> CTVolume:
    """Build the CT from its ``hu`` (Z, Y, X) and ``affine`` (4, 4)."""
    hu, affine = message["hu"], message["affine"]
    as_is = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)
    return CTVolume(hu, Grid(hu.shape, affine), Source(None, "array", hu.shape, affine, as_is))
