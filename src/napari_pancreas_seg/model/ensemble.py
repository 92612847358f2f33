"""Several networks of one architecture as one, whose answer is the mean of theirs.

An ensemble is a bundle like any other: ``members`` in its card says how many networks there
are, and its one weights file holds the weights of each in a group of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import h5py

from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    import keras

    from napari_pancreas_seg.model.bundle import Bundle

__all__ = ["MOST_MEMBERS", "SHARED", "average", "join_weights", "member_prefix"]

MOST_MEMBERS = 32
SHARED = ("architecture", "frame", "localiser", "windows", "neighbours_mm", "labels")
"""Fields of the card in which the members must agree."""


def member_prefix(number: int, members: int) -> str:
    """Where the weights of a member (0, 1, …) lie in the weights file."""
    return f"member_{number + 1}/" if members > 1 else ""


def average(networks: Sequence[keras.Model]) -> keras.Model:
    """One network that runs several on the same input and averages each of their outputs.

    Parameters
    ----------
    networks : sequence of keras.Model
        As `napari_pancreas_seg.model.attention_unet.build` makes them from one architecture.

    Returns
    -------
    keras.Model
        From the same input to the same outputs.
    """
    import keras

    for number, network in enumerate(networks, start=1):
        network.name = f"member_{number}"
    inputs = keras.Input(networks[0].input_shape[1:])
    found: list[dict[str, Any]] = [network(inputs) for network in networks]
    outputs = {
        name: keras.layers.Average(dtype="float32", name=f"mean_{name}")([f[name] for f in found])
        for name in found[0]
    }
    return keras.Model(inputs, outputs, name="ensemble")


def join_weights(bundles: Sequence[Bundle]) -> bytes:
    """The weights file of an ensemble.

    Parameters
    ----------
    bundles : sequence of Bundle
        At least two, none of them an ensemble.

    Raises
    ------
    PancreasSegError
        If they are not networks of one kind, or not between 2 and `MOST_MEMBERS`.
    """
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
                _copy(member, joined, member_prefix(number, len(bundles)))
    return buffer.getvalue()


def _copy(member: h5py.File, joined: h5py.File, prefix: str) -> None:
    """Copy all arrays; the same ones give the same bytes, so that their hash says what they are."""

    def copy(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            joined.create_dataset(prefix + name, data=found[()], track_times=False)

    member.visititems(copy)
