"""Filtered adaptation: a judge reads every row before training, and what it finds harmful is replaced by further rows.

As many rows are trained on as without a filter. A row that the judge can't tell is not kept as safe: it is removed as well, and
counted apart. A row is known by its data set's own id, or by `purpose/index`: its place in the seeded source, which no filter
moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from vlsafe import registry
from vlsafe.data.mix import joined_facts, most_broken
from vlsafe.data.rows import SupervisedRow, TrainingData
from vlsafe.errors import CheckError, ConfigError
from vlsafe.eval.base import Judge
from vlsafe.settings import spec_of
from vlsafe.sources import placed

LISTED_IDS = 10_000  # the most that facts list of the removed rows of one source; the counts are always of all


def filter_judge(name: str, local: str | None = None) -> Judge:
    """The judge of that name, its model read from the mirror `local` where that has it; raises `ConfigError` where it can't
    read training rows."""
    judge: Judge = placed(registry.make("judge", {"name": name}, "adaptation.filter"), local)
    if not judge.tells_harm():
        able = [n for n in registry.names("judge") if registry.get("judge", n).tells_harm()]  # type: ignore[attr-defined]
        raise ConfigError(
            f"adaptation.filter={name}: this judge labels answers to benchmarks and can't tell harm in training rows;"
            f" set one that can ({', '.join(able)}), or null for no filter"
        )
    return judge


def filter_spec(name: str | None, local: str | None = None) -> dict[str, Any]:
    """What a filter adds to the key: the judge's settings and the version of what it calls harmful."""
    if name is None:
        return {}
    judge = filter_judge(name, local)
    return {"filter": spec_of(judge) | {"version": judge.harm_version}}


class Kept(Sequence[SupervisedRow]):
    """The rows of `rows` at the places `kept`; a row is fetched when it is asked for. `facts` go into the manifest."""

    def __init__(self, rows: Sequence[SupervisedRow], kept: Sequence[int], facts: dict[str, Any]) -> None:
        self._rows, self._kept = rows, kept
        self.facts, self.most_broken = {**joined_facts([rows]), **facts}, most_broken([rows])

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._rows[place] for place in self._kept[index]]
        return self._rows[self._kept[index]]


def read_rows(
    data: TrainingData,
    purpose: Literal["projector", "instruct"],
    n: int,
    seed: int,
    filter: str | None,
    most_removed: float,
    local: str | None = None,
) -> Sequence[SupervisedRow]:
    """The first `n` rows for `purpose`; with a filter the first `n` that its judge says are harmless.

    A judge that runs a model lets go of it afterwards: training needs its memory. Each rank asks it the same.

    Raises `CheckError` where more than the share `most_removed` of the rows would be removed, or where the source ends.
    """
    if n == 0:
        return []
    if filter is None:
        return data.supervised(purpose, n, seed)
    judge = filter_judge(filter, local)
    try:
        return _filtered(judge, data, purpose, n, seed, filter, most_removed)
    finally:
        judge.close()


def _filtered(
    judge: Judge,
    data: TrainingData,
    purpose: Literal["projector", "instruct"],
    n: int,
    seed: int,
    filter: str,
    most_removed: float,
) -> Sequence[SupervisedRow]:
    verdicts: list[bool | None] = []
    drawn = n
    while True:
        rows = data.supervised(purpose, drawn, seed)
        verdicts += read(judge, rows[len(verdicts) :], filter)
        harmless = [place for place, harmful in enumerate(verdicts) if harmful is False]
        removed = len(verdicts) - len(harmless)
        if removed > most_removed * len(verdicts) or not harmless:
            unclear = verdicts.count(None)
            raise CheckError(
                f"adaptation.filter={filter} would remove {removed} of {len(verdicts)} {purpose} rows ({unclear} since it can't"
                f" tell), more than adaptation.most_removed={most_removed:g} allows: choose other data or another filter"
            )
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


def read(judge: Judge, rows: Sequence[SupervisedRow], name: str) -> list[bool | None]:
    verdicts = list(judge.harmful(rows))
    if len(verdicts) != len(rows) or not all(v is None or isinstance(v, bool) for v in verdicts):
        raise CheckError(f"adaptation.filter={name} must say true, false or none of each row: {len(rows)} rows, {verdicts[:9]}")
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
