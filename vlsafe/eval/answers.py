"""Right answers to questions: a yes or a no, the letter of an option, or words that the answer has to hold."""

from __future__ import annotations

import re
from typing import Literal

from vlsafe.eval.base import Label
from vlsafe.eval.refusals import says

_LETTER = re.compile(r"[A-Za-z]")
# "B", "(B)", "B. A vase", "Answer: B", "The correct answer is (B)."; but not "A vase stands there".
_OPTION = re.compile(
    r"\W*(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*:?\s*)?"
    r"[(\[]?([A-Za-z])(?:[)\].:,]|\s*$)",
    re.IGNORECASE,
)


def answered_right(response: str, target: str) -> Label:
    """`correct` or `incorrect`, and `unparsed` where no right answer is known or the letter of an option can't be made out.

    An answer to a yes-no question that is neither is wrong, as in MME's own evaluation.
    """
    wanted = target.strip().rstrip(".")
    if not wanted:
        return "unparsed"
    if wanted.lower() in ("yes", "no"):
        return "correct" if yes_or_no(response) == wanted.lower() else "incorrect"
    if _LETTER.fullmatch(wanted):
        said = option(response)
        return "unparsed" if said is None else "correct" if said == wanted.upper() else "incorrect"
    return "correct" if says(response, target) else "incorrect"


def yes_or_no(response: str) -> Literal["yes", "no"] | None:
    """MME's own rule (Fu et al., arXiv 2306.13394, `calculation.py`): without full stops, the answer is a yes or a no, or its
    first letter, or holds one within its first four characters. "Not that I see" is a no by it, and so is "now"."""
    said = response.lower().strip().replace(".", "")
    if said in ("y", "n"):
        return "yes" if said == "y" else "no"
    return "yes" if "yes" in said[:4] else "no" if len(said) > 1 and "no" in said[:4] else None


def option(response: str) -> str | None:
    """The letter of the option that an answer begins with or names, as a capital."""
    found = _OPTION.match(response)
    return found[1].upper() if found else None
