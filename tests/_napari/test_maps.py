"""Which map is shown: the gate that tells most, one at a time, under an outlined mask."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_layer_data
from napari_pancreas_seg._napari.layers.maps import (
    BEST,
    PROBABILITY,
    make_layer,
)
from napari_pancreas_seg.inference.maps import best_gate, separation
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.volume import CTVolume, Grid

GRID = Grid((6, 8, 10), np.diag([2.5, 1.0, 1.0, 1.0]))


def shown(maps, reference) -> str:
    return next((w for w, layer in maps.layers(reference).items() if layer.visible), "")


def gate(inside: float, outside: float, step: int = 1) -> ScalarMap:
    """A gate that is higher where the mask is, on a lattice that is coarser by `step`."""
    coarse = GRID.sub_grid(
        (6, 8 // step, 10 // step), (0, (step - 1) / 2, (step - 1) / 2), (1, step, step)
    )
    values = np.where(mask()[:, ::step, ::step] != 0, inside, outside).astype(np.float16)
    return ScalarMap(values, coarse)


def mask() -> np.ndarray:
    mask = np.zeros(GRID.shape, np.uint8)
    mask[2:5, 2:6, 4:8] = 1
    return mask


@pytest.mark.parametrize("step", [1, 2])
def test_separation_is_inside_minus_outside(step):
    assert separation(gate(0.9, 0.2, step), mask(), GRID) == pytest.approx(0.7, abs=1e-2)


def test_what_was_not_computed_does_not_count():
    one = gate(0.9, 0.2)
    one.values[[0, 1, 5]] = np.nan
    assert separation(one, mask(), GRID) == pytest.approx(0.7, abs=1e-2)
    one.values[:] = np.nan
    assert separation(one, mask(), GRID) == 0


def test_a_frame_that_stands_out_beyond_the_ct():
    wide = GRID.sub_grid((6, 12, 14), (0, -2, -2), (1, 1, 1))
    values = np.full(wide.shape, 0.2, np.float16)
    values[2:5, 4:8, 6:10] = 0.9
    assert separation(ScalarMap(values, wide), mask(), GRID) == pytest.approx(0.7, abs=1e-2)


def test_the_gate_that_tells_most_is_measured_unless_the_card_says_it():
    maps = {
        "attention 1": gate(0.7, 0.5),
        "attention 2": gate(0.6, 0.6),
        "attention 3": gate(0.9, 0.1, 2),
        PROBABILITY: gate(1.0, 0.0),
    }
    assert best_gate(maps, mask(), GRID, {}) == "attention 3"
    rows = [{"gate": 2, "inside": 0.9, "tissue": 0.1}, {"gate": 1, "inside": 0.9, "tissue": 0.8}]
    assert best_gate(maps, mask(), GRID, {"attention": rows}) == "attention 2"
    unknown = [{"gate": 9, "inside": 0.9, "tissue": 0.1}, {"gate": 1}, "?", None]
    assert best_gate(maps, mask(), GRID, {"attention": unknown}) == "attention 3"
    assert best_gate(maps, mask(), GRID, {"attention": "?"}) == "attention 3"
    assert best_gate({PROBABILITY: gate(1, 0)}, mask(), GRID, {}) == ""


@pytest.fixture
def begun(app, viewer, ct):
    """Two gates and the probability of a CT with a mask, the second gate telling most."""
    placement = app.session.placement(ct)
    data = labels_layer_data(np.zeros(ct.data.shape, np.uint8), placement)
    viewer.add_labels(data[0], **data[1])
    values = np.zeros(placement.reference.grid.shape, np.float16)
    found = {
        word: ScalarMap(values, placement.reference.grid)
        for word in ("attention 1", "attention 2", PROBABILITY)
    }
    app.maps.begin(found, placement, "CT")
    layer = make_layer(found["attention 2"], "attention 2", placement, "CT", app.maps.appearance)
    app.maps.add(placement.reference, "attention 2", layer)
    return app.maps, placement.reference


def test_one_at_a_time_under_an_outlined_mask(viewer, begun):
    maps, reference = begun
    labels = next(layer for layer in viewer.layers if isinstance(layer, Labels))
    assert shown(maps, reference) == "attention 2" and labels.contour == 2
    assert [layer.name for layer in viewer.layers] == ["CT", "CT attention 2", labels.name]
    maps.show(reference, PROBABILITY)
    assert shown(maps, reference) == PROBABILITY
    assert viewer.layers.index(labels) == len(viewer.layers) - 1
    maps.show(reference, PROBABILITY, False)
    assert shown(maps, reference) == "" and labels.contour == 0
    maps.show(reference, BEST)
    assert shown(maps, reference) == "attention 2" and labels.contour == 2


def test_a_contour_of_the_users_own_is_left_alone(viewer, begun):
    maps, reference = begun
    labels = next(layer for layer in viewer.layers if isinstance(layer, Labels))
    labels.contour = 5
    maps.show(reference, "", False)
    assert labels.contour == 5


def test_an_outline_goes_with_its_map_though_none_is_wished_any_more(viewer, begun, monkeypatch):
    maps, reference = begun
    labels = next(layer for layer in viewer.layers if isinstance(layer, Labels))
    monkeypatch.setattr("napari_pancreas_seg._napari.layers.maps.preference", lambda _: False)
    maps.show(reference, PROBABILITY)
    maps.show(reference, PROBABILITY, False)
    assert labels.contour == 0
    labels.contour = 2  # the user's own
    maps.show(reference, PROBABILITY)
    maps.show(reference, PROBABILITY, False)
    assert labels.contour == 2


def test_maps_of_a_ct_that_was_removed_go_with_the_next_run(app, viewer, ct, begun, another):
    (maps, reference), placement = begun, app.session.placement(another)
    values = weakref.ref(maps._cts[reference.id].maps[PROBABILITY].values)
    app.session.ct = another
    viewer.layers.remove(ct)
    maps.begin({}, placement, "another")
    assert values() is not None, "one of its maps is in the viewer"
    viewer.layers.remove("CT attention 2")
    gc.collect()
    maps.begin({}, placement, "another")
    gc.collect()
    assert maps.known(reference) == [] and values() is None


def test_what_is_wanted_is_remembered_and_nothing_else_is_added(app, viewer, begun):
    maps, reference = begun
    maps.show(reference, PROBABILITY)
    placement = app.session.placement(app.session.ct)
    former = maps.begin(maps._cts[reference.id].maps, placement, "CT")
    assert [*maps.layers(reference)] == [shown(maps, reference)] == [PROBABILITY]
    maps.restore(reference, former)
    assert shown(maps, reference) == PROBABILITY


@pytest.fixture
def another(viewer) -> Layer:
    volume = CTVolume.from_source_array(np.zeros((9, 9, 4), np.int16) + 30, np.eye(4))
    layer = Layer.create(*ct_layer_data(volume, "another"))
    viewer.add_layer(layer)
    return layer


def test_maps_of_a_ct_that_is_not_chosen_wait_for_it(app, viewer, ct, begun, another):
    (maps, reference), placement = begun, app.session.placement(ct)
    found = maps._cts[reference.id].maps
    app.session.ct = another
    maps.add(
        reference,
        "attention 1",
        make_layer(found["attention 1"], "attention 1", placement, "CT", maps.appearance),
    )
    assert shown(maps, reference) == ""
    app.session.ct = ct
    assert [word for word, one in maps.layers(reference).items() if one.visible] == ["attention 1"]
    former = maps.begin(found, placement, "CT")
    app.session.ct = another
    maps.restore(reference, former)
    assert shown(maps, reference) == ""
    app.session.ct = ct
    assert shown(maps, reference) == "attention 1"


@pytest.mark.parametrize("hides", [True, False])
def test_a_map_that_the_user_has_hidden_stays_so_in_the_next_run(app, ct, begun, another, hides):
    (maps, reference), placement = begun, app.session.placement(ct)
    found = maps._cts[reference.id].maps
    if hides:
        maps.layers(reference)["attention 2"].visible = False
        maps.begin(found, placement, "CT")
        app.session.ct = another
    else:  # that is hidden with its CT
        app.session.ct = another
        maps.begin(found, placement, "CT")
    layer = make_layer(found["attention 2"], "attention 2", placement, "CT", maps.appearance)
    maps.add(reference, "attention 2", layer)
    assert shown(maps, reference) == ""
    app.session.ct = ct
    assert shown(maps, reference) == ("" if hides else "attention 2")


def test_low_values_are_transparent(viewer, begun):
    layer = viewer.layers["CT attention 2"]
    low, high = layer.colormap.map(np.array([0.0, 1.0]))[:, 3]
    assert low == 0 and high == 1 and layer.interpolation2d == "linear"
