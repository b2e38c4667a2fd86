"""A user's own rows: JSON lines, a JSON list or Parquet, in TRL's columns.

Source, licence and gate are the user's. Columns, by what the rows are for:

    prompt, completion            projector, instruct, safety
    messages                      the same: from the first answer on, every answer is learned
    prompt, chosen, rejected      preference, helpful_preference; without `prompt`, what chosen and rejected begin with alike

Each is text, or a list of messages `{"role", "content"}` whose content is text or a list of parts (`{"type": "image"}`,
`{"type": "text", "text"}`). `image` or `images` holds a path relative to the file, bytes, or `{"bytes", "path"}`, or a list
of these; they are shown at the image parts, else at `<image>` in the text, else before the first question. `id` is
optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.own import check_columns, check_file, check_files, fetched
from vlsafe.data.rows import Message, Purpose
from vlsafe.data.sets.base import PLACEHOLDER, Dataset, Rows, picture_of
from vlsafe.data.tables import Table, open_table
from vlsafe.errors import CheckError
from vlsafe.registry import register
from vlsafe.sources import DataSource

COLUMNS = ("id", "prompt", "completion", "chosen", "rejected", "messages", "image", "images")
ROLES = ("system", "user", "assistant")


@register("dataset", "jsonl")
@dataclass(frozen=True)
class Jsonl(Dataset):
    serves: ClassVar[tuple[str, ...]] = ("projector", "instruct", "safety", "preference", "helpful_preference")
    licence: ClassVar[str] = "yours"

    source: DataSource
    file: str | None = (
        None  # of a folder, its file, or a pattern: "train-*.parquet"; null: its only one, or all parts of one set
    )

    def __post_init__(self) -> None:
        check_file(self.file)

    def check_files(self) -> None:
        check_files(self.source, self.file)

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        table = open_table(fetched(self.source, self.file))
        pairs = purpose in ("preference", "helpful_preference")
        made = Rows(lambda i: row(table, i, pairs), range(len(table)))
        if len(made):
            made[0]
        return made


def row(table: Table, index: int, pairs: bool) -> dict[str, Any]:
    said = {name: value for name, value in table.row(index).items() if value is not None}
    where = table.where(index)
    check_columns(said, COLUMNS, where)
    if pairs:
        chosen, rejected = (messages(said, name, "assistant", where) for name in ("chosen", "rejected"))
        shared = next(
            (k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
        )
        prompt = messages(said, "prompt", "user", where) if "prompt" in said else chosen[:shared]
        skip = (
            shared if "prompt" not in said else len(prompt) if chosen[: len(prompt)] == prompt == rejected[: len(prompt)] else 0
        )
        sides = {"chosen": chosen[skip:], "rejected": rejected[skip:]}
    elif "messages" in said:
        whole = messages(said, "messages", "user", where)
        first = next((k for k, message in enumerate(whole) if message["role"] == "assistant"), len(whole))
        prompt, sides = whole[:first], {"completion": whole[first:]}
    else:
        prompt, sides = (
            messages(said, "prompt", "user", where),
            {"completion": messages(said, "completion", "assistant", where)},
        )
    for name, side in sides.items():
        while side and side[-1]["role"] != "assistant":
            side.pop()
        if not side or side[0]["role"] != "assistant":
            raise CheckError(f"{where}: column '{'messages' if 'messages' in said else name}' has no answer to learn from")
    if not prompt or prompt[-1]["role"] != "user":
        raise CheckError(f"{where}: there is no question before the answer")
    images = pictures(said, table, index)
    show([*prompt, *(m for side in sides.values() for m in side)], len(images), where)
    return {"id": str(said.get("id", index)), "source": "jsonl", "prompt": prompt, **sides, "images": images}


def messages(said: Mapping[str, Any], name: str, role: str, where: str) -> list[Message]:
    """A column as messages; text becomes one of `role`. Each is a new object."""
    if name not in said:
        raise CheckError(f"{where}: has no column '{name}'; it has: {', '.join(said) or 'none'}")
    value = said[name]
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise CheckError(f"{where}: column '{name}' must be text or a list of messages, not {type(value).__name__}")
    made: list[Message] = []
    for message in value:
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise CheckError(f"{where}: column '{name}': each message needs a role ({', '.join(ROLES)}) and a content")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(is_part(part) for part in parts):
            raise CheckError(f"{where}: column '{name}': a content must be text, or parts of type text or image")
        clean = [{"type": "image"} if p["type"] == "image" else {"type": "text", "text": p["text"]} for p in parts]
        made.append({"role": message["role"], "content": clean})  # type: ignore[typeddict-item]
    return made


def is_part(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind == "image" or (kind == "text" and isinstance(part.get("text"), str))


def pictures(said: Mapping[str, Any], table: Table, index: int) -> list[Any]:
    name = "images" if "images" in said else "image"
    value = said.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [picture_of(one, table, index, name, f"row {index}") for one in values]


def show(conversation: Sequence[Message], count: int, where: str) -> None:
    """Gives `count` pictures their places, where no part shows one yet."""
    shown = sum(part["type"] == "image" for message in conversation for part in message["content"])
    if count and not shown:
        asked = [message for message in conversation if message["role"] != "assistant"]
        shown = sum(part["text"].count(PLACEHOLDER) for message in asked for part in message["content"])
        for message in asked if shown else ():
            message["content"] = [new for part in message["content"] for new in at_placeholders(part["text"])]
        if not shown:
            first = next(message for message in asked if message["role"] == "user")
            first["content"] = [*({"type": "image"} for _ in range(count)), *first["content"]]  # type: ignore[list-item]
            shown = count
    if shown != count:
        raise CheckError(f"{where}: shows {shown} pictures and brings {count}: one image part, or one {PLACEHOLDER}, for each")


def at_placeholders(text: str) -> list[Any]:
    pieces = text.split(PLACEHOLDER)
    made: list[Any] = []
    for k, piece in enumerate(pieces):
        made += [{"type": "image"}] * (k > 0)
        made += [{"type": "text", "text": piece.strip()}] * bool(piece.strip())
    return made
