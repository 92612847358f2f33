"""How fast, against what: every ratio measured in one run on one machine.

    python benchmarks/speed.py --ct CT -o benchmarks/results/speed.json --page docs/benchmarks.md

The CT is interpolated to 0.75 × 0.75 × 1 mm (a synthetic one is made if none is given) and goes
through this program, through the article's network the article's way, through MONAI's Attention
U-Net slice by slice and through a 3-D nnU-Net at 3 mm. For the last two, ``--torch-python`` names
a Python that has torch, monai, nibabel and scikit-image; without it they are left out.

Each measurement runs in a process of its own, one at a time, and the competitors take turns, so
that a machine that slows down slows all of them. ``--quick`` runs everything once on a coarser CT
to see that it works: its figures mean nothing. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import speed_page
from napari_pancreas_seg import __version__

HERE = Path(__file__).resolve().parent
SPACING_MM = (1.0, 0.75, 0.75)
QUICK_SPACING_MM = (8.0, 3.0, 3.0)
GROWTH = (50, 100, 200, 700, 1000, 2000)
MATMUL = 2048

COMPETITORS = ("matmul", "ours", "article", "monai", "nnunet", "command")
"""These take turns; `SLOW` ones have fewer of them."""
SLOW = ("article", "monai", "nnunet")
ONCE = ("growth", "files", "gpu", "window")
SCRIPTS = {"monai": "speed_torch.py", "nnunet": "speed_torch.py"}
OURS = "speed_ours.py"


class Failed(Exception):
    """A measurement gave no figures; the text says why."""


@dataclass
class Bench:
    """What all measurements share."""

    folder: Path
    torch_python: str | None
    timeout: float
    see_gpu: bool = False

    def child(self, script: str, task: str, **request: Any) -> dict[str, Any]:
        """Run one task in a process of its own; see `speed_task`."""
        python = self.torch_python if script == "speed_torch.py" else sys.executable
        if python is None:
            raise Failed("no Python with torch and monai was named (--torch-python)")
        asked, answered = self.folder / "request.json", self.folder / "reply.json"
        answered.unlink(missing_ok=True)
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [python, str(HERE / script), task, str(asked), str(answered)]
        self.run(command)
        reply: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return reply

    def run(self, command: list[str]) -> tuple[float, float | None, str]:
        """Seconds of a process from start to end, the peak of its memory in GB, what it said."""
        log = self.folder / "log.txt"
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if not self.see_gpu:
            environment["CUDA_VISIBLE_DEVICES"] = "-1"
        with log.open("w", encoding="utf-8") as said:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
            try:
                peak = _wait(process, started + self.timeout)
            except BaseException:
                process.kill()
                process.wait()
                raise
            seconds = time.perf_counter() - started
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.returncode:
            last = [line for line in text.strip().splitlines() if line.strip()][-1:]
            raise Failed(f"it ended with status {process.returncode}: {''.join(last)}")
        return seconds, peak, text


def _wait(process: subprocess.Popen[bytes], deadline: float) -> float | None:
    """Wait for a process; the peak of its memory in GB where the system tells."""
    if not hasattr(os, "wait4"):
        process.wait(max(0.0, deadline - time.perf_counter()))
        return None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if time.perf_counter() > deadline:
            raise Failed("it took too long")
        time.sleep(0.005)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if "model name" in x), name)
    packages = ("tensorflow", "keras", "numpy", "scipy", "nibabel")
    versions = {"napari-pancreas-seg": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": name or platform.machine(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "busy_before": round(psutil.cpu_percent(interval=2.0) / 100, 2),
    }


def competitor(bench: Bench, name: str, common: dict[str, Any], quick: bool) -> dict[str, Any]:
    """One turn of one competitor."""
    if name == "command":
        return command_line(bench, common["model"])
    own: dict[str, Any] = {}
    if name == "matmul":
        own = {"size": 512 if quick else MATMUL, "repeats": 10}
    elif name == "ours":
        own = {"repeats": 1 if quick else 5, "abdomen": 20 if quick else speed_page.ABDOMEN}
    elif quick and name in SLOW:
        own = {"most_slices": 4}
        if name == "nnunet":
            own = {"features": (4, 8, 16), "classes": 2}
    return bench.child(SCRIPTS.get(name, OURS), name, **common, **own)


def command_line(bench: Bench, model: str) -> dict[str, Any]:
    """From the command line, from the start of the process to its end, file to file."""
    reply: dict[str, Any] = {}
    for suffix in (".nii.gz", ".nii"):
        arguments = ["segment", str(bench.folder / f"bench{suffix}"), "--model", model]
        arguments += ["-o", str(bench.folder / f"mask{suffix}"), "--overwrite"]
        seconds, peak, _ = bench.run([sys.executable, "-m", "napari_pancreas_seg", *arguments])
        reply[suffix] = {"seconds": seconds, "peak_gb": peak}
    return reply


def growth(bench: Bench, common: dict[str, Any], chest: list[str], quick: bool) -> dict[str, Any]:
    """How time and memory grow with the CT, and with the chest above the gland."""
    have = common["shape"][0]
    sizes = sorted({*((have // 2, have + 10) if quick else GROWTH), have})
    made = bench.folder / "grown.nii"
    rows = []
    for n in [*sizes, None]:  # None: the chest above the gland doubled
        begun = bench.child(
            "speed_cts.py", "grow", bench=common["ct"], gland=common["gland"], chest=chest,
            slices=n, to=str(made),
        )  # fmt: skip
        row = bench.child(
            OURS, "grown", ct=str(made), model=common["model"], device=common["device"],
            repeats=1 if quick else 3,
        )  # fmt: skip
        rows.append({**row, "what": "slices" if n else "chest doubled"})
        say(f"  {begun['slices']} slices: {speed_page.median_seconds(row['warm']):.2f} s")
        made.unlink()
    return {"bench": have, "rows": rows}


def window(bench: Bench, common: dict[str, Any], quick: bool) -> dict[str, Any]:
    """First mask on screen after Run; see `first_mask`."""
    command = [sys.executable, str(HERE / "first_mask.py"), common["ct"]]
    command += ["--warm-up-seconds", "5" if quick else "30"]
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        if shutil.which("xvfb-run") is None:
            raise Failed("there is no screen, and no xvfb-run to make one")
        command = ["xvfb-run", "-a", "-s", "-screen 0 1280x800x24", *command]
    _, _, text = bench.run(command)
    return {"runs": speed_page.read_first_mask(text)}


def say(text: str) -> None:
    print(text, flush=True)


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything that was asked for; what fails is left out, with the reason."""
    bench = Bench(folder, asked.torch_python, asked.timeout)
    wanted = set(asked.only.split(",")) if asked.only else {*COMPETITORS, *ONCE}
    unknown = wanted - {*COMPETITORS, *ONCE}
    if unknown:
        raise SystemExit(f"--only knows {', '.join((*COMPETITORS, *ONCE))}")
    results: dict[str, Any] = {
        "made": date.today().isoformat(),
        "quick": asked.quick,
        "looks": 2,
        "machine": machine(),
        "rounds": {},
        "once": {},
        "left_out": {},
    }
    say("making the CT")
    spacing = QUICK_SPACING_MM if asked.quick else SPACING_MM
    ct = bench.child("speed_cts.py", "bench", ct=asked.ct, spacing_mm=spacing, folder=str(folder))
    common = {"ct": str(folder / "bench.nii"), "model": asked.model, "device": "cpu"}
    found = bench.child(OURS, "gland", **common)
    results |= {"ct": {**ct, **{k: found[k] for k in ("gland", "found")}}}
    results |= {k: found[k] for k in ("model", "gflop_per_slice")}
    common |= {"gland": found["gland"], "spacing_mm": ct["spacing_mm"], "folder": str(folder)}
    common |= {"shape": ct["shape"]}

    def attempt(name: str, work: Any) -> dict[str, Any] | None:
        started = time.perf_counter()
        try:
            reply: dict[str, Any] = work()
        except Failed as failure:
            say(f"{name} left out: {failure}")
            results["left_out"][name] = str(failure)
            return None
        say(f"{name} took {time.perf_counter() - started:.0f} s")
        return reply

    def keep(place: dict[str, Any], name: str, reply: Any) -> None:
        """Write what there is: a run that is ended early has not been for nothing."""
        if reply is not None:
            place[name] = reply
            if asked.output:
                write(asked.output, results)

    for turn in range(1 if asked.quick else asked.rounds):
        for name in COMPETITORS:
            if name not in wanted or name in results["left_out"]:
                continue
            if name in SLOW and turn >= asked.slow_rounds:
                continue
            got = attempt(name, lambda n=name: competitor(bench, n, common, asked.quick))
            turns = results["rounds"].get(name, [])
            keep(results["rounds"], name, got and [*turns, got])
    repeats = 1 if asked.quick else 3
    single = {
        "growth": lambda: growth(bench, common, asked.chest, asked.quick),
        "files": lambda: bench.child(OURS, "files", **common, repeats=repeats),
        "gpu": lambda: replace(bench, see_gpu=True).child(OURS, "gpu", **common),
        "window": lambda: window(bench, common, asked.quick),
    }
    for name, work in single.items():
        if name in wanted:
            keep(results["once"], name, attempt(name, work))
    return results


def write(path: Path, results: dict[str, Any]) -> None:
    """Write figures, and what follows from them, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**results, "summary": speed_page.summarise(results)}
    path.write_text(json.dumps(speed_page.rounded(whole), indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the figures, and the page that shows them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", help="the CT; a synthetic one by default")
    parser.add_argument(
        "--chest",
        nargs="*",
        default=[],
        metavar="FILE[:N]",
        help="CTs of the chest, without their lowest N slices, to make longer CTs",
    )
    parser.add_argument("-o", "--output", type=Path, help="JSON to write the figures to")
    parser.add_argument("--page", type=Path, help="page to write from the figures")
    parser.add_argument(
        "--page-only",
        action="store_true",
        help="measure nothing: write the page from the JSON that is there",
    )
    parser.add_argument("--model", default="default")
    parser.add_argument(
        "--torch-python",
        metavar="PATH",
        help="a Python that has torch, monai, nibabel and scikit-image",
    )
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join((*COMPETITORS, *ONCE))}")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each competitor")
    parser.add_argument("--slow-rounds", type=int, default=2, help="of those, for slow ones")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one process")
    parser.add_argument("--quick", action="store_true", help="once, coarsely: does it work?")
    asked = parser.parse_args(arguments)  # fmt: skip
    # Ended from outside, it takes its child and its large files along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if asked.page_only:
        if asked.page is None or asked.output is None:
            parser.error("--page-only wants the JSON (-o) and the page (--page)")
        results = json.loads(asked.output.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            try:
                results = measure(asked, Path(folder))
            except Failed as failure:
                print(f"Nothing was measured: {failure}", file=sys.stderr)
                return 1
        if asked.output:
            write(asked.output, results)
    schedule = HERE / "results" / "schedule_dice.json"
    known = json.loads(schedule.read_text(encoding="utf-8")) if schedule.exists() else None
    page = speed_page.page(speed_page.rounded(results), known)
    if asked.page:
        asked.page.write_text(page, encoding="utf-8")
    elif not asked.output:
        say(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
