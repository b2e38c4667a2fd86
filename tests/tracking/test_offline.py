"""Without a key: runs are written for `wandb sync`, read back with W&B's own reader."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tracking.conftest import GRID, Tracked, read_back


def folder_text(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def long_texts(tracked: Tracked) -> list[bytes]:
    """Prompts and answers of some words."""
    texts: list[str] = []
    for path in (tracked.outputs / "store" / "generate").glob("*/responses.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            texts += [text for text in (row["prompt"], row["response"]) if len(text.split()) > 4]
    return [text.encode() for text in texts]


def test_each_cell_and_each_training_stage_is_one_finished_run(swept: Tracked) -> None:
    shown = (swept.outputs.parent / "shown.txt").read_text()
    assert "tracking: 8 runs in outputs/wandb" in shown
    cells = [json.loads(line) for line in (swept.sweep / "cells.jsonl").read_text().splitlines()]
    runs = swept.offline()
    stages = set(swept.stage_ids())
    assert stages <= set(runs)
    assert len(runs) == len(stages) + len(cells)

    merged = next(r for r in map(read_back, (runs[i] for i in runs if i not in stages)) if r.config["merge"] == "ties"
                  and r.config["safety_tune"] == "tiny_sft")  # fmt: skip
    assert (merged.run["run_group"], merged.run["job_type"], merged.run["tags"]) == ("grid", "cell", ["grid"])
    assert merged.exit_code == 0
    expected = {"model": "tiny", "adaptation": "tiny", "order": "after", "seed": 0, "merge_density": 0.5, "judge": "exact"}
    assert {name: merged.config.get(name) for name in expected} == expected
    assert not any("." in name or isinstance(value, (dict, list)) for name, value in merged.config.items() if name != "_wandb")
    results = (swept.sweep / "results.csv").read_text().splitlines()
    names = results[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in results[1:]]
    mine = [r for r in rows if r["cell"] == "tiny+tiny_sft+ties"]
    for row in mine:
        value = merged.summary[f"{row['role']}/{row['metric']}/{row['benchmark']}"]
        assert abs(value - float(row["value"])) < 1e-6
        if row["role"] == "merged":
            assert merged.summary[f"final/{row['metric']}/{row['benchmark']}"] == value
    assert {f"final/mean/{row['axis']}" for row in mine} <= set(merged.summary)
    table = merged.summary["results"]
    held = json.loads((runs[merged.run["run_id"]].parent / "files" / table["path"]).read_text())
    assert held["columns"] == names
    assert len(held["data"]) == len(mine)
    assert "responses" not in merged.summary


def test_a_training_run_has_every_step_once(swept: Tracked) -> None:
    _, id = swept.stage_ids("model")
    read, log = read_back(swept.offline()[id]), swept.log_of(id)
    assert [row["_step"] for row in read.history] == list(range(len(log)))
    for row, line in zip(read.history, log, strict=True):
        assert (row["loss"], row["learning_rate"], row["grad_norm"]) == (line["loss"], line["lr"], line["grad_norm"])
        assert row["tokens_per_second"] == line["tokens_per_second"]
        assert row["phase"] == line["phase"]
    assert read.summary["peak_memory_mb"] > 0
    assert (read.run["job_type"], read.exit_code, read.config["model_layers"]) == ("training", 0, 2)


def test_no_prompt_and_no_answer_is_sent_unless_asked_for(copied: Tracked) -> None:
    texts = long_texts(copied)
    assert len(texts) > 50
    sent = folder_text(copied.outputs / "wandb")
    assert not [text for text in texts if text in sent]
    done = copied.train(*GRID, "tracking.upload_text=true")
    assert "nothing to run" in done.stdout
    assert "tracking: 8 runs" in done.stdout
    sent = folder_text(copied.outputs / "wandb")
    assert [text for text in texts if text in sent]
    stages = set(copied.stage_ids())
    cell = read_back(next(path for id, path in copied.offline().items() if id not in stages))
    table = json.loads(
        (Path(copied.offline()[cell.run["run_id"]]).parent / "files" / cell.summary["responses"]["path"]).read_text()
    )
    assert {"prompt", "response", "label", "role", "benchmark"} <= set(table["columns"])
    assert {row[table["columns"].index("role")] for row in table["data"]} == {cell.config["final_role"]}


def test_asked_again_nothing_is_sent_and_no_process_is_started(copied: Tracked) -> None:
    log = copied.sweep / "logs" / "tracking.log"
    log.unlink()
    before = copied.offline()
    again = copied.train(*GRID)
    assert again.returncode == 0
    assert not log.exists()  # a tracking process would have opened it
    assert "tracking" not in again.stdout
    assert copied.offline() == before


def test_a_run_that_is_written_again_takes_the_place_of_the_first(copied: Tracked) -> None:
    before = copied.offline()
    done = copied.dashboard("grid", "sync", "--resend")
    assert done.returncode == 0, done.stdout + done.stderr
    after = copied.offline()
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())
    (id,) = copied.stage_ids("adaptation")
    assert [row["_step"] for row in read_back(after[id]).history] == list(range(len(copied.log_of(id))))


def test_a_stage_of_two_sweeps_is_one_run_with_both_names(copied: Tracked) -> None:
    before = copied.offline()
    done = copied.train("safety_tune=tiny_sft", "merge=none", "sweep=other")
    assert done.returncode == 0, done.stdout + done.stderr
    after = copied.offline()
    assert len(after) == len(before) + 1  # the other sweep's cell
    stage = read_back(after[copied.stage_ids("safety_tune")[0]])
    assert (stage.run["run_group"], stage.run["tags"]) == ("grid", ["grid", "other"])
