"""NRRD and MetaImage in, against SimpleITK, which reads and writes them independently."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.itk import read as itk
from napari_pancreas_seg.io.suffixes import METAIMAGE, NRRD

SUFFIXES = (*NRRD, *METAIMAGE)
QUICK = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
RNG = np.random.default_rng(0)


def sitk_image(array: np.ndarray) -> sitk.Image:
    """An oblique image; the array has the axes i, j, k."""
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-100.25, 33.3, 1 / 3))
    turn = sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3)
    image.SetDirection(turn.GetMatrix())
    return image


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_what_simpleitk_writes(dtype: str, compressed: bool, suffix: str, tmp_path: Path) -> None:
    array = RNG.integers(0, 100, (5, 6, 7)).astype(dtype)
    if dtype.startswith("float"):
        array += array.dtype.type(0.25)
    image = sitk_image(array)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    raw = itk.read(path)
    np.testing.assert_array_equal(raw.stored, array)
    assert raw.type_name == dtype
    assert raw.notes == ()
    for index in [(0, 0, 0), (4, 5, 6), (1, 2, 3)]:
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose((raw.affine @ (*index, 1))[:3], point, atol=1e-9)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_ct_and_a_mask(suffix: str, body: Callable, tmp_path: Path) -> None:
    hu = body((24, 20, 6))
    sitk.WriteImage(sitk_image(hu), str(tmp_path / f"ct{suffix}"), True)
    ct = (tmp_path / f"ct{suffix}").rename(tmp_path / f"case 7{suffix.upper()}")
    volume = io.load_ct(ct)
    assert volume.hu.dtype == np.int16
    assert volume.name == "case 7"
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), hu)
    path = tmp_path / f"mask{suffix}"
    sitk.WriteImage(sitk_image((hu > 0).astype(np.uint8)), str(path), True)
    assert [io.sniff(item).kind for item in (path, ct)] == ["mask", "CT"]
    mask, on = io.load_mask(path)
    np.testing.assert_array_equal(mask, volume.hu > 0)
    assert on.grid.same_as(volume.grid, 1e-9)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_in_any_language(suffix: str, body: Callable, tmp_path: Path) -> None:
    hu, path = body((20, 18, 7)), tmp_path / "Füße 膵臓" / f"Bauch ü{suffix}"
    path.parent.mkdir()
    sitk.WriteImage(sitk_image(hu), str(path), True)
    volume = io.load_ct(path)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), hu)
    assert volume.name == "Bauch ü"


@pytest.mark.skipif(sys.platform != "linux", reason="names are not any bytes there")
@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_detached_header_in_a_folder_of_any_bytes(
    suffix: str, body: Callable, tmp_path: Path
) -> None:
    hu, folder = body((20, 18, 7)), tmp_path / "a"
    folder.mkdir()
    sitk.WriteImage(sitk_image(hu), str(folder / f"a{suffix}"), True)
    folder = folder.rename(tmp_path / os.fsdecode(b"Pr\xe4fix"))
    path = (folder / f"a{suffix}").rename(folder / os.fsdecode(b"M\xfcller" + suffix.encode()))
    volume = io.load_ct(path)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), hu)


def nrrd(path: Path, body: bytes, *fields: str, sizes: str = "5 6 7", type: str = "int16") -> Path:
    header = ["NRRD0005", "# a comment", f"type: {type}", f"dimension: {len(sizes.split())}"]
    lines = [*header, f"sizes: {sizes}", *fields]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + body)
    return path


def mha(path: Path, body: bytes, *fields: str, size: str = "5 6 7", data: str = "LOCAL") -> Path:
    lines = ["ObjectType = Image", f"NDims = {len(size.split())}", f"DimSize = {size}"]
    kind = [] if any(f.startswith("ElementType") for f in fields) else ["ElementType = MET_SHORT"]
    step = [] if any(f.startswith("ElementS") for f in fields) else ["ElementSpacing = 1 1 1"]
    step = step if len(size.split()) == 3 else []
    lines += [*fields, *kind, *step, f"ElementDataFile = {data}"]
    path.write_bytes("\n".join([*lines, ""]).encode() + body)
    return path


NUMBERS = RNG.integers(-1000, 1000, (5, 6, 7)).astype("<i2")
PLAIN = NUMBERS.tobytes(order="F")
BIG = NUMBERS.astype(">i2").tobytes(order="F")
TEXT = " ".join(map(str, NUMBERS.ravel(order="F"))).encode()
LPS = ("space: LPS", "space directions: (1,0,0) (0,1,0) (0,0,2)", "space origin: (1,2,3)")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (PLAIN, ("encoding: raw", "endian: little")),
        (BIG, ("encoding: raw", "endian: big")),
        (gzip.compress(BIG), ("encoding: gz", "endian: big")),
        (gzip.compress(b"1234" + PLAIN), ("encoding: gzip", "endian: little", "byte skip: 4")),
        (b"junk" + PLAIN, ("encoding: raw", "endian: little", "byteskip: -1")),
        (PLAIN, ("encoding: raw", "endian: little", "key:=value: with colons", "kinds: 3*domain")),
    ],
)
def test_encodings_of_nrrd(body: bytes, fields: tuple[str, ...], tmp_path: Path) -> None:
    if "kinds: 3*domain" in fields:
        fields = (*fields[:-1], "kinds: domain domain domain")
    raw = itk.read(nrrd(tmp_path / "a.nrrd", body, *LPS, *fields))
    np.testing.assert_array_equal(raw.stored, NUMBERS)
    np.testing.assert_allclose(raw.affine @ (1, 1, 1, 1), (-2, -3, 5, 1))


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (PLAIN, ()),
        (BIG, ("BinaryData = True", "BinaryDataByteOrderMSB = True")),
        (BIG, ("ElementByteOrderMSB = True",)),
        (zlib.compress(PLAIN), ("CompressedData = True",)),
        (gzip.compress(PLAIN), ("CompressedData = True",)),
        (b"junk" + PLAIN, ("HeaderSize = -1",)),
    ],
)
def test_encodings_of_metaimage(body: bytes, fields: tuple[str, ...], tmp_path: Path) -> None:
    fields = (*fields, "Offset = 1 2 3", "ElementSpacing = 1 1 2")
    raw = itk.read(mha(tmp_path / "a.mha", body, *fields))
    np.testing.assert_array_equal(raw.stored, NUMBERS)
    np.testing.assert_allclose(raw.affine @ (1, 1, 1, 1), (-2, -3, 5, 1))


@pytest.mark.parametrize(
    ("space", "signs", "noted"),
    [
        ("left-posterior-superior", (-1, -1, 1), False),
        ("LPS", (-1, -1, 1), False),
        ("right-anterior-superior", (1, 1, 1), False),
        ("RAS", (1, 1, 1), False),
        ("left-anterior-superior", (-1, 1, 1), False),
        ("scanner-xyz", (-1, -1, 1), True),
        ("3D-left-handed", (-1, -1, 1), True),
    ],
)
def test_spaces(space: str, signs: tuple[int, ...], noted: bool, tmp_path: Path) -> None:
    fields = (f"space: {space}", *LPS[1:], "encoding: raw", "endian: little")
    raw = itk.read(nrrd(tmp_path / "a.nrrd", PLAIN, *fields))
    np.testing.assert_allclose((raw.affine @ (4, 0, 1, 1))[:3], np.multiply((5, 2, 5), signs))
    assert bool(raw.notes) == noted


def test_any_metadata_of_an_image_is_passed_over(body: Callable, tmp_path: Path) -> None:
    """SimpleITK writes what came from a NIfTI or a DICOM file along with a MetaImage."""
    image = sitk_image(body((24, 20, 6)))
    keys = ("dim[0]", "qto_xyz", "0008|0005", "a key of words", "ITK_FileNotes", "pixdim[1]")
    for key in keys:
        image.SetMetaData(key, "1 0 = 0\nand more" if key == "dim[0]" else "x (y) | z")
    for suffix in (".mha", ".mhd", ".nrrd"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), True)
        volume = io.load_ct(tmp_path / f"a{suffix}")
        back = volume.to_source_order(volume.hu)
        np.testing.assert_array_equal(back, body((24, 20, 6)))
        assert volume.notes == ()


@pytest.mark.parametrize(
    ("values", "expected", "notes"), [((1, 1), (1, 2), 2), ((3, 7), (3, 7), 1)]
)
def test_layers_of_a_segmentation(
    values: tuple[int, int], expected: tuple[int, int], notes: int, tmp_path: Path
) -> None:
    layers = np.zeros((2, 5, 6, 7), np.uint8)
    layers[0, 1:3], layers[1, 2:4] = values
    keys = [
        line
        for n, value in enumerate(values)
        for line in (f"Segment{n}_LabelValue:={value}", f"Segment{n}_Layer:={n}")
    ]
    path = nrrd(
        tmp_path / "two.seg.nrrd",
        layers.tobytes(order="F"),
        LPS[0],
        "space directions: none (1,0,0) (0,1,0) (0,0,2)",
        "kinds: list domain domain domain",
        *(LPS[2], "encoding: raw", *keys),
        sizes="2 5 6 7",
        type="uint8",
    )
    assert io.sniff(path).kind == "mask"
    mask, volume = io.load_mask(path)
    stored = volume.to_source_order(mask)
    np.testing.assert_array_equal(stored[:, 0, 0], [0, expected[0], expected[1], expected[1], 0])
    assert len(volume.notes) == notes
    assert any("share label values" in note for note in volume.notes) == (values == (1, 1))
    np.testing.assert_allclose(volume.source.affine @ (1, 1, 1, 1), (-2, -3, 5, 1))


def test_one_volume_of_a_list_is_a_volume(tmp_path: Path) -> None:
    """A sequence of 3D Slicer with one time."""
    fields = (LPS[0], f"space directions: none {LPS[1].partition(': ')[2]}", LPS[2])
    kinds = ("kinds: list domain domain domain", "encoding: raw", "endian: little")
    path = nrrd(tmp_path / "a.seq.nrrd", PLAIN, *fields, *kinds, sizes="1 5 6 7")
    raw = itk.read(path)
    np.testing.assert_array_equal(raw.stored, NUMBERS)
    np.testing.assert_allclose(raw.affine @ (1, 1, 1, 1), (-2, -3, 5, 1))
    assert raw.notes == ()
    with pytest.raises(PancreasSegError, match="holds 2 volumes"):
        itk.read(nrrd(path, PLAIN + PLAIN, *fields, *kinds, sizes="2 5 6 7"))


def test_a_sheared_nrrd_lies_where_it_says(tmp_path: Path) -> None:
    shear = ("space: RAS", "space directions: (1,0,0) (0,1,0) (0,0.6,2)", "space origin: (1,2,3)")
    raw = itk.read(nrrd(tmp_path / "a.nrrd", PLAIN, *shear, "encoding: raw", "endian: little"))
    np.testing.assert_allclose(raw.affine @ (0, 0, 2, 1), (1, 3.2, 7, 1))


def test_lengths_in_micrometres(tmp_path: Path) -> None:
    units = 'space units: "um" "um" "um"'
    path = nrrd(tmp_path / "a.nrrd", PLAIN, *LPS, units, "encoding: raw", "endian: little")
    raw = itk.read(path)
    np.testing.assert_allclose(raw.affine[2, 2], 0.002)
    assert any("mm" in note for note in raw.notes)


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
@pytest.mark.parametrize("where", ["../secret.raw", "/etc/hostname", "link.raw", "sub/../../x"])
def test_no_header_reads_a_file_elsewhere(suffix: str, where: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("secret.raw", "x"):
        (tmp_path / name).write_bytes(PLAIN)
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    path = folder / f"a{suffix}"
    if suffix == ".nhdr":
        nrrd(path, b"", *LPS, "encoding: raw", "endian: little", f"data file: {where}")
    else:
        mha(path, b"", data=where)
    with pytest.raises(PancreasSegError, match="outside its own folder"):
        itk.read(path)


@pytest.mark.parametrize("rest", [1, 363, 2000])
def test_voxels_that_wait_when_all_is_read(rest: int, tmp_path: Path) -> None:
    count = (1 << 20) * 3 + rest
    packed = zlib.compress(bytes(count))
    fields = ("CompressedData = True", "ElementType = MET_UCHAR")
    path = mha(tmp_path / "a.mha", packed, *fields, size=f"{count} 1 1")
    assert itk.read(path).stored.tobytes() == bytes(count)
    mha(path, packed[:-9], *fields, size=f"{count} 1 1")
    with pytest.raises(PancreasSegError, match="break off"):
        itk.read(path)


def empty(folder: Path) -> Path:
    (folder / "a.nrrd").touch()
    return folder / "a.nrrd"


def text(path: Path) -> Path:
    path.write_text("no field at all\nNDims = 3\n")
    return path


NO = ("encoding: raw", "endian: little")
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (empty, "is empty"),
    "text": (lambda p: text(p / "a.mha"), "not a MetaImage"),
    "truncated": (lambda p: nrrd(p / "a.nrrd", PLAIN[:-9], *LPS, *NO), "truncated"),
    "truncated mha": (lambda p: mha(p / "a.mha", PLAIN[:99]), "truncated"),
    "truncated gzip": (
        lambda p: nrrd(p / "a.nrrd", gzip.compress(PLAIN)[:200], *LPS, "encoding: gzip", NO[1]),
        "break off",
    ),
    "truncated zlib": (
        lambda p: mha(p / "a.mha", zlib.compress(PLAIN)[:200], "CompressedData = True"),
        "break off",
    ),
    "fewer voxels": (
        lambda p: mha(p / "a.mha", zlib.compress(PLAIN[:300]), "CompressedData = True"),
        "holds only",
    ),
    "bomb": (
        lambda p: nrrd(p / "a.nrrd", PLAIN, *LPS, *NO, sizes="90000 90000 90000"),
        "more than",
    ),
    "packed bomb": (
        lambda p: mha(p / "a.mha", zlib.compress(bytes(1 << 22)), size="3000 3000 3000"),
        "more than",
    ),
    "skip": (lambda p: nrrd(p / "a.nrrd", PLAIN, *LPS, *NO, "byte skip: 99999999999"), "truncated"),
    "2-D": (lambda p: mha(p / "a.mha", PLAIN, size="5 42"), "2-D"),
    "4-D": (lambda p: nrrd(p / "a.nrrd", PLAIN, *NO, sizes="5 6 1 7"), "7 volumes"),
    "colours": (lambda p: mha(p / "a.mha", PLAIN, "ElementNumberOfChannels = 3"), "one number"),
    "block": (lambda p: nrrd(p / "a.nrrd", PLAIN, *NO, type="block"), "one number"),
    "hex": (lambda p: nrrd(p / "a.nrrd", PLAIN, "encoding: hex"), "save it again"),
    "lines": (lambda p: nrrd(p / "a.nrrd", b"a\n" + PLAIN, *NO, "line skip: 1"), "lines of text"),
    "lineskip": (lambda p: nrrd(p / "a.nrrd", b"a\n" + PLAIN, *NO, "lineskip: 1"), "save it again"),
    "bzip2": (lambda p: nrrd(p / "a.nrrd", PLAIN, "encoding: bzip2"), "save it again"),
    "as text": (lambda p: nrrd(p / "a.nrrd", TEXT, "encoding: text"), "save it again"),
    "mha as text": (lambda p: mha(p / "a.mha", TEXT, "BinaryData = False"), "save it again"),
    "list": (lambda p: mha(p / "a.mhd", b"", data="LIST"), "several files"),
    "pattern": (lambda p: nrrd(p / "a.nhdr", b"", *NO, "data file: a%03d.raw 1 7 1"), "several"),
    "no data": (lambda p: mha(p / "a.mhd", b"", data="a.raw"), "not beside it"),
    "nan": (lambda p: mha(p / "a.mha", PLAIN, "Offset = nan 0 0"), "not finite"),
    "flat": (lambda p: mha(p / "a.mha", PLAIN, "ElementSpacing = 1 0 1"), "no size"),
    "no spacings": (lambda p: nrrd(p / "a.nrrd", PLAIN, LPS[0], *NO), "how large its voxels are"),
    "no spacing": (lambda p: mha(p / "a.mha", PLAIN, "ElementSizeValid = False"), "how large"),
    "negative": (lambda p: mha(p / "a.mha", PLAIN, size="5 -6 7"), "holds no voxels"),
    "singular": (
        lambda p: nrrd(
            p / "a.nrrd", PLAIN, LPS[0], "space directions: (1,0,0) (1,0,0) (0,0,1)", *NO
        ),
        "placed in space",
    ),
    "words": (lambda p: mha(p / "a.mha", PLAIN, "Offset = a b c"), "invalid"),
    "dimensions": (
        lambda p: mha(p / "a.mha", PLAIN, size=" ".join("1" * 40)),
        "DimSize|invalid",
    ),
    "endless": (lambda p: nrrd(p / "a.nrrd", b"", "x" * (1 << 21)), "header without end"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_end_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, reason = BAD[name]
    with pytest.raises(PancreasSegError, match=reason):
        io.load_ct(make(tmp_path))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@QUICK
@given(data=st.data())
def test_damaged_files_end_in_a_sentence_or_a_volume(
    data: st.DataObject, suffix: str, tmp_path: Path
) -> None:
    sitk.WriteImage(sitk_image(NUMBERS), str(tmp_path / f"a{suffix}"), True)
    content = bytearray((tmp_path / f"a{suffix}").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / f"b{suffix}"
    path.write_bytes(content[:cut])
    with contextlib.suppress(PancreasSegError):  # anything else is a traceback
        io.load_ct(path)


@pytest.mark.slow
def test_every_orientation_is_read(tmp_path: Path) -> None:
    for order, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    ):
        image = sitk_image(NUMBERS)
        direction = np.zeros((3, 3))
        direction[list(order), range(3)] = signs
        image.SetDirection(direction.ravel())
        for suffix in (".nrrd", ".mha"):
            sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
            raw = itk.read(tmp_path / f"a{suffix}")
            point = np.array(image.TransformIndexToPhysicalPoint((1, 2, 3))) * (-1, -1, 1)
            np.testing.assert_allclose((raw.affine @ (1, 2, 3, 1))[:3], point, atol=1e-9)
