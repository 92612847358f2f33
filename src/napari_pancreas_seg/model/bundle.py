"""The bundle a model travels in: weights and a card, never code.

A bundle is a folder or zip with ``weights.h5`` and ``card.json``. The card says how to
build the network; `napari_pancreas_seg.model.attention_unet.build` does so in float32.
Nothing here loads Keras until `Bundle.network` is called.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from napari_pancreas_seg.download import cache_folder, download
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_path, atomic_write, explain_os_error, make_folder
from napari_pancreas_seg.model.keras_file import DAMAGED, check_keras_file, plain_dataset

if TYPE_CHECKING:
    import keras

__all__ = [
    "Bundle",
    "ModelEntry",
    "export_keras",
    "import_keras",
    "list_models",
    "load_bundle",
    "load_card",
    "save_bundle",
]

CARD, WEIGHTS = "card.json", "weights.h5"
LARGEST_WEIGHTS = 1 << 30
LARGEST_CARD = 1 << 20
LARGEST_SIDE = 4096
_LARGEST = {
    **{"filters": 256, "channels": 16, "classes": 255},
    **{"height": LARGEST_SIDE, "width": LARGEST_SIDE},
}
REQUIRED = {
    "name": str,
    "version": str,
    "licence": str,
    "architecture": dict,
    "frame": dict,
    "windows": list,
    "labels": dict,
    "threshold": (int, float),
    "weights_sha256": str,
}
"""Fields that every card has, and their types."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be named.

    Parameters
    ----------
    name : str
        What to give as the model's name.
    origin : str
        ``"bundled"`` with the program, ``"cached"`` in the user's cache folder, ``"known"``
        to the registry and downloaded on first use.
    card : Mapping
        The model's card.
    """

    name: str
    origin: str
    card: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Bundle:
    """Weights and card of a model.

    Parameters
    ----------
    card : Mapping
        The card; see `REQUIRED` for the fields that it always has.
    weights : bytes
        Content of ``weights.h5``.
    """

    card: Mapping[str, Any]
    weights: bytes

    def network(self) -> keras.Model:
        """Build the network from the card and fill in the weights, float32.

        Raises
        ------
        PancreasSegError
            If the weights are damaged or do not fit the card.
        """
        from napari_pancreas_seg.model.attention_unet import Architecture, build

        try:
            architecture = Architecture(**self.card["architecture"])
        except TypeError as error:
            raise PancreasSegError(
                f"The card of model {self.card['name']} describes a network that this version "
                f"does not know: {error}."
            ) from error
        network = build(architecture)
        try:
            with h5py.File(io.BytesIO(self.weights), "r") as file:
                for variable in network.weights:
                    stored = plain_dataset(file, variable.path, tuple(variable.shape))
                    values = np.asarray(stored[()], dtype=np.float32)
                    if not np.isfinite(values).all():
                        raise ValueError(f"{variable.path} holds values that are not finite")
                    variable.assign(values)
        except DAMAGED as error:
            raise PancreasSegError(
                f"The weights of model {self.card['name']} do not fit its card: {error}."
            ) from error
        return network


def pack_weights(network: keras.Model) -> bytes:
    """Weights as HDF5: kernels in float16, everything else (statistics too) in float32."""
    import keras

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        for variable in network.weights:
            values = keras.ops.convert_to_numpy(variable)
            small = values.ndim > 1
            file.create_dataset(
                variable.path, data=values.astype(np.float16 if small else np.float32),
                track_times=False,
            )  # fmt: skip
    return buffer.getvalue()


def save_bundle(
    network: keras.Model, card: Mapping[str, Any], path: Path, *, overwrite: bool = False
) -> Path:
    """Write a network as a bundle.

    Parameters
    ----------
    network : keras.Model
        As `build` makes it from ``card["architecture"]``.
    card : Mapping
        The card; ``weights_sha256`` is filled in.
    path : Path
        A folder, or a file that ends in ``.zip``.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    Path
        The bundle.

    Raises
    ------
    PancreasSegError
        If the card lacks a field, the target exists, or it cannot be written.
    """
    path = Path(path)
    weights = pack_weights(network)
    card = {**card, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    _check_card(card, path)
    text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path.exists() and not overwrite:
        raise PancreasSegError(f"{path} already exists; choose another name or allow overwriting.")
    if path.suffix == ".zip":
        with (
            atomic_write(path, overwrite=overwrite) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr(WEIGHTS, weights)
            archive.writestr(CARD, text)
        return path
    make_folder(path)
    # No system replaces a folder at once. The card decides: until it is replaced the old weights
    # lie where they lay, and from then on the new ones are found under the name of their hash.
    waiting = path / _named_by_hash(card)
    with atomic_write(waiting, overwrite=True) as file:
        file.write(weights)
    with atomic_write(path / CARD, overwrite=True) as file:
        file.write(text.encode())
    try:
        os.replace(waiting, path / WEIGHTS)
    except OSError as error:
        raise PancreasSegError(
            f"The model cannot be written to {path}: {explain_os_error(error)}."
        ) from error
    return path


def load_bundle(model: str | Path | Bundle) -> Bundle:
    """Load a bundle by name or from a path, and check its hash.

    Parameters
    ----------
    model : str, Path or Bundle
        ``"default"``, another name from `list_models`, or the path of a folder or zip.

    Raises
    ------
    PancreasSegError
        If there is no such model, or it is damaged.
    """
    if isinstance(model, Bundle):
        return model
    path = _find(model)
    card = _parse_card(_member(path, CARD, LARGEST_CARD), path)
    interrupted = path / _named_by_hash(card)  # `save_bundle` was killed at its last step
    name = interrupted.name if interrupted.is_file() else WEIGHTS
    weights = _member(path, name, LARGEST_WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != card["weights_sha256"]:
        raise PancreasSegError(
            f"The weights in {path} are not those that its card names (SHA-256 differs); "
            "get the model again."
        )
    return Bundle(card, weights)


def load_card(model: str | Path) -> Mapping[str, Any]:
    """Read a model's card alone; see `load_bundle`."""
    path = _find(model)
    return _parse_card(_member(path, CARD, LARGEST_CARD), path)


def list_models() -> list[ModelEntry]:
    """Models that can be named: bundled, in the cache folder, and known to the registry."""
    entries: list[ModelEntry] = []
    for origin, folder in _shelves():
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            try:
                entries.append(ModelEntry(path.name.removesuffix(".zip"), origin, load_card(path)))
            except PancreasSegError:
                continue  # not a bundle, or a damaged one: nothing to offer
    here = {entry.name for entry in entries}
    known = [ModelEntry(name, "known", item) for name, item in _registry().items()]
    return entries + [entry for entry in known if entry.name not in here]


def export_keras(bundle: Bundle, path: Path) -> Path:
    """Write a model's network as a ``.keras`` file, for other programs.

    Raises
    ------
    PancreasSegError
        If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise PancreasSegError("The name of a Keras file must end in .keras.")
    with atomic_path(path, overwrite=True, suffix=".keras") as temporary:
        bundle.network().save(temporary)
    return path


def import_keras(path: Path, card: Mapping[str, Any]) -> Bundle:
    """Read a ``.keras`` file in safe mode and make a bundle of its weights.

    Parameters
    ----------
    path : Path
        The file. Code in it is never run.
    card : Mapping
        The card of the model: its architecture must be the file's.

    Raises
    ------
    PancreasSegError
        If the file is damaged, holds code, or is another network than the card says.
    """
    import keras

    # Registers the gate, which the file names.
    from napari_pancreas_seg.model.attention_unet import Architecture, build

    check_keras_file(Path(path))
    try:
        loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its parts raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise PancreasSegError(f"{path} cannot be loaded safely: {reason[0]}") from error
    expected = build(Architecture(**card["architecture"]))
    theirs = {v.path: tuple(v.shape) for v in loaded.weights}
    if theirs != {v.path: tuple(v.shape) for v in expected.weights}:
        raise PancreasSegError(f"{path} holds another network than its card describes.")
    weights = pack_weights(loaded)
    card = {**card, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    _check_card(card, Path(path))
    return Bundle(card, weights)


def _shelves() -> list[tuple[str, Path]]:
    """Where named models lie."""
    bundled = Path(str(files("napari_pancreas_seg") / "data" / "models"))
    return [("bundled", bundled), ("cached", cache_folder() / "models")]


def _registry() -> dict[str, dict[str, Any]]:
    """Models that can be downloaded: ``url`` and ``sha256`` of a zip, and what to show of it.

    The program's own list, and the one that ``NAPARI_PANCREAS_SEG_REGISTRY`` names: a
    group's list of its own models, on a shared disk for instance.
    """
    own = Path(str(files("napari_pancreas_seg") / "data" / "registry.json"))
    further = os.environ.get("NAPARI_PANCREAS_SEG_REGISTRY")
    known: dict[str, dict[str, Any]] = {}
    for path in [own, *([Path(further)] if further else [])]:
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            known |= {
                name: {**item, "url": str(item["url"]), "sha256": str(item["sha256"])}
                for name, item in listed.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PancreasSegError(
                f"The list of models {path} cannot be read: {error!r}."
            ) from error
    return known


def _find(model: str | Path) -> Path:
    """Path of a bundle by its name or path; downloads what only the registry knows."""
    name = str(model)
    if Path(name).name == name and name not in ("", ".", ".."):
        for _, folder in _shelves():
            for path in (folder / name, folder / f"{name}.zip"):
                if path.exists():
                    return path
        if item := _registry().get(name):
            target = cache_folder() / "models" / f"{name}.zip"
            return download(item["url"], item["sha256"], target, f"the model {name}")
    path = Path(model)
    if path.suffix == ".keras":
        raise PancreasSegError(
            f"{path} is a Keras file, which does not say how to prepare a CT for it; "
            "import it into a bundle first."
        )
    if not path.exists():
        names = ", ".join(entry.name for entry in list_models()) or "none"
        raise PancreasSegError(
            f"There is no model {name!r}: neither a path nor a known name ({names})."
        )
    return path


def _member(path: Path, name: str, largest: int) -> bytes:
    """Content of one file of a bundle; nothing is ever extracted."""
    try:
        if path.is_dir():
            return _content(path / name, largest)
        if not path.is_file():  # a device or a pipe may never end
            raise PancreasSegError(f"{path} is not a model bundle: it is not a regular file.")
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(name).file_size > largest:
                raise PancreasSegError(f"{name} in {path} is too large.")
            return archive.read(name)
    except DAMAGED as error:
        raise PancreasSegError(
            f"{path} is not a model bundle: {name} cannot be read ({error})."
        ) from error


def _content(path: Path, largest: int) -> bytes:
    if path.exists() and not path.is_file():
        raise PancreasSegError(f"{path} is not a regular file, so this is not a model bundle.")
    if path.stat().st_size > largest:
        raise PancreasSegError(f"{path.name} in {path.parent} is too large.")
    return path.read_bytes()


def _named_by_hash(card: Mapping[str, Any]) -> str:
    return f"weights.{''.join(c for c in card['weights_sha256'] if c.isalnum())[:64]}.h5"


def _parse_card(data: bytes, path: Path) -> dict[str, Any]:
    try:
        card = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PancreasSegError(f"The card of {path} is not valid JSON: {error}.") from error
    _check_card(card, path)
    return dict(card)


def _check_card(card: Any, path: Path) -> None:
    if not isinstance(card, Mapping):
        raise PancreasSegError(f"The card of {path} is not a JSON object.")
    for name, kind in REQUIRED.items():
        if not isinstance(card.get(name), kind):  # type: ignore[arg-type]
            raise PancreasSegError(f"The card of {path} lacks a proper {name}.")
    if not 0 < card["threshold"] < 1:
        raise PancreasSegError(f"The card of {path} has a threshold outside 0 to 1.")
    wrong = [name for name, is_right in _RIGHT.items() if not is_right(card)]
    if wrong:
        raise PancreasSegError(
            f"The card of {path} has an impossible {' and '.join(wrong)}; get the model again."
        )


def _numbers(values: Any, low: float, high: float) -> bool:
    """Whether these are numbers within limits; NaN and truth values are not."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        for value in values
    )


def _frame_is_right(card: Mapping[str, Any]) -> bool:
    frame = card["frame"]
    offset = frame.get("offset_mm")
    return (
        set(frame) == {"height", "width", "mm_per_pixel", "offset_mm"}
        and all(isinstance(frame[side], int) for side in ("height", "width"))
        and _numbers((frame["height"], frame["width"]), 1, LARGEST_SIDE)
        and all(card["architecture"].get(s, frame[s]) == frame[s] for s in ("height", "width"))
        and _numbers([frame["mm_per_pixel"]], 0.01, 100)
        and isinstance(offset, list | tuple)
        and len(offset) == 2
        and _numbers(offset, -1000, 1000)
    )


def _windows_are_right(card: Mapping[str, Any]) -> bool:
    return 0 < len(card["windows"]) <= 16 and all(
        isinstance(window, list | tuple)
        and len(window) == 2
        and _numbers(window, -32768, 32767)
        and window[0] < window[1]
        for window in card["windows"]
    )


def _architecture_is_right(card: Mapping[str, Any]) -> bool:
    """Whether the sizes are such that building the network takes no absurd memory."""
    sizes = {key: value for key, value in card["architecture"].items() if key in _LARGEST}
    return all(
        isinstance(value, int) and _numbers([value], 1, _LARGEST[key])
        for key, value in sizes.items()
    )


_RIGHT: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "frame": _frame_is_right,
    "windows": _windows_are_right,
    "architecture": _architecture_is_right,
    "temperature": lambda card: _numbers([card.get("temperature", 1.0)], 1e-3, 1e3),
}
"""Further checks of a card: what a hostile one could ask for is refused before it is built."""
