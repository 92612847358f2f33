"""Builds the session and the services of a viewer: the one place that knows them all."""

from __future__ import annotations

import weakref

from napari.components import ViewerModel
from qtpy.QtCore import QObject

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.autosave.autosave import Autosave
from napari_pancreas_seg._napari.autosave.closing import Closing
from napari_pancreas_seg._napari.autosave.offers import Offers
from napari_pancreas_seg._napari.autosave.store import AutosaveStore
from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.correct.answers import Answers
from napari_pancreas_seg._napari.correct.carry import Carrying
from napari_pancreas_seg._napari.correct.editor import MaskEditor
from napari_pancreas_seg._napari.correct.mend import Mending
from napari_pancreas_seg._napari.correct.paint import Brush, PaintLimit
from napari_pancreas_seg._napari.correct.review import Review
from napari_pancreas_seg._napari.improve.improvement import Improvement
from napari_pancreas_seg._napari.layers.files import LayerFiles
from napari_pancreas_seg._napari.layers.foreign import UnitsOfCts
from napari_pancreas_seg._napari.layers.maps import MapLayers
from napari_pancreas_seg._napari.run.network import Network
from napari_pancreas_seg._napari.run.runs import Runs
from napari_pancreas_seg._napari.run.threshold import Rethreshold
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import Settings
from napari_pancreas_seg._napari.views.chosen import ChosenCt
from napari_pancreas_seg._napari.views.views import Views
from napari_pancreas_seg._napari.watch import MaskWatch
from napari_pancreas_seg._napari.worklist.case import CaseAhead
from napari_pancreas_seg._napari.worklist.session import WorklistSession
from napari_pancreas_seg.inference.process.client import NetworkProcess

_APPS: weakref.WeakKeyDictionary[ViewerModel, App] = weakref.WeakKeyDictionary()


def app_of(viewer: ViewerModel) -> App:
    """The app of a viewer, made when it is first asked for; it outlives a closed dock."""
    viewer = compat.unwrapped(viewer)
    if viewer not in _APPS:
        _APPS[viewer] = App(viewer)
    return _APPS[viewer]


def existing_app(viewer: ViewerModel | None) -> App | None:
    return None if viewer is None else _APPS.get(compat.unwrapped(viewer))


class App(QObject):
    """Everything of this plugin in one viewer but its widgets.

    A panel of a tab takes it whole, as the dock makes all of them alike; so do the bar over the
    canvas and the keys, which act on most services. Everything else takes the few services that it
    uses. Only a weak reference to the viewer is kept.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self.session = session = Session(viewer)
        self.settings = settings = Settings()
        self.background = background = Background()
        self.network = Network(NetworkProcess(), background)
        self.watch = MaskWatch(viewer)
        self.maps = MapLayers(session, settings)
        self.runs = Runs(session, self.network, self.maps, settings, background)
        self.rethreshold = Rethreshold(session, self.runs, background)
        self.editor = MaskEditor(session, settings, self.network, background)
        self.answers = Answers(lambda *of, **how: self.network.process.mend(*of, **how))
        self.carrying = Carrying(self.editor, self.answers)
        edited_by = self.editor, self.network, background, self.answers, self.carrying
        self.mending = Mending(session, *edited_by, self.maps)
        self.brush = Brush(session, settings)
        self.units = UnitsOfCts()
        self.paint_limit = PaintLimit(session, settings, self.units)
        self.review = Review(session, self.runs, background)
        self.improvement = Improvement(session, self.review, settings, background)
        store = AutosaveStore()
        self.offers = Offers(session, self.review, self.mending, store, background)
        self.autosave = Autosave(
            session, self.watch, self.review, self.mending, store, background, self.offers
        )
        strokes = self.mending.counts, self.mending.recorded
        self.files = LayerFiles(session, background, *strokes, self.autosave.exported)
        self.views = Views(session, background)
        self.chosen = ChosenCt(session)  # after them: they put back first what they hid
        self.ahead = CaseAhead(self.network, self.runs, background)
        self.worklist = WorklistSession(
            session,
            self.runs,
            self.files,
            self.maps,
            self.watch,
            self.review,
            self.ahead,
            background,
        )
        self.autosave.is_noted = self.worklist.notes
        self.worklist.replaced = self.autosave.keep
        self.files.written = self.worklist.on_written
        edits = self.editor, self.mending, self.rethreshold
        self.worklist.edit_under_way = lambda: next((e.working for e in edits if e.working), "")
        self.closing: Closing | None = None
        self.watch.changed.connect(session.mask_changed)
        session.ct_chosen.connect(self.answers.forget)
        self.runs.started.connect(self.mending.stop)  # it leaves no network to mend with
        self.views.surface.starting.connect(self.mending.stop)  # what it set aside is hidden too
        self.editor.applying.connect(self.review.expect_change)
        self.rethreshold.applying.connect(self.review.expect_change)
        self.rethreshold.done.connect(self.editor.drop_stale)
        self.runs.changed.connect(self.editor.drop_stale)
        window = compat.qt_window(viewer)
        if window is not None:
            window.destroyed.connect(self.close)
            self.closing = Closing(self.autosave, window)

    def close(self) -> None:
        """Stop what is under way and end the network's process."""
        if self.runs.latest is not None:
            self.runs.latest.cancel()
        self.improvement.cancel()
        self.worklist.note_place()
        self.network.process.close()
        self.autosave.close()
        self.settings.save()
        self.background.close()
