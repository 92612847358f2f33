"""From the figures of `speed` to what they say: ratios, targets met or not, and the page.

The page holds no figure that is not in the JSON; what was not measured says so.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
NONE = "not measured"
ABDOMEN = 100
"""Slices of the abdomen for which a target is set."""


# Figures.


LOOKS = {
    1: "Slices were looked at once, as with `--no-second-look`.",
    2: "Slices with pancreas were looked at twice.",
}


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def median_seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(run["seconds"] for run in runs)


def read_first_mask(text: str) -> list[dict[str, float]]:
    """The figures that `first_mask` prints."""
    pattern = r"run \d+: first slice after ([\d.]+) s, all after ([\d.]+) s"
    return [{"first": float(a), "all": float(b)} for a, b in re.findall(pattern, text)]


def rounded(value: Any, digits: int = 4) -> Any:
    """Plain data with floats of so many significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(v, digits) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def summarise(results: Results) -> dict[str, Any]:
    """Medians over all turns, ratios to this program, rates; None for what was not measured."""
    rounds, once = results["rounds"], results["once"]
    turns = rounds.get("ours", [])
    warm = [run for turn in turns for run in turn["warm"]]
    every = [run for turn in turns for run in turn["every_slice"]]
    seconds: dict[str, list[float]] = {
        "ours": [run["seconds"] for run in warm],
        "ours, every slice": [run["seconds"] for run in every],
        "ours, first run": [turn["first"]["seconds"] for turn in turns],
        **{k: [turn["seconds"] for turn in rounds.get(k, [])] for k in ("article", "monai")},
        "nnunet": [turn["seconds"] for turn in rounds.get("nnunet", [])],
        **{
            f"command {suffix}": [turn[suffix]["seconds"] for turn in rounds.get("command", [])]
            for suffix in (".nii.gz", ".nii")
        },
        "first mask": [s for turn in turns for s in turn["first_mask"]],
        "abdomen": [
            run["seconds"]
            for turn in turns
            if turn["abdomen"]["slices"] == ABDOMEN
            for run in turn["abdomen"]["warm"]
        ],
    }
    limit = max((t["tensorflow"]["best"] for t in rounds.get("matmul", [])), default=None)
    gflop = results.get("gflop_per_slice")
    rates = [gflop * run["computed"] / run["network"] for run in warm if run["network"]]
    alone = [turn["alone"]["gflop_per_s"] for turn in turns if turn["alone"]]
    took = {name: median(values) for name, values in seconds.items()}
    return {
        "seconds": took,
        "best": {name: min(values, default=None) for name, values in seconds.items()},
        "runs": {name: len(values) for name, values in seconds.items()},
        "times_ours": {name: ratio(value, took["ours"]) for name, value in took.items()},
        "article_by_command": ratio(took["article"], took["command .nii.gz"]),
        "matmul_gflop_per_s": limit,
        "network_gflop_per_s": median(rates),
        "network_share": ratio(median(rates), limit),
        "alone_gflop_per_s": max(alone, default=None),
        "alone_share": ratio(max(alone, default=None), limit),
        "around": median([run["around"] for run in warm]),
        "network": median([run["network"] for run in warm]),
        "computed": median([run["computed"] for run in warm]),
        "seen": median([run["seen"] for run in warm]),
        "stages": _stages(warm),
        **_growth(once.get("growth")),
    }


def _stages(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = {name: None for run in runs for name in run["stages"]}
    return {name: median([run["stages"].get(name, 0.0) for run in runs]) for name in names}


def _growth(growth: Results | None) -> dict[str, Any]:
    rows = growth["rows"] if growth else []
    plain = {row["slices"]: row for row in rows if row["what"] == "slices"}
    doubled = next((row for row in rows if row["what"] != "slices"), None)
    added = None
    if doubled:
        smaller = [n for n in plain if n < doubled["slices"]]
        base = plain.get(growth["bench"]) if growth and "bench" in growth else None
        base = base or (plain[max(smaller)] if smaller else None)
        if base:
            added = median_seconds(doubled["warm"]) / median_seconds(base["warm"]) - 1
    return {
        "chest_doubled_adds": added,
        "growth": [
            {
                "slices": row["slices"],
                "chest_doubled": row["what"] != "slices",
                "seconds": median_seconds(row["warm"]),
                "seen": row["warm"][0]["seen"],
                "reading": row["reading"],
                "peak_gb": row["peak_gb"],
            }
            for row in rows
        ],
    }


def acceptance(results: Results, found: Results) -> list[tuple[str, str, str, bool | None]]:
    """What was promised: (what, target, measured, whether it was met)."""
    peaks = {row["slices"]: row["peak_gb"] for row in found["growth"] if not row["chest_doubled"]}
    rows: list[tuple[str, float | None, str, float, str, bool]] = [
        ("End to end, warm: times faster than the article's way",
         found["times_ours"]["article"], "{:.1f}", 40, "at least 40", True),
        ("Command line, process start included: times faster than the article's way",
         found["article_by_command"], "{:.1f}", 8, "at least 8", True),
        ("Everything but the first look's network (the second look is in it), warm, s",
         found["around"], "{:.2f}", 0.8, "at most 0.8", False),
        ("The network's share of the matrix-product rate",
         found["network_share"], "{:.0%}", 0.6, "at least 60 %", True),
        ("Warm second run on an abdomen of 100 slices, s",
         found["seconds"]["abdomen"], "{:.2f}", 2.0, "under 2", False),
        ("Peak memory for the bench CT, GB",
         peaks.get(results["ct"]["shape"][0]), "{:.2f}", 2.5, "under 2.5", False),
        ("Peak memory for 2,000 slices, GB", peaks.get(2000), "{:.2f}", 6.0, "under 6", False),
        ("Doubling the chest above the gland adds",
         found["chest_doubled_adds"], "{:+.0%}", 0.25, "under 25 %", False),
    ]  # fmt: skip
    return [
        (
            what,
            target,
            NONE if value is None else form.format(value),
            None if value is None else (value >= bound if at_least else value <= bound),
        )
        for what, value, form, bound, target, at_least in rows
    ]


# The page.


def number(value: float | None, form: str = "{:.2f}") -> str:
    return "–" if value is None else form.format(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; numbers (all columns but the first) stand to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(results: Results, schedule: Results | None = None) -> str:
    """The page in Markdown; `schedule` holds the figures of `schedule_dice`."""
    found = summarise(results)
    parts = [_head(results), _ways(results, found), _targets(results, found)]
    parts += [_stage_table(found), _growth_table(found), _files(results), _first(results, found)]
    parts += [_gpu(results), _schedule(schedule), EXPLANATION]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(results: Results) -> str:
    machine, ct = results["machine"], results["ct"]
    z, y, x = ct["shape"]
    sz, sy, sx = ct["spacing_mm"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "Made by `benchmarks/speed.py` from `benchmarks/results/speed.json`; nothing on this page "
        "is written by hand but the explanations. All ratios come from one run on one machine.",
        "",
        f"Measured {results['made']} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']:.0f} GB, {machine['system']}; {versions}. "
        f"CT: {ct['source']} at {sx:g} × {sy:g} × {sz:g} mm, {x}×{y}×{z} voxels, the gland in "
        f"slices {ct['found'][0]} to {ct['found'][1] - 1}. Model: {results['model']}, "
        f"{results['gflop_per_slice']:.2f} GFLOP a slice. {LOOKS[results.get('looks', 1)]}",
    ]
    if results["quick"]:
        lines += ["", "**A trial (`--quick`): the figures only show that the program runs.**"]
    if machine["busy_before"] > 0.2:
        share = machine["busy_before"]
        lines += ["", f"**The machine was not idle: {share:.0%} of it was at other work before.**"]
    return "\n".join(lines)


WAYS = {
    "ours": "`nps.segment`, warm",
    "ours, every slice": "`nps.segment`, every slice, warm",
    "ours, first run": "`nps.segment`, the process's first run",
    "command .nii.gz": "command line, `.nii.gz` to `.nii.gz`, process start included",
    "command .nii": "command line, `.nii` to `.nii`, process start included",
    "article": "(a) the article's network, `predict` per slice",
    "monai": "(b) MONAI's Attention U-Net per slice, PyTorch",
    "nnunet": "(c) 3-D nnU-Net at 3 mm, sliding window, PyTorch",
}


def _ways(results: Results, found: Results) -> str:
    slices = results["ct"]["shape"][0]
    peaks = _peaks(results)
    rows = []
    for name, label in WAYS.items():
        took, best = found["seconds"][name], found["best"][name]
        if took is None:
            key = name.split()[0]
            why = results["left_out"].get(key)
            rows.append([label, f"{NONE}{f': {why}' if why else ''}", "–", "–", "–", "–", "–"])
            continue
        rows.append(
            [
                label,
                f"{took:.2f} ({best:.2f}, {found['runs'][name]})",
                f"{slices / took:.1f}",
                number(_gflop_per_s(results, found, name), "{:.0f}"),
                number(peaks.get(name)),
                f"{found['times_ours'][name]:.1f}" if found["times_ours"][name] else "–",
                "yes" if _extrapolated(results, name) else "no",
            ]
        )
    limit = found["matmul_gflop_per_s"]
    tell = "The machine's float32 matrix products reach "
    numpy = max((t["numpy"]["best"] for t in results["rounds"].get("matmul", [])), default=None)
    about = f"(d) {tell}{number(limit, '{:.0f}')} GFLOP/s in TensorFlow" + (
        f" and {numpy:.0f} in NumPy." if numpy else "."
    )
    about += " Where the processor has AMX, the network computes in bfloat16, which is faster."
    head = ["way", "seconds: median (best, runs)", "slices/s", "GFLOP/s of the network",
            "peak memory, GB", "times ours", "extrapolated"]  # fmt: skip
    return "\n".join(["## The whole CT", "", table(head, rows), "", about])


def _extrapolated(results: Results, name: str) -> bool:
    turns = results["rounds"].get(name, [])
    return any(turn.get("slices_done", turn.get("slices")) != turn.get("slices") for turn in turns)


def _peaks(results: Results) -> dict[str, float | None]:
    rounds = results["rounds"]

    def highest(values: Sequence[float | None]) -> float | None:
        return max((v for v in values if v is not None), default=None)

    peaks = {n: highest([t["peak_gb"] for t in rounds.get(n, [])]) for n in ("article", "monai")}
    peaks["nnunet"] = highest([t["peak_gb"] for t in rounds.get("nnunet", [])])
    peaks["ours"] = highest([t["peak_gb_runs"] for t in rounds.get("ours", [])])
    for suffix in (".nii.gz", ".nii"):
        values = [t[suffix]["peak_gb"] for t in rounds.get("command", [])]
        peaks[f"command {suffix}"] = highest(values)
    return peaks


def _gflop_per_s(results: Results, found: Results, name: str) -> float | None:
    """Arithmetic of the network over the seconds in which it ran."""
    if name == "ours":
        rate: float | None = found["network_gflop_per_s"]
        return rate
    turns = results["rounds"].get(name, [])
    if name in ("article", "monai"):
        return median(
            [t["gflop_per_slice"] * t["slices"] / t["parts"]["predicting"] for t in turns]
        )
    if name == "nnunet":
        return median(
            [t["gflop_per_window"] * t["windows"] / t["parts"]["predicting"] for t in turns]
        )
    return None


def _targets(results: Results, found: Results) -> str:
    words = {True: "yes", False: "**no**", None: "–"}
    rows = [
        [what, target, measured, words[met]]
        for what, target, measured, met in acceptance(results, found)
    ]
    return "## Targets\n\n" + table(["what", "target", "measured", "met"], rows)


def _stage_table(found: Results) -> str:
    if not found["stages"]:
        return ""
    whole = found["seconds"]["ours"]
    rows = [[name, f"{s:.3f}", f"{s / whole:.0%}"] for name, s in found["stages"].items()]
    rest = whole - sum(found["stages"].values())
    rows += [["between the stages", f"{rest:.3f}", f"{rest / whole:.0%}"]]
    rows += [["the whole run", f"{whole:.3f}", "100%"]]
    share, alone = found["network_share"], found["alone_share"]
    about = (
        f"The network saw {found['seen']:.0f} slices ({found['computed']:.0f} with those that fill "
        f"up batches) and was busy for {found['network']:.2f} s, {found['around']:.2f} s less than "
        f"the whole run: {found['network_gflop_per_s']:.0f} GFLOP/s, windows, frame and copying "
        "included" + (f", {share:.0%} of the matrix-product rate." if share else ".")
    )
    if found["alone_gflop_per_s"]:
        about += f" Alone, on a batch in memory, it reaches {found['alone_gflop_per_s']:.0f}"
        about += f" GFLOP/s ({alone:.0%})." if alone else " GFLOP/s."
    intro = 'Medians of `Segmentation.seconds` over the warm runs; "network" is the wait for it.'
    stages = table(["stage", "seconds", "share"], rows)
    return "\n".join(["## Where the time goes", "", intro, "", stages, "", about])


def _growth_table(found: Results) -> str:
    if not found["growth"]:
        return ""
    rows = [
        [
            f"{row['slices']}" + (" (chest doubled)" if row["chest_doubled"] else ""),
            f"{row['seen']}",
            f"{row['seconds']:.2f}",
            f"{row['reading']:.2f}",
            number(row["peak_gb"]),
        ]
        for row in found["growth"]
    ]
    head = ["slices of the CT", "slices that the network saw", "seconds, warm", "reading `.nii`, s",
            "peak memory, GB"]  # fmt: skip
    return "## How it grows with the CT\n\n" + table(head, rows)


def _files(results: Results) -> str:
    files = results["once"].get("files")
    if not files:
        return ""
    rows = [
        [name, number(median(values), "{:.3f}"), number(min(values), "{:.3f}")]
        for name, values in files["seconds"].items()
    ]
    return "## Reading and writing\n\n" + table(["what", "seconds, median", "best"], rows)


def _first(results: Results, found: Results) -> str:
    rows = []
    if found["seconds"]["first mask"] is not None:
        rows.append(["Python, warm: first slice's mask", number(found["seconds"]["first mask"])])
    for i, run in enumerate(results["once"].get("window", {}).get("runs", []), start=1):
        rows.append([f"window, run {i}: first slice on screen", number(run["first"])])
        rows.append([f"window, run {i}: all slices on screen", number(run["all"])])
    why = results["left_out"].get("window")
    if why:
        rows.append(["window", f"{NONE}: {why}"])
    return "## Until the first mask\n\n" + table(["what", "seconds"], rows) if rows else ""


def _gpu(results: Results) -> str:
    gpu = results["once"].get("gpu")
    lines = ["## GPU", ""]
    if not gpu:
        lines.append(f"{NONE.capitalize()}.")
    elif "warm" not in gpu:
        lines.append(f"{NONE.capitalize()}. {gpu['why']} Devices: {', '.join(gpu['devices'])}.")
    else:
        slices = results["ct"]["shape"][0]
        rows = [
            ["the whole CT, warm", f"{median_seconds(gpu['warm']):.2f}", ""],
            ["every slice, warm", f"{median_seconds(gpu['every_slice']):.2f}",
             f"{slices / median_seconds(gpu['every_slice']):.0f}"],
        ]  # fmt: skip
        lines += [f"{gpu['devices'][1]}.", "", table(["what", "seconds", "slices/s"], rows)]
    return "\n".join(lines)


def _schedule(figures: Results | None) -> str:
    """What the schedule costs in Dice."""
    if not figures:
        return ""
    rows = [
        [
            f"{row['gap']}",
            f"{row['n']}",
            f"{row['direct']:.4f}",
            f"{row['interpolated']:.4f}",
            _with_error(row),
            f"{_with_error(row['up_to'])}; {row['up_to']['n']}",
            f"{row['manual']:.4f}",
        ]
        for row in figures["by_gap"]
    ]
    head = ["gap of the outer slices", "n", "Dice, network", "Dice, interpolated", "difference",
            "up to this gap; n", "Dice, manual masks interpolated"]  # fmt: skip
    lines = ["## What leaving out slices costs", "", SCHEDULE, "", f"Model: {figures['model']}."]
    lines += ["", table(head, rows)]
    if figures["cts"]:
        rows = [
            [
                f"`{ct['ct']}`",
                f"{ct['seen']} of {ct['slices']}",
                f"{ct['every_slice_ml']:.2f}",
                f"{ct['scheduled_ml']:.2f}",
                f"{ct['scheduled_ml'] / ct['every_slice_ml'] - 1:+.2%}"
                if ct["every_slice_ml"]
                else "–",
                f"{ct['dice_between']:.4f}",
            ]
            for ct in figures["cts"]
        ]
        head = ["CT", "slices seen", "mL, every slice", "mL, by default", "difference",
                "Dice between the two"]  # fmt: skip
        lines += ["", table(head, rows)]
    return "\n".join(lines)


def _with_error(means: Mapping[str, Any]) -> str:
    error = means["standard_error"]
    return f"{means['difference']:+.4f}" + (f" ± {error:.4f}" if error is not None else "")


SCHEDULE = """
`benchmarks/schedule_dice.py` takes three slices of a patient that follow one another in a data
set, interpolates the middle one's probability between its neighbours', as it is done for slices
that the network does not see, and compares Dice against the manual mask with that of the network's
own probability. Gaps are in slices of the CT; ± is the standard error over triples.
""".strip()

EXPLANATION = """
## What is measured

Everything runs on the processor alone (GPUs are hidden, but for the section on them). Each
measurement is a process of its own, one at a time; the competitors take turns. `ours` counts from
a CT in memory to the mask on its grid, with a model that has run before; reading and writing are
listed on their own, and are part of the command line's time.

- **(a)** The article's configuration (32 filters, 224×224×3, random weights) in Keras, as a reader
  would write it: every slice is windowed, resized to 224×224 and given to `model.predict` alone,
  and its probability is resized back and thresholded. Reading the CT and starting the process are
  not counted; neither is the first call, which compiles.
- **(b)** MONAI's `AttentionUnet` with the same widths (32 to 512 channels), random weights, in
  PyTorch's inference mode; the same code around it as (a).
- **(c)** A 3-D U-Net as nnU-Net plans it for TotalSegmentator's fast model (3 mm, patch
  112×112×128, 32 to 320 features, 118 output classes, random weights): the CT is resampled to 3 mm
  (cubic), goes through a sliding window with half a patch as step, and the labels are brought back
  (nearest). Loading a real model, and what the real program does besides, are not counted.
- **(d)** A product of two float32 matrices of 2048×2048: what the processor can do at all.
- **The network's rate** counts convolutions only (`attention_unet.py`) of the slices that were
  computed, over the seconds in which the compiled function ran: HU windows, resampling and copying
  in and out are in the time, not in the arithmetic. "Everything but the first look's network" is
  the rest of a run, the second look included: the seconds in which that function did not run.
- **Longer CTs** are the same CT with slices added below (its own, mirrored) and above (CTs of the
  chest, or its own): what is added never shows the gland. Shorter ones are cut around the gland.
- **Peak memory** is that of a process that does nothing else: reading, loading the model, and
  segmenting several times.
- **The window**: how long it stands still, and how soon a CT that is dropped has its first mask, by
  `benchmarks/gui_stalls.py` and `benchmarks/first_mask.py`, is written down in
  [Architecture](architecture.md#how-long-the-window-stands-still), with the commands.

## Reproduce

```
python benchmarks/speed.py --ct CT --torch-python PYTHON \\
    -o benchmarks/results/speed.json --page docs/benchmarks.md
```

`PYTHON` is an environment with `torch`, `monai`, `nibabel` and `scikit-image`: TensorFlow and
PyTorch never share a process. Without it (b) and (c) are left out. Without `--ct` a synthetic CT is
used. `--chest FILE …` gives CTs of the chest to make longer CTs with. `--only ours,article`
measures a part, `--quick` shows in a few minutes that everything works, and `--page-only` writes
this page from the JSON again.
"""
