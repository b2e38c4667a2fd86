"""What a site does to jobs: preemption, requeue, a time limit, a cancelled job; and a stage that fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.conftest import Launch
from tests.slurm.conftest import Site, queue, said, until

LONG = ("safety_tune=tiny_sft", "merge=none", "safety_tune.optimization.steps=1200")
# Minutes of training, with little to read before it begins.
ENDLESS = (
    "safety_tune=tiny_sft", "merge=none,ties", "safety_tune.optimization.steps=20000", "safety_tune.optimization.batch_size=1",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("base")


def weights(folder: Path) -> dict[str, bytes]:
    with safe_open(folder / "model.safetensors", "np") as handle:
        return {name: handle.get_tensor(name).tobytes() for name in handle.keys()}  # noqa: SIM118


def test_preempted_and_requeued_ends_with_the_same_weights(site: Site, here: Launch) -> None:
    site.submit("preempted", *LONG)
    (job,) = site.jobs("preempted", "safety_tune")
    until(lambda: site.trains("preempted", job), "it trains")
    urgent = said(
        "sbatch", "--parsable", "--partition=high", "--cpus-per-task=4", "--output=/dev/null", "--wrap=sleep 3"
    ).strip()
    until(lambda: site.notes("preempted", "safety_tune")[-1]["event"] in ("requeue", "stopped"), "it stops at a checkpoint")
    until(lambda: urgent not in queue(), "the urgent job is through")
    until(lambda: site.trains("preempted", job, restarts=1), "it trains again")
    said("scontrol", "requeue", job)
    site.wait("preempted")

    phase = phases(site.training("preempted"))[-1]
    assert phase["resumed_from_step"] > 0
    last = site.notes("preempted", "safety_tune")[-1]
    assert (last["job"], last["restarts"], last["event"], last["status"]) == (job, 2, "end", 0)
    assert {row["status"] for row in site.results("preempted")} == {"done"}

    undisturbed = here.train(*LONG, "sweep=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    same = here.outputs / "store" / "safety_tune" / site.training("preempted").name
    assert phases(same)[-1]["resumed_from_step"] == 0
    assert weights(site.training("preempted")) == weights(same)


def phases(artifact: Path) -> list[dict[str, int]]:
    from vlsafe.files import read_json

    return list(read_json(artifact / "manifest.json")["facts"]["phases"].values())


@pytest.fixture(scope="module")
def limited(site: Site) -> str:
    """Begun early: a time limit is at least a minute."""
    site.submit(
        "limited", *ENDLESS, "hydra.launcher.resources.safety_tune.time=1", "hydra.launcher.signal_seconds=1",
        "hydra.launcher.max_requeues=1",
    )  # fmt: skip
    return "limited"


def test_a_stage_that_fails_takes_its_dependents_with_it(site: Site, limited: str) -> None:
    site.submit("fails", "safety_tune=tiny_sft", "merge=none,ties", "safety_tune.optimization.learning_rate=1e30")
    site.wait("fails")
    states = site.states("fails")
    assert {s for id, s in states.items() if id.startswith("safety_tune")} == {"failed"}
    assert {s for id, s in states.items() if id.startswith("merge")} == {"skipped"}
    assert {row["status"] for row in site.results("fails")} >= {"done"}  # what could be made is reported
    log = (site.folder("fails") / "logs" / "finish.log").read_text()
    assert "FAILED safety_tune" in log
    shown = site.status("fails")
    assert shown.returncode == 1
    assert "FAILED safety_tune tiny › tiny › tiny_sft" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_cancelled_sweep_goes_on_when_it_is_asked_for_again(site: Site, limited: str) -> None:
    site.submit("cancelled", *LONG, "seed=3", "adaptation.seed=0")
    (job,) = site.jobs("cancelled", "safety_tune")
    until(lambda: site.trains("cancelled", job), "it trains")
    others = set(site.jobs(limited)) & set(queue())
    ended = site.status("cancelled", "cancel")
    assert ended.returncode == 0, ended.stderr
    until(lambda: not set(site.jobs("cancelled")) & set(queue()), "its jobs are gone")
    assert others <= set(queue())  # no other sweep's
    assert "cancelled by" in site.status("cancelled").stdout
    site.submit("cancelled", *LONG, "seed=3", "adaptation.seed=0")
    site.wait("cancelled")
    assert phases(site.training("cancelled"))[-1]["resumed_from_step"] > 0
    assert {row["status"] for row in site.results("cancelled")} == {"done"}


def test_one_cancelled_job(site: Site, limited: str) -> None:
    """By hand, with scancel: its dependents end, and the sweep's last job says why."""
    site.submit("scancelled", *ENDLESS, "seed=4", "adaptation.seed=0")
    (job,) = site.jobs("scancelled", "safety_tune")
    until(lambda: site.trains("scancelled", job), "it trains")
    subprocess.run(["scancel", job], check=True)
    site.wait("scancelled")
    shown = site.status("scancelled")
    assert shown.returncode == 1
    assert "cancelled by" in shown.stdout
    assert {s for id, s in site.states("scancelled").items() if id.startswith("merge")} == {"skipped"}
    assert "FAILED safety_tune" in (site.folder("scancelled") / "logs" / "finish.log").read_text()


def test_a_time_limit_requeues_from_a_checkpoint_and_retries_are_bounded(site: Site, limited: str) -> None:
    site.wait(limited)
    notes = site.notes(limited, "safety_tune")
    assert [(n["event"], n["restarts"]) for n in notes] == [("start", 0), ("requeue", 0), ("start", 1), ("gave-up", 1)]
    assert notes[1]["why"] == "time limit"
    told = [e for e in site.events(limited) if e["stage"].startswith("safety_tune/") and e.get("done")]
    first = [e["done"] for e in told if e["time"] < notes[2]["time"]]
    again = [e["done"] for e in told if e["time"] > notes[2]["time"] + 1]
    assert first
    assert again
    assert min(again) > max(first) / 2  # it went on from a checkpoint
    shown = site.status(limited)
    assert "time limit after 1 requeues" in " ".join(shown.stdout.split())
    assert {s for id, s in site.states(limited).items() if id.startswith("merge")} == {"skipped"}
