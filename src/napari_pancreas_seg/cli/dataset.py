"""The command that checks a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from napari_pancreas_seg.cli.app import command_of, group
from napari_pancreas_seg.cli.options import AsJson, Classes, Layout, Overwrite, parse_classes
from napari_pancreas_seg.cli.terminal import Bar, echo, echo_page, fail, print_json, quiet

if TYPE_CHECKING:
    from napari_pancreas_seg.training.data.layouts.opening import DataSet


datasets = group("dataset", "Check a data set before training on it.")


@command_of(datasets)
def check(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="A data set.")],
    output: Annotated[
        Path | None,
        Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Write dataset.json, cases.csv and a picture of each case there.",
        ),
    ] = None,
    layout: Layout = None,
    classes: Classes = None,
    no_pictures: Annotated[
        bool, Option("--no-pictures", help="With -o: write no pictures.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Read every case and say what may be wrong with it.

    Known layouts: NIH Pancreas-CT, Medical Segmentation Decathlon, nnU-Net's raw data,
    TotalSegmentator's data, folders of CTs with masks, corrections made with this program, and
    single slices. Exits with 0 if every case can be used, else with 1.
    """
    from napari_pancreas_seg.io.files import check_target, write_json, write_text

    labels = parse_classes(classes)
    with quiet():
        from napari_pancreas_seg.training.data.layouts.checking import check_dataset, table_csv
        from napari_pancreas_seg.training.data.layouts.opening import open_dataset

        dataset = open_dataset(folder, labels, layout=layout)
        pictures = None if output is None or no_pictures else output / "pictures"
        if output is not None:
            targets = [output / "dataset.json", output / "cases.csv"]
            targets += [pictures / f"{case.name}.png" for case in dataset.cases if pictures]
            for target in targets:
                check_target(target, overwrite=overwrite)
        with Bar() as bar:
            bar.stage("reading", 0, len(dataset.cases))
            checked = check_dataset(
                dataset,
                pictures=pictures,
                on_case=lambda done, total, case: bar.stage("reading", done, total),
            )
    if as_json:
        print_json(checked)
    else:
        echo_page(_lines(dataset, checked))
    if output is not None:
        write_json(output / "dataset.json", checked, overwrite=overwrite)
        write_text(output / "cases.csv", table_csv(checked), overwrite=overwrite)
        if not as_json:
            echo(f"written to {output}")
    unusable = [case["name"] for case in checked["cases"] if not case["usable"]]
    if unusable:
        fail(f"{len(unusable)} of {len(checked['cases'])} cases cannot be used.")


_MOST_ROWS = 200
"""More rows are written to the file only."""


def _lines(dataset: DataSet, checked: dict[str, Any]) -> list[str]:
    """Findings as lines of text."""
    from napari_pancreas_seg.training.judge.tables import table

    found, classes, cases = checked["summary"], dataset.classes, checked["cases"]
    made_of = "; ".join(
        name if parts == (name,) else f"{name} = {' + '.join(parts)}"
        for name, parts in classes.items()
    )
    lines = [
        f"{dataset.root}: layout {dataset.layout}",
        f"  cases       {found['cases']} of {found['patients']} patients, "
        f"{found['usable']} usable, {found['suspicious']} to look at",
        f"  classes     {made_of}",
        f"  slices      {found['slices']}",
    ]
    if found["labelled_slices"] != found["slices"]:
        lines[-1] += f", {found['labelled_slices']} of them labelled"
    if found["usable"]:
        spacing = " × ".join(_range(found["spacing_mm"][axis]) for axis in "zyx")
        lines.append(f"  spacing     {spacing} mm (z × y × x)")
    for name, measured in found["volume_ml"].items():
        if measured:
            lines.append(f"  volume      {name}: {_range(measured)} mL")
    lines += [f"  warning     {remark}" for remark in checked["remarks"]]
    heads = [f"{name} (mL)" for name in classes]
    rows = [_row(case, list(classes)) for case in cases[:_MOST_ROWS]]
    lines.append("")
    lines += table(["case", "patient", "slices", "spacing (mm)", *heads, "to look at"], rows)
    if len(cases) > _MOST_ROWS:
        lines.append(f"… and {len(cases) - _MOST_ROWS} more (-o writes them all)")
    lines.append("")
    for case in cases:
        name = case["name"]
        if case["problem"] is not None:
            problem = case["problem"].removeprefix(f"Case {name}: ")
            lines.append(f"{name}: unusable: {problem}")
        lines += [f"{name}: warning: {sentence}" for sentence in case["suspicious"]]
        lines += [f"{name}: {sentence}" for sentence in case["notes"]]
    return lines if lines[-1] else lines[:-1]


def _row(case: dict[str, Any], classes: list[str]) -> list[str]:
    if not case["usable"]:
        return [case["name"], case["patient"], *[""] * (2 + len(classes)), "unusable"]
    slices = str(case["slices"])
    if case["labelled"] != case["slices"]:
        slices = f"{case['labelled']} of {case['slices']}"
    spacing = " × ".join(f"{step:.3g}" for step in case["spacing_mm"])
    sizes = [f"{case['volume_ml'][n]:.1f}" if n in case["volume_ml"] else "-" for n in classes]
    doubts = str(len(case["suspicious"]) or "")
    return [case["name"], case["patient"], slices, spacing, *sizes, doubts]


def _range(measured: dict[str, float]) -> str:
    low, high = f"{measured['minimum']:.3g}", f"{measured['maximum']:.3g}"
    return low if low == high else f"{low} to {high}"
