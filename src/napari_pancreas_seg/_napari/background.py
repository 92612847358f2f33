"""Short jobs off the GUI thread, such as reading a file, and how an error is shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from napari.utils.notifications import notification_manager, show_error
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["Background", "report"]

logger = logging.getLogger(__name__)


class Background(QObject):
    """Short jobs in threads of their own, whose results come back to the GUI thread.

    Not napari's workers: each of those prompts when the window is closed, and two that
    overlap leave the process with the wrong hook for warnings.

    Parameters
    ----------
    parent : QObject, optional
        Qt's owner.
    at_once : int
        How many jobs are done at the same time.
    """

    _ended = Signal(object, object, object)

    def __init__(self, parent: QObject | None = None, at_once: int = 3) -> None:
        super().__init__(parent)
        self._pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="pancreas")
        # A bound method of an object of this thread: Qt delivers here, whoever emits.
        self._ended.connect(self._deliver)

    def submit(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """Do some work in a thread.

        Parameters
        ----------
        work : callable
            Runs in the thread: no Qt, no layers' setters.
        then : callable, optional
            Gets its result, in the GUI thread.
        failed : callable, optional
            Called in the GUI thread when it raised; the error has been shown by then.
        """

        def end(future: Future[Any]) -> None:
            try:
                self._ended.emit(future, then, failed)
            except RuntimeError:
                logger.debug("The window was gone before a job ended")

        self._pool.submit(work).add_done_callback(end)

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
            then(future.result())


def report(error: BaseException) -> None:
    """Show an error in napari: a sentence if the user can mend it, else with its traceback."""
    if isinstance(error, PancreasSegError):
        show_error(str(error))
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)
