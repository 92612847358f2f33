"""``python -m napari_pancreas_seg`` does what the command ``napari-pancreas-seg`` does."""

from napari_pancreas_seg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
