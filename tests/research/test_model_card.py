"""The pages: every figure from the JSON, and nothing breaks where something is missing."""

import json

import pytest

from model_card import main, merge_evaluations, model_card, read_report
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.judge.scores import summarise, summarise_patients
from napari_pancreas_seg.training.judge.tables import evaluation_markdown


def evaluation(patients, sha="a", **recipe):
    rows = {
        p: {"dice": d, "hd95_mm": 10 * d, "recall": None, "slices": 3, "missed_slices": 0,
            "attention": [{"inside": 0.8, "tissue": 0.2, "frame": 0.4, "sd": 0.1}]}
        for p, d in patients.items()
    }  # fmt: skip
    return {
        "model": f"toy 1 ({sha})",
        "weights_sha256": sha,
        "threshold": 0.5,
        "recipe": {"split": {"fold": sha}, "steps": 10, "loss": "mixed", **recipe},
        "how": {"surfaces": "in the plane", "spacing": "nominal"},
        "patients": rows,
        **summarise_patients(rows),
        "cost": {"parameters": 7, "weights_mb": 4.5, "gflop_per_slice": 3.88},
    }


@pytest.fixture
def card(tiny_card):
    return {
        **tiny_card,
        "weights_sha256": "a",
        "data": "CT-82",
        "citation": "Roth 2016",
        "limits": "Not for clinical use.",
        "training": {
            "patients": ["1", "2"], "slices": 9, "hours": 1.5, "machine": "two cores",
            "recipe": {"architecture": "default", "loss": "mixed", "steps": 10},
        },
        "confidence": {"spearman": 0.61, "error_before": 0.12, "error_after": 0.03},
    }  # fmt: skip


COMPARISON = {
    "runs": [
        {"name": "attention", "architecture": "default", "loss": "mixed", "folds": 5, "steps": 99,
         "windows": [[0, 255], [40.0, 150.5]], "hours": 3,
         "patients": {"1": 0.8, "2": 0.4, "3": 0.9}},
        {"name": "unet", "architecture": "unet", "summary": {"mean": 0.7, "n": 3}},
        {"name": "article"},
    ],
    "differences": [
        {"a": "attention", "b": "unet", "mean": 0.011, "low": -0.002, "high": 0.024, "n": 3},
        {"a": "attention", "b": "article", "mean": 0.2, "low": 0.1, "high": 0.3, "n": 3},
        {"a": "x", "b": "y", "mean": None},
    ],
    "levers": [{"lever": "elastic", "dice_recipe": 0.71, "dice_changed": 0.69, "n": 10}],
}  # fmt: skip


def test_a_page_of_an_evaluation():
    page = evaluation_markdown(evaluation({"p1": 0.81, "p2": 0.31}))
    assert "1 of 2 patients: p2 (0.31)" in page
    assert page.index("| p2 | 3 |") < page.index("| p1 | 3 |")
    assert "nominal" in page


def test_a_card_with_everything(card):
    page = model_card(card, 4_500_000, evaluation({"p1": 0.81, "p2": 0.31}), [COMPARISON])
    out_of_fold = summarise([0.8, 0.4, 0.9])
    for text in (
        "not for clinical use", "CT-82", "Roth 2016", "1.5 hours on two cores", "4.5 MB",
        f"Dice {out_of_fold['mean']:.3f} (95 % interval of the mean {out_of_fold['low']:.3f}",
        "n = 3 patients, 1 of them below 0.5", "1 of 2 patients: p2 (0.31)",
        "without contrast agent", "5 folds by patient of 99 steps",
        "+0.011 (95 % interval -0.002 to +0.024, n = 3): no difference is shown",
        "attention is better", "| elastic | — | — | 0.710 | 0.690 | — | — | — | 10 |", "0.61",
        "| attention | mixed | 0 to 255, 40 to 150.5 | 5 | 99 |", "3.88",
        "4.00 (4.00 to 4.00, n = 2)", "2.00 (2.00 to 2.00, n = 2)",
    ):  # fmt: skip
        assert text in page, text


def test_the_run_of_the_same_network_is_the_headline(card):
    run = {**COMPARISON["runs"][0], "architecture": card["architecture"], "folds": [0, 1, 2]}
    other = {**run, "architecture": {**card["architecture"], "attention": False}}
    for runs, found in (([other, run], True), ([other], False), ([{**run, "loss": "dice"}], False)):
        page = model_card(card, 1, comparisons=[{"runs": runs}])
        assert ("3 folds by patient" in page) == found
        assert ("Figures out of fold have not been given" in page) != found


def test_a_card_with_nothing_says_so(tiny_card):
    page = model_card(tiny_card, 1)
    for sentence in (
        "Figures out of fold have not been given.", "No evaluation of this model has been given.",
        "No comparison of networks", "No levers", "No attention was measured",
        "has not been calibrated", "holds no recipe", "not for clinical use",
    ):  # fmt: skip
        assert sentence in page
    assert "None" not in page and "nan" not in page


def test_folds_are_put_together(card):
    folds = [evaluation({"p1": 0.8}, "a"), evaluation({"p2": 0.4}, "b")]
    merged = merge_evaluations(folds)
    assert merged["summary"]["dice"]["mean"] == pytest.approx(0.6)
    assert merged["failures"]["patients"] == ["p2"]
    page = model_card(card, 1, folds=folds)
    assert "**Out of fold**, 2 networks" in page and "1 of 2 patients: p2 (0.40)" in page
    assert "No evaluation of this model has been given" in page and "differs" not in page
    with pytest.raises(PancreasSegError, match="p1 is in two"):
        merge_evaluations([folds[0], folds[0]])
    with pytest.raises(PancreasSegError, match="no evaluation"):
        merge_evaluations([{"patients": {"1": 0.5}}])


def test_folds_come_before_the_runs_and_beside_the_evaluation(card):
    folds = [evaluation({"p1": 0.8}, "b"), evaluation({"p2": 0.4}, "c")]
    page = model_card(card, 1, evaluation({"p3": 0.7}), [COMPARISON], folds)
    assert "Out of fold**, 2 networks" in page and "folds by patient of 99 steps" not in page
    accuracy, patients = page.split("## Out of fold, patient by patient")
    assert "| p3 | 3 |" in accuracy and "| p1 | 3 |" not in accuracy
    assert "| p1 | 3 |" in patients and "| p3 | 3 |" not in patients


def test_another_recipe_of_the_folds_is_told(card):
    folds = [evaluation({p: 0.8}, p, steps=7, windows=[[0, 255]], start=p) for p in ("p1", "p2")]
    page = model_card(card, 1, folds=folds)
    assert "(this model's in brackets): steps 7 (10); windows [[0, 255]] (none)." in page


def test_every_comparison_has_its_table(card):
    other = {"runs": [{"name": "short", "steps": 5, "summary": {"mean": 0.4, "n": 3}}]}
    page = model_card(card, 1, comparisons=[COMPARISON, other, {"levers": COMPARISON["levers"]}])
    assert page.index("| attention | mixed |") < page.index("| short | — |")
    assert page.count("| run | loss |") == 2 and page.count("| elastic |") == 2


def test_other_weights_are_named(card):
    assert "other weights" in model_card(card, 1, evaluation({"p1": 0.8}, "zzz"))
    assert "other weights" not in model_card(card, 1, evaluation({"p1": 0.8}, "a"))


def test_names_cannot_break_a_table():
    page = evaluation_markdown(evaluation({"a|b\nc": 0.9}))
    assert "| a\\|b c | 3 |" in page


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000])
def test_what_is_no_report_is_one_sentence(tmp_path, text):
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(PancreasSegError, match=r"e\.json"):
        read_report(path)
    path.write_text(json.dumps(COMPARISON))
    assert read_report(path) == COMPARISON


def test_the_script_writes_the_page(tiny_bundle, tmp_path, capsys):
    (tmp_path / "e.json").write_text(json.dumps(evaluation({"p1": 0.8}, "zzz")))
    asked = [str(tiny_bundle), "--evaluation", str(tmp_path / "e.json"), "-o"]
    assert main([*asked, str(tmp_path / "card.md")]) == 0
    assert "# Model card: tiny" in (tmp_path / "card.md").read_text(encoding="utf-8")
    assert main([*asked, str(tmp_path / "card.md")]) == 1
    assert "overwrite" in capsys.readouterr().err
    folds = ["--fold", str(tmp_path / "e.json"), "--overwrite"]
    assert main([*asked, str(tmp_path / "card.md"), *folds]) == 0
    assert "**Out of fold**" in (tmp_path / "card.md").read_text(encoding="utf-8")
    assert main([*asked, str(tmp_path / "card.md"), *folds, *folds[:2]]) == 1
    assert "in two of the evaluations" in capsys.readouterr().err
