"""How a grid is composed: rules that leave cells out, and each choice of options composed once, to what Hydra would compose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ROOT
from vlsafe.errors import ConfigError
from vlsafe.hydra_plugins import OncePerChoice, register_plugins, without

Grid = Callable[..., Any]
JOBS = [
    ["safety_tune=sft", "safety_tune.order=after"],
    ["safety_tune=sft", "+safety_tune.order=joint"],
    ["safety_tune=dpo", "+safety_tune.order=joint"],
]


def test_a_rule_leaves_out_what_has_one_of_the_values_of_each_setting() -> None:
    assert without(JOBS, []) == JOBS
    assert without(JOBS, ["safety_tune=dpo,kto safety_tune.order=joint"]) == JOBS[:2]
    assert without(JOBS, ["safety_tune.order=joint"]) == JOBS[:1]
    assert without([["merge.t=0.050"], ["merge.t=0.5"], ["merge.t=null"]], ["merge.t=0.05"]) == [
        ["merge.t=0.5"],
        ["merge.t=null"],
    ]


def test_a_rule_about_what_no_override_sets_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no override sets safety_tun; did you mean 'safety_tune'"):
        without(JOBS, ["safety_tun=sft"])


@pytest.mark.parametrize("rule", ["", "safety_tune", "safety_tune="])
def test_a_rule_that_can_not_be_read_is_an_error(rule: str) -> None:
    with pytest.raises(ConfigError, match="is no rule"):
        without(JOBS, [rule])


def test_an_empty_grid_is_an_error() -> None:
    with pytest.raises(ConfigError, match="leaves no cell"):
        without(JOBS, ["safety_tune=sft,dpo"])


def test_a_cell_is_composed_to_what_hydra_composes() -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    register_plugins()
    jobs = [
        ["merge=ties", "merge.density=0.2", "seed=3"],
        ["merge.density=0.9", "merge=ties"],
        ["+experiment=seeds", "merge=slerp", "merge.t=0.3", "model.seed=4"],
        ["+experiment=seeds", "seed=1", "merge=slerp", "eval.benchmarks=[mw_direct]"],
        ["data=replay", "+data.extra={a: 1}", "safety_tune=sft_lora", "safety_tune.lora.rank=4"],
    ]
    with hydra.initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        compose = OncePerChoice(loader, master)
        for job in [*jobs, *reversed(jobs)]:
            ours, theirs = compose(job), loader.load_sweep_config(master, job)
            assert ours.hydra.runtime.choices == theirs.hydra.runtime.choices
            for config in (ours, theirs):
                OmegaConf.set_struct(config, False)
                del config["hydra"]
            assert OmegaConf.to_container(ours, resolve=True) == OmegaConf.to_container(theirs, resolve=True)
    assert len(compose.composed) < len(jobs)
