"""Layers and files: opened and written in threads, so that the window stays responsive."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels, Layer
from napari.utils.notifications import show_info
from qtpy.QtWidgets import QMessageBox

from napari_pancreas_seg import io
from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background, report
from napari_pancreas_seg._napari.layers.bridge import (
    FILE_KEY,
    cuts_of,
    digest_of,
    labels_of,
    mask_of,
    measured_volume_of,
)
from napari_pancreas_seg._napari.layers.placement import (
    DRAWN,
    GridReference,
    Placement,
    find_reference,
    onto_ct,
    placements,
    reference_of,
    show_slice,
    slice_on_screen,
)
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import NotHounsfieldError
from napari_pancreas_seg.inference.result import Segmentation, Strokes, describe, edited_record
from napari_pancreas_seg.inference.saving import (
    is_sidecar,
    mask_sha256,
    measured,
    read_sidecar,
    recorded_sha256,
    same_mask,
    sidecar_path,
    write_sidecar,
    written_part,
)
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.io.dicom.report import write_report
from napari_pancreas_seg.io.dicom.uids import mint_uids as complete_uids
from napari_pancreas_seg.io.files import check_target
from napari_pancreas_seg.io.suffixes import CSV, DICOM, VOLUME, suffix_of
from napari_pancreas_seg.mask.centreline import CUTS, Cuts


class LayerFiles:
    """Opens files as layers of a viewer, and writes its masks with the strokes that mended them."""

    def __init__(
        self,
        session: Session,
        background: Background,
        strokes: Callable[[Layer], Strokes],
        recorded: MutableMapping[Layer, dict[str, Strokes]],
        exported: Callable[[Layer, str], None],
    ) -> None:
        self._session = session
        self._background = background
        self._strokes = strokes
        self._exported = exported
        self._recorded = recorded
        self.written: Callable[[Layer, Path], None] = lambda *_: None
        """Is told of a mask whose voxels were written to a file."""
        self._reading = 0
        self._waiting: list[tuple[str | Path, list[Placement], tuple[Layer, tuple[str, ...]]]] = []
        self._known: dict[str, str | None] = {}  # hashes of masks as they were read or written
        self.question: QMessageBox | None = None  # about a file that does not look like a CT

    def open(self, path: str | Path, *, force: bool = False) -> None:
        """Add a CT, a mask or a map; `force` opens what does not look like Hounsfield units."""
        cts = placements(self._session.layers)
        self._reading += 1

        def make() -> tuple[Layer, tuple[str, ...]] | NotHounsfieldError:
            # The layer is made here, too: the first one imports SciPy, pandas and more.
            try:
                data, notes = read_layer(path, cts, force=force)
            except NotHounsfieldError as error:
                return error
            return Layer.create(*data), notes

        def show(opened: tuple[Layer, tuple[str, ...]] | NotHounsfieldError) -> None:
            try:
                if isinstance(opened, NotHounsfieldError):
                    self._ask(path, opened)
                elif self._session.known_ct(opened[0]) is None:
                    self._waiting.append((path, cts, opened))  # its CT may come with it
                elif self._session.viewer is not None:
                    self._add(*opened)
            finally:
                self._read()

        self._background.submit(make, show, self._read)

    def _read(self) -> None:
        """Add masks and maps once all is read that is opened together; anew if a CT was with it."""
        self._reading -= 1
        if self._reading or self._session.viewer is None:
            return
        waiting, self._waiting = self._waiting, []
        now = {ct.reference.id for ct in placements(self._session.layers)}
        for path, cts, opened in waiting:
            if {ct.reference.id for ct in cts} == now:
                self._add(*opened)
            else:
                self.open(path)

    def _ask(self, path: str | Path, refusal: NotHounsfieldError) -> None:
        window = compat.qt_window(self._session.viewer)
        if window is None:
            report(refusal)
            return
        box = self.question = QMessageBox(window)
        box.setWindowTitle("Pancreas segmentation")
        box.setText(str(refusal))
        box.setInformativeText("Open it all the same, if you know that these are Hounsfield units?")
        anyway = box.addButton("Open all the same", QMessageBox.ButtonRole.ActionRole)
        box.setDefaultButton(box.addButton(QMessageBox.StandardButton.Cancel))
        anyway.clicked.connect(lambda: self.open(path, force=True))
        box.open()

    def _add(self, layer: Layer, notes: tuple[str, ...]) -> None:
        anothers = isinstance(layer, Labels) and self._session.is_anothers(layer)
        if anothers or (isinstance(layer, Labels) and self._session.mask is not None):
            # A mask that is opened does not become the chosen one by being selected, nor one that
            # `ChosenCt` hides.
            compat.add_unselected(self._session.viewer, layer)
        else:
            self._session.viewer.add_layer(layer)
        if layer is self._session.mask:
            self._show_some_of(layer)
        for note in notes:
            show_info(f"{layer.name}: {note}")

    def _show_some_of(self, mask: Labels) -> None:
        """Go to the largest slice of a mask of which nothing is on screen."""
        viewer, reference = self._session.viewer, self._session.ct_of(mask)
        if reference is None or not isinstance(mask.data, np.ndarray):
            return
        z = slice_on_screen(viewer, mask, reference)
        view = reference.view(mask.data)
        if z is not None and not view[z].any() and view.any():
            areas = [np.count_nonzero(plane) for plane in view]
            show_slice(viewer, mask, reference, int(np.argmax(areas)))

    def export(
        self,
        layer: Layer,
        path: str | Path,
        *,
        then: Callable[[Path], None] | None = None,
        failed: Callable[[], None] | None = None,
        **how: Any,
    ) -> None:
        """Write a mask, `how` as `write_mask`, in a thread; what has no grid is refused at once."""
        layers, data = self._session.layers, layer.data
        try:
            reference = self._session.ct_of(layer) or find_reference(layer, layers)
        except PancreasSegError as error:
            report(error)
            if failed is not None:
                failed()
            return
        made, counted = self._made(layer, reference, path), self._strokes(layer)

        def write() -> tuple[Path, str]:
            held = np.array(data)  # it may be painted on meanwhile
            mask, digest = mask_of(held), digest_of(held)
            mask, whole = onto_ct(reference.view(mask), reference, layers)
            target = write_mask(mask, whole, path, **made, **how)
            self.know(target, mask_sha256(target))
            return target, digest

        def written(outcome: tuple[Path, str]) -> None:
            self._note(layer, outcome[0], counted, outcome[1])
            if then is not None:
                then(outcome[0])

        self._background.submit(write, written, failed)

    def know(self, path: Path, sha256: str | None) -> None:
        """Remember a mask's hash as it was read or written here; None if there was no mask."""
        self._known[os.path.realpath(path)] = sha256

    def is_others(self, path: Path) -> bool:
        """Whether a mask was written elsewhere since; looks at all of it, so for a thread."""
        known = self._known.get(os.path.realpath(path))
        return path.exists() and (known is None or known != mask_sha256(path))

    # -- for napari's writer, which is given the data of a layer and not the layer

    def note_written(self, data: Any, path: str | Path) -> None:
        """Record that the data of a layer, as they are now, were written to a file."""
        for layer in self._session.layers:
            if isinstance(layer, Labels) and layer.data is data:
                self._note(layer, path, self._strokes(layer), digest_of(data))

    def grid_of(self, data: Any) -> GridReference | None:
        """Grid to write the chosen mask onto, if it has these data: it is of the chosen CT."""
        mask = self._session.mask
        return None if mask is None or mask.data is not data else self._session.ct_of(mask)

    def what_made(self, data: Any, reference: GridReference, path: Path) -> dict[str, Any]:
        """Return the arguments of `write_mask` on the origin of the layer with these data."""
        layers = (one for one in self._session.layers if one.data is data)
        return next((self._made(one, reference, path) for one in layers), {})

    def _note(self, layer: Layer, path: str | Path, strokes: Strokes, digest: str) -> None:
        if _holds_voxels(path):
            self._recorded.setdefault(layer, {})[_record_of(path)] = strokes
            self._exported(layer, digest)
            self.written(layer, Path(path))

    def _made(self, layer: Layer, reference: GridReference, path: str | Path) -> dict[str, Any]:
        result, ct = self._session.result_of(layer), self._session.ct_data(reference)
        strokes, cuts = self._strokes(layer), cuts_of(layer)
        if result is None:  # the record counts those before
            told = self._recorded.get(layer, {}).get(_record_of(path), {})
            strokes = {z: _less(counts, told.get(z, (0, 0))) for z, counts in strokes.items()}
        labels = labels_of(layer) if isinstance(layer, Labels) else {}
        made = {"result": result, "ct": ct, "strokes": strokes, "cuts": cuts, "labels": labels}
        own = reference_of(layer)
        if own is None or own.kind == DRAWN:
            return {**made, "file": ""}
        if own.id == reference.id:  # made on this CT
            return {**made, "file": None}
        return {**made, "file": layer.metadata.get(FILE_KEY) or ""}


def write_mask(
    mask: Array,
    reference: GridReference,
    path: str | Path,
    *,
    result: Segmentation | None = None,
    ct: Any = None,
    strokes: Strokes | None = None,
    overwrite: bool = False,
    mint_uids: bool = False,
    report: bool = False,
    cuts: Cuts | None = None,
    file: str | None = None,
    labels: Mapping[str, int] | None = None,
) -> Path:
    """Write a mask (Z, Y, X) onto its CT's grid, and the record of the `result` it is from.

    Without one, the record of this mask is brought up to date, and that of another goes with the
    mask that is replaced: `file` is where an opened mask comes from, "" if from nowhere. There is
    no HU without `ct`, its data. `labels` name the organs, for tables and surfaces.
    """
    path, cut = Path(path), cuts or CUTS
    record, name = sidecar_path(path), path.name.lower()
    dicom = name.endswith(DICOM)
    # One of the mask that is replaced would say what no longer holds.
    outdated = dicom and overwrite and ct is not None and io.report_path(path).exists()
    report = dicom and (report or outdated)
    if report:
        check_target(io.report_path(path), overwrite=overwrite)
    voxels = _holds_voxels(path)
    its_own = file is None or (file != "" and sidecar_path(Path(file)) == record.absolute())
    ours = (its_own or result is not None) and is_sidecar(record, reference.volume())
    others = voxels and not ours and is_sidecar(record)
    if others or (result is not None and not ours):
        _check_record(record, overwrite)
    earlier = read_sidecar(record) if result is None and ours and voxels else None
    # The CT's values are looked at only where something is said of them.
    wanted = result is not None or ours or mint_uids or report or name.endswith(CSV)
    known = wanted and ct is not None
    volume = measured_volume_of(ct, reference) if known else reference.volume()
    if report and mint_uids:  # once for both
        volume = complete_uids(volume)
    made = None
    if earlier and same_mask(path, earlier):
        made = bring_onto(volume, *io.load_mask(path), path.name)  # to count what was edited
    made_by: dict[str, Any] = {"cuts": cut, "overwrite": overwrite}
    if result is not None:
        edited = not np.array_equal(mask, result.mask)
        made_by.update(card=result.model, edited=edited)
    written = written_part(mask, path, {"labels": labels})
    io.save_mask(written, like=volume, path=path, mint_uids=mint_uids, **made_by)
    if report:
        write_report(mask, volume, path, io.report_path(path), cuts=cut, overwrite=overwrite)
    if not voxels and recorded_sha256(read_sidecar(record) or {}):
        return path  # it is that of the mask beside, by whose hash it is known
    if result is not None:
        now = describe(volume, result, mask=mask, strokes=strokes, cuts=cut)
    elif earlier is not None:
        now = edited_record(earlier, mask, volume, cuts, made=made, strokes=strokes)
        same = made is None or np.array_equal(made, mask)
        if same and measured(now) == measured(earlier):
            return path
    else:
        if others:
            record.unlink()
        return path
    sha256 = {"mask_sha256": mask_sha256(path)} if voxels else {}
    write_sidecar(record, {**now, **sha256}, overwrite=True)
    return path


def _record_of(path: str | Path) -> str:
    return str(sidecar_path(Path(path)).absolute())


def _less(counts: tuple[int, int], told: tuple[int, int]) -> tuple[int, int]:
    return max(0, counts[0] - told[0]), max(0, counts[1] - told[1])


def _check_record(record: Path, overwrite: bool) -> None:
    """Refuse to replace what is no record, or is one of another CT, unless told to."""
    if record.exists() and not is_sidecar(record):
        raise PancreasSegError(
            f"'{record.name}' lies where the record of this mask has to go, and is none; choose "
            "another name or folder."
        )
    # A record of this CT is that of the same mask in another format, and made anew.
    check_target(record, overwrite=overwrite)


def _holds_voxels(path: str | Path) -> bool:
    """Whether a mask can be had back from a file: not from a surface, nor from a table."""
    return suffix_of(Path(path)).lower() in (*VOLUME, *DICOM)
