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
    assert module._codec is zlib
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


def test_what_others_write_is_read(streams: ModuleType) -> None:
    several = gzip.compress(CONTENT[:999]) + gzip.compress(CONTENT[999:]) + bytes(300)
    for packed in (PACKED, several, gzip.compress(CONTENT, 0)):
        assert streams.inflated(io.BytesIO(packed)).read() == CONTENT
    assert streams.inflated(io.BytesIO(zlib.compress(CONTENT))).read() == CONTENT


@pytest.mark.parametrize("length", [(1 << 20) * 3 + rest for rest in (1, 363, 2000)])
@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress])
def test_output_that_waits_when_all_is_taken_in(
    compress: Any, length: int, streams: ModuleType
) -> None:
    packed = compress(bytes(length))
    assert streams.inflated(io.BytesIO(packed)).read() == bytes(length)
    for cut in (1, 4, 9, len(packed) - 2):
        with pytest.raises(EOFError):
            streams.inflated(io.BytesIO(packed[:-cut])).read()


@pytest.mark.parametrize("size", [7, 997])
def test_members_that_end_anywhere_in_a_block(size: int, streams: ModuleType) -> None:
    class Slow(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return super().read(size)

    parts = [CONTENT[start : start + 997] for start in range(0, 9000, 997)]
    packed = b"".join(map(gzip.compress, [*parts, b""]))
    assert streams.inflated(Slow(packed)).read() == b"".join(parts)


@pytest.mark.parametrize(
    "behind", [b"x", b"junkjunk", b"\x1f", bytes(9) + b"junk", b"junk" * 99_999]
)
def test_what_follows_the_last_member_is_ignored(behind: bytes, streams: ModuleType) -> None:
    assert streams.inflated(io.BytesIO(PACKED + behind)).read() == CONTENT
    damaged = PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:]
    with pytest.raises(streams.BROKEN):
        streams.inflated(io.BytesIO(damaged + behind)).read()


@pytest.mark.slow
def test_a_reader_takes_no_more_memory_than_is_asked_for(streams: ModuleType) -> None:
    bomb = gzip.compress(bytes(50_000_000), 9)
    tracemalloc.start()
    try:
        assert streams.inflated(io.BytesIO(bomb)).read(1000) == bytes(1000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def inflated_by_zlib(packed: bytes) -> bytes:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    content = stream.decompress(packed)
    if not stream.eof:
        raise EOFError
    return content


def outcome(read: Any, packed: bytes, errors: tuple[type[Exception], ...]) -> bytes | None:
    try:
        content: bytes = read(packed)
    except errors:
        return None
    return content


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_found_as_python_finds_it(data: st.DataObject) -> None:
    packed = bytearray(PACKED)
    for place in data.draw(st.lists(st.integers(0, len(packed) - 1), max_size=3)):
        packed[place] ^= data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(1, len(packed)) | st.just(len(packed)))]
    expected = outcome(inflated_by_zlib, packed, (EOFError, zlib.error))
    found = outcome(lambda p: deflate.inflated(io.BytesIO(p)).read(), packed, deflate.BROKEN)
    assert found == expected


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
