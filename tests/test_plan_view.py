"""The plan's table and `store.py`: whatever the width, what tells two lines apart stays visible, and a key is never cut."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlsafe.errors import CorruptArtifactError, StoreError
from vlsafe.execute.resources import Needs
from vlsafe.execute.survey import Survey
from vlsafe.files import read_json, write_json
from vlsafe.plan import Plan, make_plan
from vlsafe.report.plan_view import distinct_labels, plan_table
from vlsafe.report.text import keep_end, shorten
from vlsafe.store import Store
from vlsafe.store_commands import list_artifacts, main

Grid = Callable[..., Any]
TWELVE = ("seed=0,1", "safety_tune=none,sft,dpo", "merge=none,ties")
KEY = "a" * 20


def console(width: int, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False)


def printed(plan: Plan, width: int, terminal: bool = True, done: bool = False) -> list[str]:
    to_run = set[str]() if done else set(plan.stages)
    out = console(width, terminal)
    out.print(
        plan_table(plan, Survey(to_run, seconds=dict.fromkeys(to_run, 3.0)), out, dict.fromkeys(plan.stages, Needs(1, 1, 0, 2)))
    )
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


@pytest.fixture
def plan(grid: Grid) -> Plan:
    return make_plan(grid(*TWELVE))


@pytest.mark.parametrize("width", [80, 99, 100, 120, 160])
def test_a_terminal_of_any_width_shows_whole_marks_stages_and_estimates(plan: Plan, width: int) -> None:
    head, *lines = printed(plan, width)
    assert len(lines) == 14 + 14  # models, and their evaluations
    assert max(map(len, [head, *lines])) <= width
    assert ("threads" in head.split()) == (width >= 100)
    assert ("key" in head.split()) == (width >= 120)
    assert {"stage", "what", "cells", "estimate"} <= set(head.split())
    assert {line[0] for line in lines} == {"→"}
    assert {line.split()[1] for line in lines} == {"model", "adaptation", "safety_tune", "merge", "evaluate"}
    assert len(set(lines)) == len(lines)
    for key in (s.key for s in plan.stages.values() if s.kind == "merge"):
        assert (key in "\n".join(lines)) == (width >= 120)


def test_what_exists_has_another_mark(plan: Plan) -> None:
    _, *lines = printed(plan, 80, done=True)
    assert {(line[0], line.split()[-1]) for line in lines} == {("✓", "exists")}


def test_in_a_pipe_nothing_is_cut_or_wrapped(plan: Plan) -> None:
    lines = printed(plan, 20, terminal=False)
    assert len(lines) == 1 + 28
    assert "…" not in "\n".join(lines)
    assert lines == printed(plan, 200)


def test_stages_of_one_label_say_the_settings_in_which_they_differ(plan: Plan, grid: Grid) -> None:
    names = list(distinct_labels(plan).values())
    assert len(set(names)) == len(names)
    assert names[:2] == ["microworld (unaligned)", "microworld"]
    assert {"microworld › llava › sft › ties · seed=0", "microworld › llava › sft › ties · seed=1"} <= set(names)
    dense = make_plan(grid("merge=ties", "merge.density=0.2,0.5", "seed=0,1"))
    merges = [name for id, name in distinct_labels(dense).items() if id.startswith("merge/")]
    assert [name.partition(" · ")[2] for name in merges] == [
        "density=0.2 seed=0", "density=0.2 seed=1", "density=0.5 seed=0", "density=0.5 seed=1",
    ]  # fmt: skip
    seeds = make_plan(grid("model.seed=0,1", "seed=0,1"))
    assert "microworld › llava · adaptation.seed=0 model.seed=1" in distinct_labels(seeds).values()


def test_stages_whose_settings_are_too_long_to_say_are_told_apart_by_their_keys(grid: Grid) -> None:
    plan = make_plan(grid("engine.max_new_tokens=8", "merge=linear", "merge.weights=[0.25,0.75],[0.123456,0.876544]"))
    merges = {id: name for id, name in distinct_labels(plan).items() if id.startswith("merge/")}
    assert {name.rpartition(" · ")[2] for name in merges.values()} == {id.removeprefix("merge/")[:6] for id in merges}


def test_two_judges_of_one_benchmark_are_one_benchmark(grid: Grid) -> None:
    lines = printed(make_plan(grid("judge=exact,keyword")), 160)
    assert [line.split(" · ")[1].split()[0] for line in lines if "evaluate" in line] == ["4", "4", "8", "8"]


def test_names_that_look_like_markup_are_shown_as_they_are(grid: Grid) -> None:
    plan = make_plan(grid())
    for stage in plan.stages.values():
        object.__setattr__(stage, "label", "[/red]\x1b[31m" + stage.label)
    assert any(r"[/red]\x1b[31mmicroworld" in line for line in printed(plan, 160))


def test_shortening_keeps_ends_and_what_differs() -> None:
    assert keep_end("microworld › llava › sft", 16) == "… › llava › sft"
    assert keep_end("microworld", 6) == "…world"
    assert shorten(["one › same end", "two › same end", "short"], 12) == ["one ›…me end", "two ›…me end", "short"]


# launch/store.py


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for key, end in ((KEY, "ties"), ("b" * 20, "linear")):
        scratch = store.scratch("merge", key)
        (scratch / "file.txt").write_text("weights")
        label = f"a long model name › an adaptation › a tuning › [red]{end}"
        store.publish(scratch, "merge", key, {"version": 1, "label": label, "seconds": 61.0})
    return store


def listed(store: Store, width: int, terminal: bool) -> list[str]:
    out = console(width, terminal)
    assert list_artifacts(store, None, out) == 0
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_ls_never_cuts_a_key(store: Store, width: int) -> None:
    _, first, second, total = listed(store, width, terminal=True)
    assert first.startswith(f"merge/{KEY}  ")
    assert first.endswith("7 B  1:01")
    assert first.split()[-4].endswith("ties")
    assert second.split()[-4].endswith("linear")
    assert total == "2 artifacts, 14 B"


def test_ls_cuts_nothing_in_a_pipe(store: Store) -> None:
    assert "a long model name › an adaptation › a tuning › [red]ties" in listed(store, 20, terminal=False)[1]


BROKEN = [
    lambda m: m.write_text(m.read_text()[:100]),
    lambda m: m.write_bytes(b"\xff\xfe"),
    lambda m: write_json(m, {**read_json(m), "files": {"file.txt": 3}}),
    lambda m: write_json(m, {**read_json(m), "files": {"file.txt": {}}}),
]


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_manifest_is_one_line_for_every_command(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    damage(store.path("merge", KEY) / "manifest.json")
    (tmp_path / "sweeps").mkdir()
    options = ["--store", str(store.root), "--sweeps", str(tmp_path / "sweeps")]
    assert f"merge/{KEY}  corrupt: manifest" in listed(store, 80, terminal=True)[1]
    assert main([*options, "verify"]) == 1
    assert "1 of 2 artifacts are as their manifests say" in capsys.readouterr().out
    with pytest.raises(CorruptArtifactError, match="is corrupt"):
        main([*options, "export", KEY, str(tmp_path / "new")])
    assert main([*options, "gc", "--yes"]) == 0
    assert list(store.artifacts()) == []


def test_show_of_a_truncated_manifest_is_an_error_that_names_it(store: Store) -> None:
    BROKEN[0](store.path("merge", KEY) / "manifest.json")
    with pytest.raises(CorruptArtifactError, match=f"merge/{KEY} is corrupt"):
        main(["--store", str(store.root), "show", KEY])


def test_export_to_what_is_no_folder_says_what_to_do(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for target, message in ((file, "is a file: name a folder"), (file / "below", "can't be written .*choose another folder")):
        with pytest.raises(StoreError, match=message):
            main(["--store", str(store.root), "export", KEY, str(target)])
    with pytest.raises(StoreError, match="is not empty: choose another folder"):
        main(["--store", str(store.root), "export", KEY, str(tmp_path)])
    assert file.read_text() == "mine"
    assert main(["--store", str(store.root), "export", KEY, str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "file.txt").read_text() == "weights"
