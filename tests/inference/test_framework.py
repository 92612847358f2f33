"""Importing Keras leaves the search for garbage as it was."""

import subprocess
import sys

import pytest

CODE = """
import gc, sys
from napari_pancreas_seg.inference.framework import load_framework
assert "keras" not in sys.modules
{before}
load_framework()
assert "keras" in sys.modules
print(gc.isenabled(), gc.get_freeze_count())
"""


def told(before: str = "") -> list[str]:
    code = CODE.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_garbage_is_collected_afterwards_as_before():
    # Nothing is frozen either: a caller's own garbage would never be freed.
    assert told() == ["True", "0"]
    assert told("gc.disable()") == ["False", "0"]
