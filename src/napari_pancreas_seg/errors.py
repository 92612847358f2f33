"""The one error that a user can mend."""

__all__ = ["PancreasSegError"]


class PancreasSegError(Exception):
    """Something is wrong that the user can mend; the message says what and how.

    Derives from `Exception` alone: napari swallows a `ValueError` raised by a
    writer, and a `RuntimeError` raised in one of its workers vanishes.
    """
