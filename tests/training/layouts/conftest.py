"""Small CTs with masks, made up and real, and what writes them in every layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dicom_series import write_series
from PIL import Image

from napari_pancreas_seg.io import save_ct, save_mask
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout
from napari_pancreas_seg.volume import CTVolume

NUMBERS = ("0005", "0012", "0045")


@dataclass(frozen=True)
class Material:
    """A CT with the mask of its gland, and the number of its patient."""

    number: str
    volume: CTVolume
    mask: npt.NDArray[np.uint8]

    @property
    def scanned(self) -> tuple[npt.NDArray, npt.NDArray]:
        """HU in the order column, row, slice, and the affine of that order."""
        affine = self.volume.grid.affine[:, [2, 1, 0, 3]]
        return self.volume.hu.transpose(2, 1, 0), affine


@pytest.fixture(scope="session")
def phantoms(drawn: Callable) -> list[Material]:
    """Three small phantoms, the last of which lies obliquely."""
    made = []
    for seed, number in enumerate(NUMBERS):
        phantom = drawn(seed, (5.0, 3.0, 3.0), (34, 80, 100))
        volume = phantom.volume
        if seed < 2:
            affine = np.diag([-3.0, -3.0, 5.0, 1.0])
            volume = CTVolume.from_source_array(volume.hu.transpose(2, 1, 0), affine)
        made.append(Material(number, volume, phantom.mask))
    return made


@pytest.fixture(scope="session")
def real(shared: Path) -> list[Material]:
    """Slices of three patients of NIH Pancreas-CT, stacked, every second pixel."""
    if not (shared / "pancreas-ct" / "manifest.csv").is_file():
        pytest.skip("no slices in ../shared/pancreas-ct")
    made = []
    for number in NUMBERS:
        records = [r for r in read_slice_layout(shared / "pancreas-ct") if r.patient == number]
        # The slices' index grows towards the feet.
        records.sort(key=lambda r: -int(r.name.rpartition("slice")[2]))
        loaded = [record.load() for record in records if record.margin_px == 0][:8]
        hu = np.concatenate([volume.hu for volume, _ in loaded])[:, ::2, ::2]
        mask = np.concatenate([mask for _, mask in loaded])[:, ::2, ::2]
        affine = np.diag([-1.6, -1.6, 5.0, 1.0])
        made.append(
            Material(number, CTVolume.from_source_array(hu.transpose(2, 1, 0), affine), mask)
        )
    return made


@pytest.fixture(params=["phantoms", "real"])
def material(request: pytest.FixtureRequest) -> list[Material]:
    """CTs with masks: made up, and where they are at hand real ones."""
    return request.getfixturevalue(request.param)


def _write(ct: Path, mask: Path, item: Material) -> None:
    save_ct(item.volume, ct)
    save_mask(item.mask, item.volume, mask)


def write_nih(root: Path, items: Sequence[Material], flips: Sequence[int] = (1,)) -> None:
    """As TCIA's downloader leaves it; the labels' axes are turned, and their headers wrong."""
    for item in items:
        series = root / "manifest-1" / "Pancreas-CT" / f"PANCREAS_{item.number}" / "study" / "CT"
        hu, affine = item.scanned
        write_series(series, hu, affine)
        turned = np.flip(item.mask.transpose(2, 1, 0), flips)
        like = CTVolume.from_source_array(turned.astype(np.int16), np.diag([0.7, 0.7, 1.0, 1.0]))
        folder = root / "TCIA_pancreas_labels-02-05-2017"
        save_mask(like.hu.astype(np.uint8), like, folder / f"label{item.number}.nii.gz")


def write_decathlon(root: Path, items: Sequence[Material]) -> None:
    """With the files that macOS leaves beside every file."""
    for item in items:
        name = f"pancreas_{item.number}.nii.gz"
        _write(root / "imagesTr" / name, root / "labelsTr" / name, item)
        (root / "imagesTr" / f"._{name}").write_bytes(b"\0\5\26\7")
        (root / "labelsTr" / f"._{name}").write_bytes(b"\0\5\26\7")
    (root / "imagesTs").mkdir()
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    about = {"name": "Pancreas", "modality": {"0": "CT"}, "labels": labels}
    (root / "dataset.json").write_text(json.dumps(about))


def write_nnunet(root: Path, items: Sequence[Material]) -> None:
    """Version 2."""
    for item in items:
        name = f"case_{item.number}"
        _write(
            root / "imagesTr" / f"{name}_0000.nii.gz", root / "labelsTr" / f"{name}.nii.gz", item
        )
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1},
        "numTraining": len(items),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))


def write_totalsegmentator(root: Path, items: Sequence[Material]) -> None:
    """Two classes; the split of its table is not ours."""
    for item in items:
        folder = root / f"s{item.number}"
        _write(folder / "ct.nii.gz", folder / "segmentations" / "pancreas.nii.gz", item)
        bone = (item.volume.hu > 200).astype(np.uint8)
        save_mask(bone, item.volume, folder / "segmentations" / "vertebrae.nii.gz")
    (root / "meta.csv").write_text("image_id;split\ns0005;test\n")


def write_pairs(root: Path, items: Sequence[Material]) -> None:
    """Side by side."""
    for item in items:
        name = f"PANCREAS_{item.number}"
        _write(root / f"{name}_ct.nii.gz", root / f"{name}_pancreas.nii.gz", item)


def write_folders(root: Path, items: Sequence[Material]) -> None:
    """Pairs in two folders, in formats of their own."""
    for item in items:
        name = f"PANCREAS_{item.number}"
        _write(root / "images" / f"{name}.nrrd", root / "masks" / f"{name}.nii.gz", item)


def write_folder_a_case(root: Path, items: Sequence[Material]) -> None:
    """Pairs in a folder each."""
    for item in items:
        folder = root / f"PANCREAS_{item.number}"
        _write(folder / "image.nii.gz", folder / "mask.nii.gz", item)


def write_dicom_pairs(root: Path, items: Sequence[Material]) -> None:
    """DICOM series with DICOM-SEG, whose empty slices are left out."""
    from napari_pancreas_seg.io import load_ct

    for item in items:
        series = root / f"PANCREAS_{item.number}"
        write_series(series, *item.scanned)
        save_mask(item.mask, load_ct(series), root / f"PANCREAS_{item.number}_seg.dcm")


def write_corrections(root: Path, items: Sequence[Material]) -> None:
    """The first with two reviewed slices, the others with all."""
    for item in items:
        folder = root / f"case-{item.number}"
        _write(folder / "ct.nii.gz", folder / "mask.nii.gz", item)
        reviewed = [4, 2] if item is items[0] else None
        about = {"reviewed": reviewed, "patient": item.number, "ct": "", "added": "2026-11-01"}
        (folder / "case.json").write_text(json.dumps(about))
    (root / "corrections.json").write_text('{"format": 1, "labels": {"pancreas": 1}}')


def write_slices(root: Path, items: Sequence[Material]) -> None:
    """Slices with gland, as pictures."""
    rows = []
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for item in items:
        for z in np.flatnonzero(item.mask.any(axis=(1, 2))):
            name = f"PANCREAS_{item.number}_slice{z}"
            grey = np.clip(item.volume.hu[z], 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(root / "images" / f"{name}.jpg")
            Image.fromarray(item.mask[z] > 0).save(root / "masks" / f"{name}.png")
            rows.append({"name": name, "patient": item.number, "crop_margin_px": "0"})
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


Writer = Callable[[Path, Sequence[Material]], None]

WRITERS: dict[str, tuple[str, Writer]] = {
    "nih": ("nih", write_nih),
    "decathlon": ("decathlon", write_decathlon),
    "nnunet": ("nnunet", write_nnunet),
    "totalsegmentator": ("totalsegmentator", write_totalsegmentator),
    "pairs": ("pairs", write_pairs),
    "pairs in two folders": ("pairs", write_folders),
    "pairs in a folder each": ("pairs", write_folder_a_case),
    "pairs of DICOM": ("pairs", write_dicom_pairs),
    "corrections": ("corrections", write_corrections),
    "slices": ("slices", write_slices),
}


@pytest.fixture(scope="session")
def writers() -> Mapping[str, tuple[str, Writer]]:
    """For each way to lay out a data set: name of the layout, and what writes it."""
    return WRITERS
