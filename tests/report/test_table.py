"""The table says what the results say, at any width, and nothing that a model or a data set wrote can act on the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.report.sweeps import BENCHMARKS, labels, share, sweep
from vlsafe.report import markdown
from vlsafe.report.layout import arrange
from vlsafe.report.results import CellResult, score
from vlsafe.report.table import render, short, short_benchmarks, show
from vlsafe.report.text import fit, printable


def text(results: list[CellResult], width: int = 160) -> list[str]:
    return [line.plain for line in render(arrange(score(results)), width)]


def line_of(lines: list[str], *labels: str) -> str:
    (found,) = (line for line in lines if line.split()[: len(labels)] == list(labels))
    return found


# What it says


def test_references_come_first_and_once_and_every_cell_has_a_line(tmp_path: Path) -> None:
    grid = arrange(score(sweep(tmp_path, tunes=("sft", "dpo"), merges=("linear", "ties"))))
    assert [(line.labels, line.is_cell) for line in grid.lines] == [
        (("base", "", ""), False),
        (("adapted", "", ""), False),
        (("tuned", "sft", ""), False),
        (("tuned", "dpo", ""), False),
        (("merged", "sft", "linear"), True),
        (("merged", "sft", "ties"), True),
        (("merged", "dpo", "linear"), True),
        (("merged", "dpo", "ties"), True),
    ]


def test_a_model_that_is_a_cells_own_result_is_no_reference(tmp_path: Path) -> None:
    grid = arrange(score(sweep(tmp_path)))  # with merge none and safety_tune none among the cells
    assert [line.labels[0] for line in grid.lines if not line.is_cell] == ["base"]


def test_a_tuned_model_before_adaptation_is_named_by_its_tuning_alone(tmp_path: Path) -> None:
    results = [
        replace(r, choices={**r.choices, "order": "before"}) for r in sweep(tmp_path, tunes=("sft", "dpo"), merges=("ties",))
    ]
    lines = {line.labels for line in arrange(score(results)).lines if not line.is_cell}
    assert {("tuned", "sft"), ("tuned", "dpo")} <= lines


def test_only_settings_that_differ_get_a_column_and_the_rest_is_said_above(tmp_path: Path) -> None:
    results = sweep(
        tmp_path, tunes=("sft",), merges=("ties",), swept={"merge.density": [0.2, 0.5], "eval.limit": [9]}, seeds=(0, 1)
    )
    grid = arrange(score(results))
    assert grid.heads == ("role", "seed", "density")
    assert {"safety_tune sft", "merge ties", "adaptation llava", "eval.limit 9"} <= set(grid.constants)
    assert [line.labels for line in grid.lines if line.labels[0] == "base"] == [("base", "", "")]
    assert [line.labels for line in grid.lines if line.labels[0] == "adapted"] == [
        ("adapted", "2 seeds", ""), ("adapted", "0", ""), ("adapted", "1", ""),
    ]  # fmt: skip


def test_settings_of_one_last_name_keep_their_full_ones(tmp_path: Path) -> None:
    results = sweep(tmp_path, swept={"merge.density": [0.2, 0.5], "data.density": [1, 2]})
    assert {"merge.density", "data.density"} <= set(arrange(score(results)).heads)


def test_one_cell_says_what_it_is(tmp_path: Path) -> None:
    lines = text(sweep(tmp_path, tunes=("sft",), merges=("ties",)))
    assert lines[0] == "demo: 1 cell"
    assert line_of(lines, "merged", "llava", "sft", "ties")
    assert "*" not in "\n".join(lines)  # nothing to be better than


def test_the_best_of_a_column_is_marked_among_cells_only_and_by_direction(tmp_path: Path) -> None:
    results = sweep(tmp_path, tunes=("sft", "dpo"), merges=("linear", "ties"))
    grid = arrange(score(results))
    for c, column in enumerate(grid.columns):
        values = {line.labels: line.entries[c].metric.value for line in grid.lines if line.is_cell}  # type: ignore[union-attr]
        pick = min if column.metric != "accuracy" else max
        marked = {line.labels for line in grid.lines if line.entries[c] is not None and line.entries[c].best}  # type: ignore[union-attr]
        assert marked == {labels for labels, value in values.items() if value == pick(values.values())}  # type: ignore[type-var]
    shown = "\n".join(text(results))
    assert len(re.findall(r"\d\*", shown)) >= len(grid.columns)


def test_equal_cells_have_no_best(tmp_path: Path) -> None:
    results = [replace(r, labels=labels(tmp_path / "same" / r.axis, r.axis, 50)) for r in sweep(tmp_path)]
    assert "*" not in "\n".join(text(results))


def test_failed_skipped_missing_and_collapsed_cells_are_shown_as_such(tmp_path: Path) -> None:
    states = {"linear": "failed", "ties": "skipped", "dare": "missing"}
    merges = ("none", "slerp", *states)
    results = sweep(
        tmp_path, tunes=("sft",), merges=merges, status=lambda t, m, role: states.get(m, "done") if role == "merged" else "done"
    )  # type: ignore[arg-type, return-value]
    results = [replace(r, collapsed=r.choices["merge"] == "slerp") for r in results]
    for width, words in ((160, ("failed", "skipped", "…")), (80, ("fail", "skip", "…"))):
        lines = text(results, width)
        for merge, word in zip(states, words, strict=True):
            assert line_of(lines, "merged", merge).split()[2:] == [word] * 8
        assert line_of(lines, "merged", "slerp†")
    assert "† one model on both sides of the merge: unmerged result" in "\n".join(lines)


def test_empty_unparsed_and_vague_answers_are_flagged(tmp_path: Path) -> None:
    results = sweep(tmp_path, tunes=("none",), merges=("none",), benchmarks=BENCHMARKS[:4])
    made = {
        "mw_direct": labels(tmp_path / "a", "text_safety", 20, other=10),
        "mw_wrapped": labels(tmp_path / "b", "text_safety", 20, unparsed=1),
        "mw_typographic": labels(tmp_path / "c", "text_safety", 0, n=0),
        "mw_cross_modal": labels(tmp_path / "d", "text_safety", 20, other=9),
    }
    lines = text([replace(r, labels=made[r.benchmark]) for r in results], 80)
    assert line_of(lines, "adapted").split()[4:] == ["0.20°", "0.20?", "n=0", "0.20"]


def test_a_sweep_of_which_nothing_is_there_says_no_n(tmp_path: Path) -> None:
    results = sweep(tmp_path, status=lambda tune, merge, role: "missing")
    for shown in ("\n".join(text(results)), "\n".join(text(results, 80)), markdown.render(arrange(score(results)))):
        assert "n=" not in shown
        assert "n = " not in shown
        assert "… not there yet" in shown


def test_judges_are_neither_averaged_nor_compared(tmp_path: Path) -> None:
    results = sweep(tmp_path, judges=("exact", "keyword"))
    grid = arrange(score(results))
    alone = {judge: arrange(score(r for r in results if r.judge == judge)) for judge in ("exact", "keyword")}
    for line in grid.lines:
        (same,) = (other for other in alone[line.labels[-1].split()[0]].lines if other.labels == line.labels[:-1])
        assert line.entries == same.entries
    assert grid.heads[-1] == "judge"
    assert {line.labels[-1] for line in grid.lines} == {"exact v1", "keyword v1"}
    assert (grid.cells, sum(line.is_cell for line in grid.lines)) == (4, 8)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("judges", [("exact", "llama_guard"), ("a_judge_of_a_long_name_1", "a_judge_of_a_long_name_2")])
@pytest.mark.parametrize("swept", [False, True])
def test_each_line_says_which_judge_it_is_of(tmp_path: Path, judges: tuple[str, str], swept: bool, width: int) -> None:
    results = sweep(tmp_path, tunes=("sft", "dpo"), swept={"merge.density": [0.2, 0.5]}, judges=judges)
    if swept:  # judge=A,B makes cells that differ in their judge alone
        results = [replace(r, cell=f"{r.cell}-{r.judge}") for r in results]
    lines = text(results, width)
    assert all(cell_len(line) <= width for line in lines)
    ends = {judge: f"{judge[-1]} v1" for judge in judges}
    rows = [line for line in lines if line.split()[:1] in (["base"], ["adapted"], ["tuned"], ["merged"])]
    of = {judge: [row for row in rows if f"{end} " in row] for judge, end in ends.items()}
    assert len(of[judges[0]]) == len(of[judges[1]]) > 0
    assert len(of[judges[0]]) + len(of[judges[1]]) == len(rows)
    grid = arrange(score(results))
    best = [
        [line.entries[0].best for line in grid.lines if line.labels[-1] == f"{judge} v1" and line.entries[0]]
        for judge in judges
    ]
    assert all(any(marks) for marks in best)  # the best of each judge's own figures


def test_conditions_are_said_and_where_they_differ_all_of_them(tmp_path: Path) -> None:
    results = [replace(r, conditions={"template": "ab12", "text_image": f"m{i % 2}"}) for i, r in enumerate(sweep(tmp_path))]
    assert arrange(score(results)).conditions == ("template ab12", "text_image m0 or m1")


def test_checkpoints_stay_out_of_the_table(tmp_path: Path) -> None:
    results = sweep(tmp_path)
    steps = [
        replace(r, step=10, key=r.key + "10", labels=labels(tmp_path / "s", r.axis, 1))
        for r in results
        if r.axis == "text_safety"
    ]
    assert text([*results, *steps]) == text(results)


# How it looks


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 200])
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_lost(tmp_path: Path, width: int) -> None:
    results = sweep(tmp_path, tunes=("sft", "dpo"), merges=("linear", "ties"), swept={"merge.density": [0.2, 0.5]})
    lines = text(results, width)
    assert max(cell_len(line) for line in lines) <= width
    for cell in {r.cell: r for r in results if r.final}.values():
        head = ["merged", cell.choices["safety_tune"], cell.choices["merge"], str(cell.swept["merge.density"])]
        fields = [field for line in lines if line.split()[:4] == head for field in line.split()[4:]]
        values = [float(field.rstrip("*°?")) for field in fields if "–" not in field]
        assert values == [share(r.key) / 100 for r in results if r.cell == cell.cell and r.final]


def test_80_columns_hold_eight_benchmarks_and_160_their_intervals(tmp_path: Path) -> None:
    results = sweep(tmp_path, tunes=("sft", "dpo"), merges=("linear", "ties"))
    narrow, wide = text(results, 80), text(results, 160)
    key = next(r.key for r in results if r.final and r.benchmark == "mw_direct")
    low, high = (f"{x:.2f}"[1:] for x in score(r for r in results if r.key == key)[0].headline[3:])
    assert line_of(narrow, "merged", "sft", "linear").split()[3].rstrip("*") == short(share(key) / 100)
    assert line_of(wide, "merged", "sft", "linear").split()[4] == f"{low}–{high}"
    assert any("n=100" in line for line in wide)
    assert len(narrow) == len(wide) - 1 or len(narrow) > 10


def test_a_hundred_cells_are_a_hundred_lines(tmp_path: Path) -> None:
    results = sweep(
        tmp_path, tunes=("sft", "dpo"), merges=("a", "b", "c", "d", "e"), swept={"merge.density": [i / 10 for i in range(10)]}
    )
    lines = text(results, 80)
    assert sum(line.startswith("merged") for line in lines) == 100


def test_a_single_benchmark_has_a_table_too(tmp_path: Path) -> None:
    lines = text(sweep(tmp_path, benchmarks=BENCHMARKS[:1]), 80)
    assert line_of(lines, "merged", "sft", "ties")
    assert text([]) == ["No results yet."]


def test_headings_drop_what_benchmarks_share() -> None:
    grid_columns = [type("C", (), {"axis": axis, "benchmark": name})() for axis, name in BENCHMARKS]
    names = short_benchmarks(grid_columns)  # type: ignore[arg-type]
    assert [names[b] for _, b in BENCHMARKS] == [
        "direct", "wrapped", "typographic", "cross_modal", "text", "picture", "text", "picture",
    ]  # fmt: skip


def test_colour_is_only_for_terminals_and_not_under_no_color(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = arrange(score(sweep(tmp_path)))

    def printed(terminal: bool) -> str:
        out = io.StringIO()
        show(grid, Console(file=out, width=80, force_terminal=terminal, color_system="standard" if terminal else None))
        return out.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in printed(True)
    assert "\x1b" not in printed(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", printed(True))


# Markdown


def test_markdown_holds_the_same_figures_as_a_table_of_equal_rows(tmp_path: Path) -> None:
    results = sweep(tmp_path)
    shown = markdown.render(arrange(score(results)))
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {12}
    for result in (r for r in results if r.final):
        assert f"{share(result.key) / 100:.2f}" in shown


# Hostile text


HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202eevil\u200b\n| `x` <script>[a](b)"


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    results = [
        replace(r, sweep=HOSTILE, benchmark=r.benchmark + HOSTILE) for r in sweep(tmp_path, swept={"note": [HOSTILE, "b"]})
    ]
    results = [replace(r, conditions={HOSTILE: HOSTILE}) for r in results]
    grid = arrange(score(results))
    out = io.StringIO()
    show(grid, Console(file=out, width=160))
    page = markdown.render(grid)
    for shown in (out.getvalue(), page):
        assert not set(re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e]", shown))
        assert "\\x1b" in shown.replace("\\\\", "\\")
    assert "<script>" not in page
    assert "[a](b)" not in page


def test_printable_keeps_letters_and_shows_the_rest() -> None:
    assert printable("é 漢字 naïve – ok") == "é 漢字 naïve – ok"
    assert printable("a\x1bb\r\n\u202ec\u2028") == "a\\x1bb\\x0d\\x0a\\u202ec\\u2028"
    assert printable("abcdef", limit=4) == "abc…"


def test_fit_counts_terminal_columns() -> None:
    assert [fit("漢字漢字", 5), fit("ab", 4), fit("ab", 4, left=True)] == ["漢字…", "  ab", "ab  "]
