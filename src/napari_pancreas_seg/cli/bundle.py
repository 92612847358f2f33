"""The commands that pack models for others, and unpack them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from napari_pancreas_seg.cli.app import command_of, group
from napari_pancreas_seg.cli.options import ModelArgument, Overwrite
from napari_pancreas_seg.cli.terminal import echo, quiet
from napari_pancreas_seg.errors import PancreasSegError

bundles = group("bundle", "Pack a model into a zip, or add one to your own models.")


@command_of(bundles)
def export(
    model: ModelArgument,
    output: Annotated[Path, Option("-o", "--output", help="The .zip to write.")],
    licence: Annotated[
        Path | None,
        Option(
            metavar="FILE", help="Text of the licence. Default: that of the bundle or its card."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Pack a model into a zip.

    It holds weights, card, licence and hashes. Its SHA-256 is printed.
    """
    from napari_pancreas_seg.model.library import export_bundle

    try:
        text = None if licence is None else licence.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PancreasSegError(f"{licence} cannot be read as text: {error}.") from error
    digest = export_bundle(model, output, licence=text, overwrite=overwrite)
    echo(f"model: {output}")
    echo(f"SHA-256: {digest}")


@command_of(bundles, "import")
def import_(
    file: Annotated[Path, Argument(metavar="FILE.zip", help="A packed model, or its folder.")],
    name: Annotated[
        str | None, Option(help="Name of the model. Default: the name on its card.")
    ] = None,
    sha256: Annotated[
        str | None, Option(metavar="HASH", help="The SHA-256 that came with the file.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Check a packed model and add it to your own models.

    `models` and the window list them.
    """
    from napari_pancreas_seg.model.library import import_bundle

    with quiet():
        entry = import_bundle(file, name, sha256=sha256, overwrite=overwrite)
    echo(f"model: {entry.name} ({entry.card['name']} {entry.card['version']})")
    echo(f"licence: {entry.card['licence']}")


@command_of(bundles)
def remove(
    name: Annotated[
        str, Argument(metavar="NAME", help="One of your own models; `models` lists them.")
    ],
) -> None:
    """Remove one of your own models."""
    from napari_pancreas_seg.model.library import remove_model

    remove_model(name)
    echo(f"removed: {name}")


@command_of(bundles)
def onnx(
    model: ModelArgument,
    output: Annotated[Path, Option("-o", "--output", help="The .onnx file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX for other programs.

    Its input is HU at the frame's scale, its output probability; HU windows and temperature are
    inside, and the metadata says the rest. A second look is not in it. If ONNX Runtime is
    installed, its results are first compared with the network's.
    """
    from napari_pancreas_seg.model.bundle import load_bundle

    bundle = load_bundle(model)
    with quiet():
        from napari_pancreas_seg.inference.onnx_file import export_onnx

        difference = export_onnx(bundle, output, overwrite=overwrite)
    echo(f"model: {output}")
    echo(
        "not compared: ONNX Runtime is not installed"
        if difference is None
        else f"differs by at most {difference:.1e} from the network"
    )
