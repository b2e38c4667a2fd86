"""Whole sweeps on the tiny microworld, through the launch scripts: what is computed, kept, rebuilt, refused and reported."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from tests.conftest import Launch
from vlsafe.files import read_json

GRID = ("safety_tune=none,tiny_sft", "merge=none,ties", "sweep=grid")
COLUMNS = [
    "sweep", "cell", "role", "model", "adaptation", "safety_tune", "order", "merge", "seed", "step", "axis", "benchmark",
    "metric", "value", "n", "ci_low", "ci_high", "judge", "judge_version", "status", "key",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """A sweep that ran once; tests copy it before they damage it."""
    launch = Launch(tmp_path_factory.mktemp("finished") / "outputs")
    done = launch.train(*GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    return launch


def results(launch: Launch, name: str = "grid") -> list[dict[str, str]]:
    with (launch.outputs / "sweeps" / name / "results.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def stages(launch: Launch, name: str = "grid") -> list[dict[str, object]]:
    return list(read_json(launch.outputs / "sweeps" / name / "plan.json")["stages"])


def test_the_outputs_are_as_the_contract_says(finished: Launch) -> None:
    rows = results(finished)
    assert list(rows[0]) == COLUMNS
    assert {row["cell"] for row in rows} == {"tiny+none+none", "tiny+none+ties", "tiny+tiny_sft+none", "tiny+tiny_sft+ties"}
    assert {row["status"] for row in rows} == {"done"}
    assert {row["metric"] for row in rows} >= {"asr", "refusal_rate", "accuracy"}
    for row in rows:
        assert float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"])
        assert (finished.outputs / "store" / "judge" / row["key"] / "labels.jsonl").exists()
    base = {row["key"] for row in rows if row["role"] == "base" and row["benchmark"] == "mw_direct"}
    assert len(base) == 1  # scored once, shown in every cell
    cells = [json.loads(line) for line in (finished.outputs / "sweeps" / "grid" / "cells.jsonl").read_text().splitlines()]
    assert [cell["status"] for cell in cells] == ["done"] * 4
    merged = cells[3]["roles"]["merged"]
    link = finished.outputs / "sweeps" / "grid" / "cells" / "tiny+tiny_sft+ties" / "merged"
    assert link.resolve() == finished.outputs / "store" / merged["stage"] / merged["key"]
    responses = link.parent / "responses" / "merged-mw_typographic" / "responses.jsonl"
    row = json.loads(responses.read_text().splitlines()[0])
    assert {"id", "benchmark", "category", "prompt", "image", "response"} <= set(row)
    assert {stage["state"] for stage in stages(finished)} == {"done"}


def test_asked_again_it_runs_nothing(copied: Launch) -> None:
    before = sorted(p.stat().st_mtime_ns for p in copied.outputs.glob("store/*/*/manifest.json"))
    again = copied.train(*GRID)
    assert again.returncode == 0
    assert "nothing to run" in again.stdout
    assert sorted(p.stat().st_mtime_ns for p in copied.outputs.glob("store/*/*/manifest.json")) == before


def test_the_plan_says_what_exists_and_estimates_the_rest(copied: Launch) -> None:
    shown = copied.plan("safety_tune=none,tiny_sft", "merge=none,ties,linear")
    assert shown.returncode == 0
    assert "6 cells: 2 model, 1 adaptation, 1 safety_tune, 4 merge" in shown.stdout
    marks = [line.split()[:2] for line in shown.stdout.splitlines()]
    assert sum(m[:1] == ["→"] for m in marks) == 4  # two merges and their evaluation
    assert sum(m[:1] == ["✓"] for m in marks) == 12
    assert not (copied.outputs / "sweeps" / "safety_tune-none,tiny_sft_merge-none,ties,linear").exists()


def test_a_damaged_artifact_is_rebuilt_to_the_same_bytes_and_said_so(copied: Launch) -> None:
    tuned = next(s for s in stages(copied) if s["stage"] == "safety_tune")
    folder = copied.outputs / "store" / "safety_tune" / str(tuned["key"])
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    again = copied.train(*GRID)
    assert again.returncode == 0
    assert (
        f"safety_tune/{tuned['key']} is corrupt (model.safetensors has {len(weights) - 1} bytes, not {len(weights)})"
        in again.stdout
    )
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_flipped_bit_in_labels_is_seen_and_rebuilt(copied: Launch) -> None:
    judged = next(s for s in stages(copied) if s["stage"] == "judge")
    labels = copied.outputs / "store" / "judge" / str(judged["key"]) / "labels.jsonl"
    text = labels.read_text()
    labels.write_text(text.replace("other", "OTHER", 1))
    again = copied.train(*GRID)
    assert again.returncode == 0
    assert "the hash of labels.jsonl differs" in again.stdout
    assert labels.read_text() == text


def test_cells_are_added_under_one_name_and_another_base_is_refused_with_a_diff(copied: Launch) -> None:
    grown = copied.train("safety_tune=tiny_sft", "merge=linear", "sweep=grid")
    assert grown.returncode == 0, grown.stderr
    assert "5 cells" in grown.stdout
    assert len({row["cell"] for row in results(copied)}) == 5
    other = copied.train("safety_tune=tiny_sft", "merge=linear", "sweep=grid", "eval.limit=5")
    assert other.returncode == 2
    assert "sweep 'grid' already has cells with another base (eval.limit: 12 there, 5 here)" in other.stderr
    assert other.stderr.count("\n") == 1


def test_a_swept_setting_has_its_own_column_and_leaves_other_options_alone(copied: Launch) -> None:
    done = copied.train("merge=none,ties", "merge.density=0.2,0.8", "sweep=density")
    assert done.returncode == 0, done.stderr
    rows = results(copied, "density")
    assert list(rows[0]) == [*COLUMNS, "merge.density"]
    assert {(row["merge"], row["merge.density"]) for row in rows} == {("none", ""), ("ties", "0.2"), ("ties", "0.8")}


def test_a_failing_stage_takes_its_descendants_and_nothing_else(copied: Launch) -> None:
    rate = "safety_tune.optimization.learning_rate"
    failed = copied.train("merge=none,linear", f"{rate}=1e-3,1e30", "sweep=fails")
    assert failed.returncode == 1
    rows = results(copied, "fails")
    status = {(row["merge"], float(row[rate]), row["role"]): row["status"] for row in rows}
    assert status["linear", 1e-3, "merged"] == "done"
    assert status["linear", 1e30, "tuned"] == status["linear", 1e30, "merged"] == "skipped"
    assert status["linear", 1e30, "adapted"] == "done"
    assert "FAILED safety_tune tiny › tiny › tiny_sft: " in failed.stdout
    cells = failed.stdout.split("  cells: ")[1].splitlines()[0]
    assert [f"{name}+{rate}=1e+30" in cells for name in ("tiny+tiny_sft+none", "tiny+tiny_sft+linear")] == [True, True]
    assert f"{rate}=0.001" not in cells
    place = failed.stdout.split("traceback: ")[1].splitlines()[0]
    assert "Traceback" in (copied.outputs.parent / place).read_text()
    assert "Traceback" not in failed.stdout + failed.stderr


def test_a_larger_limit_reuses_the_answers_that_exist(copied: Launch) -> None:
    done = copied.train("eval.limit=20", "sweep=larger")
    assert done.returncode == 0
    manifests = [read_json(p) for p in copied.outputs.glob("store/generate/*/manifest.json")]
    larger = [m for m in manifests if m["spec"]["limit"] == 20]
    assert larger
    assert all(m["facts"]["reused"] == 12 for m in larger if m["facts"]["n"] >= 12)


def test_another_judge_generates_nothing(copied: Launch) -> None:
    before = len(list(copied.outputs.glob("store/generate/*")))
    done = copied.train(*GRID[:2], "judge=exact,keyword", "sweep=judges")
    assert done.returncode == 0, done.stderr
    assert len(list(copied.outputs.glob("store/generate/*"))) == before
    assert {row["judge"] for row in results(copied, "judges")} == {"exact", "keyword"}


def test_the_store_commands(copied: Launch) -> None:
    store = str(copied.outputs / "store")
    sweeps = str(copied.outputs / "sweeps")
    merged = next(s for s in stages(copied) if s["stage"] == "merge")
    listed = copied.run("store.py", "--store", store, "ls", "merge")
    assert f"merge/{merged['key']}" in listed.stdout
    shown = copied.run("store.py", "--store", store, "show", str(merged["key"])[:9])
    assert json.loads(shown.stdout)["key"] == merged["key"]
    exported = copied.outputs.parent / "exported"
    assert copied.run("store.py", "--store", store, "export", str(merged["key"]), str(exported)).returncode == 0
    assert (exported / "model.safetensors").exists()
    total = len(stages(copied))
    assert f"{total} of {total} artifacts" in copied.run("store.py", "--store", store, "verify").stdout
    shutil.rmtree(copied.outputs / "sweeps" / "grid")
    assert copied.train("sweep=small", "merge=none").returncode == 0
    kept = {f"{s['stage']}/{s['key']}" for s in stages(copied, "small")}
    assert "would delete" in copied.run("store.py", "--store", store, "--sweeps", sweeps, "gc").stdout
    assert len(list(copied.outputs.glob("store/judge/*"))) > len([k for k in kept if k.startswith("judge")])
    assert copied.run("store.py", "--store", store, "--sweeps", sweeps, "gc", "--yes").returncode == 0
    left = {f"{p.parent.name}/{p.name}" for p in copied.outputs.glob("store/[a-z]*/*")}
    assert left == kept
    wrong = copied.run("store.py", "--store", store, "show", "ffff")
    assert wrong.returncode == 2
    assert "error: no artifact 'ffff'" in wrong.stderr


def test_a_sweep_ends_with_its_report_and_it_is_made_again_from_the_record(copied: Launch) -> None:
    folder = copied.outputs / "sweeps" / "grid"
    made = (folder / "report.html").read_text()
    again = copied.train(*GRID)
    assert "building the report" not in again.stdout  # nothing has changed but the folder's place
    assert (folder / "report.html").read_text() == made
    assert "report: " in again.stdout
    results_before = (folder / "results.csv").read_text()
    for name in ("report.html", "results.csv", "results.md", "tables/main.tex", "figures/heatmap.pdf"):
        (folder / name).unlink()
    done = copied.run("report.py", "grid", f"outputs={copied.outputs}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "report.html").read_text() == made
    assert (folder / "results.csv").read_text() == results_before
    assert all((folder / n).stat().st_size > 0 for n in ("results.md", "tables/main.tex", "figures/heatmap.pdf"))


def test_a_report_of_an_unknown_sweep_names_those_there_are(copied: Launch) -> None:
    done = copied.run("report.py", "gird", "--outputs", str(copied.outputs))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no sweep 'gird'" in done.stderr and "there are: grid" in done.stderr


def test_a_report_names_what_failed_and_what_is_gone(copied: Launch) -> None:
    plan = read_json(copied.outputs / "sweeps" / "grid" / "plan.json")
    tuned = next(s for s in plan["stages"] if s["stage"] == "safety_tune")
    tuned |= {"state": "failed", "error": "CheckError: <b>no tokens</b>", "log": "nowhere.log"}
    (copied.outputs / "sweeps" / "grid" / "plan.json").write_text(json.dumps(plan))
    shutil.rmtree(copied.outputs / "store" / "safety_tune" / str(tuned["key"]))
    labels = next((copied.outputs / "store" / "judge").glob("*/labels.jsonl"))
    labels.chmod(0o644)
    labels.write_text(labels.read_text().replace("other", "othe2", 1))
    done = copied.run("report.py", "grid", f"outputs={copied.outputs}")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (copied.outputs / "sweeps" / "grid" / "report.html").read_text()
    assert "CheckError: &lt;b&gt;no tokens&lt;/b&gt;" in text
    assert "corrupt (the hash of labels.jsonl differs)" in text
    assert "cells are not complete" in done.stdout
