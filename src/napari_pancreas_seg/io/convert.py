"""From a file of one format to a file of another, with nothing moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.io.dicom.report import write_report
from napari_pancreas_seg.io.dicom.uids import mint_uids as complete_uids
from napari_pancreas_seg.io.files import check_target, same_file
from napari_pancreas_seg.io.load import check_ct, load_ct, sniff
from napari_pancreas_seg.io.organs import only_organ
from napari_pancreas_seg.io.save import report_path, save_ct, save_map, save_mask
from napari_pancreas_seg.io.suffixes import CSV, DICOM, SURFACE
from napari_pancreas_seg.volume import CTVolume, OnSourceGrid


def convert(
    path: str | Path,
    target: str | Path,
    *,
    ct: str | Path | None = None,
    series: str | int | None = None,
    overwrite: bool = False,
    mint_uids: bool = False,
    report: bool = False,
    label: int | Sequence[int] | None = None,
    force: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Write what a file holds, a CT, a mask or a map, to another one; of a mask `label`."""
    path, target = Path(path), Path(target)
    if same_file(path, target):
        raise PancreasSegError(
            f"'{target.name}' is the file to be converted and is never overwritten; choose "
            "another name."
        )
    targets = [target, report_path(target)] if report else [target]
    for each in targets:
        check_target(each, overwrite=overwrite)
    if report and ct is None:
        raise PancreasSegError("A report needs the CT of the mask; give it with --ct.")
    kind, volume, _ = sniff(path, series=None if ct else series)
    if ct is not None and kind != "mask":
        raise PancreasSegError(f"'{path.name}' is not a mask, so it needs no CT; leave --ct out.")
    if label is not None and kind != "mask":
        raise PancreasSegError(f"'{path.name}' is not a mask and has no labels; leave --label out.")
    if isinstance(volume, CTVolume):
        volume = check_ct(volume, force=force)
        save_ct(volume, target, overwrite=overwrite)
        return kind, volume.notes
    if kind == "map":
        save_map(volume, volume, target, overwrite=overwrite)
        return kind, volume.notes
    like: OnSourceGrid = volume
    mask = volume.values
    if label is not None or target.name.lower().endswith((*CSV, *SURFACE)):
        mask = only_organ(mask, path.name, label)
    if ct is not None:
        like = whole = load_ct(ct, series=series, force=force)
        advice = "give the CT that it was drawn on"
        mask = bring_onto(whole, mask, volume, path.name, advice)
        if mint_uids and target.name.lower().endswith(DICOM):
            like = whole = complete_uids(whole)
    save_mask(mask, like, target, overwrite=overwrite)
    if report:
        write_report(mask, whole, target, targets[1], overwrite=overwrite)
    return kind, tuple(dict.fromkeys((*volume.notes, *like.notes)))
