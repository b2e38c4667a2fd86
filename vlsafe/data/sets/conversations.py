"""LLaVA's form of a conversation: `{"id", "image", "conversations": [{"from": "human" or "gpt", "value": text}, ...]}`.

As its own reader does (haotian-liu/LLaVA, llava/train/train.py): what comes before the first human turn is skipped,
`<image>` may stand anywhere in a turn and is shown before the turn's text, and a row without `image` is text. Turns after
the last answer have nothing to learn from and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlsafe.data.pictures import Album
from vlsafe.data.rows import Message, SupervisedRow
from vlsafe.data.sets.base import assistant, user, without_placeholder
from vlsafe.data.tables import Table, column
from vlsafe.errors import CheckError


def conversation(table: Table, index: int, row: Mapping[str, Any], album: Album, source: str) -> SupervisedRow:
    """The row with all of its turns: the first question is the prompt, what follows is the completion."""
    turns = column(table, index, row, "conversations", list)
    messages: list[Message] = []
    pictured = row.get("image") is not None
    for turn in turns:
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (None, None)
        if role not in ("human", "gpt") or not isinstance(text, str):
            raise CheckError(f"{table.where(index)}: column 'conversations' must hold turns of 'human' or 'gpt' with a 'value'")
        if role == "gpt" and not messages:
            continue
        first = not messages
        text = without_placeholder(text) if pictured else text
        messages.append(assistant(text) if role == "gpt" else user(text, pictures=int(first and pictured)))
    while messages and messages[-1]["role"] == "user":
        messages.pop()
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise CheckError(
            f"{table.where(index)}: column 'conversations' must go from question to answer in turn; it goes"
            f" {', '.join(roles) or 'nowhere'}"
        )
    images = [album.find(row["image"], f"{table.where(index)}: column 'image'")] if pictured else []
    return {
        "id": str(row.get("id", index)),
        "source": source,
        "prompt": messages[:1],
        "completion": messages[1:],
        "images": images,
    }
