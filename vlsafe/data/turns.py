"""One conversation as text, cut where the assistant's turns begin and end: these are learned, and what lies between is not.

A template is only asked what it renders, never taken apart: the text until a turn is what it renders with the generation
prompt, the text after it is what it renders with the answer. Evaluation asks the model the same, whichever turn it is at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlsafe.errors import CheckError


def prefixes(prompt: Sequence[Any], completion: Sequence[Any], where: str) -> list[tuple[list[Any], list[Any]]]:
    """For each of the assistant's turns in the completion: the messages until it, and those with it."""
    turns = [k for k, message in enumerate(completion) if message["role"] == "assistant"]
    if not turns:
        raise CheckError(f"{where}: has no answer of the assistant to learn from")
    return [([*prompt, *completion[:k]], [*prompt, *completion[: k + 1]]) for k in turns]


def marks(asked: Sequence[str], told: Sequence[str], end: str, where: str) -> tuple[list[str], bool]:
    """The text until each turn begins and until it ends, in order; the last is the whole of it. `asked` and `told` are the
    rendered `prefixes`. Also says whether the template ended every answer with `end`: where it does not, that is appended. What
    it writes after the end (a line break) belongs to no turn: the model is never asked for it.

    Raises `CheckError` where the template renders earlier turns otherwise when further ones follow."""
    cut, whole, by_template = [], asked[0], True
    for k, (question, answered) in enumerate(zip(asked, told, strict=True)):
        if k:
            if not question.startswith(told[k - 1]):
                before, now = told[k - 1][-60:], question[: len(told[k - 1])][-60:]
                raise CheckError(
                    f"{where}: the chat template renders turn {k} otherwise when a further turn follows, so what is learned"
                    f" would not be what was said: {before!r} becomes {now!r}; use another template"
                )
            whole += question[len(told[k - 1]) :]
        cut.append(whole)
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
        cut.append(whole + answer + ("" if ended else end))
        whole = cut[-1] + (answered[len(question) + len(answer) :] if ended else "")
    return cut, by_template


def between(bounds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """What of a completion is not learned, as ranges from its beginning; `bounds` are where turns begin and end."""
    start = bounds[0]
    return tuple((bounds[k] - start, bounds[k + 1] - start) for k in range(1, len(bounds) - 1, 2))
