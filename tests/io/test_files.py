"""A file is whole or not there, whatever happens while it is written."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import files
from napari_pancreas_seg.io.files import atomic_write, check_folder, check_target
from napari_pancreas_seg.volume import CTVolume


def test_written_whole_with_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    with atomic_write(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(PancreasSegError, match="exists already"), atomic_write(path):
        pass
    assert path.read_bytes() == b"old"
    with atomic_write(path, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(PancreasSegError, match="exists already"):
        write()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, PancreasSegError])
def test_an_exception_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path, overwrite=True) as file:
            file.write(b"ne")
            raise error("stop")

    with pytest.raises(error):
        write()
    assert [item.read_bytes() for item in tmp_path.iterdir()] == [b"old"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link, overwrite=True) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


class FullDisk:
    """A file on a disk with room for a few bytes."""

    def __init__(self, file: Any, code: int) -> None:
        self.file, self.code, self.room = file, code, 100

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.fixture
def volume() -> CTVolume:
    noise = np.random.default_rng(0).integers(0, 2, (40, 40, 40)).astype(np.int16)
    return CTVolume.from_source_array(noise, np.eye(4))


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "fault")],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk(
    code: int,
    words: str,
    suffix: str,
    old: bytes | None,
    volume: CTVolume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"mask{suffix}"
    if old is not None:
        path.write_bytes(old)

    def full(*args: Any) -> FullDisk:
        return FullDisk(open(*args), code)

    monkeypatch.setattr(files, "open", full, raising=False)
    with pytest.raises(PancreasSegError, match=words):
        io.save_mask(volume.hu, volume, path, overwrite=True)
    assert [item.read_bytes() for item in tmp_path.iterdir()] == ([] if old is None else [old])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits of that kind")
def test_the_systems_own_limit(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np\n"
        "from napari_pancreas_seg import io\n"
        "from napari_pancreas_seg.volume import CTVolume\n"
        "from napari_pancreas_seg.errors import PancreasSegError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "noise = np.random.default_rng(0).integers(0, 2, (64, 64, 64)).astype(np.int16)\n"
        "volume = CTVolume.from_source_array(noise, np.eye(4))\n"
        "try:\n"
        "    io.save_mask(noise.T, volume, sys.argv[1])\n"
        "except PancreasSegError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.nii.gz")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "allows no file of that size" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path, volume: CTVolume) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(PancreasSegError):
            check_folder(folder)
        with pytest.raises(PancreasSegError):
            io.save_mask(volume.hu, volume, folder / "m.nii.gz")
    check_folder(tmp_path / "may" / "be" / "made")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    with pytest.raises(PancreasSegError, match="is a folder"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(PancreasSegError, match="too long"):
        io.save_mask(volume.hu, volume, tmp_path / ("m" * 300 + ".nii.gz"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device files")
def test_a_device_is_no_target() -> None:
    with pytest.raises(PancreasSegError, match="regular file"):
        check_target(Path("/dev/full"), overwrite=True)


def test_the_same_mask_gives_the_same_bytes(volume: CTVolume, tmp_path: Path) -> None:
    io.save_mask(volume.hu, volume, tmp_path / "secret-name.nii.gz")
    time.sleep(0.01)
    io.save_mask(volume.hu.astype(bool), volume, tmp_path / "b.nii.gz")
    first = (tmp_path / "secret-name.nii.gz").read_bytes()
    assert first == (tmp_path / "b.nii.gz").read_bytes()
    assert b"secret" not in first
    assert gzip.decompress(first)[:4] == (348).to_bytes(4, "little")


@pytest.mark.parametrize(
    "wrong", [np.full((40, 40, 40), 256), np.full((40, 40, 40), 0.5), np.full((40, 40, 40), np.nan)]
)
def test_what_is_no_mask_is_not_written(
    wrong: np.ndarray, volume: CTVolume, tmp_path: Path
) -> None:
    with pytest.raises(PancreasSegError, match="whole numbers"):
        io.save_mask(wrong, volume, tmp_path / "m.nii.gz")
    with pytest.raises(PancreasSegError, match="does not lie on the grid"):
        io.save_mask(np.zeros((3, 3, 3)), volume, tmp_path / "m.nii.gz")
    with pytest.raises(PancreasSegError, match=r"must end in \.nii\.gz"):
        io.save_mask(volume.hu, volume, tmp_path / "m.tif")
    assert list(tmp_path.iterdir()) == []


def test_a_mask_is_edited_in_its_own_file(ct_file: Path) -> None:
    volume = io.load_ct(ct_file)
    path = io.save_mask(volume.hu > 0, volume, ct_file.with_name("m.nii.gz"))
    mask, on = io.load_mask(path)
    with pytest.raises(PancreasSegError, match="exists already"):
        io.save_mask(1 - mask, on, path)
    io.save_mask(1 - mask, on, path, overwrite=True)
    np.testing.assert_array_equal(io.load_mask(path)[0], 1 - mask)


def test_the_ct_is_never_overwritten(ct_file: Path) -> None:
    before = ct_file.read_bytes()
    volume = io.load_ct(ct_file)
    link = ct_file.with_name("link.nii.gz")
    link.symlink_to(ct_file)
    for path in (ct_file, link):
        with pytest.raises(PancreasSegError, match="CT itself"):
            io.save_mask(volume.hu > 0, volume, path, overwrite=True)
    assert ct_file.read_bytes() == before
