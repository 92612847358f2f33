"""Write the program's sample CT, ``src/napari_pancreas_seg/data/sample.npz``, anew.

    PYTHONPATH=research python -m phantom.make_sample

It is `make_phantom` of seed 0: its HU without noise, in JPEG-LS with an error of at most 5 HU, and
the state of the random numbers from which `load_sample` makes the same noise.
"""

from __future__ import annotations

import io
import json

import imagecodecs
import numpy as np

import napari_pancreas_seg.data.sample as sample
from phantom import DEFAULT_SHAPE, DEFAULT_SPACING_MM, anatomy, blurred, largest_piece, placed
from phantom.canvas import Canvas

SEED, LARGEST_ERROR_HU = 0, 5


def main() -> None:
    """Draw the CT and write the file."""
    rng = np.random.default_rng([20240, SEED])
    canvas = Canvas(DEFAULT_SHAPE, DEFAULT_SPACING_MM, rng)
    mask = largest_piece(anatomy.paint_abdomen(canvas))
    state = rng.bit_generator.state
    clean = blurred(canvas)
    sample.add_noise(clean, DEFAULT_SPACING_MM, rng)  # the affine is drawn after it
    flipped, affine = placed(DEFAULT_SHAPE, DEFAULT_SPACING_MM, rng)
    stored = np.clip(np.rint(clean - sample.AIR_HU), 0, 4095).astype(np.uint16)
    slices = stored.reshape(-1, stored.shape[-1])
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        hu=np.frombuffer(imagecodecs.jpegls_encode(slices, level=LARGEST_ERROR_HU), np.uint8),
        shape=stored.shape,
        mask=np.packbits(mask),
        spacing=DEFAULT_SPACING_MM,
        flipped=np.array(flipped, int),
        affine=affine,
        state=json.dumps(state),
    )
    path = sample.PATH
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
