"""What `speed` measures with TensorFlow: this program, the article's way, matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

import napari_pancreas_seg as nps
import speed_cts
import speed_task
from napari_pancreas_seg import CTVolume, Options
from napari_pancreas_seg.inference.segment import LoadedModel
from speed_slicewise import slice_by_slice

if TYPE_CHECKING:
    import keras

LOADING = "loading the network"
MARGIN_MM = 20.0
"""Kept free around the gland when a CT is made longer: where it may have been missed."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a piece of work takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


class Watch:
    """Looks at the clock while the compiled function runs, in whatever thread that is.

    Waiting for it may be shorter: other work goes on meanwhile.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.seconds, self.slices = 0.0, 0
        self._predictor = loaded.predictor
        self._run = loaded.predictor.predict_batch

    def __enter__(self) -> Watch:
        self._predictor.predict_batch = self._watched
        return self

    def __exit__(self, *error: object) -> None:
        self._predictor.predict_batch = self._run

    def _watched(self, hu: np.ndarray, *rest: Any, **named: Any) -> Any:
        seconds, outputs = timed(lambda: self._run(hu, *rest, **named))
        self.seconds += seconds
        self.slices += len(hu)
        return outputs


def one_run(volume: CTVolume, loaded: LoadedModel, every_slice: bool = False) -> dict[str, Any]:
    """Segment once; seconds in all, per stage, and what the network did of it."""
    with Watch(loaded) as network:
        seconds, found = timed(lambda: nps.segment(volume, loaded, every_slice=every_slice))
    return {
        "seconds": seconds,
        "stages": {name: s for name, s in found.seconds.items() if name != LOADING},
        "network": network.seconds,
        "around": seconds - network.seconds,
        "seen": found.slices_seen,
        "computed": network.slices,  # last batches are filled up
        "volume_ml": found.volume_ml,
    }


def gflop_per_slice(network: keras.Model) -> float:
    from napari_pancreas_seg.model.attention_unet import gflop_per_slice as cost

    return cost(network)


def first_mask(volume: CTVolume, loaded: LoadedModel, z: int) -> float:
    """Seconds until the first slice's mask is there, when somebody looks at slice z."""
    started = time.perf_counter()
    steps = nps.iter_segment(volume, loaded, Options(first_slice=z))
    for step in steps:
        if step.slices is not None:
            break
    seconds = time.perf_counter() - started
    steps.close()
    return seconds


def network_alone(network: keras.Model, batch: int, repeats: int) -> dict[str, Any] | None:
    """GFLOP/s of the network on a batch in memory, nothing around it; TensorFlow only."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    run = tf.function(lambda x: network(x, training=False)["probability"])
    x = tf.random.uniform((batch, *network.input_shape[1:]))
    spent = [timed(lambda: run(x).numpy())[0] for _ in range(repeats + 1)][1:]
    gflop = gflop_per_slice(network) * batch
    return {
        "batch": batch,
        "gflop_per_s": gflop / min(spent),
        "gflop_per_s_median": gflop / statistics.median(spent),
    }


def gland(request: speed_task.Request) -> dict[str, Any]:
    """(start, stop) of the slices of the CT that show the gland; the middle if none is found."""
    volume = nps.load_ct(request["ct"])
    loaded = LoadedModel(request["model"], request["device"])
    found = np.flatnonzero(nps.segment(volume, loaded).mask.any(axis=(1, 2)))
    n = volume.grid.shape[0]
    if len(found) == 0:
        found = np.array([n // 3, 2 * n // 3])
    margin = round(MARGIN_MM / volume.spacing[0])
    card = loaded.card
    return {
        "gland": [max(0, int(found[0]) - margin), min(n, int(found[-1]) + 1 + margin)],
        "found": [int(found[0]), int(found[-1]) + 1],
        "model": f"{card['name']} {card['version']} ({card['weights_sha256'][:12]})",
        "gflop_per_slice": gflop_per_slice(loaded.predictor.network),
    }


def ours(request: speed_task.Request) -> dict[str, Any]:
    """This program on the CT: first run, warm runs, every slice, first mask, 100 slices."""
    starting = time.time() - psutil.Process().create_time()
    reading, volume = timed(lambda: nps.load_ct(request["ct"]))
    loading, loaded = timed(lambda: LoadedModel(request["model"], request["device"]))
    repeats = request["repeats"]
    first = one_run(volume, loaded)
    warm = [one_run(volume, loaded) for _ in range(repeats)]
    peak = speed_task.peak_gb()  # before other shapes are compiled
    few = 1 + (repeats + 1) // 2  # the first of them compiles
    all_slices = [one_run(volume, loaded, every_slice=True) for _ in range(few)][1:]
    middle = sum(request["gland"]) // 2
    soon = [first_mask(volume, loaded, middle) for _ in range(few)][1:]
    n = min(request["abdomen"], volume.grid.shape[0])
    abdomen = speed_cts.cut(volume, *speed_cts.around(request["gland"], volume.grid.shape[0], n))
    abdomen_runs = [one_run(abdomen, loaded) for _ in range(few)]
    network = loaded.predictor.network
    return {
        "starting": starting,
        "reading": reading,
        "loading": loading,
        "first": first,
        "warm": warm,
        "peak_gb_runs": peak,
        "every_slice": all_slices,
        "first_mask": soon,
        "abdomen": {"slices": n, "first": abdomen_runs[0], "warm": abdomen_runs[1:]},
        "alone": network_alone(network, loaded.device.batch_size, 3 * repeats),
        "gflop_per_slice": gflop_per_slice(network),
        "slices": volume.grid.shape[0],
    }


def grown(request: speed_task.Request) -> dict[str, Any]:
    """This program on one more CT, in a process that has seen no other."""
    reading, volume = timed(lambda: nps.load_ct(request["ct"]))
    loaded = LoadedModel(request["model"], request["device"])
    first = one_run(volume, loaded)
    return {
        "slices": volume.grid.shape[0],
        "reading": reading,
        "first": first,
        "warm": [one_run(volume, loaded) for _ in range(request["repeats"])],
    }


def article(request: speed_task.Request) -> dict[str, Any]:
    """The article's network and way: ``model.predict`` for every slice; weights are random."""
    from napari_pancreas_seg.model.attention_unet import ARCHITECTURES, build

    shape = replace(ARCHITECTURES["article"], **request.get("architecture", {}))
    network = build(shape)

    def predict(image: np.ndarray) -> np.ndarray:
        return network.predict(image[None], verbose=0)["probability"][0, ..., 0]

    hu = nps.load_ct(request["ct"]).hu
    found = slice_by_slice(hu, predict, shape.height, request.get("most_slices"))
    return {
        **found,
        "gflop_per_slice": gflop_per_slice(network),
        "parameters": network.count_params(),
    }


def matmul(request: speed_task.Request) -> dict[str, Any]:
    """The machine's rate of float32 matrix products, GFLOP/s: the limit of what can be reached."""
    import tensorflow as tf

    n, repeats = request["size"], request["repeats"]
    values = np.random.default_rng(0).standard_normal((2, n, n)).astype(np.float32)
    a, b = (tf.constant(v) for v in values)

    def rates(product: Callable[[], Any]) -> dict[str, float]:
        spent = [timed(product)[0] for _ in range(repeats + 2)][2:]
        gflop = 2 * n**3 / 1e9
        return {"best": gflop / min(spent), "median": gflop / statistics.median(spent)}

    return {
        "size": n,
        "tensorflow": rates(lambda: tf.linalg.matmul(a, b).numpy()),
        "numpy": rates(lambda: values[0] @ values[1]),
    }


def ellipsoid(volume: CTVolume, gland: Sequence[int]) -> np.ndarray:
    """A mask about as large as a pancreas, in the slices (start, stop) given."""
    centre = [sum(gland) / 2, volume.grid.shape[1] / 2, volume.grid.shape[2] / 2]
    radii = [(gland[1] - gland[0]) / 2, 20 / volume.spacing[1], 50 / volume.spacing[2]]
    z, y, x = (
        (np.arange(n) - c) / r for n, c, r in zip(volume.grid.shape, centre, radii, strict=True)
    )
    inside = (z**2)[:, None, None] + (y**2)[:, None] + x**2 < 1
    return inside.astype(np.uint8)


def files(request: speed_task.Request) -> dict[str, Any]:
    """Seconds to read the CT and to write a mask, compressed and not; nibabel's beside them."""
    import nibabel as nib

    folder, repeats = Path(request["folder"]), request["repeats"]
    seconds: dict[str, list[float]] = {}
    for suffix in (".nii.gz", ".nii"):
        ct = folder / f"bench{suffix}"
        volume = nps.load_ct(ct)
        mask = ellipsoid(volume, request["gland"])
        out = folder / f"written{suffix}"
        image = nib.Nifti1Image(volume.to_source_order(mask), volume.source.affine)
        work: dict[str, Callable[[], Any]] = {
            f"read CT {suffix}": lambda ct=ct: nps.load_ct(ct),
            f"read CT {suffix}, nibabel": lambda ct=ct: np.asarray(nib.load(ct).dataobj),
            f"write mask {suffix}": lambda m=mask, v=volume, out=out: nps.save_mask(
                m, like=v, path=out, overwrite=True
            ),
            f"write mask {suffix}, nibabel": lambda image=image, out=out: nib.save(image, out),
        }
        for name, function in work.items():
            seconds[name] = [timed(function)[0] for _ in range(repeats)]
    return {"seconds": seconds}


def gpu(request: speed_task.Request) -> dict[str, Any]:
    """What devices there are, and this program's speed on the first GPU."""
    from napari_pancreas_seg.inference.devices import list_devices

    devices, why = list_devices()
    reply: dict[str, Any] = {"devices": [device["name"] for device in devices], "why": why}
    if len(devices) > 1:
        loaded = LoadedModel(request["model"], devices[1]["id"])
        volume = nps.load_ct(request["ct"])
        one_run(volume, loaded)
        reply["every_slice"] = [one_run(volume, loaded, True) for _ in range(4)][1:]
        reply["warm"] = [one_run(volume, loaded) for _ in range(4)][1:]
        reply["alone"] = network_alone(loaded.predictor.network, loaded.device.batch_size, 9)
    return reply


if __name__ == "__main__":
    speed_task.main(
        {
            "gland": gland,
            "ours": ours,
            "grown": grown,
            "article": article,
            "matmul": matmul,
            "files": files,
            "gpu": gpu,
        }
    )
