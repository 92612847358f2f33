"""A model as an ONNX file, by Keras's own exporter, for programs that know neither Keras nor us."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.io.files import atomic_write, check_target
from napari_pancreas_seg.model.attention_unet import Foreground
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.model.probabilities import CERTAIN, tempered

OPSET = 17
"""Old enough for every runtime of the last years."""
TOLERANCE = 1e-3
"""How far the file's probabilities may lie from the network's: where these are next to 1, float32
has few digits left of what is missing, of which a temperature of 8 makes 6e-4."""


def export_onnx(bundle: Bundle, path: Path, *, overwrite: bool = False) -> float | None:
    """Write a model as ONNX: from HU at the frame's scale to calibrated probability.

    Input ``hu`` (B, height, width, 1) float32; outputs ``probability`` (B, height, width, classes)
    and ``attention_1`` to ``attention_4``. The metadata holds the card. Returns by how much ONNX
    Runtime's answer differs, None without it; PancreasSegError from `TOLERANCE` on.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise PancreasSegError(f"The name of an ONNX file must end in .onnx, not {path.name!r}.")
    check_target(path, overwrite=overwrite)
    network, card = bundle.network(), bundle.card
    content = _converted(_from_hu(network, card), _metadata(card))
    difference = _difference(content, network, card)
    if difference is not None and not difference <= TOLERANCE:
        raise PancreasSegError(
            f"The ONNX file was not written: what it computes differs by {difference:.1e} from "
            f"the network, more than {TOLERANCE:.0e}. Please report this."
        )
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(content)
    return difference


def _from_hu(network: keras.Model, card: Mapping[str, Any]) -> keras.Model:
    """The network with HU windows before it and the temperature in its head."""
    outputs = dict(network.output)
    temperature = float(card.get("temperature", 1.0))
    heads = [layer for layer in network.layers if layer.name == "head_probability"]
    if temperature != 1.0 and heads:
        # On the logits: a runtime's sigmoid may be off by a tenth of the smallest probability.
        head, limit = heads[0], math.log1p(-CERTAIN)
        if isinstance(head, Foreground):
            logits = ops.clip(ops.log_softmax(head.input), math.log(CERTAIN), limit)
        else:
            logits = ops.clip(head.input, math.log(CERTAIN) - limit, limit - math.log(CERTAIN))
        x = head(logits / temperature)
        for layer in network.layers:
            if layer.name == "crop":
                x = layer(x)
        outputs["probability"] = x
    elif temperature != 1.0:  # an ensemble
        outputs["probability"] = tempered(outputs["probability"], temperature)
    hu = keras.Input((*network.input_shape[1:3], 1), name="hu")
    inner = keras.Model(network.input, outputs)
    return keras.Model(hu, inner(windowed(hu, card["windows"])))


def _converted(model: keras.Model, metadata: Mapping[str, str]) -> bytes:
    try:
        import onnx
        import tf2onnx  # noqa: F401  # used by Keras
    except ImportError as error:
        raise PancreasSegError(
            "Writing ONNX needs the packages onnx and tf2onnx; install them with "
            "pip install 'napari-pancreas-seg[onnx]'."
        ) from error
    signature = [keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="float32", name="hu")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        model.export(
            file, format="onnx", verbose=False, input_signature=signature, opset_version=OPSET
        )
        converted = onnx.load(file)
    onnx.helper.set_model_props(converted, dict(metadata))
    onnx.checker.check_model(converted, full_check=True)
    return bytes(converted.SerializeToString())


def _metadata(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that a user of the file alone needs, from the card."""
    plain = {
        "input": "hu: float32 (batch, height, width, 1), Hounsfield units",
        "output": "probability: float32 (batch, height, width, classes), calibrated; a pixel is "
        "foreground where its classes' sum exceeds threshold, and then of the most probable class",
        "card": card,
        **{k: card[k] for k in ("name", "version", "licence", "frame", "windows", "labels")},
        **{k: card[k] for k in ("threshold", "weights_sha256")},
        "temperature": card.get("temperature", 1.0),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in plain.items()
    }


def _difference(content: bytes, network: keras.Model, card: Mapping[str, Any]) -> float | None:
    """Largest difference between the file, run by ONNX Runtime, and the network."""
    try:
        import onnxruntime
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    hu = rng.normal(80, 60, (2, *network.input_shape[1:3], 1)).astype(np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    theirs = dict(zip(names, session.run(names, {"hu": hu}), strict=True))
    ours = dict(network(windowed(hu, card["windows"]), training=False))
    ours["probability"] = tempered(ours["probability"], float(card.get("temperature", 1.0)))
    return max(
        float(np.abs(theirs[name] - np.asarray(ops.convert_to_numpy(ours[name]))).max())
        for name in ours
    )
