"""Triples of slices: the right ones, interpolated by place, in one frame whatever the crop."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.inference.frame import FrameSpec, frame_around

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
schedule_dice = pytest.importorskip("schedule_dice", reason="the benchmarks are not part of this")

FRAME = frame_around((15.5, 15.5), (32, 32), (5.0, 1.0, 1.0), FrameSpec(32, 32, 1.0, (0.0, 0.0)))


def seen(index: int, width: int) -> schedule_dice.Seen:
    """A slice with a gland of so many columns, which the network sees without a fault."""
    mask = np.zeros((32, 32), np.uint8)
    mask[10:20, 5 : 5 + width] = 1
    return schedule_dice.Seen(index, mask.astype(np.float32), FRAME, mask, 0.5)


def test_what_does_not_change_costs_nothing() -> None:
    (triple,) = schedule_dice.triples("a", [seen(9, 10), seen(1, 10), seen(4, 10)])
    assert (triple.index, triple.gap) == (4, 8)
    assert triple.direct == triple.interpolated == triple.manual == 1.0


def test_the_nearer_slice_weighs_more() -> None:
    # A quarter of the way up: the narrow slice below decides, so the middle one comes out narrow.
    (triple,) = schedule_dice.triples("a", [seen(0, 4), seen(1, 4), seen(4, 12)])
    assert triple.interpolated == 1.0
    (triple,) = schedule_dice.triples("a", [seen(0, 4), seen(3, 4), seen(4, 12)])
    assert triple.interpolated == pytest.approx(2 * 4 / (4 + 12))
    assert triple.difference == pytest.approx(-0.5)


def test_gaps_too_wide_and_slices_twice_are_left_out() -> None:
    assert not list(schedule_dice.triples("a", [seen(0, 4), seen(5, 4), seen(20, 4)]))
    assert not list(schedule_dice.triples("a", [seen(0, 4), seen(0, 4), seen(3, 4)]))
    assert not list(schedule_dice.triples("a", [seen(0, 4), seen(2, 4)]))


def test_means_for_each_gap_and_up_to_it() -> None:
    found = [
        schedule_dice.Triple("a", 1, 2, 0.8, 0.8, 0.9),
        schedule_dice.Triple("b", 1, 2, 0.8, 0.7, 0.9),
        schedule_dice.Triple("a", 4, 6, 0.8, 0.6, 0.9),
    ]
    rows = schedule_dice.summary(found)
    assert [(r["gap"], r["n"], r["patients"]) for r in rows] == [(2, 2, 2), (6, 1, 1)]
    assert rows[0]["difference"] == pytest.approx(-0.05)
    assert rows[1]["up_to"]["n"] == 3
    assert rows[1]["up_to"]["difference"] == pytest.approx(-0.1)
    assert rows[1]["standard_error"] is None  # of one triple


@pytest.mark.slow
def test_from_a_folder_of_slices_to_figures(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "slices"
    for folder in ("images", "masks"):
        (dataset / folder).mkdir(parents=True)
    y, x = np.indices((512, 512)) - 255.5
    rows = []
    for index, margin in ((10, 0), (12, 40), (15, 0), (40, 0)):
        zoom = (512 - 2 * margin) / 512  # cut off and blown up again
        body = np.hypot(y * zoom / 150, x * zoom / 200) < 1
        gland = np.hypot(y * zoom + 40, x * zoom) < 30
        name = f"P_slice{index}"
        picture = (90 * body + 60 * gland).astype(np.uint8)
        Image.fromarray(picture).save(dataset / "images" / f"{name}.jpg")
        Image.fromarray(gland).save(dataset / "masks" / f"{name}.png")
        rows.append({"name": name, "patient": "1", "slice_index": index, "crop_margin_px": margin})
    with (dataset / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    out = tmp_path / "out.json"
    arguments = [str(dataset), "--model", str(tiny_bundle), "--every-patient", "-o", str(out)]
    assert schedule_dice.main(arguments) == 0
    (triple,) = json.loads(out.read_text())["triples"]
    assert (triple["index"], triple["gap"]) == (12, 5)
    # The gland is the same disc in all of them, though the middle one was cropped.
    assert triple["manual"] > 0.9
    assert "gap" in capsys.readouterr().out
