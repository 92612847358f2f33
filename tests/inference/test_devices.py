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


@pytest.mark.parametrize(
    ("flags", "policy"),
    [("avx2 amx_bf16", "mixed_bfloat16"), ("avx2 avx512f", "float32"), (None, "float32")],
)
def test_a_processor_computes_in_bfloat16_if_it_has_it(flags, policy, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_PROCESSOR", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert devices.choose_device("cpu").policy == policy


@pytest.mark.slow
@pytest.mark.skipif(
    devices.choose_device("cpu").policy == "float32", reason="a processor that does not use it"
)
def test_bfloat16_gives_the_same_mask(phantom):
    from dataclasses import replace

    from napari_pancreas_seg.inference.loaded import LoadedModel
    from napari_pancreas_seg.inference.segment import segment
    from napari_pancreas_seg.mask.metrics import dice

    volume, masks = phantom.volume, []
    cpu = devices.choose_device("cpu")
    for policy in ("float32", "mixed_bfloat16"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "choose_device", lambda asked, p=policy: replace(cpu, policy=p))
            masks.append(segment(volume, LoadedModel("default", "cpu")).mask)
    assert masks[0].any() and dice(*masks) >= 0.995


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_a_network_saw_before_changes_no_bit(phantom, default_model):
    import numpy as np

    from napari_pancreas_seg.inference.loaded import LoadedModel
    from napari_pancreas_seg.inference.segment import segment

    volume = phantom.volume
    fresh, used = LoadedModel("default", "cpu"), default_model
    for stop in (3, 5):
        segment(volume, used, slices=(0, stop))
    one, other = (segment(volume, model, slices=(40, 46)) for model in (fresh, used))
    np.testing.assert_array_equal(one.probability.values, other.probability.values)
