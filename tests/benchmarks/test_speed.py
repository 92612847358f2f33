"""The pieces of the benchmarks: CTs as promised, clocks read rightly, a page of figures alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.io import save_ct

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
speed = pytest.importorskip("speed", reason="the benchmarks are not part of this")
speed_cts = pytest.importorskip("speed_cts")
speed_page = pytest.importorskip("speed_page")
speed_slicewise = pytest.importorskip("speed_slicewise")
speed_task = pytest.importorskip("speed_task")

GLAND = (4, 7)


@pytest.fixture
def ct() -> nps.CTVolume:
    """Ten slices in which every value tells the slice; 100 more in the gland's."""
    hu = np.zeros((10, 6, 8), np.int16) + np.arange(10, dtype=np.int16)[:, None, None]
    hu[GLAND[0] : GLAND[1]] += 100
    hu[:, :, -1] = np.arange(-1000, -940).reshape(10, 6)  # some air: else it is no CT
    affine = np.array([[0, 0, -2.0, 5], [0, -2.0, 0, 7], [3.0, 0, 0, -9], [0, 0, 0, 1]])
    return speed_cts.on_grid(hu, nps.Grid(hu.shape, affine))


def test_another_spacing_shows_the_same_body() -> None:
    hu = np.broadcast_to(np.arange(20, dtype=np.int16) * 10, (6, 10, 20))
    volume = nps.CTVolume.from_source_array(hu.T.copy(), np.diag([-2.0, -2.0, 3.0, 1.0]))
    fine = speed_cts.on_spacing(volume, (1.0, 0.5, 0.5))
    assert fine.grid.shape == (18, 40, 80)
    assert np.allclose(fine.spacing, (1.0, 0.5, 0.5))
    # A ramp stays the same ramp in mm: 5 HU per mm.
    x = volume.grid.index(fine.grid.world([[9, 20, i] for i in range(2, 78)]))[:, 2]
    assert np.abs(fine.hu[9, 20, 2:78] - 10 * x).max() <= 0.5 + 1e-6

    def faces(ct: nps.CTVolume) -> np.ndarray:
        return ct.grid.world([(-0.5, -0.5, -0.5), np.array(ct.grid.shape) - 0.5])

    assert np.allclose(faces(volume), faces(fine))


@pytest.mark.parametrize("wanted", [3, 5, 10, 11, 40])
def test_shorter_and_longer_cts_keep_the_gland(ct: nps.CTVolume, wanted: int) -> None:
    made = speed_cts.extended(ct, GLAND, None, wanted)
    assert made.grid.shape == (wanted, 6, 8)
    gland = np.flatnonzero(made.hu[:, 0, 0] >= 100)
    assert gland.tolist() == list(range(gland[0], gland[0] + 3))  # once, and whole
    # It lies where it did.
    assert np.allclose(made.grid.world((gland[0], 0, 0)), ct.grid.world((GLAND[0], 0, 0)))
    steps = np.abs(np.diff(made.hu[:, 0, 0] % 100))
    assert steps.max() <= 1  # neighbours are neighbours


def test_a_given_chest_goes_above(ct: nps.CTVolume, tmp_path: Path) -> None:
    chest = save_ct(speed_cts.cut(ct, 7, 10), tmp_path / "chest.nii.gz")
    save_ct(ct, tmp_path / "ct.nii")
    request = {"bench": str(tmp_path / "ct.nii"), "gland": GLAND, "chest": [f"{chest}:1"]}
    made = tmp_path / "longer.nii"
    reply = speed_cts.grow({**request, "slices": None, "to": str(made)})
    assert nib.load(made).shape == (8, 6, 13)  # as other programs expect it
    assert reply["slices"] == 13  # three slices of chest lie above the gland
    assert nps.load_ct(made).hu[10:, 3, 3].tolist() == [8, 9, 9]


def test_slice_by_slice_tells_when_it_did_not_do_all() -> None:
    seen = []

    def predict(image: np.ndarray) -> np.ndarray:
        assert image.shape == (16, 16, 3)
        assert image.min() >= 0 and image.max() <= 1
        seen.append(image)
        return image[..., 0]

    hu = np.full((6, 20, 24), 240, np.int16)
    all_done = speed_slicewise.slice_by_slice(hu, predict, 16)
    assert len(seen) == 1 + 6  # the first one warms up
    assert all_done["slices_done"] == 6 and all_done["voxels"] == hu.size
    some = speed_slicewise.slice_by_slice(hu, predict, 16, most_slices=2)
    assert (some["slices_done"], some["slices"]) == (2, 6)
    assert sum(some["parts"].values()) == pytest.approx(some["seconds"], rel=0.5)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    bench = speed.Bench(tmp_path, None, 60.0)
    with pytest.raises(speed.Failed, match="status 3: no luck"):
        bench.run([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])
    with pytest.raises(speed.Failed, match="--torch-python"):
        bench.child("speed_torch.py", "monai")
    seconds, peak, said = bench.run([sys.executable, "-c", "print('well')"])
    assert 0 < seconds < 60 and said.strip() == "well"
    # Linux counts what the process was before it became another program: a copy of this one.
    assert peak is None or peak > 0


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    bench = speed.Bench(tmp_path, None, 0.2)
    with pytest.raises((speed.Failed, TimeoutError, speed.subprocess.TimeoutExpired)):
        bench.run([sys.executable, "-c", "import time; time.sleep(60)"])


@pytest.mark.slow
def test_the_peak_of_memory_is_this_process_own() -> None:
    peak = speed_task.peak_gb()
    held = np.ones(30_000_000)
    more = speed_task.peak_gb()
    assert peak is not None and more is not None and more >= peak
    assert more > held.nbytes / 1e9


def test_what_a_window_run_says_is_read() -> None:
    text = "noise\nrun 1: first slice after 0.87 s, all after 5.00 s\nrun 2: first slice after "
    assert speed_page.read_first_mask(text) == [{"first": 0.87, "all": 5.0}]


def run_of(seconds: float, computed: int = 10) -> dict:
    stages = {"placing the frame": 0.1, "segmenting": seconds - 0.4, "post-processing": 0.2}
    return {
        **{"seconds": seconds, "stages": stages, "network": seconds - 0.4, "around": 0.4},
        **{"computed": computed, "seen": computed, "volume_ml": 80.0},
    }


@pytest.fixture
def results() -> dict:
    """Figures as `speed` writes them: the article takes 60 s, this program 2 s."""
    ours = {
        **{"first": run_of(5.0), "warm": [run_of(2.0), run_of(1.9), run_of(2.4)]},
        **{"every_slice": [run_of(9.0)], "first_mask": [0.2], "slices": 336},
        **{"abdomen": {"slices": 100, "first": run_of(3.0), "warm": [run_of(1.0)]}},
        **{"alone": {"batch": 8, "gflop_per_s": 90.0}, "peak_gb": 1.5, "peak_gb_runs": 1.2},
    }
    article = {
        **{"seconds": 60.0, "slices": 336, "slices_done": 336, "gflop_per_slice": 21.7},
        **{"parts": {"predicting": 50.0}, "peak_gb": 1.0},
    }
    grown = [
        {"what": what, "slices": n, "reading": 0.1, "warm": [run_of(s)], "peak_gb": gb}
        for what, n, s, gb in (
            ("slices", 336, 2.0, 1.3),
            ("slices", 2000, 4.0, 7.0),
            ("chest doubled", 436, 2.2, 1.4),
        )
    ]
    versions = {"python": "3.11"}
    machine = {"processor": "P", "cores": 2, "memory_gb": 24.0, "system": "S", "versions": versions}
    ct = {"source": "ct.nii.gz", "shape": [336, 404, 488], "spacing_mm": [1, 0.75, 0.75]}
    rate = {"tensorflow": {"best": 100.0}, "numpy": {"best": 95.0}}
    return {
        **{"made": "2026-01-01", "quick": False, "machine": {**machine, "busy_before": 0.0}},
        **{"ct": {**ct, "found": [100, 180]}, "model": "m 1", "gflop_per_slice": 8.0},
        "rounds": {"ours": [ours], "article": [article], "matmul": [rate]},
        "once": {"growth": {"bench": 336, "rows": grown}},
        "left_out": {"monai": "no torch"},
    }


def test_ratios_are_of_medians(results: dict) -> None:
    found = speed_page.summarise(results)
    assert found["seconds"]["ours"] == 2.0 and found["best"]["ours"] == 1.9
    assert found["times_ours"]["article"] == 30.0
    assert found["network_gflop_per_s"] == pytest.approx(8.0 * 10 / 1.6)
    assert found["network_share"] == pytest.approx(0.5)
    assert found["around"] == pytest.approx(0.4)
    assert found["chest_doubled_adds"] == pytest.approx(0.1)
    assert found["seconds"]["monai"] is None and found["times_ours"]["monai"] is None


def test_targets_are_met_missed_or_not_measured(results: dict) -> None:
    rows = speed_page.acceptance(results, speed_page.summarise(results))
    met = {what: ok for what, _, _, ok in rows}
    assert met["End to end, warm: times faster than the article's way"] is False
    assert met["The network's share of the matrix-product rate"] is False
    assert met["Peak memory for 2,000 slices, GB"] is False
    assert met["Doubling the chest above the gland adds"] is True
    assert met["Command line, process start included: times faster than the article's way"] is None


def test_the_page_is_the_figures_and_no_more(results: dict) -> None:
    page = speed_page.page(json.loads(json.dumps(speed_page.rounded(results))))
    assert "| (a) the article's network, `predict` per slice | 60.00 (60.00, 1) | 5.6 |" in page
    assert "not measured: no torch" in page
    assert "(`--quick`)" not in page and "not idle" not in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all("None" not in line and "nan" not in line for line in tables)
    results["quick"], results["machine"]["busy_before"] = True, 0.5
    page = speed_page.page(results)
    assert "(`--quick`)" in page and "not idle: 50%" in page


def test_the_page_of_next_to_nothing(results: dict) -> None:
    results["rounds"], results["once"] = {}, {}
    page = speed_page.page(results)
    assert "not measured" in page and "None" not in page


@pytest.mark.slow
def test_our_tasks_measure(ct: nps.CTVolume, tiny_bundle: Path, tmp_path: Path) -> None:
    speed_ours = pytest.importorskip("speed_ours")
    made = speed_cts.bench({"ct": None, "spacing_mm": (12.0, 6.0, 6.0), "folder": str(tmp_path)})
    common = {"ct": str(tmp_path / "bench.nii"), "model": str(tiny_bundle), "device": "cpu"}
    gland = speed_ours.gland(common)["gland"]
    assert 0 <= gland[0] < gland[1] <= made["shape"][0]
    found = speed_ours.ours({**common, "gland": gland, "repeats": 1, "abdomen": 5})
    run = found["warm"][0]
    assert 0 < run["network"] < run["seconds"]
    assert run["around"] == pytest.approx(run["seconds"] - run["network"])
    assert run["seen"] == made["shape"][0] <= run["computed"]  # so few slices are all seen
    assert found["alone"]["gflop_per_s"] > 0 and found["first_mask"][0] > 0
    tiny = {"filters": 2, "height": 32, "width": 32}
    article = speed_ours.article({**common, "architecture": tiny, "most_slices": 2})
    assert article["slices"] == made["shape"][0] and article["slices_done"] == 2
    files = speed_ours.files({"folder": str(tmp_path), "repeats": 1, "gland": gland})
    assert len(files["seconds"]) == 8
    assert speed_ours.matmul({"size": 64, "repeats": 2})["tensorflow"]["best"] > 0
