"""Training does what a bare PyTorch loop over the same batches does, and leaves everything else alone."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tiny as tiny
from datasets import Dataset

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder
from vlsafe.data.mix import Unpaired
from vlsafe.data.order import balanced, batches
from vlsafe.model.families import TOKEN_TYPES
from vlsafe.model.load import load_model, load_processor
from vlsafe.ranks import ALONE
from vlsafe.stage import Execution, StageContext
from vlsafe.train.engine import run_phases
from vlsafe.train.lora import Lora, inject
from vlsafe.train.optimization import Optimization
from vlsafe.train.parts import part_of
from vlsafe.train.phase import Phase
from vlsafe.train.split import Split, way_of

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


def bare_loop(
    parent: Path,
    rows: Any,
    loss_of: Any,
    seed: int,
    prepare: Any = lambda model: [p for n, p in model.named_parameters() if part_of(n) in PARTS],
    rates: Any = None,
    setting: Optimization = SETTING,
) -> Any:
    """AdamW over the same batches in the same order, written out. `prepare` gives the parameters to train, `rates` the
    peak of each."""
    model, processor = load_model(parent, "cpu", train=True), load_processor(parent)
    encoder = Encoder(processor)
    encoded = encoder.encode(rows)
    collate = Collator(encoder, encoded.examples, rows)
    chosen = {id(p) for p in prepare(model)}
    trained = [(n, p.requires_grad_(id(p) in chosen)) for n, p in model.named_parameters()]
    trained = [(n, p) for n, p in trained if p.requires_grad]
    groups = [
        {
            "params": [p],
            "weight_decay": 0.0 if "norm" in n or "bias" in n else setting.weight_decay,
            "peak": rates(n) if rates else setting.learning_rate,
        }
        for n, p in trained
    ]
    optimizer = torch.optim.AdamW(groups)
    pictured, labels = [e.pictures > 0 for e in encoded.examples], [e.label for e in encoded.examples]
    if labels[0] is None:
        order = batches(pictured, setting.batch_size, setting.steps, seed)
    else:
        order = balanced(pictured, [bool(label) for label in labels], setting.batch_size, setting.steps, seed)
    for step, numbers in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * setting.factor(step)
        loss = loss_of(model, collate(rotated(numbers) if labels[0] is not None else [{"example": i} for i in numbers]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], setting.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return model


def rotated(numbers: list[int]) -> list[dict[str, int]]:
    """Each prompt with the answer of the row before it, the first with the last one's."""
    return [{"example": i, "mismatched": numbers[k - 1]} for k, i in enumerate(numbers)]


def answer_log_probs(model: Any, batch: dict[str, Any], prefix: str = "") -> torch.Tensor:
    ids, answered = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
    inputs = {"input_ids": ids, "attention_mask": batch[f"{prefix}attention_mask"]}
    inputs |= {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    inputs |= {TOKEN_TYPES: batch[prefix + TOKEN_TYPES]} if prefix + TOKEN_TYPES in batch else {}
    found = model(**inputs).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (found * answered[:, 1:]).sum(1)


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

    def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            before = answer_log_probs(reference, batch)
        chosen, rejected = (answer_log_probs(model, batch) - before).chunk(2)
        return -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()

    model, ctx = train(parent, tmp_path, [Phase("one", "dpo", lambda: rows, SETTING, PARTS, 4, {"beta": 0.3})])
    close(model, bare_loop(parent, rows, loss, 4))
    log = [json.loads(line) for line in (ctx.out / "train_log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert log[0]["reward_margin"] == pytest.approx(0.0, abs=1e-5)


def test_unpaired_training_equals_the_formula(parent: Path, tmp_path: Path) -> None:
    """Ethayarajh et al. 2024, eq. 7, with the parent as the reference and the divergence taken on mismatched answers."""
    rows, reference = Unpaired(tiny.preferences(40, seed=2)), load_model(parent, "cpu")
    seen: list[float] = []

    def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        assert batch["label"].tolist() == [True] * 4 + [False] * 4
        with torch.no_grad():
            before = answer_log_probs(reference, batch)
            divergence = answer_log_probs(model, batch, "KL_") - answer_log_probs(reference, batch, "KL_")
        seen.append(float(divergence.mean().clamp(min=0)))
        gain = 0.3 * (answer_log_probs(model, batch) - before - seen[-1])
        return torch.where(batch["label"], 1.5 * (1 - gain.sigmoid()), 0.5 * (1 - (-gain).sigmoid())).mean()

    options = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    model, ctx = train(parent, tmp_path, [Phase("one", "kto", lambda: rows, SETTING, PARTS, 4, options)])
    close(model, bare_loop(parent, rows, loss, 4))
    log = [json.loads(line) for line in (ctx.out / "train_log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert [line["kl"] for line in log] == pytest.approx(seen, abs=1e-3)
    assert max(seen) > 0, "the formula's divergence must be seen to act"
    assert ctx.facts["phases"]["one"]["reward_margin"] == log[-1]["reward_margin"] > 0


def test_the_loss_of_unpaired_answers_is_trls(parent: Path, tmp_path: Path) -> None:
    """TRL's whole way (its rows, its collator, a second model as the reference) and ours, for one batch with pictures."""
    from transformers import TrainerCallback
    from trl import KTOConfig, KTOTrainer

    from vlsafe.train.trainers import make_trainer

    rows, processor = Unpaired(tiny.preferences(4, seed=2, pictures=1.0)), load_processor(parent)
    encoder = Encoder(processor)
    encoded = encoder.encode(rows)
    [numbers] = balanced([True] * 8, [bool(e.label) for e in encoded.examples], 8, 1, 0)

    def moved(model: Any) -> Any:
        """Away from the reference, so that rewards and divergence are not zero."""
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
        return model

    setting = Optimization(steps=1, batch_size=8, learning_rate=1e-3)
    options = {"beta": 0.5, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    collator = Collator(encoder, encoded.examples, rows)
    ours = make_trainer(
        "kto",
        load_model(parent, "cpu"),
        processor,
        [numbers],
        collator,
        setting,
        0,
        tmp_path,
        options,
        TrainerCallback(),
        lambda doing: None,
        way_of(Execution(device="cpu"), ALONE),
        Split(1, 8, 1),
        [False] * 8,
    )
    moved(ours.model.train())
    batch = collator([ours.train_dataset[i] for i in range(8)])
    found = ours.compute_loss(ours.model, batch).detach()

    columns = ("prompt", "completion", "label", "images")
    asked = [{name: rows[i][name] for name in columns} for i in numbers]
    asked = [{**row, "prompt": parts(row["prompt"]), "completion": parts(row["completion"])} for row in asked]
    theirs = KTOTrainer(
        model=moved(load_model(parent, "cpu", train=True)),
        ref_model=load_model(parent, "cpu"),
        args=KTOConfig(
            str(tmp_path / "trl"), per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to="none", **options
        ),
        train_dataset=Dataset.from_list([{"images": [], "label": True}]),
        processing_class=processor,
    )
    expected = theirs.compute_loss(theirs.model, theirs.data_collator(asked)).detach()
    assert float(found) == pytest.approx(float(expected), abs=1e-5)
    assert float(found) != pytest.approx(0.5 * (1.2 + 0.7) / 2, abs=1e-3)
    for metric in ("kl", "rewards/margins", "rewards/chosen", "logps/rejected"):
        assert ours._metrics["train"][metric][-1] == pytest.approx(theirs._metrics["train"][metric][-1], rel=1e-3, abs=1e-3)
    assert ours._metrics["train"]["kl"][-1] > 0
    assert ours.step_metrics()["kl"] > 0
    assert not ours._metrics["train"], "what every step adds to is emptied by every step"


def parts(messages: list[Any]) -> list[Any]:
    """Text only: TRL puts the pictures' places in itself."""
    return [{"role": m["role"], "content": m["content"][-1]["text"]} for m in messages]


def test_adapters_train_as_the_formula_says_and_are_merged(parent: Path, tmp_path: Path) -> None:
    """W + alpha / rank · B A (Hu et al. 2021), written out as a parametrization of W, with the same A to begin with."""
    from torch.nn.utils import parametrize

    rows = tiny.supervised(40, seed=1)
    lora = Lora(rank=4, alpha=12.0, targets=("q_proj", "down_proj"), projector_learning_rate=2e-3)

    class Adapted(torch.nn.Module):
        def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
            super().__init__()
            self.A, self.B = torch.nn.Parameter(first.clone()), torch.nn.Parameter(second.clone())

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + 3.0 * self.B @ self.A

    def prepare(model: Any) -> list[Any]:
        fresh = load_model(parent, "cpu")
        names = inject(fresh, lora, 3, "here")
        assert len(names) == 4
        trained = [p for n, p in model.named_parameters() if part_of(n) == "projector"]
        for name in names:
            there = fresh.get_submodule(name)
            adapted = Adapted(there.lora_A["default"].weight.detach(), there.lora_B["default"].weight.detach())
            parametrize.register_parametrization(model.get_submodule(name), "weight", adapted)
            trained += [adapted.A, adapted.B]
        return trained

    phase = Phase("one", "sft", lambda: rows, SETTING, PARTS, 3, lora=lora)
    model, ctx = train(parent, tmp_path, [phase])
    rates = lambda name: 2e-3 if "projector" in name else SETTING.learning_rate  # noqa: E731
    theirs = bare_loop(parent, rows, lambda m, batch: m(**batch).loss, 3, prepare, rates)
    for module in list(theirs.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    assert list(model.state_dict()) == list(load_model(parent, "cpu").state_dict()), "the artifact has a whole model's names"
    expected = theirs.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=2e-5), name
    facts = ctx.facts["phases"]["one"]
    assert facts["adapted_layers"] == 4
    assert facts["trainable_parameters"]["language_model"] == 2 * 4 * (16 + 16 + 32 + 16)


def test_the_projector_may_have_a_learning_rate_of_its_own(parent: Path, tmp_path: Path) -> None:
    rows, setting = tiny.supervised(40, seed=1), replace(SETTING, projector_learning_rate=4e-4)
    model, ctx = train(parent, tmp_path, [Phase("one", "sft", lambda: rows, setting, PARTS, 3)])
    rates = lambda name: 4e-4 if "projector" in name else SETTING.learning_rate  # noqa: E731
    close(model, bare_loop(parent, rows, lambda m, batch: m(**batch).loss, 3, rates=rates))
    log = [json.loads(line) for line in (ctx.out / "train_log.jsonl").read_text().splitlines()]
    assert max(line["lr"] for line in log) == pytest.approx(SETTING.learning_rate)


def test_with_adapters_it_is_that_of_their_own_setting(parent: Path, tmp_path: Path) -> None:
    rows, lora = tiny.supervised(40, seed=1), Lora(rank=4, alpha=12.0)
    ways = {
        "adapters": (SETTING, replace(lora, projector_learning_rate=4e-4)),
        "optimization": (replace(SETTING, projector_learning_rate=4e-4), lora),
        "neither": (SETTING, lora),
    }
    found = {}
    for name, (setting, adapters) in ways.items():
        phase = Phase("one", "sft", lambda: rows, setting, PARTS, 3, lora=adapters)
        found[name] = train(parent, tmp_path / name, [phase])[0].state_dict()
    assert all(torch.equal(found["adapters"][name], tensor) for name, tensor in found["optimization"].items())
    assert not all(torch.equal(found["neither"][name], tensor) for name, tensor in found["optimization"].items())


def test_rows_over_the_longest_allowed_are_left_out_and_counted(parent: Path, tmp_path: Path) -> None:
    rows = tiny.supervised(60, seed=1)
    encoded = Encoder(load_processor(parent)).encode(rows)
    lengths = [len(e.prompt) + len(e.completions[0]) for e in encoded.examples]
    most = sorted(lengths)[45]
    short = [row for row, length in zip(rows, lengths, strict=True) if length <= most]
    cut, ctx = train(parent, tmp_path / "cut", [Phase("one", "sft", lambda: rows, replace(SETTING, max_length=most), PARTS, 3)])
    fewer, _ = train(parent, tmp_path / "fewer", [Phase("one", "sft", lambda: short, SETTING, PARTS, 3)])
    assert all(torch.equal(a, b) for a, b in zip(cut.state_dict().values(), fewer.state_dict().values(), strict=True))
    facts = ctx.facts["phases"]["one"]
    assert sum(facts["dropped_rows_by_source"].values()) == len(rows) - len(short) > 0
    assert sum(facts["rows_by_source"].values()) == len(short)
    # A limit beyond the model's own 64 positions allows no more than they do.
    long = [*short, *tiny.supervised(2, seed=9, pictures=0.0, words=(60, 70))]
    _, ctx = train(parent, tmp_path / "own", [Phase("one", "sft", lambda: long, replace(SETTING, max_length=500), PARTS, 3)])
    assert ctx.facts["phases"]["one"]["dropped_rows_by_source"] == {"text": 2}


def test_adapters_are_drawn_from_the_seed_alone(parent: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        model = load_model(parent, "cpu")
        layer = model.get_submodule(inject(model, Lora(rank=2, alpha=4.0), seed, "here")[-1])
        weight: torch.Tensor = layer.lora_A["default"].weight
        return weight

    one = first(1)
    torch.rand(3)
    assert torch.equal(one, first(1))
    assert not torch.equal(one, first(2))


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
