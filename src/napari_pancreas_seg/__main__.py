"""``python -m napari_pancreas_seg`` does what the command ``napari-pancreas-seg`` does."""

import gc

from napari_pancreas_seg.cli import main


def script() -> int:
    """Run the command line in a process of its own, which ends then."""
    try:
        return main()
    finally:
        gc.freeze()  # nothing is searched for garbage any more: TensorFlow leaves a lot to search


if __name__ == "__main__":
    raise SystemExit(script())
