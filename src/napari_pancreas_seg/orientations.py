"""nibabel's functions on orientation arrays, loaded when the first of them is used.

nibabel brings pydicom and much else along, which takes longer than all of this package: too long
for a panel that nobody works with yet, and for ``--help``.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("nibabel.orientations"), name)
