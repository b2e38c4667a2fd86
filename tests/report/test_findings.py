"""docs/findings.md: read back from the store, verdicts and figures from the records alone, and honest about what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.report.study import ADAPTED, BASE, MERGED, TUNED, Rates, changed
from tests.report.sweeps import COUNTED
from vlsafe.errors import ConfigError, StoreError
from vlsafe.files import read_json, write_json
from vlsafe.plan import Evaluation, make_plan
from vlsafe.report.findings.__main__ import main
from vlsafe.report.findings.study import Study, judge, read
from vlsafe.store import Store
from vlsafe.sweep import open_sweep, save_record

Grid = Callable[..., Any]
N = 40
RATES: dict[str, Rates] = {
    "unaligned": changed(BASE, text_safety=1.0),
    "base": BASE,
    "adapted": ADAPTED,
    "tuned": TUNED,
    "merged": MERGED,
}


def ran(grid: Grid, outputs: Path, name: str, overrides: tuple[str, ...], rates: dict[str, Rates], lost: str = "") -> None:
    """A finished sweep in a store, whose models have these rates; what the role `lost` needs has failed."""
    folder = outputs / "sweeps" / name
    swept = [o.partition("=")[0] for o in overrides if "," in o]
    sweep = open_sweep(folder, name, grid(*overrides), swept)
    save_record(sweep)
    plan, store = make_plan(sweep.cells), Store(outputs / "store")
    asked: dict[str, Evaluation] = {e.stage: e for cell in plan.cells for e in cell.evaluations}
    states = {}
    for id, stage in plan.stages.items():
        path = store.path(stage.kind, stage.key)
        role = asked[id].role if id in asked else ""
        states[id] = "failed" if role and role == lost else "done"
        if states[id] == "failed" or path.exists():
            continue
        path.mkdir(parents=True)
        write_json(path / "manifest.json", {"key": stage.key, "version": 1, "facts": {}, "files": {}, "execution": {}})
        if id in asked:
            hit, miss = COUNTED[asked[id].axis]
            share = rates[role][asked[id].axis]
            assert isinstance(share, float)
            rows = [hit] * round(share * N) + [miss] * (N - round(share * N))
            lines = (json.dumps({"id": str(i), "label": label}) + "\n" for i, label in enumerate(rows))
            (path / "labels.jsonl").write_text("".join(lines))
    stages = [{"stage": s.kind, "key": s.key, "state": states[id]} for id, s in plan.stages.items()]
    write_json(folder / "plan.json", {"stages": stages})


UNHARMED = changed(ADAPTED, text_safety=0.2)
MAIN = ("seed=0,1", "safety_tune=none,sft", "merge=none,linear")
CONTROL = ("seed=0,1", "safety_tune=none", "model.world.seed=1")


def two_worlds(grid: Grid, outputs: Path, lost: str = "", control: Rates = UNHARMED) -> None:
    ran(grid, outputs, "findings", MAIN, RATES, lost)
    ran(grid, outputs, "findings_control", CONTROL, {**RATES, "adapted": control})


def studied(outputs: Path) -> Study:
    store = outputs / "store"
    return judge(read("findings", outputs, store), read("findings_control", outputs, store))


def written(outputs: Path, folder: Path) -> str:
    names = ["findings", "findings_control"]
    assert main([*names, "--outputs", str(outputs), "--write", str(folder / "findings.md")]) == 0
    return (folder / "findings.md").read_text()


def test_the_page_has_a_verdict_for_each_claim_with_figures_and_intervals(grid: Grid, tmp_path: Path) -> None:
    two_worlds(grid, tmp_path)
    study, page = studied(tmp_path), written(tmp_path, tmp_path / "docs")
    assert {c.name: c.verdict for c in (*study.claims, *study.control_claims)} == {
        "finding_1/llava": "supported",
        "finding_2a/llava/sft": "supported",
        "finding_2b/llava/sft": "supported",
        "finding_2c/llava/sft": "supported",
        "finding_5/llava/sft": "supported",
        "control/llava": "supported",
        "control_helpfulness/llava": "supported",
    }
    for claim in (*study.claims, *study.control_claims):
        assert claim.question in page
        for e in claim.evidence:
            assert e.reference is not None
            assert f"{e.reference.value:.2f} [{e.reference.low:.2f}, {e.reference.high:.2f}], n={e.reference.n}" in page
    assert page.count("**✅ supported**") == 7
    for said in (
        "python launch/train.py +experiment=findings`", "seeds 0, 1", "model.world.seed 1 (main: 0)", "Not judged",
        f"| mw\\_direct | text safety | {N} |", "nearest is linear",
    ):  # fmt: skip
        assert said in page


def test_figures_lie_beside_the_page_are_linked_and_are_the_same_every_time(grid: Grid, tmp_path: Path) -> None:
    two_worlds(grid, tmp_path)
    page = written(tmp_path, tmp_path / "docs")
    linked = re.findall(r"!\[[^\]]+\]\((figures/[\w.]+)\)", page)
    assert sorted(linked) == [f"figures/{name}.svg" for name in ("control", "finding_1", "finding_2", "finding_5")]
    written(tmp_path, tmp_path / "again")
    for name in linked:
        text = (tmp_path / "docs" / name).read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert text == (tmp_path / "again" / name).read_text()
        assert not re.search(r'(href|src)="(?!#)', text)  # nothing is loaded from elsewhere


def test_other_records_make_another_page(grid: Grid, tmp_path: Path) -> None:
    two_worlds(grid, tmp_path, control=changed(ADAPTED, helpfulness=0.5))
    study, page = studied(tmp_path), written(tmp_path, tmp_path / "docs")
    assert [c.verdict for c in study.control_claims] == ["not supported", "not supported"]
    assert "even in the control world" in page.lower()
    assert page.count("**❌ not supported**") == 2


def test_what_failed_is_named_and_not_judged(grid: Grid, tmp_path: Path) -> None:
    two_worlds(grid, tmp_path, lost="tuned")
    study, page = studied(tmp_path), written(tmp_path, tmp_path / "docs")
    assert {c.verdict for c in study.of(2)} == {"inconclusive"}
    assert [c.verdict for c in study.of(1)] == ["supported"]
    assert "tuned: mw\\_direct failed" in page
    assert "not there (failed or not run): llava+sft+none+seed=0" in page
    assert {p.name for p in (tmp_path / "docs" / "figures").iterdir()} == {"finding_1.svg", "control.svg"}


def test_a_sweep_without_plan_json_is_read_from_the_store_alone(grid: Grid, tmp_path: Path) -> None:
    two_worlds(grid, tmp_path, lost="tuned")
    (tmp_path / "sweeps" / "findings" / "plan.json").unlink()
    assert "mw_direct missing" in studied(tmp_path).of(2)[0].reason


def test_a_sweep_that_is_not_there_and_a_store_that_is_not_there_are_said(grid: Grid, tmp_path: Path) -> None:
    two_worlds(grid, tmp_path)
    with pytest.raises(ConfigError, match=r"no sweep 'other' in .*findings"):
        main(["other", "findings_control", "--outputs", str(tmp_path)])
    with pytest.raises(StoreError, match="--store FOLDER"):
        main(["findings", "findings", "--outputs", str(tmp_path), "--store", str(tmp_path / "no")])


def test_a_sweep_without_a_preset_says_the_command_that_makes_its_cells(grid: Grid, tmp_path: Path) -> None:
    ran(grid, tmp_path, "mine", MAIN, RATES)
    command = read("mine", tmp_path, tmp_path / "store").command
    assert command.startswith("python launch/train.py -m sweep=mine model=microworld")
    again = grid(*command.split()[4:])
    assert len(again) == len(read_json(tmp_path / "sweeps" / "mine" / "sweep.json")["cells"])


def test_an_empty_study_says_so(grid: Grid, tmp_path: Path) -> None:
    for name in ("findings", "findings_control"):
        ran(grid, tmp_path, name, ("adaptation=none", "safety_tune=none"), RATES)
    page = written(tmp_path, tmp_path / "docs")
    assert "no models that a finding is about" in page
    assert page.count("Not judged") == 5
    assert not list((tmp_path / "docs").rglob("*.svg"))
