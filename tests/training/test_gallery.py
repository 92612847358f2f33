"""The gallery of patients: drawn, worst first, and never where git would add it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gallery.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks are not part of this")


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gallery"]


@pytest.mark.slow
def test_pictures_and_their_page(gallery, dataset, tiny_bundle, tmp_path):
    folder = tmp_path / "out"
    arguments = [str(dataset), "-o", str(folder), "--model", str(tiny_bundle)]
    assert gallery.main([*arguments, "--patients", "1", "--slices", "2"]) == 0
    pictures = sorted(p.name for p in folder.glob("*.png"))
    assert len(pictures) == 2 and pictures[0][:3] == pictures[1][:3]
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in pictures)
    assert "Dice" in page
    with Image.open(folder / pictures[0]) as picture:
        assert picture.width > 1000


def test_a_folder_that_git_would_add_is_refused(gallery, dataset, tiny_bundle, tmp_path, capsys):
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git")
    target = tmp_path / "pictures" / "here"
    assert gallery.main([str(dataset), "-o", str(target), "--model", str(tiny_bundle)]) == 1
    assert "does not ignore" in capsys.readouterr().err
    assert not target.exists()
    (tmp_path / ".gitignore").write_text("/pictures/\n")
    gallery.check_not_published(target)
