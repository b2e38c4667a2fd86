"""Means over seeds: of the right records, by the right formula, and never without saying how many seeds they are of."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.report.sweeps import BENCHMARKS, labels, share, sweep
from vlsafe.report import markdown
from vlsafe.report.aggregate import groups, over_seeds, several, write_over_seeds
from vlsafe.report.grid import Line
from vlsafe.report.layout import arrange
from vlsafe.report.results import CellResult, Status, score, write_csv
from vlsafe.report.table import SCREEN, render

SEEDS = (0, 1, 2)


def final(results: list[CellResult], **choices: object) -> list[CellResult]:
    return [r for r in results if r.final and all(r.choices[name] == value for name, value in choices.items())]


def failing(seed: int, status: Status = "failed") -> Callable[[CellResult], CellResult]:
    """Of `seed`, the merged models of sft are not there."""
    return lambda r: (
        replace(r, status=status, labels=None)
        if r.role == "merged" and r.choices["safety_tune"] == "sft" and r.choices["seed"] == seed
        else r
    )


def mean_lines(results: list[CellResult]) -> list[Line]:
    return [line for line in arrange(score(results)).lines if line.kind == "mean"]


# The figures


def test_mean_deviation_range_and_items_are_those_of_the_seeds(tmp_path: Path) -> None:
    results = [r for r in final(sweep(tmp_path, seeds=SEEDS), safety_tune="sft", merge="ties") if r.benchmark == "mw_direct"]
    values = [share(r.key) / 100 for r in results]
    total = over_seeds(score(results))
    assert (total.mean, total.sd) == (pytest.approx(statistics.fmean(values)), pytest.approx(statistics.stdev(values)))
    assert (total.least, total.most, total.n, total.seeds, total.asked) == (min(values), max(values), 300, 3, 3)
    assert total.incomplete == ""


def test_one_seed_has_a_mean_and_no_deviation_and_no_seed_has_neither(tmp_path: Path) -> None:
    (one,) = (r for r in final(sweep(tmp_path), safety_tune="sft", merge="ties") if r.benchmark == "mw_direct")
    assert (over_seeds(score([one])).mean, over_seeds(score([one])).sd) == (share(one.key) / 100, None)
    none = over_seeds(score([replace(one, status="failed", labels=None), replace(one, key="b", status="missing", labels=None)]))
    assert (none.mean, none.sd, none.seeds, none.asked, none.status, none.incomplete) == (None, None, 0, 2, "failed", "0 of 2")
    with pytest.raises(ValueError, match="no record"):
        over_seeds([])


def test_models_that_differ_in_anything_but_seeds_are_kept_apart(tmp_path: Path) -> None:
    results = sweep(
        tmp_path, seeds=SEEDS, swept={"model.seed": [5, 6], "merge.density": [0.2, 0.5], "model.world.seed": [0, 1]}
    )
    results = [replace(r, key=f"{r.key}{dict(r.swept)}{r.choices['seed']}") for r in results]
    merged = [g for g in groups(score(results)) if g[0].result.role == "merged" and g[0].result.benchmark == "mw_direct"]
    assert {len({s.result.key for s in g}) for g in merged} == {6}  # three seeds of two models' seeds
    assert len(merged) == 2 * 2 * 2  # tunings, densities and worlds, each by itself
    for group in merged:
        assert len({(s.result.swept["merge.density"], s.result.swept["model.world.seed"]) for s in group}) == 1


def test_a_model_that_all_seeds_share_counts_once(tmp_path: Path) -> None:
    base = [r for r in sweep(tmp_path, seeds=SEEDS) if r.role == "base" and r.benchmark == "mw_direct"]
    assert len(base) == 12
    assert (over_seeds(score(base)).asked, over_seeds(score(base)).n) == (1, 100)


def test_judges_and_checkpoints_are_not_mixed(tmp_path: Path) -> None:
    results = sweep(tmp_path, seeds=SEEDS, judges=("exact", "keyword"), benchmarks=BENCHMARKS[:1])
    steps = [replace(r, step=10, key=r.key + "at 10") for r in results]
    for group in groups(score([*results, *steps])):
        assert len({(s.result.judge, s.result.step, s.result.role) for s in group}) == 1


# The table


def test_each_cell_has_a_line_with_its_mean_then_one_for_each_seed(tmp_path: Path) -> None:
    lines = [line for line in arrange(score(sweep(tmp_path, seeds=SEEDS, tunes=("sft",)))).lines if line.is_cell]
    assert [(line.kind, line.labels) for line in lines] == [
        ("mean", ("tuned", "none", "3 seeds")),
        *(("seed", ("tuned", "none", str(seed))) for seed in SEEDS),
        ("mean", ("merged", "ties", "3 seeds")),
        *(("seed", ("merged", "ties", str(seed))) for seed in SEEDS),
    ]


def test_reference_rows_have_means_too_and_those_that_seeds_share_stand_once(tmp_path: Path) -> None:
    lines = [line for line in arrange(score(sweep(tmp_path, seeds=SEEDS, tunes=("sft",)))).lines if not line.is_cell]
    assert [(line.kind, line.labels[0], line.labels[-1]) for line in lines] == [
        ("row", "base", ""), ("mean", "adapted", "3 seeds"), *(("seed", "adapted", str(seed)) for seed in SEEDS),
    ]  # fmt: skip


def test_one_seed_looks_as_ever(tmp_path: Path) -> None:
    grid = arrange(score(sweep(tmp_path)))
    assert {line.kind for line in grid.lines} == {"row"}
    assert "±" not in markdown.render(grid) + "".join(line.plain for line in render(grid, 80))


def test_the_best_goes_by_the_mean_and_no_single_seed_is_marked(tmp_path: Path) -> None:
    shares = {("linear", 0): 10, ("linear", 1): 50, ("ties", 0): 20, ("ties", 1): 22}
    results = [
        replace(r, labels=labels(tmp_path / f"{r.axis}{k}", r.axis, k)) if r.role == "merged" else r
        for r in sweep(tmp_path, seeds=(0, 1), tunes=("sft",), merges=("linear", "ties"))
        for k in [shares[r.choices["merge"], r.choices["seed"]]]
    ]
    grid = arrange(score(results))
    best = {
        (line.labels[1:], c.metric)
        for line in grid.lines
        for e, c in zip(line.entries, grid.columns, strict=True)
        if e and e.best
    }
    assert best == {
        (("ties", "2 seeds"), "asr"), (("ties", "2 seeds"), "refusal_rate"), (("linear", "2 seeds"), "accuracy"),
    }  # fmt: skip
    assert "* best of the cells, by the mean" in grid.notes


@pytest.mark.parametrize("status", ["failed", "skipped", "missing"])
def test_a_mean_of_fewer_seeds_than_asked_for_says_so(tmp_path: Path, status: Status) -> None:
    results = [failing(1, status)(r) for r in sweep(tmp_path, seeds=SEEDS)]
    (line,) = (line for line in mean_lines(results) if line.labels[:3] == ("merged", "sft", "ties"))
    assert line.labels[3] == "2 of 3"
    expected = {r.benchmark: share(r.key) / 100 for r in final(results, safety_tune="sft", merge="ties", seed=0)}
    assert line.entries[0] is not None
    others = [share(r.key) / 100 for r in final(results, safety_tune="sft", merge="ties", seed=2) if r.benchmark == "mw_direct"]
    assert line.entries[0].metric.value == pytest.approx((expected["mw_direct"] + others[0]) / 2)
    page = markdown.render(arrange(score(results)))
    assert re.search(r"\| \*\*2 of 3\*\* \| [^|]*\(2 of 3\)", page)
    for width in (80, 160):
        assert any("2 of 3" in line.plain for line in render(arrange(score(results)), width))


def test_a_cell_of_which_no_seed_is_there_has_a_state_and_no_figure(tmp_path: Path) -> None:
    results = [failing(0)(failing(1)(r)) for r in sweep(tmp_path, seeds=(0, 1))]
    (line,) = (line for line in mean_lines(results) if line.labels[:3] == ("merged", "sft", "ties"))
    assert line.labels[3] == "0 of 2"
    assert {(e.status, e.metric.value, e.best) for e in line.entries if e} == {("failed", None, False)}


def test_where_some_benchmarks_lack_a_seed_each_figure_says_of_how_many_it_is(tmp_path: Path) -> None:
    results = [failing(1)(r) if r.benchmark == "mw_wrapped" else r for r in sweep(tmp_path, seeds=SEEDS)]
    (row,) = (line for line in markdown.render(arrange(score(results))).splitlines() if "**2–3 of 3**" in line)
    assert [("(2 of 3)" in field) for field in row.strip("| ").split(" | ")[4:6]] == [False, True]


def test_a_cell_that_seeds_do_not_change_is_one_line_without_a_mean(tmp_path: Path) -> None:
    results = [replace(r, final=r.role == "base") for r in sweep(tmp_path, seeds=SEEDS, tunes=("none",), merges=("none",))]
    grid = arrange(score([r for r in results if r.role == "base"]))
    assert [(line.kind, line.labels) for line in grid.lines] == [("row", ("base", ""))]


def test_the_unaligned_model_comes_before_base_and_is_shared_by_seeds(tmp_path: Path) -> None:
    results = sweep(tmp_path, seeds=SEEDS, tunes=("sft",))
    unaligned = [
        replace(r, role="unaligned", key="unaligned" + r.benchmark, labels=labels(tmp_path / r.axis, r.axis, 77))
        for r in results
        if r.role == "base"
    ]
    lines = arrange(score([*results, *unaligned])).lines
    assert [(line.labels, line.kind) for line in lines[:2]] == [(("unaligned", "", ""), "row"), (("base", "", ""), "row")]
    assert lines[0].entries[0] is not None
    assert lines[0].entries[0].metric.value == 0.77


def test_checkpoints_stay_out_of_the_means(tmp_path: Path) -> None:
    results = sweep(tmp_path, seeds=SEEDS)
    steps = [replace(r, step=10, key=r.key + "10", labels=labels(tmp_path / "s" / r.axis, r.axis, 1)) for r in results]
    assert arrange(score([*results, *steps])) == arrange(score(results))


def test_several_judges_have_means_of_their_own(tmp_path: Path) -> None:
    results = sweep(tmp_path, seeds=SEEDS, judges=("exact", "keyword"))
    for line in mean_lines(results):
        (alone,) = (
            other
            for other in mean_lines([r for r in results if r.judge == line.labels[-1].split()[0]])
            if other.labels == line.labels[:-1]
        )
        assert line.entries == alone.entries


@pytest.mark.parametrize("width", [60, 80, 160, 200])
def test_the_terminal_shows_means_and_spreads_and_each_seed_while_it_fits_a_screen(tmp_path: Path, width: int) -> None:
    few = sweep(tmp_path, seeds=SEEDS)
    shown = [line.plain for line in render(arrange(score(few)), width)]
    many = sweep(tmp_path, seeds=SEEDS, tunes=("none", "sft", "dpo"), merges=("none", "linear", "ties", "dare"))
    short = [line.plain for line in render(arrange(score(many)), width)]
    for lines in (shown, short):
        assert max(cell_len(line) for line in lines) <= width
        assert any("±" in line for line in lines[3:])
    assert any(line.split()[:1] == ["2"] for line in shown)  # a seed's line, under its mean's
    assert not any(line.split()[:1] == ["2"] for line in short)
    assert any("each seed in results.md" in line for line in short)
    assert len(arrange(score(few)).lines) <= SCREEN < len(arrange(score(many)).lines)


# The file


def test_results_csv_keeps_its_single_rows_and_the_means_are_a_file_of_their_own(tmp_path: Path) -> None:
    results = sweep(tmp_path, seeds=SEEDS, swept={"merge.density": [0.2, 0.5]})
    results = [replace(r, key=f"{r.key}{r.swept['merge.density']}") if r.role == "merged" else r for r in results]
    write_csv(score(results), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as handle:
        single = list(csv.DictReader(handle))
    assert {row["seed"] for row in single} == {"0", "1", "2"}
    assert len(single) == sum(1 + ("safety" in r.axis) for r in results)
    write_over_seeds(score(results), tmp_path / "means.csv")
    with (tmp_path / "means.csv").open(newline="") as handle:
        means = list(csv.DictReader(handle))
    assert "seed" not in means[0]
    (tuned,) = (m for m in means if (m["role"], m["benchmark"], m["metric"]) == ("tuned", "mw_direct", "asr"))
    assert (tuned["safety_tune"], tuned["merge"], tuned["merge.density"], tuned["seeds"], tuned["n"]) == (
        "sft",
        "",
        "",
        "3",
        "300",
    )
    values = {float(s["value"]) for s in single if (s["role"], s["benchmark"], s["metric"]) == ("tuned", "mw_direct", "asr")}
    assert float(tuned["mean"]) == pytest.approx(statistics.fmean(values), abs=1e-6)


def test_one_seed_leaves_no_such_file(tmp_path: Path) -> None:
    write_over_seeds(score(sweep(tmp_path, seeds=SEEDS)), tmp_path / "means.csv")
    assert (tmp_path / "means.csv").exists()
    assert not several(score(sweep(tmp_path)))
    write_over_seeds(score(sweep(tmp_path)), tmp_path / "means.csv")
    assert not (tmp_path / "means.csv").exists()
