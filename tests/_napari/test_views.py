"""HU windows, the model's own mask for a moment, the surface in 3-D."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer, Surface
from napari.layers._layer_actions import _duplicate_layer
from napari.utils._proxies import ReadOnlyWrapper
from napari.utils.interactions import (
    mouse_move_callbacks,
    mouse_press_callbacks,
    mouse_release_callbacks,
)
from qtpy.QtCore import Qt

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.app import App, app_of
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_layer_data
from napari_pancreas_seg._napari.layers.placement import placement_of, show_slice, slice_on_screen
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.views.orientation import edge_letters
from napari_pancreas_seg._napari.views.surface import surface_of
from napari_pancreas_seg._napari.views.views import OrthogonalViews
from napari_pancreas_seg._napari.views.windowing import HU_PRESETS
from napari_pancreas_seg._napari.widget.header import CtPanel
from napari_pancreas_seg._napari.widget.view_panel import ViewPanel
from napari_pancreas_seg.volume import CTVolume

TIMEOUT = 30_000
LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def ct(app: App, viewer: ViewerModel, volume: CTVolume) -> Image:
    layer = Layer.create(*ct_layer_data(volume, "case 7"))
    viewer.add_layer(layer)
    app.session.ct = layer
    return layer


@pytest.fixture
def mask(app: App, viewer: ViewerModel, ct: Image) -> Labels:
    """A mask that the model wrote and a person has edited since."""
    placement = placement_of(ct)
    data = np.zeros(ct.data.shape, np.uint8)
    data[2:7, 8:16, 5:20] = 1
    layer = Layer.create(*labels_layer_data(data, placement, "found"))
    model = ModelMask(placement.reference)
    model.copy[:] = data
    app.session.masks[layer] = model
    viewer.add_layer(layer)
    app.session.mask = layer
    layer.data_setitem((np.array([4]), np.array([1]), np.array([1])), 1)
    return layer


@pytest.fixture
def panel(qtbot, app: App, mask: Labels) -> ViewPanel:
    panel = ViewPanel(app)
    qtbot.addWidget(panel)
    return panel


def test_windows_on_buttons_and_on_a_key(qtbot, panel, app, ct):
    ct.contrast_limits_range = (-200, 300)
    for name, button in panel.presets.items():
        qtbot.mouseClick(button, LEFT)
        assert tuple(ct.contrast_limits) == HU_PRESETS[name]
    views = app.views
    views.next_preset()
    assert tuple(ct.contrast_limits) == HU_PRESETS["Abdomen"]
    ct.contrast_limits = (0, 80)
    views.next_preset()
    assert tuple(ct.contrast_limits) == HU_PRESETS["Abdomen"]
    views.next_preset()
    assert tuple(ct.contrast_limits) == HU_PRESETS["Pancreas"]


def test_blinking_changes_nothing(qtbot, panel, app, viewer, ct, mask):
    data, history, opacity = mask.data.copy(), len(mask._undo_history), mask.opacity
    model = app.session.masks[mask].copy.copy()
    names = [layer.name for layer in viewer.layers]
    chooser = CtPanel(app.session)
    qtbot.addWidget(chooser)
    qtbot.mouseClick(panel.blink_button, LEFT)
    assert panel.blink_button.isChecked()
    assert mask.opacity == 0
    (picture,) = [layer for layer in viewer.layers if layer.name not in names]
    assert isinstance(picture, Image)
    assert np.array_equal(picture.data, model)
    assert picture.data_to_world((1, 2, 3)) == mask.data_to_world((1, 2, 3))
    chooser.offer_layers()
    assert app.session.ct is ct
    assert app.session.mask is mask
    qtbot.mouseClick(panel.blink_button, LEFT)
    assert mask.visible and mask.opacity == opacity
    assert [layer.name for layer in viewer.layers] == names
    assert np.array_equal(mask.data, data)
    assert np.array_equal(app.session.masks[mask].copy, model)
    assert len(mask._undo_history) == history


def test_blinking_ends_with_its_layers(qtbot, panel, app, viewer, mask):
    views = app.views
    views.blink(True)
    viewer.layers.remove(mask)
    qtbot.waitUntil(lambda: not views.blinking, timeout=TIMEOUT)
    assert len(viewer.layers) == 1
    views.blink(True)
    assert not views.blinking


def test_a_layer_that_goes_as_blinking_ends_takes_no_other_along(qtbot, app, viewer, mask):
    other = viewer.add_labels(np.zeros(mask.data.shape, np.uint8))
    above = viewer.add_points(np.zeros((1, 3)))
    app.session.mask = mask
    app.views.blink(True)
    mask.data_setitem((np.array([4]), np.array([1]), np.array([30])), 1)
    viewer.layers.remove(other)  # which looks for strokes first
    assert above in viewer.layers and other not in viewer.layers
    qtbot.waitUntil(lambda: not app.views.blinking, timeout=TIMEOUT)


def test_a_duplicate_made_while_blinking_can_be_seen(qtbot, app, viewer, mask):
    opacity = mask.opacity
    app.views.blink(True)
    viewer.layers.selection = {mask}
    _duplicate_layer(viewer.layers)
    qtbot.waitUntil(lambda: not app.views.blinking, timeout=TIMEOUT)
    assert [one.opacity for one in viewer.layers if isinstance(one, Labels)] == [opacity, opacity]


def test_blinking_shows_what_a_restricted_run_has_left(app, viewer, mask):
    model = app.session.masks[mask]
    model.rest = np.zeros_like(model.copy)
    model.rest[8, 3:9, 3:9] = 1
    app.views.blink(True)
    picture = next(one for one in viewer.layers if one.name.endswith("(the model's)"))
    assert np.array_equal(picture.data, np.maximum(model.copy, model.rest))


@pytest.mark.parametrize("what", ["slider", "undo", "grow", "another mask", "a run"])
def test_blinking_ends_with_its_mask(qtbot, panel, app, viewer, ct, mask, what):
    app.watch.notify()
    qtbot.wait(20)
    opacity = mask.opacity
    app.views.blink(True)
    if what == "slider":
        show_slice(viewer, mask, app.session.reference, 5)
    elif what == "undo":
        mask.undo()
    elif what == "grow":
        app.editor.grow()
        qtbot.waitUntil(lambda: not app.editor.working, timeout=TIMEOUT)
    elif what == "another mask":
        app.session.mask = viewer.add_labels(np.zeros_like(mask.data), name="other")
    else:
        mask.undo()
        app.runs.start(ct, "box")
        qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
        assert app.runs.latest.labels is mask
    app.watch.notify()
    qtbot.wait(20)
    assert app.views.blinking is (what == "slider")
    if what == "slider":
        assert mask.opacity == 0
    else:
        assert mask.opacity == opacity and mask.visible
        assert not [one for one in viewer.layers if one.name.endswith("(the model's)")]


def test_the_surface_encloses_the_mask():
    mask = np.zeros((30, 40, 50), np.uint8)
    mask[10:20, 5:25, 0:30] = 1
    mesh = surface_of(mask)
    low, high = mesh.corners.min(axis=0), mesh.corners.max(axis=0)
    assert np.allclose(low, (9.5, 4.5, -0.5), atol=0.3)
    assert np.allclose(high, (19.5, 24.5, 29.5), atol=0.3)
    edges = np.sort(mesh.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all(), "closed: every edge belongs to two triangles"
    front = mesh.corners[:, 1] < 5
    light = mesh.brightness(np.array([0.0, -1.0, 0.0]))
    assert light[front].min() > light[mesh.corners[:, 1] > 24].max()
    one = np.zeros((3, 3, 3), np.uint8)
    one[1, 1, 1] = 1
    assert surface_of(one) is not None
    assert surface_of(one * 0) is None


def test_3d_and_back(qtbot, panel, app, viewer, ct, mask):
    ct_before = ct.visible
    hidden = viewer.add_labels(np.zeros(ct.data.shape, np.uint8), visible=False)
    viewer.layers.selection.active = mask
    viewer.scene.camera.center, viewer.scene.camera.zoom = (0, 12, 13), 3.5
    qtbot.mouseClick(panel.surface_button, LEFT)
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    (surface,) = [layer for layer in viewer.layers if isinstance(layer, Surface)]
    assert [layer for layer in viewer.layers if layer.visible] == [surface]
    assert panel.surface_button.isChecked()
    assert app.session.mask is mask
    assert [str(word) for word in viewer.scene.camera.orientation] == ["away", "down", "right"]
    frontal = {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    qtbot.waitUntil(lambda: app.views.letters.letters == frontal)
    centre = surface.data_to_world(surface.data[0].mean(axis=0))
    assert np.allclose(centre, mask.data_to_world((4, 11.5, 12)), atol=2)
    zooms = []
    for part in (1, 0):
        corners = len(surface.data[0])
        zooms.append(viewer.scene.camera.zoom)
        mask.data[7:10, 20:28, 25:36] = part
        mask.events.data(value=mask.data)
        qtbot.waitUntil(lambda n=corners: len(surface.data[0]) != n, timeout=TIMEOUT)
    assert zooms[1] < zooms[0], "all of what has grown is seen"
    assert viewer.scene.camera.zoom > zooms[1]
    qtbot.mouseClick(panel.surface_button, LEFT)
    assert viewer.dims.ndisplay == 2
    assert ct.visible == ct_before
    assert mask.visible
    assert not hidden.visible
    assert viewer.scene.camera.zoom == 3.5
    assert not [layer for layer in viewer.layers if isinstance(layer, Surface)]


def test_the_surface_is_that_of_the_chosen_mask(qtbot, app, viewer, ct, mask):
    surface = app.views.surface
    surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    other = np.zeros(ct.data.shape, np.uint8)
    other[7:9, 20:24, 25:30] = 1
    layer = Layer.create(*labels_layer_data(other, placement_of(ct), "other"))
    viewer.add_layer(layer)
    app.session.mask = layer
    qtbot.waitUntil(lambda: surface._surface.name == "other in 3-D", timeout=TIMEOUT)
    assert np.allclose(surface._surface.data[0].mean(axis=0), (7.5, 21.5, 27), atol=0.5)
    assert [each for each in viewer.layers if each.visible] == [surface._surface]
    viewer.layers.remove(layer)
    assert not surface.on and viewer.dims.ndisplay == 2 and mask.visible
    app.session.mask = mask
    surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    app.session.mask = None
    assert not surface.on and viewer.dims.ndisplay == 2


@pytest.mark.parametrize("by", ["surface", "napari"])
def test_3d_and_back_is_the_same_slice(qtbot, app, viewer, ct, mask, by):
    show_slice(viewer, ct, app.session.reference, 3)
    point = viewer.dims.point
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    viewer.scene.camera.center = (11, 12, 13)  # turned and moved
    if by == "surface":
        app.views.surface.stop()
    else:
        viewer.dims.ndisplay = 2
    assert slice_on_screen(viewer, ct, app.session.reference) == 3
    assert viewer.dims.point == pytest.approx(point)


def test_what_is_seen_after_3d_is_what_was_chosen_in_it(qtbot, app, viewer, ct, mask):
    header = CtPanel(app.session)
    qtbot.addWidget(header)
    other = Layer.create(*labels_layer_data(mask.data.copy(), app.session.placement(ct), "other"))
    viewer.add_layer(other)
    header.offer_layers()
    header.mask_combo.value = mask
    mask.data_setitem((np.array([5]), np.array([1]), np.array([1])), 1)
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    header.mask_combo.value = other
    assert not other.visible, "its voxels would be rendered"
    run = app.runs.start(ct, "graded")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.labels is not mask and "(earlier)" in mask.name
    app.views.surface.stop()
    assert run.labels.visible and not mask.visible
    assert not other.visible, "the run's mask has taken its place"
    header.offer_layers()
    mask.visible = True  # in the layer list
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    header.mask_combo.value = other
    assert not other.visible
    app.views.surface.stop()
    assert mask.visible and other.visible


def test_maps_wait_for_the_end_of_3d(qtbot, app, viewer, ct):
    def shown() -> list[str]:
        there = app.maps.layers(app.session.reference).items()
        return [word for word, layer in there if layer.visible]

    def segment() -> None:
        run = app.runs.start(ct, "box")
        qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
        app.session.mask = run.labels

    def see(words: list[str]) -> None:
        assert shown() == []
        app.views.surface.stop()
        assert shown() == words
        app.views.surface.start()
        qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)

    segment()
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    see(["attention 1"])
    segment()
    see(["attention 1"])
    app.maps.show(app.session.reference, "attention 2")
    see(["attention 2"])
    segment()
    see(["attention 2"])
    app.maps.show(app.session.reference, "attention 2", False)
    see([])


@pytest.mark.parametrize("ends", ["before", "after"])
def test_a_mask_comes_back_for_a_run_that_was_begun_in_3d(qtbot, app, viewer, ct, mask, ends):
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: "(earlier)" in mask.name, timeout=TIMEOUT)
    # What is found is seen in 3-D, which does not end for a mask that is empty as it is added.
    qtbot.waitUntil(lambda: app.views.surface._shown is run.labels, timeout=TIMEOUT)
    run.cancel()
    qtbot.waitUntil(lambda: run.can_discard, timeout=TIMEOUT)
    run.labels.contour = 1  # napari warns of outlines in 3-D
    if ends == "before":
        app.views.surface.stop()
    run.discard()
    app.views.surface.stop()
    assert mask.visible


def test_napari_s_own_button_leaves_3d_too(qtbot, panel, app, viewer, mask):
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    viewer.dims.ndisplay = 2
    assert not app.views.surface.on
    assert mask.visible
    assert not panel.surface_button.isChecked()


def test_3d_lasts_while_a_run_begins_anew(qtbot, app, viewer, ct, tmp_path, notifications):
    first = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not first.running, timeout=TIMEOUT)
    mask = app.session.mask = first.labels
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    run = app.runs.start(ct, f"wait {tmp_path / 'go'}")
    qtbot.waitUntil(lambda: run.labels is mask and not mask.data.any(), timeout=TIMEOUT)
    looked: list[object] = []
    show = app.views.surface._show
    app.views.surface._show = lambda mask, mesh: (looked.append(mesh), show(mask, mesh))
    app.views.surface._make()
    qtbot.waitUntil(lambda: bool(looked), timeout=TIMEOUT)
    assert looked[0] is None
    assert viewer.dims.ndisplay == 3
    (tmp_path / "go").touch()
    qtbot.waitUntil(lambda: looked[-1] is not None, timeout=TIMEOUT)
    assert viewer.dims.ndisplay == 3
    assert not any("empty" in each.message for each in notifications)


def test_an_empty_mask_has_no_surface(qtbot, panel, app, viewer, mask, notifications):
    mask.data[:] = 0
    app.views.surface.start()
    qtbot.waitUntil(lambda: bool(notifications), timeout=TIMEOUT)
    assert "empty" in notifications[-1].message
    assert viewer.dims.ndisplay == 2
    assert mask.visible


@pytest.mark.slow
def test_planes_on_buttons(qtbot, panel, app, viewer):
    views = app.views
    qtbot.waitUntil(lambda: len(views.letters.letters) == 4)
    qtbot.mouseClick(panel.planes["coronal"], LEFT)
    assert views.letters.letters == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    qtbot.mouseClick(panel.planes["sagittal"], LEFT)
    assert views.letters.letters == {"left": "A", "right": "P", "top": "S", "bottom": "I"}
    qtbot.mouseClick(panel.planes["axial"], LEFT)
    assert views.letters.letters == {"left": "R", "right": "L", "top": "A", "bottom": "P"}


def test_a_bare_array_has_no_letters(qtbot, panel, app, viewer):
    views = app.views
    qtbot.waitUntil(lambda: len(views.letters.letters) == 4)
    app.session.ct = viewer.add_image(np.zeros((5, 6, 7)))
    assert views.letters.letters == {}


def test_orthogonal_views_say_how_they_are_installed(qtbot, panel, monkeypatch, notifications):
    monkeypatch.setattr(OrthogonalViews, "installed", staticmethod(lambda: False))
    qtbot.mouseClick(panel.orthogonal_button, LEFT)
    assert "pip install" in notifications[-1].message


@pytest.mark.slow
def test_a_viewer_that_is_closed_is_forgotten(qtbot, qapp, volume):
    viewer = ViewerModel()
    ct = Layer.create(*ct_layer_data(volume))
    viewer.add_layer(ct)
    app = app_of(viewer)
    app.session.ct = ct
    letters = app.views.letters
    qtbot.waitUntil(lambda: len(letters.letters) == 4)
    gone = [weakref.ref(viewer), weakref.ref(ct)]
    app.close()
    del viewer, app, ct
    qapp.processEvents()
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_the_ways_of_looking_outlive_the_panel(app, mask):
    assert app.views is app.views


def drag(viewer, button: int, *places: tuple[float, float]) -> None:
    """What napari does when the mouse is pressed, moved and let go."""
    kinds = ["mouse_press", *["mouse_move"] * (len(places) - 2), "mouse_release"]
    calls = {
        "mouse_press": mouse_press_callbacks,
        "mouse_move": mouse_move_callbacks,
        "mouse_release": mouse_release_callbacks,
    }
    for kind, place in zip(kinds, places, strict=True):
        moves = kind == "mouse_move"
        event = SimpleNamespace(
            type=kind, button=button, pos=np.array(place), modifiers=(), is_dragging=moves
        )
        calls[kind](viewer, ReadOnlyWrapper(event))


def test_the_right_button_drags_window_and_level(app, viewer, ct):
    camera, told = viewer.scene.camera, []
    app.views.changed.connect(lambda: told.append(app.views.dragged))
    drag(viewer, 2, (10, 10), (160, 10), (160, 10))
    assert told == ["Window 600, level 40 HU", ""]
    assert tuple(ct.contrast_limits) == (-260, 340), "sideways: half as wide again"
    drag(viewer, 2, (10, 90), (10, 40), (10, 40))
    assert tuple(ct.contrast_limits) == (-360, 240), "up: brighter, so the level is lower"
    drag(viewer, 2, (500, 90), (0, 90), (0, 90))
    assert np.ptp(ct.contrast_limits) == 1, "never narrower"
    assert camera.mouse_pan, "napari has its mouse back"
    drag(viewer, 2, (0, 0), (900, -9000), (900, -9000))
    assert np.mean(ct.contrast_limits) >= -1024


def test_no_other_button_and_no_tool_drags_the_window(app, viewer, ct, mask):
    before = tuple(ct.contrast_limits)
    drag(viewer, 1, (10, 10), (160, 60), (160, 60))
    viewer.layers.selection.active = mask
    mask.mode = "paint"
    drag(viewer, 2, (10, 10), (160, 60), (160, 60))
    mask.mode = "pan_zoom"
    mask.mouse_pan = False  # as while mending
    drag(viewer, 2, (10, 10), (160, 60), (160, 60))
    mask.mouse_pan = True
    ct.visible = False
    drag(viewer, 2, (10, 10), (160, 60), (160, 60))
    assert tuple(ct.contrast_limits) == before


def test_three_views_have_the_head_up(app, viewer, ct, monkeypatch):
    coronal = ViewerModel()
    coronal.add_layer(Layer.create(*ct.as_layer_data_tuple()))
    coronal.dims.order = (1, 0, 2)
    manager = SimpleNamespace(is_shown=lambda: False, show=lambda: None)
    views = OrthogonalViews(viewer, app.views.placement)
    monkeypatch.setattr(compat, "orthogonal_manager", lambda _: manager)
    monkeypatch.setattr(compat, "orthogonal_models", lambda _: [coronal])
    assert edge_letters(coronal, app.views.placement())["bottom"] == "S"
    views.toggle()
    assert edge_letters(coronal, app.views.placement())["top"] == "S"
    views.refresh_letters()
