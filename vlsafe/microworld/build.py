"""Makes the microworld's models: a tower that sees and a language model that is pretrained, joined untrained; then aligned."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vlsafe.stage import StageContext

if TYPE_CHECKING:
    from vlsafe.model.components import Microworld
    from vlsafe.train.optimization import Optimization
    from vlsafe.train.phase import Phase

LONGEST = 128  # tokens; the longest row of the world has about 40
_PRETRAINING, _ALIGNMENT = 1, 2  # streams of rows


def pretrain(settings: Microworld, ctx: StageContext) -> None:
    """Write the model before alignment to `ctx.out`: a tower that sees and a language model that knows, joined untrained.

    A killed build goes on where it was, from what `ctx.work` holds.
    """
    from vlsafe.microworld import mixtures
    from vlsafe.microworld.processor import build_processor
    from vlsafe.model.assemble import assemble, projector_of_a_new_model
    from vlsafe.model.load import save_model
    from vlsafe.train.engine import run_phases

    processor = build_processor()
    setting, offset = settings.pretraining, settings.tower.steps
    if ctx.ranks.main:
        tower = kept_tower(settings, ctx, setting.steps)
    ctx.ranks.barrier()  # the tower is trained once, by the main rank
    phase = _phase(settings, "pretraining", setting, mixtures.pretraining, _PRETRAINING)
    llm_ctx = replace(ctx, progress=lambda done, total, note: ctx.progress(offset + done, offset + total, note))
    llm, _ = run_phases(lambda: (new_language_model(settings, processor.tokenizer), processor.tokenizer), [phase], llm_ctx)
    if ctx.ranks.main:
        model = assemble(llm, tower, processor, feature_layer=-1, seed=settings.seed, projector=projector_of_a_new_model)
        save_model(model, processor, ctx.out)


def align(settings: Microworld, ctx: StageContext) -> None:
    """Write the aligned model to `ctx.out`, from the one before alignment in `ctx.parents["model"]`."""
    from vlsafe.microworld import mixtures
    from vlsafe.train.adaptation import run_and_save

    run_and_save([_phase(settings, "alignment", settings.alignment, mixtures.alignment, _ALIGNMENT)], ctx)


def _phase(settings: Microworld, name: str, setting: Optimization, make: Any, stream: int) -> Phase:
    from vlsafe.microworld.mixtures import LazyRows
    from vlsafe.train.phase import Phase

    rows = partial(LazyRows, make, settings.world, stream, setting.rows, settings.seed)
    return Phase(name, "sft", rows, setting, ("language_model",), settings.seed)


def new_language_model(settings: Microworld, tokenizer: Any) -> Any:
    """A `LlamaForCausalLM` with weights drawn from the seed; input and output embeddings are one table."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # rows are short: order is learned sooner
        tie_word_embeddings=True,
        initializer_range=0.08,  # about 1/sqrt(width): with the usual 0.02 pretraining needs twice the steps
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def kept_tower(settings: Microworld, ctx: StageContext, later_steps: int) -> Any:
    """The trained tower: from `ctx.work` where an earlier try finished it."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPVisionModel

    from vlsafe.microworld.tower import tower_config, train_tower
    from vlsafe.train.checkpoint import mark, verified

    config = tower_config(settings.tower_width, settings.tower_layers, settings.tower_heads)
    done, marker = ctx.work / "tower.safetensors", ctx.work / "tower.json"
    kept = verified(marker)
    if kept is not None:
        ctx.facts["tower"] = kept["facts"]
        with torch.random.fork_rng(devices=[]):
            tower = CLIPVisionModel(config)
        tower.load_state_dict(load_file(done))
        return tower.eval()
    training = settings.tower
    tower, losses = train_tower(
        settings.world,
        config,
        training.steps,
        training.batch_size,
        training.learning_rate,
        settings.seed,
        lambda step, loss: ctx.progress(step, training.steps + later_steps, f"vision tower: loss {loss:.3f}"),
    )
    ctx.work.mkdir(parents=True, exist_ok=True)
    save_file(tower.state_dict(), done)
    ctx.facts["tower"] = {"steps": training.steps, "final_loss": sum(losses[-10:]) / len(losses[-10:])}
    mark(marker, [done.name], facts=ctx.facts["tower"])
    return tower
