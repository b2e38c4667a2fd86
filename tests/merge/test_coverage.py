"""Planted failures: whatever a merge can't account for stops it, before anything is written, and says what and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.merge.conftest import MakeModel, Merged, llava_tensors
from vlsafe.errors import CheckError, ConfigError
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.methods.ties import Ties
from vlsafe.merge.stage import run
from vlsafe.stage import StageContext

Merge = Callable[..., Merged]
V_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"


def spoiled(change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, torch.Tensor]:
    tensors = llava_tensors(1)
    change(tensors)
    return tensors


def _rename(tensors: dict[str, torch.Tensor]) -> None:
    """What ZeRO-3 once wrote."""
    for name in [n for n in tensors if n.startswith("model.language_model.")]:
        tensors[name.replace("model.language_model.", "language_model.model.model.")] = tensors.pop(name)


FAILURES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a tensor missing": (lambda t: t.pop(V_PROJ), rf"model_0 \(.*\) has no '{V_PROJ}', which the carrier has"),
    "a tensor too many": (
        lambda t: t.update({"model.language_model.layers.3.self_attn.q_proj.weight": torch.ones(8, 8)}),
        r"model_0 .* has 'model.language_model.layers.3.self_attn.q_proj.weight', which the carrier has not",
    ),
    "another shape": (lambda t: t.update({V_PROJ: torch.ones(8, 4)}), rf"shapes differ in '{V_PROJ}' .*\(8, 4\)"),
    "another vocabulary": (
        lambda t: t.update({"lm_head.weight": torch.ones(13, 8)}),
        r"vocabulary sizes differ in 'lm_head.weight' .*\(13, 8\).*merge.vocab=carrier_rows",
    ),
    "an unknown name": (
        lambda t: t.update({"model.adapter.weight": torch.ones(1)}),
        r"model_0 .*no known layout.*model.adapter.weight",
    ),
    "names of a wrapper": (_rename, r"no known layout has the tensor names language_model.model.model.* and \d+ more"),
    "quantised weights": (lambda t: t.update({V_PROJ: torch.ones(8, 8, dtype=torch.int8)}), "is int8, .*dequantise"),
    "an output matrix of its own missing": (
        lambda t: t.pop("lm_head.weight"),
        "model_0 .*ties its output matrix .*and carrier",
    ),
    "one tensor in two layouts": (
        lambda t: t.update({"language_model.model.norm.weight": torch.ones(8)}),
        "'language_model.model.norm.weight' and 'model.language_model.norm.weight' are one tensor, twice",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_is_not_accounted_for_stops_before_writing(
    failure: str, make_model: MakeModel, merge: Merge, tmp_path: Path
) -> None:
    change, message = FAILURES[failure]
    bad, good, base = make_model("bad", spoiled(change)), make_model("good", 2), make_model("base", 3)
    with pytest.raises(CheckError, match=message):
        merge(Linear(), bad, good)
    with pytest.raises(CheckError, match=message.replace("model_0", "base")):
        merge(Ties(), good, good, base=bad)
    with pytest.raises(CheckError):
        merge(Linear(), good, base, carrier=bad)
    assert not list(tmp_path.glob("merged-*/*"))


def test_outside_the_scope_models_may_differ(make_model: MakeModel, merge: Merge) -> None:
    for failure in ("a tensor missing", "a tensor too many", "another shape", "quantised weights"):
        bad = make_model(failure.replace(" ", "-"), spoiled(FAILURES[failure][0]))
        with pytest.raises(CheckError):
            merge(Linear(), bad, make_model(f"good-{failure}", 2))
        merge(Linear(scope="layers.0"), bad, make_model(f"fine-{failure}", 2))


def test_rows_that_mean_other_tokens_are_named(make_model: MakeModel, merge: Merge) -> None:
    def tokenizer(folder: Path, words: list[str], unigram: bool = False) -> Path:
        vocabulary = [[word, -1.0] for word in words] if unigram else {word: i for i, word in enumerate(words)}
        added = [{"id": len(words), "content": "<image>"}]
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
        return folder

    words = [f"w{i}" for i in range(9)]
    one = tokenizer(make_model("one", 1), words)
    two = tokenizer(make_model("two", 2), words, unigram=True)
    merge(Linear(), one, two)
    other = tokenizer(make_model("other", 3), [*words[:4], "w5", "w4", *words[6:]])
    with pytest.raises(
        CheckError, match=r"2 rows of the vocabulary are other tokens in model_0 .*'w5' and 'w4' \(row 4\).*scope=layers"
    ):
        merge(Linear(), other, two)
    with pytest.raises(CheckError, match="other tokens in base"):
        merge(Ties(scope="lm_head"), one, two, base=other)
    merge(Linear(scope="layers"), other, two)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_name_their_parent(bad: float, make_model: MakeModel, merge: Merge) -> None:
    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[V_PROJ][3, 4] = bad

    broken, good, base = make_model("broken", spoiled(plant)), make_model("good", 2), make_model("base", 3)
    with pytest.raises(CheckError, match=rf"'{V_PROJ}' of model_0 \(.*broken\) holds NaN or infinity"):
        merge(Linear(), broken, good)
    for trim in ("tensor", "model"):
        with pytest.raises(CheckError, match=r"of model_1 \(.*broken\) holds NaN or infinity"):
            merge(Ties(density=0.2, trim=trim), good, broken, base=base)
    with pytest.raises(CheckError, match=r"of base \(.*broken\) holds NaN or infinity"):
        merge(Ties(density=0.2), good, base, base=broken)
    with pytest.raises(CheckError, match=f"'{V_PROJ}' holds NaN or infinity"):
        merge(Linear(scope="embed"), good, broken)  # copied as it is


def test_a_result_too_large_for_its_dtype_is_named(make_model: MakeModel, merge: Merge) -> None:
    large = {name: tensor * 60_000 for name, tensor in llava_tensors(1).items()}
    with pytest.raises(CheckError, match=r"overflows torch.float16: set merge.dtype=float32"):
        merge(Linear(normalize=False, dtype="float16"), make_model("one", large), make_model("two", large))


def test_a_scope_without_tensors_is_named(make_model: MakeModel, merge: Merge) -> None:
    one, two = make_model("one", 1), make_model("two", 2)
    with pytest.raises(
        CheckError, match=r"merge.scope=layers.7-9: no tensor of the carrier is in it; its parts are .*layers.2"
    ):
        merge(Linear(scope=("embed", "layers.7-9")), one, two)


def test_pickled_weights_are_refused_with_the_way_out(make_model: MakeModel, merge: Merge) -> None:
    one, two = make_model("one", 1), make_model("two", 2)
    (one / "model.safetensors").rename(one / "pytorch_model.bin")
    with pytest.raises(CheckError, match=r"pickled.*vlsafe\.model\.convert"):
        merge(Linear(), one, two)


def test_missing_parents_are_named(make_model: MakeModel, tmp_path: Path) -> None:
    one = make_model("one", 1)
    for parents, message in (
        ({"model_0": one, "model_1": one, "carrier": one}, "merge=ties needs base"),
        ({"model_0": one, "base": one}, "merge=ties needs carrier"),
        ({"model_0": one, "model_2": one, "carrier": one, "base": one}, "merge=ties needs model_1"),
        ({"carrier": one, "base": one}, "at least 1 models, not 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(Ties(), StageContext(tmp_path, tmp_path, parents))
    with pytest.raises(ConfigError, match="2 weights for 3 models"):
        run(
            Linear(weights=(1.0, 2.0)),
            StageContext(tmp_path, tmp_path, {f"model_{i}": one for i in range(3)} | {"carrier": one}),
        )
