"""The commands that give a model away and take one in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_pancreas_seg.cli import app
from napari_pancreas_seg.cli.terminal import guarded, quiet, say
from napari_pancreas_seg.errors import PancreasSegError

group = typer.Typer(
    help="Give a model away, or take one in: a zip of weights, card, licence and hashes.",
    no_args_is_help=True,
)
app.add_typer(group, name="bundle")

NameOrPath = Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="Name or path of a model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]


@group.command()
@guarded
def export(
    model: NameOrPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .zip to write.")],
    licence: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The licence's text; what the bundle or its card says by default."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Pack a model into a zip to give away, and print its SHA-256."""
    from napari_pancreas_seg.model.library import export_bundle

    text = None if licence is None else _read_text(licence)
    digest = export_bundle(model, output, licence=text, overwrite=overwrite)
    say(f"model: {output}")
    say(f"SHA-256: {digest}")


@group.command("import")
@guarded
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="A packed model, or a folder.")],
    name: Annotated[
        str | None, typer.Option(help="What to call it; the name on its card by default.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HASH", help="The SHA-256 that came with the file.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Look a model over, and keep it among your own models.

    From then on it is listed by `models` and in the window, and named like any other.
    """
    from napari_pancreas_seg.model.library import import_bundle

    with quiet():
        entry = import_bundle(file, name, sha256=sha256, overwrite=overwrite)
    say(f"model: {entry.name} ({entry.card['name']} {entry.card['version']})")
    say(f"licence: {entry.card['licence']}")


@group.command()
@guarded
def remove(
    name: Annotated[str, typer.Argument(help="One of your own models; `models` lists them.")],
) -> None:
    """Remove one of your own models."""
    from napari_pancreas_seg.model.library import remove_model

    remove_model(name)
    say(f"removed: {name}")


@group.command()
@guarded
def onnx(
    model: NameOrPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX, for other programs: HU at the frame's scale in, probability out.

    HU windows and temperature are inside; the metadata says the rest. Where ONNX Runtime is
    installed, what was written is compared with the network first.
    """
    from napari_pancreas_seg.model.bundle import load_bundle

    bundle = load_bundle(model)
    with quiet():
        from napari_pancreas_seg.inference.onnx_file import export_onnx

        written = export_onnx(bundle, output, overwrite=overwrite)
    say(f"model: {written.path}")
    say(
        "not tried: ONNX Runtime is not installed"
        if written.difference is None
        else f"differs by at most {written.difference:.1e} from the network"
    )


@group.command()
@guarded
def keras(
    model: NameOrPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .keras file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a model's network as a .keras file: windowed slices in, raw probability out."""
    from napari_pancreas_seg.model.bundle import export_keras, load_bundle

    bundle = load_bundle(model)
    with quiet():
        path = export_keras(bundle, output, overwrite=overwrite)
    say(f"model: {path}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PancreasSegError(f"{path} cannot be read as text: {error}.") from error
