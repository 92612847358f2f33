"""Whatever is given instead of a CT: one sentence, status 1, and nothing written."""

from __future__ import annotations

import gzip
import struct
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_pancreas_seg import io
from napari_pancreas_seg.cli import main
from napari_pancreas_seg.cohort import cases as cohort
from napari_pancreas_seg.errors import PancreasSegError

AFFINE = np.diag([-1.0, -1, 3, 1])
RNG = np.random.default_rng(0)
SMOOTH = np.add.outer(np.hypot(*np.mgrid[:30, :30]), np.arange(6)) / 50


def image(array: np.ndarray, name: str = "ct.nii.gz") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        nib.save(nib.Nifti1Image(array, AFFINE, dtype=array.dtype), folder / name)
        return folder / name

    return write


def raw(content: bytes, name: str = "ct.nii.gz") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def nifti(body: np.ndarray, **fields: object) -> bytes:
    """Bytes of a NIfTI with header fields set to whatever one likes."""
    header = nib.Nifti1Header()
    header.set_data_shape(body.shape)
    header.set_data_dtype(body.dtype)
    header.set_sform(AFFINE, 1)
    header["vox_offset"] = 352
    for name, value in fields.items():
        header[name] = value
    return bytes(header.binaryblock) + b"\0" * 4 + body.tobytes(order="F")


def ct_bytes() -> bytes:
    inner = np.abs(np.linspace(-1, 1, 30))
    inside = np.maximum.outer(inner, inner)[..., None] < 0.7
    hu = np.where(inside, 50, -1000) + RNG.normal(0, 9, (30, 30, 6))
    return nifti(hu.astype(np.int16))


def a_folder_of_that_name(folder: Path) -> Path:
    (folder / "ct.nii.gz").mkdir()
    return folder / "ct.nii.gz"


def odd(name: str = "ct.nii", **fields: object) -> Callable[[Path], Path]:
    """A small NIfTI with an odd header."""
    content = nifti(RNG.random((3, 3, 3)), **fields)
    return raw(gzip.compress(content) if name.endswith(".gz") else content, name)


def sized(*shape: int) -> list[int]:
    return [3, *shape, 1, 1, 1, 1]


PLAIN = ct_bytes()
PACKED = gzip.compress(PLAIN)
RGB = np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
PHOTO = (SMOOTH * 250).clip(0, 255).astype(np.uint8)
NAN_ROW = (float("nan"), 0, 0, 0)

BAD = {
    "not there": (lambda folder: folder / "none.nii.gz", "does not exist"),
    "empty folder": (a_folder_of_that_name, "holds no CT"),
    "unknown suffix": (raw(b"x", "ct.tiff"), "no known format"),
    "empty file": (raw(b"", "ct.nii"), "is empty"),
    "text": (raw(b"this is no image at all" * 99), "not a NIfTI"),
    "text, plain": (raw(b"this is no image at all" * 99, "ct.nii"), "not a NIfTI"),
    "gzip of text": (raw(gzip.compress(b"hello" * 999)), "not a NIfTI"),
    "truncated gzip": (raw(PACKED[: len(PACKED) // 2]), "truncated"),
    "a byte short": (raw(gzip.compress(PLAIN[:-1])), "only 99% of the voxels"),
    "truncated gzip header": (raw(PACKED[:20]), "truncated"),
    "truncated": (raw(PLAIN[: len(PLAIN) // 2], "ct.nii"), "truncated"),
    "damaged gzip": (
        raw(PACKED[:2000] + bytes(50) + PACKED[2050:]),
        "damaged|cannot be read|truncated",
    ),
    "wrong checksum": (raw(PACKED[:-8] + bytes(8)), "damaged"),
    "more voxels than bytes": (odd("a.nii.gz", dim=sized(30000, 30000, 30000)), "more than the"),
    "negative size": (odd(dim=sized(-3, 3, 3)), "voxels"),
    "no voxels": (odd(dim=sized(0, 3, 3)), "no voxels"),
    "offset": (odd(vox_offset=1e30), "truncated|is invalid"),
    "offset in the header": (odd(vox_offset=0), "within its header"),
    "number type": (odd(datatype=9999), "is invalid"),
    "2-D": (image(SMOOTH[:, :, 0] * 100), "2-D"),
    "4-D": (image(np.stack([SMOOTH * 100] * 3, -1)), "3 volumes"),
    "RGB": (image(RGB), "RGB"),
    "complex": (image((SMOOTH * 1j).astype(np.complex64)), "complex"),
    "all NaN": (image(np.full((9, 9, 9), np.nan, np.float32)), "every voxel is NaN"),
    "all infinite": (image(np.full((9, 9, 9), np.inf)), "every voxel is NaN"),
    "constant": (image(np.full((9, 9, 9), 40, np.int16)), "constant"),
    "zeros": (image(np.zeros((9, 9, 9), np.int16)), "constant"),
    "0 to 1": (image(SMOOTH.astype(np.float32)), "normalised"),
    "photo": (image(PHOTO), "picture"),
    "one slice of a photo": (image(PHOTO[:, :, :1]), "picture"),
    "MR": (image((SMOOTH * 2000).astype(np.int16)), "MR"),
    "air only": (image((-1000 - SMOOTH * 300).astype(np.int16)), "no soft tissue"),
    "singular affine": (odd(srow_z=[0, 0, 0, 0]), "singular"),
    "NaN in the affine": (odd(srow_x=NAN_ROW), "singular or not finite"),
    "no size": (odd(sform_code=0, qform_code=1, pixdim=[1, 1, 1, 0, 1, 1, 1, 1]), "no size"),
    "no size, no place": (odd(sform_code=0, qform_code=0, pixdim=[0] * 8), "no size"),
    "flat affine": (odd(srow_x=[1, 0, 0, 0], srow_z=[1, 0, 0, 0]), "singular"),
}


@pytest.mark.parametrize("name", BAD)
def test_command_line_says_one_sentence(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_pancreas_seg.cohort.run.load_card", lambda _: {})
    write, reason = BAD[name]
    path = write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["segment", str(path), "-o", str(tmp_path / "out" / "m.nii.gz")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    sentence = said.err.rstrip()
    assert path.name in sentence
    assert sentence.endswith((".", "?"))
    assert "Traceback" not in sentence
    assert "unexpected" not in sentence
    with pytest.raises(PancreasSegError, match=reason):
        (cohort.find_inputs if name == "empty folder" else lambda paths: io.load_ct(paths[0]))(
            [path]
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_line_of_an_affine_is_no_reason(tmp_path: Path) -> None:
    assert io.load_ct(raw(PLAIN, "ct.nii")(tmp_path)).notes == ()


@pytest.mark.parametrize("content", [PLAIN, PACKED], ids=["plain", "gzip"])
def test_truncated_anywhere(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    for part in np.linspace(0, len(content) - 1, 41).astype(int):
        path.write_bytes(content[:part])
        with pytest.raises(PancreasSegError):
            io.load_ct(path)


@pytest.mark.slow
def test_flipped_bits_never_escape(tmp_path: Path) -> None:
    """Either one sentence or a volume; nothing else, and quickly."""
    path = tmp_path / "ct.nii.gz"
    rng = np.random.default_rng(1)
    refused = 0
    start = time.perf_counter()
    for number in range(400):
        content = bytearray(PACKED if number % 2 else PLAIN)
        reach = len(content) if number % 2 else 352
        for place in rng.integers(0, reach, rng.integers(1, 4)):
            content[place] ^= 1 << rng.integers(0, 8)
        path.write_bytes(content)
        try:
            io.load_ct(path)
        except PancreasSegError:
            refused += 1
    assert refused > 150
    assert time.perf_counter() - start < 30


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767))
    header.set_data_dtype(np.float64)
    header["vox_offset"] = 352
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(header.binaryblock) + bytes(10_000_000)))
    with pytest.raises(PancreasSegError, match="more than the file can hold"):
        io.load_ct(path)


def test_gzip_under_a_plain_name_and_the_other_way_round(tmp_path: Path) -> None:
    for content, name in ((PACKED, "ct.nii"), (PLAIN, "ct.nii.gz"), (PACKED, "CT.NII.GZ")):
        volume = io.load_ct(raw(content, name)(tmp_path))
        assert volume.hu.shape == (6, 30, 30)
        assert volume.name.lower() == "ct"


def test_half_a_header_pair_is_refused(tmp_path: Path) -> None:
    content = PLAIN.replace(b"n+1\0", b"ni1\0")
    with pytest.raises(PancreasSegError, match="one file of a pair"):
        io.load_ct(raw(content, "ct.hdr")(tmp_path))
    assert struct.unpack("<i", content[:4]) == (348,)


@pytest.mark.parametrize("behind", [b"junkjunk", bytes(512) + b"junk"])
def test_what_follows_the_compressed_data_is_ignored(behind: bytes, tmp_path: Path) -> None:
    expected = io.load_ct(raw(PACKED, "whole.nii.gz")(tmp_path)).hu
    np.testing.assert_array_equal(io.load_ct(raw(PACKED + behind)(tmp_path)).hu, expected)
