"""napari's side of the project: the only package that imports napari and Qt."""
