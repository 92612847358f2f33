"""Killed while it writes, the command leaves the old files or the new ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_segment.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
@pytest.mark.skipif(not BENCHMARK.exists(), reason="the benchmarks are not part of this")
def test_killed_while_segmenting(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("kill_segment", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found, wrong = module.kill_many(tmp_path, 2, seed=3)
    assert wrong == []
    assert found.total() == 2
