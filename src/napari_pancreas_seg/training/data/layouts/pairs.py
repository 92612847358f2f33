"""A folder of pairs: CTs and masks side by side, in two folders, or in a folder for each case."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from napari_pancreas_seg.cohort.cases import find_inputs, is_ct
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.saving import read_sidecar, same_mask, sidecar_path
from napari_pancreas_seg.io import is_dicom, stem
from napari_pancreas_seg.io.dicom.read import is_segmentation
from napari_pancreas_seg.io.files import listed, read_json
from napari_pancreas_seg.training.data.layouts.cases import (
    PANCREAS,
    MaskFile,
    VolumeCase,
    patient_of,
)
from napari_pancreas_seg.training.data.layouts.decathlon import is_described, label_names
from napari_pancreas_seg.training.data.layouts.listing import (
    DataSetLayout,
    Listing,
    folders_in,
    left_out,
    volumes_in,
)

MEANINGS = "labels.json"
"""Beside masks that hold several classes, in the root: ``{"pancreas": 1, "tumour": 2}``."""

_ENDS = re.compile(r"(.+?)[-_. ](pancreas|mask|seg|segmentation|labels?|gt)(\.seg)?", re.I)
"""Ends of the names of masks; 3D Slicer adds the last to all."""

_WHOLE = re.compile(r"pancreas|mask|seg|segmentation|labels?|gt", re.IGNORECASE)
"""Names of a mask in a folder of its case."""

_BEGINS = re.compile(r"(ct|im|img|image|volume|scan|mask|label|seg|segmentation)[-_]?(?=\d)", re.I)
"""Begins of names that differ between a CT and its mask: ``img0001`` and ``label0001``."""

_MAP = re.compile(r".+_(probability|attention_\d+)")
"""Ends of the names that we give to maps."""

_CT_FOLDERS = {"images", "image", "imgs", "cts", "ct", "scans", "volumes", "imagestr"}
_MASK_FOLDERS = {"masks", "mask", "labels", "label", "segmentations", "references", "labelstr"}


def match_references(cts: Path, masks: Path) -> list[tuple[Path, str, Path | PancreasSegError]]:
    """Find the CT of every reference mask by name; where there is none or several, say so.

    ``NAME.nii.gz``, ``NAME_pancreas.nii.gz``, ``NAME_mask.nii.gz`` and the like belong to the CT
    ``NAME.nii.gz``, or else to the one CT whose name begins with ``NAME_`` and that has no mask of
    its own name. Each mask comes with its CT's name and its CT; without one, with its own name and
    why.
    """
    images = _images(cts)
    pairs: list[tuple[Path, str, Path | PancreasSegError]] = []
    drawn = _there(masks, _masks)
    for name, found in _cts_of(drawn, images).items():
        mask = drawn[name]
        if len(found) == 1:
            pairs.append((mask, found[0], images[found[0]]))
            continue
        names = f": {', '.join(images[n].name for n in found)}" if found else ""
        why = PancreasSegError(
            f"{len(found) or 'No'} CTs in {cts} belong to the reference {mask.name}{names}; "
            "give each the name of its CT."
        )
        pairs.append((mask, name, why))
    errors = [ct for *_, ct in pairs if isinstance(ct, PancreasSegError)]
    if len(errors) == len(pairs):
        raise errors[0]
    return pairs


def _images(folder: Path) -> dict[str, Path]:
    """CTs by name: files, or else DICOM series, or those of a folder for each patient."""
    if folder.is_dir() and not volumes_in(folder):
        with contextlib.suppress(PancreasSegError):
            return {name: path for path, name in find_inputs([folder]).items()}
    return _there(folder, volumes_in)


def _cts_of(masks: Mapping[str, Path], cts: Mapping[str, Path]) -> dict[str, list[str]]:
    """Names of the CTs that each mask may belong to, by its name; several where it is not clear."""
    own = {path.resolve(): name for name, path in cts.items()}
    same = {mask: own.get(path.resolve()) for mask, path in masks.items()}
    exact = {m: [n for n in (m, _base(m)) if n in cts and n != same[m]][:1] for m in masks}
    taken = {name for names in exact.values() for name in names}
    found = {m: names for m, names in exact.items() if same[m] not in taken}  # no CT is a mask
    for mask in [mask for mask, names in found.items() if not names]:
        free, base = sorted(cts.keys() - taken - {same[mask]}), _base(mask)
        begun = [name for name in free if name.startswith(f"{base}_")]
        found[mask] = begun or [n for n in free if _BEGINS.sub("", n) == _BEGINS.sub("", base)]
    return found


def _base(mask: str) -> str:
    ended = _ENDS.fullmatch(mask)
    return ended[1] if ended else mask


def notes_of_pairs(pairs: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """What to look at of masks, each with its CT's name if that was what paired them."""
    odd, made = [], []
    for mask, ct in pairs:
        base = _base(stem(mask))
        known = (base, stem(mask))
        if ct.startswith(f"{base}_") and case_of(ct.removesuffix("_0000")) not in known:
            odd.append(f"{mask.name} ({ct})")
        record = read_sidecar(sidecar_path(mask)) or {}
        edits = record.get("edits", {})
        made_so = isinstance(edits, dict) and not edits.get("slices")
        if record.get("model") and made_so and same_mask(mask, record):
            made.append(mask.name)
    notes = left_out("Paired with the one CT whose name only begins alike", odd)
    return notes + left_out("Masks that this program made and nobody corrected", made)


def _there(folder: Path, find: Callable[[Path], dict[str, Path]]) -> dict[str, Path]:
    if not folder.is_dir():
        raise PancreasSegError(f"{folder} is not a folder that can be read.")
    found = find(folder)
    if not found:
        raise PancreasSegError(f"There are no files of a known format in {folder}.")
    return found


def _fits(folder: Path) -> bool:
    if is_described(folder) or (folder / "corrections.json").is_file():
        return False
    return bool(_read(folder).cases)


def meanings_in(folder: Path) -> Mapping[int, str] | str:
    """Class of each value that `MEANINGS` gives, or without it of the one value of a mask."""
    file = folder / MEANINGS
    return label_names({"labels": read_json(file)}, MEANINGS) if file.is_file() else PANCREAS


def _read(folder: Path) -> Listing:
    names = meanings_in(folder)
    classes = (names,) if isinstance(names, str) else tuple(names[v] for v in sorted(names))
    apart = _two_folders(folder)
    if apart is not None:
        return _paired(_cts(apart[0]), _masks(apart[1]), names, classes)
    masks = {n: p for n, p in _masks(folder).items() if _ENDS.fullmatch(n)}
    if masks:
        cts = {n: p for n, p in _cts(folder).items() if n not in masks and not _MAP.fullmatch(n)}
        return _paired(cts, masks, names, classes)
    return _folder_a_case(folder, names, classes)


def case_of(ct: str) -> str:
    """Name of the case by the CT's name: ``a`` where that is ``a_ct``."""
    return re.sub(r"[-_]ct$", "", ct, flags=re.I)


def _two_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the CTs and of the masks, if there is one of each."""
    found = [
        [item for item in folders_in(folder) if item.name.lower() in names]
        for names in (_CT_FOLDERS, _MASK_FOLDERS)
    ]
    return (found[0][0], found[1][0]) if [len(some) for some in found] == [1, 1] else None


def _cts(folder: Path) -> dict[str, Path]:
    """Volumes, folders that hold DICOM files and zips of such, by name."""
    found = volumes_in(folder)
    for item in (folder / entry.name for entry in listed(folder)):
        if (item.is_dir() or item.suffix.lower() == ".zip") and is_ct(item):
            found.setdefault(stem(item), item)
    return found


def _masks(folder: Path) -> dict[str, Path]:
    """Volumes and DICOM segmentations, by name; no maps of ours."""
    found = {name: path for name, path in volumes_in(folder).items() if not _MAP.fullmatch(name)}
    for item in (folder / entry.name for entry in listed(folder)):
        if item.suffix.lower() == ".dcm" and is_segmentation(item):
            found.setdefault(stem(item), item)
    return found


def _paired(
    cts: Mapping[str, Path],
    masks: Mapping[str, Path],
    names: Mapping[int, str] | str,
    classes: tuple[str, ...],
) -> Listing:
    owners: dict[str, list[str]] = {}
    without: list[str] = []
    unclear: list[str] = []
    for mask, found in _cts_of(masks, cts).items():
        if len(found) == 1:
            owners.setdefault(found[0], []).append(mask)
        else:
            (unclear if found else without).append(masks[mask].name)
    cases = tuple(
        _case(case_of(ct), cts[ct], masks[drawn[0]], names)
        for ct, drawn in owners.items()
        if len(drawn) == 1
    )
    pairs = [(masks[drawn[0]], ct) for ct, drawn in owners.items() if len(drawn) == 1]
    several = [cts[ct].name for ct, drawn in owners.items() if len(drawn) > 1]
    notes = left_out("CTs without a mask", [cts[name].name for name in cts.keys() - owners])
    notes += left_out("Masks without a CT", without)
    notes += left_out("Masks that could belong to several CTs", unclear)
    notes += left_out("CTs with several masks", several) + notes_of_pairs(pairs)
    return Listing(classes, cases, notes)


def _folder_a_case(
    folder: Path, names: Mapping[int, str] | str, classes: tuple[str, ...]
) -> Listing:
    cases: list[VolumeCase] = []
    unclear: list[str] = []
    folders = folders_in(folder)
    for item in folders:
        drawn = {n: p for n, p in _masks(item).items() if _WHOLE.fullmatch(n) or _ENDS.fullmatch(n)}
        if not drawn:
            continue
        cts = [p for n, p in _cts(item).items() if n not in drawn and not _MAP.fullmatch(n)]
        if not cts and is_dicom(item, below=False):
            cts = [item]
        if len(drawn) == len(cts) == 1:
            (mask,) = drawn.values()
            cases.append(_case(item.name, cts[0], mask, names))
        else:
            unclear.append(item.name)
    if 2 * len(cases) < len(folders):
        cases = []  # a pair somewhere below does not make this a data set
    notes = left_out("Folders without one CT and one mask", unclear)
    notes += notes_of_pairs((case.masks[0].path, "") for case in cases)
    return Listing(classes, tuple(cases), notes)


def _case(name: str, ct: Path, mask: Path, names: Mapping[int, str] | str) -> VolumeCase:
    return VolumeCase(name, patient_of(name), ct, (MaskFile(mask, names),))


LAYOUT = DataSetLayout(
    "pairs",
    "CTs with masks: NAME.nii.gz beside NAME_pancreas, NAME_mask, NAME_seg or NAME_label; images/ "
    "with masks/ or labels/; or a folder a case with one CT and one mask",
    _fits,
    _read,
)
