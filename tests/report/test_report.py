"""The report without a browser: from whatever a sweep left, built again only when something changed, never in the way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.pages import PLANTED, full_source, source_of
from tests.report.sweeps import labels, sweep
from vlsafe.eval.base import Axis
from vlsafe.report import browser as browsing
from vlsafe.report import build as building
from vlsafe.report.browser import embed
from vlsafe.report.build import build, is_fresh, report
from vlsafe.report.claims import judge_claims
from vlsafe.report.curves import curves
from vlsafe.report.latex import benchmark_tables, file_names, tex, write_tables
from vlsafe.report.points import Estimate, axes_mean, benchmarks, mean_over_seeds, pareto, points
from vlsafe.report.results import CellResult, score
from vlsafe.report.source import Source
from vlsafe.report.tradeoff import front, places


def changed(results: list[CellResult], **what: object) -> list[CellResult]:
    return [replace(r, **what) for r in results]  # type: ignore[arg-type]


THREE: tuple[tuple[Axis, str], ...] = (
    ("text_safety", "mw_direct"), ("over_refusal", "mw_borderline_text"), ("helpfulness", "mw_helpful_text"),
)  # fmt: skip


def small(folder: Path, **more: object) -> list[CellResult]:
    return sweep(folder, **({"benchmarks": THREE, "tunes": ("none", "sft"), "merges": ("none",)} | more))  # type: ignore[arg-type]


def no_values(folder: Path) -> list[CellResult]:
    """Every benchmark is there and has nothing to count."""
    return [replace(r, labels=labels(folder / "none" / r.key, r.axis, 0, n=0)) for r in small(folder)]


def unparsed(folder: Path) -> list[CellResult]:
    return [replace(r, labels=labels(folder / "bad" / r.key, r.axis, 0, n=10, unparsed=10)) for r in small(folder)]


BAD: dict[str, Callable[[Path], list[CellResult]]] = {
    "empty": lambda folder: [],
    "failed": lambda folder: small(folder, status=lambda tune, merge, role: "failed" if role == "merged" else "done"),
    "nothing is there": lambda folder: small(folder, status=lambda tune, merge, role: "missing"),
    "one cell": lambda folder: small(folder, tunes=("sft",), merges=("none",)),
    "zero harmful items": no_values,
    "unparsed only": unparsed,
    "no safety axis": lambda folder: small(folder, benchmarks=[("helpfulness", "mw_helpful_text")]),
    "text only": lambda folder: small(folder, benchmarks=[("text_safety", "mw_direct"), ("over_refusal", "mw_b")]),
    "several seeds": lambda folder: small(folder, seeds=(0, 1, 2), merges=("none", "ties")),
    "several seeds, some failed": lambda folder: [
        replace(r, status="failed", labels=None) if r.choices["seed"] == 1 and r.role == "tuned" else r
        for r in small(folder, seeds=(0, 1))
    ],
    "two judges": lambda folder: small(folder, judges=("exact", "keyword")),
    "planted names": lambda folder: changed(small(folder), cell=PLANTED, benchmark=PLANTED, judge=PLANTED),
}


@pytest.mark.parametrize("name", BAD)
def test_a_report_comes_of_whatever_a_sweep_left(name: str, tmp_path: Path) -> None:
    source = source_of(BAD[name](tmp_path / "store"), tmp_path)
    text = build(source).read_text()
    assert text.startswith("<!DOCTYPE html>") and text.rstrip().endswith("</html>")
    assert "<img" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert (tmp_path / "tables" / "main.tex").exists()
    assert is_fresh(source)


def test_what_is_in_the_folders_is_what_the_report_names(tmp_path: Path) -> None:
    source = full_source(tmp_path)
    text = build(source).read_text()
    named = set(re.findall(r"Files: figures/(\w+)\.svg", text))
    assert named == {"tradeoff_over_refusal", "tradeoff_helpfulness", "heatmap"} | {
        f"adaptation_{a}" for a in curves(source.scored)
    }
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"{n}.{form}" for n in named for form in ("svg", "pdf", "png")
    }
    before = {p: p.read_bytes() for p in tmp_path.glob("figures/*")}
    assert build(source).read_text() == text
    assert {p: p.read_bytes() for p in before} == before
    build(source_of(small(tmp_path / "small"), tmp_path))
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {n for n in named if "adaptation" not in n}


def test_it_is_built_again_only_when_something_that_it_shows_has_changed(tmp_path: Path) -> None:
    console = Console(quiet=True)
    source = source_of(small(tmp_path / "store"), tmp_path)

    def run(now: Source) -> bool:
        """Whether it was built."""
        before = (tmp_path / "report.html").stat().st_mtime_ns if (tmp_path / "report.html").exists() else 0
        assert report("demo", tmp_path, lambda: now, console).startswith("report: ")
        return (tmp_path / "report.html").stat().st_mtime_ns != before

    assert run(source)
    assert not run(source)
    assert run(replace(source, cells=5))
    other = replace(source, scored=source.scored[:-3])
    assert run(other)
    assert not run(other)
    (tmp_path / "figures" / "heatmap.png").unlink()
    assert run(other)
    (tmp_path / "figures" / "mine.png").write_text("mine")
    (tmp_path / "tables" / "main.csv").write_text("damaged")
    assert run(other)
    assert (tmp_path / "figures" / "mine.png").exists()  # not ours to remove


def test_an_error_becomes_one_line_and_leaves_its_traceback(tmp_path: Path) -> None:
    def broken() -> Source:
        raise OSError(28, "No space left on device")

    said = report("demo", tmp_path, broken, Console(quiet=True))
    assert said == "no report (OSError: [Errno 28] No space left on device); once that is mended: python launch/report.py demo"
    assert "def broken" not in said and "OSError" in (tmp_path / "logs" / "report.log").read_text()
    (tmp_path / "figures").write_text("a file where a folder belongs")
    good = source_of(small(tmp_path / "store"), tmp_path)
    assert report("demo", tmp_path, lambda: good, Console(quiet=True)).startswith("no report (FileExistsError")
    assert not is_fresh(good)


def test_the_mean_over_axes_counts_each_axis_once_and_needs_all_benchmarks(tmp_path: Path) -> None:
    scored = score(sweep(tmp_path, tunes=("none",), merges=("none",)))
    asked = benchmarks(scored)
    (base, cell) = points(scored)
    safety = axes_mean(("text_safety", "multimodal_safety"), asked)
    assert base.mean(safety) is None  # not asked about pictures
    rates = {s.result.benchmark: s.headline for s in scored if s.result.role == "adapted"}
    names = ("mw_direct", "mw_wrapped", "mw_typographic", "mw_cross_modal")
    found = cell.mean(safety)
    assert found is not None
    assert found.value == pytest.approx(sum(rates[n].value or 0.0 for n in names) / 4)
    assert found.low < found.value < found.high
    one = axes_mean(("text_safety",), {"mw_direct": "text_safety"})(cell.models[0])
    assert one == Estimate(
        *(pytest.approx(v) for v in (rates["mw_direct"].value, rates["mw_direct"].low, rates["mw_direct"].high))
    )
    wider = one.high - one.low if one else 0.0
    assert found.high - found.low < wider  # four benchmarks say more than one


def test_seeds_come_together_and_single_ones_are_kept(tmp_path: Path) -> None:
    scored = score(sweep(tmp_path, seeds=(0, 1, 2)))
    shown = points(scored)
    assert [len(p.models) for p in shown if p.final] == [3] * 4
    assert [(p.label, len(p.models)) for p in shown if not p.final] == [("base", 1)]
    assert {p.label for p in shown if p.final} == {"untuned", "untuned + ties", "sft", "sft + ties"}
    assert mean_over_seeds([Estimate(0.2, 0, 1), Estimate(0.4, 0, 1)]) == (
        pytest.approx(0.3), pytest.approx(0.3 - 0.02**0.5), pytest.approx(0.3 + 0.02**0.5), 2
    )  # fmt: skip
    assert mean_over_seeds([Estimate(0.2, 0.1, 0.3)]) == Estimate(0.2, 0.1, 0.3)
    table = next(t for t in benchmark_tables(scored) if t.benchmark == "mw_direct")
    assert [row.seed for row in table.rows if row.label == "sft"] == ["0", "1", "2"]


def test_references_are_named_by_what_shaped_them(tmp_path: Path) -> None:
    shown = points(score(sweep(tmp_path, tunes=("sft", "dpo"), merges=("ties",))))
    assert [(p.label, p.final) for p in shown] == [
        ("base", False), ("adapted", False), ("tuned + sft", False), ("tuned + dpo", False), ("sft", True), ("dpo", True),
    ]  # fmt: skip


def test_the_front_holds_what_no_other_beats() -> None:
    assert pareto([(0.1, 0.9), (0.2, 0.5), (0.3, 0.6), (0.4, 0.1), (0.4, 0.3), (0.2, 0.5)]) == [0, 1, 5, 3]
    assert pareto([]) == []


def test_the_front_is_of_cells_only(tmp_path: Path) -> None:
    shown = points(score(sweep(tmp_path, tunes=("sft", "dpo"), merges=("none", "ties"))))
    found = places(shown, "over_refusal", benchmarks(score(sweep(tmp_path))))
    assert found and all(p.point.final for p in front(found, 1.0))


def test_curves_end_with_the_finished_model_and_take_shared_ones_once(tmp_path: Path) -> None:
    found = curves(full_source(tmp_path).scored)
    assert set(found) == {"text_safety", "multimodal_safety", "over_refusal", "helpfulness"}
    (curve, _) = found["text_safety"]
    assert [set(run) for run in curve.seeds] == [{100, 200, None}] * 2
    assert list(curve.mean()) == [100, 200, None]
    assert curves(score(sweep(tmp_path / "plain"))) == {}


def test_every_adaptation_has_a_curve_of_its_own(tmp_path: Path) -> None:
    final = small(tmp_path / "store", tunes=("none",), swept={"adaptation.seed": (0, 1), "adaptation.instruct.steps": (4, 8)})
    final = [replace(r, key=f"{r.key}{r.swept}", last_step=r.swept["adaptation.instruct.steps"]) for r in final]
    kept = [replace(r, step=2, final=False, key=f"{r.key}@2") for r in final if r.role == "adapted"]
    own = curves(score([*final, *kept]))["text_safety"]
    assert [(c.adaptation, len(c.seeds), c.end) for c in own] == [("steps 4", 2, 4), ("steps 8", 2, 8)]
    assert all(set(run) == {2, None} for c in own for run in c.seeds)
    before = [
        replace(r, choices={**r.choices, "order": "before", "safety_tune": "dpo"}, key=f"{r.key}b") for r in [*final, *kept]
    ]
    assert len(curves(score([*final, *kept, *before]))["text_safety"]) == 4


def test_seeds_that_come_to_one_model_are_one(tmp_path: Path) -> None:
    results = [r for r in small(tmp_path / "store", tunes=("none",), seeds=(0, 1)) if r.role == "base"]
    (point,) = points(score([replace(r, final=True) for r in results]))
    assert len(point.models) == 1


def test_all_rows_are_embedded_or_the_same_items_of_every_model(tmp_path: Path) -> None:
    source = source_of(sweep(tmp_path / "store"), tmp_path)
    whole = embed(source)
    assert (whole.shown, whole.each) == (whole.total, None)
    limit = len(whole.data) // 2
    part = embed(source, limit=limit)
    assert part.each is not None and part.shown < whole.total == part.total
    assert len(part.data) <= limit
    assert embed(source, limit=limit) == part
    items: dict[str, set[frozenset[str]]] = {}
    data = unpacked(part.data)
    for answers in data["answers"]:
        ids = frozenset(data["texts"][data["items"][i][0]] for i in answers["rows"][::3])
        assert len(ids) == part.each
        items.setdefault(data["texts"][answers["benchmark"]], set()).add(ids)
    assert all(len(sets) == 1 for sets in items.values())


def unpacked(data: str) -> dict[str, list]:  # type: ignore[type-arg]
    import base64
    import zlib

    found: dict[str, list] = json.loads(zlib.decompress(base64.b64decode(data)))  # type: ignore[type-arg]
    return found


def test_answers_find_their_labels_in_any_order_and_unreadable_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(sweep(tmp_path / "store", tunes=("none",), merges=("none",)), tmp_path)
    whole = unpacked(embed(source).data)
    for path in tmp_path.glob("store/*/responses.jsonl"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    turned = unpacked(embed(source).data)
    assert turned == whole
    broken = next(iter(source.responses.values()))
    (broken / "responses.jsonl").write_text("{")
    found = embed(source)
    assert found.unread and found.shown == found.total - 100
    assert "Could not be read: " in build(source).read_text()
    monkeypatch.setattr(browsing, "MAX_CHARACTERS", 5)
    assert any("more characters in the file)" in text for text in unpacked(embed(source).data)["texts"])


def test_latex_and_csv_hold_the_table_and_no_text_becomes_a_command(tmp_path: Path) -> None:
    scored = score(sweep(tmp_path / "store"))
    written = write_tables(scored, tmp_path)
    assert {p.name for p in written} == {f"{n}.{e}" for n in ("main", *benchmarks(scored)) for e in ("tex", "csv")}
    text = (tmp_path / "main.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"\toprule" in text and r"\bottomrule" in text and r"mw\_direct" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 + 1 + 4  # heads, base, cells
    assert len({line.count(" & ") for line in rows[1:]}) == 1
    assert tex("a_b & 100% $x$ {\\input{x}} #~^\n") == (
        r"a\_b \& 100\% \$x\$ \{\textbackslash{}input\{x\}\} \#\textasciitilde{}\textasciicircum{}\textbackslash{}x0a"
    )
    assert file_names(["a/b", "a b", "main", "../..", "A-B"]) == ["a-b", "a-b-2", "main-2", "benchmark", "A-B-3"]


def test_what_was_made_otherwise_is_marked_in_the_page_and_in_latex_and_explained_once(tmp_path: Path) -> None:
    said, plain = ("safety_tune: num_processes 8, most 1",), small(tmp_path)
    marked = [replace(r, execution=said if r.role == "tuned" else ()) for r in plain]
    for results, times in ((marked, 1), (plain, 0)):
        page = build(source_of(results, tmp_path)).read_text("utf-8")
        assert page.count(f"‡ made otherwise than most · {said[0]}") == times
        assert ("tuned‡" in page) == ("‡" in page) == bool(times)
        text = (tmp_path / "tables" / "main.tex").read_text("utf-8")
        assert ("made otherwise than most" in text) == bool(times)


def test_over_seeds_the_table_holds_means_and_the_benchmarks_each_seed(tmp_path: Path) -> None:
    scored = score(small(tmp_path / "store", seeds=(0, 1)))
    write_tables(scored, tmp_path)
    rows = [line for line in (tmp_path / "main.tex").read_text().splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 + 1 + 2  # heads, base, and a mean for each of two cells
    assert all(r"$\pm$" in row for row in rows[3:]) and not any(r"$\pm$" in row for row in rows[:3])
    kept = (tmp_path / "mw_direct.tex").read_text()
    assert sum(line.startswith("adapted") or " & 1 & " in line for line in kept.splitlines()) >= 2


def test_claims_are_shown_with_verdict_and_evidence(tmp_path: Path) -> None:
    source = source_of(sweep(tmp_path / "store", seeds=(0, 1)), tmp_path)
    claims = judge_claims(source.scored)
    assert claims
    text = build(source).read_text()
    section = text[text.index('<section id="claims">') :].partition("</section>")[0]
    assert re.findall(r'class="label \w+">([a-z ]+)</span>', section) == [claim.verdict for claim in claims]
    rows = [e for claim in claims for e in claim.evidence]
    assert section.count("<td>disjoint</td>") == sum(bool(e.disjoint) for e in rows if not e.missing)
    build(replace(source, control=True))
    assert 'class="n">control</span>' in (tmp_path / "report.html").read_text()
    assert not is_fresh(source)  # another question is asked of the same figures


def test_drawing_is_not_imported_before_something_is_drawn() -> None:
    import subprocess
    import sys

    code = (
        "import sys, vlsafe.app, vlsafe.report.final, vlsafe.report.command, vlsafe.report.build;"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'matplotlib', 'jinja2', 'numpy', 'PIL'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_record_of_files_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(small(tmp_path / "store"), tmp_path)
    build(source)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        build(source)
    assert not is_fresh(source)
