"""The stage `generate`: a benchmark's items and a model's answers to them, as `responses.jsonl`.

Answers are kept as they come, so that a killed stage goes on from them, and those of an artifact that differs only in `limit`
are reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.eval.base import Benchmark, Item, ResponseRow
from vlsafe.eval.engines import Answer, Engine
from vlsafe.eval.rows import RESPONSES, line, read_partial, read_rows, write_rows
from vlsafe.files import read_json
from vlsafe.stage import StageContext

MANIFEST = "manifest.json"
PARTIAL = "responses.partial.jsonl"


def run(benchmark: Benchmark, engine: Engine, limit: int | None, ctx: StageContext) -> None:
    """Ask the model in `ctx.parents["model"]` the first `limit` items (all of them for None).

    Writes `responses.jsonl` in item order and the facts n, reused, cut_off and what the engine says of itself. Raises
    `CheckError` for two items of one id and whatever the engine's checks find, `StageInterrupted` after a stop signal.
    """
    items = benchmark.items(limit)
    check_ids(benchmark.component_name, items)
    known: dict[str, ResponseRow] = {}
    cut: set[str] = set()
    for row, was_cut in _earlier_rows(ctx.earlier):
        known[row["id"]] = row
        cut |= {row["id"]} if was_cut else set()
    ctx.work.mkdir(parents=True, exist_ok=True)
    partial = ctx.work / PARTIAL
    resumed = 0
    for entry in read_partial(partial):
        known[entry["row"]["id"]] = entry["row"]
        cut |= {entry["row"]["id"]} if entry["cut"] else set()
        resumed += 1
    rows = {i: known[item.id] for i, item in enumerate(items) if item.id in known and _same_question(known[item.id], item)}
    missing = [i for i in range(len(items)) if i not in rows]
    ctx.progress(len(rows), len(items), benchmark.component_name)
    with partial.open("a", encoding="utf-8") as handle:

        def keep(position: int, answer: Answer) -> None:
            index = missing[position]
            rows[index] = _row(benchmark.component_name, items[index], answer)
            cut.discard(items[index].id)
            if answer.cut:
                cut.add(items[index].id)
            handle.write(line({"row": rows[index], "cut": answer.cut}))
            handle.flush()
            ctx.progress(len(rows), len(items), benchmark.component_name)

        if missing or not ctx.earlier:
            facts = engine.answer(ctx.parents["model"], [items[i] for i in missing], keep, ctx.execution, ctx.should_stop)
        else:  # only copied: the model is not even loaded
            facts = {**read_json(ctx.earlier[0] / MANIFEST).get("facts", {}), "new_tokens": 0, "new_tokens_per_second": 0.0}
    write_rows(ctx.out / RESPONSES, [rows[i] for i in range(len(items))])
    cut_ids = [item.id for item in items if item.id in cut]
    ctx.facts |= facts | {
        "n": len(items),
        "reused": len(items) - len(missing),
        "resumed": resumed,
        "cut_off": len(cut_ids),
        "cut_off_ids": cut_ids,
    }


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
