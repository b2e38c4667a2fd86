"""What a user gets wrong is said in one line, before anything runs, with the nearest thing that exists."""

from __future__ import annotations

import pytest

from tests.conftest import Launch


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("merge=tiess",), "merge=tiess: no such option; did you mean 'ties'?"),
        (("merge=ties,tiess",), "merge=tiess: no such option; did you mean 'ties'?"),
        (("merge=ties", "merge.densty=0.2"), "merge.densty: unknown setting; did you mean 'density'?"),
        (("merge=ties", "+merge.densty=0.2"), "merge.densty: unknown setting; did you mean 'density'?"),
        (("merge=ties,linear", "merge.densty=0.2,0.3"), "merge.densty: unknown setting; did you mean 'density'?"),
        (
            ("merge=linear", "merge.density=0.2"),
            "merge.density: the chosen merge has no setting 'density' (it belongs to dare_linear, dare_ties, ties)",
        ),
        (("merge=ties", "merge.density=1.5"), "merge.density=1.5: must be between 0 and 1"),
        (("merge=ties", "merge.density=high"), "merge.density='high': must be a number, not str"),
        (("safety_tune=none", "merge=ties", "merge.models=[base,tuned]"), "this cell has no role 'tuned'"),
        (("merge=",), "merge=: no such option"),
        (("safety_tune=tiny_sft,,none",), "Error parsing override 'safety_tune=tiny_sft,,none'"),
        (("+merge=ties",), "+merge: there is such a group already; write it without the plus"),
        (("+merge.ties.density=1",), "merge.ties: unknown setting"),
        (("+nonsense=1",), "nonsense: unknown setting"),
        (("seeds=1",), "seeds: unknown setting; did you mean 'seed'?"),
        (("seed=one",), "seed='one': must be a whole number, not str"),
        (("eval.benchmarks=[]",), "eval.benchmarks=[]: must name at least one benchmark"),
        (("eval.benchmarks=[mw_dirct]",), "no such benchmark; did you mean 'mw_direct'?"),
        (("data.world.seed=5",), "data.world"),
        (("safety_tune=tiny_dpo", "safety_tune.order=joint"), "safety_tune.order=joint: preference pairs can't be mixed"),
        (("sweep=../elsewhere",), "sweep=../elsewhere: a sweep's name has letters"),
        (("sweep=one,two",), "sweep: one command has one value of it"),
        (("threads=1,2",), "threads: one command has one value of it"),
        (("merge=linear", "merge.scope=layers.7"), "merge.scope=layers.7: the model has layers 0 to 1"),
        (("adaptation=none", "safety_tune.trainable=[projector]"), "only the language model can be tuned"),
        (("safety_tune.order=joint", "safety_tune.trainable=[language_model]"), "safety_tune.trainable"),
        (("outputs=/proc/nowhere",), "/proc/nowhere"),
        (("store=/proc/nowhere",), "store=/proc/nowhere can't be written"),
    ],
)
def test_one_line_and_no_traceback(launch: Launch, overrides: tuple[str, ...], message: str) -> None:
    done = launch.train(*overrides)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (launch.outputs / "store").exists()


def test_a_preset_needs_a_plus(launch: Launch) -> None:
    done = launch.run("train.py", "experiment=demo", f"outputs={launch.outputs}")
    assert done.returncode == 2
    assert done.stderr == "error: experiment: write +experiment=NAME, with a plus\n"


def test_a_store_command_without_a_store_says_so(launch: Launch) -> None:
    done = launch.run("store.py", "ls")
    assert done.returncode == 2
    assert "no store at" in done.stderr
    assert "set --store FOLDER" in done.stderr
