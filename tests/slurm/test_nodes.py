"""Trainings over two nodes (here two slurmds of one machine, each with a name, a port and processes of its own)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import Launch
from tests.slurm.conftest import UP, Site, said, until
from vlsafe.files import read_json

CELL = ("safety_tune=tiny_sft", "merge=none", "safety_tune.optimization.steps=300")
WHERE = "hydra.launcher.resources.safety_tune"
TWO = (f"{WHERE}.partition=two", f"{WHERE}.nodes=2", "num_processes=2")


def nodes() -> list[str]:
    return sorted(said("sinfo", "--noheader", "--Node", "--partition=two", "--format=%N").split())


def lose(node: str) -> None:
    """Everything on it ends at once: nothing of it is left to tell what became of the rest."""
    there = processes_of(node)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in there:
            os.kill(pid, number)


def give_back_lost_nodes() -> None:
    subprocess.run([UP, "up"], check=True, timeout=200)


def workers_of(node: str) -> list[int]:
    return [pid for pid in processes_of(node) if Path(f"/proc/{pid}/comm").read_text() == "python\n" and is_rank(pid)]


def is_rank(pid: int) -> bool:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return any(one.startswith(b"LOCAL_RANK=") for one in environment)


def notes(site: Site, sweep: str) -> list[tuple[str, int, str]]:
    return [(n["event"], n["restarts"], n["why"]) for n in site.notes(sweep, "safety_tune")]


def processes_of(node: str) -> set[int]:
    """All that belongs to a node of this Slurm: its slurmd, its job steps and what they run."""
    box = f"SLURM_CONF={os.environ['SLURM_CONF']}"
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if box in environment and f"SLURMD_NODENAME={node}" in environment:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                step = (
                    Path("/proc") / str(parent) / "comm"
                ).read_text() == "slurmstepd\n"  # a step's own environment names no node
                found |= {int(folder.name), *([parent] if step else [])}
            elif box in environment and command[0] == "slurmd" and node in command:
                found.add(int(folder.name))
    return found


@pytest.mark.usefixtures("base")
def test_two_nodes_end_as_one_process_and_a_lost_one_costs_the_work_since_a_checkpoint(site: Site, here: Launch) -> None:
    site.submit("nodes", *CELL, *TWO, "safety_tune.seed=51", "deepspeed=zero2")
    (job,) = site.jobs("nodes", "safety_tune")
    until(lambda: site.trains("nodes", job), "it trains")
    first, second = nodes()
    assert [len(workers_of(node)) for node in (first, second)] == [1, 1]
    lose(second)  # the first node's script is left to see it
    until(lambda: len(notes(site, "nodes")) > 1, "the loss is noticed")
    give_back_lost_nodes()
    site.wait("nodes")
    first_start, seen, *last = notes(site, "nodes")
    assert (first_start, last) == (("start", 0, ""), [("start", 1, ""), ("end", 1, "")])
    # Whoever is first: the script, which asks the nodes once its own processes have ended, or Slurm, whose patience ends.
    assert seen in (("requeue", 0, f"loss of {second}"), ("end", 0, ""))
    made = read_json(site.training("nodes") / "manifest.json")
    assert (made["execution"]["num_processes"], made["execution"]["num_nodes"]) == (2, 2)
    (phase,) = made["facts"]["phases"].values()
    assert 0 < phase["resumed_from_step"] < 300

    one = here.train(*CELL, "safety_tune.seed=51", "sweep=one_node")
    assert one.returncode == 0, one.stderr
    alone = load_file(here.outputs / "store" / "safety_tune" / site.training("nodes").name / "model.safetensors")
    both = load_file(site.training("nodes") / "model.safetensors")
    assert alone.keys() == both.keys()
    assert max(float(abs(alone[name] - both[name]).max()) for name in alone) < 2e-5


@pytest.mark.usefixtures("base")
def test_the_loss_of_a_jobs_only_node_is_seen_by_slurm(site: Site) -> None:
    second = nodes()[1]
    site.submit("alone", *CELL, "safety_tune.seed=52", f"{WHERE}.partition=two", f"+{WHERE}.sbatch.nodelist={second}")
    (job,) = site.jobs("alone", "safety_tune")
    until(lambda: site.trains("alone", job), "it trains")
    lose(second)
    until(lambda: said("squeue", "--noheader", f"--jobs={job}", "--format=%T").split() == ["PENDING"], "Slurm requeues it")
    give_back_lost_nodes()
    site.wait("alone")
    assert notes(site, "alone") == [("start", 0, ""), ("start", 1, ""), ("end", 1, "")]
    (phase,) = read_json(site.training("alone") / "manifest.json")["facts"]["phases"].values()
    assert 0 < phase["resumed_from_step"] < 300


@pytest.mark.usefixtures("base")
def test_a_rank_that_dies_on_one_node_ends_the_others_that_would_wait_for_it(site: Site) -> None:
    site.submit("rank", *CELL, *TWO, "safety_tune.seed=53")
    (job,) = site.jobs("rank", "safety_tune")
    until(lambda: site.trains("rank", job), "it trains")
    (waiting,), (dies,) = (workers_of(node) for node in nodes())
    os.kill(waiting, signal.SIGSTOP)  # as one that is waiting on a GPU
    os.kill(dies, signal.SIGKILL)
    site.wait("rank")
    assert [event for event, *_ in notes(site, "rank")] == ["start", "end"]
    shown = site.status("rank")
    assert shown.returncode == 1
    assert "FAILED safety_tune tiny › tiny › tiny_sft: " in shown.stdout
    assert "GLHF" not in shown.stdout  # whatever the survivor had time to say, it is in our words
