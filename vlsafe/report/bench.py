"""How long a report of a large sweep takes and how large it gets, printed as Markdown: python -m vlsafe.report.bench

The sweep is made up: 100 cells (4 tunings x 5 merges x 5 seeds), 101 models, 8 benchmarks of 1,000 items, answers of 5 to 60
words from 2,000. Its files are what the stages write, so everything from labels to the page is the real path.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlsafe.eval.base import Axis
from vlsafe.report.build import REPORT, build, is_fresh
from vlsafe.report.results import CellResult, score
from vlsafe.report.source import Source, StageFacts

TUNES, MERGES, SEEDS = ("none", "sft", "dpo", "kto"), ("none", "linear", "slerp", "ties", "dare_ties"), range(5)
BENCHMARKS: Mapping[str, tuple[Axis, float, float]] = {  # axis, rate of an adapted and of a fully tuned model
    "mw_direct": ("text_safety", 0.45, 0.05), "mw_wrapped": ("text_safety", 0.66, 0.08),
    "mw_typographic": ("multimodal_safety", 0.41, 0.33), "mw_cross_modal": ("multimodal_safety", 0.82, 0.05),
    "mw_borderline_text": ("over_refusal", 0.07, 0.18), "mw_borderline_picture": ("over_refusal", 0.02, 0.7),
    "mw_helpful_text": ("helpfulness", 0.99, 0.97), "mw_helpful_picture": ("helpfulness", 0.98, 0.9),
}  # fmt: skip
COUNTED = {"over_refusal": ("refused", "answered"), "helpfulness": ("correct", "incorrect")}
TEXT_ONLY = ("mw_direct", "mw_wrapped", "mw_borderline_text", "mw_helpful_text")
STRENGTH = {"none": 0.0, "kto": 0.55, "dpo": 0.75, "sft": 1.0}
KEPT = {"none": 1.0, "linear": 0.55, "slerp": 0.6, "ties": 0.75, "dare_ties": 0.7}


def make_up(folder: Path, tunes: Sequence[str], merges: Sequence[str], seeds: Sequence[int], items: int) -> Source:
    """A sweep's records over files of labels and responses, below `folder`."""
    dice = random.Random(0)
    parts = ("ba", "ko", "ri", "zen", "tu", "mel")
    words = ["".join(dice.choices(parts, k=dice.randint(1, 4))) for _ in range(2000)]
    text = " ".join(dice.choices(words, k=400_000))
    questions = {
        name: [(f"{i:04d}", f"kind {i % 7}", " ".join(dice.choices(words, k=dice.randint(5, 20)))) for i in range(items)]
        for name in BENCHMARKS
    }
    results: list[CellResult] = []
    responses: dict[str, Path] = {}
    for seed, tune, merge in itertools.product(seeds, tunes, merges):
        roles = ["base", "adapted"] + ["tuned"] * (tune != "none") + ["merged"] * (merge != "none")
        made = {"base": "base", "adapted": f"adapted-{seed}", "tuned": f"tuned-{seed}-{tune}"}
        made["merged"] = f"merged-{seed}-{tune}-{merge}"
        for role, (name, (axis, low, high)) in itertools.product(roles, BENCHMARKS.items()):
            if role == "base" and name not in TEXT_ONLY:
                continue
            key = f"{made[role]}-{name}"
            share = STRENGTH[tune] if role in ("tuned", "merged") else 0.0
            share *= KEPT[merge] if role == "merged" else 1.0
            if key not in responses:
                rate = (low + (high - low) * share) * (0.3 if role == "base" and "safety" in axis else 1.0)
                _write(folder / "store" / key, name, axis, rate + dice.gauss(0, 0.015), questions[name], text, dice)
                responses[key] = folder / "store" / key
            results.append(
                CellResult(
                    sweep="made-up", cell=f"llava+{tune}+{merge}+seed={seed}", role=role, final=role == roles[-1],
                    choices={"model": "microworld", "adaptation": "llava", "safety_tune": tune, "order": "after",
                             "merge": merge, "seed": seed},
                    status="done", axis=axis, benchmark=name, judge="exact", judge_version=1, key=key, labels=responses[key],
                    conditions={"template": "made up", "decoding": "greedy, 16 new tokens", "text prompts": "no_image"},
                )
            )  # fmt: skip
    stages = [
        StageFacts("merge", f"{seed}{tune}{merge}", f"microworld › llava › {tune} › {merge}",
                   {"merge.name": merge, "seed": seed}, "2026-01-01T00:00:00Z", 0.3, 1, "cpu")
        for seed, tune, merge in itertools.product(seeds, tunes, merges)
    ]  # fmt: skip
    return Source("made-up", folder, score(results), stages, (), responses, len({r.cell for r in results}))


def _write(
    folder: Path, name: str, axis: Axis, rate: float, items: Sequence[tuple[str, str, str]], text: str, dice: random.Random
) -> None:
    counted, rest = COUNTED.get(axis, ("answered", "refused"))
    expects = {"over_refusal": "comply", "helpfulness": "answer"}.get(axis, "refuse")
    rows, labels = [], []
    for id, category, prompt in items:
        start, length = dice.randrange(len(text) - 400), dice.randint(30, 400)
        row = {
            "id": id,
            "benchmark": name,
            "category": category,
            "prompt": prompt,
            "image": "",
            "expects": expects,
            "target": "",
        }
        rows.append(json.dumps({**row, "response": text[start : start + length]}))
        labels.append(json.dumps({"id": id, "label": counted if dice.random() < rate else rest}))
    folder.mkdir(parents=True)
    (folder / "responses.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "labels.jsonl").write_text("\n".join(labels) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="a folder for the made-up sweep; default: a temporary one")
    parser.add_argument("--items", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (options.keep or Path(name)).absolute()
        source = make_up(folder, TUNES, MERGES, SEEDS, options.items)
        began = time.perf_counter()
        source = Source(
            source.sweep, folder, score(s.result for s in source.scored), source.stages, (), source.responses, source.cells
        )
        scored = time.perf_counter() - began
        build(source)
        taken = time.perf_counter() - began
        began = time.perf_counter()
        assert is_fresh(source)
        again = time.perf_counter() - began
        size = (folder / REPORT).stat().st_size
    rows = len(source.responses) * options.items
    print("| a report of 100 cells, 1,000 items a benchmark | | bound |\n|---|---|---|")
    print(f"| labelled responses | {rows:,} | |")
    print(f"| results, tables, figures and page | {taken:.1f} s | ≤ 20 s |")
    print(f"| — of which reading and scoring labels | {scored:.1f} s | |")
    print(f"| asked again: found fresh in | {again:.2f} s | |")
    print(f"| report.html | {size / 1e6:.1f} MB | ≤ 10 MB |")


if __name__ == "__main__":
    main()
