"""What a training needs to go on where it was interrupted, in one file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_write

CHECKPOINT = "checkpoint.npz"


@dataclass
class TrainingState:
    """How far a training has come, beside the values of its variables.

    `unscored` is the line of an epoch yet to be scored, `best` the best epoch's averaged weights.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    unscored: dict[str, Any] | None = None
    best: list[npt.NDArray[Any]] | None = None


class Checkpoint:
    """Everything that a training needs to go on, in one file that is replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / CHECKPOINT

    def save(self, variables: list[Any], state: TrainingState) -> None:
        """Write all variables and the state."""
        arrays = {f"v{i}": ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        arrays |= {f"best{i}": array for i, array in enumerate(state.best or ())}
        about = {"step": state.step, "history": state.history, "unscored": state.unscored}
        with atomic_write(self.path, overwrite=True) as file:
            np.savez(file, about=json.dumps(about), **arrays)

    def restore(self, variables: list[Any]) -> TrainingState:
        """Set all variables and return the state."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                arrays = _numbered(stored, "v")
                best = _numbered(stored, "best")
            state = TrainingState(
                int(about["step"]), about["history"], about.get("unscored"), best or None
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PancreasSegError(f"{self.path} is not a whole checkpoint: {error}.") from error
        if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
            raise PancreasSegError(
                f"{self.path} belongs to a training with another recipe; "
                "choose another output folder."
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return state


def _numbered(stored: Any, prefix: str) -> list[npt.NDArray[Any]]:
    count = sum(name.removeprefix(prefix).isdecimal() for name in stored.files if name != "about")
    return [stored[f"{prefix}{i}"] for i in range(count)]
