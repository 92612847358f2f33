"""A model in memory, on its device. Importing this module loads no Keras; `LoadedModel` does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.frame import FrameCrop, FrameSpec, frame_around
from napari_pancreas_seg.inference.framework import load_framework
from napari_pancreas_seg.inference.options import Options
from napari_pancreas_seg.inference.saving import card_sha256
from napari_pancreas_seg.inference.second_look import SecondLook
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.volume import CTVolume


class LoadedModel:
    """A model whose network is in memory, on its device, ready for many CTs.

    Parameters
    ----------
    model : str, Path or Bundle
        Name of a model (see `list_models`), path of a bundle, or a bundle.
    device : str
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"gpu"`` or ``"gpu:N"``.

    Raises
    ------
    PancreasSegError
        If there is no such model or device, or the bundle is damaged.
    """

    def __init__(self, model: str | Path | Bundle = "default", device: str = "auto") -> None:
        load_framework()
        from napari_pancreas_seg.inference.devices import choose_device
        from napari_pancreas_seg.inference.predictor import FramePredictor

        self.bundle = load_bundle(model)
        self.card = self.bundle.card
        self.classes = Classes.of(self.card)
        self.frame = FrameSpec.from_dict(self.card["frame"])
        self.device = choose_device(device)
        with self.device.scope():
            self.predictor = FramePredictor(
                self.bundle.network(self.device.policy),
                self.card["windows"],
                self.card.get("temperature", 1.0),
                compact=True,
            )

    def warm_up(self, volume: CTVolume, options: Options | None = None) -> None:
        """Compile the network for slices like a CT's, so that the first ones come at once."""
        options = options or Options(first_slice=0)
        _, height, width = volume.grid.shape
        centre = (height / 2, width / 2)
        crop = FrameCrop(frame_around(centre, (height, width), volume.spacing, self.frame))
        part = options.region(volume.grid.shape)[0]
        sizes = {min(options.batch_size or self.device.batch_size, part.stop - part.start)}
        if options.first_slice is not None:
            sizes.add(1)
        for size in sizes:
            self.predict(np.zeros((size, *crop.shape), np.int16), crop, 0)
        if options.second_look and self.second_look is not None:
            self.second_look.warm_up()

    @cached_property
    def second_look(self) -> SecondLook | None:
        """The network that looks again, loaded when it is first asked for; None without one."""
        return SecondLook(self.card, self.device) if self.card.get("second_look") else None

    def predict(self, hu: Array, crop: FrameCrop, shift: int) -> dict[str, Array]:
        """Run the network on slices from `FrameCrop.cut`; maps (B, h, w, ...) in float16."""
        with self.device.scope():
            return self.predictor.predict_batch(hu, crop.rows, crop.columns, shift)


def named_model(model: str | Path, device: str, card: Mapping[str, Any]) -> LoadedModel:
    """The model of a name or path whose card this is; the one asked for last stays in memory."""
    return _kept(str(model), device, card_sha256(card))


@lru_cache(maxsize=1)
def _kept(model: str, device: str, card: str) -> LoadedModel:
    """`card`, its hash: another bundle may have come to lie at the same path."""
    return LoadedModel(model, device)
