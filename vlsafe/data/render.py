"""What a chat template makes of messages, as `apply_chat_template` does, for asking it of every turn of every row.

`apply_chat_template` copies and looks over all messages at every call, which takes several times as long as rendering them.
Plain messages (a role, and text or parts of text and pictures) are the same after that: they go straight to the compiled
template. What our own templates do with parts before that is done without Jinja.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlsafe.model.templates import of_text, parts_to_text

Render = Callable[[int, bool], str]
Prepare = Callable[[Sequence[Any]], list[Any]]
PART: Mapping[Any, set[str]] = {"text": {"type", "text"}, "image": {"type"}}


def renderer(processor: Any) -> Callable[[Sequence[Any]], Render]:
    """A function that takes a conversation and gives what renders its first `n` messages: `(n, asking)`, where asking puts the
    generation prompt behind them. `processor` may be a tokenizer: its template is given a message's parts as one string."""
    in_parts = getattr(processor, "image_processor", None) is not None
    quick = compiled(processor)

    def conversation(messages: Sequence[Any]) -> Render:
        said = list(messages) if in_parts else [{**m, "content": plain(m["content"])} for m in messages]
        if quick is None or not all(map(is_plain, said)):
            return lambda n, asking: str(processor.apply_chat_template(said[:n], tokenize=False, add_generation_prompt=asking))
        prepare, render = quick
        ready = prepare(said)
        return lambda n, asking: render(ready[:n], asking)

    return conversation


def compiled(processor: Any) -> tuple[Prepare, Callable[[list[Any], bool], str]] | None:
    """The template as `apply_chat_template` compiles it, for messages and whether they ask, and what these have to go through
    first; None where that has a way of its own."""
    from transformers import PreTrainedTokenizerBase, ProcessorMixin
    from transformers.utils import chat_template_utils

    own = getattr(type(processor), "apply_chat_template", None)
    compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
    words = getattr(processor, "tokenizer", processor).special_tokens_map
    usual = own in (ProcessorMixin.apply_chat_template, PreTrainedTokenizerBase.apply_chat_template)
    if not (
        usual and compile_template and type(processor.chat_template) is str and all(type(w) is str for w in words.values())
    ):
        return None
    alone = of_text(processor.chat_template)
    template = compile_template(processor.chat_template if alone is None else alone)

    def render(messages: list[Any], asking: bool) -> str:
        text: str = template.render(messages=messages, tools=None, documents=None, add_generation_prompt=asking, **words)
        return text

    return list if alone is None else parts_to_text, render


def is_plain(message: Any) -> bool:
    """Whether `apply_chat_template` gives this message to its template as it is."""
    if type(message) is not dict or message.keys() != {"role", "content"} or type(message["role"]) is not str:
        return False
    content = message["content"]
    return type(content) is str or (
        type(content) is list
        and all(type(part) is dict and part.keys() == PART.get(part.get("type")) for part in content)
        and all(type(part.get("text", "")) is str for part in content)
    )


def plain(content: Any) -> str:
    """A message's parts as text, for the templates of plain language models."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
