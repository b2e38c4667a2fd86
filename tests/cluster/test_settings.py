"""The launcher's settings: what a site is asked for, and the mistakes that are named before anything is queued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vlsafe.cluster.launch import check_setup
from vlsafe.cluster.settings import seconds_of, slurm_settings
from vlsafe.errors import ConfigError


def test_a_stage_has_its_own_and_else_the_default() -> None:
    settings = slurm_settings(
        {
            "resources": {
                "default": {"partition": "cpu", "time": "1:00:00", "sbatch": {"account": "lab", "qos": None}},
                "adaptation": {"partition": "gpu", "gpus_per_node": 8, "sbatch": {"qos": "long"}},
                "evaluation": {"gpus_per_node": 1},
            }
        }
    )
    adaptation, judge, merge = settings.of("adaptation"), settings.of("judge"), settings.of("merge")
    assert (adaptation.partition, adaptation.gpus_per_node, adaptation.time) == ("gpu", 8, "1:00:00")
    assert adaptation.sbatch == {"account": "lab", "qos": "long"}
    assert (judge.partition, judge.gpus_per_node) == ("cpu", 1)
    assert (merge.partition, merge.gpus_per_node, merge.sbatch) == ("cpu", None, {"account": "lab", "qos": None})
    assert settings.source("adaptation", "partition") == "hydra.launcher.resources.adaptation.partition"
    assert settings.source("merge", "partition") == "hydra.launcher.resources.default.partition"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"resources": {"adaption": {}}},
            r"hydra\.launcher\.resources\.adaption: unknown setting; did you mean 'adaptation'\?",
        ),
        ({"resources": {"model": {"gpus": 2}}}, r"resources\.model\.gpus: unknown setting"),
        ({"resources": {"model": {"time": "soon"}}}, r"resources\.model\.time=soon: no time that sbatch knows"),
        ({"resources": {"model": {"time": 2}}, "signal_seconds": 120}, r"time=2: a stage is told to stop 120 seconds before"),
        ({"resources": {"model": {"mem": "lots"}}}, r"mem=lots: write it as 32G"),
        ({"resources": {"model": {"sbatch": {"gres": "gpu:2"}}}}, r"sbatch\.gres: set .*model\.gpus_per_node instead"),
        ({"resources": {"model": {"sbatch": {"dependency": "x"}}}}, r"sbatch\.dependency: not one that can be set here"),
        ({"resources": {"model": {"partition": "a\n#SBATCH --uid=0"}}}, r"partition=.*: must be one line of text"),
        ({"resources": {"model": {"sbatch": {"account": "a\nb"}}}}, r"sbatch\.account=.*: must be one line of text"),
        ({"max_submitted": 2}, r"max_submitted=2: must be at least 3"),
        ({"setup": "module load cuda"}, r"setup='module load cuda': must be a list of text"),
        ({"wait": "yes"}, r"wait='yes': must be true or false"),
    ],
)
def test_what_can_not_be_is_named(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slurm_settings(values)


def test_times_are_read_as_sbatch_reads_them() -> None:
    assert [seconds_of(t, "t") for t in (90, "90", "90:30", "1:30:00", "2-12", "2-12:30", "1-00:00:10", "UNLIMITED")] == [
        5400, 5400, 5430, 5400, 216000, 217800, 86410, 0,
    ]  # fmt: skip


def test_set_up_lines_that_bash_can_not_read_are_refused_before_a_job_waits() -> None:
    check_setup(["if true", "then module load cuda; fi", "x=$(date)"])
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.setup: bash can't read it: line 2: .*matching `'"):
        check_setup(["true", "module load 'cuda"])
