"""What a CT of a cohort costs: seconds, memory and disk, with and without overlap, and resuming.

    python benchmarks/cohort_cost.py                          # the phantom on a clinical grid
    python benchmarks/cohort_cost.py --ct FILE_OR_FOLDER      # CTs of your own

Copies of the CT are segmented by the command line, as a cohort would be: one of them alone, then
all. What a further one costs is what all take longer than one, shared among the others; so it does
not matter what goes on beside what. Then the folder is gone through again with all done, with as
many links to one CT as --resume says. The figures go to results/cohort.json, and from there into
the table of docs/cohorts.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from scipy.ndimage import zoom

from napari_pancreas_seg import __version__, io
from napari_pancreas_seg.cohort.cases import find_inputs
from napari_pancreas_seg.data.sample import load_sample
from napari_pancreas_seg.inference.saving import read_sidecar
from napari_pancreas_seg.volume import CTVolume, Grid

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cohort.json"
PAGE = HERE.parent / "docs" / "cohorts.md"
BEGIN, END = "<!-- cohort_cost: begin -->", "<!-- cohort_cost: end -->"
CLINICAL_MM = (1.0, 0.75, 0.75)
COHORT = 10_000


def write_phantom(path: Path) -> Path:
    """The phantom on the grid of a clinical CT."""
    volume = load_sample().volume
    factors = [have / want for have, want in zip(volume.spacing, CLINICAL_MM, strict=True)]
    hu = zoom(volume.hu, factors, order=1)
    affine = volume.grid.affine.copy()
    affine[:3, :3] /= factors
    fine = CTVolume(hu, Grid(hu.shape, affine), volume.source)
    array = fine.hu.transpose(2, 1, 0)  # z, y, x to x, y, z, as NIfTI has it
    turned = affine[:, [2, 1, 0, 3]]
    return io.save_ct(CTVolume.from_source_array(array, turned), path)


def run_cohort(folder: Path, out: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Segment a folder, or a CT, by the command line: seconds, cases done, and peak of memory.

    A case that was done before has no line, and does not count.
    """
    command = [sys.executable, "-m", "napari_pancreas_seg", "segment", str(folder)]
    lines: list[str] = []
    peak = 0
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        child = psutil.Popen(
            [*command, "-o", str(out), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        reader = threading.Thread(target=lambda: lines.extend(child.stdout))
        reader.start()
        while reader.is_alive():
            with contextlib.suppress(psutil.Error):
                peak = max(peak, child.memory_info().rss)
            reader.join(0.02)
        status = child.wait()
        whole = time.perf_counter() - start
        errors.seek(0)
        if status != 0:
            raise SystemExit("".join(lines) + errors.read())
    return {"seconds": whole, "cases": len(lines), "peak_bytes": peak}


def measure_run(folder: Path, out: Path, workers: int, model: str) -> dict[str, Any]:
    """What a CT costs with so many threads beside the network."""
    arguments = ["--workers", str(workers), "--model", model]
    cts = sorted(folder.iterdir())
    shutil.rmtree(out, ignore_errors=True)
    one = run_cohort(cts[0], out / f"{cts[0].name.split('.')[0]}_mask.nii.gz", arguments)
    shutil.rmtree(out, ignore_errors=True)
    run = run_cohort(folder, out, arguments)
    per_ct = (run["seconds"] - one["seconds"]) / (run["cases"] - 1)
    records = [read_sidecar(path) for path in sorted(out.glob("*_mask.json"))]
    stages: dict[str, list[float]] = {}
    for record in records[1:]:  # the first one waits for the network
        for name, seconds in (record or {})["seconds"].items():
            stages.setdefault(name, []).append(seconds)
    return {
        "workers": workers,
        "cts": run["cases"],
        "seconds": run["seconds"],
        "start_seconds": one["seconds"] - per_ct,
        "seconds_per_ct": per_ct,
        "peak_gb": run["peak_bytes"] / 1e9,
        "stages": {name: statistics.median(values) for name, values in stages.items()},
    }


def measure_resume(ct: Path, folder: Path, count: int, model: str) -> dict[str, Any]:
    """How long it takes to see that so many cases are done; all are links to one."""
    cts, out = folder / "links", folder / "done"
    cts.mkdir()
    first = cts / f"0{''.join(ct.suffixes)}"
    os.link(ct, first)
    run_cohort(cts, out, ["--model", model])
    for number in range(1, count):
        os.symlink(first, cts / f"{number}{''.join(ct.suffixes)}")  # one CT, that was done
        for kind in ("mask.nii.gz", "mask.json"):
            os.link(out / f"0_{kind}", out / f"{number}_{kind}")
    run = run_cohort(cts, out, ["--model", model])
    assert not run["cases"], "something was done again"
    return {"cases": count, "seconds": run["seconds"]}


def size(paths: Sequence[Path]) -> int:
    files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    return sum(file.stat().st_size for file in files)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cts = folder / "cts"
        cts.mkdir()
        if arguments.ct is None:
            sources = [write_phantom(folder / "phantom.nii.gz")]
        else:
            sources = list(find_inputs([arguments.ct]))
        for number in range(max(arguments.copies, len(sources))):
            source = sources[number % len(sources)]
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, cts / f"{number:04}_{source.name}")
        volume = io.load_ct(sources[0])
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        runs = [
            measure_run(cts, folder / "out", workers, arguments.model)
            for workers in arguments.workers
        ]
        out = folder / "out"
        made = len(list(out.glob("*_mask.json")))
        results = {
            "program": __version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "load_before": load,
            "ct": {
                "what": "phantom" if arguments.ct is None else "given",
                "shape": list(volume.grid.shape),
                "spacing_mm": list(volume.spacing),
                "mb": size(list(find_inputs([cts]))) / 1e6 / made,
            },
            "model": (read_sidecar(next(out.glob("*_mask.json"))) or {})["model"],
            "output_mb_per_ct": size(list(out.iterdir())) / 1e6 / made,
            "runs": runs,
        }
        single = next((path for path in sources if path.is_file()), None)
        if arguments.resume and single is not None:
            results["resume"] = measure_resume(single, folder, arguments.resume, arguments.model)
        return results


def rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(results: Mapping[str, Any]) -> str:
    """The page's table, in Markdown."""
    ct, resume = results["ct"], results.get("resume")
    z, y, x = ct["shape"]
    load = results["load_before"]
    busy = load is not None and load > 0.5
    what = "the phantom" if ct["what"] == "phantom" else "given CTs"
    model = results["model"]
    lines = [
        f"{results['cores']} processor cores, no GPU asked for, {results['system']}, "
        f"Python {results['python']}; {what}, {x}×{y}×{z} voxels, {ct['mb']:.0f} MB a CT; model "
        f"{model['name']} {model['version']}"
        + (f"; **on a busy machine** (load {load:.1f} before the run)." if busy else "."),
        "",
        "| | " + " | ".join(f"`--workers {run['workers']}`" for run in results["runs"]) + " |",
        "| --- |" + " ---: |" * len(results["runs"]),
    ]

    def row(name: str, values: Sequence[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    runs = results["runs"]
    row("CTs in the run", [str(run["cts"]) for run in runs])
    row("start of the program, once (s)", [f"{run['start_seconds']:.1f}" for run in runs])
    row("each CT (s)", [f"{run['seconds_per_ct']:.2f}" for run in runs])
    for stage in dict.fromkeys(name for run in runs for name in run["stages"]):
        values = [run["stages"].get(stage, 0.0) for run in runs]
        if max(values) >= 0.005:
            row(f"of it {stage} (s)", [f"{value:.2f}" for value in values])
    row("peak memory (GB)", [f"{run['peak_gb']:.2f}" for run in runs])
    hours = [run["seconds_per_ct"] * COHORT / 3600 for run in runs]
    row(f"{COHORT:,} CTs (h)", [f"{value:.1f}" for value in hours])
    lines += [
        "",
        f"A mask with its sidecar takes {results['output_mb_per_ct']:.2f} MB: "
        f"{results['output_mb_per_ct'] * COHORT / 1000:.1f} GB for {COHORT:,}.",
    ]
    if resume:
        lines.append(
            f"To see that {resume['cases']:,} cases are done takes {resume['seconds']:.1f} s, the "
            "start of the program included."
        )
    return "\n".join(lines)


def write_page(results: Mapping[str, Any], page: Path = PAGE) -> None:
    """Put the table into the page, between its marks."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, help="a CT, or a folder of CTs, instead of the phantom")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="default")
    parser.add_argument("--resume", type=int, default=COHORT, help="cases done; 0 leaves it out")
    parser.add_argument("--page-only", action="store_true", help="write the page from the JSON")
    arguments = parser.parse_args()
    if not arguments.page_only:
        results = rounded(measure(arguments))
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_page(results)
    print(table(results))


if __name__ == "__main__":
    main()
