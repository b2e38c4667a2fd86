"""Text from models, data and plug-ins is hostile: what may reach a terminal or a Markdown file is made here."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console


def printable(text: str, limit: int | None = None) -> str:
    """One line without control, formatting, private or unassigned characters: each becomes a visible escape (`\\x1b`).

    That covers terminal escapes (C0 and C1), line ends, and what reorders or hides text (bidirectional overrides, zero-width
    spaces). At most `limit` characters, with an ellipsis where it was longer.
    """
    shown = "".join(_escape(c) if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c for c in text)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def visible(text: str) -> str:
    """Like `printable`, but lines stay lines: for texts of any length that are shown whole."""
    if text.isprintable():
        return text
    return "\n".join(line if line.isprintable() else printable(line) for line in text.split("\n"))


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


def widen(console: Console, needed: int, whole: int) -> None:
    """Lines of `needed` columns fit from here on in a pipe, which has no width; a terminal is taken for at least `whole`."""
    wanted = whole if console.is_terminal else needed
    if console.width < wanted:
        console.width = wanted


def shorten(texts: Sequence[str], width: int) -> list[str]:
    """Texts of at most `width` terminal columns: shortened from the left, and those that would be alike then in the middle,
    since what tells stages apart stands mostly at their ends."""
    shown = {text: keep_end(text, width) for text in texts}
    alike = Counter(shown.values())
    return [keep_ends(text, width) if alike[shown[text]] > 1 else shown[text] for text in texts]


def keep_end(text: str, width: int) -> str:
    """`… › sft › ties`: without its first parts, and where one part is too long, without the beginning of that."""
    if cell_len(text) <= width:
        return text
    parts = text.split(" › ")
    for i in range(1, len(parts)):
        kept = " › ".join(["…", *parts[i:]])
        if cell_len(kept) <= width:
            return kept
    return "…" + _end(text, width - 1)


def keep_ends(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    room = max(width - 1, 0)
    return _end(text[::-1], room // 2)[::-1] + "…" + _end(text, room - room // 2)


def _end(text: str, width: int) -> str:
    start = len(text)
    while start and cell_len(text[start - 1 :]) <= width:
        start -= 1
    return text[start:]
