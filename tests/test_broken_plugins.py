"""A broken plug-in is named with its package, and what to change, in one line before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.plugin_packages import on_path, write_plugin


def component(
    group: str, base: str, body: str = "    pass", name: str = "broken", head: str = "@dataclass(frozen=True)"
) -> str:
    return f'\n@register("{group}", "{name}")\n{head}\nclass Broken({base}):\n{body}\n'


MERGE = "    def merge(self, tensors, base, weights, name): return tensors[0]\n"
ITEMS = "    needs_image: ClassVar[bool] = False\n    def items(self, limit): return []\n"
LABEL = "    def label(self, rows): return ['other' for _ in rows]\n"

BROKEN = {
    "a name of ours": (
        component("merge", "MergeMethod", MERGE, name="ties"),
        "merge=ties is registered twice: by vlsafe.merge.methods.ties.Ties and by bad.Broken; give it another name",
    ),
    "not frozen": (component("judge", "Judge", LABEL, head="@dataclass"), "bad.Broken: a component must be a frozen dataclass"),
    "no dataclass": (component("judge", "Judge", LABEL, head=""), "bad.Broken: a component must be a frozen dataclass"),
    "an unknown group": (component("merges", "MergeMethod", MERGE), "there is no group 'merges'; did you mean 'merge'?"),
    "a name that is a path": (component("judge", "Judge", LABEL, name="../x"), "judge='../x' can't be a name"),
    "another base": (component("merge", "Component", MERGE), "must extend vlsafe.merge.base.MergeMethod"),
    "no merge": (component("merge", "MergeMethod"), "has no 'merge' of its own"),
    "no label": (component("judge", "Judge"), "has no 'label' of its own"),
    "no axis": (component("benchmark", "Benchmark", ITEMS), "has no 'axis' of its own"),
    "a wrong axis": (
        component("benchmark", "Benchmark", "    axis: ClassVar[str] = 'text_safty'\n" + ITEMS),
        "axis=text_safty: did you mean 'text_safety'?",
    ),
    "a version that is none": (
        component("judge", "Judge", "    version: ClassVar[Any] = '2'\n" + LABEL), "version='2': must be a whole number"
    ),
    "a list": (component("judge", "Judge", "    words: list[str]\n" + LABEL), "no config can give 'words' its type, list[str]"),
    "a path": (component("judge", "Judge", "    file: Path\n" + LABEL), "no config can give 'file' its type, Path"),
    "an unreadable type": (
        component("judge", "Judge", "    file: 'Missing'\n" + LABEL), "its settings' types can't be read (name 'Missing'"
    ),
    "a default of another type": (
        component("judge", "Judge", "    share: Fraction = 1.5\n" + LABEL), "the default share=1.5: must be between 0 and 1"
    ),
    "a setting called name": (
        component("judge", "Judge", "    name: str = 'x'\n" + LABEL), "a setting can't be called 'name'"
    ),
    "an import that fails": ("import no_such_module_anywhere\n", "can't be imported: ModuleNotFoundError(\"No module named"),
    "an import that slows": ("import torch\n", "imports torch when it is loaded"),
    "its own error": ("raise SystemError('its\\nown')\n", "can't be imported: SystemError"),
}  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", on_path(tmp_path / "site"))
    return tmp_path / "site"


def refused(launch: Launch, *messages: str) -> None:
    done = launch.run("train.py", f"outputs={launch.outputs}", "merge=ties")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: plug-in 'bad' of package vlsafe-bad")
    assert done.stderr.count("\n") == 1
    for message in messages:
        assert message in done.stderr
    assert done.stdout == ""
    assert not launch.outputs.exists()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_schema(launch: Launch, site: Path, case: str) -> None:
    code, message = BROKEN[case]
    write_plugin(site, "bad", code)
    refused(launch, message)


@pytest.mark.parametrize("point", ["bad:nothing", "bad.nowhere", "not a module"])
def test_an_entry_point_that_names_nothing(launch: Launch, site: Path, point: str) -> None:
    write_plugin(site, "bad", point=point)
    refused(launch, "can't be imported", "mend or uninstall vlsafe-bad")


def test_a_name_of_another_plug_in(launch: Launch, site: Path) -> None:
    for name in ("able", "bad"):
        write_plugin(site, name, component("judge", "Judge", LABEL, name="same"))
    refused(launch, "judge=same is registered twice: by able.Broken of package vlsafe-able and by bad.Broken")


CONFIGS = {
    "merge/ties": ("name: ties\n", "conf/merge/ties.yaml is also a config of vlsafe: give it another name"),
    "config": ("seed: 1\n", "conf/config.yaml is also a config of vlsafe"),
    "other": ("seed: 1\n", "conf/other.yaml is in no group: put it into conf/GROUP/"),
    "merges/x": ("name: ties\n", "conf/merges/x.yaml: there is no group 'merges'; did you mean 'merge'?"),
    "hydra/launcher/x": ("a: 1\n", "there is no group 'hydra/launcher'"),
    "judge/x": ("name: [\n", "conf/judge/x.yaml can't be read: "),
    "judge/y": ("- name\n", "conf/judge/y.yaml is no mapping of settings"),
    "experiment/z": (
        '# @package _global_\nhydra: {callbacks: {a: {"\\x5ftarget_": os.system}}}\n',
        "conf/experiment/z.yaml holds '_target_': configs run no code",
    ),
    "experiment/dotted": ("# @package _global_\nhydra.callbacks.a._target_: os.system\n", "holds '_target_'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_can_not_be(launch: Launch, site: Path, name: str) -> None:
    text, message = CONFIGS[name]
    write_plugin(site, "bad", configs={f"{name}.yaml": text})
    refused(launch, message)


def test_a_config_that_two_plug_ins_ship(launch: Launch, site: Path) -> None:
    for name in ("able", "bad"):
        write_plugin(site, name, configs={"judge/same.yaml": "name: exact\n"})
    refused(launch, "conf/judge/same.yaml is also a config of package vlsafe-able")


def test_help_and_the_store_work_all_the_same(launch: Launch, site: Path) -> None:
    write_plugin(site, "bad", "raise RuntimeError", {"merge/ties.yaml": "name: ties\n"})
    shown = launch.run("train.py", "--help")
    assert shown.returncode == 0
    assert "merge: " in shown.stdout
    assert shown.stderr.startswith("error: plug-in 'bad' of package vlsafe-bad: conf/merge/ties.yaml is also")
    assert shown.stderr.count("\n") == 1
    (launch.outputs / "store").mkdir(parents=True)
    listed = launch.run("store.py", "ls")
    assert (listed.returncode, listed.stderr) == (0, "")
