"""A third party's package, really installed: its components are swept together with ours, and this tree is not touched."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.plugin_packages import EXAMPLE, install_example, on_path, write_plugin

SMALL = """# @package _global_
model:
  {width: 32, layers: 2, heads: 2, feed_forward: 64, tower_width: 32, tower_layers: 1, tower_heads: 2,
   pretraining: {steps: 20, batch_size: 16}, alignment: {steps: 10, batch_size: 16}, tower: {steps: 8, batch_size: 8}}
adaptation: {projector: {steps: 6, batch_size: 8, warmup_steps: 2}, instruct: {steps: 6, batch_size: 8, warmup_steps: 2}}
safety_tune: {optimization: {steps: 5, batch_size: 8, warmup_steps: 1}}
eval: {limit: 9}
engine: {max_new_tokens: 6}
threads: 1
"""
GRID = ("model=pruned", "safety_tune=sft,text_sft", "merge=ties,breadcrumbs", "judge=exact,overlap", "eval=wording")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The example's folder of installed packages, on the path of every process that a test starts."""
    site = install_example(tmp_path_factory.mktemp("example"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", on_path(site))
        yield site


@pytest.fixture(scope="module")
def swept(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """A small sweep of its components and ours, by the command that its README shows, made small by a preset."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "small.yaml").write_text(SMALL)
    launch = Launch(folder / "outputs")
    done = launch.run("train.py", *small(launch), *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    return launch


def small(launch: Launch) -> tuple[str, ...]:
    """A preset of the user's own lies on a search path of his own, beside the plug-in's."""
    conf = launch.outputs.parent / "conf"
    return "-m", f"hydra.searchpath=[file://{conf}]", "+experiment=small", f"outputs={launch.outputs}", "sweep=example"


def test_its_components_are_swept_together_with_ours(swept: Launch) -> None:
    with (swept.outputs / "sweeps" / "example" / "results.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["status"] for row in rows} == {"done"}
    merged = [row for row in rows if row["role"] == "merged"]
    assert {(row["model"], row["safety_tune"], row["merge"], row["judge"]) for row in merged} == {
        ("pruned", tuning, merge, judge)
        for tuning in ("sft", "text_sft")
        for merge in ("ties", "breadcrumbs")
        for judge in ("exact", "overlap")
    }
    assert {row["benchmark"] for row in rows} == {"mw_direct", "mw_wrapped", "mw_borderline_text", "wrapped_borderline"}
    borderline = [row for row in rows if row["benchmark"] == "wrapped_borderline"]
    assert {(row["axis"], row["metric"], row["n"]) for row in borderline} == {("over_refusal", "refusal_rate", "9")}
    # unaligned, base, adapted, two tuned and four merged models, and two judges
    assert len({row["key"] for row in borderline}) == (1 + 1 + 1 + 2 + 4) * 2


def test_two_judges_share_the_responses_and_the_plan_shows_it(swept: Launch) -> None:
    shown = swept.run("plan.py", *small(swept)[1:], *GRID)
    assert shown.returncode == 0, shown.stderr
    assert "8 cells: 2 model, 1 adaptation, 2 safety_tune, 4 merge, 36 generate, 72 judge" in shown.stdout
    assert "0 to run" in shown.stdout or "nothing to run" in shown.stdout
    assert "pruned › llava › text_sft › breadcrumbs" in shown.stdout


def test_a_sweep_whose_package_is_gone_says_so(swept: Launch, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [entry for entry in os.environ["PYTHONPATH"].split(os.pathsep) if entry != str(installed)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(kept))
    done = swept.run("plan.py", *small(swept)[1:], "merge=ties")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "sweep 'example' has a cell that can't be made here (" in done.stderr
    assert "install the package that brings it, or choose another name with sweep=NAME" in done.stderr


def test_a_manifest_names_the_package(swept: Launch) -> None:
    paths = list(swept.outputs.glob("store/model/*/manifest.json"))
    assert len(paths) == 2
    assert all('"vlsafe-example": "0.1.0"' in path.read_text() for path in paths)


def test_help_lists_its_options_without_a_search_path(installed: Path, launch: Launch) -> None:
    shown = launch.run("train.py", "--help")
    assert shown.returncode == 0
    options = dict(line.split(": ", 1) for line in shown.stdout.splitlines() if line.count(": ") == 1)
    for group, option in (("merge", "breadcrumbs"), ("safety_tune", "text_sft"), ("judge", "overlap"), ("model", "pruned")):
        assert option in options[group].split(", ")
    assert "ties" in options["merge"].split(", ")


def test_its_settings_are_checked_like_ours(installed: Path, launch: Launch) -> None:
    for overrides, message in (
        (("merge=breadcrumbs", "merge.gama=0.1"), "merge.gama: unknown setting; did you mean 'gamma'?"),
        (("merge=breadcrumbs", "merge.gamma=2"), "merge.gamma=2: must be between 0 and 1"),
        (("merge=breadcrumbs", "merge.gamma=0.2"), "it is more than all"),
        (("merge=breadcrums",), "merge=breadcrums: no such option; did you mean 'breadcrumbs'?"),
        (("safety_tune=text_sft", "safety_tune.order=joint"), "text_sft is a stage of its own"),
    ):
        done = launch.run("plan.py", *overrides)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_the_path_of_a_plug_in_s_own_configs_may_still_be_given(installed: Path, launch: Launch) -> None:
    shown = launch.run("plan.py", f"hydra.searchpath=[file://{installed / 'vlsafe_example' / 'conf'}]", "merge=breadcrumbs")
    assert shown.returncode == 0, shown.stderr


def test_it_brings_nothing_heavy_to_help_and_plans(installed: Path, tmp_path: Path) -> None:
    code = "import sys, vlsafe.registry as r; r.load(); print('torch' in sys.modules, 'breadcrumbs' in r.names('merge'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    tests = installed.parent / "source" / "tests"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_every_component_has_a_module_and_a_test() -> None:
    modules = {p.stem for p in (EXAMPLE / "vlsafe_example").glob("*.py")} - {"__init__"}
    assert {f"test_{module}" for module in modules} == {p.stem for p in (EXAMPLE / "tests").glob("test_*.py")}


def test_a_component_without_a_config_is_said_to_lack_one(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = '@register("judge", "lonely")\n@dataclass(frozen=True)\nclass Lonely(Judge):\n    def label(self, rows): return []\n'
    write_plugin(tmp_path / "site", "alone", code)
    monkeypatch.setenv("PYTHONPATH", on_path(tmp_path / "site"))
    done = launch.run("plan.py", "judge=lonely")
    assert done.returncode == 2
    assert "judge=lonely: package vlsafe-alone registers it, but ships no conf/judge/lonely.yaml" in done.stderr


def test_a_benchmark_of_no_world_is_asked_beside_those_of_the_microworld(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
@register("benchmark", "plain")
@dataclass(frozen=True)
class Plain(Benchmark):
    axis: ClassVar[str] = "helpfulness"
    needs_image: ClassVar[bool] = False
    def items(self, limit): return []
"""
    write_plugin(tmp_path / "site", "plain_benchmark", code)
    monkeypatch.setenv("PYTHONPATH", on_path(tmp_path / "site"))
    shown = launch.run("plan.py", "eval.benchmarks=[mw_direct,plain]")
    assert shown.returncode == 0, shown.stderr
    assert "2 benchmarks" in shown.stdout


def test_a_config_on_a_search_path_that_would_not_be_read_is_an_error(installed: Path, launch: Launch, tmp_path: Path) -> None:
    for name, owner in (("ties", "vlsafe"), ("breadcrumbs", "package vlsafe-example")):
        folder = tmp_path / name / "merge"
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text("name: linear\n")
        done = launch.run("plan.py", f"hydra.searchpath=[file://{folder.parent}]", f"merge={name}")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{folder}/{name}.yaml is also a config of {owner}, which is found first" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# @package _global_\nhydra: {callbacks: {a: {_target_: builtins.exit}}}\n", "holds '_target_': configs run no code"),
        ("name: [\n", "can't be read: "),
        ("\x80", "can't be read: "),
    ],
)
def test_a_config_on_a_search_path_runs_no_code_and_can_be_read(
    launch: Launch, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text, "latin-1")
    done = launch.run("plan.py", f"hydra.searchpath=[file://{tmp_path}/conf]", "+experiment=mine")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"error: hydra.searchpath: {tmp_path}/conf/experiment/mine.yaml {message}" in done.stderr


def test_a_search_path_that_is_not_there(launch: Launch) -> None:
    done = launch.run("plan.py", "hydra.searchpath=[file:///nowhere]")
    assert (done.returncode, done.stderr) == (2, "error: hydra.searchpath: there is no folder /nowhere\n")
