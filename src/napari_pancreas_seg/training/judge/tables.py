"""An evaluation as a page of Markdown tables: every figure comes from its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from napari_pancreas_seg.errors import counted
from napari_pancreas_seg.training.judge.scores import FAILURE_DICE, GOOD_DICE, TOLERANCE_MM

SURFACE_DICE = f"surface_dice_{TOLERANCE_MM:g}mm"
FIGURES = {
    "dice": "Dice",
    "hd95_mm": "HD95 (mm)",
    SURFACE_DICE: f"Surface Dice {TOLERANCE_MM:g} mm",
    "mean_distance_mm": "Mean surface distance (mm)",
    "recall": "Recall",
    "precision": "Precision",
    "volume_ratio": "Volume / reference",
}


def evaluation_markdown(data: Mapping[str, Any]) -> str:
    """An evaluation, as `evaluate` gives it, as a page."""
    lines = [f"# Evaluation of {data.get('model', 'a model')}", "", *accuracy(data)]
    if data.get("classes"):
        lines += ["", "## Classes", "", *_classes(data)]
    if data.get("also"):
        lines += ["", f"## Masks of {data['also']['masks']}", "", *_also(data)]
    for what, title in (("not_scored", "Not scored"), ("not_compared", "Not compared")):
        if data.get(what):
            failed = [f"- {name}: {reason}" for name, reason in data[what].items()]
            lines += ["", f"## {title}", "", *failed]
    return "\n".join(lines) + "\n"


def accuracy(data: Mapping[str, Any]) -> list[str]:
    """What was done, the summary, failures, and a row a patient, the worst first."""
    lines = [f"- {name.replace('_', ' ')}: {said}" for name, said in data.get("how", {}).items()]
    lines += ["", *summary_table(data.get("summary", {})), "", *_failures(data), ""]
    names = [n for n in FIGURES if any(n in row for row in data["patients"].values())]
    rows = [
        (
            patient,
            row.get("slices"),
            row.get("missed_slices"),
            *(number(row.get(name), name) for name in names),
        )
        for patient, row in sorted(data["patients"].items(), key=lambda item: item[1]["dice"])
    ]
    return [*lines, *table(("patient", "slices", "missed", *(FIGURES[n] for n in names)), rows)]


def summary_table(summary: Mapping[str, Any]) -> list[str]:
    """A row a figure: mean with interval, SD, median, worst and n over patients."""
    columns = ("mean", "low", "high", "sd", "median", "worst")
    rows = [
        (title, *(number(summary[name].get(c), name) for c in columns), summary[name].get("n"))
        for name, title in FIGURES.items()
        if summary.get(name, {}).get("n")
    ]
    # Of a ratio of volumes, nobody can say which end is the worst.
    rows = [(*r[:6], "—", r[7]) if r[0] == FIGURES["volume_ratio"] else r for r in rows]
    return table(("", "mean", "95 % from", "to", "SD", "median", "worst", "n"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(text(cell) for cell in line)} |" for line in lines]


def text(value: Any) -> str:
    """A cell's text: what comes from a file must not break the table."""
    return "—" if value is None else " ".join(str(value).replace("|", "\\|").split())


def number(value: Any, name: str = "", *, signed: bool = False) -> str:
    """A figure with the digits that its name asks for."""
    if value is None:
        return "—"
    digits = 1 if name.endswith("_mm") else 3
    return f"{value:{'+' if signed else ''}.{digits}f}"


def interval(figure: Mapping[str, Any], digits: str = ".3f") -> str:
    """The interval of a figure in brackets; nothing of one patient, who has none."""
    if "low" not in figure:
        return ""
    return f" ({figure['low']:{digits}} to {figure['high']:{digits}})"


def _classes(data: Mapping[str, Any]) -> list[str]:
    """Figures of each class, and Dice of each class in each patient."""
    classes = data["classes"]
    rows = []
    for name, found in classes.items():
        s = found["summary"].get("dice", {})
        others = [
            number(found["summary"].get(figure, {}).get("mean"), figure)
            for figure in ("hd95_mm", SURFACE_DICE)
        ]
        dice = [number(s.get(k)) for k in ("mean", "low", "high", "sd", "median", "worst")]
        rows.append((name, *dice, *others, s.get("n", 0)))
    header = ("class", "Dice", "95 % from", "to", "SD", "median", "worst")
    mean = data.get("mean_class_dice", {})
    patients = sorted(set().union(*(found["patients"] for found in classes.values())))
    each = [
        (p, *(number(found["patients"].get(p, {}).get("dice")) for found in classes.values()))
        for p in patients
    ]
    return [
        "The figures above are of all classes taken together. A patient counts for the classes "
        "that the reference or the mask shows.",
        "",
        "Dice, mean over classes and then over patients (95 %): "
        f"{number(mean.get('mean'))}{interval(mean)}, n = {mean.get('n', 0)}.",
        "",
        *table((*header, "HD95 (mm), mean", FIGURES[SURFACE_DICE], "n"), rows),
        "",
        *table(("Dice of patient", *classes), each),
    ]


def _also(data: Mapping[str, Any]) -> list[str]:
    """Another program's figures, and each patient's beside ours."""
    also = data["also"]
    gaps = []
    for name, gap in also["ours_minus_theirs"].items():
        said = [number(gap.get(k), name, signed=True) for k in ("mean", "low", "high")]
        gaps.append((FIGURES[name], *said, gap["n"]))
    each = [
        (patient, number(data["patients"][patient]["dice"]), number(row["dice"]))
        for patient, row in also["patients"].items()
    ]
    return [
        *summary_table(also["summary"]),
        "",
        *_failures(also),
        "",
        *table(("this model minus these, paired", "mean", "95 % from", "to", "n"), gaps),
        "",
        *table(("Dice of patient", "this model", also["masks"]), each),
    ]


def _failures(data: Mapping[str, Any]) -> list[str]:
    dice = {patient: row["dice"] for patient, row in data["patients"].items()}
    failed, n = data["failures"]["patients"], len(dice)
    good = sum(value >= GOOD_DICE for value in dice.values())
    of = counted(n, "patient")
    reached = f"Dice of at least {GOOD_DICE}: {good} of {of}."
    if empty := data.get("nothing_found"):
        reached += f" Nothing found: {empty} of {of}, with the CT's diagonal for every distance."
    share = f"{len(failed)} of {of}"
    if not failed:
        return [reached, "", f"Failures (Dice below {FAILURE_DICE}): none, {share}."]
    names = ", ".join(f"{patient} ({dice[patient]:.2f})" for patient in failed)
    return [reached, "", f"Failures (Dice below {FAILURE_DICE}): {share}: {names}."]
