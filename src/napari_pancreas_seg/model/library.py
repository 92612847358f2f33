"""The user's own models: kept by name, packed to be given away, taken in from others.

They lie in `own_folder`, one zip each. What comes from others is looked at before it is kept:
links and wrong hashes are refused, and a zip that holds more than a bundle does; what else lies
in a folder is left there.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import explain_os_error, is_plain_entry, read_entry
from napari_pancreas_seg.model.bundle import (
    CARD,
    LARGEST_CARD,
    LARGEST_LICENCE,
    LICENCE,
    WEIGHTS,
    Bundle,
    ModelEntry,
    bundled_names,
    list_models,
    load_bundle,
    load_licence,
    own_folder,
    read_member,
    write_zip,
)
from napari_pancreas_seg.model.card import parse_card
from napari_pancreas_seg.model.weights import DAMAGED, LARGEST_WEIGHTS

HASHES = "SHA256SUMS"
LARGEST = {CARD: LARGEST_CARD, WEIGHTS: LARGEST_WEIGHTS, LICENCE: LARGEST_LICENCE, HASHES: 1 << 12}
"""What a bundle's zip may hold, and how many bytes of each."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,79}")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""


def check_name(name: str, *, overwrite: bool = False) -> str:
    """Refuse, before any work is done, a name that a new model of the user's cannot have."""
    if not NAME.fullmatch(name) or RESERVED.fullmatch(name) or name[-1] in ". ":
        raise PancreasSegError(
            f"{name!r} cannot be the name of a model; give one of letters, digits, spaces and "
            "._- that begins with a letter or digit",
            option=" (--name).",
        )
    if name.lower().endswith(".zip"):
        raise PancreasSegError(f"{name!r} is the name of a file; give the model a name without it.")
    taken = dict.fromkeys(bundled_names(), "bundled")
    taken |= {entry.name.lower(): entry.origin for entry in list_models()}
    origin = taken.get(name.lower())  # some file systems do not tell cases apart
    if origin is not None and origin != "own":
        raise PancreasSegError(
            f"There is a model {name!r} already, which is not one of your own; choose another name."
        )
    if origin == "own" and not overwrite:
        raise PancreasSegError(
            f"There is a model {name!r} already; choose another name",
            option=" or allow overwriting (--overwrite).",
        )
    return name


def remove_model(name: str) -> None:
    """Remove one of the user's own models."""
    own = [entry.name for entry in list_models() if entry.origin == "own"]
    if name not in own:
        known = ", ".join(own) or "none"
        raise PancreasSegError(f"{name!r} is not one of your own models; these are: {known}.")
    place = own_folder() / name
    try:
        if place.is_dir():
            others = [path.name for path in place.iterdir() if not _ours(path.name)]
            if others:
                raise PancreasSegError(
                    f"The folder of the model {name!r} holds other files, too ({others[0]}); take "
                    f"them out of {place}, or remove the folder by hand."
                )
            shutil.rmtree(place)
        else:
            place.with_name(f"{name}.zip").unlink()
    except OSError as error:
        raise PancreasSegError(
            f"The model {name!r} cannot be removed: {explain_os_error(error)}."
        ) from error


def _ours(name: str) -> bool:
    """Whether a file in a model's folder is part of it, or left by a write that was cut off."""
    return name in LARGEST or name in (".DS_Store", "Thumbs.db") or name.startswith("weights.")


def export_bundle(
    model: str | Path | Bundle, path: Path, *, licence: str | None = None, overwrite: bool = False
) -> str:
    """Pack a model into a zip (weights, card, licence, hashes); the same gives the same SHA-256."""
    path = Path(path)
    if path.suffix.lower() != ".zip":
        raise PancreasSegError(f"The name of a packed model must end in .zip, not {path.name!r}.")
    bundle = load_bundle(model)
    if licence is None and not isinstance(model, Bundle):
        licence = load_licence(model)
    write_zip(path, _members(bundle, licence), overwrite=overwrite)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def import_bundle(
    path: Path, name: str | None = None, *, sha256: str | None = None, overwrite: bool = False
) -> ModelEntry:
    """Take in a packed model, or a bundle's folder, and keep it among the user's own.

    By default under its card's name; `sha256` is that of the zip. Loads Keras, to try the network.
    """
    path = Path(path)
    if not path.exists():
        raise PancreasSegError(f"There is no file {path}.")
    if path.is_dir():
        if sha256 is not None:
            raise PancreasSegError(
                f"{path} is a folder, and a SHA-256 is that of a zip: import the zip that it "
                "came with, or leave the hash out (--sha256)."
            )
        bundle, licence = _read_folder(path)
    else:
        bundle, licence = _read_zip(path, sha256)
    name = check_name(bundle.card["name"] if name is None else name, overwrite=overwrite)
    bundle.network()
    folder = own_folder() / name
    if folder.is_dir():  # put there by hand; a zip beside it would never be found
        raise PancreasSegError(
            f"A model {name!r} is kept as a folder, {folder}; choose another name or remove it."
        )
    write_zip(folder.with_name(f"{name}.zip"), _members(bundle, licence), overwrite=overwrite)
    return ModelEntry(name, "own", bundle.card)


def _members(bundle: Bundle, licence: str | None) -> dict[str, bytes]:
    """The files of a packed model."""
    card = json.dumps(bundle.card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    members = {
        WEIGHTS: bundle.weights,
        CARD: card.encode(errors="backslashreplace"),
        LICENCE: (licence or _stated_licence(bundle.card)).encode(),
    }
    sums = [f"{hashlib.sha256(content).hexdigest()}  {m}\n" for m, content in members.items()]
    return {**members, HASHES: "".join(sums).encode()}


def _stated_licence(card: Mapping[str, object]) -> str:
    """Write the terms of a model that came without a licence's text, from its card."""
    lines = [f"{card['name']} {card['version']}", f"Licence: {card['licence']}"]
    lines += [f"{key.capitalize()}: {card[key]}" for key in ("data", "citation") if card.get(key)]
    return "\n\n".join([*lines, "For research only, not for clinical use."]) + "\n"


def _read_folder(path: Path) -> tuple[Bundle, str | None]:
    """Read a model that lies in a folder, and nothing else that may lie there."""
    try:
        for name in LARGEST:  # a link may lead to any file of this computer's
            if (path / name).is_symlink():
                raise ValueError(f"its {name} is a link")
        there = {name: largest for name, largest in LARGEST.items() if (path / name).exists()}
        if HASHES in there:
            _check_hashes({name: read_member(path, name, n) for name, n in there.items()})
    except DAMAGED as error:
        raise PancreasSegError(f"{path} was not imported: {error}.") from error
    return load_bundle(path), load_licence(path)


def _read_zip(path: Path, sha256: str | None) -> tuple[Bundle, str | None]:
    """Read a packed model into memory; nothing is ever unpacked."""
    if not path.is_file():  # a device or a pipe may never end
        raise PancreasSegError(f"{path} is not a packed model: it is not a regular file.")
    try:
        if path.stat().st_size > sum(LARGEST.values()):
            raise ValueError("it is too large")
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256.strip().lower():
            raise ValueError("its SHA-256 is another than the one that was given")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            for member in members:
                if member.filename not in LARGEST or not is_plain_entry(member):
                    raise ValueError(
                        f"it holds {member.filename[:100]!r}, which is no part of a model"
                    )
            if len({m.filename for m in members}) < len(members):
                raise ValueError("it holds a file twice")
            found = {m.filename: read_entry(archive, m, LARGEST[m.filename]) for m in members}
        for name in (CARD, WEIGHTS):
            if name not in found:
                raise ValueError(f"it holds no {name}")
        _check_hashes(found)
        licence = found[LICENCE].decode() if LICENCE in found else None
        card = parse_card(found[CARD], path)
        if hashlib.sha256(found[WEIGHTS]).hexdigest() != card["weights_sha256"]:
            raise ValueError("its weights are not those that its card names (SHA-256 differs)")
    except DAMAGED as error:
        raise PancreasSegError(f"{path} was not imported: {error}.") from error
    return Bundle(card, found[WEIGHTS]), licence


def _check_hashes(found: Mapping[str, bytes]) -> None:
    """Compare what was read with the list of hashes, if there is one."""
    for line in found.get(HASHES, b"").decode().splitlines():
        expected, _, name = line.partition("  ")
        if name not in found or hashlib.sha256(found[name]).hexdigest() != expected:
            raise ValueError(f"its {name[:100]} is not what its {HASHES} says")
