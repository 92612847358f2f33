"""Pictures of the patients that a model did not see: what it finds, and where its gates look.

    python benchmarks/gallery.py DATASET -o gallery

DATASET is a folder in the slice layout. Patients with the lowest Dice come first, and within a
patient the worst slice; ``index.html`` shows them all. The pictures show patients: they are
not written into a repository unless it ignores them.
"""

from __future__ import annotations

import argparse
import html
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from napari_pancreas_seg.cohort.overview import MASK_COLOUR, REFERENCE_COLOUR, WINDOW_HU
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap, Segmentation
from napari_pancreas_seg.inference.segment import LoadedModel, segment
from napari_pancreas_seg.io.files import atomic_write, write_text
from napari_pancreas_seg.mask.metrics import dice
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout
from napari_pancreas_seg.volume import CTVolume

MAPS_SHOWN = 2
AROUND = 1.1
"""How much more than the network's frame is shown."""


@dataclass(frozen=True)
class Picture:
    file: str
    caption: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("gallery"))
    parser.add_argument("--model", default="default")
    parser.add_argument("--slices", type=int, default=3, help="pictures of each patient")
    parser.add_argument("--patients", type=int, help="only so many, the worst")
    parser.add_argument("--every-patient", action="store_true", help="those of the training too")
    options = parser.parse_args(arguments)
    try:
        check_not_published(options.output)
        records = choose_records(options.dataset, options.model, options.every_patient)
        pictures = draw_gallery(records, options)
    except PancreasSegError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(pictures)} pictures: {options.output / 'index.html'}")
    return 0


def check_not_published(folder: Path) -> None:
    """Refuse a folder inside a repository that git would add."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    try:
        inside = subprocess.run(
            ["git", "-C", str(existing), "rev-parse", "--is-inside-work-tree"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if inside.stdout.strip() != "true":
            return
        picture = folder.absolute() / "index.html"
        ignored = subprocess.run(
            ["git", "-C", str(existing), "check-ignore", "-q", str(picture)], check=False
        )
    except OSError:
        return  # no git: nothing that could be committed by it
    if ignored.returncode != 0:
        raise PancreasSegError(
            f"{folder} lies in a repository that does not ignore it, and the pictures show "
            "patients; choose a folder outside, or gallery/."
        )


def choose_records(dataset: Path, model: str, every_patient: bool) -> list[SliceRecord]:
    from napari_pancreas_seg.model.bundle import load_card

    seen = set(load_card(model).get("training", {}).get("patients", ()))
    records = read_slice_layout(dataset)
    chosen = [r for r in records if every_patient or r.patient not in seen]
    if not chosen:
        raise PancreasSegError(
            "The model was trained on every patient of this data; --every-patient shows them."
        )
    return chosen


def draw_gallery(records: list[SliceRecord], options: argparse.Namespace) -> list[Picture]:
    model = LoadedModel(options.model)
    scores: dict[str, list[tuple[float, SliceRecord]]] = {}
    counts: dict[str, np.ndarray] = {}
    for record in records:
        volume, reference = record.load()
        mask = segment(volume, model, postprocess=False).mask
        scores.setdefault(record.patient, []).append((dice(mask, reference), record))
        both, size = np.count_nonzero(mask & reference), int(mask.sum()) + int(reference.sum())
        counts[record.patient] = counts.get(record.patient, 0) + np.array([2 * both, size])
    pooled = {patient: float(both / max(size, 1)) for patient, (both, size) in counts.items()}
    pictures = []
    for patient in sorted(pooled, key=lambda p: pooled[p])[: options.patients]:
        ranked = sorted(scores[patient], key=lambda item: item[0])
        # Worst, middle, best: evenly by rank.
        ranks = np.linspace(0, len(ranked) - 1, min(options.slices, len(ranked))).round()
        for value, record in (ranked[int(i)] for i in ranks):
            caption = (
                f"{record.name}: Dice {value:.3f}; patient {patient}: {pooled[patient]:.3f} over "
                f"{len(ranked)} slices"
            )
            pictures.append(draw(record, model, caption, options.output))
    write_text(options.output / "index.html", page(pictures, model), overwrite=True)
    return pictures


def draw(record: SliceRecord, model: LoadedModel, caption: str, folder: Path) -> Picture:
    volume, reference = record.load()
    found = segment(volume, model, postprocess=False)
    figure = compose(volume, reference[0], found, caption)
    name = f"{record.name}.png"
    with atomic_write(folder / name, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=100, facecolor="black")
    return Picture(name, caption)


def compose(volume: CTVolume, reference: np.ndarray, found: Segmentation, caption: str) -> Figure:
    maps = [found.probability, *found.attention[:MAPS_SHOWN]]
    titles = [
        "CT",
        "probability",
        *(f"attention gate {m.values.shape[1]} × {m.values.shape[2]}" for m in maps[1:]),
    ]
    figure = Figure(figsize=(4.6 * len(titles), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(titles))
    left, right, bottom, top = extent(found.probability, volume)
    for ax, title, scalar_map in zip(axes, titles, [None, *maps], strict=True):
        low = max(WINDOW_HU[0], float(volume.hu.min()))  # slices may be clipped at 0 HU
        ax.imshow(volume.hu[0], cmap="gray", vmin=low, vmax=WINDOW_HU[1])
        if scalar_map is not None:
            image = ax.imshow(
                scalar_map.values[0].astype(np.float32), cmap="inferno", vmin=0, vmax=1,
                alpha=0.65, extent=extent(scalar_map, volume), interpolation="nearest",
            )  # fmt: skip
        for mask, colour in ((reference, REFERENCE_COLOUR), (found.mask[0], MASK_COLOUR)):
            if mask.any():
                ax.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)
        height, width = (bottom - top) * (AROUND - 1) / 2, (right - left) * (AROUND - 1) / 2
        ax.set(xlim=(left - width, right + width), ylim=(bottom + height, top - height))
        ax.set_aspect(volume.spacing[1] / volume.spacing[2])
        ax.set_title(title, color="white", fontsize=10)
        ax.axis("off")
    bar = figure.colorbar(image, ax=axes[-1], fraction=0.05, pad=0.01)
    bar.ax.tick_params(colors="white")
    bar.solids.set(alpha=1)
    lines = [Line2D([], [], color=c) for c in (REFERENCE_COLOUR, MASK_COLOUR)]
    axes[0].legend(
        lines, ["reference", "found"], loc="lower right", fontsize=8, facecolor="black",
        labelcolor="white",
    )  # fmt: skip
    figure.suptitle(caption, color="white", fontsize=11)
    return figure


def extent(scalar_map: ScalarMap, volume: CTVolume) -> tuple[float, float, float, float]:
    """Edges (left, right, bottom, top) of a map in pixels of the CT's slice."""
    to_ct = np.linalg.inv(volume.grid.affine) @ scalar_map.grid.affine
    edges = []
    for axis in (2, 1):
        n = scalar_map.values.shape[axis]
        edges.append(to_ct[axis, 3] + to_ct[axis, axis] * (np.array([0, n]) - 0.5))
    (left, right), (top, bottom) = edges
    return float(left), float(right), float(bottom), float(top)


def page(pictures: list[Picture], model: LoadedModel) -> str:
    title = html.escape(f"{model.card['name']} {model.card['version']}")
    figures = "\n".join(
        f'<figure><img src="{html.escape(p.file)}" alt="" style="max-width:100%">'
        f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        '<body style="background:#111;color:#ddd;font-family:sans-serif">\n'
        f"<h1>{title}: patients it was not trained on, the worst first</h1>\n"
        "<p>Blue: reference; orange: found. Probability and attention from 0 (dark) to 1. "
        "Pictures of patients: not to be passed on.</p>\n"
        f"{figures}\n</body></html>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
