"""How much goes to a GPU at once: nothing here has one."""

import pytest

from napari_pancreas_seg.inference import devices


@pytest.mark.parametrize(
    ("gigabytes", "batch"), [(0.1, 1), (0.5, 2), (2, 8), (6, 16), (8, 32), (140, 64), (None, 16)]
)
def test_the_batch_takes_half_of_the_free_memory_at_most(gigabytes, batch):
    free = None if gigabytes is None else int(gigabytes * 1e9)
    assert devices._gpu_batch(free) == batch


def test_a_gpu_computes_in_half_precision(monkeypatch):
    monkeypatch.setattr(devices, "_gpu_count", lambda: 1)
    monkeypatch.setattr(devices, "_free_bytes", lambda number: 10**10)
    gpu = devices.choose_device("auto")
    assert (gpu.name, gpu.batch_size, gpu.policy) == ("gpu:0", 32, "mixed_float16")
    assert devices.choose_device("cpu").policy == "float32"


def test_what_the_driver_says_of_free_memory(monkeypatch):
    class Told:
        stdout = "12345\n"

    monkeypatch.setattr(devices.subprocess, "run", lambda *args, **kwargs: Told)
    assert devices._free_bytes(0) == 12345 * 2**20

    def missing(*args, **kwargs):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(devices.subprocess, "run", missing)
    assert devices._free_bytes(0) is None


@pytest.mark.parametrize(
    ("visible", "number", "asked"),
    [(None, 1, "1"), ("", 1, "1"), ("3, 5", 1, "5"), ("GPU-ab", 0, "GPU-ab")],
)
def test_the_driver_is_asked_for_the_gpu_that_the_backend_sees(visible, number, asked, monkeypatch):
    class Told:
        stdout = "1\n"

    def run(command, **how):
        assert command[-1] == f"--id={asked}"
        return Told

    monkeypatch.setattr(devices.subprocess, "run", run)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices._free_bytes(number) == 2**20


def test_half_precision_gives_the_same_mask(tiny_bundle):
    import numpy as np

    from napari_pancreas_seg.model.bundle import load_bundle

    bundle = load_bundle(tiny_bundle)
    whole, half = bundle.network(), bundle.network("mixed_float16")
    shape = (2, *whole.input_shape[1:])
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    a, b = (net.predict_on_batch(x)["probability"] for net in (whole, half))
    assert b.dtype == np.float32
    np.testing.assert_allclose(a, b, atol=0.02)
