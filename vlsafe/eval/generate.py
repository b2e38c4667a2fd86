"""The stage `generate`: a benchmark's items and a model's answers to them, as `responses.jsonl`.

Answers are kept as they come, so that a killed stage goes on from them, and those of an artifact that differs only in `limit`
are reused. Several ranks share the items by whole batches; each keeps its answers in a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError, StageInterrupted
from vlsafe.eval.base import Benchmark, Item, ResponseRow
from vlsafe.eval.engines import Answer, Engine
from vlsafe.eval.rows import RESPONSES, line, read_partial, read_rows, write_rows
from vlsafe.files import read_json
from vlsafe.stage import StageContext

MANIFEST = "manifest.json"
PARTIAL = "responses.partial.jsonl"  # the main rank's; that of rank 1 is responses.partial.1.jsonl


def run(benchmark: Benchmark, engine: Engine, limit: int | None, ctx: StageContext) -> None:
    """Ask the model in `ctx.parents["model"]` the first `limit` items (all of them for None).

    Writes `responses.jsonl` in item order and the facts n, reused, cut_off and what the engine says of itself. Raises
    `CheckError` for two items of one id, an item without exactly one answer and whatever the engine's checks find,
    `StageInterrupted` after a stop signal.
    """
    items = ctx.ranks.agreed(lambda: read_items(benchmark, limit))
    known = Known(items)
    resumed = 0
    if ctx.ranks.main:  # before any rank appends again
        for row, was_cut in _earlier_rows(ctx.earlier):
            known.add(row, was_cut)
        ctx.work.mkdir(parents=True, exist_ok=True)
        resumed = known.add_partial(sorted(ctx.work.glob("responses.partial*.jsonl")))
    missing = ctx.ranks.broadcast(known.missing())
    mine = shares(engine, [items[i] for i in missing], ctx)[ctx.ranks.rank]
    share = [missing[i] for i in mine]
    ctx.progress(len(items) - len(missing), len(items), benchmark.title)
    answered: list[int] = []
    with partial_file(ctx.work, ctx.ranks.rank).open("a", encoding="utf-8") as handle:

        def keep(position: int, answer: Answer) -> None:
            index = share[position]
            row = _row(benchmark.title, items[index], answer)
            known.add(row, answer.cut)
            answered.append(index)
            handle.write(line({"row": row, "cut": answer.cut}))
            handle.flush()
            done = len(items) - len(missing) + len(missing) * len(answered) // len(share)  # as if the others were as far
            ctx.progress(done, len(items), benchmark.title)

        facts: dict[str, Any] = {}
        stopped: StageInterrupted | None = None
        if share or (ctx.ranks.main and not ctx.earlier):
            try:
                asked = [items[i] for i in share]
                facts = engine.answer(ctx.parents["model"], asked, keep, ctx.execution, ctx.should_stop)
            except StageInterrupted as error:
                stopped = error
        elif ctx.ranks.main:  # only copied: the model is not even loaded
            facts = {**read_json(ctx.earlier[0] / MANIFEST).get("facts", {}), "new_tokens": 0, "new_tokens_per_second": 0.0}
    if ctx.ranks.any(stopped is not None):
        raise stopped or StageInterrupted("another rank was stopped: the answers so far are kept")
    answers = ctx.ranks.gather(answered)
    facts = together(ctx.ranks.gather(facts), answers)
    if not ctx.ranks.main:
        return
    for rank in range(1, ctx.ranks.world):
        known.add_partial([partial_file(ctx.work, rank)])
    check_complete(benchmark.title, items, missing, answers, known)
    write_rows(ctx.out / RESPONSES, [known.rows[item.id] for item in items])
    cut_ids = [item.id for item in items if item.id in known.cut]
    ctx.facts |= facts | {
        "n": len(items),
        "reused": len(items) - len(missing),
        "resumed": resumed,
        "cut_off": len(cut_ids),
        "cut_off_ids": cut_ids,
    }


def read_items(benchmark: Benchmark, limit: int | None) -> Sequence[Item]:
    items = benchmark.items(limit)
    check_ids(benchmark.title, items)
    return items


class Known:
    """The answers there are to these items, by id, and which of them were cut off. Those to other questions are passed over."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = {item.id: item for item in items}
        self.rows: dict[str, ResponseRow] = {}
        self.cut: set[str] = set()

    def add(self, row: ResponseRow, was_cut: bool) -> None:
        item = self.items.get(row["id"])
        if item is not None and _same_question(row, item):
            self.rows[item.id] = row
            (self.cut.add if was_cut else self.cut.discard)(item.id)

    def add_partial(self, paths: Sequence[Path]) -> int:
        """What ranks kept, this time or before they were killed; how many answers."""
        entries = [entry for path in paths for entry in read_partial(path)]
        for entry in entries:
            self.add(entry["row"], entry["cut"])
        return len(entries)

    def missing(self) -> list[int]:
        return [i for i, id in enumerate(self.items) if id not in self.rows]


def partial_file(work: Path, rank: int) -> Path:
    return work / (PARTIAL if rank == 0 else f"responses.partial.{rank}.jsonl")


def shares(engine: Engine, items: Sequence[Item], ctx: StageContext) -> list[list[int]]:
    """Which items each rank asks, by index, in item order: whole batches, dealt out to whoever has the fewest items."""
    dealt: list[list[int]] = [[] for _ in range(ctx.ranks.world)]
    if len(dealt) == 1:
        return [list(range(len(items)))]
    for batch in engine.batches(ctx.parents["model"], items, ctx.execution) if items else ():
        min(dealt, key=len).extend(batch)
    return [sorted(share) for share in dealt]


def together(facts: Sequence[dict[str, Any]], answers: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The main rank's facts, with tokens summed, their rate over the slowest rank's time, and what each rank did."""
    if len(facts) == 1:
        return facts[0]
    tokens = [int(f.get("new_tokens", 0)) for f in facts]
    seconds = [n / f["new_tokens_per_second"] for n, f in zip(tokens, facts, strict=True) if f.get("new_tokens_per_second")]
    did = [
        {"asked": len(indices), "new_tokens": n, "probe": f.get("probe")}
        for indices, n, f in zip(answers, tokens, facts, strict=True)
    ]
    rate = round(sum(tokens) / max(seconds), 1) if seconds else 0.0
    return facts[0] | {"new_tokens": sum(tokens), "new_tokens_per_second": rate, "ranks": did}


def check_complete(
    benchmark: str, items: Sequence[Item], missing: Sequence[int], answers: Sequence[Sequence[int]], known: Known
) -> None:
    """Raises `CheckError` unless every item that was missing was answered once."""
    times = dict.fromkeys(missing, 0)
    for index in (index for indices in answers for index in indices):
        times[index] = times.get(index, 0) + 1
    wrong = [items[i].id for i, n in times.items() if n != 1 or items[i].id not in known.rows]
    if wrong:
        raise CheckError(
            f"benchmark={benchmark}: {len(wrong)} items were not answered exactly once, the first is '{wrong[0]}'"
            ": the engine must answer each once, and every process be given the same items"
        )


def check_ids(benchmark: str, items: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise CheckError(f"benchmark={benchmark}: two items have the id '{item.id}'; ids must be unique")
        seen.add(item.id)


def _earlier_rows(folders: Sequence[Path]) -> Iterator[tuple[ResponseRow, bool]]:
    for folder in folders:
        cut: set[Any] = set(read_json(folder / MANIFEST).get("facts", {}).get("cut_off_ids", []))
        for row in read_rows(folder / RESPONSES):
            yield row, row["id"] in cut


def _same_question(row: ResponseRow, item: Item) -> bool:
    return (row["prompt"], row["category"], row["expects"], row["target"]) == (
        item.prompt,
        item.category,
        item.expects,
        item.target,
    )


def _row(benchmark: str, item: Item, answer: Answer) -> ResponseRow:
    return {
        "id": item.id,
        "benchmark": benchmark,
        "category": item.category,
        "prompt": item.prompt,
        "image": answer.image,
        "expects": item.expects,
        "target": item.target,
        "response": answer.text,
    }
