"""The bundle a model travels in: weights and a card, never code.

A bundle is a folder or zip with ``weights.h5`` and ``card.json``. The card says how to
build the network; `napari_pancreas_seg.model.attention_unet.build` does so in float32. An
ensemble is a bundle like any other: ``members`` in its card says how many networks there are,
and its one weights file holds those of each in a group of its own.
Nothing here loads Keras until `Bundle.network` is called.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from napari_pancreas_seg.data.download import cache_folder
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import (
    atomic_write,
    explain_os_error,
    make_folder,
    read_entry,
    user_folder,
)
from napari_pancreas_seg.model.card import MOST_MEMBERS, SEGMENT, check_card, parse_card
from napari_pancreas_seg.model.weights import (
    DAMAGED,
    LARGEST_WEIGHTS,
    fill_weights,
    member_prefix,
    pack_weights,
)

if TYPE_CHECKING:
    import keras


CARD, WEIGHTS, LICENCE = "card.json", "weights.h5", "LICENCE.txt"
LARGEST_CARD = LARGEST_LICENCE = 1 << 20
SHARED = ("architecture", "frame", "windows", "labels")
"""Fields of the card in which the members of an ensemble agree."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be named."""

    name: str  # what to give as the model's name
    origin: str  # "bundled", "own" (the user's), or "cached": in the folder of what was downloaded
    card: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Bundle:
    """Card (see `REQUIRED` for what it always has) and content of ``weights.h5`` of a model."""

    card: Mapping[str, Any]
    weights: bytes

    def network(self, policy: str = "float32") -> keras.Model:
        """Build the network from the card, float32 weights computing in a Keras dtype policy."""
        from napari_pancreas_seg.model.attention_unet import (
            Architecture,
            average,
            build,
            count_parameters,
        )

        try:
            architecture = Architecture(**self.card["architecture"])
        except TypeError as error:
            raise PancreasSegError(
                f"The card of model {self.card['name']} describes a network that this version "
                f"does not know: {error}."
            ) from error
        members = int(self.card.get("members", 1))
        # float16 takes two bytes, and compression does not halve what a training has left.
        if members * count_parameters(architecture) > len(self.weights):
            raise PancreasSegError(
                f"The weights of model {self.card['name']} do not fit its card: they are too few "
                "for the network that it describes."
            )
        networks = [build(architecture, policy=policy) for _ in range(members)]
        try:
            with h5py.File(io.BytesIO(self.weights), "r") as file:
                for number, network in enumerate(networks):
                    fill_weights(network, file, member_prefix(number, members))
        except DAMAGED as error:
            raise PancreasSegError(
                f"The weights of model {self.card['name']} do not fit its card: {error}."
            ) from error
        return average(networks) if members > 1 else networks[0]


def save_bundle(
    network: keras.Model | bytes, card: Mapping[str, Any], path: Path, *, overwrite: bool = False
) -> Path:
    """Write a network, or a weights file, as a bundle: a folder, or a file that ends in .zip."""
    path = Path(path)
    weights = network if isinstance(network, bytes) else pack_weights(network)
    card = {**card, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    check_card(card, path)
    text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path.exists() and not overwrite:
        raise PancreasSegError(f"{path} already exists; choose another name or allow overwriting.")
    if path.suffix == ".zip":
        return write_zip(
            path,
            {WEIGHTS: weights, CARD: text.encode(errors="backslashreplace")},
            overwrite=overwrite,
        )
    make_folder(path)
    # No system replaces a folder at once. The card decides: until it is replaced the old weights
    # lie where they lay, and from then on the new ones are found under the name of their hash.
    waiting = path / _named_by_hash(card)
    with atomic_write(waiting, overwrite=True) as file:
        file.write(weights)
    with atomic_write(path / CARD, overwrite=True) as file:
        file.write(text.encode(errors="backslashreplace"))
    try:
        os.replace(waiting, path / WEIGHTS)
    except OSError as error:
        raise PancreasSegError(
            f"The model cannot be written to {path}: {explain_os_error(error)}."
        ) from error
    return path


def write_zip(path: Path, members: Mapping[str, bytes], *, overwrite: bool = False) -> Path:
    """Write a zip; the same members give the same bytes, so that their hash can be published."""
    with (
        atomic_write(path, overwrite=overwrite) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, content in members.items():
            info = zipfile.ZipInfo(name)  # of 1980, whenever it is written
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return path


def join_weights(bundles: Sequence[Bundle]) -> bytes:
    """The weights file of an ensemble of at least two models, none of them an ensemble."""
    if not 2 <= len(bundles) <= MOST_MEMBERS:
        raise PancreasSegError(f"An ensemble has between 2 and {MOST_MEMBERS} members.")
    first = bundles[0].card
    for bundle in bundles:
        differ = [key for key in SHARED if bundle.card.get(key) != first.get(key)]
        if differ or bundle.card.get("members", 1) != 1:
            what = f"another {differ[0]}" if differ else "members of its own"
            raise PancreasSegError(
                f"The model {bundle.card['name']} cannot be part of this ensemble: it has {what}."
            )
        bundle.network()  # its weights are whole, and are what its card says
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as joined:
        for number, bundle in enumerate(bundles):
            with h5py.File(io.BytesIO(bundle.weights), "r") as member:
                _copy_member(member, joined, member_prefix(number, len(bundles)))
    return buffer.getvalue()


def _copy_member(member: h5py.File, joined: h5py.File, prefix: str) -> None:
    """Copy all arrays; the same ones give the same bytes, so that their hash says what they are."""

    def copy(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            joined.create_dataset(prefix + name, data=found[()], track_times=False)

    member.visititems(copy)


def load_bundle(model: str | Path | Bundle, task: str = SEGMENT) -> Bundle:
    """Load a bundle by name (see `list_models`) or from a path, and check its hash."""
    if isinstance(model, Bundle):
        return model
    path = _find(model)
    card = _card_in(path, task)
    interrupted = path / _named_by_hash(card)  # `save_bundle` was killed at its last step
    name = interrupted.name if interrupted.is_file() else WEIGHTS
    weights = read_member(path, name, LARGEST_WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != card["weights_sha256"]:
        raise PancreasSegError(
            f"The weights in {path} are not those that its card names (SHA-256 differs); "
            "get the model again."
        )
    return Bundle(card, weights)


def load_card(model: str | Path) -> Mapping[str, Any]:
    """Read a model's card alone; see `load_bundle`."""
    return _card_in(_find(model), SEGMENT)


def _card_in(path: Path, task: str) -> dict[str, Any]:
    return parse_card(read_member(path, CARD, LARGEST_CARD), path, task)


def load_licence(model: str | Path) -> str | None:
    """Text of the licence that lies in a bundle, if there is one; see `load_bundle`."""
    path = _find(model)
    try:
        return read_member(path, LICENCE, LARGEST_LICENCE).decode()
    except (PancreasSegError, UnicodeDecodeError):
        return None


def list_models() -> list[ModelEntry]:
    """Models that can be named: bundled, the user's own, and those in the cache folder."""
    entries: list[ModelEntry] = []
    for origin, folder in _model_folders():
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            try:
                entries.append(ModelEntry(path.name.removesuffix(".zip"), origin, load_card(path)))
            except PancreasSegError:
                continue  # not a bundle, or a damaged one: nothing to offer
    return entries


def _model_folders() -> list[tuple[str, Path]]:
    """List origin and folder of the places that are searched for named models."""
    bundled = Path(str(files("napari_pancreas_seg") / "data" / "models"))
    return [("bundled", bundled), ("own", own_folder()), ("cached", cache_folder() / "models")]


def bundled_names() -> set[str]:
    """Names of all that comes with the package, whatever it is made for."""
    return {path.name for path in dict(_model_folders())["bundled"].iterdir()}


def own_folder() -> Path:
    """The user's own models: `NAPARI_PANCREAS_SEG_MODELS` names it, and it may not exist yet."""
    return user_folder("models", "NAPARI_PANCREAS_SEG_MODELS")


def _find(model: str | Path) -> Path:
    """Path of a bundle by its name or path."""
    given: Any = model
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise PancreasSegError(f"A model is given by its name or path, not {given!r}.")
    name = str(model)
    if Path(name).name == name and name not in ("", ".", ".."):
        for _, folder in _model_folders():
            for path in (folder / name, folder / f"{name}.zip"):
                if path.exists():
                    return path
    path = Path(model)
    if not path.exists():
        names = ", ".join(entry.name for entry in list_models()) or "none"
        raise PancreasSegError(
            f"There is no model {name!r}: neither a path nor a known name ({names})."
        )
    return path


def read_member(path: Path, name: str, largest: int) -> bytes:
    """Content of one file of a bundle; nothing is ever extracted. Longer ones are refused."""
    try:
        if path.is_dir():
            return _content(path / name, largest)
        if not path.is_file():  # a device or a pipe may never end
            raise PancreasSegError(f"{path} is not a model bundle: it is not a regular file.")
        with zipfile.ZipFile(path) as archive:
            return read_entry(archive, archive.getinfo(name), largest)
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
