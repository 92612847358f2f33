"""Importing Keras and its backend, which takes seconds."""

from __future__ import annotations

import gc
import sys

__all__ = ["load_framework"]


def load_framework() -> None:
    """Import Keras, unless it is there already.

    TensorFlow makes a million objects that stay to the end. Searching them for garbage, while
    they come and when the process ends, took nearly half of the time of both: so that rests
    meanwhile, and never looks at them (`gc.freeze`).
    """
    if "keras" in sys.modules:
        return
    enabled = gc.isenabled()
    gc.collect()  # what is garbage now must not be kept with the rest
    gc.disable()
    try:
        import keras  # noqa: F401
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
