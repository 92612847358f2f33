"""What others do, in PyTorch: MONAI's Attention U-Net per slice, and a 3-D nnU-Net at 3 mm.

Run by `speed` with a Python that has torch, monai, nibabel and scikit-image; this project need
not be installed there. All weights are random: only time is measured.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import AttentionUnet, DynUNet
from scipy import ndimage
from torch.utils.flop_counter import FlopCounterMode

import speed_task
from speed_slicewise import SIDE, slice_by_slice

CHANNELS = (32, 64, 128, 256, 512)

# TotalSegmentator's fast model (data set 297): nnU-Net 3d_fullres at 3 mm, as its plans have it.
SPACING_MM = 3.0
PATCH = (112, 112, 128)
FEATURES = (32, 64, 128, 256, 320, 320)
STRIDES = (1, 2, 2, 2, 2, (1, 1, 2))
CLASSES = 118


def about_here() -> dict[str, Any]:
    """Versions and threads, for the record."""
    names = ("torch", "monai")
    return {"versions": {n: version(n) for n in names}, "threads": torch.get_num_threads()}


def gflop(network: torch.nn.Module, x: torch.Tensor) -> float:
    """Floating-point operations of one pass in units of 10⁹; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(x)
    return counter.get_total_flops() / 1e9


def slices_of(path: str) -> np.ndarray:
    """A CT as (Z, Y, X), whatever its orientation: time does not depend on it."""
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


def monai(request: speed_task.Request) -> dict[str, Any]:
    """MONAI's Attention U-Net of the article's width, slice by slice."""
    side = request.get("side", SIDE)
    network = AttentionUnet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        channels=request.get("channels", CHANNELS),
        strides=(2, 2, 2, 2),
    ).eval()

    def predict(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
            return torch.sigmoid(network(batch))[0, 0].numpy()

    found = slice_by_slice(slices_of(request["ct"]), predict, side, request.get("most_slices"))
    return {
        **found,
        "gflop_per_slice": gflop(network, torch.zeros(1, 3, side, side)),
        "parameters": sum(p.numel() for p in network.parameters()),
        **about_here(),
    }


def nnunet(request: speed_task.Request) -> dict[str, Any]:
    """A 3-D U-Net as nnU-Net plans it at 3 mm, in a sliding window; resampling included."""
    patch = tuple(request.get("patch", PATCH))
    features = request.get("features", FEATURES)
    strides = STRIDES[: len(features)]
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=request.get("classes", CLASSES),
        kernel_size=[3] * len(features),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=features,
        norm_name=("INSTANCE", {"affine": True}),
    ).eval()
    hu = slices_of(request["ct"])
    spacing = request["spacing_mm"]
    windows = [0]

    def counted(x: torch.Tensor) -> torch.Tensor:
        windows[0] += len(x)
        return network(x)

    started = time.perf_counter()
    # Cubic in and nearest out, as TotalSegmentator does it.
    coarse = ndimage.zoom(hu.astype(np.float32), [s / SPACING_MM for s in spacing], order=3)
    coarse = (np.clip(coarse, -1000, 1000) - coarse.mean()) / max(float(coarse.std()), 1e-6)
    resampled = time.perf_counter()
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(coarse)[None, None], patch, 1, counted, overlap=0.5, mode="gaussian"
        )
        labels = logits.argmax(1)[0].to(torch.uint8).numpy()
    del logits
    predicted = time.perf_counter()
    index = [
        (np.arange(n) * m // n).clip(0, m - 1) for n, m in zip(hu.shape, labels.shape, strict=True)
    ]
    mask = labels[np.ix_(*index)] == 1
    ended = time.perf_counter()
    spent = {
        "resampling to 3 mm": resampled - started,
        "predicting": predicted - resampled,
        "resampling back": ended - predicted,
    }
    return {
        "seconds": ended - started,
        "parts": spent,
        "slices": len(hu),
        "windows": windows[0],
        "gflop_per_window": gflop(network, torch.zeros(1, 1, *patch)),
        "parameters": sum(p.numel() for p in network.parameters()),
        "voxels": int(mask.sum()),
        **about_here(),
    }


if __name__ == "__main__":
    speed_task.main({"monai": monai, "nnunet": nnunet})
