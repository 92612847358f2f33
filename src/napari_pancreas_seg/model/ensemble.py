"""Several networks of one architecture as one, whose answer is the mean of theirs.

An ensemble is a bundle like any other: ``members`` in its card says how many networks there
are, and its one weights file holds the weights of each in a group of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import h5py

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.model.card import MOST_MEMBERS
from napari_pancreas_seg.model.weights import member_prefix

SHARED = ("architecture", "frame", "windows", "labels")
"""Fields of the card in which the members must agree."""


def join_weights(bundles: Sequence[Bundle]) -> bytes:
    """The weights file of an ensemble of at least two models, none of them an ensemble.

    PancreasSegError if they are not networks of one kind, or too many.
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
