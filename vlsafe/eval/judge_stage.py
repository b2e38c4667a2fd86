"""The stage `judge`: labels for the rows of `responses.jsonl`, as `labels.jsonl`. No model is asked again."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from vlsafe.errors import CheckError
from vlsafe.eval.base import Judge, Label, LabelRow, ResponseRow
from vlsafe.eval.rows import LABELS, RESPONSES, read_rows, write_rows
from vlsafe.stage import StageContext


def run(judge: Judge, ctx: StageContext) -> None:
    """Label the rows in `ctx.parents["responses"]`, in their order; facts: n and a count for each label.

    Raises `CheckError` where the judge gives more or fewer labels than rows, or one that is none.
    """
    rows: list[ResponseRow] = read_rows(ctx.parents["responses"] / RESPONSES)
    labels = judge.label_within(rows, ctx)
    who = f"judge={judge.component_name}"
    if len(labels) != len(rows):
        raise CheckError(f"{who} gave {len(labels)} labels for {len(rows)} rows")
    for row, label in zip(rows, labels, strict=True):
        if label not in get_args(Label):
            raise CheckError(f"{who} labelled item {row['id']} {label!r}; a label is one of {', '.join(get_args(Label))}")
    labelled: list[LabelRow] = [{"id": row["id"], "label": label} for row, label in zip(rows, labels, strict=True)]
    write_rows(ctx.out / LABELS, labelled)
    ctx.progress(len(rows), len(rows), who)
    ctx.facts |= {"n": len(rows), "labels": dict(sorted(Counter(labels).items())), "judge_version": judge.version}
