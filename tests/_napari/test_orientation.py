"""Letters at the edges of the view and the 3-D camera, for every way that a CT can lie."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Image, Layer
from nibabel import orientations

from napari_pancreas_seg._napari.layers.bridge import ct_layer_data
from napari_pancreas_seg._napari.layers.placement import placement_of
from napari_pancreas_seg._napari.views import orientation
from napari_pancreas_seg.volume import CTVolume

ALL_48 = [
    "".join(code)
    for code in itertools.product("LRAPSI", repeat=3)
    if len({"LRAPSI".index(letter) // 2 for letter in code}) == 3
]
AXIAL = {"left": "R", "right": "L", "top": "A", "bottom": "P"}
CORONAL = {"left": "R", "right": "L", "top": "S", "bottom": "I"}
SAGITTAL = {"left": "A", "right": "P", "top": "S", "bottom": "I"}
PLANES = {"axial": AXIAL, "coronal": CORONAL, "sagittal": SAGITTAL}


def affine_of(code: str, tilt=(0.0, 0.0, 0.0)) -> np.ndarray:
    """An affine whose axes run towards these letters, but for a tilt in rad."""
    steps = orientations.inv_ornt_aff(orientations.axcodes2ornt(tuple(code)), (0, 0, 0))
    turned = nib.eulerangles.euler2mat(*tilt)
    return nib.affines.from_matvec(turned @ steps[:3, :3] @ np.diag([0.8, 0.9, 2.5]), (3, -5, 7))


def shown(code: str, tilt=(0.0, 0.0, 0.0)):
    """A CT that we opened, in a viewer."""
    volume = CTVolume.from_source_array(np.zeros((4, 5, 6), np.int16), affine_of(code, tilt))
    layer = Layer.create(*ct_layer_data(volume))
    viewer = ViewerModel()
    viewer.add_layer(layer)
    return viewer, placement_of(layer)


def foreign(affine: np.ndarray, **options):
    layer = Image(np.zeros((4, 5, 6)), affine=affine, rgb=False, multiscale=False, **options)
    viewer = ViewerModel()
    viewer.add_layer(layer)
    return viewer, placement_of(layer)


@pytest.mark.parametrize("code", ALL_48)
def test_a_ct_that_we_opened_shows_as_radiologists_expect(code):
    viewer, placement = shown(code, (0.15, -0.2, 0.1))
    assert orientation.edge_letters(viewer, placement) == AXIAL


def test_letters_follow_rolled_transposed_and_flipped_axes():
    viewer, placement = shown("RAS")
    viewer.dims.order = (1, 0, 2)
    upside_down = {"left": "R", "right": "L", "top": "I", "bottom": "S"}
    assert orientation.edge_letters(viewer, placement) == upside_down
    viewer.scene.camera.orientation2d = ("up", "left")
    flipped = {"left": "L", "right": "R", "top": "S", "bottom": "I"}
    assert orientation.edge_letters(viewer, placement) == flipped
    viewer.scene.camera.orientation2d = ("down", "right")
    viewer.dims.order = (0, 2, 1)
    transposed = {"left": "A", "right": "P", "top": "R", "bottom": "L"}
    assert orientation.edge_letters(viewer, placement) == transposed


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    turned=st.sampled_from(ALL_48),
    order=st.permutations(range(3)),
    vertical=st.sampled_from(["up", "down"]),
    horizontal=st.sampled_from(["left", "right"]),
)
def test_a_foreign_affine_is_taken_for_what_it_says(turned, order, vertical, horizontal):
    """The world of a layer that is not ours runs to the head, to the back and to the left."""
    to_world = np.eye(4)
    to_world[:3, :3] = affine_of(turned)[[2, 1, 0], :3] * [[1], [-1], [-1]]
    viewer, placement = foreign(to_world)
    viewer.dims.order = tuple(order)
    viewer.scene.camera.orientation2d = (vertical, horizontal)
    down, right = order[1], order[2]
    ends = ["SI", "PA", "LR"]
    expected_down, expected_right = ends[down], ends[right]
    if vertical == "up":
        expected_down = expected_down[::-1]
    if horizontal == "left":
        expected_right = expected_right[::-1]
    assert orientation.edge_letters(viewer, placement) == {
        "bottom": expected_down[0],
        "top": expected_down[1],
        "right": expected_right[0],
        "left": expected_right[1],
    }


@pytest.mark.parametrize("plane", orientation.PLANES)
@pytest.mark.parametrize("code", ["RAS", "LPS", "AIR", "PSR"])
def test_planes_are_those_of_the_textbook(code, plane):
    viewer, placement = shown(code, (0.1, 0.1, -0.1))
    orientation.show_plane(viewer, placement, plane)
    assert orientation.edge_letters(viewer, placement) == PLANES[plane]
    orientation.show_plane(viewer, placement, "axial")
    assert orientation.edge_letters(viewer, placement) == AXIAL


def test_another_axis_has_no_letters():
    viewer, placement = shown("RAS")
    viewer.add_image(np.zeros((3, 4, 5, 6)))
    assert orientation.edge_letters(viewer, placement) == AXIAL
    viewer.dims.order = (1, 2, 0, 3)
    assert orientation.edge_letters(viewer, placement) == {}


@pytest.mark.slow
def test_letters_are_an_overlay_that_follows(qtbot):
    viewer, placement = shown("LPS")
    known = [placement]
    letters = orientation.OrientationLetters(viewer, lambda: known[0])
    qtbot.waitUntil(lambda: letters.letters == AXIAL)
    orientation.show_plane(viewer, placement, "coronal")
    assert letters.letters == CORONAL
    known[0] = None
    letters.refresh()
    assert letters.letters == {}
    known[0] = placement
    letters.refresh()
    assert viewer.canvas.overlays["pancreas_left"].position == "middle_left"


def test_nobody_knows_how_a_bare_array_lies():
    _, placement = foreign(np.eye(4))
    assert placement is not None
    assert not orientation.knows_orientation(Image(np.zeros((4, 5, 6)), scale=(2, 1, 1)))
    assert orientation.knows_orientation(Image(np.zeros((4, 5, 6)), affine=np.diag([2, 1, 1, 1])))


@pytest.mark.parametrize("code", ["RAS", "LPS", "AIR"])
def test_the_patient_is_not_mirrored_in_3d(code):
    viewer, placement = shown(code)
    orientation.unmirror(viewer, placement)
    viewer.dims.ndisplay = 3
    assert [str(word) for word in viewer.scene.camera.orientation] == ["away", "down", "right"]
    orientation.face_camera(viewer, placement)
    assert orientation.edge_letters(viewer, placement) == CORONAL
    camera = viewer.scene.camera
    # From the front the camera looks backwards: what is in front comes first.
    assert np.allclose(camera.view_direction, (0, 1, 0))
    camera.set_view_direction((0, -1, 0), (1, 0, 0))
    assert orientation.edge_letters(viewer, placement) == CORONAL | {"left": "L", "right": "R"}


def test_the_world_of_a_foreign_layer_is_left_handed_too():
    to_world = np.diag([2.0, 1, 1, 1])
    viewer, placement = foreign(to_world)
    orientation.unmirror(viewer, placement)
    assert str(viewer.scene.camera.orientation[0]) == "away"


def test_letters_are_drawn_once_before_there_is_a_ct(qtbot):
    viewer, known = ViewerModel(), [None]
    letters = orientation.OrientationLetters(viewer, lambda: known[0])
    qtbot.waitUntil(lambda: len(viewer.canvas.overlays) >= 4)
    drawn = [each for key, each in viewer.canvas.overlays.items() if key.startswith("pancreas")]
    assert all(set(each.text) == set("LRAPIS") and each.opacity == 0 for each in drawn)
    assert letters.letters == {}
    qtbot.waitUntil(lambda: not any(each.visible for each in drawn))
