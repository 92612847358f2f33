"""Trainings of a few steps."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _uncompiled(uncompiled):
    """See `uncompiled`."""
