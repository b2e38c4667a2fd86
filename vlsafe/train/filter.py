"""Filtered adaptation: a judge reads every row before training, and what it finds harmful is replaced by further rows.

As many rows are trained on as without a filter. A row that the judge can't tell is not kept as safe: it is removed as well, and
counted apart. A row is known by its data set's own id, or by `purpose/index`: its place in the seeded source, which no filter
moves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from vlsafe import registry
from vlsafe.data.mix import Subset
from vlsafe.data.rows import SupervisedRow, TrainingData
from vlsafe.errors import CheckError, ConfigError
from vlsafe.eval.base import Judge
from vlsafe.settings import spec_of
from vlsafe.stage import StageContext

SupervisedPurpose = Literal["projector", "instruct"]
FIRST_LOOK, GROWTH, SURE = 1_000, 4, 5.0  # rows before the share removed is looked at, how many times as many next, deviations
LISTED_IDS = 10_000  # the most that facts list of the removed rows of one source; the counts are always of all


def filter_judge(asked: Any) -> Judge | None:
    """The judge that `adaptation.filter` names, alone or with settings of its own (`{name: llama_guard, batch_size: 8}`)."""
    if asked is None or isinstance(asked, Judge):
        return asked
    if not isinstance(asked, str | Mapping):
        raise ConfigError(f"adaptation.filter={asked!r}: must be a judge's name, or {{name: NAME, setting: VALUE}}, or null")
    judge: Judge = registry.make("judge", {"name": asked} if isinstance(asked, str) else asked, "adaptation.filter")
    return judge


def check_filter(judge: Judge) -> None:
    """Raises `ConfigError` for a judge that can't read training rows."""
    if not judge.tells_harm():
        able = [n for n in registry.names("judge") if registry.get("judge", n).tells_harm()]  # type: ignore[attr-defined]
        raise ConfigError(
            f"adaptation.filter={judge.component_name}: this judge labels answers to benchmarks and can't tell harm in training"
            f" rows; set one that can ({', '.join(able)}), or null for no filter"
        )


def filter_spec(judge: Judge | None) -> dict[str, Any]:
    """What a filter adds to the key: the judge's settings and the version of what it calls harmful."""
    return {} if judge is None else {"filter": spec_of(judge) | {"version": judge.harm_version}}


def unusual(judge: Judge | None) -> dict[str, Any]:
    """What of its settings is not as by its name alone, to tell cells apart: which files its model is read from, for one."""
    if judge is None:
        return {}
    usual = spec_of(registry.make("judge", {"name": judge.component_name}))
    return {name: value for name, value in spec_of(judge).items() if value != usual.get(name)}


class Kept(Subset):
    """The rows that a filter leaves. `facts` go into the manifest."""

    def __init__(self, rows: Sequence[SupervisedRow], kept: Sequence[int], facts: dict[str, Any]) -> None:
        super().__init__(rows, kept)
        self.facts = {**self.facts, **facts}


class Wanted:
    """The first `n` rows for a purpose; with a filter the first `n` that its judge says are harmless.

    `sift` has them judged, before the model is loaded that is trained: the judge's own may be as large. `read` gives them, when
    their phase starts. `take(source, n)` may draw more than `n` rows of a source, and keep some.
    """

    def __init__(
        self,
        data: TrainingData,
        purpose: SupervisedPurpose,
        n: int,
        seed: int,
        judge: Judge | None,
        most_removed: float,
        take: Callable[[Callable[[int], Sequence[Any]], int], Sequence[Any]] = lambda source, n: source(n),
    ) -> None:
        self.data, self.purpose, self.n, self.seed, self.judge, self.most_removed = data, purpose, n, seed, judge, most_removed
        self.take = take
        self._kept: Sequence[SupervisedRow] | None = None

    def sift(self, ctx: StageContext, tell: Callable[[str], None]) -> None:
        """All ranks call it. Raises as `sifted` does, `StageInterrupted` after a stop signal."""
        if self.judge is not None and self.n:
            judge = self.judge

            def harmless(n: int) -> Kept:
                return sifted(judge, self.data, self.purpose, n, self.seed, self.most_removed, ctx, tell)

            try:
                self._kept = self.take(harmless, self.n)
            finally:
                judge.close()

    def read(self) -> Sequence[SupervisedRow]:
        if self.judge is None or not self.n:
            return self.data.supervised(self.purpose, self.n, self.seed) if self.n else []
        if self._kept is None:
            raise RuntimeError(f"the {self.purpose} rows are read before they were judged")
        return self._kept


def sifted(
    judge: Judge,
    data: TrainingData,
    purpose: SupervisedPurpose,
    n: int,
    seed: int,
    most_removed: float,
    ctx: StageContext,
    tell: Callable[[str], None] = lambda note: None,
) -> Kept:
    """The first `n` rows that the judge says are harmless.

    Raises `CheckError` where more than the share `most_removed` of the rows would be removed, as soon as that is sure, or where
    the source ends.
    """
    filter = judge.component_name
    verdicts: list[bool | None] = []
    drawn = n
    while True:
        rows = data.supervised(purpose, drawn, seed)
        while len(verdicts) < len(rows):
            start, end = len(verdicts), min(len(rows), max(FIRST_LOOK, GROWTH * len(verdicts)))
            told = tell if end - start == len(rows) else prefixed(tell, f"rows {start + 1} to {end} of {len(rows)}: ")
            verdicts += verdicts_on(judge, Subset(rows, range(start, end)), ctx, told)
            check_share(filter, purpose, verdicts, most_removed, whole=len(verdicts) == len(rows))
        harmless = [place for place, harmful in enumerate(verdicts) if harmful is False]
        if len(harmless) >= n:
            break
        if len(rows) < drawn:
            raise CheckError(
                f"adaptation.filter={filter} leaves {len(harmless)} of {len(rows)} {purpose} rows, the source has no more, and"
                f" {n} are needed: lower the steps, or choose other data"
            )
        drawn += n - len(harmless)
    kept = harmless[:n]
    return Kept(rows, kept, {"filter": facts(judge, purpose, rows, verdicts[: kept[-1] + 1])})


def prefixed(tell: Callable[[str], None], where: str) -> Callable[[str], None]:
    return lambda note: tell(where + note)


def check_share(filter: str, purpose: str, verdicts: Sequence[bool | None], most_removed: float, whole: bool) -> None:
    """Before all rows are judged, in their seeded order, only a share that chance does not explain (`SURE` deviations) is too
    much: a guard that answers in no known form is not asked about all of a large data set."""
    count, removed = len(verdicts), sum(harmful is not False for harmful in verdicts)
    deviation = 0.0 if whole else math.sqrt(most_removed * (1.0 - most_removed) / count)
    if removed > (most_removed + SURE * deviation) * count or removed == count:
        raise CheckError(
            f"adaptation.filter={filter} would remove {removed} of {'' if whole else 'the first '}{count} {purpose} rows"
            f" ({verdicts.count(None)} since it can't tell), more than adaptation.most_removed={most_removed:g} allows: choose"
            " other data or another filter"
        )


def verdicts_on(
    judge: Judge, rows: Sequence[SupervisedRow], ctx: StageContext, tell: Callable[[str], None]
) -> list[bool | None]:
    verdicts = list(judge.harmful_within(rows, ctx, tell))
    if len(verdicts) != len(rows) or not all(v is None or isinstance(v, bool) for v in verdicts):
        raise CheckError(
            f"adaptation.filter={judge.component_name} must say true, false or none of each row: {len(rows)} rows,"
            f" {verdicts[:9]}"
        )
    return verdicts


def known_as(row: SupervisedRow, place: str) -> str:
    """`source/id` where the data set has ids of its own, else the place in the seeded source."""
    return f"{row['source']}/{row['id']}" if "id" in row else place


def facts(
    judge: Judge, purpose: str, rows: Sequence[SupervisedRow], verdicts: Sequence[bool | None]
) -> dict[str, dict[str, Any]]:
    """For the manifest, by purpose: what was read up to the last row that was needed, and what of it was removed."""
    removed = [place for place, harmful in enumerate(verdicts) if harmful is not False]

    def by_source(verdict: bool | None) -> dict[str, int]:
        return dict(sorted(Counter(rows[place]["source"] for place in removed if verdicts[place] is verdict).items()))

    return {
        purpose: {
            "judge": f"{judge.component_name} v{judge.harm_version}",
            "rows_read": len(verdicts),
            "rows_removed": len(removed),
            "harmful_by_source": by_source(True),
            "unclear_by_source": by_source(None),
            "removed_ids": [known_as(rows[place], f"{purpose}/{place}") for place in removed[:LISTED_IDS]],
        }
    }
