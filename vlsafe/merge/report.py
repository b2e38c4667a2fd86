"""What a merge did, as numbers: how far the result is from each parent, by tensor, by part and in all, and what was copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vlsafe.errors import CheckError
from vlsafe.merge.coverage import Outcome, Sources
from vlsafe.merge.numerics import all_finite, gram

if TYPE_CHECKING:
    from torch import Tensor

Gram = list[list[float]]


class MergeReport:
    """Told of every tensor in turn. Sums of inner products over tensors give the norms of a part as those of a tensor."""

    def __init__(self, sources: Sources, weights: Sequence[float]) -> None:
        self.sources, self.weights = sources, list(weights)
        self.entries: list[dict[str, Any]] = []
        self.grams: dict[str, Gram] = {}
        self.counts = {"merged": [0, 0], "copied": [0, 0], "tied": [0, 0]}

    def merged(self, outcome: Outcome, result: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
        """Raises `CheckError` where a parent or the result is not finite."""
        rows = [result, *tensors[1:]] if base is None else [result, *tensors]
        products = gram(tensors[0] if base is None else base, *rows)
        if not all(math.isfinite(value) for row in products for value in row):
            self._blame(outcome, result, tensors, base)
        part = outcome.part
        for key in (part, ""):
            total = self.grams.get(key)
            self.grams[key] = products if total is None else _sum(total, products)
        names = [source.name for source in self.sources.merged]
        self._add(outcome, {"from": names, "relative_change": self.relative_change(products)})

    def copied(self, outcome: Outcome, tensor: Tensor) -> None:
        """Says too which of the models hold another tensor there: what the merge leaves out of them."""
        differ = []
        for source in self.sources.models:
            if source.checkpoint.folder == self.sources.carrier.checkpoint.folder or outcome.canonical not in source.stored:
                continue
            other = source.checkpoint.read(source.stored[outcome.canonical])
            if other.shape != tensor.shape or not torch.equal(other.to(tensor.dtype), tensor):
                differ.append(source.name)
        self._add(outcome, {"from": ["carrier"], "differs_in": differ})

    def tied(self, outcome: Outcome) -> None:
        self._add(outcome, {"from": [outcome.why.removeprefix("tied to ")]})

    def _add(self, outcome: Outcome, more: dict[str, Any]) -> None:
        count = self.counts[outcome.rule]
        count[0], count[1] = count[0] + 1, count[1] + outcome.written.parameters
        written = outcome.written
        entry = {"name": written.name, "part": outcome.part, "rule": outcome.rule, "why": outcome.why}
        self.entries.append(entry | {"shape": list(written.shape), "dtype": written.dtype} | more)

    def _blame(self, outcome: Outcome, result: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
        parents = dict(zip([source.name for source in self.sources.merged], [*tensors, base], strict=False))
        for source in self.sources.merged:
            tensor = parents[source.name]
            if tensor is not None and not all_finite(tensor):
                raise CheckError(
                    f"merge: '{outcome.canonical}' of {source.name} ({source.checkpoint.folder}) holds NaN or infinity: "
                    "the model diverged or its save was cut; train or copy it again"
                )
        raise CheckError(f"merge: '{outcome.canonical}' overflows {result.dtype}: set merge.dtype=float32 or smaller weights")

    def _places(self) -> dict[str, int | None]:
        """Where each parent stands in a Gram matrix: None for the first row, which differences are taken from."""
        models = self.sources.models
        if self.sources.base is None:
            return {m.name: None if i == 0 else i + 1 for i, m in enumerate(models)}
        return {"base": None} | {m.name: i + 2 for i, m in enumerate(models)}

    def relative_change(self, g: Gram) -> dict[str, float]:
        """‖merged − parent‖ / ‖parent‖ for each parent, from inner products."""
        changes = {}
        for name, i in self._places().items():
            if i is None:
                change, norm = g[1][1], g[0][0]
            else:
                change, norm = g[1][1] - 2 * g[1][i] + g[i][i], g[0][0] + 2 * g[0][i] + g[i][i]
                change = 0.0 if change <= 1e-14 * (g[1][1] + g[i][i]) else change  # what rounding leaves of equal rows
            changes[name] = _short(math.sqrt(change / norm)) if norm > 0 else 0.0
        return changes

    def cosines(self, g: Gram) -> dict[str, float]:
        """Cosine of each two models' task vectors; nothing without a base or where one of them is zero."""
        places = [(name, i) for name, i in self._places().items() if i is not None]
        found = {}
        if self.sources.base is not None:
            for a, (one, i) in enumerate(places):
                for other, j in places[a + 1 :]:
                    if g[i][i] > 0 and g[j][j] > 0:
                        found[f"{one}·{other}"] = _short(g[i][j] / math.sqrt(g[i][i] * g[j][j]))
        return found

    def table(self) -> dict[str, Any]:
        """The contents of merge_report.json."""
        parents = {source.name: str(source.checkpoint.folder.name) for source in (self.sources.carrier, *self.sources.merged)}
        return {"parents": parents, "summary": self.summary(), "tensors": self.entries}

    def summary(self) -> dict[str, Any]:
        """What goes into the manifest; changes and cosines by part, and over all merged tensors under `all`."""
        facts: dict[str, Any] = {"weights": self.weights}
        for rule, (tensors, parameters) in self.counts.items():
            facts[f"tensors_{rule}"], facts[f"parameters_{rule}"] = tensors, parameters
        grams = {part or "all": g for part, g in self.grams.items()}
        facts["relative_change"] = {part: self.relative_change(g) for part, g in grams.items()}
        if self.sources.base is not None:
            facts["task_vector_cosine"] = {part: found for part, g in grams.items() if (found := self.cosines(g))}
        copied = [entry for entry in self.entries if entry["rule"] == "copied"]
        differ = {
            name: sorted({e["part"] for e in copied if name in e["differs_in"]}) for e in copied for name in e["differs_in"]
        }
        facts["copied_though_models_differ"] = differ
        return facts


def _sum(one: Gram, other: Gram) -> Gram:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)]


def _short(value: float) -> float:
    """Six digits: what stays the same whatever the number of threads that summed it."""
    return float(f"{value:.6g}")
