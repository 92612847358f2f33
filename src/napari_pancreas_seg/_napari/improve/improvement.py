"""The user's own cases and a model that learns from them, in a process of its own.

``python -m napari_pancreas_seg finetune`` does the work and tells how far it is, a line of JSON
each time. It ends when its standard input does, so none is left behind when napari is killed, and
it writes the new model at its very end, whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

import numpy as np
from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.correct.review import Review
from napari_pancreas_seg._napari.layers.bridge import labels_of, mask_of, volume_of
from napari_pancreas_seg._napari.layers.placement import reference_of
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import Settings
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process.client import child_environment
from napari_pancreas_seg.io import load_mask
from napari_pancreas_seg.training.data.layouts.corrected_cases import (
    MASK,
    PANCREAS,
    CorrectedCase,
    add_corrected_case,
    corrected_cases_folder,
    find_corrected_case,
    list_corrected_cases,
    remove_corrected_case,
)
from napari_pancreas_seg.training.finetune.result import WRITING

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "napari_pancreas_seg", "finetune", "--json-progress")


@dataclass(frozen=True)
class Improved:
    name: str
    former: str  # name or path of the model that it comes from
    result: Mapping[str, Any]  # of `training.finetune.run.finetune`
    kept: bool = True

    @property
    def worth_using(self) -> bool:
        """Whether it may take the former model's place: unless it is known to be no better."""
        return self.result["better"] is not False

    def in_words(self, chosen: str) -> str:
        """Before and after, for people to read; `chosen` is the model that is chosen now."""
        held, guard = self.result["held_out"], self.result["guard"]
        lines = []
        if held["before"] is not None:
            whose = "a patient" if held["n"] == 1 else f"{held['n']} patients"
            lines.append(
                f"On {whose} of yours left out of a trial: Dice {held['before']:.2f} before, "
                f"{held['after']:.2f} after."
            )
        if guard["before"] is not None:
            lines.append(
                f"On the synthetic CT: {guard['before']:.2f} before, {guard['after']:.2f} after."
            )
        lines += self.result["notes"]
        if self.kept:
            better = "" if self.worth_using else "It did not become better. "
            is_now = "chosen now" if chosen == self.name else "not chosen"
            lines.append(f"{better}The new model is called {self.name} and is {is_now}.")
        else:
            lines.append("It did not become better, and was not kept.")
        return "\n".join(lines)


class Improvement(QObject):
    """Keeps the user's cases, and lets a model learn from them.

    ``changed``: the cases, what is being done to them (`working`, for people to read), `known` (the
    case that the CT is already, with another mask or other slices, until it is told whether to
    replace those), or how far the learning is; ``wanted(name)``: a model is to be chosen.
    """

    changed = Signal()
    wanted = Signal(str)
    _progressed = Signal(object)

    def __init__(
        self,
        session: Session,
        review: Review,
        settings: Settings,
        background: Background,
    ) -> None:
        super().__init__()
        self.folder = corrected_cases_folder()
        self.cases: list[CorrectedCase] = []
        self.working = ""
        self.known: CorrectedCase | None = None
        self.same_mask = False  # in the known case as on screen, with other slices reviewed
        self.stage, self.share, self.seconds_left = "", 0.0, None
        self.improved: Improved | None = None
        self.keeps_all = False  # a model, too, that did no better on patients not seen
        self.command = list(COMMAND)
        self._session = session
        self._review = review
        self._settings = settings
        self._background = background
        self._child: subprocess.Popen[bytes] | None = None
        self._cancelled = self._writing = False
        self._progressed.connect(self._on_progress)
        session.ct_chosen.connect(self.leave_case)  # what is on screen then is another case's
        self.list_again()

    # -- cases

    @property
    def unchanged(self) -> bool:
        """Whether the reviewed slices are as the model left them: they would teach it nothing."""
        mask, facts = self._session.mask, self._review.facts
        if mask is None or mask not in self._session.masks or facts is None:
            return False
        reviewed = [z for z in self._review.reviewed if z < len(facts.edited)]
        return bool(reviewed) and not facts.edited[reviewed].any()

    def list_again(self) -> None:
        def listed(cases: list[CorrectedCase]) -> None:
            self.cases = cases
            self.changed.emit()

        self._background.submit(lambda: list_corrected_cases(self.folder), listed)

    def add_case(self, *, replace: bool = False) -> None:
        """Keep the chosen CT and its mask's reviewed slices; in place of a known case if told."""
        read, labels, reviewed = self._reader(), self._labels(), self._review.reviewed
        ct = self._session.ct
        if not reviewed:
            raise PancreasSegError(
                "No slice of this mask is marked as reviewed; mark those that are right first."
            )
        if self.working:
            return

        def work() -> tuple[CorrectedCase | None, bool]:
            volume, mask = read()
            known = None if replace else find_corrected_case(self.folder, volume)
            if known is not None:
                return known, np.array_equal(load_mask(known.folder / MASK)[0], mask)
            add_corrected_case(self.folder, volume, mask, reviewed, labels=labels, replace=replace)
            return None, False

        def done(outcome: tuple[CorrectedCase | None, bool]) -> None:
            self.working, (self.known, self.same_mask) = "", outcome
            if self.known and self._session.ct is not ct:
                self.known = None
                show_info("The CT from before is among your cases already: nothing was changed.")
            if self.same_mask and self.known and self.known.reviewed == tuple(sorted(reviewed)):
                self.known = None
                show_info("Already among your cases, unchanged.")
            self.changed.emit()  # the list comes later
            self.list_again()

        self.working, self.known = "Adding the case…", None
        self.changed.emit()
        self._background.submit(work, done, self._failed)

    def leave_case(self) -> None:
        self.known = None
        self.changed.emit()

    def remove_case(self, name: str) -> None:
        remove, again = partial(remove_corrected_case, self.folder, name), self.list_again
        self._background.submit(remove, lambda _: again(), again)

    # -- learning

    @property
    def running(self) -> bool:
        return self._child is not None

    def start(self, model: str, minutes: float) -> None:
        if self.running:
            raise PancreasSegError("A model is learning already; cancel that or wait for its end.")
        if not self.cases:
            raise PancreasSegError("There is no case to learn from yet; add a corrected one first.")
        options = ["--model", model, "--data", str(self.folder), "--minutes", f"{minutes:g}"]
        flags = ("CREATE_NO_WINDOW", "BELOW_NORMAL_PRIORITY_CLASS")  # on Windows
        try:
            errors = tempfile.TemporaryFile()  # noqa: SIM115
            child = subprocess.Popen(
                [*self.command, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(),
                creationflags=sum(getattr(subprocess, flag, 0) for flag in flags),
            )
        except OSError as error:
            raise PancreasSegError(f"The learning could not be started: {error}.") from error
        self._child, self._cancelled, self._writing = child, False, False
        self.stage, self.share, self.seconds_left = "starting", 0.0, None
        self.changed.emit()

        def done(result: Mapping[str, Any] | None) -> None:
            self._child = None
            if result is not None and self._cancelled:  # at the last moment: it is written
                self._background.submit(lambda: _remove(str(result["name"])))
            elif result is not None:
                made = Improved(str(result["name"]), model, result)
                if made.worth_using:
                    self._settings.set("model/name", made.name)
                    self.wanted.emit(made.name)
                elif not self.keeps_all:
                    made = replace(made, kept=False)
                    self._background.submit(lambda: _remove(made.name))
                self.improved = made
            self.changed.emit()

        self._background.submit(lambda: self._listen(child, errors), done, self._ended)

    def cancel(self) -> None:
        child = self._child
        if child is not None:
            self._cancelled = True
            if not self._writing:  # else it ends at once, and what it has written is removed
                child.kill()

    def _listen(self, child: subprocess.Popen[bytes], errors: IO[bytes]) -> Any:
        """Read what the child tells until it ends; return its result, None without one."""
        result = None
        with errors, child:
            for line in child.stdout or ():
                message = _parsed(line)
                if "result" in message:
                    result = message["result"]
                elif "stage" in message:
                    self._writing = message["stage"] == WRITING
                    with contextlib.suppress(RuntimeError):  # the window is gone
                        self._progressed.emit(message)
            status = child.wait()
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
        if not self._cancelled and (status != 0 or result is None):
            raise PancreasSegError(_why(status, lines))
        return result

    def _on_progress(self, message: Mapping[str, Any]) -> None:
        self.stage, self.share = str(message["stage"]), float(message["share"])
        self.seconds_left = message["seconds_left"]
        self.changed.emit()

    def _ended(self) -> None:
        self._child = None
        self.changed.emit()

    def _failed(self) -> None:
        self.working = ""
        self.changed.emit()

    def _labels(self) -> Mapping[str, int]:
        """Return the labels of the chosen mask, name to value: its model's, else its own."""
        mask, made = self._session.mask, self._session.model_mask
        card = {} if made is None or made.result is None else made.result.model
        own = {} if mask is None else labels_of(mask)
        return dict(card.get("labels") or own or PANCREAS)

    def _reader(self) -> Callable[[], tuple[Any, Any]]:
        """What reads the CT and its mask as they are now, for a thread."""
        ct, layer = self._session.ct, self._session.mask
        if ct is None or layer is None:
            raise PancreasSegError("There is no corrected mask yet: open a CT and run first.")
        reference, own = self._session.placement(ct).reference, reference_of(layer)
        on = reference if own is None else own
        if not isinstance(layer, Labels) or not on.grid.same_as(reference.grid):
            raise PancreasSegError(
                f"The mask '{layer.name}' does not lie on the grid of '{ct.name}'; choose the mask "
                "that belongs to this CT."
            )
        data, held = ct.data, np.array(layer.data)  # it may be painted on meanwhile

        def read() -> tuple[Any, Any]:
            return volume_of(data, reference), on.view(mask_of(held))

        return read


def _remove(name: str) -> None:
    from napari_pancreas_seg.model.library import remove_model

    remove_model(name)


def _parsed(line: bytes) -> Mapping[str, Any]:
    """A line of the child's; what a library has printed is no mapping."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _why(status: int, lines: Sequence[str]) -> str:
    """Say in a sentence why there is no new model: the command's own, if it gave one."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    logger.debug("The learning ended with status %s:\n%s", status, "\n".join(lines[-30:]))
    if status == 1 and last:
        return last
    if status in (-9, -15, 137):
        return (
            "The learning was stopped from outside, most often because the memory ran out. Close "
            "other programs and try again."
        )
    it_said = f" It said: {last}" if last else ""
    return f"The learning ended unexpectedly (status {status}).{it_said}"
