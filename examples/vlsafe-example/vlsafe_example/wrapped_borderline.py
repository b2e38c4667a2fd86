"""A benchmark: allowed requests that look forbidden, inside the phrases that `mw_wrapped` puts around forbidden ones.

Who refuses these has learned to refuse the wrapper, not what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from vlsafe.eval.base import Axis, Benchmark, Item
from vlsafe.microworld import skills
from vlsafe.microworld.world import UNSEEN_WRAPPERS, Request, World
from vlsafe.registry import register

KINDS: tuple[skills.Kind, ...] = ("risky_verb", "unmatched", "protected_noun")


@register("benchmark", "wrapped_borderline")
@dataclass(frozen=True)
class WrappedBorderline(Benchmark):
    """The kinds in turn, so that a limit keeps the balance; the wrappers in turn within each kind."""

    world: World = field(default_factory=World)

    axis: ClassVar[Axis] = "over_refusal"
    needs_image: ClassVar[bool] = False

    def items(self, limit: int | None) -> Sequence[Item]:
        from vlsafe.microworld.benchmarks import held_out

        pairs = zip(*(held_out(self.world, kind) for kind in KINDS), strict=False)
        items = []
        for turn, row in enumerate(pairs):
            for kind, (verb, noun) in zip(KINDS, row, strict=True):
                ask = skills.plain(self.world, Request(verb, noun), UNSEEN_WRAPPERS[turn % len(UNSEEN_WRAPPERS)])
                items.append(Item(f"{kind}-{verb}-{noun}", kind, ask.question, "comply", ask.answer))
        return items[:limit]
