"""Training does what a bare PyTorch loop over the same batches does, and leaves everything else alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tiny as tiny

from vlsafe.data.collate import Collator, Encoder
from vlsafe.data.order import batches
from vlsafe.model.load import load_model, load_processor
from vlsafe.stage import Execution, StageContext
from vlsafe.train.engine import Phase, run_phases
from vlsafe.train.optimization import Optimization
from vlsafe.train.parts import part_of

SETTING = Optimization(
    steps=8, batch_size=8, learning_rate=5e-3, warmup_steps=2, schedule="cosine", final_fraction=0.1, weight_decay=0.1
)
PARTS = ("language_model", "projector")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("parent"))


def train(parent: Path, folder: Path, phases: list[Phase], progress: Any = lambda *told: None) -> tuple[Any, StageContext]:
    ctx = StageContext(folder / "out", folder / "work", execution=Execution(device="cpu"), progress=progress)
    model, _ = run_phases(lambda: (load_model(parent, "cpu"), load_processor(parent)), phases, ctx)
    return model, ctx


def bare_loop(parent: Path, rows: list[Any], loss_of: Any, seed: int) -> Any:
    """AdamW over the same batches in the same order, written out."""
    model, processor = load_model(parent, "cpu", train=True), load_processor(parent)
    encoder = Encoder(processor)
    encoded = encoder.encode(rows)
    collate = Collator(encoder, encoded.examples, rows)
    trained = [(n, p.requires_grad_(part_of(n) in PARTS)) for n, p in model.named_parameters()]
    trained = [(n, p) for n, p in trained if p.requires_grad]
    decayed = [p for n, p in trained if "norm" not in n and "bias" not in n]
    other = [p for n, p in trained if "norm" in n or "bias" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": SETTING.weight_decay}, {"params": other, "weight_decay": 0.0}]
    )
    order = batches([e.pictures > 0 for e in encoded.examples], SETTING.batch_size, SETTING.steps, seed)
    for step, numbers in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = SETTING.learning_rate * SETTING.factor(step)
        loss = loss_of(model, collate([{"example": i} for i in numbers]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], SETTING.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return model


def close(ours: Any, theirs: Any) -> None:
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), f"{name}: {(a - b).abs().max()}"


def test_supervised_training_equals_a_bare_loop(parent: Path, tmp_path: Path) -> None:
    rows = tiny.supervised(40, seed=1)
    model, _ = train(parent, tmp_path, [Phase("one", "sft", lambda: rows, SETTING, PARTS, 3)])
    close(model, bare_loop(parent, rows, lambda m, batch: m(**batch).loss, 3))


def test_preference_training_equals_the_formula(parent: Path, tmp_path: Path) -> None:
    """Rafailov et al. 2023, eq. 7, with the parent as the reference."""
    rows, reference = tiny.preferences(40, seed=2), load_model(parent, "cpu")

    def log_probs(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
        found = model(**inputs).logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (found * batch["completion_mask"][:, 1:]).sum(1)

    def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            before = log_probs(reference, batch)
        chosen, rejected = (log_probs(model, batch) - before).chunk(2)
        return -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()

    model, ctx = train(parent, tmp_path, [Phase("one", "dpo", lambda: rows, SETTING, PARTS, 4, {"beta": 0.3})])
    close(model, bare_loop(parent, rows, loss, 4))
    log = [json.loads(line) for line in (ctx.out / "train_log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert log[0]["reward_margin"] == pytest.approx(0.0, abs=1e-5)


def test_two_phases_train_what_they_declare_and_say_so(parent: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    pictures, both = tiny.supervised(64, seed=3, pictures=1.0), tiny.supervised(64, seed=4)
    phases = [
        Phase("projector", "sft", lambda: pictures, SETTING, ("projector",), 1),
        Phase("instruct", "sft", lambda: both, SETTING, PARTS, 1),
    ]
    before = load_model(parent, "cpu").state_dict()
    model, ctx = train(parent, tmp_path, phases, lambda *t: told.append(t))
    after = model.state_dict()
    changed = {part_of(n) for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"language_model", "projector"}
    first, second = ctx.facts["phases"]["projector"], ctx.facts["phases"]["instruct"]
    assert list(first["trainable_parameters"]) == ["projector"]
    assert second["trainable_parameters"].keys() == {"language_model", "projector"}
    assert first["image_features"] == second["image_features"] == 16
    assert first["rows_with_pictures"] == 64
    assert second["supervised_tokens_by_source"].keys() == {"pictures", "text"}
    assert told[-1][:2] == (16, 16)
    assert "instruct, loss" in told[-1][2]
    log = [json.loads(line) for line in (ctx.out / "train_log.jsonl").read_text().splitlines()]
    assert [(x["phase"], x["step"]) for x in log] == [(p, s) for p in ("projector", "instruct") for s in range(1, 9)]
    assert [x["lr"] for x in log[:8]] == pytest.approx([SETTING.learning_rate * SETTING.factor(s) for s in range(8)])


def test_a_plain_language_model_learns(tmp_path: Path) -> None:
    parent = tiny.language_model(tmp_path / "model", hidden=32)
    setting = Optimization(steps=60, batch_size=16, learning_rate=1e-2, warmup_steps=5)
    rows = tiny.supervised(64, seed=5, pictures=0.0, words=(2, 4))
    _, ctx = train(parent, tmp_path, [Phase("one", "sft", lambda: rows, setting, ("language_model",), 0)])
    curve = ctx.facts["phases"]["one"]["loss_curve"]
    assert curve[-1][1] < 0.6 * curve[0][1]
    assert ctx.facts["phases"]["one"]["passes_over_rows"] == 15.0


def test_the_schedule_is_the_declared_one() -> None:
    linear = Optimization(steps=10, batch_size=1, learning_rate=1.0, warmup_steps=4, final_fraction=0.2)
    factors = [linear.factor(s) for s in range(11)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[10] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    constant = Optimization(steps=10, batch_size=1, learning_rate=1.0, schedule="constant", final_fraction=0.2)
    assert {constant.factor(s) for s in range(10)} == {1.0}


def test_the_light_head_gives_trls_log_probabilities(parent: Path) -> None:
    from trl.trainer.utils import add_fused_lm_head

    from vlsafe.train.trainers import use_light_head

    rows, encoder = tiny.supervised(6, seed=6), Encoder(load_processor(parent))
    batch = Collator(encoder, encoder.encode(rows).examples, rows)([{"example": i} for i in range(6)])
    found = []
    for head in (add_fused_lm_head, use_light_head):
        model = load_model(parent, "cpu", train=True)
        head(model)
        out = model(**batch, fused_lm_head=True)
        (-out.log_probs.sum()).backward()
        found.append((out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (theirs, their_grads), (ours, our_grads) = found
    assert torch.allclose(theirs.log_probs, ours.log_probs, atol=1e-5)
    assert theirs.label_mask.equal(ours.label_mask)
    assert their_grads.keys() == our_grads.keys()
    assert all(torch.allclose(their_grads[n], our_grads[n], atol=1e-4) for n in our_grads)
