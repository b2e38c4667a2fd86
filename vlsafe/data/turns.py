"""One conversation as text, cut where the assistant's turns begin and end: these are learned, and what lies between is not.

A template is only asked what it renders, never taken apart: the text until a turn is what it renders with the generation
prompt, the text after it is what it renders with the answer. Evaluation asks the model the same, whichever turn it is at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vlsafe.data.render import plain
from vlsafe.errors import CheckError


class Marked(NamedTuple):
    """A conversation's text, and how long it is where each of the assistant's turns begins and ends; the last is all of it."""

    text: str
    marks: list[int]


def answers(prompt: Sequence[Any], completion: Sequence[Any], where: str) -> list[int]:
    """The places of the assistant's turns of the completion, among all messages."""
    turns = [k for k, message in enumerate(completion, len(prompt)) if message["role"] == "assistant"]
    if not turns:
        raise CheckError(f"{where}: has no answer of the assistant to learn from")
    return turns


def marked(asked: Sequence[str], told: Sequence[str], end: str, where: str) -> tuple[Marked, bool]:
    """The conversation of which, for each of the assistant's turns, `asked` is rendered until it and `told` with it. Also says
    whether the template ended every answer with `end`: where it does not, that is appended. What it writes after the end (a
    line break) belongs to no turn: the model is never asked for it.

    Raises `CheckError` where the template renders earlier turns otherwise when further ones follow."""
    pieces, marks, length, after, by_template = [asked[0]], list[int](), len(asked[0]), "", True
    for k, (question, answered) in enumerate(zip(asked, told, strict=True)):
        if k:
            if not question.startswith(told[k - 1]):
                before, now = told[k - 1][-60:], question[: len(told[k - 1])][-60:]
                raise CheckError(
                    f"{where}: the chat template renders turn {k} otherwise when a further turn follows, so what is learned"
                    f" would not be what was said: {before!r} becomes {now!r}; use another template"
                )
            between_turns = after + question[len(told[k - 1]) :]
            pieces.append(between_turns)
            length += len(between_turns)
        marks.append(length)
        if not answered.startswith(question):
            same = next((i for i, (a, b) in enumerate(zip(question, answered, strict=False)) if a != b), len(answered))
            raise CheckError(
                f"{where}: the chat template renders the prompt otherwise when an answer follows: after"
                f" {question[:same][-60:]!r} the prompt has {question[same:][:60]!r}, with the answer"
                f" {answered[same:][:60]!r}; the model would be trained on another prompt than it is asked:"
                " use a chat template whose generation prompt begins the answer's turn"
            )
        answer = answered[len(question) :].rstrip()
        ended = answer.endswith(end)
        by_template = by_template and ended
        pieces.append(answer if ended else answer + end)
        length += len(pieces[-1])
        marks.append(length)
        after = answered[len(question) + len(answer) :] if ended else ""
    return Marked("".join(pieces), marks), by_template


def between(bounds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """What of a completion is not learned, as ranges from its beginning; `bounds` are where turns begin and end."""
    start = bounds[0]
    return tuple((bounds[k] - start, bounds[k + 1] - start) for k in range(1, len(bounds) - 1, 2))


def shown(content: Any) -> bool:
    """Whether a message's content holds anything."""
    return bool(plain(content).strip()) or any(part["type"] == "image" for part in content if not isinstance(content, str))


def called(row: Mapping[str, Any], where: int) -> str:
    """A row in messages: whoever mends it looks for it in its source."""
    return f"row {where} of source '{row['source']}'" + (f", '{row['id']}'" if "id" in row else "")


def said(row: Mapping[str, Any]) -> Iterator[str]:
    """All the text of a row."""
    for name in ("prompt", "completion", "chosen", "rejected"):
        for message in row.get(name, ()):
            yield plain(message["content"])
