"""What a measuring process is: it reads a request, runs one task, writes a reply.

Every measurement of `speed` runs in a process of its own, so that imports, compiled functions
and the peak of memory are its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Task = Callable[[Request], dict[str, Any]]


def peak_gb() -> float | None:
    """The most memory this process has held so far, in units of 10⁹ bytes; None if unknown."""
    try:
        # Not getrusage: on Linux its peak is inherited from the process that started this one.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main(tasks: Mapping[str, Task]) -> None:
    """Be the process: ``SCRIPT TASK REQUEST.json REPLY.json``."""
    name, request, reply = sys.argv[1:]
    answer = tasks[name](json.loads(Path(request).read_text(encoding="utf-8")))
    answer["peak_gb"] = peak_gb()
    Path(reply).write_text(json.dumps(answer), encoding="utf-8")
