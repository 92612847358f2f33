"""What File › Open Sample offers."""

from __future__ import annotations

from napari_pancreas_seg._napari.layers.bridge import LayerData, ct_layer_data

__all__ = ["example", "phantom"]


def phantom() -> list[LayerData]:
    """Make the synthetic CT phantom; needs no network and holds no patient."""
    from napari_pancreas_seg.data.phantom import make_phantom

    return [ct_layer_data(make_phantom().volume, "synthetic CT")]


def example() -> list[LayerData]:
    """Open a CT of a patient that is published for tests, downloaded once.

    Raises
    ------
    PancreasSegError
        If it is not there yet and cannot be downloaded.
    """
    from napari_pancreas_seg.data.example import example_ct_path
    from napari_pancreas_seg.io import load_ct

    return [ct_layer_data(load_ct(example_ct_path()), "example CT")]
