"""Keeps corrections that were not exported: soon after each stroke, off the GUI thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from napari.layers import Labels, Layer
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.autosave.offers import RECOVERED, Offers
from napari_pancreas_seg._napari.autosave.store import AutosaveStore, Unsaved, remove_unsaved
from napari_pancreas_seg._napari.background import Background, report, timer
from napari_pancreas_seg._napari.correct.mend import Mending
from napari_pancreas_seg._napari.correct.review import Review
from napari_pancreas_seg._napari.layers.bridge import (
    FILE_KEY,
    cuts_of,
    digest_of,
    labels_of,
    original_of,
)
from napari_pancreas_seg._napari.layers.placement import (
    DRAWN,
    GridReference,
    lies_on,
    reference_of,
    slice_on_screen,
)
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.past_result import kept_of
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.watch import MaskWatch
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Strokes
from napari_pancreas_seg.mask.centreline import Cuts

PAUSE_MS = 1500
"""After the first stroke that is not kept yet."""
RETRY_MS = 20_000
"""After corrections could not be kept."""
ANOTHER = "another"
"""Base of a mask that came with corrections: no digest."""
NO_CT = "No CT that they lie on is open."
"""Why corrections cannot be kept when nothing went wrong: they could not be given back."""


@dataclass(eq=False)
class _Kept:
    base: str = ""  # digest of the mask as it was opened or made
    exported: str = ""  # digest of what was exported, or need not be
    digest: str = ""  # of the mask when it was last looked at
    edited: bool = False  # by then
    reviewed: frozenset[int] = frozenset()  # slices, by then
    noted: frozenset[int] = frozenset()  # reviewed slices, when exported or by its worklist
    cuts: Cuts | None = None  # when it was last looked at
    noted_cuts: Cuts | None = None  # when opened, made or exported
    stale: bool = False  # it has changed since
    looking: bool = False  # a thread is looking at it
    held: str = ""  # digest of the mask that `file` holds
    ct: GridReference | None = None  # that it is held for
    left: Unsaved | None = None  # what is said of it in `file`
    trouble: PancreasSegError | None = None  # why it could not be kept
    file: Path | None = None
    supersedes: Path | None = None  # what it was restored from, until `file` is written
    corrects: str = ""  # digest of the mask, as its file had it, that a restored one goes on from

    @property
    def unexported(self) -> bool:
        return self.edited and self.digest != self.exported

    @property
    def worth_keeping(self) -> bool:
        anew = self.digest != self.exported or self.reviewed != self.noted
        return self.unexported or (bool(self.reviewed) and anew) or self.cuts != self.noted_cuts


class Autosave(QObject):
    """Watches the masks of a viewer and keeps those with corrections."""

    saved = Signal(object)

    def __init__(
        self,
        session: Session,
        watch: MaskWatch,
        review: Review,
        mending: Mending,
        store: AutosaveStore,
        background: Background,
        offers: Offers,
    ) -> None:
        super().__init__()
        self.is_noted: Callable[[Labels], bool] = lambda _: False
        """Whether the reviewed slices of a mask are remembered with the case of a worklist."""
        self._session = session
        self._watch = watch
        self._review = review
        self._mending = mending
        self._store = store
        self._background = background
        self._offers = offers
        self._kept: weakref.WeakKeyDictionary[Layer, _Kept] = weakref.WeakKeyDictionary()
        self._busy = self._warned = False
        self._writing = Lock()
        self._leaving: list[Labels] = []
        self._soon = timer(self, PAUSE_MS, self.save)
        session.mask_changed.connect(self._on_change)
        review.marked.connect(self._on_marked)
        session.cuts_moved.connect(self._on_change)
        watch.found.connect(self.follow)
        for layer in session.layers:
            self.follow(layer)
        session.ct_chosen.connect(self._on_ct)
        session.viewer.layers.events.removing.connect(self._on_removing)
        session.viewer.layers.events.inserted.connect(self._on_inserted)
        offers.taken.connect(self._on_taken)
        offers.restoring.connect(self._take_over)
        offers.restored.connect(self.save)

    # -- keeping

    def follow(self, layer: Layer) -> None:
        """Take a mask's present content as saved: it was just opened or made."""
        if not isinstance(layer, Labels) or layer in self._kept or not _is_array(layer):
            return
        original = original_of(layer)
        if original is not None and original in self.unexported():
            self._take_over(layer)
            return
        kept = self._kept[layer] = _Kept(noted_cuts=cuts_of(layer))
        if layer not in self._session.masks:
            # At once (some 10 ms for 512×512×400): a stroke may follow any moment.
            kept.base = digest_of(layer.data)

    def unexported(self) -> list[Labels]:
        """List the masks with corrections that were not exported, after a look at new strokes."""
        self._watch.notify()
        found = []
        for layer, kept in list(self._kept.items()):
            if kept.stale or kept.looking:
                model = self._session.masks.get(layer)
                kept.digest, kept.edited = _digest_and_edited(layer, model, kept.base)
            if kept.unexported:
                found.append(layer)
        return found

    def exported(self, layer: Any, digest: str) -> None:
        """Say that a mask was exported as it was when this digest was taken of it."""
        kept = self._kept.setdefault(layer, _Kept())
        kept.exported, kept.noted = digest, self._review.reviewed_of(layer)
        kept.noted_cuts = cuts_of(layer)
        if kept.digest == digest and not (kept.stale or kept.looking):
            self._drop(kept)
        else:
            self._on_change(layer)  # it may have been painted on meanwhile

    def keep(self, layer: Labels) -> None:
        """Take a mask as it is for one that was not exported: another has taken its file."""
        digest = digest_of(layer.data)
        if any(digest == other.corrects for other in self._kept.values()):
            return  # the other is this one with the corrections that a crash had cut off
        kept = self._kept.setdefault(layer, _Kept())
        kept.base, kept.exported, kept.noted = ANOTHER, "", frozenset()
        self._on_change(layer)

    def discard_all(self) -> None:
        self.unexported()  # to know the digests of now
        for kept in self._kept.values():
            kept.exported, kept.stale = kept.digest, False
            self._drop(kept)
        self._leaving.clear()

    def save(self, *, now: bool = False) -> None:
        """Keep every mask that has changed; in a thread, unless it must be done at once."""
        if isalive(self._soon):
            self._soon.stop()
        if self._busy and not now:
            return
        if now:
            self._watch.notify()
        jobs = [job for layer in list(self._kept) if (job := self._job(layer)) is not None]
        if jobs and now:
            self._note(self._done(jobs))
        elif jobs:
            self._busy = True
            self._background.submit(partial(self._done, jobs), self._note, self._idle)

    def _done(self, jobs: Iterable[Callable[[], _Kept]]) -> list[_Kept]:
        with self._writing:  # or what was begun before the last stroke might be written after it
            return [job() for job in jobs]

    def keep_all(self) -> None:
        """Keep every mask with corrections now; a PancreasSegError says if one cannot be kept."""
        for layer in self.unexported():
            kept = self._kept[layer]
            there = kept.file is not None and kept.file.exists()  # it may have been taken away
            kept.stale = kept.stale or kept.held != kept.digest or not there
        self.save(now=True)
        for layer in self.unexported():
            kept = self._kept[layer]
            if kept.trouble is not None or kept.held != kept.digest:
                raise PancreasSegError(
                    f"The corrections of '{layer.name}' cannot be kept, so the window stays "
                    f"open: export them. {kept.trouble or NO_CT}"
                )

    def close(self) -> None:
        """Keep what is not kept yet; the files are there for the next window."""
        self.save(now=True)
        self._store.close()

    def _on_change(self, layer: Layer) -> None:
        if isinstance(layer, Labels) and _is_array(layer):
            self._kept.setdefault(layer, _Kept()).stale = True
            self._wake()

    def _on_marked(self, layer: Labels) -> None:
        if self.is_noted(layer):
            self._kept.setdefault(layer, _Kept()).noted = self._review.reviewed_of(layer)
        self._on_change(layer)

    def _wake(self) -> None:
        if not self._soon.isActive():
            self._soon.start()

    def _on_ct(self) -> None:
        if any(kept.stale for kept in self._kept.values()):
            self._wake()  # a mask that lay on no CT may lie on this one

    def _take_over(self, layer: Labels, supersedes: Path | None = None, corrects: str = "") -> None:
        """Mark a mask as having corrections that must be kept."""
        self._kept[layer] = _Kept(
            base=ANOTHER, edited=True, stale=True, supersedes=supersedes, corrects=corrects
        )
        self._wake()

    def _on_taken(self, file: Path) -> None:
        for layer, kept in list(self._kept.items()):
            if kept.file == file:
                del self._kept[layer]

    def _on_removing(self, event: Any) -> None:
        """Keep a mask that goes, and those on a CT that goes: later it may not be known which."""
        layer = self._session.layers[event.index]
        reference = reference_of(layer)
        if reference is not None and reference.kind == "ct":
            self._watch.notify()
            if any(kept.stale for kept in self._kept.values()):
                # What is being written now may be older than the last stroke.
                self.save(now=self._busy)
        elif layer in self._kept:
            self._watch.notify()
            if not self._kept[layer].stale or self._ct_of(layer) is not None:
                self._leaving.append(layer)
                self.save()
                self._offer_left()

    def _on_inserted(self, event: Any) -> None:
        """Offer nothing of a mask that is back."""
        if (kept := self._kept.get(event.value)) is not None:
            self._leaving = [one for one in self._leaving if one is not event.value]
            self._offers.forget(kept.file)

    def _ct_of(self, layer: Labels) -> GridReference | None:
        """Return the CT that a mask is held for, whichever is looked at meanwhile."""
        kept = self._kept[layer]
        if kept.held and kept.ct is not None and lies_on(layer, kept.ct):
            return kept.ct
        return self._session.ct_of(layer)

    def _job(self, layer: Labels) -> Callable[[], _Kept] | None:
        """Return the function that saves a layer in a thread; None if there is nothing to save."""
        session, kept = self._session, self._kept[layer]
        reference = self._ct_of(layer)
        if not kept.stale or reference is None:
            return None
        ct = session.ct_data(reference)
        if ct is None and not self._offers.knows(reference):
            return None  # under a key without the CT's voxels they would never be offered
        kept.stale, kept.looking = False, True
        file = kept.file = kept.file or self._store.new_file()
        model, reviewed = session.masks.get(layer), self._review.reviewed_of(layer)
        cuts = cuts_of(layer)
        result, notes = session.result_of(layer), self._notes(layer, reference)
        path = None if reference.source.path is None else str(reference.source.path)

        def work() -> _Kept:
            try:
                kept.digest, kept.edited = _digest_and_edited(layer, model, kept.base)
                kept.reviewed, kept.cuts, kept.trouble = reviewed, cuts, None
                if kept.worth_keeping:
                    key = self._offers.key(reference, ct)
                    written = None if model is None else model.copy
                    if result is not None:
                        written = result.mask
                        notes["result"] = kept_of(result, edited=kept.edited)
                    left = Unsaved(key, reference.name, path, file, notes)
                    self._store.write(left, reference.view(layer.data), written)
                    kept.left, kept.ct, kept.held = left, reference, kept.digest
                    if kept.file is not file:  # exported or discarded meanwhile
                        remove_unsaved(file)
                        kept.held = ""
            except PancreasSegError as error:
                kept.trouble, kept.stale = error, True
            finally:
                kept.looking = False
            return kept

        return work

    def _notes(self, layer: Labels, reference: GridReference) -> dict[str, Any]:
        """What is kept of a mask beside its voxels, for JSON."""
        viewer, own, kept = self._session.viewer, reference_of(layer), self._kept[layer]
        return {
            "corrects": kept.exported or kept.corrects or kept.base,
            "reviewed": sorted(self._review.reviewed_of(layer)),
            "slice": None if viewer is None else slice_on_screen(viewer, layer, reference),
            "strokes": _listed(self._mending.counts(layer)),
            "recorded": {
                path: _listed(counts)
                for path, counts in self._mending.recorded.get(layer, {}).items()
            },
            "cuts": cuts_of(layer),
            "drawn": own is not None and own.kind == DRAWN,
            "opened": self._session.is_opened(layer),
            "file": layer.metadata.get(FILE_KEY),
            "name": layer.name.removesuffix(RECOVERED),
            "labels": labels_of(layer),
            "expected_dice": () if own is None else own.expected_dice,
        }

    def _note(self, found: list[_Kept]) -> None:
        for kept in found:
            if not kept.worth_keeping:
                self._drop(kept)
            elif kept.supersedes is not None and kept.trouble is None:
                remove_unsaved(kept.supersedes)
                kept.supersedes = None
        trouble = next((kept.trouble for kept in found if kept.trouble is not None), None)
        self._soon.setInterval(PAUSE_MS if trouble is None else RETRY_MS)
        if trouble is not None and not self._warned:  # once, until they can be kept again
            what = "Corrections cannot be kept against a crash; export them often."
            report(PancreasSegError(f"{what} {trouble}"))
        self._warned = trouble is not None
        self._idle()
        self.saved.emit([kept.file for kept in found])

    def _idle(self) -> None:
        self._busy = False
        self._offer_left()
        if any(kept.stale for kept in self._kept.values()):
            self._soon.start()

    def _drop(self, kept: _Kept) -> None:
        gone = (kept.file, kept.supersedes)
        # A thread that writes the file just now finds that it is no longer wanted.
        kept.file, kept.supersedes, kept.held, kept.trouble = None, None, "", None
        for file in gone:
            if file is not None:
                remove_unsaved(file)
                self._offers.forget(file)

    def _offer_left(self) -> None:
        """Offer what is held of masks that have left the layer list."""
        left, self._leaving = self._leaving, []
        for layer in left:
            kept = self._kept[layer]
            if kept.stale or kept.looking:
                self._leaving.append(layer)
            elif kept.held and kept.left is not None:
                self._offers.add(kept.left)


def _listed(strokes: Strokes) -> list[list[int]]:
    return [[z, *counts] for z, counts in strokes.items()]


def _is_array(layer: Labels) -> bool:
    return not layer.multiscale and isinstance(layer.data, np.ndarray) and layer.data.ndim == 3


def _digest_and_edited(layer: Labels, model: ModelMask | None, base: str) -> tuple[str, bool]:
    """Digest of a mask, and whether a person has changed it."""
    digest = digest_of(layer.data)
    edited = bool(model.touched_slices(layer).any()) if model is not None else digest != base
    return digest, edited
