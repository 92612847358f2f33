"""Keeping the libraries' remarks on header values, names among them, out of logs."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

_LOGGERS = [logging.getLogger(name) for name in ("nibabel.global", "highdicom", "pydicom")]
_lock = threading.Lock()
_open: list[contextlib.ExitStack] = []


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Mute nibabel, pydicom, highdicom and warnings; several threads may do so at once."""
    with _lock:
        _open.append(contextlib.ExitStack() if _open else _muted())
    try:
        yield
    finally:
        with _lock:
            # The first one holds what is to be brought back; the others are all alike.
            _open.pop().close()


def _muted() -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for logger in _LOGGERS:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    return stack
