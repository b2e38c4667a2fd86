"""Real data: `data=mixture`. For each purpose, which data sets its rows come from and in which shares.

    instruct:
      llava_instruct: {dataset: {name: llava_instruct, images: {folder: /data/llava}}, weight: 1.0}
      mine: {dataset: {name: jsonl, source: {folder: /data/mine.jsonl}}, weight: 0.1, rows: 2000}

The names are ours to choose: they stand as `source` in every row and count.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from vlsafe import registry
from vlsafe.data.pictures import Picture
from vlsafe.data.rows import PreferenceRow, Purpose, SupervisedRow, TrainingData
from vlsafe.data.sets.base import Dataset
from vlsafe.errors import CheckError, ConfigError
from vlsafe.registry import Component, register
from vlsafe.settings import Fraction, PositiveFloat, PositiveInt, execution, spec_of
from vlsafe.sources import sources_of

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@dataclass(frozen=True)
class Share:
    """One data set's part of a purpose. Without any `weight` each set counts by its number of rows."""

    dataset: Any  # {name: …, its settings}
    weight: PositiveFloat | None = None
    rows: PositiveInt | None = None  # no more of its rows than these, the first of the seeded order; null: all
    pad_to_square: bool = False  # pictures padded with the processor's mean colour, as LLaVA-1.5's second stage shows them


@register("data", "mixture")
@dataclass(frozen=True)
class Mixture(TrainingData):
    """Each set is shuffled by the seed and the sets are dealt out by weight, so that at any row each has had its share. A set
    that comes to its end is seen again in a new order; the manifest counts the passes."""

    projector: Mapping[str, Share] = field(default_factory=dict)
    instruct: Mapping[str, Share] = field(default_factory=dict)
    safety: Mapping[str, Share] = field(default_factory=dict)
    preference: Mapping[str, Share] = field(default_factory=dict)
    helpful_preference: Mapping[str, Share] = field(default_factory=dict)
    most_broken: Fraction = execution(0.01)  # of the rows, left out for a broken or missing picture; more stop the run

    def __post_init__(self) -> None:
        for purpose in PURPOSES:
            shares: Mapping[str, Share] = getattr(self, purpose)
            made = {name: replace(share, dataset=dataset(share, f"data.{purpose}.{name}")) for name, share in shares.items()}
            object.__setattr__(self, purpose, made)

    def check(self) -> None:
        for purpose in PURPOSES:
            shares: Mapping[str, Share] = getattr(self, purpose)
            for name, share in shares.items():
                if purpose not in share.dataset.serves:
                    raise ConfigError(
                        f"data.{purpose}.{name}: dataset {share.dataset.component_name} has no rows for {purpose}; it has some"
                        f" for: {', '.join(share.dataset.serves)}"
                    )
            without = [name for name, share in shares.items() if share.weight is None]
            if without and len(without) < len(shares):
                raise ConfigError(
                    f"data.{purpose}: {', '.join(without)} has no weight and others have: give all of them one, or none (then"
                    " each counts by its number of rows)"
                )

    def check_purposes(self, purposes: Collection[Purpose]) -> None:
        for purpose in purposes:
            if not getattr(self, purpose):
                sets = {name: cast(type[Dataset], registry.get("dataset", name)) for name in registry.names("dataset")}
                able = [name for name, cls in sets.items() if purpose in cls.serves]
                raise ConfigError(
                    f"data.{purpose}: this cell trains on it and no data set is given; set one that has such rows:"
                    f" {', '.join(able)}"
                )
            for where, source in sources_of(getattr(self, purpose), f"data.{purpose}"):
                if source.folder is not None and not Path(source.folder).exists():
                    raise ConfigError(f"{where}.folder={source.folder}: there is no such file or folder")

    def check_files(self) -> None:
        for purpose in PURPOSES:
            for share in getattr(self, purpose).values():
                share.dataset.check_files()

    def check_model(self, model: Component) -> None:
        if getattr(model, "world", None) is not None:
            raise ConfigError(
                f"data={self.component_name} says nothing to model={model.component_name}, which knows the microworld's words"
                " alone: set data=microworld, or a real model, or a preset with both (+experiment=NAME)"
            )

    def used(self, purposes: Collection[Purpose] | None) -> Mixture:
        unused: dict[str, Any] = {p: {} for p in PURPOSES if purposes is not None and p not in purposes}
        return replace(self, **unused)

    def padded(self, purposes: Collection[Purpose]) -> dict[str, bool]:
        return {
            f"data.{purpose}.{name}.pad_to_square": share.pad_to_square
            for purpose in purposes
            for name, share in getattr(self, purpose).items()
            if share.dataset.pictured
        }

    def spec_for(self, stage: str, joint: bool = False) -> dict[str, Any]:
        return {name: value for name, value in spec_of(self).items() if value != {}}

    def supervised(self, purpose: Literal["projector", "instruct", "safety"], n: int, seed: int) -> Sequence[SupervisedRow]:
        return self._rows(purpose, n, seed)

    def preferences(self, purpose: Literal["preference", "helpful_preference"], n: int, seed: int) -> Sequence[PreferenceRow]:
        return self._rows(purpose, n, seed)

    def _rows(self, purpose: Purpose, n: int, seed: int) -> MixedSets:
        self.check_purposes([purpose])
        return MixedSets(getattr(self, purpose), purpose, n, seed, self.most_broken)


def dataset(share: Share, where: str) -> Dataset:
    """The data set that a share's settings describe."""
    if isinstance(share.dataset, Dataset):
        return share.dataset
    if not isinstance(share.dataset, Mapping):
        raise ConfigError(f"{where}.dataset={share.dataset!r}: must be {{name: NAME, its settings}}")
    made: Dataset = registry.make("dataset", share.dataset, f"{where}.dataset")
    return made


class MixedSets(Sequence[Any]):
    """The first `n` rows of a seeded order over several sets; `facts` say how often each was gone through."""

    def __init__(self, shares: Mapping[str, Share], purpose: Purpose, n: int, seed: int, most_broken: float) -> None:
        self.most_broken = most_broken
        self._shares = [(name, shares[name]) for name in sorted(shares)]
        self._rows = [share.dataset.rows(purpose) for _, share in self._shares]
        sizes = [len(rows) for rows in self._rows]
        for (name, share), size in zip(self._shares, sizes, strict=True):
            if not size:
                raise CheckError(f"data.{purpose}.{name}: {share.dataset.source.where()} has no rows for {purpose}")
        available = [min(size, share.rows or size) for size, (_, share) in zip(sizes, self._shares, strict=True)]
        weights = [share.weight or float(rows) for rows, (_, share) in zip(available, self._shares, strict=True)]
        self._sets = dealt(weights, n)
        given = [self._sets.count(number) for number in range(len(sizes))]
        orders = [
            order(size, most, rows, f"{seed}/{purpose}/{name}")
            for (name, _), size, most, rows in zip(self._shares, sizes, available, given, strict=True)
        ]
        taken = [iter(places) for places in orders]
        self._places = array("I", (next(taken[number]) for number in self._sets))
        passes = {
            name: {"rows": rows, "of": most, "passes": round(rows / most, 3)}
            for (name, _), rows, most in zip(self._shares, given, available, strict=True)
        }
        self.facts = {"data_sets": {purpose: passes}}

    def __len__(self) -> int:
        return len(self._sets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            from vlsafe.data.sets.base import Rows

            return Rows(self.__getitem__, range(len(self))[index])
        number = self._sets[index]
        name, share = self._shares[number]
        row = {**self._rows[number][self._places[index]], "source": name}
        if share.pad_to_square:
            row["images"] = [replace(p, square=True) if isinstance(p, Picture) else p for p in row["images"]]
        return row


def dealt(weights: Sequence[float], n: int) -> array[int]:
    """`n` times the number of a set, such that among the first k each comes k·w/Σw times, give or take one."""
    total = sum(weights)
    shares, given = [weight / total for weight in weights], [0] * len(weights)
    result = array("H")
    for k in range(1, n + 1):
        number = max(range(len(weights)), key=lambda i: (shares[i] * k - given[i], -i))
        given[number] += 1
        result.append(number)
    return result


def order(size: int, most: int, n: int, seed: str) -> array[int]:
    """`n` places of `size` rows: the first `most` of a shuffled order, and from the second pass on these in a new order."""
    places = list(range(size))
    random.Random(f"{seed}/0").shuffle(places)
    places = places[:most]
    result = array("I", places[:n])
    passes = 0
    while len(result) < n:
        passes += 1
        again = list(places)
        random.Random(f"{seed}/{passes}").shuffle(again)
        result.extend(again[: n - len(result)])
    return result
