"""How well each measure repeats: two models, two seeds, and the outline moved by 1 mm.

    python benchmarks/repeatability.py ../shared --models OLD benchmarks/models/fold0 --seeds A B

Two models segment the slices of patients that neither has learnt from, each patient's as one stack
at its own spacing, and each mask is measured; so do two networks trained alike but for the seed.
Manual masks (whole glands without their CTs, the same stacks, slices in unclipped HU) are measured
as they are, shrunk and grown by 1 mm. Writes the table into docs/measures.md, and the limits of
repeatability, which follow-ups use, into src/napari_pancreas_seg/data/repeatability.json.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.stats import spearmanr

import napari_pancreas_seg as nps
from napari_pancreas_seg.mask.centreline import on_cubes, surface_cm2
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout
from napari_pancreas_seg.training.judge.seen import patients_seen
from napari_pancreas_seg.volume import CTVolume, bounding_box

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "measures.md"
LIMITS = ROOT / "src" / "napari_pancreas_seg" / "data" / "repeatability.json"
MARKS = "<!-- repeatability: begin -->", "<!-- repeatability: end -->"

RELATIVE = (
    *("volume_ml", "length_mm", "calibre_mm", "head_ml", "body_ml", "tail_ml"),
    *("diameter_3d_mm", "diameter_in_plane_mm", "surface_cm2", "lobularity"),
)
"""Measures whose differences grow with their size: in percent of the mean."""
ABSOLUTE = {"mean_hu": 1, "sd_hu": 1, "eroded_mean_hu": 1, "eroded_sd_hu": 1, "fat_fraction": 3}
"""The others, in their own unit, and how many decimals are shown."""
NOT_OFFERED = ("lobularity",)

Values = dict[str, float | None]


def measured(mask: np.ndarray, ct: CTVolume) -> Values:
    """All measures of a mask, and one that was tried and is not offered."""
    found = nps.measure(mask, ct)
    cubes, _ = on_cubes(mask, ct.grid)
    padded = np.pad(cubes, 6)
    grown = ndimage.distance_transform_edt(~padded) <= 2.5  # closed by a ball of 5 mm
    smooth = surface_cm2(ndimage.distance_transform_edt(grown) > 2.5)
    surface = found["surface_cm2"]
    lobularity = None if None in (surface, smooth) else surface / smooth
    return {name: {**found, "lobularity": lobularity}[name] for name in (*RELATIVE, *ABSOLUTE)}


def moved(mask: np.ndarray, ct: CTVolume, mm: float) -> np.ndarray:
    """A mask whose outline was moved outwards, or inwards."""
    if mm > 0:
        return ndimage.distance_transform_edt(mask == 0, sampling=ct.spacing) <= mm
    return ndimage.distance_transform_edt(mask, sampling=ct.spacing) > -mm


def stacks(folder: Path, seen: set[str]) -> list[tuple[str, CTVolume, np.ndarray]]:
    """Whole slices of each patient that was not seen, from feet to head, evenly spread."""
    patients = defaultdict(list)
    for record in read_slice_layout(folder):
        if record.patient not in seen and record.margin_px == 0:
            patients[record.patient].append(record)
    found = []
    for patient, records in sorted(patients.items()):
        at = {int(re.findall(r"slice(\d+)", one.name)[0]): one for one in records}
        order = sorted(at, reverse=True)  # the index grows towards the feet
        if len(order) < 3:
            continue
        loaded = [at[index].load() for index in order]
        step = (order[0] - order[-1]) / (len(order) - 1) * at[order[0]].thickness_mm
        y, x = loaded[0][0].spacing[1:]
        hu = np.concatenate([ct.to_source_order(ct.hu) for ct, _ in loaded], axis=2)
        ct = CTVolume.from_source_array(hu, np.diag([-x, -y, step, 1.0]), name=patient)
        found.append((patient, ct, np.concatenate([mask for _, mask in loaded])))
    return found


def whole_glands(folder: Path) -> list[tuple[CTVolume, np.ndarray]]:
    """Masks alone, each cut to its box with a margin."""
    found = []
    for path in sorted(folder.glob("*_pancreas.nii.gz")):
        image = nib.load(path)
        volume = CTVolume.from_source_array((image.get_fdata() > 0).astype(np.int16), image.affine)
        box = bounding_box(volume.hu.astype(np.uint8))
        inner = tuple(slice(max(0, edge.start - 4), edge.stop + 4) for edge in box)
        mask = volume.hu[inner].astype(np.uint8)
        grid = volume.grid.sub_grid(mask.shape, [edge.start for edge in inner], (1, 1, 1))
        found.append((CTVolume.of_grid(grid, volume.source), mask))
    return found


def unclipped(folder: Path, known: set[str]) -> list[tuple[CTVolume, np.ndarray]]:
    """CTs whose fat can be seen: raw slices, and whole CTs with another model's mask."""
    found = []
    for path in sorted((folder / "pancreas-ct" / "hu").glob("*_ct.nii.gz")):
        if path.name.split("_")[1] not in known:
            image = nib.load(path)
            # Rows run to the back and columns to the patient's left, whatever the affine says.
            affine = image.affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
            ct = nps.CTVolume.from_array(np.asarray(image.dataobj), affine, name=path.name[:-7])
            mask = np.asarray(nib.load(str(path).replace("_ct.nii", "_mask.nii")).dataobj)
            found.append((ct, (mask.transpose(2, 1, 0) > 0).astype(np.uint8)))
    for ct, mask in (
        ("ct/example/ct.nii.gz", "ct/example/pancreas_v1.nii.gz"),
        ("ct/dicom", "ct/dicom_pancreas.nii.gz"),
    ):
        values = nps.load_mask(folder / mask)[0] > 0
        found.append((nps.load_ct(folder / ct), values.astype(np.uint8)))
    return found


def spread(pairs: list[list[Values]], name: str) -> tuple[int, float, float] | None:
    """Number, standard deviation within a patient, and reliability (ICC) of paired values."""
    both = np.array(
        [(a[name], b[name]) for a, b in pairs if a[name] is not None and b[name] is not None]
    )
    if len(both) < 3:
        return None
    difference = both[:, 0] - both[:, 1]
    within = np.mean(difference**2) / 2
    if name in RELATIVE:
        within_shown = np.mean((difference / both.mean(axis=1)) ** 2) / 2
    else:
        within_shown = within
    total = both.mean(axis=1).var(ddof=1) + within / 2
    return len(both), float(np.sqrt(within_shown)), float(max(0.0, 1 - within / total))


def ranks(triples: list[list[Values]], name: str) -> tuple[int, float] | None:
    """Number, and rank correlation of what is measured within and without."""
    both = [(t[0][name], t[2][name]) for t in triples if None not in (t[0][name], t[2][name])]
    return (len(both), float(spearmanr(both).statistic)) if len(both) > 3 else None


def change(cases: list[list[Values]], name: str, which: int, base: int = 1) -> float | None:
    """Mean change from one of the masks of each case to another."""
    found = [
        (case[which][name] - case[base][name]) / (case[base][name] if name in RELATIVE else 1)
        for case in cases
        if all(values[name] is not None for values in case)
    ]
    return float(np.mean(found)) if found else None


def cell(name: str, value: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    if name in RELATIVE:
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign}.{ABSOLUTE[name]}f}"


def measure_all(shared: Path, models: list[str], seeds: list[str]) -> dict[str, list[list[Values]]]:
    """Measures of both networks' masks, and of masks whose outline was moved; case by case."""
    known = patients_seen(map(load_card, models + seeds))
    patients, raw = stacks(shared / "pancreas-ct", known), unclipped(shared, known)
    values: dict[str, list[list[Values]]] = {}
    for pair, names in (("models", models), ("seeds", seeds)):
        loaded = [nps.LoadedModel(name) for name in names]
        whole, others = [ct for _, ct, _ in patients], [ct for ct, _ in raw]
        for kind, cts in ((pair, whole), (f"{pair}, raw HU", others)):
            values[kind] = []
            for ct in cts:
                masks = [nps.segment(ct, model).mask for model in loaded]
                print(ct.name, pair, f"Dice {nps.dice(*masks):.3f}", flush=True)
                values[kind].append([measured(mask, ct) for mask in masks])
    moves = {
        "outline, whole glands": whole_glands(shared / "gland-volumes"),
        "outline, with CT": [(ct, mask) for _, ct, mask in patients] + raw,
    }
    for kind, cases in moves.items():
        values[kind] = []
        for ct, mask in cases:
            three = [moved(mask, ct, -1.0), mask, moved(mask, ct, 1.0)]
            if all(one.any() for one in three):
                values[kind].append([measured(one, ct) for one in three])
        print(len(values[kind]), "masks moved", flush=True)
    values["thick"] = thicker(moves["outline, whole glands"])
    return values


def thicker(glands: list[tuple[CTVolume, np.ndarray]]) -> list[list[Values]]:
    """Measures of masks of thin slices, and of every slice in 5 mm of them."""
    found = []
    for ct, mask in glands:
        step = round(5 / ct.spacing[0])
        if step >= 4:
            fewer = np.ascontiguousarray(mask[step // 2 :: step])
            grid = ct.grid.sub_grid(fewer.shape, (step // 2, 0, 0), (step, 1, 1))
            pair = [(mask, ct), (fewer, CTVolume.of_grid(grid, ct.source))]
            found.append([measured(*one) for one in pair])
    return found


def write(values: dict[str, list[list[Values]]]) -> None:
    """Write the table and the limits."""
    lines = [
        "| measure | n | SD, two models | ICC | two seeds | ICC "
        "| n | outline −1 mm | +1 mm | ranks | n | 5 mm |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    limits = {}
    for name in (*RELATIVE, *ABSOLUTE):
        of_hu = name in ABSOLUTE
        moves = values["outline, with CT" if of_hu else "outline, whole glands"]
        models, seeds = (
            spread(values[pair] + (values[f"{pair}, raw HU"] if of_hu else []), name)
            for pair in ("models", "seeds")
        )
        outline = ranks(moves, name)
        lines.append(
            f"| `{name}` | "
            + (
                f"{models[0]} | {cell(name, models[1])} | {models[2]:.2f}"
                if models
                else "– | – | –"
            )
            + (f" | {cell(name, seeds[1])} | {seeds[2]:.2f}" if seeds else " | – | –")
            + f" | {outline[0] if outline else '–'} | {cell(name, change(moves, name, 0), '+')}"
            + f" | {cell(name, change(moves, name, 2), '+')}"
            + f" | {f'{outline[1]:.2f}' if outline else '–'}"
            + f" | {'–' if of_hu else len(values['thick'])}"
            + f" | {cell(name, None if of_hu else change(values['thick'], name, 1, 0), '+')} |"
        )
        if name not in NOT_OFFERED and models is not None:
            sd = float(f"{models[1]:.3g}")
            limits[name] = {"sd": sd, "relative": name in RELATIVE, "n": models[0]}
    LIMITS.write_text(json.dumps(limits, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    text = "\n".join([f"{before}{MARKS[0]}", *lines, f"{MARKS[1]}{after}"])
    PAGE.write_text(text, encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--models", nargs=2, required=True)
    parser.add_argument("--seeds", nargs=2, required=True, help="trained alike, but for the seed")
    parser.add_argument("--values", type=Path, help="keep what was measured here, or read it")
    arguments = parser.parse_args()
    if arguments.values is not None and arguments.values.exists():
        values = json.loads(arguments.values.read_text())
    else:
        values = measure_all(arguments.shared, arguments.models, arguments.seeds)
        if arguments.values is not None:
            arguments.values.write_text(json.dumps(values))
    write(values)


if __name__ == "__main__":
    main()
