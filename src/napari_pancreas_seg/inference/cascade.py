"""Two stages: one network finds the gland, another looks at it more closely.

The second one's frame lies around the gland, so that its pixels can be finer at the same cost a
slice. Which network finds the gland is said by the second one's card, or by the user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.frame import Frame, gland_centre
from napari_pancreas_seg.model.bundle import Bundle, list_models, load_card

__all__ = [
    "COARSE_MM",
    "DEFAULT_LOCALISER",
    "GlandLocation",
    "find_localiser",
    "localiser_entry",
    "share_outside",
    "with_localiser",
]

DEFAULT_LOCALISER = "default"
COARSE_MM = 6.0
"""Slices of the first stage lie at most so far apart within the gland; it is only to be found."""
MARGIN_MM = 9.0
"""So far beyond the first stage's ends of the gland the second one looks."""


@dataclass(frozen=True)
class GlandLocation:
    """Where the first stage has found the gland.

    Parameters
    ----------
    centre : tuple of float
        (y, x) index in the slices.
    part : slice
        Slices that may show it.
    """

    centre: tuple[float, float]
    part: slice

    @classmethod
    def of(
        cls, gland: npt.NDArray[Any], spacing_z_mm: float, within: slice
    ) -> GlandLocation | None:
        """Look at a coarse mask.

        Parameters
        ----------
        gland : ndarray, shape (Z, Y, X)
            Other than 0 in the gland.
        spacing_z_mm : float
            Distance between two slices.
        within : slice
            Slices that are asked for.

        Returns
        -------
        Whereabouts or None
            None for an empty mask.
        """
        centre = gland_centre(gland)
        if centre is None:
            return None
        shown = np.flatnonzero(gland.any(axis=(1, 2)))
        more = math.ceil(MARGIN_MM / spacing_z_mm)
        start, stop = int(shown[0]) - more, int(shown[-1]) + 1 + more
        return cls(centre, slice(max(start, within.start), min(stop, within.stop)))


def share_outside(gland: npt.NDArray[Any], frame: Frame) -> float:
    """Share of a mask (Z, Y, X), other than 0 in the gland, that a frame leaves out."""
    area = np.count_nonzero(gland, axis=0)
    inside = []
    for origin, step, n_frame, n_slice in zip(
        frame.origin, frame.step, (frame.spec.height, frame.spec.width), frame.shape, strict=True
    ):
        place = (np.arange(n_slice) - origin) / step
        inside.append((place >= -0.5) & (place <= n_frame - 0.5))
    return 1.0 - float(area[np.ix_(*inside)].sum() / max(1, area.sum()))


def localiser_entry(model: str | Path, card: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What a card says of the model that finds the gland for it.

    Parameters
    ----------
    model : str or Path
        Name or path of that model.
    card : Mapping, optional
        Its card; read if None.

    Raises
    ------
    PancreasSegError
        If there is no such model, or it cannot find a gland by itself.
    """
    card = load_card(model) if card is None else card
    _check(card)
    known = str(model) == Path(model).name  # of a path, the model's own name says more
    return {
        "name": str(model) if known else str(card["name"]),
        "weights_sha256": str(card["weights_sha256"]),
    }


def find_localiser(
    card: Mapping[str, Any], given: str | Path | Bundle | None = None
) -> str | Path | Bundle | None:
    """Find the model that finds the gland for another one.

    Parameters
    ----------
    card : Mapping
        The other one's card.
    given : str, Path or Bundle, optional
        Which one the user wants; the one that the card names if None.

    Returns
    -------
    str, Path or Bundle, or None
        What to load; None for a model that needs no other. Of models of the name that the card
        gives, only the one with the same weights is meant; if that is gone, its namesake serves.

    Raises
    ------
    PancreasSegError
        If one is needed and there is none, or one is given and none is needed.
    """
    if not _is_second(card):
        if given is not None:
            raise PancreasSegError(
                f"The model {card['name']} finds the pancreas by itself; leave out the localiser."
            )
        return None
    if given is not None:
        _check(given.card if isinstance(given, Bundle) else load_card(given))
        return given
    wanted = card.get("localiser")
    if wanted is None:
        raise PancreasSegError(
            f"The model {card['name']} is the second stage of a cascade, and its card does not say "
            "which model finds the gland for it; name one as the localiser."
        )
    # Names alone: a card must not have files opened wherever it likes.
    there = [entry for entry in list_models() if "frame" in entry.card or entry.origin == "known"]
    same = [e for e in there if e.card.get("weights_sha256") == wanted["weights_sha256"]]
    named = [e for e in there if e.name == wanted["name"]]
    for entry in sorted(same, key=lambda e: e.name != wanted["name"]) + named:
        _check(load_card(entry.name))
        return entry.name
    raise PancreasSegError(
        f"The model {card['name']} has its gland found by the model {wanted['name']} "
        f"({wanted['weights_sha256'][:12]}), which is not here; import it, or name another one as "
        "the localiser."
    )


def with_localiser(
    card: Mapping[str, Any], given: str | Path | Bundle | None = None
) -> Mapping[str, Any]:
    """A card that names the model which does find the gland; see `find_localiser`."""
    found = find_localiser(card, given)
    if found is None:
        return card
    its = found.card if isinstance(found, Bundle) else load_card(found)
    before = card.get("localiser") or {}
    if before.get("weights_sha256") == its["weights_sha256"]:
        return card
    name = its["name"] if isinstance(found, Bundle) else found
    return {**card, "localiser": localiser_entry(name, its)}


def _is_second(card: Mapping[str, Any]) -> bool:
    """Whether a model looks at what another one has found."""
    return card.get("frame", {}).get("centre", "body") == "gland"


def _check(card: Mapping[str, Any]) -> None:
    if _is_second(card):
        raise PancreasSegError(
            f"The model {card['name']} is the second stage of a cascade itself, so it cannot be "
            "the localiser."
        )
    if not any(Classes.of(card).in_gland):
        raise PancreasSegError(
            f"The model {card['name']} knows no pancreas, so it cannot be the localiser."
        )
