"""Text from models, data and plug-ins is hostile: what may reach a terminal or a Markdown file is made here."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len


def printable(text: str, limit: int | None = None) -> str:
    """One line without control, formatting, private or unassigned characters: each becomes a visible escape (`\\x1b`).

    That covers terminal escapes (C0 and C1), line ends, and what reorders or hides text (bidirectional overrides, zero-width
    spaces). At most `limit` characters, with an ellipsis where it was longer.
    """
    shown = "".join(_escape(c) if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c for c in text)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def markdown(text: str) -> str:
    """Printable text that Markdown shows as it is: no markup, links, HTML or cell borders of its own."""
    shown = printable(text)
    for character in "\\`*_[]<>|#&":
        shown = shown.replace(character, {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(character, "\\" + character))
    return shown


def fit(text: str, width: int, left: bool = False) -> str:
    """Exactly `width` terminal columns: padded, or cut with an ellipsis."""
    if cell_len(text) > width:
        kept = ""
        for character in text:
            if cell_len(kept + character) > width - 1:
                break
            kept += character
        text = kept + "…"
    space = " " * (width - cell_len(text))
    return text + space if left else space + text
