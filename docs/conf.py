"""The documentation site: Markdown pages, and the API from its numpydoc docstrings."""

import napari_pancreas_seg

project = "napari-pancreas-seg"
author = "napari-pancreas-seg developers"
version = release = napari_pancreas_seg.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_heading_anchors = 4
numpydoc_show_class_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say them, with shapes and units
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = "napari-pancreas-seg"
