"""Importing Keras leaves the search for garbage as it was."""

import subprocess
import sys

CODE = """
import gc, sys
from napari_pancreas_seg.inference.framework import load_framework
assert "keras" not in sys.modules
{before}
load_framework()
assert "keras" in sys.modules
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
frozen = gc.get_freeze_count()
load_framework()
print(gc.get_freeze_count() == frozen)
"""


def told(before: str = "") -> list[str]:
    code = CODE.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_garbage_is_collected_afterwards_as_before():
    assert told() == ["True", "True", "True"]
    assert told("gc.disable()") == ["False", "True", "True"]
