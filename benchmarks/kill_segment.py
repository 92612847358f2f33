"""Kill ``napari-pancreas-seg segment`` at random moments, over files that exist.

    python benchmarks/kill_segment.py --times 50 --seed 1

After each kill the mask must be the old file or a new one, bit for bit, the sidecar must be whole
JSON, and a run that is left alone must succeed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np


def write_ct(path: Path) -> None:
    """A small CT of a body: fat around soft tissue, and noise."""
    i, j, _ = np.indices((64, 56, 12))
    r = np.hypot((i - 32) / 28, (j - 28) / 24)
    hu = np.where(r < 0.85, 90.0, np.where(r < 1, -100.0, -1000.0))
    hu += np.random.default_rng(0).normal(0, 12, hu.shape)
    affine = np.diag([-5.0, -5.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(hu.round().clip(-1024).astype(np.int16), affine), path)


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "napari_pancreas_seg", "segment", str(folder / "ct.nii.gz")),
        *("-o", str(folder / "m.nii.gz"), "--overwrite", "--probability"),
    ]


def kill_many(folder: Path, times: int, seed: int) -> tuple[Counter[str], list[str]]:
    """What was there after each kill, and what was wrong with it."""
    write_ct(folder / "ct.nii.gz")
    start = time.perf_counter()
    subprocess.run(command(folder), check=True, capture_output=True)
    whole = time.perf_counter() - start
    new = {name: (folder / name).read_bytes() for name in ("m.nii.gz", "m_probability.nii.gz")}
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    wrong = []
    for number in range(times):
        for name in new:
            (folder / name).write_bytes(b"old")
        (folder / "m.json").write_text('"old"')
        child = subprocess.Popen(
            command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Half of the kills fall into the last tenth, when the files are written.
        moment = rng.uniform(0, 1.1) if number % 2 else rng.uniform(0.85, 1.05)
        time.sleep(moment * whole)
        child.send_signal(signal.SIGKILL)
        child.wait()
        states = []
        for name, content in new.items():
            now = (folder / name).read_bytes()
            states.append("old" if now == b"old" else "new" if now == content else "a part")
        states.append("old" if json.loads((folder / "m.json").read_text()) == "old" else "new")
        found["/".join(states)] += 1
        visible = {item for item in os.listdir(folder) if not item.startswith(".")}
        if "a part" in states or visible != {"ct.nii.gz", "m.json", *new}:
            wrong.append(f"kill {number} after {moment * whole:.2f} s: {states} {visible}")
    subprocess.run(command(folder), check=True, capture_output=True)
    if any((folder / name).read_bytes() != content for name, content in new.items()):
        wrong.append("the run after the kills gave another mask")
    return found, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        found, wrong = kill_many(Path(name), arguments.times, arguments.seed)
    for states, times in found.most_common():
        print(f"{times:4d} times mask/probability/sidecar: {states}")
    print(
        f"{arguments.times} kills, seed {arguments.seed}: {len(wrong)} broken files; "
        f"{time.perf_counter() - start:.0f} s"
    )
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
