"""The one error that a user can mend, and what its sentences are made of."""

from collections.abc import Sequence


class PancreasSegError(Exception):
    """Something is wrong that the user can mend; the message says what and how.

    `option` is how the message ends on the command line and in Python, where it names an option;
    in the window it ends by `in_window`.
    Derives from `Exception` alone: napari swallows a `ValueError` raised by a
    writer, and a `RuntimeError` raised in one of its workers vanishes.
    """

    def __init__(self, message: str = "", *, option: str = "", in_window: str = ".") -> None:
        super().__init__(message + option)
        self.in_window = message + in_window if option else message


def few(names: Sequence[str], most: int) -> str:
    """Name a few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(n: int, word: str) -> str:
    """Say how many there are: one slice, or several slices."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def why_failed(name: str, error: Exception) -> str:
    """One sentence that says why one case of many failed, for any error."""
    if isinstance(error, PancreasSegError):
        return str(error)
    if isinstance(error, MemoryError):
        return (
            f"'{name}' needs more memory than there is; close other programs, choose a smaller "
            "--batch-size or crop the CT."
        )
    what = " ".join(str(error).split())[:300]
    return (
        f"'{name}' failed unexpectedly ({type(error).__name__}: {what}); run it again with --debug "
        "and report what it says."
    )
