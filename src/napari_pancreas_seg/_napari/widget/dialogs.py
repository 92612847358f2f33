"""Windows of their own: a model's card, and the keys."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QTextBrowser, QVBoxLayout, QWidget

from napari_pancreas_seg._napari.correct.keys import keys_table

NOT_CLINICAL = "For research only. Not for clinical use."


class TextDialog(QDialog):
    """Shows a page of HTML; other windows stay usable meanwhile."""

    def __init__(self, title: str, page: str, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.text = QTextBrowser()
        self.text.setOpenExternalLinks(True)
        self.text.setHtml(page)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.addWidget(self.text)
        column.addWidget(buttons)
        self.resize(520, 640)


def show_keys(parent: QWidget) -> None:
    TextDialog("Keys", keys_html(), parent).show()


def keys_html() -> str:
    """Every key and what it does, in groups; a key that the user has changed as it is now."""
    rows = []
    for group, keys in keys_table().items():
        rows.append(f"<tr><td colspan=2><b>{group}</b></td></tr>")
        rows += [
            f"<tr><td>{html.escape(key)}&nbsp;&nbsp;</td><td>{html.escape(text)}</td></tr>"
            for key, text in keys
        ]
    note = "After a click in the picture. Preferences › Shortcuts changes them."
    return f"<p>{note}</p><table>{''.join(rows)}</table>"


def card_html(card: Mapping[str, Any]) -> str:
    """What a card says; some of it is as a stranger has written it."""
    sections = (
        ("What it is", _text(card.get("description"))),
        ("How good it is", _quality(card)),
        ("Training data", _training(card)),
        ("Limits", _text(card.get("limits"))),
        ("Licence", _text(card["licence"])),
        ("Citation", _text(card.get("citation"))),
        ("How it looks at a CT", _frame(card)),
        ("Weights", f"SHA-256 {_text(card['weights_sha256'])}"),
    )
    parts = "".join(f"<h3>{head}</h3><p>{text}</p>" for head, text in sections if text)
    title = html.escape(f"{card['name']} {card['version']}")
    return f"<h2>{title}</h2><p><b>{NOT_CLINICAL}</b></p>{parts}"


def _text(value: Any) -> str:
    text = html.escape(str(value)) if value else ""
    text = re.sub(r"doi:(10\.\S+?)(?=[.,;)]?(?:\s|$))", _link("https://doi.org/"), text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", _link("https://arxiv.org/abs/"), text)


def _link(base: str) -> Any:
    return lambda match: f'<a href="{base}{match[1]}">{match[0]}</a>'


def _quality(card: Mapping[str, Any]) -> str:
    told = card.get("validation") or {}
    found = {key: each for key, each in told.items() if isinstance(each, int | float)}
    if "mean" not in found:
        return "The card holds no measurement."
    n = f"n = {found['n']}" if "n" in found else "n not given"
    words = {"median": "median", "worst": "worst", "sd": "SD"}
    spread = ", ".join(f"{word} {found[key]:.2f}" for key, word in words.items() if key in found)
    text = f"Dice {found['mean']:.2f} ({n}{'; ' if spread else ''}{spread})."
    return f"{text} {_text(told.get('what'))}".strip()


def _training(card: Mapping[str, Any]) -> str:
    training = card.get("training", {})
    numbers = [f"{len(training['patients'])} patients"] if "patients" in training else []
    numbers += [f"{training['slices']} slices"] if training.get("slices") else []
    text = _text(card.get("data"))
    return f"{text} In all: {', '.join(numbers)}." if numbers else text


def _frame(card: Mapping[str, Any]) -> str:
    frame = card["frame"]
    size = f"{frame['height']} × {frame['width']} pixels of {frame['mm_per_pixel']} mm"
    hu = ", ".join(f"{low} to {high}" for low, high in card["windows"])
    return f"{size}; HU windows {hu}; threshold {card['threshold']} on the probability."
