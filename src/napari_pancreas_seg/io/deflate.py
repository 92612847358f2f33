"""Gzip and zlib streams, by ISA-L where there is a build for the machine, else by Python's zlib."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from typing import IO, Any

_EITHER = zlib.MAX_WBITS | 32

_MAGIC = b"\x1f\x8b"  # what a member of a gzip file begins with
_BLOCK = 1 << 16  # compressed bytes at a time

_codec: Any = zlib
_file: type[gzip.GzipFile] = gzip.GzipFile
_level = 4

# No build of it for 32 bits or for Windows on ARM.
with contextlib.suppress(ImportError):
    from isal import igzip, isal_zlib

    _codec, _file = isal_zlib, igzip.IGzipFile
    # A mask of 66 million voxels: 5 ms and 97 kB, zlib at level 4 takes 190 ms for 77 kB. A CT
    # comes out a tenth larger, in a sixth of the time. The level above is slower and larger.
    _level = 2

BROKEN: tuple[type[Exception], ...] = (EOFError, zlib.error, _codec.error)
"""Errors that a damaged or incomplete stream raises."""


def inflated(file: IO[bytes]) -> io.BufferedReader:
    """Open a gzip file or a zlib stream, checksums verified; ignore what follows its end."""
    return io.BufferedReader(_Inflated(file), 1 << 18)


class _Inflated(io.RawIOBase):
    """A zlib stream or the members of a gzip file, decompressed one after the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream: Any = _codec.decompressobj(_EITHER)
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._stream.eof or self._next_member():
            block = self._waiting or self._file.read(_BLOCK)
            # Even without a block: ISA-L may have taken in the last bytes with output pending.
            data = self._stream.decompress(block, len(view))
            self._waiting = self._stream.unconsumed_tail
            if data:
                view[: len(data)] = data
                return len(data)
            if not block and not self._stream.eof:
                raise EOFError
        return 0

    def _next_member(self) -> bool:
        """Go on to the next member if there is one; zeros may lie between."""
        rest = (self._stream.unused_data + self._file.read(_BLOCK)).lstrip(b"\0")
        if not rest.startswith(_MAGIC):
            return False
        self._stream, self._waiting = _codec.decompressobj(_EITHER), rest
        return True


def gzip_writer(file: IO[bytes]) -> gzip.GzipFile:
    """Open a gzip stream for writing, which leaves the file open; equal content, equal bytes."""
    # Neither a name nor a time in the header.
    return _file("", "wb", _level, file, mtime=0)
