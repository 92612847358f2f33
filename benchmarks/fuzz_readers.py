"""Give the readers files that are damaged in every way that can be thought of.

    python benchmarks/fuzz_readers.py --count 500 --seed 1

Small valid files of every format are changed, in their structure (fields of headers, lines, DICOM
elements, members of archives) and at random (bits, blocks, lengths), and go through everything
that reads: one process reads, another watches it. A reader may return, or raise
`PancreasSegError` with one sentence. Anything else is a finding: another exception, a crash, more
than 10 s, more than 3 GB.

With ``--command-line`` each file goes through ``napari-pancreas-seg segment FILE -o OUT`` instead
(in one process, so that the network is loaded once): the exit status must be 0 or 1 and what is
said one line, without a traceback; the file in OUT's place must be whole.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import queue
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, GIGABYTES = 10.0, 3.0
Files = dict[str, bytes]
"""Content by name; the first is the one that is given to the reader and changed."""


# Valid files, written by other programs than this one.


def body(shape: tuple[int, int, int] = (36, 32, 6)) -> np.ndarray:
    """Air, a rim of fat, soft tissue and a little noise, (I, J, K)."""
    i, j, _ = np.indices(shape)
    r = np.hypot((i - shape[0] / 2) / (0.4 * shape[0]), (j - shape[1] / 2) / (0.38 * shape[1]))
    hu = np.where(r < 0.85, 50.0, np.where(r < 1, -100.0, -1000.0))
    noise = np.random.default_rng(0).normal(0, 8, shape)
    return (hu + noise).round().clip(-1024, None).astype(np.int16)


def nifti(array: np.ndarray, kind: str, endianness: str = "<") -> bytes:
    import nibabel as nib

    image = {"1": nib.Nifti1Image, "2": nib.Nifti2Image}[kind]
    header = image.header_class(endianness=endianness)
    affine = np.array([[-9.0, 0.4, 0, 150], [0.4, -9, 0, 140], [0, 0, 5, -20], [0, 0, 0, 1]])
    made = image(array.astype(array.dtype.newbyteorder(endianness)), affine, header)
    made.set_qform(affine, 1)
    made.set_sform(affine, 1)
    return made.to_bytes()


def by_itk(array: np.ndarray, suffix: str, compress: bool) -> Files:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing((9.0, 9.0, 5.0))
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(image, f"{folder}/ct{suffix}", compress)
        names = sorted(os.listdir(folder), key=lambda name: not name.endswith(suffix))
        return {name: Path(folder, name).read_bytes() for name in names}


def dicom_slices(array: np.ndarray) -> Files:
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    study, series, frame = (generate_uid(entropy_srcs=[name]) for name in "abc")
    files: Files = {}
    for k in range(array.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        number = generate_uid(entropy_srcs=[f"slice {k}"])
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = number
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.FrameOfReferenceUID = frame
        data.PatientName, data.PatientID, data.Modality = "A^B", "1", "CT"
        data.StudyDate, data.StudyTime, data.AccessionNumber, data.StudyID = "20200101", "", "", ""
        data.PatientBirthDate, data.PatientSex, data.ReferringPhysicianName = "", "", ""
        data.InstanceNumber, data.SeriesNumber = k + 1, 2
        data.Rows, data.Columns = array.shape[1], array.shape[0]
        data.PixelSpacing, data.SliceThickness = [9, 9], 5
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-150, -140, 5 * k]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation = 0
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, -1024, "HU"
        data.PixelData = (array[:, :, k].T + 1024).astype("<u2").tobytes()
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        files[f"series/{k}.dcm"] = buffer.getvalue()
    return files


def compressed_slices(array: np.ndarray) -> Files:
    import pydicom
    from pydicom.uid import RLELossless

    files = {}
    for name, content in dicom_slices(array).items():
        data = pydicom.dcmread(io.BytesIO(content))
        data.compress(RLELossless)
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        files[name] = buffer.getvalue()
    return files


def dicom_segmentation(array: np.ndarray) -> Files:
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    slices = [pydicom.dcmread(io.BytesIO(data)) for data in dicom_slices(array).values()]
    described = hd.seg.SegmentDescription(
        1,
        "pancreas",
        codes.SCT.Organ,
        codes.SCT.Pancreas,
        hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    mask = (array > 0).transpose(2, 1, 0).astype(np.uint8)
    made = hd.seg.Segmentation(
        slices,
        mask,
        hd.seg.SegmentationTypeValues.BINARY,
        [described],
        generate_uid(entropy_srcs=["s"]),
        9,
        generate_uid(entropy_srcs=["i"]),
        1,
        "maker",
        "model",
        "1",
        "2",
    )
    buffer = io.BytesIO()
    made.save_as(buffer)
    return {"seg.dcm": buffer.getvalue()}


def zipped(files: Files) -> Files:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return {"series.zip": buffer.getvalue()}


def seeds() -> dict[str, list[Files]]:
    """Valid files of every format: CTs, and masks where that makes a difference."""
    ct = body()
    mask = (ct > 0).astype(np.uint8)
    plain = [
        nifti(ct, "1"),
        nifti(ct, "1", ">"),
        nifti(ct.astype(np.float32), "2"),
        nifti(mask, "1"),
        nifti(ct.astype(np.int32), "1"),
    ]
    made: dict[str, list[Files]] = {
        "nii": [{"ct.nii": content} for content in plain],
        "nii.gz": [{"ct.nii.gz": gzip.compress(content, mtime=0)} for content in plain],
    }
    for suffix in (".nrrd", ".nhdr", ".mha", ".mhd"):
        made[suffix[1:]] = [
            by_itk(array, suffix, compress)
            for array in (ct, mask, ct.astype(np.float64))
            for compress in (False, True)
        ]
    series = dicom_slices(ct)
    made["dicom"] = [series, compressed_slices(ct)]
    made["dicom-seg"] = [dicom_segmentation(ct)]
    made["zip"] = [zipped(series), zipped(compressed_slices(ct))]
    return made


# Ways to damage them.


def flip_bits(content: bytearray, rng: random.Random) -> None:
    reach = rng.choice([len(content), min(len(content), 512)])
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        content[rng.randrange(reach)] ^= 1 << rng.randrange(8)


def overwrite_block(content: bytearray, rng: random.Random) -> None:
    reach = rng.choice([len(content), min(len(content), 512)])
    start, size = rng.randrange(reach), rng.choice([1, 2, 4, 8, 64, 1024])
    fill = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80", b" ", b"9", b"\n", None])
    block = fill * size if fill else rng.randbytes(size)
    content[start : start + size] = block[: len(content) - start]


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.choice([rng.randrange(len(content)), rng.randrange(min(len(content), 600))]) :]


def append(content: bytearray, rng: random.Random) -> None:
    content += rng.choice(
        [
            bytes(100_000),
            rng.randbytes(1000),
            bytes(content[:500]),
            gzip.compress(bytes(10_000_000)),
        ]
    )


def remove_or_repeat(content: bytearray, rng: random.Random) -> None:
    start, size = rng.randrange(len(content)), rng.choice([1, 3, 4, 16, 512])
    if rng.random() < 0.5:
        del content[start : start + size]
    else:
        content[start:start] = content[start : start + size]


AT_RANDOM: list[Callable[[bytearray, random.Random], None]] = [
    *(flip_bits, flip_bits, overwrite_block, overwrite_block, cut, append, remove_or_repeat)
]


def at_random(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if changed:
            rng.choice(AT_RANDOM)(changed, rng)
    return bytes(changed)


NUMBERS = [
    *(0, 1, -1, 2, 7, 127, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32, 2**63 - 1),
    *(float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-30, 1e308, 0.5, -0.0),
]


def nifti_field(content: bytes, rng: random.Random) -> bytes:
    """Set fields of the header to numbers that make no sense."""
    import nibabel as nib

    large = 540 in (struct.unpack(e + "i", content[:4])[0] for e in "<>")
    kind: Any = nib.Nifti2Header if large else nib.Nifti1Header
    size = kind.template_dtype.itemsize
    header = kind(content[:size], check=False)
    fields = rng.choices(
        [
            *("dim", "dim", "dim", "pixdim", "vox_offset", "datatype", "bitpix", "scl_slope"),
            *("scl_inter", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b"),
            *("qoffset_x", "xyzt_units", "magic", "sizeof_hdr", "intent_code", "dim_info"),
        ],
        k=rng.choice([1, 1, 2, 3]),
    )
    for name in fields:
        value = header._structarr[name]
        with np.errstate(all="ignore"):
            if name == "magic":
                header._structarr[name] = rng.choice([b"ni1", b"n+2", b"n+1", b"", b"xxx"])
                continue
            number = np.asarray(rng.choice(NUMBERS), np.float64).astype(
                value.dtype.newbyteorder("=")
            )
            if value.ndim:
                changed = value.copy()
                changed[rng.randrange(value.size)] = number
                header._structarr[name] = changed
            else:
                header._structarr[name] = number
    return bytes(header._structarr.tobytes()) + content[size:]


def text_line(content: bytes, rng: random.Random) -> bytes:
    """Change the lines of a header of text."""
    end = content.find(b"\n\n") if content.startswith(b"NRRD") else content.find(b"ElementDataFile")
    end = content.find(b"\n", max(end, 0)) + 1 or len(content)
    lines = content[:end].split(b"\n")
    place = rng.randrange(len(lines))
    way = rng.randrange(6)
    if way == 0:
        del lines[place]
    elif way == 1:
        lines.insert(place, lines[rng.randrange(len(lines))])
    elif way == 2:
        lines.insert(place, rng.choice(HOSTILE_LINES))
    elif way == 3:
        lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
    else:
        numbers = list(re.finditer(rb"-?[\d.]+", lines[place])) or [None]
        hit = rng.choice(numbers)
        value = str(rng.choice(NUMBERS)).encode() if way == 4 else rng.randbytes(4)
        if hit:
            lines[place] = lines[place][: hit.start()] + value + lines[place][hit.end() :]
        else:
            lines[place] = lines[place].rpartition(b" ")[0] + b" " + value
    return b"\n".join(lines) + content[end:]


HOSTILE_LINES = [
    *(
        b"data file: /etc/passwd",
        b"data file: /dev/zero",
        b"data file: ../../x",
        b"data file: LIST",
    ),
    *(b"data file: x%03d.raw 1 99999999 1", b"encoding: hex", b"encoding: gzip", b"byte skip: -1"),
    *(b"byte skip: 99999999999", b"line skip: 99999999", b"dimension: 99", b"dimension: -1"),
    *(
        b"sizes: 65535 65535 65535",
        b"sizes: 1 1",
        b"type: block",
        b"type: double",
        b"content: \xff",
    ),
    *(b"space directions: none none none", b"space origin: (nan,nan,nan)", b"endian: big"),
    *(b"ElementDataFile = /dev/zero", b"ElementDataFile = LIST", b"ElementDataFile = ../x"),
    *(b"ElementDataFile = /etc/passwd", b"DimSize = 65535 65535 65535", b"DimSize = -1 2 3"),
    *(b"NDims = 99999999", b"NDims = 0", b"HeaderSize = -1", b"HeaderSize = 99999999999"),
    *(b"ElementType = MET_DOUBLE", b"ElementType = MET_STRING", b"CompressedData = True"),
    *(b"TransformMatrix = 0 0 0 0 0 0 0 0 0", b"ElementSpacing = nan 0 -1", b"ObjectType = Mesh"),
    *(b"ElementNumberOfChannels = 3", b"BinaryData = False", b"A" * 5000, b"\0" * 64, b"="),
]


def dicom_element(content: bytes, rng: random.Random) -> bytes:
    """Set, remove or shorten elements of a DICOM file."""
    import pydicom
    from pydicom.dataelem import RawDataElement

    data = pydicom.dcmread(io.BytesIO(content), force=True)
    for _ in range(rng.choice([1, 1, 2, 4])):
        target = data
        while True:
            tags = sorted(target.keys())
            tag = rng.choice(tags)
            element = target[tag]
            if element.VR == "SQ" and len(element.value) and rng.random() < 0.8:
                target = rng.choice(list(element.value))
                if not len(target):
                    break
                continue
            break
        if not tags:
            continue
        if rng.random() < 0.25:
            del target[tag]
            continue
        element = target[tag]
        values: dict[str, list[bytes]] = {
            "US": [struct.pack("<H", n) for n in (0, 1, 7, 8, 12, 32, 65535)] + [b"", b"1"],
            "DS": [b"nan ", b"inf ", b"1e999 ", b"-1", b"0 ", b"", b"1\\2\\3 ", b"abc ", b"1e30"],
            "IS": [b"99999999999 ", b"-1", b"", b"abc ", b"0 "],
            "UI": [b"", b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.4.90", b"abc\0", b"1.2.3\0"],
            "CS": [b"", b"MR", b"RGB ", b"MONOCHROME1 ", b"X" * 40],
        }
        if element.VR == "SQ":
            element.value = rng.choice([[], [pydicom.Dataset()]])
            continue
        default = [b"", b"\0" * 10, b"\xff" * 20, b"9" * 64]
        if element.VR in ("OW", "OB"):
            whole = bytes(element.value or b"")
            default = [whole[: rng.randrange(len(whole) + 1)], whole + whole, b""]
        value = rng.choice(values.get(element.VR, default))
        target._dict[tag] = RawDataElement(tag, element.VR, len(value), value, 0, False, True)
    if rng.random() < 0.3 and hasattr(data, "file_meta"):
        data.file_meta.TransferSyntaxUID = rng.choice(
            [
                *("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"),
                *("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5", "1.2"),
            ]
        )
    buffer = io.BytesIO()
    try:
        pydicom.dcmwrite(buffer, data, implicit_vr=False, little_endian=True, force_encoding=True)
    except Exception:  # not everything can be written down
        return at_random(content, rng)
    return buffer.getvalue()


def archive_member(content: bytes, rng: random.Random) -> bytes:
    """Change what lies in a zip, or how it is called."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    way = rng.randrange(6)
    if way == 0:
        members[name] = dicom_element(members[name], rng)
    elif way == 1:
        members[name] = at_random(members[name], rng)
    elif way == 2:
        members[rng.choice(["../../evil.dcm", "/etc/evil", "a/" * 300 + "x"])] = members.pop(name)
    elif way == 3:
        del members[name]
    elif way == 4:
        members["inner.zip"] = content
    else:
        members[name] = members[name] + bytes(50_000_000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def in_structure(kind: str, content: bytes, rng: random.Random) -> bytes:
    if kind == "nii":
        return nifti_field(content, rng)
    if kind == "nii.gz":
        inner = gzip.decompress(content)
        changed = nifti_field(inner, rng) if rng.random() < 0.7 else at_random(inner, rng)
        if rng.random() < 0.1:
            changed += bytes(200_000_000)
        return gzip.compress(changed, 1, mtime=0)
    if kind in ("dicom", "dicom-seg"):
        return dicom_element(content, rng)
    if kind == "zip":
        return archive_member(content, rng)
    return text_line(content, rng)


def mutated(kind: str, valid: list[Files], seed: int, number: int) -> Files:
    """The file with this number: the same for the same seed."""
    rng = random.Random(f"{seed} {kind} {number}")
    files = dict(rng.choice(valid))
    # Of several files any one may be damaged, a slice or the data beside a header.
    name = rng.choice(list(files)) if rng.random() < 0.3 else next(iter(files))
    text = name.endswith((".raw", ".zraw", ".raw.gz", ".gz")) and not name.endswith(".nii.gz")
    damage = at_random if text or rng.random() < 0.4 else None
    content = files[name]
    files[name] = damage(content, rng) if damage else in_structure(kind, content, rng)
    if len(files) > 1 and rng.random() < 0.05:
        del files[rng.choice(list(files)[1:])]
    return files


# Reading them, watched.

WORKER = "worker"


def read_everything(path: Path) -> str:
    """Run a path through all that reads; the name of what became of it."""
    from napari_pancreas_seg import io as front
    from napari_pancreas_seg.errors import PancreasSegError

    became = "refused"
    for read in (
        front.sniff,
        front.load_ct,
        front.load_mask,
    ):
        try:
            result = read(path)
        except PancreasSegError as error:
            sentence = str(error)
            if len(sentence.splitlines()) != 1 or not sentence.endswith((".", "?")):
                return f"no sentence: {sentence!r}"
        else:
            assert isinstance(result, bool) or result is not None
            if not isinstance(result, bool):
                became = "read"
    return became


def segment_it(path: Path) -> str:
    """Run a path through the command; the name of what became of it."""
    import contextlib

    from napari_pancreas_seg.cli import main

    out = path.parent / "out.nii.gz"
    out.write_bytes(b"old")
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main(["segment", str(path), "-o", str(out), "--overwrite"])
    text = said.getvalue()
    if status not in (0, 1) or "Traceback" in text or "unexpected" in text.lower():
        return f"status {status}: {text[-600:]}"
    if status == 1:
        whole = out.read_bytes() == b"old" and len(text.strip().splitlines()) == 1
        return "refused" if whole else f"not one sentence, or not the old file: {text[-600:]}"
    import nibabel as nib

    np.asarray(nib.load(out).dataobj)
    return "segmented"


def work(command_line: bool) -> None:
    """Be the process that reads: paths come in, lines of JSON go out."""
    if sys.platform != "win32" and not command_line:
        import resource

        limit = int(GIGABYTES * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    run = segment_it if command_line else read_everything
    for line in sys.stdin:
        path, start = Path(json.loads(line)), time.process_time()
        try:
            became = run(path)
        except BaseException:
            became = f"raised: {traceback.format_exc()[-1500:]}"
        spent = time.process_time() - start
        print(json.dumps([became, spent, _peak_gigabytes()]), file=replies)


def _peak_gigabytes() -> float:
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Watched:
    """A process that reads, replaced when it hangs or dies."""

    def __init__(self, command_line: bool) -> None:
        self._options = ["--command-line"] if command_line else []
        self._child: Any = None

    @property
    def cold(self) -> bool:
        """Whether the next file has to wait for Python to start."""
        return self._child is None

    def run(self, path: Path, seconds: float) -> tuple[str, float, float]:
        """What became of a path, seconds it took, and the most memory taken so far in GB."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, __file__, WORKER, *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._replies: queue.Queue[str] = queue.Queue()
            threading.Thread(
                target=self._listen, args=(self._child, self._replies), daemon=True
            ).start()
        self._child.stdin.write(json.dumps(str(path)) + "\n")
        self._child.stdin.flush()
        try:
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            self.close()
            return f"took more than {seconds:.0f} s", seconds, 0.0
        if not reply:
            status = self._child.wait()
            self.close()
            return f"crashed with status {status}", 0.0, 0.0
        became, spent, gigabytes = json.loads(reply)
        return became, spent, gigabytes

    @staticmethod
    def _listen(child: Any, replies: queue.Queue[str]) -> None:
        for line in child.stdout:
            replies.put(line)
        replies.put("")

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child.stdin.close()
            self._child.stdout.close()
            self._child = None


def unpack(kind: str, folder: Path, files: Files) -> Path:
    """Write files and return what the reader gets: the file, or the folder of a series."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "series" if kind == "dicom" else folder / next(iter(files))


def fuzz(
    kinds: list[str], count: int, seed: int, keep: Path | None = None, command_line: bool = False
) -> tuple[dict[str, Counter[str]], list[str], float, float]:
    """Fuzz formats.

    Returns
    -------
    became : dict
        For each format, how many files were read, refused, or are findings.
    findings : list of str
        What went wrong, one line each.
    slowest, largest : float
        Seconds of the slowest file, and GB of the largest process.
    """
    valid = seeds()
    became: dict[str, Counter[str]] = {}
    findings: list[str] = []
    slowest = largest = 0.0
    watched = Watched(command_line)
    try:
        for kind in kinds:
            became[kind] = Counter()
            for number in range(-len(valid[kind]), count):
                # First the valid ones: they must be read, and wait for Python and its libraries.
                whole = number < 0
                files = valid[kind][number] if whole else mutated(kind, valid[kind], seed, number)
                with tempfile.TemporaryDirectory() as name:
                    path = unpack(kind, Path(name), files)
                    cold = whole or watched.cold
                    # On a busy machine time passes without work: what counts is the processor's.
                    result, spent, gigabytes = watched.run(path, 12 * SECONDS)
                    seconds = 0.0 if cold else spent
                    if seconds > SECONDS:
                        result = f"took {seconds:.1f} s"
                    if gigabytes > GIGABYTES:
                        result = f"took {gigabytes:.1f} GB"
                        watched.close()
                    # A valid mask is read, but rightly not segmented.
                    refusable = not whole or command_line
                    bad = result not in ("read", "segmented", "refused" if refusable else "read")
                    if bad:
                        findings.append(f"{kind} {seed} {number}: {result}")
                    if bad and keep is not None:
                        shutil.copytree(name, keep / f"{kind}-{seed}-{number}", dirs_exist_ok=True)
                slowest, largest = max(slowest, seconds), max(largest, gigabytes)
                if not whole:
                    became[kind]["finding" if bad else result] += 1
    finally:
        watched.close()
    return became, findings, slowest, largest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", help="only these formats")
    parser.add_argument("--keep", type=Path, help="folder for the files that are findings")
    parser.add_argument("--command-line", action="store_true", help="segment each file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of what is written here on purpose
    kinds = arguments.format or list(seeds())
    start = time.perf_counter()
    became, findings, slowest, largest = fuzz(
        kinds, arguments.count, arguments.seed, arguments.keep, arguments.command_line
    )
    for kind, results in became.items():
        print(f"{kind:10}", ", ".join(f"{n} {what}" for what, n in sorted(results.items())))
    total = sum(results.total() for results in became.values())
    print(
        f"{total} files, seed {arguments.seed}: {len(findings)} findings; slowest {slowest:.1f} s, "
        f"largest {largest:.2f} GB; {time.perf_counter() - start:.0f} s in all"
    )
    for finding in findings:
        print(finding)
    return bool(findings)


if __name__ == "__main__":
    if WORKER in sys.argv:
        work("--command-line" in sys.argv)
    else:
        sys.exit(main())
