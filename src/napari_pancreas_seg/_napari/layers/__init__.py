"""Volumes and napari's layers: placement, reading, writing, maps."""
