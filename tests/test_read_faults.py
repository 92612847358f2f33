"""Whatever a file holds, it is read or refused with one sentence, quickly and in little memory."""

from __future__ import annotations

import gzip
import importlib.util
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import memory

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def fuzzer() -> ModuleType:
    """The fuzzer of the benchmarks, which also makes small valid files of every format."""
    path = ROOT / "benchmarks" / "fuzz_readers.py"
    if not path.exists():
        pytest.skip("the benchmarks are not part of this distribution")
    spec = importlib.util.spec_from_file_location("fuzz_readers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMATS = ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd", "dicom", "dicom-seg", "zip"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_cut_at_every_twentieth(kind: str, fuzzer: ModuleType, tmp_path: Path) -> None:
    """Of several files one is cut: a slice in the middle, or the data beside a header."""
    for number, files in enumerate(fuzzer.seeds()[kind][:2]):
        folder = tmp_path / str(number)
        path = fuzzer.unpack(kind, folder, files)
        load = io.load_mask if kind == "dicom-seg" else io.load_ct
        load(path)
        name, content = list(files.items())[len(files) // 2]
        for twentieth in range(20):
            (folder / name).write_bytes(content[: len(content) * twentieth // 20])
            with pytest.raises(PancreasSegError) as caught:
                load(path)
            assert len(str(caught.value).splitlines()) == 1
        (folder / name).write_bytes(content)
        load(path)


@pytest.mark.slow
def test_sixty_mutated_files(fuzzer: ModuleType) -> None:
    became, findings, _, _ = fuzzer.fuzz(FORMATS, 7, seed=20)
    assert findings == []
    assert sum(results.total() for results in became.values()) == 7 * len(FORMATS)
    # Which mutation hurts is chance; that hardly any does would mean that none is made.
    assert sum(results["refused"] for results in became.values()) > len(FORMATS)


def header(shape: tuple[int, ...], datatype: int = 4, **fields: Any) -> bytes:
    import nibabel as nib

    made = nib.Nifti2Header()
    made.set_data_shape(shape)
    made["datatype"] = datatype
    made["bitpix"] = {64: 64}.get(datatype, 16)
    made.set_sform(np.diag([1, 1, 2, 1]), 1)
    made["vox_offset"] = 544
    for name, value in fields.items():
        made[name] = value
    return bytes(made.binaryblock) + bytes(4)


def bomb(path: Path, start: bytes, zeros: int) -> None:
    """A stream that expands to so many zeros; a block that is repeated takes no time to make."""
    stream = zlib.compressobj(1, zlib.DEFLATED, 31)
    with open(path, "wb") as file:
        file.write(stream.compress(start))
        for _ in range(zeros >> 24):
            file.write(stream.compress(bytes(1 << 24)))
        file.write(stream.flush())


WITH_LITTLE_MEMORY = """
import resource, sys, time
from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
start = time.process_time()
for path in sys.argv[1:]:
    for read in (io.sniff, io.load_ct):
        try:
            read(path)
        except PancreasSegError as error:
            said = str(error)
    print(said)
# Not ru_maxrss: that begins with what the parent had.
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
assert peak < 0.6, peak
assert time.process_time() - start < 10
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits of that kind")
def test_bombs(tmp_path: Path) -> None:
    """Headers that declare more than the memory, and streams that expand to it."""
    paths = []

    def add(name: str, content: bytes, zeros: int = 0) -> None:
        paths.append(str(tmp_path / name))
        bomb(tmp_path / name, content, zeros)

    # 0.1 GB of zeros in 0.1 MB: more than that would make the test slow, not other.
    add("declared.nii.gz", header((30000, 30000, 3000), 64), 1 << 24)
    add("ratio.nii.gz", header((2000, 2000, 15)), 1 << 27)
    add("tail.nii.gz", header((4, 4, 4)), 1 << 27)
    add("offset.nii.gz", header((4, 4, 4), vox_offset=(1 << 26) + 16), 1 << 27)
    add("far.nii.gz", header((4, 4, 4), vox_offset=1 << 62), 1 << 24)
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2000 2000 2000\nencoding: gzip\n\n"
    (tmp_path / "a.nrrd").write_bytes(nrrd + gzip.compress(bytes(1 << 24)))
    meta = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 2000 2000 2000\nElementType = MET_DOUBLE\n"
        b"CompressedData = True\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(meta + zlib.compress(bytes(1 << 24)))
    paths += [str(tmp_path / "a.nrrd"), str(tmp_path / "a.mha")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITH_LITTLE_MEMORY), *paths],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(paths)


def test_a_sparse_file_of_a_terabyte(tmp_path: Path) -> None:
    """Large enough for its header, larger than any memory."""
    path = tmp_path / "ct.nii"
    with open(path, "wb") as file:
        file.write(header((32768, 32768, 512)))
        file.truncate((1 << 40) + 4096)
    with pytest.raises(PancreasSegError, match="does not fit into memory"):
        io.load_ct(path)


@pytest.mark.parametrize(
    "fields",
    [
        *({"pixdim": [np.nan] * 8}, {"srow_x": [np.inf] * 4}, {"qform_code": 9, "sform_code": 0}),
        *({"scl_slope": np.nan}, {"scl_slope": np.inf}, {"vox_offset": -1}),
        {"dim": [3] + [-1] * 7},
        *({"dim": [0] * 8}, {"dim": [8] + [1] * 7}, {"dim": [3, 2**62, 2**62, 2**62, 1, 1, 1, 1]}),
        *({"datatype": 1536}, {"datatype": -1}, {"intent_code": 32767}, {"magic": b"n+9"}),
    ],
    ids=str,
)
def test_senseless_headers(fields: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ct.nii"
    path.write_bytes(header((6, 6, 6), **fields) + bytes(432))
    with pytest.raises(PancreasSegError) as caught:
        io.load_ct(path)
    assert "unexpected" not in str(caught.value)


@pytest.mark.slow
def test_extensions_of_an_absurd_size(tmp_path: Path, fuzzer: ModuleType) -> None:
    content = bytearray(fuzzer.seeds()["nii"][0]["ct.nii"])
    content[348:352] = b"\1\0\0\0"  # extensions follow
    content[352:360] = struct.pack("<ii", 2**31 - 16, 4)
    (tmp_path / "ct.nii").write_bytes(content)
    assert io.load_ct(tmp_path / "ct.nii").hu.shape == (6, 32, 36)


@pytest.mark.parametrize("suffix", io.SUFFIXES)
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    """Devices and pipes may never end; links may lead nowhere or in a circle."""
    folder, loop, gone = (tmp_path / f"{name}{suffix}" for name in ("folder", "loop", "gone"))
    folder.mkdir()
    loop.symlink_to(loop)
    gone.symlink_to(tmp_path / "nowhere")
    wrong = [folder, loop, gone]
    if hasattr(os, "mkfifo"):
        wrong += [tmp_path / f"pipe{suffix}", tmp_path / f"device{suffix}"]
        os.mkfifo(wrong[-2])
        wrong[-1].symlink_to("/dev/zero")
    for path in wrong:
        with pytest.raises(PancreasSegError):
            io.load_ct(path)
        with pytest.raises(PancreasSegError):
            io.sniff(path)


def test_limits_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container or a batch system, what counts is its limit and not the machine's memory."""
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    process = tmp_path / "process"
    process.mkdir()
    assert memory._left_in_control_groups(process) == []

    def group(folder: Path, files: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)

    # Version 2: the limit is set two groups above.
    (process / "cgroup").write_text("0::/job/step/task\n")
    used = {"memory.current": "3000", "memory.stat": "anon 1\ninactive_file 500\n"}
    group(tmp_path / "job", {"memory.max": "8000\n", **used})
    group(tmp_path / "job/step/task", {"memory.max": "max\n", **used})
    assert memory._left_in_control_groups(process) == [8000 - 3000 + 500]
    # Version 1.
    (process / "cgroup").write_text("3:cpu:/\n4:memory:/batch\n")
    group(
        tmp_path / "memory/batch",
        {
            "memory.limit_in_bytes": "9000",
            "memory.usage_in_bytes": "1000",
            "memory.stat": "total_inactive_file 200\n",
        },
    )
    group(tmp_path / "memory", {"memory.limit_in_bytes": str(2**63 - 4096)})
    assert memory._left_in_control_groups(process) == [8200]


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.available_bytes() > 1 << 20
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000_000_000)
    memory.check_fits("ct.nii", 999_999_999)
    with pytest.raises(PancreasSegError, match=r"takes about 1\.5 GB and 1\.0 GB are left"):
        memory.check_fits("ct.nii", 1_500_000_000)
    memory.check_expansion("m.nii.gz", 1_000, 2_000_000_000)  # an empty mask, not too large
    with pytest.raises(PancreasSegError, match="made to fill the memory"):
        memory.check_expansion("m.nii.gz", 4_000_000, 4_000_000_000)
