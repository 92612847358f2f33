"""The demo: the synthetic sample CT segmented, drawn and compared with its true mask, offline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from napari_pancreas_seg import io
from napari_pancreas_seg.cohort.overview import draw_overview
from napari_pancreas_seg.data.sample import load_sample
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.maps import best_gate
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import Options, Progress, exhaust, save_result
from napari_pancreas_seg.io.files import make_folder
from napari_pancreas_seg.mask import measures, metrics


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo: Dice, files (the CT first), and seconds of the segmentation."""

    dice: float
    volume_ml: float
    reference_volume_ml: float
    seconds: float
    files: tuple[Path, ...]


def run_demo(
    folder: Path,
    *,
    model: str = "default",
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> DemoResult:
    """Segment the synthetic sample CT, and write everything that a run can give."""
    make_folder(folder)
    sample = load_sample()
    ct_path = io.save_ct(sample.volume, folder / "phantom_ct.nii.gz", overwrite=True)
    # From the file, as any other CT: the sidecar can then name what was segmented.
    volume = io.load_ct(ct_path)
    reference_path = io.save_mask(
        sample.mask, like=volume, path=folder / "phantom_reference.nii.gz", overwrite=True
    )

    start = time.perf_counter()
    found = exhaust(segmentation.iter_segment(volume, model, Options(device=device)), progress)
    seconds = time.perf_counter() - start
    outputs = OutputOptions(attention=True, overwrite=True)
    written, _ = save_result(found, volume, folder / "phantom_pancreas.nii.gz", outputs)

    dice = metrics.dice(found.mask, sample.mask)
    reference_ml = measures.volume_ml(sample.mask, volume.grid)
    gates = {f"attention {number}": gate for number, gate in enumerate(found.attention, 1)}
    best = best_gate(gates, found.mask, found.grid, found.model)
    overview_path = folder / "phantom_overview.png"
    draw_overview(
        volume,
        found.mask,
        [gates[best]] if best else [],
        overview_path,
        reference=sample.mask,
        title=f"synthetic CT: Dice {dice:.2f}, {found.volume_ml:.0f} mL found "
        f"of {reference_ml:.0f} mL",
    )
    return DemoResult(
        dice=float(dice),
        volume_ml=found.volume_ml,
        reference_volume_ml=reference_ml,
        seconds=seconds,
        files=(ct_path, *written, reference_path, overview_path),
    )
