"""A worklist in a viewer: the next case is ready when the last one is done, and none is lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from napari.layers import Labels, Layer
from napari.utils.notifications import show_info, show_warning
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import Background, report, reported, timer
from napari_pancreas_seg._napari.correct.review import Review
from napari_pancreas_seg._napari.layers.bridge import EMPTY, cuts_of, digest_of
from napari_pancreas_seg._napari.layers.files import LayerFiles
from napari_pancreas_seg._napari.layers.maps import MapLayers
from napari_pancreas_seg._napari.layers.placement import show_slice
from napari_pancreas_seg._napari.run.runs import Runs
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.watch import MaskWatch
from napari_pancreas_seg._napari.worklist.case import CaseAhead, LoadedCase, first_look, read_case
from napari_pancreas_seg._napari.worklist.shown import ShownCase
from napari_pancreas_seg.cohort.worklist import Status, Worklist, WorklistCase, state_folder
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.saving import mask_sha256
from napari_pancreas_seg.io import MASK_SUFFIXES, stem, suffix_of

PAUSE_MS = 1000
"""Pause after scrolling before the slice on screen is remembered."""
PAINTED_ON = "painted on"
"""In place of a digest, of a mask that changed while it was written: it is written once more."""


class WorklistSession(QObject):
    """Goes through the cases of a worklist in a viewer.

    A case leaves it once its mask is written, if it differs. `busy` says what is being done.
    """

    changed = Signal()

    def __init__(
        self,
        session: Session,
        runs: Runs,
        files: LayerFiles,
        maps: MapLayers,
        watch: MaskWatch,
        review: Review,
        ahead: CaseAhead,
        background: Background,
    ) -> None:
        super().__init__()
        self.worklist: Worklist | None = None
        self.busy = ""
        self.edit_under_way: Callable[[], str] = str
        """Names what is being worked out for a mask; "" if nothing is."""
        self.replaced: Callable[[Labels], None] = lambda _: None
        """Is told of a corrected mask that is in no file any more."""
        self.ahead = ahead
        self._session = session
        self._runs = runs
        self._files = files
        self._watch = watch
        self._review = review
        self._background = background
        self._shown = ShownCase(session, maps)
        self._first = False
        ahead.changed.connect(self.changed)
        runs.finished.connect(self._on_run_finished)
        session.mask_changed.connect(self._on_mask_changed)
        self._soon = timer(self, PAUSE_MS, self.note_place)
        review.moved.connect(self._soon.start)
        self._shown.ct_leaves.connect(self.note_place)  # a window that closes removes it
        review.marked.connect(lambda _: self._soon.start())

    @property
    def case(self) -> WorklistCase | None:
        shown, worklist = self._shown.loaded, self.worklist
        return None if worklist is None or shown is None else worklist.cases[shown.index]

    def notes(self, layer: Labels) -> bool:
        """Whether the reviewed slices of a mask are remembered with its case."""
        return layer is self._shown.mask

    def note_place(self) -> None:
        """Remember which slice is on screen and which are reviewed: a window may be killed."""
        if isalive(self._soon):
            self._soon.stop()
        if self._shown.loaded is not None and not self.busy:
            self._note(self._shown.loaded, slice=self._shown.slice)

    def open(self, folder: str | Path, output: str | Path | None = None, **chosen: Any) -> None:
        """List the CTs of a folder, in a thread, and go to where one stopped; see `Worklist`."""
        if self.busy:
            report(PancreasSegError(f"“{self.busy.rstrip('…')}” is not done yet; wait a moment."))
            return

        def opened(worklist: Worklist) -> None:
            self.worklist, self._first = worklist, True
            self.ahead.drop()
            self._idle()
            self._load(worklist.current)

        def listed() -> Worklist:
            target = None if output is None else Path(output)
            return Worklist(folder, state_folder(), target, **chosen)

        self._leave(lambda: self._submit("Listing the cases…", listed, opened))

    def go_to(self, index: int) -> None:
        if self.worklist is None or self.busy:
            return
        if not 0 <= index < len(self.worklist):
            word = "first" if index < 0 else "last"
            report(PancreasSegError(f"This is the {word} case of the worklist."))
            return
        self._leave(lambda: self._load(index))

    def step(self, by: int) -> None:
        if self.worklist is None and not self.busy:
            report(PancreasSegError("There is no worklist yet: open a folder of CTs as one."))
        elif self.worklist is not None:
            self.go_to(self.worklist.current + by)

    def mark_reviewed(self) -> None:
        if self._is_own_chosen() and self._is_settled():
            self._keep(self.changed.emit, status=Status.REVIEWED)

    def finish_case(self) -> None:
        def go_on() -> None:
            following = None if self.worklist is None else self.worklist.next_unfinished()
            if following is None:
                show_info("Every case of the worklist is exported.")
            else:
                self.go_to(following)

        if self._is_own_chosen() and self._is_settled():
            self._keep(go_on, status=Status.EXPORTED)

    def use_output(self, folder: str | Path) -> None:
        """Write masks into another folder from now on; one of this case there is shown instead."""
        worklist, shown = self.worklist, self._shown.loaded
        if worklist is None or self.busy or not self._is_settled():
            return
        with reported():
            there = None if shown is None else worklist.mask_in(folder, shown.index)
            if shown is not None and there != shown.target and there and there.exists():
                # First, or what is kept of the case would be noted of the other folder's.
                self._leave(lambda: self._load_other(shown, folder))
            else:
                self._move(folder)

    def _move(self, folder: str | Path) -> None:
        """Write masks into another folder, that of the case on screen too."""
        worklist, shown = self.worklist, self._shown.loaded
        if worklist is None:
            return
        worklist.use_output(folder)
        self.ahead.drop()  # its mask, if any, is that of the former folder
        if shown is not None and (target := worklist.cases[shown.index].mask) != shown.target:
            shown.target, shown.saved = target, ""
        self.changed.emit()
        if shown is not None:
            self._prepare_next()

    def on_written(self, layer: Layer, path: Path) -> None:
        """Write the case's mask into its own file, too: nobody is asked about it any more."""
        shown = self._shown.loaded
        if shown is None or layer is not self._shown.mask or self.busy or self._runs.unsettled():
            return
        if path.absolute() != shown.target.absolute():
            self._keep(self.changed.emit)

    # -- leaving a case

    def _is_own_chosen(self) -> bool:
        """Whether the header names this case's mask, which is written; if not, say so."""
        mask, chosen = self._shown.mask, self._session.mask
        if mask is None:
            why = "This case has no mask yet: run first, or paint one."
        elif chosen is None or chosen is mask:
            return True
        else:
            why = (
                f"'{chosen.name}' is chosen as Mask, but this case's mask is '{mask.name}': "
                f"choose that one in the header, or write '{chosen.name}' by Export…."
            )
        report(PancreasSegError(why))
        return False

    def _is_settled(self) -> bool:
        """Whether the mask may be written; if not, say why: it would replace a whole one."""
        why = self._runs.unsettled()
        if not why and (edit := self.edit_under_way()):
            why = f"“{edit}” is not done yet; wait a moment."
        if why:
            report(PancreasSegError(why))
        return not why

    def _leave(self, then: Callable[[], None]) -> None:
        if not self._is_settled():
            return

        mask = self._shown.mask
        edits = self._watch.edits_of(mask)

        def left() -> None:
            if self._shown.mask is not mask or self._watch.edits_of(mask) != edits:
                self._leave(then)  # it was painted on meanwhile: that is kept, too
            elif self._is_settled():  # a run may have begun meanwhile
                self._shown.take_away()
                then()

        self._keep(left)

    def _keep(self, then: Callable[[], None], status: Status | None = None) -> None:
        """Write the mask of the case that is shown if it differs from what was written last."""
        shown, mask = self._shown.loaded, self._shown.mask
        if shown is None or self.worklist is None:
            then()
            return
        seen, edits = self._shown.slice, self._watch.edits_of(mask)

        def done(reached: Status | None) -> None:
            shown.edits, shown.status = edits, None
            self._note(shown, status=reached, slice=seen)
            self._idle()
            then()

        if mask is None:
            done(status)
            return
        data, known, target = mask.data, self._session.masks.get(mask), shown.target
        cuts = cuts_of(mask)
        corrected = self.worklist.cases[shown.index].status not in (Status.NEW, Status.SEGMENTED)

        def compare() -> tuple[str, bool, bool, bool]:
            edited = known is None or bool(known.touched_slices(mask).any())
            return digest_of(data), edited, self._files.is_others(target), target.exists()

        def compared(found: tuple[str, bool, bool, bool]) -> None:
            digest, edited, others, there = found
            nothing = not shown.saved and digest == EMPTY and status is not Status.EXPORTED
            same = digest == shown.saved and there and not others
            if nothing or (same and cuts == shown.cuts):
                shown.mask = mask if same else shown.mask
                done(status or shown.status)
                return
            kept = shown.status if same else Status.CORRECTED if edited else Status.SEGMENTED
            reached = status or kept  # the same, if only the cuts are others
            if others:  # nobody has looked at theirs here
                reached = Status.SEGMENTED
            lost = shown.saved and corrected and not (same or others)

            def written(path: Path) -> None:
                before = shown.mask
                if lost and before is not None and before is not mask:
                    self.replaced(before)
                as_compared = self._watch.edits_of(mask) == edits
                shown.saved = digest if as_compared else PAINTED_ON
                shown.mask, shown.target, shown.cuts = mask, path, cuts
                if others:
                    show_warning(
                        f"'{target.name}' was written elsewhere meanwhile and stays as it is; the "
                        f"mask of this window is kept in '{path.name}'."
                    )
                elif path != target:
                    self._note(shown, mask=path)
                done(reached)

            path = _writable(target)
            path = _free_beside(path) if others else path
            self._files.export(mask, path, overwrite=True, then=written, failed=self._idle)

        self._submit("Keeping the mask…", compare, compared)

    def _note(self, shown: LoadedCase, **known: Any) -> None:
        mask = self._shown.mask
        reviewed = None if mask is None else tuple(sorted(self._review.reviewed_of(mask)))
        # What is reviewed of strokes that are not in the file yet is not reviewed in the file.
        same = mask is shown.mask and self._watch.edits_of(mask) == shown.edits
        digest = shown.saved if same else ""
        with reported():
            if self.worklist is not None:
                self.worklist.update(shown.index, **known, reviewed=reviewed, digest=digest)

    # -- coming to a case

    def _load(self, index: int) -> None:
        worklist, ready = self.worklist, self.ahead.take(index)
        if worklist is None:
            return
        with reported():
            worklist.go_to(index)  # before it is read: one goes on from one that cannot be
        case, how = worklist.cases[index], self._runs.how()

        def now() -> LoadedCase:
            if ready is None or mask_sha256(case.mask) != ready.sha256:
                return read_case(index, case)
            if ready.result is None or how == (ready.model, ready.result.options):
                return ready
            return ready.renewed(*how)

        self._submit(f"Opening {case.name}…", now, self._show)

    def _load_other(self, left: LoadedCase, folder: str | Path) -> None:
        with reported():
            self._move(folder)
        self._load(left.index)
        if left.saved and self.worklist is not None:
            name, now = self.worklist.cases[left.index].name, self.worklist.output.name
            show_info(
                f"{name}: the mask in '{now}' is shown from now on; the one that was on screen is "
                f"in '{left.target.parent.name}'."
            )

    def _show(self, loaded: LoadedCase) -> None:
        viewer, worklist = self._session.viewer, self.worklist
        self._idle()
        if viewer is None or worklist is None:
            return
        self._shown.show(loaded)
        self._files.know(loaded.target, loaded.sha256)
        case, mask = worklist.cases[loaded.index], loaded.mask
        if mask is not None:
            if loaded.saved:
                # What is reviewed in it is remembered with the case: nothing is left unexported.
                self._files.note_written(mask.data, loaded.target)
            loaded.edits = self._watch.edits_of(mask)
            if case.digest and case.digest == loaded.saved:
                self._review.set_reviewed(mask, case.reviewed)
            if loaded.saved and case.status is Status.NEW:  # it has come since they were listed
                self._note(loaded, status=Status.SEGMENTED)
        z = case.slice if case.slice is not None else first_look(mask, loaded.reference)
        show_slice(viewer, loaded.ct, loaded.reference, z)
        for note in loaded.notes:
            show_info(f"{case.name}: {note}")
        self.changed.emit()
        if loaded.result is not None:
            self._keep(self.changed.emit)  # at once, as after a run
        stale = bool(loaded.model) and loaded.result is None
        first, self._first = self._first or stale, False
        if first and mask is None and self.ahead.segments and not self._runs.running:
            with reported():  # none could be segmented ahead, or not with the model of now
                self._runs.start(loaded.ct, *self._runs.how())
        self._prepare_next()

    def _prepare_next(self) -> None:
        worklist = self.worklist
        if worklist is not None and worklist.next_case is not None:
            self.ahead.prepare(worklist.current + 1, worklist.next_case)

    # -- what happens meanwhile

    def _on_run_finished(self) -> None:
        run, case = self._runs.latest, self.case
        if run is not None and run.stands and case is not None and case.status is Status.NEW:
            self._keep(self.changed.emit)  # at once, so that a crash costs nothing of it

    def _on_mask_changed(self, layer: Labels) -> None:
        shown, own = self._shown.loaded, layer is self._shown.mask
        if shown is None or not own or self.busy or self._runs.unsettled():
            return
        data, edits = layer.data, self._watch.edits_of(layer)

        def compared(digest: str) -> None:
            case, newest = self.case, self._watch.edits_of(layer) == edits
            if self._shown.loaded is not shown or case is None or self.busy or not newest:
                return
            if digest == shown.saved:  # again, by undo
                shown.edits, status = edits, shown.status
                shown.status = None
            elif case.status in (Status.REVIEWED, Status.EXPORTED):
                shown.status, status = case.status, Status.CORRECTED
            else:
                return
            self._note(shown, status=status)
            self.changed.emit()

        self._background.submit(lambda: digest_of(data), compared)

    def _submit(self, what: str, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.busy = what
        self.changed.emit()
        self._background.submit(work, then, self._idle)

    def _idle(self) -> None:
        self.busy = ""
        self.changed.emit()


def _writable(mask: Path) -> Path:
    """Name the file that a mask is written to: another one if its format is only read."""
    if mask.name.lower().endswith(MASK_SUFFIXES):
        return mask
    nifti = mask.with_name(f"{stem(mask)}.nii.gz")
    return _free_beside(nifti) if nifti.exists() else nifti


def _free_beside(mask: Path) -> Path:
    """Name a file for a second mask of a case, which no CT is named like and none is taken for."""
    case, suffix = stem(mask).removesuffix("_mask"), suffix_of(mask)
    names = (mask.with_name(f"{case}_kept_{number}_mask{suffix}") for number in count(1))
    return next(path for path in names if not path.exists())
