"""A model as an ONNX file, for programs that know neither Keras nor this one.

The graph is written by hand from the network's layers, of which there are a dozen kinds: no
converter has to keep up with Keras. Inside, axes are (B, C, H, W), as ONNX has it; at its ends
they are (B, H, W, C).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_write, check_target
from napari_pancreas_seg.model.attention_unet import AttentionGate, Foreground
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.model.probabilities import CERTAIN, tempered

__all__ = ["TOLERANCE", "OnnxExport", "export_onnx", "onnx_model"]

OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime of the last years."""
TOLERANCE = 1e-4
"""How far the file's probabilities may lie from the network's."""
INPUT, HEAD = "hu", "head_probability"

Tensor = str
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and whether it was tried.

    Parameters
    ----------
    path : Path
        The file.
    difference : float or None
        Largest difference between its outputs, run by ONNX Runtime, and the network's; None if
        ONNX Runtime is not installed.
    """

    path: Path
    difference: float | None


def export_onnx(bundle: Bundle, path: Path, *, overwrite: bool = False) -> OnnxExport:
    """Write a model as ONNX: from HU at the frame's scale to calibrated probability.

    Parameters
    ----------
    bundle : Bundle
        The model.
    path : Path
        The file; its name ends in ``.onnx``.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    PancreasSegError
        If the package onnx is missing, the file cannot be written, or what it computes differs
        from the network by more than `TOLERANCE`.

    Notes
    -----
    Input ``hu`` (B, height, width, S) float32: slices in Hounsfield units, resampled to the
    frame's pixels (``mm_per_pixel``), body (or gland) centred, S = 1, or 3 where the card has
    ``neighbours_mm`` (the slice so far below, the slice, the one above). Outputs:
    ``probability`` (B, height, width, classes) after the card's temperature, and the
    coefficients ``attention_1`` to ``attention_4``. HU windows are inside. The metadata holds
    the card and, one by one, what is needed to use the file.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise PancreasSegError(f"The name of an ONNX file must end in .onnx, not {path.name!r}.")
    check_target(path, overwrite=overwrite)
    network = bundle.network()
    content = onnx_model(network, bundle.card).SerializeToString()
    difference = _difference(content, network, bundle.card)
    if difference is not None and not difference <= TOLERANCE:
        raise PancreasSegError(
            f"The ONNX file was not written: what it computes differs by {difference:.1e} from "
            f"the network, more than {TOLERANCE:.0e}. Please report this."
        )
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(content)
    return OnnxExport(path, difference)


def onnx_model(network: keras.Model, card: Mapping[str, Any]) -> Any:
    """A network with its HU windows and temperature as an ``onnx.ModelProto``.

    Parameters
    ----------
    network : keras.Model
        As `napari_pancreas_seg.model.attention_unet.build` makes it.
    card : Mapping
        The model's card.

    Raises
    ------
    PancreasSegError
        If the package onnx is missing, or a layer is of a kind that is not known.
    """
    graph = _Graph()
    height, width, channels = network.input_shape[1:]
    n_slices = input_slices(card)
    hu = graph.add("Transpose", INPUT, perm=[0, 3, 1, 2])
    known = {id(network.input): _windows(graph, hu, card["windows"], n_slices)}
    for layer in network.layers:
        if isinstance(layer, layers.InputLayer):
            continue
        given = [known[id(x)] for x in _list(layer.input)]
        if layer.name == HEAD:
            made = [_probability(graph, given[0], layer, float(card.get("temperature", 1.0)))]
        else:
            made = _convert(graph, layer, given)
        known |= {id(x): name for x, name in zip(_list(layer.output), made, strict=True)}
    outputs = {}
    for name, tensor in network.output.items():
        graph.add("Transpose", known[id(tensor)], output=name, perm=[0, 2, 3, 1])
        outputs[name] = tuple(tensor.shape[1:])
    return graph.model({INPUT: (height, width, n_slices)}, outputs, _metadata(card, channels))


def input_slices(card: Mapping[str, Any]) -> int:
    """How many slices the network sees at once: 1, or 3 with neighbours."""
    return 1 if card.get("neighbours_mm") is None else 3


class _Graph:
    """Nodes and weights of an ONNX graph on the way."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError as error:
            raise PancreasSegError(
                "Writing ONNX needs the package onnx; install it with "
                "pip install 'napari-pancreas-seg[onnx]'."
            ) from error
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def add(self, operator: str, *inputs: Tensor, output: str = "", **attributes: Any) -> Tensor:
        """Append a node and return the name of its output."""
        output = output or f"{operator.lower()}_{len(self._nodes)}"
        node = self._onnx.helper.make_node(operator, list(inputs), [output], **attributes)
        self._nodes.append(node)
        return output

    def weights(self, values: Any, dtype: Any = np.float32) -> Tensor:
        """Keep an array and return its name."""
        name = f"weights_{len(self._weights)}"
        array = np.ascontiguousarray(values, dtype)
        self._weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def model(
        self,
        inputs: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[int, ...]],
        metadata: Mapping[str, str],
    ) -> Any:
        """Make the whole model; shapes are without the batch, which may have any size."""
        helper, floats = self._onnx.helper, self._onnx.TensorProto.FLOAT
        ends = [
            [helper.make_tensor_value_info(n, floats, ["batch", *shape]) for n, shape in x.items()]
            for x in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, "attention_unet", *ends, self._weights)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="napari-pancreas-seg",
        )
        helper.set_model_props(model, dict(metadata))
        self._onnx.checker.check_model(model, full_check=True)
        return model


def _metadata(card: Mapping[str, Any], channels: int) -> dict[str, str]:
    """What somebody needs who has the file alone."""
    plain = {
        "input": "hu: float32 (batch, height, width, slices), Hounsfield units",
        "output": "probability: float32 (batch, height, width, classes), calibrated; a pixel is "
        "foreground where its classes' sum exceeds threshold, and then of the most probable class",
        "channels": channels,
        "card": card,
        **{k: card[k] for k in ("name", "version", "licence", "frame", "windows", "labels")},
        **{k: card[k] for k in ("threshold", "weights_sha256")},
        "temperature": card.get("temperature", 1.0),
        "neighbours_mm": card.get("neighbours_mm"),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in plain.items()
    }


def _windows(
    graph: _Graph, hu: Tensor, windows: Sequence[Sequence[float]], n_slices: int
) -> Tensor:
    """HU windows as channels; of several slices, each in the first window."""
    chosen = _chosen(windows, n_slices)
    low, high = (np.reshape([w[i] for w in chosen], (1, -1, 1, 1)) for i in (0, 1))
    scaled = graph.add("Sub", hu, graph.weights(low))
    scaled = graph.add("Div", scaled, graph.weights(np.subtract(high, low)))
    return graph.add("Clip", scaled, graph.weights(0), graph.weights(1))


def _chosen(windows: Sequence[Sequence[float]], n_slices: int) -> Sequence[Sequence[float]]:
    return windows if n_slices == 1 else windows[:1]


def _probability(
    graph: _Graph, logits: Tensor, layer: keras.layers.Layer, temperature: float
) -> Tensor:
    """The head's sigmoid or softmax, with the logits divided by the temperature.

    The same as `tempered` on the probabilities, but on the logits: a runtime's sigmoid may be
    off by 1e-7, which is a tenth of the smallest probability.
    """
    if isinstance(layer, Foreground):
        if temperature != 1.0:
            logs = graph.add("LogSoftmax", logits, axis=1)
            logits = _limited(graph, logs, (math.log(CERTAIN), math.log1p(-CERTAIN)), temperature)
        whole = graph.add("Softmax", logits, axis=1)
        first, last, axis = (graph.weights([n], np.int64) for n in (1, np.iinfo(np.int64).max, 1))
        return graph.add("Slice", whole, first, last, axis)
    if temperature != 1.0:
        limit = math.log1p(-CERTAIN) - math.log(CERTAIN)
        logits = _limited(graph, logits, (-limit, limit), temperature)
    return graph.add("Sigmoid", logits)


def _limited(graph: _Graph, x: Tensor, limits: Sequence[float], divisor: float) -> Tensor:
    clipped = graph.add("Clip", x, *(graph.weights(limit) for limit in limits))
    return graph.add("Div", clipped, graph.weights(divisor))


def _convert(graph: _Graph, layer: keras.layers.Layer, given: list[Tensor]) -> list[Tensor]:
    """Add a layer's nodes; return the names of its outputs."""
    if isinstance(layer, AttentionGate):
        return _gate(graph, layer, *given)
    for kind, convert in _SIMPLE.items():
        if isinstance(layer, kind):
            return [convert(graph, layer, given)]
    raise PancreasSegError(
        f"A layer of the kind {type(layer).__name__} cannot be written as ONNX yet."
    )


def _convolution(graph: _Graph, layer: layers.Conv2D, x: Tensor) -> Tensor:
    kernel = _array(layer.kernel)
    sides = [size // 2 for size in kernel.shape[:2]] if layer.padding == "same" else [0, 0]
    if layer.padding == "same" and any(s > 1 for s in layer.strides):
        raise PancreasSegError("Padded convolutions with a stride cannot be written as ONNX yet.")
    weights = graph.weights(kernel.transpose(3, 2, 0, 1)), graph.weights(_array(layer.bias))
    x = graph.add("Conv", x, *weights, strides=list(layer.strides), pads=[*sides, *sides])
    return _activated(graph, layer.activation, x)


def _activated(graph: _Graph, activation: Callable[..., Any], x: Tensor) -> Tensor:
    operator = {"linear": None, "relu": "Relu", "sigmoid": "Sigmoid"}[activation.__name__]
    return graph.add(operator, x) if operator else x


def _gate(graph: _Graph, gate: AttentionGate, skip: Tensor, gating: Tensor) -> list[Tensor]:
    """The weighed skip connection and α; see `AttentionGate`."""
    projected = (
        _convolution(graph, gate.project_gating, gating),
        _convolution(graph, gate.project_skip, skip),
    )
    together = graph.add("Relu", graph.add("Add", *projected))
    alpha = _convolution(graph, gate.coefficients, together)
    return [graph.add("Mul", skip, _enlarged(graph, gate.enlarge, alpha)), alpha]


def _enlarged(graph: _Graph, layer: layers.UpSampling2D, x: Tensor) -> Tensor:
    scales = graph.weights([1, 1, *layer.size])
    if layer.interpolation == "bilinear":
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    else:
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        how["nearest_mode"] = "floor"
    return graph.add("Resize", x, "", scales, **how)


def _normalised(graph: _Graph, layer: layers.BatchNormalization, x: Tensor) -> Tensor:
    statistics = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    named = [graph.weights(_array(v)) for v in statistics]
    return graph.add("BatchNormalization", x, *named, epsilon=layer.epsilon)


def _padded(graph: _Graph, layer: layers.ZeroPadding2D, x: Tensor) -> Tensor:
    (top, bottom), (left, right) = layer.padding
    return graph.add("Pad", x, graph.weights([0, 0, top, left, 0, 0, bottom, right], np.int64))


def _cropped(graph: _Graph, layer: layers.Cropping2D, x: Tensor) -> Tensor:
    (top, bottom), (left, right) = layer.cropping
    height, width = layer.input.shape[1:3]
    start, stop = [top, left], [height - bottom, width - right]
    return graph.add("Slice", x, *(graph.weights(n, np.int64) for n in (start, stop, [2, 3])))


_SIMPLE: dict[type, Callable[[_Graph, Any, list[Tensor]], Tensor]] = {
    layers.Conv2D: lambda g, layer, x: _convolution(g, layer, x[0]),
    layers.BatchNormalization: lambda g, layer, x: _normalised(g, layer, x[0]),
    layers.MaxPooling2D: lambda g, layer, x: g.add(
        "MaxPool", x[0], kernel_shape=list(layer.pool_size), strides=list(layer.strides)
    ),
    layers.UpSampling2D: lambda g, layer, x: _enlarged(g, layer, x[0]),
    layers.Concatenate: lambda g, layer, x: g.add("Concat", *x, axis=1),
    layers.Dropout: lambda g, layer, x: x[0],
    layers.ZeroPadding2D: lambda g, layer, x: _padded(g, layer, x[0]),
    layers.Cropping2D: lambda g, layer, x: _cropped(g, layer, x[0]),
}
"""How layers with one output are written."""


def _array(variable: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(variable), np.float32)


def _list(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _difference(content: bytes, network: keras.Model, card: Mapping[str, Any]) -> float | None:
    """Largest difference between the file, run by ONNX Runtime, and the network."""
    try:
        import onnxruntime
    except ImportError:
        return None
    from napari_pancreas_seg.inference.predictor import windowed

    rng = np.random.default_rng(0)
    height, width = network.input_shape[1:3]
    hu = rng.normal(80, 60, (2, height, width, input_slices(card))).astype(np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    theirs = dict(zip(names, session.run(names, {INPUT: hu}), strict=True))
    windows = _chosen(card["windows"], input_slices(card))
    ours = dict(network(windowed(hu, windows), training=False))
    ours["probability"] = tempered(ours["probability"], float(card.get("temperature", 1.0)))
    return max(float(np.abs(_array(ours[n]) - theirs[n]).max()) for n in names)
