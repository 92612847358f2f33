"""The network in a process of its own; docs/architecture.md says why."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process import messages
from napari_pancreas_seg.inference.process.messages import Message
from napari_pancreas_seg.inference.result import Options, Progress, Segmentation
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

Replies = queue.SimpleQueue[Message | None]

MODULE = "napari_pancreas_seg.inference.process.server"
POLL_SECONDS = 0.05
LAST = ("result", "error", "cancelled")
"""Replies after which nothing more comes for a request."""


class NetworkProcess:
    """Runs segmentations in a child process, started when it is first needed."""

    def __init__(self, command: Sequence[str] | None = None, patience_seconds: float = 3.0) -> None:
        self._command = list(command or (sys.executable, "-m", MODULE))
        self._patience = patience_seconds
        self._numbers = itertools.count(1)
        self._starting = threading.Lock()
        self._child: _Child | None = None
        self._closed = threading.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        child = self._child
        return child.process.pid if child is not None and child.alive else None

    def warm_up(
        self,
        model: str | Path = "default",
        options: Options | None = None,
        volume: CTVolume | None = None,
        key: str = "",
    ) -> None:
        """Start the child and let it load the model, for a CT if given (`key`); do not wait."""
        try:
            with self._starting:
                child = self._running_child()
            if child is not None:
                request = {"model": str(model), "options": options or Options()}
                child.send("warm up", next(self._numbers), request, volume, key)
        except (OSError, PancreasSegError):
            logger.debug("The network could not be warmed up", exc_info=True)

    def devices(self, patience_seconds: float = 120.0) -> tuple[list[dict[str, str]], str]:
        """Ask the child for `list_devices`; PancreasSegError without a child or an answer."""
        child, number = self._child, next(self._numbers)
        if child is None:
            raise PancreasSegError("The network's process is not running.")
        try:
            replies = child.listen(number)
            child.request("devices", number)
            message = replies.get(timeout=patience_seconds)
        except (OSError, queue.Empty) as error:
            raise PancreasSegError("The network's process does not answer.") from error
        finally:
            child.forget(number)
        if message is None or message["reply"] != "result":
            raise PancreasSegError(child.last_words() if message is None else message["sentence"])
        return message["devices"], message["why"]

    def iter_segment(
        self,
        volume: CTVolume,
        model: str | Path = "default",
        options: Options | None = None,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        key: str = "",
    ) -> Generator[Progress, None, Segmentation | None]:
        """Segment a CT in the child; closing the generator cancels.

        `cancelled` is asked several times a second, also while the network is busy; once it
        answers True the run ends as if closed, and gives None. `key` names the CT, voxels
        included; one that the child has already is not sent again. PancreasSegError if the
        segmentation fails, or the child ends before it is done.
        """
        request = {"model": str(model), "options": options or Options()}
        with contextlib.closing(self._ask("segment", request, volume, key, cancelled)) as replies:
            for message in replies:
                if message["reply"] != "progress":
                    return message.get("found")
                yield message["step"]
        return None

    def mend(
        self, volume: CTVolume, plane: Array | None, z: int, *, key: str = "", **strokes: Any
    ) -> Array | None:
        """`Mender.mend_plane` in the child; without `plane` to make ready. None if closed."""
        request = {"asked": {"plane": plane, "z": z, **strokes}}
        with contextlib.closing(self._ask("mend", request, volume, key)) as replies:
            return next((message["plane"] for message in replies), None)

    def _ask(
        self,
        kind: str,
        content: Message,
        volume: CTVolume,
        key: str,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Message]:
        """Ask the child, and yield its replies; none once it is closed. Closing this cancels."""
        number = next(self._numbers)
        over = False
        with self._starting:  # or `_cancel` might kill the child before it is listened to
            child = self._running_child()
            if child is None:
                return
            replies = child.listen(number)
        try:
            child.send(kind, number, content, volume, key)
            for message in self._replies(child, replies, cancelled):
                over = message["reply"] in LAST
                if message["reply"] == "error":
                    raise PancreasSegError(message["sentence"])
                yield message
        except OSError as error:
            # The pipe broke while the volume was on its way.
            if self._closed.is_set() or cancelled():
                return
            raise PancreasSegError(child.last_words()) from error
        finally:
            if not over:
                self._cancel(child, replies, number)
            child.forget(number)

    def close(self) -> None:
        """End the child for good; a run that is under way, or comes later, ends as if cancelled."""
        self._closed.set()
        with self._starting:
            child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _running_child(self) -> _Child | None:
        """Start the child if there is none, with `_starting` held; None after `close`."""
        if self._closed.is_set():
            return None
        if self._child is None or not self._child.alive:
            try:
                child = _Child(self._command)
            except OSError as error:
                raise PancreasSegError(
                    f"The network's process could not be started: {error}."
                ) from error
            # Forgotten without close(), or the interpreter ends: nothing survives.
            weakref.finalize(self, child.kill)
            self._child = child
        return self._child

    def _replies(
        self, child: _Child, replies: Replies, cancelled: Callable[[], bool]
    ) -> Iterator[Message]:
        while not (cancelled() or self._closed.is_set()):
            try:
                message = replies.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                if self._closed.is_set():
                    return
                raise PancreasSegError(child.last_words())
            yield message

    def _cancel(self, child: _Child, replies: Replies, number: int) -> None:
        """Ask the child to stop and wait, or kill it; not if somebody else waits for its answer."""
        deadline = time.monotonic() + self._patience
        with contextlib.suppress(OSError):
            child.request("cancel", number)
            while child.alive and time.monotonic() < deadline and not child.awaited(number):
                try:
                    message = replies.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                if message is None or message["reply"] in LAST:
                    return
        with self._starting:  # nobody begins to wait meanwhile
            if not child.awaited(number):
                child.kill()


class _Child:
    """A started child, with threads that read what it says."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._replies: dict[int, Replies] = {}
        self._over = False
        self._listening = threading.Lock()
        self._holds = ""
        self._sending = threading.Lock()
        self._errors: deque[str] = deque(maxlen=30)
        self._garbled = False
        self._writing = threading.Lock()
        for target in (self._read_replies, self._read_errors):
            threading.Thread(target=target, name="pancreas-network", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def listen(self, number: int) -> Replies:
        """Where the replies to a request will come in; None there is the child's end."""
        replies: Replies = queue.SimpleQueue()
        with self._listening:
            if self._over:
                replies.put(None)
            self._replies[number] = replies
        return replies

    def forget(self, number: int) -> None:
        """Drop further replies to a request."""
        with self._listening:
            self._replies.pop(number, None)

    def awaited(self, number: int) -> bool:
        """Whether somebody waits for replies to another request than this one."""
        with self._listening:
            return bool(self._replies.keys() - {number})

    def send(
        self, kind: str, number: int, content: Message, volume: CTVolume | None, key: str
    ) -> None:
        """Send a request about a CT, and the CT unless the child has it."""
        with self._sending:  # what the child holds must follow the order in the pipe
            if volume is None or (key and key == self._holds):
                self.request(kind, number, **content)
                return
            self._holds = ""
            self.request(kind, number, **content, hu=volume.hu, affine=volume.grid.affine)
            self._holds = key

    def request(self, kind: str, number: int, **content: Any) -> None:
        assert self.process.stdin is not None
        try:
            with self._writing:
                messages.send(self.process.stdin, {"request": kind, "id": number, **content})
        except ValueError as error:  # the pipe was closed meanwhile, by `kill`
            raise BrokenPipeError(str(error)) from error

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        # Who is just sending fails first, as the pipe is broken: closing a file meanwhile, or in
        # two threads at once, may fail. What was not sent yet is lost with the child.
        with self._writing, contextlib.suppress(OSError):
            self.process.stdin.close()

    def last_words(self) -> str:
        """One sentence on why the child ended, as far as can be known."""
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self.process.returncode
        tail = "\n".join(self._errors)
        logger.debug("The network's process ended with status %s:\n%s", status, tail)
        if self._garbled:
            why = "sent something that is not an answer and was stopped. Run again."
        elif status in (-signal.SIGTERM, -9, messages.OUT_OF_MEMORY, 0xC0000017):
            why = (
                "was stopped from outside, most often because the memory ran out. Close other "
                "programs, or choose a smaller batch, and run again."
            )
        else:
            last = next((line.strip() for line in reversed(self._errors) if line.strip()), "")
            why = f"ended unexpectedly (status {status})." + (f" It said: {last}" if last else "")
        return f"The network's process {why}"

    def _read_replies(self) -> None:
        assert self.process.stdout is not None
        try:
            while (message := messages.receive(self.process.stdout)) is not None:
                with self._listening:
                    replies = self._replies.get(message["id"])
                if replies is not None:
                    replies.put(message)
        except Exception:
            # It died in the middle of a message, or something else wrote into the pipe.
            logger.debug("The network's process broke off", exc_info=True)
            self._garbled = self.alive
            self.process.kill()
        self.process.stdout.close()
        with self._listening:
            self._over = True
            for replies in self._replies.values():
                replies.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._errors.append(line.decode(errors="replace").rstrip())


def child_environment() -> dict[str, str]:
    """Environment of a child process: the parent's, and no more folders to import from."""
    environment = dict(os.environ)
    if not {"", str(Path.cwd())} & set(sys.path):
        # ``-m`` would put the working folder first, and with it any ``random.py`` there.
        environment["PYTHONSAFEPATH"] = "1"
    return environment
