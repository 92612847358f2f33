"""From a file of one format to a file of another, with nothing moved."""

from __future__ import annotations

from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.io.files import check_target, same_file
from napari_pancreas_seg.io.load import check_ct, load_ct, sniff
from napari_pancreas_seg.io.save import save_ct, save_map, save_mask
from napari_pancreas_seg.volume import CTVolume, OnSourceGrid

__all__ = ["convert"]


def convert(
    path: str | Path,
    target: str | Path,
    *,
    ct: str | Path | None = None,
    series: str | int | None = None,
    overwrite: bool = False,
    mint_uids: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Write what a file holds, a CT, a mask or a map, to another one.

    Parameters
    ----------
    path : str or Path
        A file that can be read, or the folder of a DICOM series.
    target : str or Path
        Where to write; its ending says the format.
    ct : str or Path, optional
        The CT that a mask was drawn on: a DICOM-SEG refers to it, and a table has its HU.
    series : str or int, optional
        Which series of several in one DICOM folder.
    overwrite : bool
        Whether an existing file may be replaced. What is read never is.
    mint_uids : bool
        Whether a DICOM series without UIDs may be given some.

    Returns
    -------
    kind : str
        What it was: ``"CT"``, ``"mask"`` or ``"map"``.
    notes : tuple of str
        Notes for the user.

    Raises
    ------
    PancreasSegError
        If it cannot be read or written, or the mask does not lie on the grid of the CT.
    """
    path, target = Path(path), Path(target)
    if same_file(path, target):
        raise PancreasSegError(
            f"'{target.name}' is the file to be converted and is never overwritten; choose "
            "another name."
        )
    check_target(target, overwrite=overwrite)
    kind, volume, _ = sniff(path, series=None if ct else series)
    if ct is not None and kind != "mask":
        raise PancreasSegError(f"'{path.name}' is no mask, so it needs no CT; leave --ct out.")
    if isinstance(volume, CTVolume):
        volume = check_ct(volume)
        save_ct(volume, target, overwrite=overwrite)
        return kind, volume.notes
    if kind == "map":
        save_map(volume, volume, target, overwrite=overwrite)
        return kind, volume.notes
    like: OnSourceGrid = volume
    mask = volume.values
    if ct is not None:
        like = whole = load_ct(ct, series=series)
        advice = "give the CT that it was drawn on"
        mask = bring_onto(whole, mask, volume.grid, path.name, advice)
    save_mask(mask, like, target, overwrite=overwrite, mint_uids=mint_uids)
    return kind, like.notes
