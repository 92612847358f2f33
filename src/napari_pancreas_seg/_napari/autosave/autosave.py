"""Keeps corrections that were not exported: soon after each stroke, off the GUI thread."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels, Layer
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.autosave import store as autosave
from napari_pancreas_seg._napari.autosave.store import AutosaveStore, Unsaved
from napari_pancreas_seg._napari.background import Background, report, timer
from napari_pancreas_seg._napari.correct.mend import Mending
from napari_pancreas_seg._napari.correct.review import Review
from napari_pancreas_seg._napari.layers.bridge import (
    FILE_KEY,
    PANCREAS,
    cuts_of,
    digest_of,
    labels_layer_data,
    labels_of,
    original_of,
)
from napari_pancreas_seg._napari.layers.placement import (
    DRAWN,
    METADATA_KEY,
    GridReference,
    Placement,
    lies_on,
    reference_of,
    show_slice,
    slice_on_screen,
)
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.past_result import kept_of, past_result
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.watch import MaskWatch
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Strokes

PAUSE_MS = 1500
"""After the first stroke that is not kept yet."""
RETRY_MS = 20_000
"""After corrections could not be kept."""
ANOTHER = "another"
"""Base of a mask that came with corrections: no digest."""
NO_CT = "No CT that they lie on is open."
"""Why corrections cannot be kept when nothing went wrong: they could not be given back."""
RECOVERED = " (recovered)"


@dataclass(eq=False)
class _Kept:
    base: str = ""  # digest of the mask as it was opened or made
    exported: str = ""  # digest of what was exported, or need not be
    digest: str = ""  # of the mask when it was last looked at
    edited: bool = False  # by then
    reviewed: frozenset[int] = frozenset()  # slices, by then
    noted: frozenset[int] = frozenset()  # reviewed slices, when exported or by its worklist
    stale: bool = False  # it has changed since
    looking: bool = False  # a thread is looking at it
    held: str = ""  # digest of the mask that `file` holds
    ct: GridReference | None = None  # that it is held for
    left: Unsaved | None = None  # what is held, without voxels
    trouble: PancreasSegError | None = None  # why it could not be kept
    file: Path | None = None
    supersedes: Path | None = None  # what it was restored from, until `file` is written

    @property
    def unexported(self) -> bool:
        return self.edited and self.digest != self.exported

    @property
    def worth_keeping(self) -> bool:
        anew = self.digest != self.exported or self.reviewed != self.noted
        return self.unexported or (bool(self.reviewed) and anew)


class Autosave(QObject):
    """Watches the masks of a viewer and keeps those with corrections."""

    offers_changed = Signal()
    saved = Signal(object)

    def __init__(
        self,
        session: Session,
        watch: MaskWatch,
        review: Review,
        mending: Mending,
        store: AutosaveStore,
        background: Background,
    ) -> None:
        super().__init__()
        self.offers: list[Unsaved] = []  # of windows and layers that are gone, without voxels
        self.is_noted: Callable[[Labels], bool] = lambda _: False
        """Whether the reviewed slices of a mask are remembered with the case of a worklist."""
        self._session = session
        self._watch = watch
        self._review = review
        self._mending = mending
        self._store = store
        self._background = background
        self._kept: weakref.WeakKeyDictionary[Layer, _Kept] = weakref.WeakKeyDictionary()
        self._keys: dict[str, str] = {}
        self._busy = self._warned = False
        self._leaving: list[Labels] = []
        self._soon = timer(self, PAUSE_MS, self.save)
        session.mask_changed.connect(self._on_change)
        review.marked.connect(self._on_marked)
        watch.found.connect(self.follow)
        for layer in session.layers:
            self.follow(layer)
        session.ct_chosen.connect(self._on_ct)
        session.viewer.layers.events.removing.connect(self._on_removing)
        session.viewer.layers.events.inserted.connect(self._on_inserted)
        self._background.submit(self._store.left_behind, self._offer)

    # -- keeping

    def follow(self, layer: Layer) -> None:
        """Take a mask's present content as saved: it was just opened or made."""
        if not isinstance(layer, Labels) or layer in self._kept or not _is_array(layer):
            return
        original = original_of(layer)
        if original is not None and original in self.unexported():
            self._take_over(layer)
            return
        kept = self._kept[layer] = _Kept()
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
        if kept.digest == digest and not (kept.stale or kept.looking):
            self._drop(kept)
        else:
            self._on_change(layer)  # it may have been painted on meanwhile

    def keep(self, layer: Labels) -> None:
        """Take a mask as it is for one that was not exported: another has taken its file."""
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
            self._note([job() for job in jobs])
        elif jobs:
            self._busy = True
            self._background.submit(lambda: [job() for job in jobs], self._note, self._idle)

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
        self._learn_key()
        if any(kept.stale for kept in self._kept.values()):
            self._wake()  # a mask that lay on no CT may lie on this one

    def _take_over(self, layer: Labels, supersedes: Path | None = None) -> None:
        """Mark a mask as having corrections that must be kept."""
        self._kept[layer] = _Kept(base=ANOTHER, edited=True, stale=True, supersedes=supersedes)
        self._wake()

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
            self._forget(kept.file)

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
        if reference.id not in self._keys and session.ct_data(reference) is None:
            return None  # under a key without the CT's voxels they would never be offered
        kept.stale, kept.looking = False, True
        file = kept.file = kept.file or self._store.new_file()
        model, ct, viewer = session.masks.get(layer), session.ct_array(reference), session.viewer
        reviewed, own = self._review.reviewed_of(layer), reference_of(layer)
        result = session.result_of(layer)
        notes = {
            "reviewed": sorted(reviewed),
            "slice": None if viewer is None else slice_on_screen(viewer, layer, reference),
            "strokes": _listed(self._mending.counts(layer)),
            "recorded": {
                path: _listed(counts)
                for path, counts in self._mending.recorded.get(layer, {}).items()
            },
            "cuts": cuts_of(layer),
            "drawn": own is not None and own.kind == DRAWN,
            "opened": session.is_opened(layer),
            "file": layer.metadata.get(FILE_KEY),
            "name": layer.name.removesuffix(RECOVERED),
            "labels": labels_of(layer),
            "expected_dice": () if own is None else own.expected_dice,
        }
        path = None if reference.source.path is None else str(reference.source.path)

        def work() -> _Kept:
            try:
                kept.digest, kept.edited = _digest_and_edited(layer, model, kept.base)
                kept.reviewed, kept.trouble = reviewed, None
                if kept.worth_keeping:
                    key, shown = self._key(reference, ct), reference.view(layer.data)
                    written = None if model is None else model.copy
                    if result is not None:
                        written = result.mask
                        notes["result"] = kept_of(result, edited=kept.edited)
                    unsaved = Unsaved(key, reference.name, path, shown, written, notes)
                    kept.left, kept.ct = self._store.write(unsaved, file), reference
                    kept.held = kept.digest
                    if kept.file is not file:  # exported or discarded meanwhile
                        autosave.remove(file)
                        kept.held = ""
            except PancreasSegError as error:
                kept.trouble, kept.stale = error, True
            finally:
                kept.looking = False
            return kept

        return work

    def _note(self, found: list[_Kept]) -> None:
        for kept in found:
            if not kept.worth_keeping:
                self._drop(kept)
            elif kept.supersedes is not None and kept.trouble is None:
                autosave.remove(kept.supersedes)
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
                autosave.remove(file)
                self._forget(file)

    def _key(self, reference: GridReference, ct: Array | None) -> str:
        if reference.id not in self._keys:
            grid = reference.grid
            shown = None if ct is None else reference.view(ct)
            self._keys[reference.id] = autosave.ct_key(shown, grid.shape, grid.affine)
        return self._keys[reference.id]

    # -- giving back

    def offers_for(self, reference: GridReference) -> list[Unsaved]:
        """List what was left behind of a CT, as soon as its key is known."""
        key = self._keys.get(reference.id)
        return [offer for offer in self.offers if offer.key == key]

    def restore(self, offer: Unsaved, placement: Placement) -> None:
        file = offer.file
        if file is None or offer not in self.offers:
            return
        self._take(file)  # at once: a second click restores nothing

        def make() -> tuple[Layer, ModelMask | None, Mapping[str, Any]]:
            whole, reference = autosave.read(file), placement.reference
            notes = whole.notes
            data = np.zeros(reference.layer_shape, whole.mask.dtype)
            shown = reference.view(data)
            if shown.shape != whole.mask.shape:
                raise PancreasSegError("The autosaved mask has another shape than this CT.")
            shown[...] = whole.mask
            name, cuts = f"{whole.mask_name}{RECOVERED}", notes.get("cuts")
            facts: dict[str, Any] = {
                "labels": notes.get("labels") or PANCREAS,
                "expected_dice": tuple(notes.get("expected_dice", ())),
                "cuts": None if cuts is None else (cuts[0], cuts[1]),
            }
            layer = Layer.create(*labels_layer_data(data, placement, name, **facts))
            own = layer.metadata[METADATA_KEY]
            if notes.get("drawn"):
                layer.metadata[METADATA_KEY] = replace(reference, kind=DRAWN)
            elif notes.get("opened"):  # and so none that was made on this CT, or is its case's own
                layer.metadata[METADATA_KEY] = replace(own, id=uuid.uuid4().hex)
            layer.metadata[FILE_KEY] = notes.get("file")
            if whole.model is None:
                return layer, None, notes
            model = ModelMask.holding(reference, whole.model)
            result = past_result(notes.get("result", {}), whole.model, reference.grid)
            if result is not None:
                model.finish(result)
            return layer, model, notes

        def add(made: tuple[Layer, ModelMask | None, Mapping[str, Any]]) -> None:
            (layer, model, notes), session = made, self._session
            if session.viewer is None:
                return
            self._take_over(layer, supersedes=file)
            if model is not None:
                session.masks[layer] = model
            before = session.mask
            session.viewer.add_layer(layer)
            if before is not None and lies_on(before, placement.reference):
                before.visible = False  # the two would be seen as one
            session.mask = layer
            if notes.get("slice") is not None:
                show_slice(session.viewer, layer, placement.reference, notes["slice"])
            self._review.set_reviewed(layer, notes.get("reviewed", ()))
            self._mending.recall(layer, _strokes(notes.get("strokes", ())))
            self._mending.recorded[layer] = {
                path: _strokes(counts) for path, counts in notes.get("recorded", {}).items()
            }
            self.save()

        self._background.submit(make, add, lambda: self._offer([offer, *self.offers]))

    def discard(self, offer: Unsaved) -> None:
        if offer.file is not None:
            self._take(offer.file)
            autosave.remove(offer.file)

    def _offer(self, found: list[Unsaved]) -> None:
        self.offers = found
        self._learn_key()
        self.offers_changed.emit()

    def _offer_left(self) -> None:
        """Offer what is held of masks that have left the layer list."""
        left, self._leaving = self._leaving, []
        for layer in left:
            kept = self._kept[layer]
            if kept.stale or kept.looking:
                self._leaving.append(layer)
            elif kept.held and kept.left is not None:
                self._offer([kept.left, *self.offers])

    def _take(self, file: Path) -> None:
        """Leave a file to who has asked for it, and the layer that it was of, if it is there."""
        for layer, kept in list(self._kept.items()):
            if kept.file == file:
                del self._kept[layer]
        self._forget(file)

    def _forget(self, file: Path | None) -> None:
        if len(others := [one for one in self.offers if one.file != file]) < len(self.offers):
            self._offer(others)

    def _learn_key(self) -> None:
        """Find the key of the chosen CT: it may be gone when a mask of it is painted on."""
        session, reference = self._session, self._session.reference
        if reference is None or reference.id in self._keys:
            return
        ct = session.ct_array(reference)

        def learned(_: object) -> None:
            if isalive(self) and self.offers:  # the window may be gone
                self.offers_changed.emit()

        self._background.submit(lambda: self._key(reference, ct), learned)


def _listed(strokes: Strokes) -> list[list[int]]:
    return [[z, *counts] for z, counts in strokes.items()]


def _strokes(listed: Iterable[Sequence[int]]) -> Strokes:
    return {z: (added, removed) for z, added, removed in listed}


def _is_array(layer: Labels) -> bool:
    return not layer.multiscale and isinstance(layer.data, np.ndarray) and layer.data.ndim == 3


def _digest_and_edited(layer: Labels, model: ModelMask | None, base: str) -> tuple[str, bool]:
    """Digest of a mask, and whether a person has changed it."""
    digest = digest_of(layer.data)
    edited = bool(model.touched_slices(layer).any()) if model is not None else digest != base
    return digest, edited
