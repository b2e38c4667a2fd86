"""Mixes rows of several kinds (exact counts, an order fixed by the seed), and takes pairs apart."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from vlsafe.data.encode import MOST_BROKEN
from vlsafe.data.rows import LabelledRow, PreferenceRow


def counts(shares: Mapping[str, float], n: int) -> dict[str, int]:
    """How many of `n` rows each kind gets: `n` in all, by largest remainder; shares are weights and need not sum to 1."""
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError(f"shares must not be negative and not all zero: {dict(shares)}")
    exact = {name: n * share / total for name, share in shares.items()}
    given = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (given[name] - exact[name], name))
    for name in by_remainder[: n - sum(given.values())]:
        given[name] += 1
    return given


class Mixed(Sequence[Any]):
    """The rows of `parts` in one shuffled sequence; a row is fetched when it is asked for."""

    def __init__(self, parts: Sequence[Sequence[Any]], seed: int) -> None:
        self._parts = parts
        self._places = [(p, i) for p, part in enumerate(parts) for i in range(len(part))]
        random.Random(seed).shuffle(self._places)

    @property
    def facts(self) -> dict[str, Any]:
        """What the parts say of how they were made, for the manifest; facts of one name are joined."""
        return joined_facts(self._parts)

    @property
    def most_broken(self) -> float:
        return most_broken(self._parts)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, place = self._places[index]
        return self._parts[part][place]


class Subset(Sequence[Any]):
    """The rows of `rows` at `places`; a row is fetched when it is asked for."""

    def __init__(self, rows: Sequence[Any], places: Sequence[int]) -> None:
        self._rows, self._places = rows, places
        self.facts, self.most_broken = joined_facts([rows]), most_broken([rows])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._rows[place] for place in self._places[index]]
        return self._rows[self._places[index]]


def joined_facts(parts: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in getattr(part, "facts", {}).items():
            found[name] = {**found.get(name, {}), **value}
    return found


def most_broken(parts: Sequence[Any]) -> float:
    """The share of rows that may be left out for their pictures, as the strictest of the parts has it."""
    return min((float(part.most_broken) for part in parts if hasattr(part, "most_broken")), default=MOST_BROKEN)


class Unpaired(Sequence[LabelledRow]):
    """Both sides of each pair as rows of their own: the chosen answer desirable, the rejected one undesirable."""

    def __init__(self, pairs: Sequence[PreferenceRow]) -> None:
        self._pairs = pairs
        self.facts, self.most_broken = joined_facts([pairs]), most_broken([pairs])

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair, label = self._pairs[index // 2], index % 2 == 0
        row = LabelledRow(
            source=pair["source"],
            prompt=pair["prompt"],
            completion=pair["chosen"] if label else pair["rejected"],
            images=pair["images"],
            label=label,
        )
        if "id" in pair:
            row["id"] = pair["id"]
        return row
