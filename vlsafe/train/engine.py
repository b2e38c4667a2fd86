"""Runs training phases one after the other on one model, resuming where an earlier try of the same stage stopped."""

from __future__ import annotations

import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder
from vlsafe.data.order import balanced, batches
from vlsafe.errors import StageInterrupted
from vlsafe.model.load import quiet, template_hash
from vlsafe.provenance import peak_memory_mb
from vlsafe.stage import StageContext
from vlsafe.train.broken import broken_rows, watch_pictures
from vlsafe.train.checkpoint import Checkpoint, finished_phases, mark, newest, read_log, write_log
from vlsafe.train.checks import check_image_tokens, check_rendered, check_supervised, check_vocabulary
from vlsafe.train.dtypes import cast, held, hold, named, published
from vlsafe.train.encoding import encoded_rows, forget
from vlsafe.train.logs import collect_logs, curve
from vlsafe.train.lora import inject, merge, merged_copy
from vlsafe.train.optimization import Optimization, SaveDtype
from vlsafe.train.parts import check_changes, check_trainable, fingerprints, freeze_all_but
from vlsafe.train.phase import Phase
from vlsafe.train.snapshots import Snapshots, same_config
from vlsafe.train.split import Split, Way, way_of


def run_phases(
    load: Callable[[], tuple[Any, Any]], phases: Sequence[Phase], ctx: StageContext, save_dtype: SaveDtype = "parent"
) -> tuple[Any, Any]:
    """The model and processor of `load()` after all phases; the caller saves them to `ctx.out`, on the main rank: under ZeRO no
    other has the model in the end (None). Its weights are then in `save_dtype`, `parent` being what `load()` gives.

    Raises `CheckError` where training would compute something silently wrong, `StageInterrupted` when `ctx.should_stop()`;
    the same call then goes on from the last checkpoint in `ctx.work`, to the same bits as if it had never stopped.
    `ctx.facts["earlier_seconds"]` is what earlier tries spent until that checkpoint. With `ctx.step` the last phase ends after
    that step of its schedule; `ctx.snapshots` are published on the way.
    """
    from vlsafe.train.gather import unsplit
    from vlsafe.train.weights import load_weights

    began = time.monotonic()
    way = way_of(ctx.execution, ctx.ranks)
    parts = [way.split(phase.optimization.batch_size, f"{phase.name}: batch_size") for phase in phases]
    folders = [ctx.work / f"{i}-{phase.name}" for i, phase in enumerate(phases)]
    marks = ctx.ranks.broadcast(finished_phases(folders) if ctx.ranks.main else [])
    finished = len(marks)
    total = sum(phase.optimization.steps for phase in phases)
    done = sum(phase.optimization.steps for phase in phases[:finished])
    with unsplit():
        for phase in phases[finished:]:
            if phase.sift is not None:
                phase.sift(ctx, functools.partial(say, ctx, done, total, phase.name))

    def fresh(done: int) -> tuple[Any, Any, dict[str, Any]]:
        """The model as it is after that many phases, its processor, and the dtypes that the parent is stored in."""
        with unsplit():
            made, processor = load()
        parent = {name: tensor.dtype for name, tensor in made.state_dict().items()}
        if done:
            load_weights(made, folders[done - 1] / "final.safetensors", as_saved=True)
        return made, processor, parent

    model, processor, parent = fresh(finished)
    dtypes = published(parent, save_dtype)
    ctx.facts["weights"] = {"parent": named(parent.values()), "published": named(dtypes.values())}
    ctx.facts["template_hash"] = template_hash(processor)
    ctx.facts["earlier_seconds"] = marks[-1]["seconds"] if marks else 0.0
    facts = {phase.name: done["facts"] for phase, done in zip(phases[:finished], marks, strict=True)}

    def elapsed() -> float:
        return round(float(ctx.facts["earlier_seconds"]) + time.monotonic() - began, 3)

    for number in range(finished, len(phases)):
        phase, folder = phases[number], folders[number]
        if way.zero is not None and number > finished:
            model, *_ = fresh(number)
        folder.mkdir(parents=True, exist_ok=True)
        snapshots = Snapshots(processor, phase.name, ctx, dtypes) if phase is phases[-1] else None
        checkpoint = ctx.ranks.broadcast(wanted_checkpoint(folder, way.layout, snapshots) if ctx.ranks.main else None)
        if snapshots is not None and checkpoint is None and snapshots.take(0, model):
            break
        if checkpoint is not None:
            ctx.facts["earlier_seconds"] = checkpoint.seconds
        offset = done

        def tell(step: int, note: str, offset: int = offset) -> None:
            ctx.progress(offset + step, total, note)

        def again(number: int = number) -> Any:
            made = fresh(number)[0]
            hold(made, phases[number])
            return made

        if way.zero is None or phase.optimization.precision == "fp32":  # else DeepSpeed makes bf16 of all of it
            hold(model, phase)
        model, facts[phase.name] = run_phase(
            model, processor, phase, folder, checkpoint, ctx, tell, elapsed, way, parts[number], again, dtypes, snapshots
        )
        done += phase.optimization.steps
        if phase is not phases[-1]:  # the last one's weights are what the stage publishes
            if ctx.ranks.main:
                keep(model, facts[phase.name], folder, elapsed())
            ctx.ranks.barrier()
    ctx.facts["phases"] = facts
    ctx.facts["peak_memory_mb"] = peak_memory_mb()
    if ctx.ranks.main:
        collect_logs([phase.name for phase in phases], folders, ctx.out / "train_log.jsonl")
    if model is not None:
        cast(model.eval(), dtypes)
    return model, processor


def say(ctx: StageContext, done: int, total: int, where: str, note: str) -> None:
    ctx.progress(done, total, f"{where}, {note}")


def wanted_checkpoint(folder: Path, layout: str, snapshots: Snapshots | None) -> Checkpoint | None:
    """The newest one, unless it lies beyond a snapshot that is still wanted."""
    checkpoint = newest(folder, layout)
    if checkpoint is None or snapshots is None:
        return checkpoint
    if min(snapshots.steps, default=checkpoint.step + 1) > checkpoint.step:
        return checkpoint
    shutil.rmtree(checkpoint.path)
    return None


def run_phase(
    model: Any,
    processor: Any,
    phase: Phase,
    folder: Path,
    checkpoint: Checkpoint | None,
    ctx: StageContext,
    tell: Callable[[int, str], None],
    elapsed: Callable[[], float],
    way: Way,
    parts: Split,
    again: Callable[[], Any],
    dtypes: Mapping[str, Any],
    snapshots: Snapshots | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Train `model` from `checkpoint` on; returns the trained model and the phase's facts. `elapsed`: seconds spent on the
    stage. `again()` is another `model` as it is now: under ZeRO the trained weights are put into one, on the main rank alone
    (None on others). `dtypes` are those in which the stage publishes the weights."""
    from vlsafe.train.trainers import make_trainer
    from vlsafe.train.watch import Watch

    began = time.monotonic()

    def tick(doing: str) -> None:
        if ctx.should_stop():
            raise StageInterrupted(f"{phase.name}: stopped while {doing}; nothing is lost")
        tell(0, f"{phase.name}, {doing}")

    tick("reading rows")
    setting = phase.optimization
    before = fingerprints(model)
    adapted = inject(model, phase.lora, phase.seed, phase.name) if phase.lora else ()
    parameters = freeze_all_but(model, phase.trainable, phase.name, adapted)
    weights = held(model, setting.precision, way.zero is not None)
    rows = phase.rows()
    encoder = Encoder(processor, longest(model, setting))
    encoded = encoded_rows(
        encoder, rows, folder, ctx.ranks, lambda done: tick(f"reading rows, {done} of {len(rows)}"), checkpoint is not None
    )
    check_supervised(encoded, phase.name)
    check_rendered(encoder, encoded, rows, phase.name)
    check_vocabulary(model, encoded, phase.name)
    features = check_image_tokens(model, encoder, encoded, rows, phase.name)
    pictured, labels = encoded.examples.pictured, [label is True for label in encoded.examples.labels]
    if phase.method == "kto":
        order = balanced(pictured, labels, setting.batch_size, setting.steps, phase.seed)
    else:
        order = batches(pictured, setting.batch_size, setting.steps, phase.seed)

    lines = read_log(checkpoint.path / "log.jsonl") if checkpoint else []
    if ctx.ranks.main:
        write_log(folder / "log.jsonl", lines)
    collator = Collator(encoder, encoded.examples, rows)
    watch_pictures(collator, encoded, folder, ctx.ranks)
    # A row with pictures and one without: what adapters are merged by must compute the same before and after.
    probe = collator([{"example": i} for i in {kind: i for i, kind in enumerate(pictured)}.values()]) if adapted else {}
    ready = time.monotonic()

    def whole() -> Any:
        """The model as it is now, as plain as `again()` makes it, with adapters where there are some; None on other ranks."""
        if way.zero is None:
            return model
        from vlsafe.train.gather import unsharded

        return unsharded(model, again, phase, before, ctx.ranks.main)

    with quiet(), same_config(model) as as_before:

        def after(step: int) -> bool:
            if snapshots is None or step not in snapshots.steps:
                return False
            plain = whole()
            with as_before():
                return snapshots.take(
                    step, merged_copy(plain, adapted, probe, phase.name, dtypes) if adapted and plain else plain
                )

        watch = Watch(phase.name, setting.steps, folder, ctx, lines, tell, elapsed, after, way.layout)
        trainer = make_trainer(
            phase.method,
            model,
            processor,
            order,
            collator,
            setting,
            phase.seed,
            folder,
            phase.options,
            watch,
            tick,
            way,
            parts,
            pictured,
            (phase.lora and phase.lora.projector_learning_rate) or setting.projector_learning_rate,
        )
        trainer.report = watch.report
        trainer.before_first_step = lambda t: check_trainable(t.model, t.optimizer, phase.trainable, phase.name, adapted)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        finally:
            trainer.let_go()
        if watch.interrupted:
            step = watch.lines[-1]["step"]
            raise StageInterrupted(f"{phase.name}: stopped at step {step} of {setting.steps}, with a checkpoint")
        trained = whole()
    changed = 0
    if trained is not None:
        trained.zero_grad(set_to_none=True)
        if adapted:
            merge(trained, adapted, probe, phase.name, dtypes)
        changed = check_changes(before, trained, phase.trainable, phase.name, adapted)
        trained.requires_grad_(True)

    forget(encoded, folder, ctx.ranks)
    seconds = lines[-1]["seconds"]
    return trained, {
        "method": phase.method,
        "steps": lines[-1]["step"],
        "seconds": round(seconds, 3),
        "seconds_before_first_step": round(ready - began, 3),
        "samples_per_second": round(lines[-1]["step"] * setting.batch_size / seconds, 2),
        "final_loss": sum(line["loss"] for line in lines[-10:]) / len(lines[-10:]),
        "mean_learning_rate": sum(line["lr"] for line in lines) / len(lines),
        **{name: lines[-1][name] for name in ("reward_margin", "reward_accuracy", "kl") if name in lines[-1]},
        "max_grad_norm_seen": max(line["grad_norm"] for line in lines),
        "rows_by_source": dict(Counter(encoded.examples.sources)),
        "rows_with_pictures": sum(pictured),
        "supervised_tokens_by_source": dict(encoded.supervised),
        "tokens_by_source": dict(encoded.tokens),
        "dropped_rows_by_source": dict(encoded.dropped),
        "broken_rows_by_source": broken_rows(encoded, folder),
        "passes_over_rows": round(lines[-1]["step"] * setting.batch_size / len(pictured), 3),
        **getattr(rows, "facts", {}),
        "end_token": encoded.end_token,
        "image_features": features,
        "trainable_parameters": parameters,
        "weights": weights,
        "adapted_layers": len(adapted),
        "changed_tensors": changed,
        "resumed_from_step": checkpoint.step if checkpoint else 0,
        "micro_batch_size": parts.micro,
        "gradient_accumulation": parts.accumulation,
        "loss_curve": curve(lines),
    }


def longest(model: Any, setting: Optimization) -> int | None:
    """How many tokens a row may have; None where nothing says so."""
    limits = (getattr(model.config.get_text_config(), "max_position_embeddings", None), setting.max_length)
    return min((limit for limit in limits if limit is not None), default=None)


def keep(model: Any, facts: dict[str, Any], folder: Path, seconds: float) -> None:
    """A finished phase: its weights, then the marker that they count, then its checkpoints go."""
    from vlsafe.train.weights import save_weights

    save_weights(model.state_dict(), folder / "final.safetensors")
    mark(folder / "done.json", ["final.safetensors", "log.jsonl"], seconds=seconds, facts=facts)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
