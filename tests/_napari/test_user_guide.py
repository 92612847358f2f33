"""The user guide's table of keys is that of the program, and its pictures are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from napari.utils.key_bindings import coerce_keybinding

from napari_pancreas_seg._napari.correct.keys import ANSWERS, GROUPS

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "user-guide.md"
MOST_BYTES, MOST_MOVING_BYTES = 150_000, 500_000

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="needs a checkout with docs/")


def table_of_keys() -> str:
    """Write the table as the guide has it."""
    lines = []
    for name, group in GROUPS.items():
        rows = [(str(coerce_keybinding(action.key)), action.title) for action in group]
        rows += ANSWERS if name == "Correct" else ()
        lines += [f"| **{name}** | |", *(f"| `{key}` | {title} |" for key, title in rows)]
    return "\n".join(["| Key | What it does |", "| --- | --- |", *lines])


def test_the_table_of_keys_is_that_of_the_program():
    text = GUIDE.read_text(encoding="utf-8")
    written = re.search(r"<!-- keys:begin -->\n(.*?)\n<!-- keys:end -->", text, re.DOTALL)
    assert written is not None
    assert written[1] == table_of_keys()


@pytest.mark.parametrize("page", ["docs/user-guide.md", "docs/mending.md", "README.md"])
def test_every_picture_is_there_and_small(page):
    path = DOCS.parent / page
    pictures = re.findall(r"!\[.+?\]\((\S+?\.(?:png|gif))\)", path.read_text(encoding="utf-8"))
    assert pictures
    for picture in pictures:
        most = MOST_MOVING_BYTES if picture.endswith(".gif") else MOST_BYTES
        assert (path.parent / picture).stat().st_size <= most, picture
