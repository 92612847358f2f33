"""Whatever the disk does, a file is the old one or the new one, and the reason is said.

Every writer of the program goes through the same faults: a disk that is full at any byte, no
permission, a folder in the way, and being killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import body, write_series

from napari_pancreas_seg import io
from napari_pancreas_seg.cohort import cases as cohort
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.inference.saving import write_sidecar
from napari_pancreas_seg.io.files import atomic_write, write_json
from napari_pancreas_seg.io.table import write_table
from napari_pancreas_seg.volume import CTVolume

resource = pytest.importorskip("resource", reason="no limits on the size of files here")

Writer = Callable[[Path], Any]
SHAPE = (24, 20, 16)
AFFINE = np.array([[0.7, 0.1, 0, 5], [-0.1, 0.8, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1]])


def volume() -> CTVolume:
    rng = np.random.default_rng(0)
    affine = AFFINE.copy()
    affine[:3, 1] = np.cross(affine[:3, 2], affine[:3, 0]) * 0.4  # at right angles
    return CTVolume.from_source_array(rng.integers(-500, 500, SHAPE).astype(np.int16), affine)


def volume_writers() -> dict[str, Writer]:
    ct = volume()
    mask = (ct.hu > 0).astype(np.uint8)
    values = ScalarMap(np.random.default_rng(1).random(ct.grid.shape).astype(np.float16), ct.grid)
    found: dict[str, Writer] = {}
    for suffix in io.VOLUME_SUFFIXES:
        found[f"mask{suffix}"] = lambda path: io.save_mask(mask, ct, path, overwrite=True)
        found[f"ct{suffix}"] = lambda path: io.save_ct(ct, path, overwrite=True)
        found[f"map{suffix}"] = lambda path: io.save_map(values, ct, path, overwrite=True)
    return found


def ball() -> np.ndarray:
    """A mask with a smooth surface, (Z, Y, X)."""
    grid = np.indices(volume().grid.shape)
    middle = [n / 2 for n in volume().grid.shape]
    distance = sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True))
    return np.asarray(distance < 36, dtype=np.uint8)


def other_writers() -> dict[str, Writer]:
    """Surfaces and measurements of a mask; DICOM-SEG has a test of its own."""
    ct, mask = volume(), ball()
    suffixes = [s for s in io.MASK_SUFFIXES if s not in io.VOLUME_SUFFIXES and s != ".dcm"]
    return {
        f"ball{suffix}": lambda path: io.save_mask(mask, ct, path, overwrite=True)
        for suffix in suffixes
    }


def text_writers() -> dict[str, Writer]:
    rows = [{"case": f"case {n}", "volume_ml": n / 7} for n in range(300)]
    record = {"numbers": list(range(2000)), "note": "µ" * 500}
    return {
        "a.json": lambda path: write_json(path, record, overwrite=True),
        "b.json": lambda path: write_sidecar(path, record, overwrite=True),
        "table.csv": lambda path: write_table(rows, path, overwrite=True),
    }


WRITERS = volume_writers() | other_writers() | text_writers()


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may become longer: what a full disk does, whoever writes, native code too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(item.relative_to(folder)): item.read_bytes()
        for item in folder.rglob("*")
        if item.is_file()
    }


def check_full_disk(writer: Writer, path: Path, steps: int = 8, margin: int = 1) -> None:
    """Give room for ever more of the file, with and without an old one in its place."""
    writer(path)
    whole = path.read_bytes()
    sizes = np.unique(np.linspace(0, len(whole) - margin, steps).astype(int)).tolist()
    for old in (None, b"precious"):
        for size in sizes:
            path.unlink(missing_ok=True)
            if old is not None:
                path.write_bytes(old)
            with room_for(size), pytest.raises(PancreasSegError) as caught:
                writer(path)
            assert len(str(caught.value).splitlines()) == 1
            assert content(path.parent) == ({} if old is None else {path.name: old})
    writer(path)
    assert list(content(path.parent)) == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    check_full_disk(WRITERS[name], tmp_path / name)


@pytest.mark.slow
def test_a_full_disk_for_a_dicom_seg(tmp_path: Path) -> None:
    write_series(tmp_path / "series", body((12, 10, 4)))
    ct = io.load_ct(tmp_path / "series")
    mask = (ct.hu > 0).astype(np.uint8)
    (tmp_path / "out").mkdir()
    check_full_disk(
        lambda path: io.save_mask(mask, ct, path, overwrite=True),
        tmp_path / "out" / "seg.dcm",
        steps=4,
        margin=64,  # its UIDs are of any length
    )


@pytest.mark.parametrize("name", WRITERS)
def test_where_nothing_can_be_written(name: str, tmp_path: Path) -> None:
    writer = WRITERS[name]
    (tmp_path / name).mkdir()
    (tmp_path / name / "inside").write_bytes(b"kept")
    (tmp_path / "file").write_bytes(b"kept")
    before = content(tmp_path)
    for target in (tmp_path / name, tmp_path / "file" / name, Path("/proc/none") / name):
        with pytest.raises(PancreasSegError):
            writer(target)
    assert content(tmp_path) == before


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Rights do not bind the administrator."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", WRITERS)
def test_no_permission(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    (folder / name).write_bytes(b"kept")
    folder.chmod(0o555)
    for above in tmp_path.parents[:2]:
        above.chmod(above.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    try:
        with as_nobody(), pytest.raises(PancreasSegError, match="permission"):
            WRITERS[name](folder / name)
    finally:
        folder.chmod(0o755)
    assert content(folder) == {name: b"kept"}


ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_write_faults import WRITERS
from napari_pancreas_seg.io.files import atomic_write
writer, path = WRITERS[sys.argv[2]], Path(sys.argv[3])
print("ready", flush=True)
while True:
    writer(path)
    with atomic_write(path, overwrite=True) as file:
        file.write(b"other")
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def kill_after(child: subprocess.Popen[str], seconds: float) -> None:
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


@pytest.mark.parametrize(
    "name",
    [
        "mask.nii.gz", "table.csv",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("ct.nii", "b.json")),
    ],
)  # fmt: skip
def test_killed_at_any_moment(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    whole = {path.read_bytes(), b"other"}
    rng = random.Random(name)
    for _ in range(1):
        kill_after(start(ENDLESS, str(Path(__file__).parent), name, str(path)), rng.uniform(0, 0.1))
        assert path.read_bytes() in whole
    # What a killed process leaves is hidden, is taken for no CT, and disturbs nobody.
    left = [item.name for item in tmp_path.iterdir() if item != path]
    assert all(item.startswith(".") and item.endswith(".part") for item in left)
    WRITERS[name](path)
    if name.endswith((".nii", ".nii.gz")):
        assert list(cohort.find_inputs([tmp_path])) == [path]


@pytest.mark.slow
def test_a_case_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask, maps and sidecar belong together: all old or all new."""
    from napari_pancreas_seg.inference import result
    from napari_pancreas_seg.inference.result import Options, Segmentation

    ct = volume()

    def found(seed: int) -> Segmentation:
        values = np.random.default_rng(seed).random(ct.grid.shape).astype(np.float16)
        scalar_map = ScalarMap(values, ct.grid)
        return Segmentation(
            (values > 0.5).astype(np.uint8), scalar_map, (scalar_map,), ct.grid, 0.5,
            {"name": str(seed)}, {}, Options(),
        )  # fmt: skip

    def save(seed: int) -> None:
        outputs = OutputOptions(attention=True, probability=True, overwrite=True)
        result.save_result(found(seed), ct, tmp_path / "m.nii.gz", outputs)

    save(1)
    before = content(tmp_path)
    assert len(before) == 4
    for size in (0, 100, 400, 1200, 3000, 5000, 8000, 10_000):
        with room_for(size), pytest.raises(PancreasSegError):
            save(2)
        assert content(tmp_path) == before
    save(2)
    assert len(content(tmp_path)) == 4
    assert not set(content(tmp_path).values()) & set(before.values())


def test_a_checkpoint(tmp_path: Path) -> None:
    from napari_pancreas_seg.training.fit.loop import Checkpoint, TrainingState

    variables = [np.random.default_rng(n).random((30, 30)).astype(np.float32) for n in range(3)]

    def write(path: Path) -> None:
        Checkpoint(path.parent).save(variables, TrainingState(5, [{"step": 5}]))

    check_full_disk(write, tmp_path / "checkpoint.npz", steps=5)


@pytest.mark.slow
def test_a_bundle(tiny_bundle: Path, tiny_card: dict, tmp_path: Path) -> None:
    from napari_pancreas_seg.model.bundle import load_bundle, save_bundle

    network = load_bundle(tiny_bundle).network()
    (tmp_path / "zip").mkdir()
    check_full_disk(
        lambda path: save_bundle(network, tiny_card, path, overwrite=True),
        tmp_path / "zip" / "m.zip",
        steps=4,
    )

    folder = tmp_path / "folder"
    save_bundle(network, tiny_card, folder)
    before = content(folder)
    for size in (0, 300, 2000, 20_000):
        with room_for(size), pytest.raises(PancreasSegError):
            save_bundle(network, {**tiny_card, "version": "1"}, folder, overwrite=True)
        assert content(folder) == before


@pytest.mark.slow
def test_a_bundle_is_whole_after_every_step(
    tiny_bundle: Path, tiny_card: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any of the renames that replace a folder, it is the old or the new model."""
    from napari_pancreas_seg.model.bundle import load_bundle, save_bundle

    network = load_bundle(tiny_bundle).network()
    rename = os.replace
    seen = []
    for last in range(4):
        folder = tmp_path / str(last)
        save_bundle(network, tiny_card, folder)
        (folder / "mine.txt").write_bytes(b"kept")
        for variable in network.weights[:1]:
            variable.assign(variable + 1)
        done = 0

        def killed(source: Any, target: Any, last: int = last) -> None:
            nonlocal done
            if done == last:
                raise KeyboardInterrupt
            done += 1
            rename(source, target)

        monkeypatch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            save_bundle(network, {**tiny_card, "version": "new"}, folder, overwrite=True)
        monkeypatch.setattr(os, "replace", rename)
        seen.append(load_bundle(folder).card["version"])  # its hash is checked
        assert (folder / "mine.txt").read_bytes() == b"kept"
    assert seen == ["0", "0", "new", "new"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    for wrong in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, wrong, overwrite=True)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_left_of_a_killed_process_is_not_taken_for_a_file(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), atomic_write(tmp_path / "ct.nii.gz") as file:
        names = [item.name for item in tmp_path.iterdir()]
        file.write(b"half")
        raise KeyboardInterrupt
    assert [name[0] for name in names] == ["."]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names are not any bytes there")
@pytest.mark.parametrize("suffix", [s for s in io.MASK_SUFFIXES if s != ".dcm"])
def test_any_bytes_are_a_name_to_write_and_read(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"Pr\xe4fix")
    ct, mask = volume(), ball()
    path = folder / os.fsdecode(b"M\xfcller" + suffix.encode())
    io.save_mask(mask, ct, path)
    assert path.stat().st_size > 0
    if suffix in io.VOLUME_SUFFIXES:
        np.testing.assert_array_equal(io.load_mask(path)[0], mask)


@pytest.mark.skipif(sys.platform != "linux", reason="names are not any bytes there")
def test_json_leads_back_to_any_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller \xff") + "Müller"
    write_json(tmp_path / "a.json", {name: [name]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: [name]}
