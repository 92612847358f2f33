"""The measure panel: live, on foreign and lazy layers, against a reference, into a table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_pancreas_seg import io
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, cuts_of, labels_layer_data
from napari_pancreas_seg._napari.layers.measure import MaskToMeasure, measure_layers
from napari_pancreas_seg._napari.layers.placement import placement_of, slice_on_screen
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg._napari.widget.measure_panel import MeasurePanel
from napari_pancreas_seg.inference.saving import PROGRAM, write_sidecar
from napari_pancreas_seg.mask.measures import measure
from napari_pancreas_seg.mask.metrics import dice
from napari_pancreas_seg.volume import CTVolume

TIMEOUT = 20_000


def block(shape=(10, 32, 40)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[2:6, 10:20, 10:25] = 1
    return mask


@pytest.fixture
def ct(app: App, viewer: ViewerModel, volume: CTVolume) -> Image:
    layer = Layer.create(*ct_layer_data(volume, "case 7"))
    viewer.add_layer(layer)
    app.session.ct = layer
    return layer


@pytest.fixture
def mask(app: App, viewer: ViewerModel, ct: Image) -> Labels:
    layer = Layer.create(*labels_layer_data(block(), placement_of(ct), "found"))
    viewer.add_layer(layer)
    app.session.mask = layer
    return layer


@pytest.fixture
def panel(qtbot, app: App, mask: Labels) -> MeasurePanel:
    panel = MeasurePanel(app)
    qtbot.addWidget(panel)
    return panel


def shows(panel: MeasurePanel, key: str, text: str):
    return lambda: text in panel.values[key].text()


def test_what_is_measured_is_what_metrics_say(qtbot, panel, mask, volume):
    expected = measure(mask.data, volume)
    qtbot.waitUntil(shows(panel, "volume", f"{expected['volume_ml']:.1f} mL"), timeout=TIMEOUT)
    assert f"{expected['mean_hu']:.0f} ± {expected['sd_hu']:.0f}" == panel.values["hu"].text()
    z, y, x = expected["extent_mm"]
    assert panel.values["extent"].text() == f"{z:.0f} × {y:.0f} × {x:.0f} mm"
    for key in ("diameter", "in_plane"):
        assert panel.values[key].text().endswith(" mm")
    assert not panel.values["dice"].isVisibleTo(panel)


def test_a_mask_that_is_renamed_meanwhile_is_measured(qtbot, panel, mask):
    qtbot.waitUntil(shows(panel, "volume", "mL"), timeout=TIMEOUT)
    panel._measure()
    mask.name = "found and checked"
    qtbot.waitUntil(lambda: not panel._newest.busy, timeout=TIMEOUT)
    assert "mL" in panel.values["volume"].text()


@pytest.mark.slow
def test_cuts_move_and_go_along_into_tables_and_records(qtbot, panel, app, mask, volume, tmp_path):
    qtbot.waitUntil(lambda: "mL" in panel.values["parts"].text(), timeout=TIMEOUT)
    before = panel.values["parts"].text()
    panel.cuts[1].value = 90
    panel.cuts[0].value = 50
    qtbot.waitUntil(lambda: panel.values["parts"].text() not in (before, "–"), timeout=TIMEOUT)
    expected = measure(mask.data, volume, (0.5, 0.9))
    assert expected["head_ml"] != measure(mask.data, volume)["head_ml"]
    qtbot.waitUntil(shows(panel, "parts", f"{expected['head_ml']:.1f}, "), timeout=TIMEOUT)
    first, second = expected["cut_slices"]
    assert f"slices {first} and {second}" in panel.values["parts"].text()
    place = app.session.viewer, app.session.ct, app.session.reference
    qtbot.waitUntil(lambda: slice_on_screen(*place) == first, timeout=TIMEOUT)
    app.files.export(mask, tmp_path / "m.csv")
    qtbot.waitUntil((tmp_path / "m.csv").exists, timeout=TIMEOUT)
    (row,) = csv.DictReader((tmp_path / "m.csv").read_text().splitlines())
    assert float(row["head_ml"]) == pytest.approx(expected["head_ml"], rel=1e-3)
    written = io.save_mask(mask.data, volume, tmp_path / "m.nii.gz")
    record = {"program": {"name": PROGRAM}, "measurements": expected}
    write_sidecar(tmp_path / "m.json", record)
    assert cuts_of(Layer.create(*read_layer(written)[0])) == (0.5, 0.9)
    other = Layer.create(*labels_layer_data(block(), placement_of(app.session.ct), "other"))
    app.session.viewer.add_layer(other)
    app.session.mask = other
    assert [field.value for field in panel.cuts] == [33, 67]
    app.session.mask = mask
    assert [field.value for field in panel.cuts] == [50, 90]


@pytest.mark.slow
def test_what_is_missing_says_why(qtbot, panel, mask):
    qtbot.waitUntil(shows(panel, "volume", "in 4 slices"), timeout=TIMEOUT)
    assert "largest ball" in panel.values["calibre"].toolTip()
    mask.data[:] = 0
    mask.refresh()
    qtbot.waitUntil(shows(panel, "volume", "0.0 mL"), timeout=TIMEOUT)
    assert panel.values["calibre"].text() == panel.values["fat"].text() == "–"
    assert panel.values["calibre"].toolTip() == "The mask is empty."


@pytest.mark.slow
def test_it_follows_strokes_and_undo(qtbot, panel, mask):
    qtbot.waitUntil(shows(panel, "volume", "in 4 slices"), timeout=TIMEOUT)
    mask.data_setitem((np.array([8]), np.array([5]), np.array([5])), 1)
    qtbot.waitUntil(shows(panel, "volume", "in 5 slices"), timeout=TIMEOUT)
    mask.undo()
    qtbot.waitUntil(shows(panel, "volume", "in 4 slices"), timeout=TIMEOUT)
    mask.data[:] = 0
    mask.refresh()
    qtbot.waitUntil(shows(panel, "volume", "0.0 mL"), timeout=TIMEOUT)
    assert panel.values["hu"].text() == panel.values["diameter"].text() == "–"


@pytest.mark.slow
def test_agreement_with_a_reference(qtbot, panel, app, viewer, mask, ct):
    truth = np.roll(block(), 1, axis=2)
    layer = Layer.create(*labels_layer_data(truth, placement_of(ct), "by hand"))
    viewer.add_layer(layer)
    viewer.add_labels(np.zeros((3, 4, 5), np.uint8), name="of another size")
    panel.refresh(app.session.reference)
    combo = panel.reference_combo
    assert combo.choices == (None, layer)
    combo.value = layer
    expected = dice(mask.data, truth)
    qtbot.waitUntil(shows(panel, "dice", f"{expected:.3f}"), timeout=TIMEOUT)
    assert panel.values["dice"].isVisibleTo(panel)
    assert panel.values["hd95"].text().endswith(" mm")
    assert float(panel.values["surface_dice"].text()) > 0.9
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    assert dice(mask.data, truth) != expected
    qtbot.waitUntil(shows(panel, "dice", f"{dice(mask.data, truth):.3f}"), timeout=TIMEOUT)
    mask.data_setitem(np.nonzero(mask.data), 0)  # empty: its Dice is 0, and other values are none
    qtbot.waitUntil(shows(panel, "dice", "0.000"), timeout=TIMEOUT)
    assert panel.values["hd95"].text() == "–"
    viewer.layers.remove(layer)
    panel.refresh(app.session.reference)
    qtbot.waitUntil(lambda: not panel.values["dice"].isVisibleTo(panel), timeout=TIMEOUT)


def test_a_mask_on_another_grid_is_no_reference(panel, app, viewer, mask, volume):
    elsewhere = CTVolume.from_source_array(np.zeros((40, 32, 10), np.int16), np.eye(4))
    assert elsewhere.grid.shape == volume.grid.shape
    viewer.add_layer(Layer.create(*labels_layer_data(block(), elsewhere, "elsewhere")))
    panel.refresh(app.session.reference)
    assert panel.reference_combo.choices == (None,)


def test_the_table_on_the_clipboard_and_in_a_file(
    qtbot, panel, app, viewer, mask, ct, tmp_path: Path, notifications
):
    other = Layer.create(*labels_layer_data(block() * 0, placement_of(ct), "empty"))
    viewer.add_layer(other)
    panel.refresh(app.session.reference)
    QApplication.clipboard().clear()
    qtbot.mouseClick(panel.copy_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(QApplication.clipboard().text()), timeout=TIMEOUT)
    head, *rows = QApplication.clipboard().text().splitlines()
    assert [row.split("\t")[:2] for row in rows] == [["case 7", "found"], ["case 7", "empty"]]
    assert head.split("\t")[2] == "volume_ml"
    path = tmp_path / "table.csv"
    panel.save_table(path)
    qtbot.waitUntil(path.exists, timeout=TIMEOUT)
    read = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["mask"] for row in read] == ["found", "empty"]
    assert read[1]["mean_hu"] == ""
    before = path.read_bytes()
    mask.data[:] = 0
    panel.save_table(path)
    error = "exists already"
    qtbot.waitUntil(lambda: error in notifications[-1].message, timeout=TIMEOUT)
    assert path.read_bytes() == before
    panel.save_table(path, overwrite=True)
    qtbot.waitUntil(lambda: path.read_bytes() != before, timeout=TIMEOUT)


def test_nothing_to_measure(qtbot, app, viewer, ct):
    panel = MeasurePanel(app)
    qtbot.addWidget(panel)
    assert not panel.copy_button.isEnabled()
    assert panel.values["volume"].text() == "–"


@pytest.mark.parametrize("lazy", [False, True])
def test_a_layer_in_another_order_measures_the_same(volume, lazy):
    """Axes swapped and turned round; computed piece by piece, and only where the mask is."""
    import dask.array

    display = measure_layers(
        MaskToMeasure(
            "m", block(), placement_of(Layer.create(*ct_layer_data(volume))).reference, volume.hu
        )
    )
    order = np.zeros((4, 4))
    dz, dy, dx = volume.spacing
    order[[2, 1, 0], [0, 1, 2]] = (-dx, dy, dz)
    order[3, 3] = 1
    hu = np.ascontiguousarray(volume.hu.transpose(2, 1, 0)[::-1])
    mask = np.ascontiguousarray(block().transpose(2, 1, 0)[::-1])
    seen = []

    def look(piece):
        seen.append(piece.shape)
        return piece

    data = hu
    if lazy:
        data = dask.array.from_array(hu, chunks=(1, 32, 10)).map_blocks(look, dtype=hu.dtype)
        seen.clear()
    layer = Image(hu, affine=order, rgb=False, multiscale=False)
    found = measure_layers(MaskToMeasure("m", mask, placement_of(layer).reference, data))
    for key, value in display.mask.items():
        assert found.mask[key] == pytest.approx(value), key
    if lazy:
        assert len(seen) == 15
