"""Compressed streams: what any program reads, with the faster library and without it."""

from __future__ import annotations

import gzip
import importlib.util
import io
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_pancreas_seg.io import deflate, voxels

CONTENT = np.random.default_rng(0).normal(0, 30, 30_000).astype(np.int16).tobytes()
PACKED = gzip.compress(CONTENT, 6, mtime=0)


@pytest.fixture(params=["as installed", "without isal"])
def streams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as it is, and as it is where there is no build of ISA-L."""
    if request.param == "as installed":
        return deflate
    for name in ("isal", "isal.igzip", "isal.isal_zlib"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("deflate_without_isal", deflate.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.gzip_reader(io.BytesIO(PACKED)).__class__ is gzip.GzipFile
    return module


def written(streams: ModuleType, content: bytes) -> bytes:
    file = io.BytesIO()
    with streams.gzip_writer(file) as stream:
        for start in range(0, len(content), 7001):
            stream.write(content[start : start + 7001])
    return file.getvalue()


def test_others_read_what_is_written(streams: ModuleType) -> None:
    packed = written(streams, CONTENT)
    assert gzip.decompress(packed) == CONTENT
    assert packed == written(streams, CONTENT)
    assert packed[3:8] == bytes(5)  # no name, no time
    for format, read in ((streams.GZIP, gzip.decompress), (streams.ZLIB, zlib.decompress)):
        stream = streams.compressor(format)
        assert read(stream.compress(CONTENT) + stream.flush()) == CONTENT


def test_what_others_write_is_read(streams: ModuleType) -> None:
    several = gzip.compress(CONTENT[:999]) + gzip.compress(CONTENT[999:]) + bytes(300)
    for packed in (PACKED, several, gzip.compress(CONTENT, 0)):
        assert streams.gzip_reader(io.BytesIO(packed)).read() == CONTENT
    for packed in (PACKED, zlib.compress(CONTENT)):
        assert streams.decompressor().decompress(packed) == CONTENT


def test_a_reader_takes_no_more_memory_than_is_asked_for(streams: ModuleType) -> None:
    bomb = gzip.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    try:
        assert streams.gzip_reader(io.BytesIO(bomb)).read(1000) == bytes(1000)
        assert streams.decompressor().decompress(bomb, 1000) == bytes(1000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def outcome(read: Any, packed: bytes, errors: tuple[type[Exception], ...]) -> bytes | None:
    try:
        content: bytes = read(packed)
    except errors:
        return None
    return content


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_found_as_python_finds_it(data: st.DataObject) -> None:
    packed = bytearray(PACKED)
    for place in data.draw(st.lists(st.integers(0, len(packed) - 1), max_size=3)):
        packed[place] ^= data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)) | st.just(len(packed)))]
    packed += bytes(data.draw(st.integers(0, 20) | st.just(0)))
    packed += data.draw(st.binary(max_size=9))
    errors = (*deflate.BROKEN, OSError)
    expected = outcome(lambda p: gzip.GzipFile(fileobj=io.BytesIO(p)).read(), packed, errors)
    assert outcome(lambda p: deflate.gzip_reader(io.BytesIO(p)).read(), packed, errors) == expected


def flips(array: np.ndarray) -> Iterator[np.ndarray]:
    yield array
    yield array[::-1, :, ::-1]
    yield array.transpose(2, 0, 1)
    yield np.asfortranarray(array)[:, ::-1]


@pytest.mark.parametrize("kind", ["u1", ">i2", "<i2", "f4", ">f4"])
def test_planes_are_the_array(kind: str) -> None:
    whole = np.zeros((7, 6, 5), kind)
    whole[2:5, 3, 1:3] = np.arange(6).reshape(3, 2)
    for array in flips(whole):
        stored = array.astype(array.dtype.newbyteorder("<"))
        assert b"".join(voxels.planes(array)) == stored.tobytes(order="F")
        assert b"".join(voxels.planes(array[..., None, None])) == stored.tobytes(order="F")
