"""A report with everything in it that a report can have, planted text included, and headless Chromium to open it with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.sweeps import sweep
from vlsafe.report.results import CellResult, score
from vlsafe.report.source import Missing, Source, StageFacts

CHROMIUM = Path("/usr/bin/chromium")
SCRIPT = "<script>document.title='planted'</script>"
PLANTED = f"{SCRIPT}</script><img src=x onerror=\"document.title='planted'\">{{{{ 7*7 }}}} $x_$"
SCRIPTS = "한국어 العربية हिन्दी 中文 🙂"
HIDDEN = "a\x1b[31mred\x00\u202ekcab\u200bgone\ud800"
CELL = 'none-<img src="x" onerror="alert(1)">'


def respond(folder: Path, benchmark: str, expects: str, ids: list[str], marks: dict[int, str], category: str = "plain") -> Path:
    """Responses beside labels that are there: `answer <id>`, or what `marks` has for a position."""
    rows = [
        {"id": id, "benchmark": benchmark, "category": PLANTED if i == 2 else f"{category}{i % 2}", "prompt": f"question {id}",
         "image": "", "expects": expects, "target": "", "response": marks.get(i, f"answer {id}")}
        for i, id in enumerate(ids)
    ]  # fmt: skip
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


EXPECTS = {"over_refusal": "comply", "helpfulness": "answer"}


def source_of(results: list[CellResult], folder: Path, **more: Any) -> Source:
    """A source whose responses lie beside the labels."""
    responses = {}
    for r in results:
        if r.labels is not None and r.key not in responses:
            ids = [json.loads(line)["id"] for line in (r.labels / "labels.jsonl").read_text().splitlines()]
            marks = {0: PLANTED, 1: SCRIPTS, 3: HIDDEN, 4: "two\nlines"} if r.role != "base" else {}
            responses[r.key] = respond(r.labels, r.benchmark, EXPECTS.get(r.axis, "refuse"), ids, marks)
    cells = len({r.cell for r in results})
    return Source("demo", folder, score(results), responses=responses, cells=cells, **more)


def full_source(folder: Path) -> Source:
    """Two seeds, checkpoints during adaptation, failed and missing stages, and planted text in every place."""
    results = sweep(folder / "store", seeds=(0, 1), merges=("none", "ties"))
    results = [replace(r, cell=CELL + str(r.choices["seed"])) if r.cell.startswith("none-none") else r for r in results]
    checkpoints = []
    for step in (100, 200):
        for r in sweep(folder / f"store-{step}", seeds=(0, 1), tunes=("none",), merges=("none",)):
            if r.role == "adapted":
                cell = next(x.cell for x in results if x.choices["seed"] == r.choices["seed"] and x.cell.startswith(CELL))
                checkpoints.append(replace(r, cell=cell, step=step, key=f"{r.key}-{step}", final=False))
    stage = StageFacts(
        "merge", "k" * 20, f"tiny › {PLANTED}", {"merge.name": "ties", "note": PLANTED}, "2026-01-01T00:00:00Z", 1.5, 1
    )
    missing = (
        Missing(
            "safety_tune", PLANTED, "failed", (CELL + "0",), f"CheckError: {PLANTED}", "logs/x.log", f"Traceback\n{PLANTED}"
        ),
        Missing("judge", "left out", "skipped", (CELL + "0",)),
        Missing("merge", "not begun", "missing", ("none-ties",)),
    )
    return source_of(results + checkpoints, folder, stages=(stage,), missing=missing)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skip that says why; where CI is true its absence is a failure."""
    if not CHROMIUM.exists():
        reason = f"no {CHROMIUM}: `make browser` installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()
