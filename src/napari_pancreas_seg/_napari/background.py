"""Short jobs off the GUI thread, such as reading a file, and how an error is shown."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from napari.utils.notifications import notification_manager, show_error
from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_pancreas_seg.errors import PancreasSegError

logger = logging.getLogger(__name__)


class Background(QObject):
    """The threads of a viewer; results come back to the GUI thread.

    napari's workers would prompt one by one when the window closes, and mix up hooks of warnings.
    """

    _ended = Signal(object, object, object)

    def __init__(self) -> None:
        super().__init__()
        # Some jobs are long: warming up, the next case, a model that learns. None may wait
        # for those, and the others are short.
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="pancreas")
        # A bound method of an object of this thread: Qt delivers here, whoever emits; queued, as
        # a job that has ended already when it is submitted would else be delivered at once.
        self._ended.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def submit(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """Work in a thread, without Qt; `then` and `failed` are called in the GUI thread."""

        def end(future: Future[Any]) -> None:
            try:
                self._ended.emit(future, then, failed)
            except RuntimeError:
                logger.debug("The window was gone before a job ended")

        try:
            self._pool.submit(work).add_done_callback(end)
        except RuntimeError:
            logger.debug("A job came after the window was closed")

    def close(self) -> None:
        self._pool.shutdown(wait=False)

    def _deliver(
        self,
        future: Future[Any],
        then: Callable[[Any], None] | None,
        failed: Callable[[], None] | None,
    ) -> None:
        error = future.exception()
        if error is not None:
            report(error)
            if failed is not None:
                failed()
        elif then is not None:
            with reported():
                then(future.result())


class Newest:
    """Does one thing at a time in a thread; after it the newest that was asked for meanwhile."""

    def __init__(self, background: Background) -> None:
        self.busy = False
        self._background = background
        self._next: tuple[Callable[[], Any], Callable[[Any], None]] | None = None

    def ask(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """As `Background.submit`."""
        self._next = work, then
        if not self.busy:
            self._go()

    def _go(self) -> None:
        self.busy = self._next is not None
        if self._next is None:
            return
        (work, then), self._next = self._next, None

        def done(made: Any) -> None:
            try:
                then(made)
            finally:
                self._go()

        self._background.submit(work, done, self._go)


def timer(parent: QObject, ms: int, do: Callable[[], Any]) -> QTimer:
    """A timer that does something once, some time after it was last started."""
    made = QTimer(parent)
    made.setSingleShot(True)
    made.setInterval(ms)
    made.timeout.connect(do)
    return made


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Show what the user can mend, and go on after it."""
    try:
        yield
    except PancreasSegError as error:
        report(error)


def report(error: BaseException) -> None:
    """Show an error in napari: a sentence if the user can mend it, else with its traceback."""
    if isinstance(error, PancreasSegError):
        show_error(error.in_window)
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)
