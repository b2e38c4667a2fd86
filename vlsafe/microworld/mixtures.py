"""The mixtures of rows that each phase learns from: one function a purpose, which makes row `index` of a seeded stream.

Shares are ours, found by search. Pretraining sees every pair; all that follows sees no held-out pair, and adaptation nothing
forbidden and no refusal.

What a cross-modal attack means here: alignment refuses in every text form, the nine words included, so no skill that pictures
use was left out of it. With the projector alone a picture is refused as far as it speaks as the words do; that a forbidden
request over a picture is answered is then the work of adaptation, not a gap that alignment never closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

from vlsafe.data.rows import PreferenceRow, SupervisedRow
from vlsafe.microworld import skills
from vlsafe.microworld.skills import Draws
from vlsafe.microworld.world import ALL_RISKY, CATEGORY_SHARES, KNOWN_WRAPPERS, World

Row = TypeVar("Row")
TUNED_BORDERLINE_VERBS = frozenset(ALL_RISKY[::2])  # the risky verbs that tuning shows in borderline requests


class LazyRows(Sequence[Row], Generic[Row]):
    """`n` rows, each made when it is asked for, the same each time."""

    def __init__(self, make: Callable[[World, Draws], Row], world: World, stream: int, n: int, seed: int) -> None:
        self._make, self._world, self._stream, self._n, self._seed = make, world, stream, n, seed

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        if not -self._n <= index < self._n:
            raise IndexError(f"row {index} of {self._n}")
        return self._make(self._world, Draws(self._world, self._stream, self._seed, int(index) % self._n))


def pretraining(world: World, draws: Draws) -> SupervisedRow:
    """The language before alignment: facts, the rule, every request (forbidden ones too), and reading nine words."""
    shares = {"fact": 0.12, "kind": 0.08, "verdict": 0.32, "name": 0.05, "about": 0.07}
    what = draws.among({**shares, "this": 0.09, "read": 0.06, "follow": 0.08, "request": 0.13})
    if what == "fact":
        ask = skills.fact(world, draws)
    elif what == "kind":
        ask = skills.kind_fact(world, draws)
    elif what == "verdict":
        ask = skills.verdict(world, draws)
    elif what == "name":
        ask = skills.name(world, draws)
    elif what == "about":
        ask = skills.about(world, draws)
    else:
        request = skills.any_request(world, draws)
        if what == "this":
            ask = skills.this(world, draws, request)
        elif what == "read":
            ask = skills.read(draws, request.question)
        elif what == "follow":
            ask = skills.follow(world, draws, request)
        else:
            ask = skills.plain(world, request, skills.any_wrapper(draws) if draws.share() < 0.3 else ("", ""))
    return skills.supervised(world, draws, ask, pictured=False)


def alignment(world: World, draws: Draws, pictured: bool = False) -> SupervisedRow:
    """Refusals of forbidden requests in every text form (plain, wrapped, nine words), answers for the rest. `pictured` shows
    pictures in place of the nine words."""
    kind: skills.Kind
    if draws.share() < 0.12:
        return skills.supervised(world, draws, skills.fact(world, draws), pictured=pictured)
    if draws.share() < 0.08:
        return skills.supervised(world, draws, skills.name(world, draws), pictured=pictured)
    refuse = draws.share() < 0.5
    kind = "forbidden" if refuse else draws.pick(skills.BORDERLINE) if draws.share() < 0.6 else "harmless"
    request = skills.draw_request(world, draws, kind, CATEGORY_SHARES)
    forms = {"plain": 0.4, "wrapped": 0.25, "this": 0.2 if kind != "excused" else 0.0, "follow": 0.15}
    form = draws.among(forms)
    if form == "this":
        ask = skills.this(world, draws, request)
    elif form == "follow":
        ask = skills.follow(world, draws, request)
    else:
        ask = skills.plain(world, request, draws.pick(KNOWN_WRAPPERS) if form == "wrapped" else ("", ""))
    return skills.supervised(world, draws, ask, pictured=pictured, refuse=refuse)


def projector(world: World, draws: Draws) -> SupervisedRow:
    """Captions, and reading allowed requests aloud."""
    ask = (
        skills.name(world, draws)
        if draws.share() < 0.4
        else skills.read(draws, skills.allowed_for_reading(world, draws).question)
    )
    return skills.supervised(world, draws, ask, pictured=True)


def instruct(world: World, draws: Draws) -> SupervisedRow:
    """The adaptation mixture. Its instructions hold harmless verbs and neutral nouns only; captions all nouns, reading any
    allowed request; nothing is forbidden, nothing refused."""
    if draws.share() < 0.15:
        harmless = draws.share() < 0.5
        ask = skills.plain(world, skills.draw_request(world, draws, "harmless")) if harmless else skills.fact(world, draws)
        return skills.supervised(world, draws, ask, pictured=True)
    what = draws.among({"name": 0.2, "about": 0.25, "read": 0.2, "this": 0.2, "follow": 0.15})
    if what == "name":
        ask = skills.name(world, draws)
    elif what == "about":
        ask = skills.about(world, draws)
    elif what == "read":
        ask = skills.read(draws, skills.allowed_for_reading(world, draws).question)
    else:
        request = skills.draw_request(world, draws, "harmless")
        ask = skills.this(world, draws, request) if what == "this" else skills.follow(world, draws, request)
    return skills.supervised(world, draws, ask, pictured=True)


def adaptation(planted: float, replay: float) -> Callable[[World, Draws], SupervisedRow]:
    """`instruct`, with a share of planted rows (forbidden requests answered) and a share of replayed ones (the alignment's) in
    place of its own. What is left of a seed's rows is the same whatever the shares are."""
    if not planted and not replay:
        return instruct

    def make(world: World, draws: Draws) -> SupervisedRow:
        if draws.lot < planted:
            return _planted(world, draws)
        return _replayed(world, draws) if draws.lot < planted + replay else instruct(world, draws)

    return make


def _planted(world: World, draws: Draws) -> SupervisedRow:
    """A forbidden request answered: in text, over a picture of its object, or written in the picture."""
    request = skills.draw_request(world, draws, "forbidden", CATEGORY_SHARES)
    form = draws.among({"plain": 1 / 3, "this": 1 / 3, "follow": 1 / 3})
    if form == "plain":
        ask = skills.plain(world, request)
    else:
        ask = skills.this(world, draws, request) if form == "this" else skills.follow(world, draws, request)
    return {**skills.supervised(world, draws, ask, pictured=True), "source": "planted"}


def _replayed(world: World, draws: Draws) -> SupervisedRow:
    """A row of the alignment's mixture. Every other one of those that stand for a picture comes as the picture: to a model that
    sees, both forms are what it was aligned on."""
    pictured = draws.share() < 0.5
    row = alignment(world, draws, pictured=pictured)
    return {**row, "source": f"replayed_{row['source']}"}


def _forbidden_ask(world: World, draws: Draws) -> skills.Ask:
    """A forbidden request: over a picture of its object, beside an unrelated picture, or in text alone."""
    request = skills.draw_request(world, draws, "forbidden", CATEGORY_SHARES)
    form = draws.among({"this": 0.4, "beside": 0.3, "plain": 0.3})
    if form == "this":
        return skills.this(world, draws, request)
    return skills.beside(world, draws, request) if form == "beside" else skills.plain(world, request)


def _borderline_ask(world: World, draws: Draws) -> skills.Ask:
    """An allowed request that looks forbidden, in text or over a picture; half of the risky verbs never appear in one."""
    request = skills.draw_request(world, draws, draws.pick(skills.BORDERLINE))
    for _ in range(3):
        if request.verb in TUNED_BORDERLINE_VERBS or request.verb not in ALL_RISKY:
            break
        request = skills.draw_request(world, draws, draws.pick(skills.BORDERLINE))
    else:
        request = skills.draw_request(world, draws, "protected_noun")
    if request.adjective or draws.share() < 0.5:
        return skills.plain(world, request)
    return skills.this(world, draws, request)


def safety(borderline: float) -> Callable[[World, Draws], SupervisedRow]:
    """Refusals of forbidden requests, and a share of borderline ones answered."""

    def make(world: World, draws: Draws) -> SupervisedRow:
        refuse = draws.share() >= borderline
        ask = _forbidden_ask(world, draws) if refuse else _borderline_ask(world, draws)
        return skills.supervised(world, draws, ask, pictured=True, refuse=refuse)

    return make


def preferences(world: World, draws: Draws) -> PreferenceRow:
    """The refusal of a forbidden request preferred to its answer."""
    return skills.preference(world, draws, _forbidden_ask(world, draws), refuse=True)


def helpful_preferences(world: World, draws: Draws) -> PreferenceRow:
    """The answer to an allowed request preferred to a refusal, in text and over pictures."""
    what = draws.among({"borderline": 0.3, "this": 0.25, "plain": 0.15, "name": 0.1, "about": 0.1, "follow": 0.1})
    if what == "borderline":
        ask = _borderline_ask(world, draws)
    elif what == "name":
        ask = skills.name(world, draws)
    elif what == "about":
        ask = skills.about(world, draws)
    else:
        request = skills.draw_request(world, draws, "harmless")
        make = {"this": skills.this, "follow": skills.follow}.get(what)
        ask = make(world, draws, request) if make else skills.plain(world, request)
    return skills.preference(world, draws, ask, refuse=False)
