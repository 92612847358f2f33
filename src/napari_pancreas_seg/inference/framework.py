"""Keras, imported when there is work for it."""

from __future__ import annotations

import gc
import sys


def load_framework() -> None:
    """Import Keras and its backend, without the garbage collection that would double the time."""
    if "keras" in sys.modules:
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        import keras  # noqa: F401
    finally:
        if enabled:
            gc.enable()
