"""Golden results: when a stage gives something else for the same spec, its schema version must be raised, or old artifacts
would be taken for new ones. After raising it, `python -m tests.test_golden` writes the new figures."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from vlsafe import registry
from vlsafe.files import read_json, write_json
from vlsafe.microworld.world import World
from vlsafe.plan import SCHEMA_VERSIONS
from vlsafe.settings import settings_of, spec_of

GOLDEN = Path(__file__).parent / "golden.json"
SMALL = World(size="small")
RECIPE = {"learning_rate": 1e-3, "steps": 6, "batch_size": 8, "warmup_steps": 2}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def picture(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def rows() -> dict[str, str]:
    """What training reads, by purpose: words and pixels."""
    data = registry.make("data", {"name": "microworld", "world": World()})
    drawn = {p: data.supervised(p, 24, 0) for p in ("projector", "instruct", "safety")}
    drawn |= {p: data.preferences(p, 24, 0) for p in ("preference", "helpful_preference")}
    for name, settings in (("planted", {"planted": 0.5}), ("replay", {"replay": 0.5}), ("small", {"world": SMALL})):
        drawn[f"instruct, {name}"] = registry.make("data", {"name": "microworld", **settings}).supervised("instruct", 24, 0)
    return {p: digest([{**row, "images": [picture(i) for i in row["images"]]} for row in found]) for p, found in drawn.items()}


def items() -> dict[str, Any]:
    """What each benchmark asks, under its version."""
    asked = {}
    for name in [n for n in registry.names("benchmark") if n.startswith("mw_")]:  # the others' items are in files
        for world, where in ((World(), ""), (SMALL, ", small")):
            benchmark = registry.make("benchmark", {"name": name, "world": world})
            found = [
                [i.id, i.category, i.prompt, i.expects, i.target, picture(i.image()) if i.image else ""]
                for i in benchmark.items(24)
            ]
            asked[f"{name} v{benchmark.version}{where}"] = digest(found)
    return asked


def labels() -> dict[str, Any]:
    """What each judge says of a right answer, a refusal, a refusal in other words and nothing, under its version."""
    found = {}
    row = {
        "id": "1",
        "benchmark": "b",
        "category": "c",
        "prompt": "p",
        "image": "",
        "target": "paint the vase with wax and clay .",
    }
    answers = (row["target"], "i can not help with that .", "I'm sorry, but I can't assist.", "")
    judges = [registry.make("judge", {"name": name}) for name in registry.names("judge")]
    for judge in [judge for judge in judges if not judge.asks_model]:
        asked = [{**row, "expects": e, "response": r} for e in ("refuse", "comply", "answer") for r in answers]
        found[f"{judge.component_name} v{judge.version}"] = judge.label(asked)
    return found


def harm() -> dict[str, list[bool | None]]:
    """What each judge that reads training rows says of planted ones and others, under its version."""
    data = registry.make("data", {"name": "microworld", "planted": 0.5})
    judges = [registry.make("judge", {"name": name}) for name in registry.names("judge")]
    able = [judge for judge in judges if judge.tells_harm() and not judge.asks_model]
    return {f"{j.component_name} v{j.harm_version}": j.harmful(data.supervised("instruct", 12, 0)) for j in able}


def specs() -> dict[str, str]:
    """What the keys of models, adaptations and tunings hash: a setting that is added later leaves it as it is."""
    model = {"pretraining": RECIPE, "alignment": RECIPE, "tower": {"steps": 4, "batch_size": 8, "learning_rate": 1e-3}}
    llava = {"name": "llava", "projector": RECIPE, "instruct": RECIPE}
    data = registry.make("data", {"name": "microworld"})
    return {
        "model": digest(spec_of(registry.make("model", {"name": "microworld", **model}))),
        "adaptation": digest(spec_of(registry.make("adaptation", llava))),
        "data for adaptation": digest(data.spec_for("adaptation")),
        "data for safety_tune": digest(data.spec_for("safety_tune")),
    }


def merges() -> dict[str, list[float]]:
    import torch

    base = torch.arange(-4, 4, dtype=torch.float32) / 4
    one, two = (
        base + torch.tensor([0.5, -0.25, 0, 0.125, 1, -1, 0.75, 0]),
        base + torch.tensor([0.25, 0.5, 1, 0, -1, -0.5, 0.125, 0]),
    )
    return {
        name: registry.make("merge", {"name": name}).merge([one, two], base, [0.5, 0.5], "w").tolist()
        for name in registry.names("merge")
        if name != "none"
    }


def losses() -> dict[str, list[float]]:
    """The loss of each step of tiny runs of every kind of training stage."""
    from vlsafe.stage import StageContext

    tiny = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 64, "tower_width": 32, "tower_layers": 1, "tower_heads": 2}
    model = registry.make(
        "model",
        {
            "name": "microworld",
            **tiny,
            "pretraining": RECIPE,
            "alignment": RECIPE,
            "tower": {"steps": 4, "batch_size": 8, "learning_rate": 1e-3},
        },
    )
    data = registry.make("data", {"name": "microworld"})
    llava = {"name": "llava", "projector": RECIPE, "instruct": RECIPE}
    lora = {"rank": 4, "alpha": 8.0}
    stages = {
        "adaptation": registry.make("adaptation", llava),
        "adaptation_lora": registry.make("adaptation", {**llava, "lora": lora}),
        "single_stage": registry.make("adaptation", {"name": "single_stage", "optimization": RECIPE, "pairs": 0.5}),
        "sft": registry.make("safety_tune", {"name": "sft", "optimization": RECIPE, "helpful": 0.5}),
        "dpo": registry.make("safety_tune", {"name": "dpo", "optimization": RECIPE, "helpful": 0.5, "beta": 0.1}),
        "kto": registry.make("safety_tune", {"name": "kto", "optimization": RECIPE, "helpful": 0.5, "beta": 0.1}),
    }
    stages |= {
        f"{name}_lora": registry.make("safety_tune", {**settings_of(stages[name]), "lora": lora})
        for name in ("sft", "dpo", "kto")
    }
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folders = {stage: Path(name) / stage for stage in ("unaligned", "model", *stages)}
        for folder in folders.values():
            (folder / "work").mkdir(parents=True)
        model.build_unaligned(StageContext(out=folders["unaligned"], work=folders["unaligned"] / "work"))
        model.build(StageContext(out=folders["model"], work=folders["model"] / "work", parents={"model": folders["unaligned"]}))
        for stage, component in stages.items():
            component.run(
                data, StageContext(out=folders[stage], work=folders[stage] / "work", parents={"model": folders["model"]})
            )
        for stage, folder in folders.items():
            found[stage] = [json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return found


def test_versions_are_those_of_the_golden_results() -> None:
    assert read_json(GOLDEN)["versions"] == SCHEMA_VERSIONS


@pytest.mark.parametrize("part", [rows, items, labels, harm, specs])
def test_exact_results_are_golden(part: Any) -> None:
    assert part() == read_json(GOLDEN)[part.__name__]


@pytest.mark.parametrize(("part", "tolerance"), [(merges, 1e-6), (losses, 2e-3)])
def test_float_results_are_golden(part: Any, tolerance: float) -> None:
    expected, found = read_json(GOLDEN)[part.__name__], part()
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=tolerance), name


if __name__ == "__main__":
    parts = (rows, items, labels, harm, specs, merges, losses)
    write_json(GOLDEN, {"versions": SCHEMA_VERSIONS} | {part.__name__: part() for part in parts})
