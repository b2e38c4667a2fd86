"""What a training step costs through the trainers, beside the same step in a bare PyTorch loop over ready batches.

    python -m vlsafe.train.bench

Both sides run in this process, by turns, on the same weights and batches: a model of the microworld's size (width 96, 6 layers,
4 heads, 32×32 pictures in 16 patches), batches of 64 rows of 38 tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from vlsafe.stage import Execution, StageContext
from vlsafe.train.optimization import Optimization

WORDS = 200
TEMPLATE = (
    "<s>{% for m in messages %}{{ m['role'] }} :{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %} <image>{% else %} {{ p['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %} </s>{% endif %} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def build(folder: Path) -> None:
    """A LLaVA of the microworld's size with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "user", "assistant", ":"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *map(str, range(WORDS))])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(
        vocab_size=208,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1, image_seq_length=16)
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(do_resize=False, do_center_crop=False, size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    from vlsafe.model.load import save_model

    save_model(model, processor, folder)


def rows(n: int) -> list[Any]:
    """Rows of 38 tokens: 16 image tokens, 7 words asked, 9 answered, and the template's."""
    import random

    import numpy as np
    from PIL import Image

    draw, pixels = random.Random(0), np.random.default_rng(0)
    made = []
    for _ in range(n):
        words = [str(draw.randrange(WORDS)) for _ in range(16)]
        parts = [{"type": "image"}, {"type": "text", "text": " ".join(words[:7])}]
        made.append(
            {
                "source": "bench",
                "prompt": [{"role": "user", "content": parts}],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": " ".join(words[7:])}]}],
                "images": [Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8))],
            }
        )
    return made


def bare(folder: Path, data: list[Any], optimization: Optimization) -> float:
    """Seconds a step of forward, backward, clip and AdamW over batches that are ready."""
    import torch

    from vlsafe.data.collate import Collator
    from vlsafe.data.encode import Encoder
    from vlsafe.model.load import load_model, load_processor
    from vlsafe.train.parts import freeze_all_but

    model = load_model(folder, "cpu", train=True)
    freeze_all_but(model, ("language_model", "projector"), "bench")
    encoder = Encoder(load_processor(folder))
    collate = Collator(encoder, encoder.encode(data).examples, data)
    size = optimization.batch_size
    ready = [collate([{"example": i * size + j} for j in range(size)]) for i in range(optimization.steps)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=optimization.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, optimization.factor)
    times = []
    for batch in ready:
        started = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, optimization.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def ours(folder: Path, data: list[Any], optimization: Optimization) -> tuple[float, float]:
    """Seconds a step through `run_phases`, collation and the log included, and seconds before the first step a row."""
    import json

    from vlsafe.model.load import load_model, load_processor
    from vlsafe.train.engine import run_phases
    from vlsafe.train.phase import Phase

    with tempfile.TemporaryDirectory() as scratch:
        ctx = StageContext(out=Path(scratch) / "out", work=Path(scratch) / "work", execution=Execution(device="cpu"))
        phase = Phase("bench", "sft", lambda: data, optimization, ("language_model", "projector"), 0)
        with contextlib.redirect_stdout(io.StringIO()):
            run_phases(lambda: (load_model(folder, "cpu"), load_processor(folder)), [phase], ctx)
        seconds = [json.loads(line)["seconds"] for line in (ctx.out / "train_log.jsonl").read_text().splitlines()]
        before = ctx.facts["phases"]["bench"]["seconds_before_first_step"] / len(data)
    return statistics.median(b - a for a, b in itertools.pairwise(seconds[2:])), before


def measure(steps: int = 25, turns: int = 3) -> dict[str, float]:
    """The medians over `turns` of both sides, in seconds a step; `ratio` is ours over bare."""
    optimization = Optimization(steps=steps, batch_size=64, learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        build(folder)
        data = rows(steps * 64)
        pairs = [(bare(folder, data, optimization), *ours(folder, data, optimization)) for _ in range(turns)]
    plain, through = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    return {
        "bare_seconds": plain,
        "trainer_seconds": through,
        "ratio": statistics.median(p[1] / p[0] for p in pairs),
        "encoding_seconds_a_step": 64 * statistics.median(p[2] for p in pairs),
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.steps)
    print(
        f"training step, {options.threads} threads: trainer {1000 * found['trainer_seconds']:.1f} ms,"
        f" bare loop {1000 * found['bare_seconds']:.1f} ms, ratio {found['ratio']:.2f} (at most 1.5);"
        f" reading rows {1000 * found['encoding_seconds_a_step']:.1f} ms a step before the first"
    )


if __name__ == "__main__":
    main()
