"""What encoding rows costs, beside the tokenizer alone over the same texts, each once; and what a row of Parquet costs.

    python -m vlsafe.data.bench

Both sides run in this process by turns, on one thread. Rows are as LLaVA-Instruct's: 5 to 10 turns, about 2,000 characters,
nine of ten with a picture. The tokenizer merges bytes; its 8,000 tokens are learned from this project's documents, which give
the words too.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

DOCUMENTS = Path(__file__).resolve().parent.parent.parent / "docs"
ENDS = ("<|im_start|>", "<|im_end|>")


def processor(text: str) -> Any:
    """LLaVA's, with a language model's template of the ChatML kind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    from vlsafe.model.templates import FAMILIES, IMAGE, with_pictures

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(vocab_size=8000, special_tokens=[*ENDS, IMAGE], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=ENDS[1], pad_token=ENDS[1], additional_special_tokens=[ENDS[0], IMAGE]
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=with_pictures(FAMILIES["smollm2"]),
    )


def rows(n: int, words: list[str], folder: Path) -> list[Any]:
    from PIL import Image

    from vlsafe.data.pictures import Picture

    draw = random.Random(0)
    Image.new("RGB", (640, 480)).save(folder / "picture.jpg")
    made = []
    for i in range(n):
        turns = draw.randint(5, 10)
        messages = []
        for k in range(2 * turns):
            role, characters = ("assistant", 1500 // turns) if k % 2 else ("user", 500 // turns)
            said = " ".join(draw.choices(words, k=characters // 6))
            shown = [{"type": "image"}] if k == 0 and i % 10 else []
            messages.append({"role": role, "content": [*shown, {"type": "text", "text": said}]})
        images = [Picture("picture.jpg", folder / "picture.jpg")] if i % 10 else []
        made.append({"source": "bench", "prompt": messages[:1], "completion": messages[1:], "images": images})
    return made


def measure(n: int, turns: int = 3) -> tuple[float, float]:
    """Rows a second through `Encoder`, and texts a second through the tokenizer: medians over `turns`."""
    from vlsafe.data.encode import Encoder

    text = "\n".join(path.read_text("utf-8") for path in sorted(DOCUMENTS.glob("*.md")))
    made = processor(text)
    found = []
    with tempfile.TemporaryDirectory() as name:
        data = rows(n, [word for word in text.split() if "<" not in word], Path(name))
        texts = made.apply_chat_template([[*r["prompt"], *r["completion"]] for r in data], tokenize=False)
        for _ in range(turns):
            began = time.perf_counter()
            Encoder(made).encode(data)
            middle = time.perf_counter()
            for start in range(0, n, 512):
                made.tokenizer(texts[start : start + 512], add_special_tokens=False)
            found.append((n / (middle - began), n / (time.perf_counter() - middle)))
    return statistics.median(f[0] for f in found), statistics.median(f[1] for f in found)


def shuffled(n: int = 2000, asked: int = 400) -> tuple[float, float, float]:
    """Milliseconds for a row of a Parquet file asked at random, before and after it was unpacked, and of one in order. As
    SPA-VL's: pictures of 30 to 100 KB (of noise, which doesn't compress, as JPEG doesn't) in groups of 100."""
    import datasets
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlsafe.data.parquet import ParquetTable

    noise, order = np.random.default_rng(0), random.Random(0)

    def milliseconds(table: ParquetTable, places: list[int]) -> float:
        began = time.perf_counter()
        for place in places:
            table.row(place)
        return 1000 * (time.perf_counter() - began) / len(places)

    with tempfile.TemporaryDirectory() as name:
        datasets.config.HF_DATASETS_CACHE = Path(name)
        pictures = [{"bytes": noise.bytes(int(noise.integers(30_000, 100_000))), "path": f"{i}.jpg"} for i in range(n)]
        pq.write_table(pa.table({"image": pictures, "text": ["x" * 900] * n}), f"{name}/rows.parquet", row_group_size=100)
        table = ParquetTable([Path(name) / "rows.parquet"])
        groups = n // 100
        packed = milliseconds(table, order.sample(range(n), groups))
        for place in order.sample(range(n), asked):
            table.row(place)
        after = milliseconds(table, order.sample(range(n), asked))
        return packed, after, milliseconds(ParquetTable([Path(name) / "rows.parquet"]), list(range(n)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ours, bare = measure(parser.parse_args().rows)
    print(
        f"encoding, one thread: {ours:.0f} rows/s, the tokenizer alone {bare:.0f}, ratio {bare / ours:.1f};"
        f" 665,298 rows take {665298 / ours / 60:.0f} min in one process, {665298 / ours / 60 / 8:.0f} min in each of 8 ranks"
    )
    packed, unpacked, in_order = shuffled()
    print(
        f"a Parquet row asked at random: {packed:.2f} ms while groups are decoded for it, {unpacked:.2f} ms once the file is"
        f" unpacked, ratio {packed / unpacked:.0f}; in order {in_order:.2f} ms"
    )


if __name__ == "__main__":
    main()
