"""The recipe of a training: everything that is chosen before it starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.blocks import SOFT_TISSUE_HU
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import ARCHITECTURES, Architecture
from napari_pancreas_seg.model.losses import LOSSES
from napari_pancreas_seg.training.fit.augmentation import AugmentationSettings
from napari_pancreas_seg.training.fit.devices import POLICIES

WINDOWS_HU = ((0, 255), (40, 150), (80, 140))
"""The three input channels: everything the slices hold, soft tissue, pancreas and liver."""


@dataclass(frozen=True)
class TrainSettings:
    """A training recipe."""

    architecture: str | Architecture = "default"  # or another one; it takes the frame's size
    loss: str = "mixed"
    steps: int = 6000
    steps_per_epoch: int = 250  # after each, a checkpoint and a validation
    batch_size: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-3
    warm_up: float = 0.03  # share of the steps
    clip_norm: float = 1.0
    averaging: float = 0.999  # momentum of the average of weights that becomes the model
    # Losses of the decoder's second and third finest level.
    side_weights: tuple[float, float] = (0.5, 0.25)
    negative_share: float = 0.12  # of CTs without pancreas in a batch, on average
    piece_share: float = 0.15  # of patients' slices, that get a part of another's
    calibration_batches: int = 200  # for the averaged network's normalisation statistics
    policy: str = "auto"  # Keras dtype policy; see `training.fit.devices`
    # HU windows of the input channels; see `check_windows`.
    windows: tuple[tuple[float, float], ...] = WINDOWS_HU
    # How often a patient's slice shows something of the classes, if there are both.
    positive_share: float = 0.8
    # Epochs without a higher validation Dice of the averaged network after which to stop; the best
    # epoch is kept, as when the steps come first. None trains to the end and keeps the last.
    patience: int | None = None
    seed: int = 0
    frame: FrameSpec = field(default_factory=FrameSpec)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)

    def __post_init__(self) -> None:
        known: tuple[tuple[str, Any, Collection[str]], ...] = (
            ("architecture", self.architecture, ARCHITECTURES),
            ("loss", self.loss, LOSSES),
            ("policy", self.policy, POLICIES),
        )
        for what, asked, names in known:
            if isinstance(asked, str) and asked not in names:
                raise PancreasSegError(
                    f"There is no {what} {asked!r}; known are {', '.join(names)}."
                )
        if self.patience is not None and self.patience < 1:
            raise PancreasSegError("A training needs the patience of at least one epoch.")
        if min(self.steps, self.steps_per_epoch, self.batch_size) < 1:
            raise PancreasSegError("A training needs at least one step, epoch and slice.")
        if not 0 < self.positive_share <= 1:
            raise PancreasSegError("The share of slices with something in them must be in (0, 1].")
        check_windows(self.windows)

    def resolved_architecture(self) -> Architecture:
        """The architecture, at the size of the frame."""
        chosen = self.architecture
        if isinstance(chosen, str):
            chosen = ARCHITECTURES[chosen]
        return replace(
            chosen, height=self.frame.height, width=self.frame.width, channels=len(self.windows)
        )


def averaging_for(steps: int) -> float:
    """Momentum of the average of weights: over an eighth of a short training."""
    return round(min(0.999, 1 - 8 / max(steps, 16)), 5)


def check_windows(windows: Sequence[Sequence[float]]) -> None:
    """Refuse HU windows without width or beyond what training slices hold: PancreasSegError."""
    low, high = SOFT_TISSUE_HU
    for window in windows:
        if not low <= window[0] < window[1] <= high:
            raise PancreasSegError(
                f"The HU window {window[0]:g} to {window[1]:g} does not lie within {low} to "
                f"{high}, to which training slices are clipped."
            )
