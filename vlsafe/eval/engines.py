"""Engines: what asks a model and returns its answers. `hf` generates with transformers, greedily, in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlsafe.eval.base import Item
from vlsafe.registry import Component, register
from vlsafe.settings import PositiveInt, added, execution
from vlsafe.stage import Execution

Dtype = Literal["stored", "bfloat16", "float16", "float32"]
TextImage = Literal["no_image", "blank_image"]


class Answer(NamedTuple):
    """What the model said to one item. `image` is the hash of its picture's pixels, or empty; `cut` marks an answer that
    reached the limit of new tokens without an end."""

    text: str
    image: str
    new_tokens: int
    cut: bool


class Engine(Component):
    """Base of the group `engine`. Settings are part of the key of what is generated, those marked `execution` excepted."""

    def without_pictures(self) -> Engine:
        """This engine as it asks a model whose projector is untrained: never with a picture, not a blank one either."""
        return self

    def within(self, tokens: int) -> Engine:
        """This engine as it asks a benchmark whose answers have no more new tokens than these; by default it has no limit."""
        return self

    def batches(self, model: Path, items: Sequence[Item], where: Execution) -> list[list[int]]:
        """The items that `answer` would ask at once, by index: processes that share the work share these. The same on each.

        By default an item is one by itself, and the longest come first.
        """
        return [[i] for i in sorted(range(len(items)), key=lambda i: (items[i].image is None, -len(items[i].prompt), i))]

    def answer(
        self,
        model: Path,
        items: Sequence[Item],
        on_answer: Callable[[int, Answer], None],
        where: Execution,
        should_stop: Callable[[], bool],
    ) -> dict[str, Any]:
        """Ask `items` of the model in folder `model`; `on_answer(index, answer)` is called once for each, in any order.

        Returns facts for the manifest. Raises `CheckError` where an answer would be silently wrong and `StageInterrupted`
        after a stop signal.
        """
        raise TypeError(f"{type(self).__name__} is abstract")


@register("engine", "hf")
@dataclass(frozen=True)
class HfEngine(Engine):
    """Greedy decoding with `transformers`. Nothing of a model's own generation settings is used but its end-of-text tokens.

    `text_image` is what a prompt without a picture gets: nothing, or a blank (white) one, which moves ASR. `system_prompt` null
    adds none, so the chat template's own default holds. `dtype` is what the weights are computed in, by default as they are
    stored. `pad_to_square` puts a picture in the middle of a square before the processor crops it, as LLaVA-1.5 was trained.
    """

    max_new_tokens: PositiveInt
    text_image: TextImage = "no_image"
    system_prompt: str | None = None
    dtype: Dtype = added("stored")
    pad_to_square: bool = added(False)
    batch_size: PositiveInt = execution(128)  # halved where it does not fit in a GPU's memory
    num_processes: PositiveInt = execution(1)  # ranks that share the items; on GPUs, one each

    def without_pictures(self) -> HfEngine:
        return dataclasses.replace(self, text_image="no_image")

    def within(self, tokens: int) -> HfEngine:
        return dataclasses.replace(self, max_new_tokens=min(tokens, self.max_new_tokens))

    def batches(self, model: Path, items: Sequence[Item], where: Execution) -> list[list[int]]:
        from vlsafe.eval.decoding import batched_items

        return batched_items(self, model, items, where)

    def answer(
        self,
        model: Path,
        items: Sequence[Item],
        on_answer: Callable[[int, Answer], None],
        where: Execution,
        should_stop: Callable[[], bool],
    ) -> dict[str, Any]:
        from vlsafe.eval.decoding import answer_items

        return answer_items(self, model, items, on_answer, where, should_stop)
