"""A training of two ranks (`torchrun` under `srun`), stopped and requeued in mid-training, ends as one process does."""

from __future__ import annotations

import csv
import socket
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import Launch
from tests.slurm.conftest import Site, said, until
from vlsafe.files import read_json

TRAINING = ("safety_tune=tiny_sft", "merge=none", "safety_tune.seed=41", "safety_tune.optimization.steps=300")


def measured(path: Path) -> list[tuple[str, ...]]:
    with (path / "results.csv").open(newline="") as handle:
        return [
            tuple(row[c] for c in ("role", "benchmark", "metric", "value", "n", "key", "status"))
            for row in csv.DictReader(handle)
        ]


@pytest.mark.usefixtures("base")
def test_two_ranks_requeued_in_mid_training_end_as_one_process(site: Site, here: Launch) -> None:
    site.submit("ranks", *TRAINING, "num_processes=2", "deepspeed=zero2")
    (job,) = site.jobs("ranks", "safety_tune")
    until(lambda: site.trains("ranks", job), "it trains")
    said("scancel", "--batch", "--signal=USR1", job)  # what Slurm does before a time limit
    until(lambda: site.trains("ranks", job, restarts=1), "it trains again")
    said("scontrol", "requeue", job)
    site.wait("ranks")
    notes = [(n["event"], n["restarts"], n["why"]) for n in site.notes("ranks", "safety_tune")]
    assert notes == [
        ("start", 0, ""), ("requeue", 0, "time limit"), ("start", 1, ""), ("stopped", 1, ""), ("start", 2, ""), ("end", 2, ""),
    ]  # fmt: skip
    made = read_json(site.training("ranks") / "manifest.json")
    assert (made["execution"]["num_processes"], made["execution"]["deepspeed"]["stage"]) == (2, 2)
    (phase,) = made["facts"]["phases"].values()
    assert 0 < phase["resumed_from_step"] < 300
    assert phase["micro_batch_size"] == 4  # half of the global batch

    one = here.train(*TRAINING, "sweep=one")
    assert one.returncode == 0, one.stderr
    alone = load_file(here.outputs / "store" / "safety_tune" / site.training("ranks").name / "model.safetensors")
    ranks = load_file(site.training("ranks") / "model.safetensors")
    assert alone.keys() == ranks.keys()
    assert max(float(abs(alone[name] - ranks[name]).max()) for name in alone) < 2e-5
    assert measured(site.folder("ranks")) == measured(here.outputs / "sweeps" / "one")


@pytest.mark.usefixtures("base")
def test_a_port_in_use_and_a_set_up_line_that_fails_say_what_to_set(site: Site) -> None:
    cell = ("safety_tune=tiny_sft", "merge=none")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        site.submit("port", *cell, "safety_tune.seed=42", "num_processes=2", f"hydra.launcher.port={port}")
        site.submit("set_up", *cell, "safety_tune.seed=43", "hydra.launcher.setup=[true,'cat no/such/module']")
        for sweep, told in (
            ("port", f"hydra.launcher.port: {port} is in use on"),
            ("set_up", "hydra.launcher.setup: 'cat no/such/module' failed with status 1 on"),
        ):
            site.wait(sweep)
            shown = site.status(sweep)
            assert shown.returncode == 1
            assert f"FAILED safety_tune tiny › tiny › tiny_sft: {told}" in shown.stdout
            assert {s for id, s in site.states(sweep).items() if id.startswith("generate")} >= {"skipped"}
