"""Find the CTs in files and folders, and decide where their results go."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import saving
from napari_pancreas_seg.io import MASK_SUFFIXES, SUFFIXES, is_dicom, stem, suffix_of
from napari_pancreas_seg.io.dicom.files import is_dicom_file, is_dicom_folder
from napari_pancreas_seg.io.dicom.read import may_be_slice, named_after, one_of_each_series
from napari_pancreas_seg.io.files import check_folder, listed
from napari_pancreas_seg.io.suffixes import list_suffixes

logger = logging.getLogger(__name__)

TABLE = "cohort.csv"
"""Name of the table of all cases in the folder with their masks."""

PAGE = "index.html"
"""Name of the quality page there."""

_OURS = re.compile(r"_(mask|mask_report|probability|attention_\d+)(\.raw)?$")
"""Endings of the names of our own files, which are not CTs."""

_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,5}")
"""Endings that mean a file: a new folder is not called ``mask.tif``."""

_CT_NAME = re.compile(r"(.+[-_. ])?(ct|image|imaging|img|scan|volume)", re.IGNORECASE)
"""Usual names of the CT in a patient's folder with several volumes."""

_MASK_NAME = re.compile(
    r"(.+[-_. ])?(pancreas|masks?|seg|segmentations?|labels?|gt|reference)", re.IGNORECASE
)
"""Usual names of masks beside it."""

_MASK_FOLDERS = {
    *("derivatives", "labels", "labelstr", "labelsts", "masks", "references", "segmentations"),
}

_DEEP = 3
"""How many folders down from a patient's folder its CT may lie, as in ``sub-01/ses-1/ct``."""


@dataclass(frozen=True)
class Case:
    """A CT to segment, and where its files go; `maps` begins the maps' names."""

    source: Path
    mask: Path
    maps: str
    series: str | None = None
    shown: str = ""
    force: bool = False

    @property
    def name(self) -> str:
        """Name in messages and tables."""
        return self.shown or self.source.name

    @property
    def sidecar(self) -> Path:
        """Provenance and measurements."""
        return saving.sidecar_path(self.mask)

    @property
    def probability(self) -> Path:
        """The probability map."""
        return saving.probability_path(self.mask, self.maps)

    def attention(self, number: int) -> Path:
        """Attention coefficients of a gate, 1 for the finest."""
        return saving.attention_path(self.mask, self.maps, number)


def find_inputs(
    paths: Sequence[str | Path], tell: Callable[[str], object] = logger.debug
) -> dict[Path, str]:
    """List the CTs in files and folders, each once and with the name of its case.

    A file or a folder of DICOM files is a CT. Any other folder gives its volumes, DICOM folders and
    zips, and the CTs in patients' folders; no DICOM objects without slices, and no files of an
    earlier run. `tell` is told of folders without any.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for path in map(Path, paths):
        path = path if path.name else path.resolve()  # "." has no name to give to a mask
        for item, name in (_in_folder(path, tell) if path.is_dir() else {path: stem(path)}).items():
            found.setdefault(item.absolute(), (item, name))
    inputs = dict(found.values())
    return _with_distinct_names(_one_of_each_folder(inputs, set(map(Path, paths))))


def _one_of_each_folder(inputs: dict[Path, str], given: set[Path]) -> dict[Path, str]:
    """Name a DICOM file that was given after its folder if it stands for all of that, once."""
    named: dict[Path, str] = {}
    folders = {path.absolute() for path in inputs if path.is_dir()}
    for path in one_of_each_series(inputs):
        if path in given and path.absolute().parent in folders and is_dicom_file(path):
            continue
        whole = named_after(path) if path in given else path
        named[path] = inputs[path] if whole is path else stem(whole)
        folders |= {whole} - {path}
    return named


def _with_distinct_names(inputs: dict[Path, str]) -> dict[Path, str]:
    """Name CTs after their folders where names are the same, and those that lie beside them."""
    times = Counter(name.lower() for name in inputs.values())
    parents = {path: path.absolute().parent for path in inputs}
    shared = {parents[path] for path, name in inputs.items() if times[name.lower()] > 1}
    folders = {path: parent.parts[1:] for path, parent in parents.items() if parent in shared}
    for n in range(1, 1 + max(map(len, folders.values()), default=0)):
        names = {path: _in_folders(parts[-n:], inputs[path]) for path, parts in folders.items()}
        if len({name.lower() for name in names.values()}) == len(names):
            return inputs | names
    return inputs


def _in_folders(folders: Sequence[str], name: str) -> str:
    """A CT's name after its folders, with its own unless that says no more than they do."""
    if name in folders or ((usual := _CT_NAME.fullmatch(name)) and not usual[1]):
        return "_".join(folders) or name
    begun = bool(folders) and name.startswith(f"{folders[-1]}_")
    return "_".join((*(folders[:-1] if begun else folders), name))


def is_ours(path: Path) -> bool:
    """Whether a file has one of the names that we give to our own files."""
    name = path.name.removesuffix(suffix_of(path) or path.suffix)
    return path.name in (TABLE, PAGE) or _OURS.search(name) is not None


def plan(
    inputs: Mapping[Path, str],
    output: str | Path,
    suffix: str | None = None,
    series: str | None = None,
    force: bool = False,
) -> list[Case]:
    """List the cases with the paths of their files: `output` is a folder, or a file for one CT."""
    output = Path(output)
    is_file = output.name.lower().endswith(MASK_SUFFIXES) and not output.is_dir()
    if is_file and suffix is not None:
        raise PancreasSegError(
            f"'{output.name}' is a file, whose name says its format; leave --format out, or give a "
            "folder."
        )
    if is_file and len(inputs) > 1:
        raise PancreasSegError(
            f"'{output.name}' is one file for {len(inputs)} CTs; give a folder as output."
        )
    if not is_file and not output.is_dir() and _ENDING.fullmatch(output.suffix.lower()):
        raise PancreasSegError(
            f"'{output.name}' is of a format that cannot be written; its name must end in "
            f"{list_suffixes(MASK_SUFFIXES)}, or give a folder that is there."
        )
    cases = []
    for source, name in inputs.items():
        mask = output if is_file else output / f"{name}_mask{suffix or '.nii.gz'}"
        shown = source.name if is_file or name == stem(source) else name
        cases.append(Case(source, mask, stem(output) if is_file else name, series, shown, force))
    seen: dict[str, Path] = {}
    for case in cases:
        other = seen.setdefault(case.mask.name.lower(), case.source)
        if other is not case.source:
            raise PancreasSegError(
                f"'{other}' and '{case.source}' would both give '{case.mask.name}'; rename one of "
                "them or give them different output folders."
            )
    check_folder(output.parent if is_file else output)
    return cases


def find_cases(commands: Sequence[Sequence[Path]], output: Path) -> list[Case]:
    """List the cases of commands with one `output`: of one name, the last CT and youngest mask."""
    cases: dict[str, Case] = {}
    for paths in commands:
        cases |= {case.maps: case for case in plan(find_inputs(paths), output)}
    masks = [m for m in output.glob("*_mask.*") if suffix_of(m).lower() in (*SUFFIXES, ".dcm")]
    masks = [mask for mask in masks if mask.exists()]  # no link that leads nowhere
    there = {stem(mask): mask for mask in sorted(masks, key=lambda mask: mask.stat().st_mtime)}
    return [replace(case, mask=there.get(stem(case.mask), case.mask)) for case in cases.values()]


def _in_folder(folder: Path, tell: Callable[[str], object]) -> dict[Path, str]:
    items = [folder / item.name for item in listed(folder)]
    if _holds_slices(folder, below=False):
        _tell_hidden(tell, folder, [item for item in items if _is_volume(item)])
        return {folder: stem(folder)}
    found = _without_masks({item: stem(item) for item in items if is_ct(item)})
    among_volumes = any(_is_volume(item) for item in found)
    series = [item for item in found if item.is_dir()]
    beside = [item / entry.name for item in series for entry in listed(item)]
    without, hidden = list[str](), [item for item in beside if _is_volume(item)]
    for item in items:
        if item.is_dir() and item not in found and item.name.lower() not in _MASK_FOLDERS:
            new = _of_patient(item, hidden)
            if among_volumes:  # else crops, copies, maps
                usual = _called_ct(new)
                hidden += [ct for ct in new if ct not in usual]
                new = {ct: new[ct] for ct in usual}
            elif not new and not (item / TABLE).exists():
                without.append(item.name)
            found |= new
    if not found:
        raise PancreasSegError(
            f"The folder '{folder}' holds no CT (.nii.gz and so on, or DICOM), and no folder for "
            "each patient with one; give another one, or the files themselves."
        )
    _tell_left_out(tell, f"Folders in '{folder.name}' without a CT", without)
    _tell_hidden(tell, folder, hidden)
    if len(found) == 1 and any(item.name.upper() == "DICOMDIR" for item in items):
        # On every CD the folder of the first patient has the same name, such as PT000000.
        return {folder: stem(folder)}
    return {item: found[item] for item in sorted(found)}


def _without_masks(found: Mapping[Path, str]) -> dict[Path, str]:
    """Drop volumes that are called a mask of one that lies beside them."""
    named = (_CT_NAME.fullmatch(name) for name in found.values())
    cts = {*found.values(), *(ct[1][:-1] for ct in named if ct and ct[1])}
    masks = ((item, _MASK_NAME.fullmatch(name)) for item, name in found.items())
    own = {item for item, mask in masks if mask and mask[1] and mask[1][:-1] in cts}
    return {item: name for item, name in found.items() if item not in own or item.is_dir()}


def _tell_left_out(tell: Callable[[str], object], what: str, names: Sequence[str]) -> None:
    if names:
        few = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        tell(f"{what} are left out ({len(names)}): {few}")


def _tell_hidden(tell: Callable[[str], object], folder: Path, hidden: Sequence[Path]) -> None:
    names = [item.relative_to(folder).as_posix() for item in hidden]
    where = f"in '{folder.name}' beside DICOM slices or in folders below others"
    _tell_left_out(tell, f"Volumes {where}", names)


def _of_patient(folder: Path, hidden: list[Path]) -> dict[Path, str]:
    """The CT of a patient, named after the folder; of several, their own names are added."""
    try:
        found = _below(folder, _DEEP, hidden)
    except PancreasSegError:
        return {folder: folder.name}  # it fails as a case, and stops no other
    if len(found) == 1:
        return {found[0]: folder.name}
    return {
        item: "_".join((*item.parent.relative_to(folder.parent).parts, stem(item)))
        for item in found
    }


def _below(folder: Path, depth: int, hidden: list[Path]) -> list[Path]:
    """CTs in a folder, or in those below it; not its masks. Adds what others hide to `hidden`."""
    names = [item.name for item in listed(folder)]
    items = [folder / name for name in names if name.lower() not in _MASK_FOLDERS]
    found = [item for item in items if not item.is_dir() and is_ct(item)]
    found = [item for item in found if not _MASK_NAME.fullmatch(stem(item))]
    named = _called_ct(found)
    deeper: list[Path] = []
    for item in items if depth else ():
        # Beside its CT, a folder that cannot be listed costs the patient nothing.
        with suppress(PancreasSegError) if named else nullcontext():
            deeper += _below(item, depth - 1, hidden) if item.is_dir() else ()
    usual = _called_ct(deeper)
    if named:
        hidden += usual
        return named if len(named) == 1 else found
    # Beside other volumes, such as a topogram, only what is called a CT.
    kept = (usual or found) if found else deeper
    hidden += [ct for ct in deeper if ct not in kept]
    return kept


def _called_ct(items: Iterable[Path]) -> list[Path]:
    return [item for item in items if _CT_NAME.fullmatch(stem(item))]


def is_ct(item: Path) -> bool:
    """Whether a file or folder is taken for a CT."""
    if item.is_dir():
        return _holds_slices(item)
    return _is_volume(item) or (item.suffix.lower() == ".zip" and is_dicom(item))


def _holds_slices(folder: Path, *, below: bool = True) -> bool:
    """Whether a folder, or one below it, holds DICOM files that may be slices and are not ours."""
    return is_dicom_folder(
        folder, below=below, counts=lambda file: not is_ours(file) and may_be_slice(file)
    )


def _is_volume(item: Path) -> bool:
    return item.name.lower().endswith(SUFFIXES) and not is_ours(item)
