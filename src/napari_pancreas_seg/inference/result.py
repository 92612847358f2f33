"""What a segmentation yields and returns, and how it is written; plain data, no Keras."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.arrays import Array, Floats32, Indices, Labels, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import saving
from napari_pancreas_seg.inference.acquisition import acquisition_and_warnings
from napari_pancreas_seg.inference.classes import ONE_CLASS, Classes
from napari_pancreas_seg.inference.options import Options as Options
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.quality import given_mask_quality, mask_quality
from napari_pancreas_seg.io import mask_image, report_path, save_map, save_mask, stem, suffix_of
from napari_pancreas_seg.io.dicom.report import write_report
from napari_pancreas_seg.io.files import all_or_none
from napari_pancreas_seg.io.save import check_spared
from napari_pancreas_seg.mask.centreline import CUTS, Cuts
from napari_pancreas_seg.mask.measures import measure, volume_ml
from napari_pancreas_seg.volume import CTVolume, Grid
from napari_pancreas_seg.volume import ScalarMap as ScalarMap

if TYPE_CHECKING:
    import nibabel

Strokes = Mapping[int, tuple[int, int]]
"""Numbers of strokes that added and that removed, by slice."""

Step = TypeVar("Step")
Result = TypeVar("Result")


def exhaust(
    steps: Generator[Step, Any, Result], on_step: Callable[[Step], object] | None = None
) -> Result:
    """Run a generator to its end, calling `on_step` with what it yields; give what it returns."""
    try:
        while True:
            step = next(steps)
            if on_step is not None:
                on_step(step)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


@dataclass(frozen=True, eq=False)
class FoundSlices:
    """Slices of the mask that have just been found, before a second look and post-processing.

    `z` (n,) are indices in the CT, `mask` (n, Y, X) lies on its grid. `maps`, ``"probability"`` and
    ``"attention 1"`` (the finest gate) and so on, hold these slices alone, with the grid of the
    whole map, in which they are `rows`.
    """

    z: Indices
    mask: Labels
    maps: Mapping[str, ScalarMap] = field(default_factory=dict)
    rows: Indices | None = None  # without maps


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a segmentation is in a `stage`, counted in slices, and what it has just found."""

    stage: str
    done: int
    total: int
    slices: FoundSlices | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The pancreas found in a CT.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X), uint8
        Read-only, on the CT's grid; 1 in the pancreas, of a model of several classes the values
        that its card gives them in ``labels``.
    probability : ScalarMap
        Probability of pancreas (of any of several classes) at the resolution of the network.
    attention : tuple of ScalarMap
        Coefficients of the attention gates, finest gate first, at the resolution at which the
        network computed them; empty for a network without gates.
    grid : Grid
        The CT's grid, on which the mask lies.
    threshold : float
        The threshold that was applied.
    model : Mapping
        The card of the model.
    seconds : Mapping of str to float
        Seconds spent per stage.
    options : Options
        What was asked for.
    notes : tuple of str
        Warnings for the user.
    expected_dice : ndarray, shape (Z,), float32
        How well each slice is expected to agree with a radiologist's mask, from 0 to 1; NaN
        where the network saw no pancreas or was not asked. The lowest want looking at first.
    plausible : ndarray, shape (Z,), bool
        Slices in which a pancreas can lie; post-processing drops what was found in the others.
    probabilities : Mapping of str to ScalarMap
        Of a model of several classes, the probability of each by its name.
    scan : Mapping
        How the CT was taken, as far as its values tell: contrast phase, noise and so on.
    ct : CTVolume, optional
        The CT itself, for `save` and `mask_image`; None if the network ran in another process.
    device : str
        Where the network ran, as ``"cpu:0"``; `options` have what was asked for.
    """

    mask: Labels
    probability: ScalarMap
    attention: tuple[ScalarMap, ...]
    grid: Grid
    threshold: float
    model: Mapping[str, Any]
    seconds: Mapping[str, float]
    options: Options = field(default_factory=Options)
    notes: tuple[str, ...] = ()
    expected_dice: Floats32 = field(default_factory=lambda: np.zeros(0, np.float32))
    plausible: Mask = field(default_factory=lambda: np.zeros(0, np.bool_))
    probabilities: Mapping[str, ScalarMap] = field(default_factory=dict)
    scan: Mapping[str, Any] = field(default_factory=dict)
    ct: CTVolume | None = None
    device: str = ""

    def __post_init__(self) -> None:
        mask = self.mask.view()
        mask.setflags(write=False)  # what is edited is a copy: this is what the record is of
        object.__setattr__(self, "mask", mask)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # NumPy makes copies, pickled ones too, writeable

    def __repr__(self) -> str:
        name, version = (self.model.get(key) for key in ("name", "version"))
        quality = self.quality
        return (
            f"Segmentation(shape={self.mask.shape}, model='{name} {version}', "
            f"volume_ml={self.volume_ml:.1f}, expected_dice={quality['expected_dice']}, "
            f"noticed={len(quality['noticed'])})"
        )

    @property
    def slices_seen(self) -> int:
        """Number of slices that the network has seen."""
        return int(np.count_nonzero(~np.isnan(self.probability.values[:, 0, 0])))

    @property
    def volume_ml(self) -> float:
        """Volume of the mask in mL, all classes together."""
        return volume_ml(self.mask, self.grid)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each class in mL by its name."""
        named = Classes.of(self.model).named
        return {name: volume_ml(self.mask == value, self.grid) for name, value in named.items()}

    @property
    def quality(self) -> dict[str, Any]:
        """Expected Dice of the whole mask, contrast phase, and what was noticed, in words.

        Of a model of other organs, too, what was noticed of the pancreas, without expected Dice.
        """
        classes, region = Classes.of(self.model), self.options.region(self.grid.shape)
        if not classes.only_gland:
            gland = classes.gland(self.mask) if any(classes.in_gland) else None
            return {"expected_dice": None} | given_mask_quality(gland, self.grid, self.scan, region)
        seen = self.probability, self.threshold, self.expected_dice
        return mask_quality(self.mask, self.grid, *seen, self.scan, region)

    def save(
        self,
        path: str | Path,
        *,
        probability: bool = False,
        attention: bool = False,
        overwrite: bool = False,
        mint_uids: bool = False,
    ) -> list[Path]:
        """Write the mask onto the CT's own grid, as the command ``segment`` does.

        Parameters
        ----------
        path : str or Path
            Where the mask goes; the ending chooses the format, see `save_mask`. For
            ``m.nii.gz``, provenance and measurements go to ``m.json``.
        probability, attention : bool
            Whether to write these maps too: ``m_probability.nii.gz``, ``m_attention_1.nii.gz``
            (finest gate) and so on.
        overwrite : bool
            Whether existing files may be replaced. The CT itself never is. Maps of the result
            that was there before go with it.
        mint_uids : bool
            Whether a DICOM series without UIDs may be given some, for DICOM-SEG.

        Returns
        -------
        list of Path
            The files written, all of them or none; the mask first.

        Raises
        ------
        PancreasSegError
            If a file exists already or cannot be written.
        """
        outputs = OutputOptions(attention, probability, overwrite, mint_uids)
        return save_result(self, self._ct(), path, outputs)[0]

    def mask_image(self) -> nibabel.Nifti1Image:
        """The mask as a nibabel image, uint8: what nibabel reads from the file of `save`.

        Raises
        ------
        PancreasSegError
            If this result does not hold its CT.
        """
        return mask_image(self.mask, self._ct())

    def _ct(self) -> CTVolume:
        if self.ct is None:
            raise PancreasSegError(
                "This result does not hold its CT; write its mask with save_mask(result.mask, ct, "
                "path)."
            )
        return self.ct


def describe(
    volume: CTVolume,
    segmentation: Segmentation,
    *,
    mask: Array | None = None,
    strokes: Strokes | None = None,
    seconds: Mapping[str, float] | None = None,
    cuts: Cuts = CUTS,
) -> dict[str, Any]:
    """Return the record of the model's mask, or of `mask`, edited by hand: origin and measures."""
    written = segmentation.mask if mask is None else mask
    quality = segmentation.quality
    if written is not segmentation.mask and not np.array_equal(written, segmentation.mask):
        quality = {"phase": quality["phase"]}
    stages = {**(seconds or {}), **segmentation.seconds}
    classes, model = Classes.of(segmentation.model), segmentation.model
    named = classes.named
    return {
        **_common(volume, written, cuts, classes),
        "model": {key: model.get(key) for key in ("name", "version", "weights_sha256")}
        | ({"second_look": model["second_look"]} if model.get("second_look") else {}),
        "options": {**asdict(segmentation.options), "applied_threshold": segmentation.threshold},
        "device": segmentation.device or None,
        **(_labels(named, written, volume) if len(named) > 1 else {}),
        "quality": quality,
        "scan": dict(segmentation.scan),
        "edits": _edits(written, segmentation.mask, len(named) > 1, strokes),
        "expected_dice": [round(float(dice), 3) for dice in segmentation.expected_dice],
        "seconds": {name: round(float(value), 3) for name, value in stages.items()},
        "notes": list(dict.fromkeys((*volume.notes, *segmentation.notes))),
    }


def _measurements(volume: CTVolume, mask: Array, cuts: Cuts, classes: Classes) -> dict[str, Any]:
    """Measure the pancreas; of classes without one all of the mask, which has no centreline."""
    return measure(classes.gland(mask), volume, cuts if any(classes.in_gland) else None)


def _common(
    volume: CTVolume, mask: Array, cuts: Cuts = CUTS, classes: Classes = ONE_CLASS
) -> dict[str, Any]:
    """Return the part of a record that any mask has."""
    return {
        "program": {"name": saving.PROGRAM, "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "measurements": _measurements(volume, mask, cuts, classes),
        "source": saving.source_record(volume.source),
        "grid": {
            "axes": "z (feet to head), y (front to back), x (right to left)",
            "shape": list(volume.grid.shape),
            "spacing_mm": list(volume.spacing),
            "affine_ras_mm": volume.grid.affine.tolist(),
        },
        "software": saving.software_record(),
    }


def describe_given(volume: CTVolume, mask: Array, by: str) -> dict[str, Any]:
    """Return the record of a mask that another program or person has made."""
    scan, warnings = acquisition_and_warnings(volume)
    return {
        **_common(volume, mask),
        "mask_by": by,
        "quality": given_mask_quality(mask, volume.grid, scan),
        "scan": scan,
        "notes": list(dict.fromkeys((*volume.notes, *warnings))),
    }


def edited_record(
    record: Mapping[str, Any],
    mask: Array,
    volume: CTVolume,
    cuts: Cuts | None = None,
    made: Array | None = None,
    strokes: Strokes | None = None,
) -> dict[str, Any]:
    """Return the record of a mask, edited since it was `made`: measured again, without quality."""
    head, tail = cuts or record["measurements"].get("cuts") or CUTS
    named = {name: part["value"] for name, part in record.get("labels", {}).items()}
    classes = Classes.of({"labels": named})
    return {
        **record,
        **(_labels(named, mask, volume) if named else {}),
        "measurements": _measurements(volume, mask, (head, tail), classes),
        "quality": {k: v for k, v in record.get("quality", {}).items() if k == "phase"},
        "edits": None
        if made is None or record.get("edits", {}) is None
        else _sum(record.get("edits", {}), _edits(mask, made, len(named) > 1, strokes)),
        "corrected": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _labels(named: Mapping[str, int], mask: Array, volume: CTVolume) -> dict[str, Any]:
    """Value and measurements of each class."""
    found = {
        name: {"value": value, **measure(mask == value, volume, cuts=None)}
        for name, value in named.items()
    }
    return {"labels": found}


def _edits(mask: Array, found: Array, several: bool, strokes: Strokes | None) -> dict[str, Any]:
    """Count what a person has changed in the mask that was found, a slice at a time."""
    added = removed = relabelled = slices = 0
    for now, before in zip(mask, found, strict=True):
        if mask is found or not (changed := now != before).any():
            continue
        slices += 1
        added += int(np.count_nonzero(changed & (before == 0)))
        removed += int(np.count_nonzero(changed & (now == 0)))
        relabelled += int(np.count_nonzero(changed & (before != 0) & (now != 0)))
    return {
        "voxels_added": added,
        "voxels_removed": removed,
        **({"voxels_relabelled": relabelled} if relabelled or several else {}),
        "slices": slices,
        **_strokes(strokes or {}),
    }


def _sum(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of two sittings, name by name."""
    total = dict(before)
    for name, value in now.items():
        counts = isinstance(value, Mapping)
        total[name] = _sum(before.get(name, {}), value) if counts else before.get(name, 0) + value
    return total


def _strokes(strokes: Strokes) -> dict[str, Any]:
    """Strokes by what they did and by slice; nothing without any."""
    slices = {str(z): {"add": add, "remove": remove} for z, (add, remove) in strokes.items()}
    total = {what: sum(one[what] for one in slices.values()) for what in ("add", "remove")}
    return {"strokes": {**total, "slices": slices}} if slices else {}


def save_result(
    found: Segmentation,
    volume: CTVolume,
    mask: str | Path,
    outputs: OutputOptions,
    *,
    maps: str | None = None,
    seconds: Mapping[str, float] | None = None,
    stamp: str | None = None,
    force: bool = False,
) -> tuple[list[Path], dict[str, Any]]:
    """Write a mask, its sidecar and, if asked for, maps and report: all of them or none.

    `maps` is the start of the maps' names, `seconds` are further stages, `stamp` is that of the
    CT's files, `force` says how they were read. Returns the files, the mask first and the sidecar
    last, and the sidecar's content.
    """
    given: Any = mask
    if not isinstance(given, str | os.PathLike) or not Path(given).name:
        raise PancreasSegError(f"A mask is written to a file; give its path, not {given!r}.")
    mask = Path(mask)
    maps = stem(mask) if maps is None else maps
    saving.check_targets(mask, maps, volume.source.path, outputs)
    volume = saving.prepare(volume, mask, mint_uids=outputs.mint_uids)
    record = describe(volume, found, seconds=seconds)
    reports = [report_path(mask)] if outputs.report else []
    more = {saving.probability_path(mask, maps): found.probability} if outputs.probability else {}
    for number, gate in enumerate(found.attention if outputs.attention else (), start=1):
        more[saving.attention_path(mask, maps, number)] = gate
    for path in more:
        check_spared(path, volume)
    sidecar = saving.sidecar_path(mask)
    before = saving.left_by_run(saving.read_sidecar(sidecar))
    replaced = [path for path in saving.maps_beside(mask, maps, before) if path not in more]
    # The sidecar comes last: where it is, the case is complete.
    with all_or_none(mask.parent, last=sidecar.name, overwrite=outputs.overwrite) as folder:
        written = saving.written_part(found.mask, mask, found.model)
        save_mask(written, volume, folder / mask.name, card=found.model)
        for path in reports:
            write_report(found.mask, volume, folder / mask.name, folder / path.name)
        for path, scalar_map in more.items():
            save_map(scalar_map, volume, folder / path.name)
        # By these a later run of a folder knows that the case is done.
        record["resume"] = {
            "source_stamp": stamp,
            "force": force,
            "card_sha256": saving.card_sha256(found.model),
            "mask_sha256": saving.mask_sha256(folder / mask.name),
            "suffix": suffix_of(mask).lower(),  # the sidecar is named alike for every format
            "probability": outputs.probability,
            "report": outputs.report,
            "attention": len(found.attention) if outputs.attention else -1,  # -1: not asked for
        }
        saving.write_sidecar(folder / sidecar.name, record)
    for path in replaced:
        path.unlink(missing_ok=True)
    return [mask, *reports, *more, sidecar], record
