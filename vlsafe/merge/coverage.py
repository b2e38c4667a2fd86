"""What becomes of every tensor of a merge, decided from names, shapes and dtypes before any is read.

Each tensor of the carrier is merged, or copied because of a stated reason; whatever the models hold beyond that, lack, or hold
in another shape is an error, unless a named rule resolves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from vlsafe.errors import CheckError, ConfigError
from vlsafe.merge.base import MergeMethod
from vlsafe.model.parts import canonical_names, in_scope, is_derived, part_of, selectors, selects
from vlsafe.model.vocabulary import other_tokens, tokens_by_row
from vlsafe.model.weights import Checkpoint, TensorInfo, open_checkpoint

FLOATS = ("float64", "float32", "bfloat16", "float16")
EMBEDDING, OUTPUT_MATRIX = "model.language_model.embed_tokens.weight", "lm_head.weight"
VOCABULARY = ("language_model.embed", "language_model.lm_head")


@dataclass(frozen=True)
class Source:
    """A parent under its name in the stage (`carrier`, `base`, `model_0`…), with its tensors by canonical name."""

    name: str
    checkpoint: Checkpoint
    stored: Mapping[str, str]  # canonical -> stored, without a copy of a tied matrix
    ties: bool  # holds the output matrix once more, although it is the embedding

    def info(self, canonical: str) -> TensorInfo:
        return self.checkpoint.tensors[self.stored[canonical]]


@dataclass(frozen=True)
class Outcome:
    """One tensor of the result: what it becomes and why."""

    written: TensorInfo
    canonical: str
    part: str
    rule: Literal["merged", "copied", "tied"]
    why: str
    rows: int | None = None  # of a vocabulary merged in part: the leading rows that all models have


class Sources(NamedTuple):
    carrier: Source
    models: tuple[Source, ...]
    base: Source | None

    @property
    def merged(self) -> tuple[Source, ...]:
        """Those that a merged tensor is computed from."""
        return self.models if self.base is None else (*self.models, self.base)


def open_source(name: str, folder: Path) -> Source:
    """Raises `CheckError` for a folder that can't be read, or with a tensor name that no layout knows."""
    checkpoint = open_checkpoint(folder)
    stored = canonical_names(checkpoint.tensors, f"{name} ({folder})")
    ties = _stores_tied_copy(checkpoint, stored)
    return Source(name, checkpoint, {c: s for c, s in stored.items() if not (ties and c == OUTPUT_MATRIX)}, ties)


def _stores_tied_copy(checkpoint: Checkpoint, stored: Mapping[str, str]) -> bool:
    if EMBEDDING not in stored or OUTPUT_MATRIX not in stored:
        return False
    config = checkpoint.config()
    tied = config.get("tie_word_embeddings") or (config.get("text_config") or {}).get("tie_word_embeddings")
    if not tied:
        return False
    import torch

    one, other = checkpoint.read(stored[EMBEDDING]), checkpoint.read(stored[OUTPUT_MATRIX])
    return one.dtype == other.dtype and bool(torch.equal(one, other))


def open_sources(method: MergeMethod, parents: Mapping[str, Path]) -> Sources:
    """The parents by their place in the merge; raises `ConfigError` where one is missing or their number doesn't fit."""
    count = sum(name.startswith("model_") for name in parents)
    names = ["carrier", *(f"model_{i}" for i in range(count)), *(["base"] if method.needs_base else [])]
    missing = [name for name in names if name not in parents]
    if missing:
        raise ConfigError(
            f"merge={method.component_name} needs {', '.join(missing)}; it was given {', '.join(sorted(parents))}"
        )
    method.check_count(count)
    opened = [open_source(name, parents[name]) for name in names]
    return Sources(opened[0], tuple(opened[1 : count + 1]), opened[-1] if method.needs_base else None)


def account(method: MergeMethod, sources: Sources) -> list[Outcome]:
    """One outcome for each tensor of the carrier, in its order. Raises `CheckError` that names what can't be explained."""
    carrier = sources.carrier
    parts = {canonical: part_of(canonical) for canonical in carrier.stored}
    chosen = {c for c, part in parts.items() if in_scope(part, method.scope) and not is_derived(c)}
    for selector in selectors(method.scope):
        if not any(selects(selector, parts[c]) for c in chosen):
            known = ", ".join(dict.fromkeys(parts.values()))
            tied = " (the output matrix is tied to the embedding)" if selector == "lm_head" else ""
            raise CheckError(f"merge.scope={selector}: no tensor of the carrier is in it{tied}; its parts are {known}")
    problems = [problem for source in sources.merged for problem in _unexplained(method, source, chosen, carrier)]
    outcomes = []
    for canonical, stored in carrier.stored.items():
        info, part = carrier.checkpoint.tensors[stored], parts[canonical]
        dtype = info.dtype if method.dtype == "carrier" or info.dtype not in FLOATS else method.dtype
        written = TensorInfo(stored, dtype, info.shape)
        if canonical in chosen:
            why, rows, found = _compare(method, sources, canonical, part)
            problems += found
            outcomes.append(Outcome(written, canonical, part, "merged", why, rows))
        else:
            why = "computed by the model itself" if is_derived(canonical) else f"outside merge.scope={_text(method.scope)}"
            outcomes.append(Outcome(written, canonical, part, "copied", why))
    words = [
        outcome.rows or outcome.written.shape[0]
        for outcome in outcomes
        if outcome.rule == "merged" and outcome.part in VOCABULARY
    ]
    if words and not problems:
        problems = _other_tokens(sources, min(words))
    if carrier.ties:
        stored = next(n for n in carrier.checkpoint.tensors if canonical_names([n]).get(OUTPUT_MATRIX))
        embedding = next(o for o in outcomes if o.canonical == EMBEDDING)
        written = TensorInfo(stored, embedding.written.dtype, embedding.written.shape)
        outcomes.append(Outcome(written, OUTPUT_MATRIX, VOCABULARY[1], "tied", f"tied to {embedding.written.name}"))
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckError(f"merge={method.component_name} would be silently wrong: {'; '.join(problems[:4])}{more}")
    return outcomes


def _other_tokens(sources: Sources, rows: int) -> list[str]:
    """Rows that mean different tokens in two models: merged, they would mean neither."""
    own, problems = tokens_by_row(sources.carrier.checkpoint.folder), []
    for source in sources.merged:
        other = tokens_by_row(source.checkpoint.folder) if source.checkpoint.folder != sources.carrier.checkpoint.folder else {}
        differ = other_tokens(own, other, rows)
        if differ:
            first = differ[0]
            problems.append(
                f"{len(differ)} rows of the vocabulary are other tokens in {source.name} ({source.checkpoint.folder}) than in "
                f"the carrier, the first {other[first]!r} and {own[first]!r} (row {first}): set merge.scope=layers"
            )
    return problems


def _unexplained(method: MergeMethod, source: Source, chosen: set[str], carrier: Source) -> list[str]:
    """What `source` lacks or has too much inside the scope."""
    own = {c for c in source.stored if in_scope(part_of(c), method.scope) and not is_derived(c)}
    where = f"{source.name} ({source.checkpoint.folder})"
    problems = [f"{where} has no '{c}', which the carrier has" for c in sorted(chosen - own) if c != OUTPUT_MATRIX]
    problems += [f"{where} has '{c}', which the carrier has not" for c in sorted(own - chosen) if c != OUTPUT_MATRIX]
    if OUTPUT_MATRIX in chosen ^ own:
        ties, has = (source, carrier) if OUTPUT_MATRIX in chosen else (carrier, source)
        problems.append(
            f"{ties.name} ({ties.checkpoint.folder}) ties its output matrix to the embedding and {has.name} "
            f"({has.checkpoint.folder}) has one of its own: set merge.scope=layers, or untie it and save it again"
        )
    return problems


def _compare(method: MergeMethod, sources: Sources, canonical: str, part: str) -> tuple[str, int | None, list[str]]:
    """(how it is merged, rows merged where they are not all, problems) of one tensor in the scope."""
    named = [source for source in (sources.carrier, *sources.merged) if canonical in source.stored]
    infos = {source.name: source.info(canonical) for source in named}
    problems = [
        f"'{canonical}' of {name} is {info.dtype}, and only floating-point weights can be merged: dequantise the model first"
        for name, info in infos.items()
        if info.dtype not in FLOATS
    ]
    why = f"merged from {len(sources.models)} models" + (" over base" if sources.base else "")
    shapes = {name: info.shape for name, info in infos.items()}
    if len(set(shapes.values())) == 1:
        return why, None, problems
    shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if part in VOCABULARY and len({(len(s), *s[1:]) for s in shapes.values()}) == 1 and len(next(iter(shapes.values()))) > 0:
        rows = min(shape[0] for shape in shapes.values())
        if method.vocab == "carrier_rows":
            return (
                f"{why} in its first {rows} rows, copied from the carrier in the others (merge.vocab=carrier_rows)",
                rows,
                problems,
            )
        problems.append(
            f"vocabulary sizes differ in '{canonical}' ({shown}): if row i is the same token in all of them, merge the common "
            "rows with merge.vocab=carrier_rows"
        )
    else:
        problems.append(f"shapes differ in '{canonical}' ({shown}): these models are not of one architecture")
    return why, None, problems


def _text(scope: str | Sequence[str]) -> str:
    return scope if isinstance(scope, str) else "[" + ",".join(scope) + "]"
