"""CTs that someone else opened: several frames, lazy data, lost geometry, other units."""

from __future__ import annotations

import csv
import itertools

import nibabel as nib
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Layer
from qtpy.QtCore import Qt

from napari_pancreas_seg._napari.layers import foreign
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, volume_of
from napari_pancreas_seg._napari.layers.placement import placement_of, slice_on_screen
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg._napari.widget.measure_panel import MeasurePanel
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.mask.measures import measure

TIMEOUT = 20_000


@pytest.fixture
def dock(qtbot, viewer, app) -> PancreasDock:
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    return dock


def offered(dock: PancreasDock) -> list[str]:
    dock.refresh()
    return [layer.name for layer in dock.ct_panel.combo.choices]


def hu_of(volume) -> np.ndarray:
    return volume.hu.astype(np.float32)


def test_only_what_can_be_a_ct_is_offered(dock, viewer, volume):
    viewer.add_image(np.zeros((10, 32, 40)), name="array", rgb=False)
    viewer.add_image(np.zeros((10, 32, 3)), name="photo", rgb=True)
    viewer.add_image([np.zeros((8, 8, 8)), np.zeros((4, 4, 4))], name="pyramid", multiscale=True)
    viewer.add_labels(np.zeros((10, 32, 40), np.uint8), name="labels")
    assert offered(dock) == ["array"]
    assert dock.foreign_panel.refused.isVisibleTo(dock)
    assert "colour picture" in dock.foreign_panel.refused.text()
    assert "several resolutions" in dock.foreign_panel.refused.text()
    viewer.layers.remove("photo")
    viewer.layers.remove("pyramid")
    dock.refresh()
    assert not dock.foreign_panel.isVisibleTo(dock)


@pytest.mark.parametrize("how", ["scale", "affine", "rotate"])
def test_a_frame_of_a_4d_layer_lies_where_it_lay(qtbot, dock, viewer, volume, how):
    hu = hu_of(volume)
    matrix = np.eye(5)
    matrix[2:4, 2:4] = [[0.96, -0.28], [0.28, 0.96]]
    options = {
        "scale": {"scale": (5, 2.5, 0.8, 0.9), "translate": (0, 10, -3, 7)},
        "affine": {"affine": matrix},
        "rotate": {"rotate": matrix[:4, :4], "scale": (5, 2.5, 0.8, 0.9)},
    }[how]
    four = viewer.add_image(np.stack([hu - 5, hu, hu + 5]), name="phases", rgb=False, **options)
    assert offered(dock) == []
    viewer.dims.set_current_step(0, 1)
    assert dock.foreign_panel.frame.max == 2
    dock.foreign_panel.frame.value = 2
    qtbot.mouseClick(dock.foreign_panel.frame_button, Qt.MouseButton.LeftButton)
    assert offered(dock) == ["phases [2]"]
    layer = dock.ct_panel.layer
    assert np.shares_memory(layer.data, four.data)
    assert np.array_equal(layer.data, hu + 5)
    for index in ((0, 0, 0), (3, 4, 5), (9, 31, 39)):
        assert np.allclose(layer.data_to_world(index), four.data_to_world((2, *index))[1:])
    assert dock.foreign_panel.frame.value == 2
    # Its fourth axis stops no way of looking at what has three.
    app, other = dock.app, viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    assert app.session.ct is other and not layer.visible
    app.session.ct = layer
    app.views.plane("coronal")
    assert viewer.dims.displayed == (1, 3)
    height, width = viewer.canvas.size
    viewer.canvas.size = (height, width // 2)
    viewer.layers.remove(other)
    viewer.layers.remove(four)
    dock.refresh()
    assert not dock.foreign_panel.isVisibleTo(dock)


def test_lazy_data_are_computed_a_chunk_at_a_time(volume):
    import dask.array

    seen = []

    def look(piece):
        if piece.size:
            seen.append(piece.shape)
        return piece

    hu = hu_of(volume)
    for chunks in ((1, 32, 40), (4, 32, 40), (10, 16, 40)):
        lazy = dask.array.from_array(hu, chunks=chunks).map_blocks(look, dtype=hu.dtype)
        layer = Image(lazy, contrast_limits=(0, 1), rgb=False, multiscale=False)
        seen.clear()
        reference = placement_of(layer).reference
        assert seen == []
        found = volume_of(lazy, reference)
        assert np.array_equal(found.hu, hu)
        blocks = int(np.prod([-(-n // c) for n, c in zip(hu.shape, chunks, strict=True)]))
        assert len(seen) == blocks


def as_another_reader(viewer: ViewerModel, path, *, transposed: bool) -> Image:
    """What a reader makes that hands on the voxels alone."""
    array = np.asarray(nib.load(path).dataobj)
    viewer.layers.append(
        Image(array.T if transposed else array, name="bare", rgb=False, multiscale=False)
    )
    layer = viewer.layers[-1]
    layer._set_source(layer.source.model_copy(update={"path": str(path)})) if hasattr(
        layer, "_set_source"
    ) else setattr(layer, "_source", layer.source.model_copy(update={"path": str(path)}))
    return layer


@pytest.mark.parametrize("transposed", [False, True])
def test_a_file_is_opened_once_more_with_its_geometry(
    qtbot, dock, app, viewer, ct_path, transposed
):
    bare = as_another_reader(viewer, ct_path, transposed=transposed)
    drawn = viewer.add_labels(np.ones(bare.data.shape, np.uint8), name="drawn")
    assert offered(dock) == ["bare"]
    assert dock.foreign_panel.restore_button.isVisibleTo(dock)
    qtbot.mouseClick(dock.foreign_panel.restore_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=TIMEOUT)
    dock.refresh()
    assert not dock.foreign_panel.isVisibleTo(dock)
    ct, expected = app.session.ct, load_ct(ct_path)
    assert np.array_equal(ct.data, expected.hu) and np.allclose(ct.scale, expected.spacing)
    assert drawn not in app.session.mask_layers(app.session.reference)
    app.session.ct = bare
    assert drawn in app.session.mask_layers(app.session.reference)


def test_a_layer_with_a_geometry_needs_none(viewer, ct_path, volume):
    bare = as_another_reader(viewer, ct_path, transposed=False)
    assert foreign.file_without_geometry(bare) == ct_path
    bare.scale = (2.5, 1, 1)
    assert foreign.file_without_geometry(bare) is None
    ours = Layer.create(*ct_layer_data(volume))
    assert foreign.file_without_geometry(ours) is None
    assert foreign.file_without_geometry(Image(np.zeros((3, 4, 5)))) is None


UNITS = ("pixel", "um", "mm", "m")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "other"), [pair for pair in itertools.product(UNITS, UNITS) if pair[0] != pair[1]]
)
@pytest.mark.parametrize("first", [True, False])
def test_foreign_layers_do_not_shift_the_slice(own, other, first):
    """Whatever lies beside the CT: what is drawn is what we take for the slice on screen."""
    viewer = ViewerModel()
    hu = np.broadcast_to(np.arange(12.0)[:, None, None], (12, 8, 8)).copy()
    to_mm = {"pixel": 1.0, "um": 1e-3, "mm": 1.0, "m": 1e3}
    scale = np.array([2.5, 0.8, 0.8]) / to_mm[own]
    ct = Image(hu, scale=scale, units=(own,) * 3, name="ct", rgb=False, multiscale=False)
    beside = Image(
        np.zeros((30, 20, 20)),
        units=(other,) * 3,
        scale=(0.7 / to_mm[other],) * 3 if other != "pixel" else (1, 1, 1),
        translate=(-3 / to_mm[other],) * 3,
        rgb=False,
        multiscale=False,
    )
    for layer in (beside, ct) if first else (ct, beside):
        viewer.add_layer(layer)
    reference = placement_of(ct).reference
    seen = set()
    # napari converts nothing where one unit is a pixel.
    shown = viewer.dims.units
    converted = 1.0 if shown is None else float((1 * ct.units[0]).to(shown[-3]).magnitude)
    for z in range(-2, 14):
        viewer.dims.set_point(0, z * scale[0] * converted)
        found = slice_on_screen(viewer, ct, reference)
        drawn = ct._slice.image.view
        if ct._slice.empty:
            assert found is None or not 0 <= found < 12
            continue
        assert found == int(drawn[0, 0]), z
        seen.add(found)
    assert seen


def test_values_that_lie_too_high_are_measured_and_painted_as_hu(
    qtbot, app, viewer, volume, tmp_path
):
    """The same HU everywhere as those that the network gets."""
    raw = viewer.add_image(volume.hu + 1024, name="raw", scale=volume.spacing, rgb=False)
    app.session.ct = raw
    mask = viewer.add_labels(np.zeros(raw.data.shape, np.uint8), scale=raw.scale)
    app.session.mask = mask
    mask.data[2:6, 10:20, 10:25] = 1
    expected = measure(mask.data, volume)
    panel = MeasurePanel(app)
    qtbot.addWidget(panel)
    mean = f"{expected['mean_hu']:.0f} ±"
    qtbot.waitUntil(lambda: panel.values["hu"].text().startswith(mean), timeout=TIMEOUT)
    app.files.export(mask, tmp_path / "m.csv")
    qtbot.waitUntil((tmp_path / "m.csv").exists, timeout=TIMEOUT)
    (row,) = csv.DictReader((tmp_path / "m.csv").read_text().splitlines())
    assert float(row["mean_hu"]) == pytest.approx(expected["mean_hu"], abs=0.1)
    mask.data[:] = 0
    app.paint_limit.on = True
    app.settings.set("correct/limit_low_hu", 50.0)
    app.settings.set("correct/limit_high_hu", 70.0)
    mask.brush_size = 15
    with mask.block_history():  # as napari's brush does
        mask.paint((5, 16, 20), 1)
    painted = volume.hu[mask.data == 1]
    assert painted.size and painted.min() >= 50 and painted.max() <= 70


def test_of_what_is_no_ct_no_hu_are_told(qtbot, app, viewer, tmp_path):
    picture = np.random.default_rng(0).random((10, 32, 40), np.float32)
    app.session.ct = viewer.add_image(picture, name="normalised", rgb=False)
    mask = viewer.add_labels(np.ones(picture.shape, np.uint8))
    app.session.mask = mask
    panel = MeasurePanel(app)
    qtbot.addWidget(panel)
    qtbot.waitUntil(lambda: "mL" in panel.values["volume"].text(), timeout=TIMEOUT)
    assert panel.values["hu"].text() == "–"
    assert panel.values["eroded"].toolTip() == "The values of this CT are not Hounsfield units."
    app.files.export(mask, tmp_path / "m.csv")
    qtbot.waitUntil((tmp_path / "m.csv").exists, timeout=TIMEOUT)
    (row,) = csv.DictReader((tmp_path / "m.csv").read_text().splitlines())
    assert row["mean_hu"] == "" and row["volume_ml"] != ""
