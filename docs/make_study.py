"""Follow docs/study.md on synthetic CTs, command by command, and draw its pictures.

    PYTHONPATH=research python docs/make_study.py FOLDER

The folder must not exist. The pictures go to docs/images; that of the page needs Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from napari_pancreas_seg import save_mask
from napari_pancreas_seg.io import load_ct, load_mask, save_ct
from napari_pancreas_seg.mask.centreline import follow, on_cubes
from phantom import make_phantom

IMAGES = Path(__file__).with_name("images")
SIZE = {"shape": (63, 168, 216), "spacing_mm": (4.0, 1.6667, 1.6667)}
PAIRS = 6


def run(folder: Path, line: str, status: int = 0) -> None:
    """Run a command of the page in a folder."""
    print(f"$ {line}", flush=True)
    words = [sys.executable, "-m", *line.replace("-", "_", 2).split()]
    if subprocess.run(words, cwd=folder, check=False).returncode != status:
        sys.exit(f"not the exit status {status}: {line}")


def make_cts(folder: Path) -> None:
    """Pairs of synthetic CTs, one of them of another body, a broken one, and a DICOM series."""
    (folder / "cts").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(1, PAIRS + 1):
        for when in ("base", "later"):
            other_body = number == 1 and when == "later"
            volume = make_phantom(100 + number + 50 * other_body, **SIZE).volume
            hu = volume.hu + noise.normal(0, 8, volume.hu.shape)
            volume.hu[:] = hu.round().clip(-1024, 3071)
            save_ct(volume, folder / f"cts/P{number:02d}_{when}.nii.gz")
    whole = (folder / "cts/P06_later.nii.gz").read_bytes()
    (folder / "cts/P07_base.nii.gz").write_bytes(whole[: len(whole) // 2])
    names = [f"P{n:02d},P{n:02d}_base,P{n:02d}_later\n" for n in range(1, PAIRS + 2)]
    (folder / "pairs.csv").write_text("pair,before,after\n" + "".join(names))
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "io"))
    from dicom_series import write_series

    volume = load_ct(folder / "cts/P01_base.nii.gz")
    array, affine = volume.to_source_order(volume.hu), volume.source.affine
    write_series(folder / "dicom/P01", array, affine)


def draw_parts(path: Path) -> None:
    """The centreline of a gland in three colours, seen from the front."""
    phantom = make_phantom(101, **SIZE)
    line = follow(*on_cubes(phantom.mask, phantom.volume.grid))
    z, _, x = phantom.volume.grid.spacing
    figure = Figure((6, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    inside = phantom.mask.max(axis=1)
    rows, columns = np.nonzero(inside)
    axes.imshow(
        inside,
        cmap="Greys",
        vmax=3,
        origin="lower",
        extent=(-x / 2, (inside.shape[1] - 0.5) * x, -z / 2, (inside.shape[0] - 0.5) * z),
    )
    edges = (0, *line.cuts, len(line.line) - 1)
    volumes = np.array(line.shares) * np.count_nonzero(phantom.mask)
    volumes *= phantom.volume.grid.voxel_volume_mm3 / 1000
    parts = zip(("head", "body", "tail"), edges[:-1], edges[1:], volumes, strict=True)
    for name, start, stop, ml in parts:
        points = line.line[start : stop + 1]
        axes.plot(points[:, 2] * x, points[:, 0] * z, linewidth=3, label=f"{name} {ml:.0f} mL")
    axes.set(xlim=(columns.min() * x - 10, columns.max() * x + 10))
    axes.set(ylim=(rows.min() * z - 10, rows.max() * z + 10), aspect="equal")
    axes.set(xlabel="mm, from the patient's right to the left", ylabel="mm, from the feet")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def shoot_page(page: Path, path: Path) -> None:
    """Picture the quality page in a browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        print("no Chromium: the page was not pictured")
        return
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,700"]
    shot = page.with_name("page.png")
    line = [browser, *options, "--virtual-time-budget=5000", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(line, check=True, capture_output=True)
    with Image.open(shot) as picture:
        few = picture.convert("RGB").quantize(
            128, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
        )  # rare colours, as of outlines, count as much as the many greys
        few.save(path, optimize=True)
    shot.unlink()


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    make_cts(folder)
    run(folder, "napari-pancreas-seg check cts/P01_base.nii.gz")
    run(folder, "napari-pancreas-seg segment cts/ -o masks/", status=1)  # one CT is broken
    # A person's correction: half of a mask taken away.
    path = folder / "masks/P02_base_mask.nii.gz"
    mask, _ = load_mask(path)
    mask[:, :, mask.shape[2] // 2 :] = 0
    save_mask(mask, load_ct(folder / "cts/P02_base.nii.gz"), path, overwrite=True)
    run(folder, "napari-pancreas-seg report masks/ --ct cts/")
    run(folder, "napari-pancreas-seg report masks/ --pairs pairs.csv")
    run(folder, "napari-pancreas-seg segment dicom/ -o to_archive/ --format dcm --sr")
    draw_parts(IMAGES / "study_parts.png")
    shoot_page(folder / "masks/index.html", IMAGES / "study_page.png")


if __name__ == "__main__":
    main()
