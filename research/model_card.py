"""Write a model's card as a page: every figure comes from its card and the files given.

    python research/model_card.py MODEL [--evaluation JSON] [--fold JSON ...] \\
        [--comparison JSON ...] -o model-card.md [--overwrite]

``--evaluation`` is what ``evaluate -o`` wrote of this model, or of one trained like it that held
patients back; ``--fold`` the same of each fold's network; ``--comparison`` what
``research/compare.py`` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.second_look import SIZE
from napari_pancreas_seg.io.files import check_target, write_text
from napari_pancreas_seg.model.bundle import load_bundle
from napari_pancreas_seg.training.judge.scores import FAILURE_DICE, summarise, summarise_patients
from napari_pancreas_seg.training.judge.tables import accuracy, interval, number, table, text

OF_A_TRAINING = ("split", "seed", "steps_per_epoch")
"""Settings of a single training: they say nothing of the recipe."""
LIMITS = (
    "CT without contrast agent, or in another phase than portal-venous",
    "children",
    "after operations on the pancreas",
    "large tumours, pancreatitis, collections and stents",
    "other modalities: MRI, cone-beam CT, the low-dose CT of PET",
)


def read_report(path: Path) -> dict[str, Any]:
    """Read the JSON that `evaluate` or `compare` wrote.

    Raises
    ------
    PancreasSegError
        If it cannot be read or is no JSON object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PancreasSegError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise PancreasSegError(f"{path} must hold a JSON object.")
    return data


def merge_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one evaluation of several: folds of one recipe, each with its own patients.

    Parameters
    ----------
    evaluations : sequence of Mapping
        What `evaluate` wrote.

    Raises
    ------
    PancreasSegError
        If a patient is in two of them, or one is no evaluation.
    """
    patients: dict[str, Mapping[str, Any]] = {}
    for data in evaluations:
        rows = data.get("patients")
        if not isinstance(rows, Mapping) or not all(
            isinstance(row, Mapping) and "dice" in row for row in rows.values()
        ):
            raise PancreasSegError("This is no evaluation: its patients have no Dice.")
        if twice := sorted(patients.keys() & rows.keys()):
            raise PancreasSegError(
                f"Patient {twice[0]} is in two of the evaluations; give evaluations of different "
                "patients, one a fold."
            )
        patients |= rows
    if len(evaluations) == 1:
        return dict(evaluations[0])
    first = evaluations[0]
    recipes = [data.get("recipe") or {} for data in evaluations]
    merged = {
        **first,
        "model": ", ".join(str(data.get("model", "?")) for data in evaluations),
        "weights_sha256": None,
        "threshold": None,
        "models": len(evaluations),
        "recipe": {k: v for k, v in recipes[0].items() if all(r.get(k) == v for r in recipes)},
        "patients": dict(sorted(patients.items())),
    }
    return merged | summarise_patients(merged["patients"])


def model_card(
    card: Mapping[str, Any],
    weights_bytes: int,
    evaluation: Mapping[str, Any] | None = None,
    comparisons: Sequence[Mapping[str, Any]] = (),
    folds: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A model's card as a page.

    Parameters
    ----------
    card : Mapping
        The card of the bundle.
    weights_bytes : int
        Size of its weights.
    evaluation : Mapping, optional
        What `evaluate` wrote of this model, or of one trained like it that held patients back.
    comparisons : sequence of Mapping
        What `compare` wrote.
    folds : sequence of Mapping
        What `evaluate` wrote of the network of each fold of a cross-validation.

    Raises
    ------
    PancreasSegError
        If one of them is no evaluation, or two folds share a patient.
    """
    evaluation = merge_evaluations([evaluation]) if evaluation else None
    out_of_fold = merge_evaluations(folds) if folds else None
    sections = {
        "What it is": _identity(card, weights_bytes),
        "Where not to trust it": _limits(card),
        "Data": _data(card),
        "Recipe": _recipe(card),
        "Accuracy": _headline(card, evaluation, out_of_fold, comparisons),
        "Out of fold, patient by patient": _out_of_fold(out_of_fold),
        "With and without attention gates": _compared(comparisons),
        "What each part of the recipe brings": _levers(comparisons),
        "Attention": _attention((evaluation or {}).get("attention")),
        "Calibration and confidence": _calibration(card),
        "Cost": _cost((evaluation or {}).get("cost")),
    }
    lines = [
        f"# Model card: {card['name']} {card['version']}",
        "",
        str(card.get("description", "")),
        "",
        "**For research only, not for clinical use.**",
        "",
        "`python research/model_card.py` makes this page from the model's card and from what "
        "`napari-pancreas-seg evaluate` and `research/compare.py` wrote; no figure in it is typed "
        "by hand.",
    ]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section]
    return "\n".join(lines) + "\n"


def _identity(card: Mapping[str, Any], weights_bytes: int) -> list[str]:
    shape = card["architecture"]
    frame = card["frame"]
    rows = {
        "Network": f"{'Attention U-Net' if shape.get('attention', True) else 'U-Net'}, "
        f"{shape.get('filters', 16)} filters",
        "Input": f"{frame['height']} × {frame['width']} pixels of {frame['mm_per_pixel']} mm, "
        f"centred on the body",
        "Channels, HU": _windows(card["windows"]),
        "Output": "probability of pancreas, and the coefficients of every attention gate",
        "Threshold": card["threshold"],
        "Second look": _second_look(card.get("second_look")),
        "Weights": f"{weights_bytes / 1e6:.1f} MB, SHA-256 `{card['weights_sha256']}`",
        "Licence": card["licence"],
        "Made": card.get("training", {}).get("made", "not stated"),
    }
    return table(("", ""), rows.items())


def _windows(windows: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"{low:g} to {high:g}" for low, high in windows)


def _limits(card: Mapping[str, Any]) -> list[str]:
    lines = ["Do not trust it, and look at every slice, on:", "", *(f"- {x}" for x in LIMITS)]
    return [*lines, "", str(card["limits"])] if card.get("limits") else lines


def _data(card: Mapping[str, Any]) -> list[str]:
    training = card.get("training", {})
    lines = [str(card.get("data", "The card does not say what it was trained on."))]
    if training.get("patients"):
        counted = f"{len(training['patients'])} patients"
        if training.get("slices"):
            counted += f", {training['slices']} slices"
        if training.get("recipe", {}).get("averaged_with"):
            counted += " in the last training"
        lines += ["", f"Trained on {counted}."]
    if card.get("citation"):
        lines += ["", f"Cite: {card['citation']}"]
    return lines


def _recipe(card: Mapping[str, Any]) -> list[str]:
    training = card.get("training", {})
    recipe = training.get("recipe")
    if not recipe:
        return ["The card holds no recipe."]
    lines = [
        f"{training.get('hours', '?')} hours on {training.get('machine', 'a machine not stated')}, "
        f"with {training.get('program', 'a program not stated')}."
    ]
    if card.get("note"):
        lines += ["", str(card["note"])]
    there = {name: value for name, value in recipe.items() if value is not None and value != []}
    rows = sorted(there.items(), key=lambda item: isinstance(item[1], Mapping))
    settings = ((name.replace("_", " "), _setting(value)) for name, value in rows)
    return [*lines, "", *table(("setting", "value"), settings)]


def _setting(value: Any) -> str:
    """A setting of a recipe in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', ' ')} {json.dumps(v)}" for k, v in value.items())
    return "none" if value is None else json.dumps(value, ensure_ascii=False).strip('"')


def _other_settings(card: Mapping[str, Any], out_of_fold: Mapping[str, Any]) -> str:
    """In what the recipe of the folds differs from the card's."""
    mine, theirs = card.get("training", {}).get("recipe", {}), out_of_fold.get("recipe") or {}
    other = [
        f"{name.replace('_', ' ')} {_setting(value)} ({_setting(mine.get(name))})"
        for name, value in theirs.items()
        if name not in OF_A_TRAINING and value != mine.get(name)
    ]
    return f"Their recipe differs (this model's in brackets): {'; '.join(other)}." if other else ""


def _headline(
    card: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    out_of_fold: Mapping[str, Any] | None,
    comparisons: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Out-of-fold figures if there are any, then whatever else is known."""
    lines: list[str] = []
    run = _run_like(card, comparisons)
    if out_of_fold is not None:
        lines += [
            f"**Out of fold**, {out_of_fold.get('models', 1)} networks, each measured on patients "
            "that it did not see, at the threshold of its card; "
            f"{_sentence(out_of_fold['patients'])}"
        ]
        if other := _other_settings(card, out_of_fold):
            lines += ["", other]
    elif run is not None:
        lines += [
            f"**Out of fold**, {_folds(run)} folds by patient of {text(run.get('steps'))} steps "
            f"each, for the network `{run.get('name', '?')}`; {_sentence(run['patients'])}"
        ]
    else:
        lines += ["Figures out of fold have not been given."]
    if evaluation is None:
        lines += ["", "No evaluation of this model has been given."]
        return lines + _own_validation(card)
    if evaluation.get("weights_sha256") != card["weights_sha256"]:
        lines += _own_validation(card)
        lines += ["", "The figures below were measured with other weights than this model's."]
    return [*lines, "", *accuracy(evaluation)]


def _own_validation(card: Mapping[str, Any]) -> list[str]:
    validation = card.get("validation") or {}
    if not validation.get("patients"):
        return []
    return [
        "",
        f"The card's own validation: {_sentence(validation['patients'])}",
        "",
        f"({validation.get('what', 'no description')}.)",
    ]


def _run_like(
    card: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The first run whose network and loss are those of the card."""
    recipe = card.get("training", {}).get("recipe", {})
    networks = (card["architecture"], recipe.get("architecture"))
    for run in (run for comparison in comparisons for run in comparison.get("runs", ())):
        same_loss = run.get("loss") in (None, recipe.get("loss"))
        if run.get("patients") and run.get("architecture") in networks and same_loss:
            return run
    return None


def _folds(run: Mapping[str, Any]) -> str:
    """How many folds were trained: given as a number or as their list."""
    folds = run.get("folds")
    return text(len(folds) if isinstance(folds, Sequence) else folds)


def _sentence(patients: Mapping[str, Any]) -> str:
    """Dice of patients in a sentence, failures included."""
    values = [row["dice"] if isinstance(row, Mapping) else row for row in patients.values()]
    s = summarise(values)
    failed = sum(value < FAILURE_DICE for value in values)
    return (
        f"Dice {s['mean']:.3f}{interval(s).replace('(', '(95 % interval of the mean ')}, "
        f"SD {number(s.get('sd'))}, median {s['median']:.3f}, worst {s['worst']:.3f}, n = {s['n']} "
        f"patients, {failed} of them below {FAILURE_DICE}."
    )


def _attention(gates: Any) -> list[str]:
    if not gates:
        return ["No attention was measured, or the network has no gates."]
    rows = [
        (
            f"{gate['gate']}{' (finest)' if gate['gate'] == 1 else ''}",
            *(number(gate.get(name)) for name in ("inside", "tissue", "frame", "sd")),
            *(_ratio(gate.get(name) or {}) for name in ("ratio_to_tissue", "ratio_to_frame")),
        )
        for gate in gates
    ]
    header = ("gate", "in the gland", "other tissue", "rest of the frame", "SD")
    return [
        "Mean coefficient of each attention gate in the reference; in the other tissue (above "
        "10 HU) of the same slices within the frame; and in all the rest of the frame, fat, gas "
        "and air included. Ratios are means over patients, with their 95 % interval: 1 says that "
        "the gate does not care for the gland. A coefficient weighs features: it explains "
        "nothing. Where windows clip everything to 0, as in fat and air, there is next to "
        "nothing to weigh, and coefficients may be high there.",
        "",
        *table((*header, "gland : tissue", "gland : rest"), rows),
    ]


def _ratio(s: Mapping[str, Any]) -> str:
    if not s.get("n"):
        return "—"
    spread = f"{s['low']:.2f} to {s['high']:.2f}, " if "low" in s else ""
    return f"{s['mean']:.2f} ({spread}n = {s['n']})"


def _out_of_fold(data: Mapping[str, Any] | None) -> list[str]:
    if data is None:
        return ["No evaluations of the folds have been given."]
    return accuracy(data)


def _compared(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    tables = [_comparison(comparison) for comparison in comparisons if comparison.get("runs")]
    if not tables:
        return ["No comparison of networks has been given."]
    lines = [
        "Dice of patients that the network did not see. Within a table, data, steps and seeds are "
        "the same for each."
    ]
    for one in tables:
        lines += ["", *one]
    return lines


def _comparison(comparison: Mapping[str, Any]) -> list[str]:
    rows = []
    for run in comparison["runs"]:
        patients = run.get("patients") or {}
        s = summarise(patients.values()) if patients else run.get("summary", {})
        failed = sum(d < FAILURE_DICE for d in patients.values()) if patients else None
        figures = [number(s.get(k)) for k in ("mean", "low", "high", "sd", "median", "worst")]
        channels = _windows(run["windows"]) if run.get("windows") else None
        where = (run.get("name"), run.get("loss"), channels, _folds(run), run.get("steps"))
        rows.append((*where, *figures, failed, s.get("n"), run.get("hours")))
    lines = table(
        (
            *("run", "loss", "channels, HU", "folds", "steps", "mean", "95 % from", "to", "SD"),
            *("median", "worst", f"below {FAILURE_DICE}", "n", "hours"),
        ),
        rows,
    )
    for d in comparison.get("differences") or ():
        lines += ["", f"- {_difference(d)}"]
    return lines


def _difference(d: Mapping[str, Any]) -> str:
    low, high = d.get("low"), d.get("high")
    said = (
        f"{d.get('a')} − {d.get('b')}, paired: {number(d.get('mean'), signed=True)} "
        f"(95 % interval {number(low, signed=True)} to {number(high, signed=True)}, "
        f"n = {text(d.get('n'))})"
    )
    if low is None or high is None:
        return said + "."
    if low > 0:
        return f"{said}: {d.get('a')} is better."
    return f"{said}: {d.get('b')} is better." if high < 0 else f"{said}: no difference is shown."


def _levers(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    levers = [lever for comparison in comparisons for lever in comparison.get("levers", ())]
    if not levers:
        return ["No levers have been measured."]
    rows = [
        (
            *(lever.get("lever"), lever.get("what"), lever.get("measured_on")),
            *(number(lever.get(name)) for name in ("dice_recipe", "dice_changed")),
            *(number(lever.get(name), signed=True) for name in ("difference", "low", "high")),
            lever.get("n"),
        )
        for lever in levers
    ]
    header = (
        *("lever", "the change", "measured on", "Dice", "with the change"),
        *("difference", "95 % from", "to", "n"),
    )
    return [
        "Mean Dice of the same patients, never seen in training, with the recipe as it is and with "
        "one change: above 0, the change is better.",
        "",
        *table(header, rows),
    ]


def _second_look(told: Mapping[str, Any] | None) -> str:
    if not told:
        return "none"
    card = load_bundle(told["model"], "mend").card
    pixels = card["architecture"]["height"] * card["architecture"]["width"]
    gflop = card["gflop"] * SIZE[0] * SIZE[1] / pixels  # of convolutions: as many as pixels
    return (
        f"at slices with pancreas, by {card['name']} {card['version']}: {SIZE[0]} × {SIZE[1]} "
        f"pixels of 1 mm around the first mask, {gflop:.2f} GFLOP; its share of the log-odds is "
        f"{told['share']}"
    )


def _calibration(card: Mapping[str, Any]) -> list[str]:
    confidence = card.get("confidence")
    if not confidence:
        return ["The probability has not been calibrated."]
    rows = {
        "Temperature": card.get("temperature"),
        "Threshold": card["threshold"],
        "Expected calibration error before": confidence.get("error_before"),
        "… and after": confidence.get("error_after"),
        "Spearman, expected against true Dice of a slice": confidence.get("spearman"),
        "Slices": confidence.get("slices"),
        "Patients": confidence.get("patients"),
    }
    lines = table(("", ""), ((k, text(v)) for k, v in rows.items()))
    return [*lines, "", f"({confidence['what']}.)"] if confidence.get("what") else lines


def _cost(cost: Mapping[str, Any] | None) -> list[str]:
    if not cost:
        return ["No evaluation has been given that measured it."]
    names = {
        "parameters": "Parameters",
        "weights_mb": "Weights, MB",
        "gflop_per_slice": "GFLOP a slice (convolutions; a multiplication and an addition are 2)",
        "seconds_per_slice": "Seconds a slice, one at a time (median)",
        "device": "Device of that measurement",
    }
    return table(("", ""), ((what, text(cost.get(k))) for k, what in names.items()))


def main(arguments: list[str] | None = None) -> int:
    """Read the files and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="default", help="name or path of a model")
    parser.add_argument("--evaluation", type=Path, metavar="JSON")
    parser.add_argument("--fold", type=Path, metavar="JSON", action="append", default=[])
    parser.add_argument("--comparison", type=Path, metavar="JSON", action="append", default=[])
    parser.add_argument("-o", "--output", type=Path, default=Path("model-card.md"))
    parser.add_argument("--overwrite", action="store_true")
    asked = parser.parse_args(arguments)
    try:
        check_target(asked.output, overwrite=asked.overwrite)
        bundle = load_bundle(asked.model)
        page = model_card(
            bundle.card,
            len(bundle.weights),
            read_report(asked.evaluation) if asked.evaluation else None,
            [read_report(path) for path in asked.comparison],
            [read_report(path) for path in asked.fold],
        )
        write_text(asked.output, page, overwrite=asked.overwrite)
    except PancreasSegError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"model card: {asked.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
