"""What a segmentation reports on its way and returns; plain data, no Keras."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.options import Options
from napari_pancreas_seg.inference.saving import save_result
from napari_pancreas_seg.mask.measures import volume_ml
from napari_pancreas_seg.volume import CTVolume, Grid

if TYPE_CHECKING:
    import nibabel

__all__ = ["FoundSlices", "Options", "Progress", "ScalarMap", "Segmentation", "exhaust"]

Array = npt.NDArray[Any]
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
        result: Result = end.value
        return result
    finally:
        steps.close()


@dataclass(frozen=True, eq=False)
class ScalarMap:
    """A map of values in [0, 1] with its own grid.

    Parameters
    ----------
    values : ndarray, shape (rows, H, W)
        float16; NaN where nothing was computed. Rows lie as far apart as the slices that the
        network may have seen: see `napari_pancreas_seg.inference.schedule.SliceGrid`.
    grid : Grid
        Where the values lie; axes are parallel to the CT's.
    """

    values: Array
    grid: Grid


@dataclass(frozen=True, eq=False)
class FoundSlices:
    """Slices of the mask that have just been found, before any post-processing.

    Parameters
    ----------
    z : ndarray, shape (n,)
        Indices of the slices in the CT.
    mask : ndarray, shape (n, Y, X), uint8
        The slices of the mask on the CT's grid.
    maps : Mapping of str to ScalarMap
        ``"probability"`` and ``"attention 1"`` (the finest gate) and so on: the values of
        these slices alone, (n, H, W), with the grid of the whole map.
    rows : ndarray, shape (n,), optional
        Where these slices lie along the maps' first axis; at z if None.
    """

    z: npt.NDArray[np.intp]
    mask: npt.NDArray[np.uint8]
    maps: Mapping[str, ScalarMap] = field(default_factory=dict)
    rows: npt.NDArray[np.intp] | None = None

    @property
    def map_rows(self) -> npt.NDArray[np.intp]:
        """Where these slices lie along the maps' first axis."""
        return self.z if self.rows is None else self.rows


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a segmentation has come.

    Parameters
    ----------
    stage : str
        What is going on: ``"loading the network"``, ``"segmenting"``, ``"post-processing"``.
    done, total : int
        Slices done, and slices to do in all. The total may change.
    slices : FoundSlices, optional
        What this step has found.
    """

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
        1 in the pancreas, on the CT's grid; of a model of several classes, the values that its
        card gives them in ``labels``.
    probability : ScalarMap
        Probability of pancreas at the resolution of the network's input; of several classes, of
        any of them.
    attention : tuple of ScalarMap
        Attention gate coefficients, finest gate first, at the resolution at which the
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
        Sentences the user should read.
    expected_dice : ndarray, shape (Z,), float32
        How well each slice of the network's mask is expected to agree with a radiologist's,
        from 0 to 1; NaN where the network saw no pancreas. The lowest want looking at first.
    plausible : ndarray, shape (Z,), bool
        Slices in which a pancreas can lie, by where the lungs end; post-processing drops
        what was found in the others.
    probabilities : Mapping of str to ScalarMap
        Of a model of several classes, the probability of each by its name.
    ct : CTVolume, optional
        The CT itself, for `save` and `mask_image`; None if the network ran in another process.
    """

    mask: npt.NDArray[np.uint8]
    probability: ScalarMap
    attention: tuple[ScalarMap, ...]
    grid: Grid
    threshold: float
    model: Mapping[str, Any]
    seconds: Mapping[str, float]
    options: Options = field(default_factory=Options)
    notes: tuple[str, ...] = ()
    expected_dice: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    plausible: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    probabilities: Mapping[str, ScalarMap] = field(default_factory=dict)
    ct: CTVolume | None = None

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
        classes = Classes.of(self.model)
        return {
            name: volume_ml(self.mask == value, self.grid)
            for name, value in zip(classes.names, classes.values, strict=True)
        }

    def save(
        self,
        path: str | Path,
        *,
        probability: bool = False,
        attention: bool = False,
        overwrite: bool = False,
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
            Whether existing files may be replaced. The CT itself never is.

        Returns
        -------
        list of Path
            The files written, all of them or none; the mask first.

        Raises
        ------
        PancreasSegError
            If a file exists already or cannot be written.
        """
        files, _ = save_result(
            self,
            self._ct(),
            path,
            probability=probability,
            attention=attention,
            overwrite=overwrite,
        )
        return files

    def mask_image(self) -> nibabel.Nifti1Image:
        """The mask as a nibabel image, uint8, in the axis order and with the affine of the CT.

        Raises
        ------
        PancreasSegError
            If this result does not hold its CT.
        """
        import nibabel

        ct = self._ct()
        image = nibabel.Nifti1Image(ct.to_source_order(self.mask), ct.source.affine)
        image.header.set_xyzt_units("mm")
        return image

    def _ct(self) -> CTVolume:
        if self.ct is None:
            raise PancreasSegError(
                "This result does not hold its CT; write its mask with save_mask(result.mask, ct, "
                "path)."
            )
        return self.ct
