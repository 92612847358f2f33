"""The child's side of `napari_pancreas_seg.inference.process.client`: it serves the network."""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from typing import IO, TYPE_CHECKING, Any

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.framework import load_framework
from napari_pancreas_seg.inference.process import messages
from napari_pancreas_seg.inference.process.messages import Message
from napari_pancreas_seg.inference.result import Options, Progress, Segmentation
from napari_pancreas_seg.inference.scan_context import ScanContext
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.body import Body
    from napari_pancreas_seg.inference.loaded import LoadedModel
    from napari_pancreas_seg.inference.mend import Mender


def serve(network: _Network, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Answer requests until the input ends, with what a network does; keep the last CT."""
    requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
    cancelled: set[int] = set()
    threading.Thread(target=_listen, args=(stdin, requests, cancelled), daemon=True).start()
    volume: CTVolume | None = None
    while True:
        message = requests.get()
        number, what = message["id"], message["request"]
        if "hu" in message:
            volume = messages.volume_of(message)  # the former one is let go
        try:
            if what == "devices":
                found, why = network.devices()
                reply: Message = {"reply": "result", "devices": found, "why": why}
            elif what == "warm up":
                network.warm_up(message["model"], message["options"], volume)
                reply = {"reply": "result"}
            elif what == "mend":
                assert volume is not None
                reply = {"reply": "result", "plane": network.mend(volume, **message["asked"])}
            else:
                assert volume is not None
                steps = network.segment(volume, message["model"], message["options"])
                reply = _run(steps, number, cancelled, stdout)
        except Exception as error:
            traceback.print_exc()
            reply = {"reply": "error", "sentence": _sentence(error)}
        cancelled.discard(number)
        messages.send(stdout, {**reply, "id": number})
        del message, reply  # neither a CT nor a mask is kept until the next request


def _run(
    steps: Generator[Progress, None, Segmentation],
    number: int,
    cancelled: set[int],
    stdout: IO[bytes],
) -> Message:
    """Pass on every step of a run; return its last message."""
    while number not in cancelled:
        try:
            step = next(steps)
        except StopIteration as stop:
            return {"reply": "result", "found": stop.value}
        messages.send(stdout, {"reply": "progress", "id": number, "step": step})
    steps.close()
    return {"reply": "cancelled"}


def _listen(stdin: IO[bytes], requests: queue.SimpleQueue[Message], cancelled: set[int]) -> None:
    """Take in requests while the network computes; end the process when the input ends."""
    try:
        while (message := messages.receive(stdin)) is not None:
            if message["request"] == "cancel":
                cancelled.add(message["id"])
            else:
                requests.put(message)
    except MemoryError:
        os._exit(messages.OUT_OF_MEMORY)  # the parent reads this from the status
    finally:
        # The parent is gone. The main thread may be deep in a library: leave at once.
        os._exit(0)


def _sentence(error: Exception) -> str:
    if isinstance(error, PancreasSegError):
        return error.in_window
    if isinstance(error, MemoryError):
        return "The memory ran out. Close other programs, or choose a smaller batch, and run again."
    if isinstance(error, ImportError):
        return (
            f"The network needs a package that cannot be imported here ({error}). Install "
            "napari-pancreas-seg with its dependencies, TensorFlow among them."
        )
    return f"The network failed: {type(error).__name__}: {error}"


def main() -> None:
    """Run the child process: serve requests from standard input with the real network."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not end up between two messages.
    os.dup2(2, 1)
    # Ctrl+C in a terminal reaches the child as well; it ends with its parent anyway.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(_Network(), requests, replies)


class _Network:
    """The real network; the last model stays in memory between requests."""

    def __init__(self) -> None:
        self._device = ""
        self._loaded: LoadedModel | None = None
        self._mender: Mender | None = None
        self._seen: tuple[CTVolume, ScanContext] | None = None

    def devices(self) -> tuple[list[dict[str, str]], str]:
        from napari_pancreas_seg.inference.devices import list_devices

        return list_devices()

    def warm_up(self, model: str, options: Options, volume: CTVolume | None) -> None:
        loaded = self.load(model, options)
        if volume is not None:
            self.scan_context(volume)
            loaded.warm_up(volume, options)

    def mend(self, volume: CTVolume, *, plane: Array | None, **asked: Any) -> Array | None:
        from napari_pancreas_seg.inference.mend import Mender

        if self._mender is None:
            self._mender = Mender(look=self._body)
        if plane is None:
            self._mender.warm_up(volume)
            return None
        return self._mender.mend_plane(volume, plane, **asked)

    def _body(self, volume: CTVolume) -> Body | None:
        try:
            return self.scan_context(volume).body
        except PancreasSegError:  # no soft tissue: strokes are obeyed all the same
            return None

    def scan_context(self, volume: CTVolume) -> ScanContext:
        if self._seen is None or self._seen[0] is not volume:
            self._seen = None
            self._seen = volume, ScanContext.of(volume)
        return self._seen[1]

    def load(self, model: str, options: Options) -> LoadedModel:
        """The model as it is now: one that was replaced under its name is loaded anew."""
        from napari_pancreas_seg.inference.loaded import LoadedModel
        from napari_pancreas_seg.model.bundle import load_card

        if "keras" not in sys.modules:
            load_framework()
            gc.freeze()  # this process is our own: what TensorFlow made stays to its end
        same = self._loaded is not None and self._device == options.device
        # A card holds the hash of its weights.
        if self._loaded is None or not same or self._loaded.card != load_card(model):
            self._loaded = None  # before the next one: two may not fit into a GPU
            self._loaded = LoadedModel(model, options.device)
            self._device = options.device
        return self._loaded

    def segment(
        self, volume: CTVolume, model: str, options: Options
    ) -> Generator[Progress, None, Segmentation]:
        yield Progress("loading the network", 0, volume.grid.shape[0])
        from napari_pancreas_seg.inference.segment import iter_segment

        loaded = self.load(model, options)
        return (yield from iter_segment(volume, loaded, options, self.scan_context(volume)))


if __name__ == "__main__":
    main()
