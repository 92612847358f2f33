"""The composition root, and a session and services of a few plain objects."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Layer

import napari_pancreas_seg._napari.session as session_module
from napari_pancreas_seg._napari.app import app_of, existing_app
from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.network import Network
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.worklist.case import CaseAhead
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import FoundSlices


def test_a_viewer_has_one_app(app, viewer):
    assert app_of(viewer) is app and existing_app(viewer) is app
    other = ViewerModel()
    assert existing_app(other) is None and existing_app(None) is None


def test_an_app_goes_with_its_viewer(qapp):
    viewer = ViewerModel()
    gone = weakref.ref(viewer)
    app_of(viewer).close()
    del viewer
    gc.collect()
    assert gone() is None


def test_keys_of_a_tool_end_with_the_viewer(qapp):
    viewer = ViewerModel()
    app = app_of(viewer)
    app.close()
    del viewer
    gc.collect()
    app.editor.use_keys({"P": print})  # as what a thread has worked out does, when it is late
    assert app.editor._keys_before == []


def test_a_closed_app_leaves_no_thread(app):
    app.background.submit(lambda: None)
    app.close()
    app.background.submit(lambda: pytest.fail("a job after the end"))
    for thread in threading.enumerate():
        if thread.name.startswith("pancreas_"):
            thread.join(30)
            assert not thread.is_alive()


def test_the_session_is_short_and_imports_no_service():
    source = Path(session_module.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    services = ("app", "autosave", "correct", "improve", "views", "worklist", "files", "runs")
    for service in services:
        assert f"_napari.{service}" not in source


def test_a_session_needs_a_viewer_alone(qapp, volume):
    viewer = ViewerModel()
    session, told = Session(viewer), []
    session.ct_chosen.connect(lambda: told.append("ct"))
    session.mask_chosen.connect(lambda: told.append("mask"))
    assert session.reference is None and session.ct is None and session.mask is None
    ct = viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    mask = viewer.add_labels(np.zeros(volume.grid.shape, np.uint8))
    session.ct = session.ct = ct
    session.mask = mask
    assert told == ["ct", "mask"]
    assert session.mask_layers(session.reference) == [mask]
    assert session.ct_of(mask) is session.reference
    assert session.ct_data(session.reference) is ct.data
    viewer.layers.remove(ct)
    assert session.ct_of(mask) is session.reference  # it is chosen still
    session.ct = None
    assert session.ct_of(mask) is None


class Process:
    """A network's process that does nothing."""

    pid = 1

    def close(self):
        pass


def test_the_network_is_lent_to_one_at_a_time(qapp):
    network, freed = Network(Process(), Background()), []
    network.freed.connect(lambda: freed.append(True))
    network.claim("A slice is being run again; wait a moment.")
    with pytest.raises(PancreasSegError, match="A slice is being run again"):
        network.claim("another")
    network.release()
    assert freed
    network.claim("another")


@pytest.mark.slow
def test_the_network_warms_up_on_a_blank_ct_before_there_is_one(qtbot, app, network):
    assert network.pid is None
    with qtbot.waitSignal(app.network.devices_changed, timeout=20_000):
        app.network.warm_up_blank("box")
    assert network.pid is not None and app.network.devices


@pytest.mark.slow
def test_nothing_is_loaded_early_if_that_is_not_wished(qtbot, app, network, monkeypatch):
    loaded, where = [], "napari_pancreas_seg._napari.run.network"
    monkeypatch.setattr(f"{where}.get_ready", lambda: loaded.append("libraries"))
    monkeypatch.setattr(f"{where}.preference", lambda name: False)
    app.network.warm_up_blank("box")
    qtbot.waitUntil(lambda: not app.network._newest.busy, timeout=20_000)
    assert not loaded and network.pid is None


def test_memory_of_empty_slices_is_not_touched(volume):
    class Untouchable(dict):
        def __getitem__(self, z):
            pytest.fail(f"slice {z} was looked at")

    reference = GridReference(volume.grid, volume.source, "CT")
    layer = Labels(np.zeros(volume.grid.shape, np.uint8))
    model = ModelMask(reference)
    model.copy = Untouchable()
    nothing = np.zeros((2, *volume.grid.shape[1:]), np.uint8)
    model.write(layer, FoundSlices(np.array([3, 4]), nothing))
    assert model.filled == set()
    model.copy = np.zeros(volume.grid.shape, np.uint8)
    model.write(layer, FoundSlices(np.array([3, 4]), nothing + 1))
    model.write(layer, FoundSlices(np.array([3]), nothing[:1]))  # taken back by post-processing
    assert not layer.data[3].any() and layer.data[4].all() and model.filled == {3, 4}


@pytest.mark.parametrize(
    "take", [lambda network: network.claim("in use"), lambda network: network.reserve(True)]
)
def test_the_next_case_waits_while_the_network_is_taken(qapp, volume, take):
    class Runs:
        @staticmethod
        def how():
            pytest.fail("segmented meanwhile")

    network = Network(Process(), Background())
    ahead = CaseAhead(network, Runs, Background())
    take(network)
    ahead.segments = True

    class Case:
        mask = result = None

    ahead._waiting = Case()
    ahead._segment(ahead._waiting)
    assert ahead._segmenting is None


def test_an_outline_is_no_mask(app, viewer, ct):
    from napari_pancreas_seg._napari.correct.apply import Target, outline_layer, preview_of

    mask = Labels(np.zeros(ct.data.shape, np.uint8))
    viewer.add_layer(mask)
    after = np.ones(ct.data.shape, bool)  # as large as the CT, so that its shape tells nothing
    target = Target(mask, app.session.reference, 1)
    outline = outline_layer(target, preview_of(~after, after, 1), "proposal")
    viewer.add_layer(outline)
    assert outline.data.shape == ct.data.shape
    assert app.session.mask_layers(app.session.reference) == [mask]
    assert app.session.ct_of(outline) is None
