"""What is kept of a mask comes back as it was, and only from windows that are gone."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from napari_pancreas_seg._napari.autosave import store as autosave
from napari_pancreas_seg._napari.autosave.store import AutosaveStore, Unsaved, ct_key
from napari_pancreas_seg.errors import PancreasSegError

AFFINE = np.diag([-0.7, -0.7, 2.5, 1.0])


@pytest.fixture
def masks() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask, model = np.zeros((2, 9, 30, 40), np.uint8)
    mask[2:5, 10:20, 5:15] = rng.integers(0, 3, (3, 10, 10))
    model[3:6, 12:18, 8:30] = 1
    return mask, model


def write(shelf: AutosaveStore, masks, file=None) -> Unsaved:
    file = file or shelf.new_file()
    unsaved = Unsaved("0" * 32, "case 7", "/somewhere/case 7.nii.gz", file, {"reviewed": [2]})
    shelf.write(unsaved, *masks)
    return unsaved


def test_it_comes_back_as_it_was(tmp_path, masks):
    shelf = AutosaveStore(tmp_path / "unsaved")
    unsaved = write(shelf, masks)
    shelf.close()
    (found,) = AutosaveStore(tmp_path / "unsaved").left_behind()
    assert (found.key, found.name, found.path) == (unsaved.key, unsaved.name, unsaved.path)
    said, whole = autosave.read_unsaved(found.file)
    assert np.array_equal(whole["mask"], masks[0])
    assert np.array_equal(whole["model"], masks[1])
    assert said.notes == {"reviewed": [2]} and said.saved == found.saved == unsaved.saved


@pytest.mark.parametrize("model", [None, np.zeros((9, 30, 40), np.uint8)])
def test_an_empty_mask_is_kept_too(tmp_path, model):
    shelf = AutosaveStore(tmp_path)
    file = shelf.new_file()
    nothing = np.zeros((9, 30, 40), np.uint8)
    write(shelf, (nothing, model), file)
    shelf.close()
    _, whole = autosave.read_unsaved(file)
    assert whole["mask"].shape == (9, 30, 40) and not whole["mask"].any()
    assert ("model" not in whole) == (model is None)


def test_an_open_window_keeps_its_masks_to_itself(tmp_path, masks):
    shelf = AutosaveStore(tmp_path)
    write(shelf, masks)
    assert AutosaveStore(tmp_path).left_behind() == []
    shelf.close()
    assert len(AutosaveStore(tmp_path).left_behind()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
@pytest.mark.parametrize(
    ("number", "offered"), [(errno.ENOSYS, 1), (errno.ENOLCK, 1), (errno.EAGAIN, 0)]
)
def test_only_a_lock_that_another_has_keeps_its_masks_from_others(
    tmp_path, masks, monkeypatch, number, offered
):
    def flock(*_):
        raise OSError(number, "no lock")

    monkeypatch.setattr("fcntl.flock", flock)
    shelf = AutosaveStore(tmp_path)
    write(shelf, masks)
    assert len(AutosaveStore(tmp_path).left_behind()) == offered
    assert shelf.left_behind() == [], "a window is not offered its own"
    shelf.close()


@pytest.mark.parametrize("meanwhile", ["write", "close"])
def test_a_window_has_one_lock_whatever_happens_while_it_is_taken(
    tmp_path, masks, monkeypatch, meanwhile
):
    shelf = AutosaveStore(tmp_path)
    taken = []
    do = {"write": lambda: write(shelf, masks), "close": shelf.close}
    other = threading.Thread(target=do[meanwhile])

    def slow_open(path, mode):
        if path.suffix == ".lock":
            taken.append(path)
            if len(taken) == 1:
                other.start()
                other.join(0.05)  # it waits for the lock, or has taken one of its own by then
        return open(path, mode)

    monkeypatch.setattr(autosave, "open", slow_open, raising=False)
    write(shelf, masks)
    other.join()
    assert len(taken) == 1
    held = AutosaveStore(tmp_path).left_behind() == []
    assert held == taken[0].exists() == (meanwhile == "write")
    shelf.close()
    assert not taken[0].exists()


def test_a_killed_process_leaves_its_masks_to_others(tmp_path):
    script = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from napari_pancreas_seg._napari.autosave.store import AutosaveStore, Unsaved\n"
        "shelf = AutosaveStore(Path(sys.argv[1]))\n"
        "mask = np.ones((2, 3, 4), np.uint8)\n"
        "shelf.write(Unsaved('k', 'n', None, shelf.new_file()), mask)\n"
        "print('kept', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline().strip() == "kept"
    assert AutosaveStore(tmp_path).left_behind() == []
    child.kill()
    child.communicate()
    (found,) = AutosaveStore(tmp_path).left_behind()
    assert autosave.read_unsaved(found.file)[1]["mask"].all()


def test_old_and_damaged_files(tmp_path, masks, monkeypatch, caplog):
    shelf = AutosaveStore(tmp_path)
    old, good = shelf.new_file(), shelf.new_file()
    monkeypatch.setattr(autosave.time, "time", lambda: 1e9)
    write(shelf, masks, old)
    monkeypatch.undo()
    write(shelf, masks, good)
    shelf.close()
    (tmp_path / "x-1.npz").write_bytes(b"PK nothing")
    assert [one.file for one in AutosaveStore(tmp_path).left_behind()] == [good]
    assert not old.exists()
    assert "cannot be read" in caplog.text
    with pytest.raises(PancreasSegError, match="cannot be read"):
        autosave.read_unsaved(tmp_path / "x-1.npz")


def test_the_header_holds_nothing_but_this(tmp_path, masks):
    shelf = AutosaveStore(tmp_path)
    file = shelf.new_file()
    write(shelf, masks, file)
    shelf.close()
    header = autosave.read_header(file)
    expected = {"format", "key", "name", "path", "notes", "saved", "shape", "box"}
    assert set(header) == expected
    assert len(json.dumps(header)) < 1000


def test_the_key_knows_a_ct_by_voxels_and_geometry():
    hu = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    key = ct_key(hu, hu.shape, AFFINE)
    assert key == ct_key(np.asfortranarray(hu), hu.shape, AFFINE + 1e-9)
    other = hu.copy()
    other[1, 2, 3] += 1
    assert key != ct_key(other, hu.shape, AFFINE)
    assert key != ct_key(hu, hu.shape, AFFINE * 1.1)
