"""Several organs: labels with names and colours, a threshold for all, figures for each."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_of, name_labels
from napari_pancreas_seg._napari.layers.measure import MaskToMeasure, measure_layers
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg._napari.widget.measure_panel import MeasurePanel
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import describe, save_result
from napari_pancreas_seg.inference.saving import write_sidecar
from napari_pancreas_seg.io import save_mask
from napari_pancreas_seg.volume import CTVolume

LABELS = {"pancreas": 1, "liver": 2, "spleen": 3}
TIMEOUT = 20_000


@pytest.fixture
def ct(viewer: ViewerModel, app: App, volume: CTVolume) -> Image:
    layer = Layer.create(*ct_layer_data(volume))
    viewer.add_layer(layer)
    app.session.ct = layer
    return layer


@pytest.fixture
def organs(qtbot, app: App, ct: Image) -> Labels:
    """The labels of a run with a model of three classes."""
    run = app.runs.start(ct, "organs")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.labels is not None
    app.session.mask = run.labels
    return run.labels


def test_labels_have_names_and_colours(organs: Labels, app: App, viewer) -> None:
    assert set(np.unique(organs.data)) == {0, 1, 2, 3}
    assert labels_of(organs) == LABELS
    colors = {tuple(organs.colormap.map(np.uint8(value))) for value in LABELS.values()}
    assert len(colors) == 3
    # What the status bar says of the voxel under the pointer.
    for name, value in LABELS.items():
        place = np.argwhere(organs.data == value)[0]
        world = [p * s for p, s in zip(place, organs.scale, strict=True)]
        said = organs.get_status(world, view_direction=None, dims_displayed=[1, 2], world=True)
        assert name in str(said)
    assert all(name in app.runs.latest.message for name in LABELS)
    # One map of all of them, drawn when it is first shown; those of each class are at hand.
    app.maps.show(app.session.reference, "probability")
    assert [layer.name for layer in viewer.layers if "probability" in layer.name] == [
        "CT probability"
    ]
    assert list(app.session.masks[organs].result.probabilities) == list(LABELS)


def test_a_threshold_for_all(qtbot, organs: Labels, app: App) -> None:
    before = [np.count_nonzero(organs.data == value) for value in LABELS.values()]
    assert app.rethreshold.ask(organs, 0.8, True)
    qtbot.waitUntil(lambda: app.session.masks[organs].result.threshold == 0.8, timeout=TIMEOUT)
    after = [np.count_nonzero(organs.data == value) for value in LABELS.values()]
    assert all(0 < a < b for a, b in zip(after, before, strict=True))


def test_each_class_is_measured(qtbot, organs: Labels, app: App) -> None:
    panel = MeasurePanel(app)
    qtbot.addWidget(panel)
    qtbot.waitUntil(lambda: "spleen" in panel.values["classes"].text(), timeout=TIMEOUT)
    lines = panel.values["classes"].text().splitlines()
    assert [line.split()[0] for line in lines] == list(LABELS)
    volumes = app.session.masks[organs].result.volumes_ml
    assert [line.split()[1] for line in lines] == [f"{volumes[name]:.1f}" for name in LABELS]
    assert panel.values["volume"].text().startswith(f"{volumes['pancreas']:.1f} mL")
    rows: list = []
    panel._tabulate(rows.extend)
    qtbot.waitUntil(lambda: len(rows) > 0, timeout=TIMEOUT)
    assert [row["mask"] for row in rows] == [
        organs.name, *(f"{organs.name}: {name}" for name in LABELS)
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".stl"])
def test_tables_and_surfaces_are_of_the_pancreas(
    qtbot, organs: Labels, app: App, volume, tmp_path, suffix
) -> None:
    result = app.session.masks[organs].result
    files = [tmp_path / f"{name}{suffix}" for name in "mn"]
    app.files.export(organs, files[0])
    qtbot.waitUntil(files[0].exists, timeout=TIMEOUT)
    save_result(result, volume, files[1], OutputOptions())
    for file in files:
        if suffix == ".csv":
            (row,) = csv.DictReader(file.read_text().splitlines())
            volume_ml = float(row["volume_ml"])
        else:
            volume_ml = trimesh.load(file).volume / 1000
        assert volume_ml == pytest.approx(result.volumes_ml["pancreas"], rel=0.01)


def test_the_pancreas_is_compared_with_that_of_a_reference(organs: Labels, app: App) -> None:
    gland = (organs.data == 1).astype(np.uint8)
    job = MaskToMeasure("m", organs.data, app.session.reference, labels=LABELS)
    for other, labels in ((organs.data, LABELS), (255 * gland, {"pancreas": 255})):
        found = measure_layers(replace(job, reference=other, reference_labels=labels))
        assert found.comparison["dice"] == 1
    alone = replace(job, data=gland, labels={"pancreas": 1}, reference=organs.data)
    assert measure_layers(replace(alone, reference_labels=LABELS)).comparison["dice"] == 1


def test_a_label_map_that_is_opened_has_its_names_again(
    organs: Labels, app: App, volume: CTVolume, tmp_path: Path
) -> None:
    result = app.session.masks[organs].result
    save_mask(result.mask, volume, tmp_path / "m.nii.gz")
    write_sidecar(tmp_path / "m.json", describe(volume, result))
    (data, options, kind), _ = read_layer(tmp_path / "m.nii.gz")
    layer = Layer.create(data, options, kind)
    assert labels_of(layer) == LABELS
    for wrong in ("[]", '{"program": {"name": "napari-pancreas-seg"}, "labels": {"a": {}}}'):
        (tmp_path / "m.json").write_text(wrong)
        (data, options, kind), _ = read_layer(tmp_path / "m.nii.gz")
        assert labels_of(Layer.create(data, options, kind)) == {"pancreas": 1}


def test_names_follow_the_model(qtbot, organs: Labels, app: App, ct: Image) -> None:
    name_labels(organs, {"pancreas": 1, "liver": 20})
    assert labels_of(organs) == {"pancreas": 1, "liver": 20}
    assert organs.colormap.map(np.uint8(20))[3] > 0
    run = app.runs.start(ct, "organs")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.labels is organs
    assert labels_of(organs) == LABELS
