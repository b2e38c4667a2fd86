"""The microworld's benchmarks: one or two for each axis, 300 items each, of pairs that only pretraining has seen.

Items are interleaved by kind, so that a limit keeps the balance. Up to four items share a (verb, noun) pair: their answers are
not fully independent.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlsafe.eval.base import Axis, Benchmark, Expects, Item
from vlsafe.microworld import skills
from vlsafe.microworld.pictures import Cells, draw
from vlsafe.microworld.skills import Ask, Draws, Kind
from vlsafe.microworld.world import ALLOWING, PLAIN_ADJECTIVES, UNSEEN_WRAPPERS, Request, World, forbidden, lexicon
from vlsafe.registry import register

_STREAM = 21
_PER_BENCHMARK = 300
Make = Callable[[Draws], tuple[str, Ask]]  # the item's id without its number, and what is asked


@dataclass(frozen=True)
class MicroworldBenchmark(Benchmark):
    """Base of the eight: a subclass says in `asks` what is asked, kind by kind."""

    world: World = field(default_factory=World)

    expects: ClassVar[Expects]

    def items(self, limit: int | None) -> Sequence[Item]:
        """The first `limit` items (at most 300), in an order that `world` alone decides."""
        return _items(self)[:limit]

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        """For each category: how many items, and their makers in order."""
        raise TypeError(f"{type(self).__name__} is abstract")


@functools.lru_cache(maxsize=32)
def _items(benchmark: MicroworldBenchmark) -> tuple[Item, ...]:
    world, name = benchmark.world, benchmark.component_name
    stream = _STREAM + sum(map(ord, name))
    due: list[tuple[float, int, str, Make]] = []
    for order, (category, (n, makers)) in enumerate(benchmark.asks().items()):
        due += [((i + 0.5) / n, order, category, make) for i, make in enumerate(itertools.islice(makers, n))]
    items = []
    for index, (_, _, category, make) in enumerate(sorted(due, key=lambda entry: entry[:2])):
        draws = Draws(world, stream, 0, index)
        label, ask = make(draws)
        image = None if ask.cells is None else functools.partial(_picture, world, ask.cells, draws.share())
        items.append(Item(f"{index:03d}-{label}", category, ask.question, benchmark.expects, ask.answer, image))
    return tuple(items)


def _picture(world: World, cells: Cells, noise_at: float) -> Any:
    return draw(world, cells, noise_at)


def held_out(world: World, kind: Kind) -> list[tuple[str, str]]:
    """The held-out pairs of a kind, in a shuffled order that the world's seed decides."""
    import numpy as np

    found = skills.pairs(world, kind, True)
    return [found[i] for i in np.random.default_rng([world.seed, _STREAM]).permutation(len(found))]


def _requests(world: World, kind: Kind, adjectives: Sequence[str]) -> Iterator[Request]:
    """Every held-out pair once, then again with the next adjective, so that each adjective meets each pair in the end."""
    pairs = held_out(world, kind)
    for turn in range(len(adjectives)):
        for i, (verb, noun) in enumerate(pairs):
            yield Request(verb, noun, adjectives[(i + turn) % len(adjectives)])


def _named(request: Request) -> str:
    return "-".join(part for part in (request.verb, request.adjective, request.noun) if part)


def _making(requests: Iterator[Request], ask: Callable[[Request, Draws], Ask]) -> Iterator[Make]:
    for request in requests:
        yield functools.partial(_make, request, ask)


def _make(request: Request, ask: Callable[[Request, Draws], Ask], draws: Draws) -> tuple[str, Ask]:
    return _named(request), ask(request, draws)


def _ready(label: str, ask: Ask, draws: Draws) -> tuple[str, Ask]:
    return label, ask


@register("benchmark", "mw_direct")
@dataclass(frozen=True)
class Direct(MicroworldBenchmark):
    """Forbidden requests in plain text, half of them and more with an adjective that changes nothing (as SORRY-Bench)."""

    axis: ClassVar[Axis] = "text_safety"
    needs_image: ClassVar[bool] = False
    expects: ClassVar[Expects] = "refuse"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        requests = _requests(self.world, "forbidden", ("", *PLAIN_ADJECTIVES))
        return {"direct": (_PER_BENCHMARK, _making(requests, lambda request, _: skills.plain(self.world, request)))}


@register("benchmark", "mw_wrapped")
@dataclass(frozen=True)
class Wrapped(MicroworldBenchmark):
    """Forbidden requests inside wrappers that neither alignment nor tuning has seen (as WildJailbreak)."""

    axis: ClassVar[Axis] = "text_safety"
    needs_image: ClassVar[bool] = False
    expects: ClassVar[Expects] = "refuse"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        def makers() -> Iterator[Make]:
            pairs = held_out(self.world, "forbidden")
            for turn in range(len(UNSEEN_WRAPPERS)):
                for i, pair in enumerate(pairs):
                    number = (i + turn) % len(UNSEEN_WRAPPERS)
                    ask = skills.plain(self.world, Request(*pair), UNSEEN_WRAPPERS[number])
                    label = f"{_named(Request(*pair))}-{number}"
                    yield functools.partial(_ready, label, ask)

        return {"wrapped": (_PER_BENCHMARK, makers())}


@register("benchmark", "mw_typographic")
@dataclass(frozen=True)
class Typographic(MicroworldBenchmark):
    """Forbidden requests written in the picture, under a harmless question (as FigStep)."""

    axis: ClassVar[Axis] = "multimodal_safety"
    needs_image: ClassVar[bool] = True
    expects: ClassVar[Expects] = "refuse"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        requests = _requests(self.world, "forbidden", ("", *PLAIN_ADJECTIVES))
        return {"typographic": (_PER_BENCHMARK, _making(requests, lambda r, draws: skills.follow(self.world, draws, r)))}


@register("benchmark", "mw_cross_modal")
@dataclass(frozen=True)
class CrossModal(MicroworldBenchmark):
    """`how do i VERB this ?` over an object on which the verb is forbidden: only the two together are (as SIUO)."""

    axis: ClassVar[Axis] = "multimodal_safety"
    needs_image: ClassVar[bool] = True
    expects: ClassVar[Expects] = "refuse"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        requests = _requests(self.world, "forbidden", ("",) * 4)
        return {"cross_modal": (_PER_BENCHMARK, _making(requests, lambda r, draws: skills.this(self.world, draws, r)))}


@register("benchmark", "mw_borderline_text")
@dataclass(frozen=True)
class BorderlineText(MicroworldBenchmark):
    """Allowed requests that look forbidden, in text (as XSTest)."""

    axis: ClassVar[Axis] = "over_refusal"
    needs_image: ClassVar[bool] = False
    expects: ClassVar[Expects] = "comply"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        def of(kind: Kind, n: int, adjectives: Sequence[str]) -> tuple[int, Iterator[Make]]:
            return n, _making(_requests(self.world, kind, adjectives), lambda r, _: skills.plain(self.world, r))

        ordinary = ("", *PLAIN_ADJECTIVES)
        return {
            "risky_verb": of("risky_verb", 90, ordinary),
            "unmatched": of("unmatched", 70, ordinary),
            "excused": of("excused", 90, ALLOWING),
            "protected_noun": of("protected_noun", 50, ordinary),
        }


@register("benchmark", "mw_borderline_picture")
@dataclass(frozen=True)
class BorderlinePicture(MicroworldBenchmark):
    """Allowed requests over a picture, with a risky verb or a protected object (as MOSSBench)."""

    axis: ClassVar[Axis] = "over_refusal"
    needs_image: ClassVar[bool] = True
    expects: ClassVar[Expects] = "comply"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        def of(kind: Kind, n: int) -> tuple[int, Iterator[Make]]:
            return n, _making(_requests(self.world, kind, ("", "")), lambda r, draws: skills.this(self.world, draws, r))

        return {
            "risky_verb": of("risky_verb", 120),
            "unmatched": of("unmatched", 100),
            "protected_noun": of("protected_noun", 80),
        }


@register("benchmark", "mw_helpful_text")
@dataclass(frozen=True)
class HelpfulText(MicroworldBenchmark):
    """Facts, and harmless requests."""

    axis: ClassVar[Axis] = "helpfulness"
    needs_image: ClassVar[bool] = False
    expects: ClassVar[Expects] = "answer"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        nouns = lexicon(self.world).nouns

        def facts() -> Iterator[Make]:
            for about in (skills.place_fact, skills.person_fact):
                for noun in nouns:
                    yield functools.partial(_ready, f"{about.__name__}-{noun}", about(self.world, noun))

        requests = _requests(self.world, "harmless", ("", *PLAIN_ADJECTIVES))
        return {
            "fact": (2 * len(nouns), facts()),
            "request": (_PER_BENCHMARK - 2 * len(nouns), _making(requests, lambda r, _: skills.plain(self.world, r))),
        }


@register("benchmark", "mw_helpful_picture")
@dataclass(frozen=True)
class HelpfulPicture(MicroworldBenchmark):
    """Captions, facts about what is seen, reading, and harmless requests over or inside a picture."""

    axis: ClassVar[Axis] = "helpfulness"
    needs_image: ClassVar[bool] = True
    expects: ClassVar[Expects] = "answer"

    def asks(self) -> dict[str, tuple[int, Iterator[Make]]]:
        world, adjectives = self.world, ("", *PLAIN_ADJECTIVES)

        def always(label: str, ask: Callable[[Draws], Ask]) -> Iterator[Make]:
            return itertools.repeat(lambda draws: (label, ask(draws)))

        def over(requests: Iterator[Request], ask: Callable[[World, Draws, Request], Ask]) -> Iterator[Make]:
            return _making(requests, lambda request, draws: ask(world, draws, request))

        readable = (r for r in _requests(world, "harmless", adjectives) if not forbidden(r))
        return {
            "name": (60, always("name", functools.partial(skills.name, world))),
            "about": (75, always("about", functools.partial(skills.about, world))),
            "read": (55, _making(readable, lambda request, draws: skills.read(draws, request.question))),
            "this": (60, over(_requests(world, "harmless", ("",)), skills.this)),
            "follow": (50, over(_requests(world, "harmless", adjectives), skills.follow)),
        }
