"""The chosen CT and what belongs to it on screen; masks above their CT, each in its own colour."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Layer

from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, label_colors, labels_layer_data
from napari_pancreas_seg._napari.layers.maps import make_layer
from napari_pancreas_seg._napari.layers.placement import (
    placements,
    show_slice,
    slice_on_screen,
)
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.volume import CTVolume

TIMEOUT = 20_000
FREE = {"points", "shapes", "surface"}
"""Layers of no CT."""


def ct_layer(volume: CTVolume, name: str) -> Image:
    return Layer.create(*ct_layer_data(volume, name))


def mask_on(app, ct: Image, name: str) -> Layer:
    data = np.zeros(ct.data.shape, np.uint8)
    return Layer.create(*labels_layer_data(data, app.session.placement(ct), name))


def visible(viewer: ViewerModel) -> set[str]:
    return {layer.name for layer in viewer.layers if layer.visible}


@pytest.fixture
def two(app, viewer, ct, volume):
    """The chosen CT with a mask and a map, and another patient's CT with a mask, all visible."""
    viewer.add_layer(mask_on(app, ct, "mask"))
    placement = app.session.placement(ct)
    gate = ScalarMap(np.zeros(volume.grid.shape, np.float16), volume.grid)
    viewer.add_layer(make_layer(gate, "attention 1", placement, "CT", app.maps.appearance))
    longer = CTVolume.from_source_array(
        np.zeros((40, 32, 16), np.int16) + 30, np.diag([1, 1, 3, 1])
    )
    other = ct_layer(longer, "other")
    viewer.add_layer(other)
    viewer.add_layer(mask_on(app, other, "other's mask"))
    viewer.add_labels(np.zeros(longer.grid.shape, np.uint8), name="other's, drawn")
    viewer.add_points(np.zeros((1, 3)), name="points")
    viewer.add_shapes(np.eye(3), shape_type="path", name="shapes")
    viewer.add_surface((np.eye(3), np.array([[0, 1, 2]])), name="surface")
    return ct, other


def test_choosing_a_ct_shows_that_and_hides_the_others(app, viewer, two):
    ct, other = two
    assert visible(viewer) == {layer.name for layer in viewer.layers}
    app.session.ct = other
    theirs = {"other", "other's mask", "other's, drawn"}
    assert visible(viewer) == {*theirs, *FREE}
    app.session.ct = ct
    assert visible(viewer) == {"CT", "mask", "CT attention 1", *FREE}


@pytest.mark.parametrize(("held", "selected"), [((255,), 255), ((1,), 1), ((2, 3), 1), ((), 1)])
def test_a_mask_s_only_label_is_selected(app, viewer, ct, held, selected):
    mask = mask_on(app, ct, "theirs")
    mask.data[2, 3, : len(held)] = held
    viewer.add_layer(mask)
    assert mask.selected_label == selected
    # A label that a person chose stays.
    viewer.layers.remove(mask)
    mask.selected_label = 7
    viewer.add_layer(mask)
    assert mask.selected_label == 7


def test_a_mask_that_was_put_aside_stays_so_until_somebody_shows_it(app, viewer, two):
    ct, other = two
    app.session.ct = other
    app.session.aside.add(viewer.layers["mask"])  # by a run on the CT that is not on screen
    app.session.ct = ct
    assert not viewer.layers["mask"].visible
    viewer.layers["mask"].visible = True
    assert not app.session.aside
    for chosen in (other, ct):
        app.session.ct = chosen
    assert viewer.layers["mask"].visible


def test_what_the_user_has_hidden_stays_hidden(app, viewer, two):
    ct, other = two
    viewer.layers["mask"].visible = False
    app.session.ct = other
    app.session.ct = ct
    assert visible(viewer) == {"CT", "CT attention 1", *FREE}


@pytest.mark.slow
def test_slice_and_camera_go_with_the_ct(app, viewer, two):
    ct, other = two
    show_slice(viewer, ct, app.session.reference, 3)
    viewer.scene.camera.zoom = 99
    app.session.ct = other
    assert slice_on_screen(viewer, other, app.session.reference) == 8  # its middle
    assert viewer.scene.camera.zoom != 99
    show_slice(viewer, other, app.session.reference, 13)
    app.session.ct = ct
    assert slice_on_screen(viewer, ct, app.session.reference) == 3
    app.session.ct = other
    assert slice_on_screen(viewer, other, app.session.reference) == 13


def test_a_single_ct_is_shown_as_the_user_has_it(app, viewer, volume):
    layer = ct_layer(volume, "CT")
    viewer.add_layer(layer)
    viewer.scene.camera.zoom = 7
    app.session.ct = layer
    assert viewer.scene.camera.zoom == 7


def test_a_mask_lies_above_a_ct_that_was_opened_after_it(qtbot, app, viewer, volume):
    mask, options, _ = labels_layer_data(np.zeros(volume.grid.shape, np.uint8), volume, "mask")
    viewer.add_labels(mask, **options)
    ct = ct_layer(volume, "CT")
    viewer.add_layer(ct)
    qtbot.waitUntil(lambda: [x.name for x in viewer.layers] == ["CT", "mask"], timeout=TIMEOUT)
    other = CTVolume.from_source_array(np.zeros((9, 9, 4), np.int16) + 30, np.eye(4))
    viewer.add_layer(ct_layer(other, "other"))
    qtbot.wait(50)
    assert [layer.name for layer in viewer.layers] == ["CT", "mask", "other"]


def colour(mask) -> tuple:
    return tuple(np.round(mask.colormap.map(1), 3))


def test_no_two_masks_that_are_seen_have_one_colour(app, viewer, ct):
    first, *_ = masks = [mask_on(app, ct, f"mask {number}") for number in range(4)]
    for mask in masks:
        viewer.add_layer(mask)
    assert len(set(map(colour, masks))) == 4
    first.visible = False  # as by a run, whose mask then comes
    newest = viewer.add_layer(mask_on(app, ct, "newest"))
    assert colour(newest) == colour(first)
    first.visible = True
    assert len(set(map(colour, [*masks, newest]))) == 5


def test_masks_of_two_cts_keep_their_colour(app, viewer, ct, volume):
    viewer.add_layer(ct_layer(volume, "other"))
    theirs = viewer.add_layer(mask_on(app, viewer.layers["other"], "theirs"))
    mask = viewer.add_layer(mask_on(app, ct, "mask"))
    app.session.ct = ct
    mask.colormap = theirs.colormap = label_colors()
    for chosen in (viewer.layers["other"], ct):
        app.session.ct = chosen
        assert colour(mask) == colour(theirs) and mask.visible != theirs.visible


@pytest.mark.slow
def test_the_mask_of_a_former_run_is_named_as_earlier_and_hidden(qtbot, app, viewer, ct):
    def finished():
        run = app.runs.start(ct, "box")
        qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
        return run

    first = finished().labels
    first.data_setitem((np.array([2]), np.array([0]), np.array([0])), 1)
    second = finished().labels
    assert second is not first
    assert second.name == "CT pancreas" and second.visible
    assert first.name == "CT pancreas (earlier)" and not first.visible


@pytest.mark.slow
def test_a_discarded_run_gives_the_former_mask_its_name_back(qtbot, app, viewer, ct):
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    first = run.labels
    first.data_setitem((np.array([2]), np.array([0]), np.array([0])), 1)
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: run.labels is not None and run.labels.data.any(), timeout=TIMEOUT)
    assert not first.visible
    run.cancel()
    qtbot.waitUntil(lambda: run.can_discard, timeout=TIMEOUT)
    run.discard()
    assert first.name == "CT pancreas" and first.visible


def cancelled(qtbot, app, ct):
    """A run that was cancelled half-way, and waits for keep or discard."""
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: run.labels is not None and run.labels.data.any(), timeout=TIMEOUT)
    run.cancel()
    qtbot.waitUntil(lambda: run.can_discard, timeout=TIMEOUT)
    return run


@pytest.mark.parametrize("seen", [True, False])
def test_a_run_hides_the_chosen_mask_and_discard_gives_it_back(qtbot, app, viewer, ct, seen):
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    result, theirs = run.labels, mask_on(app, ct, "theirs")
    viewer.add_layer(theirs)
    app.session.mask, result.visible = theirs, seen
    run = cancelled(qtbot, app, ct)
    assert run.labels is result and app.session.mask is result
    assert result.visible and not theirs.visible
    run.discard()
    assert app.session.mask is viewer.layers.selection.active is theirs
    assert theirs.visible and result.visible == seen


def test_a_mask_that_a_run_has_hidden_is_seen_with_its_ct_after_discard(
    qtbot, app, viewer, ct, volume
):
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    theirs = app.session.mask = viewer.add_layer(mask_on(app, ct, "theirs"))
    run = cancelled(qtbot, app, ct)
    other = app.session.ct = viewer.add_layer(ct_layer(volume, "other"))
    app.session.mask = None
    run.discard()
    assert app.session.ct is other and not theirs.visible
    app.session.ct = ct
    assert theirs.visible


@pytest.mark.parametrize("switches_first", [True, False])
def test_a_run_discarded_over_another_ct_shows_the_former_mask_with_its_own(
    qtbot, app, viewer, ct, volume, switches_first
):
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    first = run.labels
    first.data_setitem((np.array([2]), np.array([0]), np.array([0])), 1)
    other = viewer.add_layer(ct_layer(volume, "other"))
    app.session.ct = other if switches_first else ct
    run = cancelled(qtbot, app, ct)
    app.session.ct = ct if switches_first else other
    run.discard()
    assert first.visible == switches_first
    app.session.ct = ct
    assert first.visible and first.name == "CT pancreas"


def test_what_a_run_finds_in_another_ct_is_seen_once_that_is_chosen(qtbot, app, viewer, two):
    ct, other = two
    for name in ("mask", "CT attention 1"):
        viewer.layers.remove(name)
    run, mask = app.runs.start(ct, "box"), viewer.layers["other's mask"]
    app.session.ct = other
    viewer.layers.selection.active, mask.mode = mask, "paint"
    show_slice(viewer, other, app.session.reference, run._first_slice)
    theirs = {"other", "other's mask", "other's, drawn", *FREE}
    run.changed.connect(lambda: seen.append(visible(viewer)))
    seen = []
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert seen and all(each == theirs for each in seen)
    assert viewer.layers.selection.active is mask and mask.mode == "paint"
    assert slice_on_screen(viewer, other, app.session.reference) == run._first_slice
    app.session.ct = ct
    assert visible(viewer) == {"CT", "CT pancreas", "CT attention 1", *FREE}
    assert run.labels.data.any()


@pytest.mark.parametrize("way", ["blink", "3-D"])
def test_a_way_of_looking_ends_with_its_ct(qtbot, app, viewer, two, way):
    ct, other = two
    mask = app.session.mask = viewer.layers["mask"]
    mask.data[2:7, 8:16, 5:20] = 1
    app.session.masks[mask] = ModelMask.holding(app.session.reference, mask.data.copy())
    show_slice(viewer, ct, app.session.reference, 3)
    for _ in range(2):
        if way == "blink":
            app.views.blink(True)
            assert app.views.blinking and mask.opacity == 0
        else:
            app.views.surface.start()
            qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
        app.session.ct = other
        assert not app.views.blinking and not app.views.surface.on and viewer.dims.ndisplay == 2
        assert visible(viewer) == {"other", "other's mask", "other's, drawn", *FREE}
        assert slice_on_screen(viewer, other, app.session.reference) == 8  # its middle
        app.session.ct = ct
        assert visible(viewer) == {"CT", "mask", "CT attention 1", *FREE}
        assert slice_on_screen(viewer, ct, app.session.reference) == 3


def test_a_mask_that_is_opened_is_not_selected_over_the_chosen_one(
    qtbot, app, viewer, ct, volume, tmp_path
):
    mask = mask_on(app, ct, "mask")
    viewer.add_layer(mask)
    app.session.mask = mask
    path = tmp_path / "theirs_mask.nii.gz"
    data = np.zeros(volume.source.shape, np.uint8)
    nib.save(nib.Nifti1Image(data, volume.source.affine), path)
    app.files.open(path)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=TIMEOUT)
    assert viewer.layers.selection.active is mask


def test_a_map_of_a_ct_that_is_removed_does_not_cover_the_next(app, viewer, ct, two):
    _, other = two
    assert "CT attention 1" in visible(viewer)
    viewer.layers.remove(ct)
    app.session.ct = other
    assert "CT attention 1" not in visible(viewer)


@pytest.mark.parametrize("by", ["panel", "napari"])
def test_a_mask_of_another_ct_is_seen_once_that_is_chosen(qtbot, app, viewer, two, tmp_path, by):
    _, other = two
    path = tmp_path / "opened.nii.gz"
    affine = app.session.placement(other).reference.source.affine
    nib.save(nib.Nifti1Image(np.ones((40, 32, 16), np.uint8), affine), path)
    if by == "panel":
        app.files.open(path)
        qtbot.waitUntil(lambda: "opened" in viewer.layers, timeout=TIMEOUT)
        assert viewer.layers.selection.active is not viewer.layers["opened"]
    else:  # napari adds what a reader has read
        viewer.add_layer(Layer.create(*read_layer(path, placements(viewer.layers))[0]))
    assert not viewer.layers["opened"].visible
    app.session.ct = other
    assert viewer.layers["opened"].visible


@pytest.mark.parametrize("finer_is_hidden", [True, False])
def test_a_slider_makes_one_step_a_row_of_the_chosen_ct(app, viewer, ct, volume, finer_is_hidden):
    finer = CTVolume(
        np.repeat(volume.hu, 2, axis=0),
        volume.grid.sub_grid((20, 32, 40), (0, 0, 0), (0.5, 1, 1)),
        volume.source,
    )
    other = ct_layer(finer, "finer")
    viewer.add_layer(other)
    if finer_is_hidden:
        app.session.ct = other
        assert viewer.dims.nsteps == (20, 32, 40)
        app.session.ct = ct
        assert not other.visible
    viewer.add_layer(mask_on(app, ct, "mask"))
    far = viewer.add_points(np.array([[500.0, 3, 3]]), units=("mm",) * 3)
    assert viewer.dims.range[0].stop == 500, "what is shown beyond the CT is reached"
    far.visible = False
    assert viewer.dims.nsteps[1:] == (32, 40) and viewer.dims.nsteps[0] in (10, 11)
    app.session.ct = other
    assert viewer.dims.nsteps == (20, 32, 40)


def test_maps_that_are_finer_than_the_ct_give_the_sliders_no_more_steps(app, viewer, ct, volume):
    grid = volume.grid.sub_grid((20, 70, 90), (-1, -1.5, -2), (0.5, 0.5, 0.5))
    gate = ScalarMap(np.zeros(grid.shape, np.float16), grid)
    placement = app.session.placement(ct)
    viewer.add_layer(make_layer(gate, "attention 1", placement, "CT", app.maps.appearance))
    assert viewer.dims.nsteps == (10, 32, 40)
    assert [round(edge[0], 3) for edge in viewer.dims.range] == [0, 0, 0]
