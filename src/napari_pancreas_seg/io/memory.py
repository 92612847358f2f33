"""Measures the free memory, so that too large a file is refused before it is read."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError

LARGEST_RATIO = 250
"""No CT shrinks so far when it is compressed (2 to 10 times); the emptiest of masks may."""

SUSPICIOUS_BYTES = 1 << 31
"""Smaller data, decompressed, may have any ratio."""

_UNLIMITED = 1 << 60
"""Control groups write a number beyond this, or a word, where there is no limit."""

_CGROUPS = Path("/sys/fs/cgroup")
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and what of it can be given back, by the newer and the older version."""


class NotEnoughMemory(PancreasSegError):
    """There is too little memory for this just now; with less beside it there may be enough."""


def available_bytes() -> int:
    """Memory that this process may still take, in bytes."""
    import psutil

    machine = psutil.virtual_memory()
    free = machine.available + psutil.swap_memory().free
    if not sys.platform.startswith("linux"):
        # Elsewhere the system makes room by compressing, which these figures do not tell.
        free = max(free, machine.total // 2)
    left = [int(free), *_left_in_control_groups(Path("/proc/self"))]
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            left.append(limit - int(psutil.Process().memory_info().vms))
    return max(0, min(left))


def check_fits(name: str, needed: int, what: str = "Reading it") -> None:
    """Refuse what needs more memory than there is, before it is taken."""
    left = available_bytes()
    if needed > left:
        raise NotEnoughMemory(
            f"'{name}' does not fit into memory: {what} takes about {needed / 1e9:.1f} GB and "
            f"{left / 1e9:.1f} GB are left; close other programs, crop the CT, or use a machine "
            "with more."
        )


def check_expansion(name: str, compressed: int, declared: int) -> None:
    """Refuse a small file that would expand to more than any image in it could be."""
    if declared > SUSPICIOUS_BYTES and declared > LARGEST_RATIO * compressed:
        raise PancreasSegError(
            f"'{name}' has {compressed / 1e6:.1f} MB and declares {declared / 1e9:.0f} GB of "
            "voxels, more than any CT is compressed; it is damaged, or made to fill the memory."
        )


def _left_in_control_groups(process: Path) -> list[int]:
    """Memory that the limits of the process's control groups leave, of version 1 and 2."""
    try:
        lines = (process / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []  # not Linux, or nothing is told
    left: list[int] = []
    for controllers, group in (line.split(":", 2)[1:] for line in lines if line.count(":") > 1):
        if controllers and "memory" not in controllers.split(","):
            continue
        for root in (_CGROUPS / "memory",) if controllers else (_CGROUPS, _CGROUPS / "unified"):
            # A limit may be set on any group above; inside a container only the root is seen.
            inner = root / group.strip("/")
            for folder in {inner, *inner.parents, root}:
                if folder == root or root in folder.parents:
                    left += _left_in(folder, *_FILES[bool(controllers)])
    return left


def _left_in(folder: Path, limit: str, used: str, cache: str) -> list[int]:
    try:
        most = int((folder / limit).read_text(encoding="utf-8"))
        taken = int((folder / used).read_text(encoding="utf-8"))
        statistics = (folder / "memory.stat").read_text(encoding="utf-8").split()
    except (OSError, ValueError):  # no such group, or "max"
        return []
    if most >= _UNLIMITED:
        return []
    numbers = dict(zip(statistics[::2], statistics[1::2], strict=False))
    return [most - taken + int(numbers.get(cache, 0))]
