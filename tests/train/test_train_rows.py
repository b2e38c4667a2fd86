"""Rows to batches: what is supervised, what is shown to the model, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import train_tiny as tiny

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder
from vlsafe.data.mix import Unpaired
from vlsafe.errors import CheckError
from vlsafe.model.load import load_processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_processor(tiny.llava(tmp_path_factory.mktemp("llava")))


def test_ids_are_those_the_processor_makes_and_only_the_answer_is_supervised(processor: Any) -> None:
    rows = tiny.supervised(20, seed=1)
    encoder = Encoder(processor, limit=64)
    encoded = encoder.encode(rows)
    collate = Collator(encoder, encoded.examples, rows)
    for i, row in enumerate(rows):
        batch = collate([{"example": i}])
        messages = [*row["prompt"], *row["completion"]]
        if row["images"]:
            messages[0] = {"role": "user", "content": [{"type": "image", "image": row["images"][0]}, messages[0]["content"][1]]}
        whole = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        assert batch["input_ids"].tolist() == whole["input_ids"].tolist()
        assert ("pixel_values" in batch) == bool(row["images"])
        if row["images"]:
            assert batch["pixel_values"].equal(whole["pixel_values"])
        supervised = batch["input_ids"][batch["labels"] != -100]
        assert processor.tokenizer.convert_ids_to_tokens(supervised.tolist()) == [
            *row["completion"][0]["content"][0]["text"].split(),
            "</s>",
        ]
    expected = {"pictures": 0, "text": 0}
    for row in rows:
        expected[row["source"]] += len(row["completion"][0]["content"][0]["text"].split()) + 1
    assert dict(encoded.supervised) == expected
    assert encoded.end_token == "template"


def test_padding_changes_nothing_but_length(processor: Any) -> None:
    rows = tiny.supervised(6, seed=2)
    encoder = Encoder(processor)
    collate = Collator(encoder, encoder.encode(rows).examples, rows)
    together = collate([{"example": i} for i in range(6)])
    for i in range(6):
        alone = collate([{"example": i}])
        n = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels", "attention_mask"):
            assert together[name][i, :n].equal(alone[name][0])
        assert (together["labels"][i, n:] == -100).all()
        assert (together["attention_mask"][i, n:] == 0).all()


def test_pairs_share_the_prompt_and_mask_only_the_answers(processor: Any) -> None:
    rows = tiny.preferences(5, seed=3, pictures=1.0)
    encoder = Encoder(processor)
    batch = Collator(encoder, encoder.encode(rows).examples, rows)([{"example": i} for i in range(5)])
    assert batch["input_ids"].shape[0] == 10
    assert batch["pixel_values"][:5].equal(batch["pixel_values"][5:])
    for i, row in enumerate(rows):
        for k, name in ((i, "chosen"), (5 + i, "rejected")):
            answer = batch["input_ids"][k][batch["completion_mask"][k] == 1]
            assert processor.tokenizer.convert_ids_to_tokens(answer.tolist()) == [
                *row[name][0]["content"][0]["text"].split(),
                "</s>",
            ]
        first = batch["completion_mask"][i].argmax()
        assert batch["input_ids"][i, :first].equal(batch["input_ids"][5 + i, :first])


def test_labelled_rows_are_the_sides_of_pairs_with_a_mismatched_answer_each(processor: Any) -> None:
    pairs = tiny.preferences(3, seed=3, pictures=1.0)
    rows = Unpaired(pairs)
    assert [row["label"] for row in rows] == [True, False] * 3
    assert rows[4]["completion"] == pairs[2]["chosen"]
    assert rows[5]["completion"] == pairs[2]["rejected"]
    assert rows[5]["prompt"] == pairs[2]["prompt"]
    encoder = Encoder(processor)
    encoded = encoder.encode(rows)
    collate = Collator(encoder, encoded.examples, rows)
    order = [0, 2, 4, 1, 3, 5]
    features = [{"example": i, "mismatched": order[k - 1]} for k, i in enumerate(order)]
    batch = collate(features)
    assert batch["label"].tolist() == [True] * 3 + [False] * 3
    assert batch["pixel_values"].shape[0] == 6
    for k, i in enumerate(order):
        for prefix, answer in (("", rows[i]), ("KL_", rows[order[k - 1]])):
            ids, answered = batch[f"{prefix}input_ids"][k], batch[f"{prefix}completion_mask"][k] == 1
            words = answer["completion"][0]["content"][0]["text"].split()
            assert processor.tokenizer.convert_ids_to_tokens(ids[answered].tolist()) == [*words, "</s>"]
            asked = ids[: answered.int().argmax()].tolist()
            assert asked == list(encoded.examples[i].prompt)
    encoder.limit = max(len(e.prompt) + len(e.completions[0]) for e in encoded.examples) - 2
    assert collate(features)["KL_input_ids"].shape[1] <= encoder.limit < batch["input_ids"].shape[1]


def test_an_end_is_added_where_the_template_has_none() -> None:
    plain = tiny.tokenizer()
    plain.chat_template = tiny.TEMPLATE.replace("{{ eos_token }}", "")
    rows = tiny.supervised(3, seed=4, pictures=0.0)
    encoded = Encoder(plain).encode(rows)
    assert encoded.end_token == "appended"
    assert all(e.completions[0][-1] == plain.eos_token_id for e in encoded.examples)


def test_what_a_template_writes_after_an_end_is_not_learned() -> None:
    lines = tiny.tokenizer()
    lines.add_tokens(["\n"])
    lines.chat_template = tiny.TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}\n")
    rows = tiny.supervised(3, seed=4, pictures=0.0)
    again = [tiny.message("user", "w1 w2"), tiny.message("assistant", "w3")]
    for completion, answers in (((), 1), (again, 2)):
        talked = [{**row, "completion": [*row["completion"], *completion]} for row in rows]
        encoder = Encoder(lines)
        encoded = encoder.encode(talked)
        collate = Collator(encoder, encoded.examples, talked)
        for i, row in enumerate(rows):
            batch = collate([{"example": i}])
            learned = lines.convert_ids_to_tokens(batch["input_ids"][batch["labels"] != -100].tolist())
            first = [*row["completion"][0]["content"][0]["text"].split(), "</s>"]
            assert learned == [*first, *(["w3", "</s>"] if answers == 2 else [])]
            whole = lines.convert_ids_to_tokens(batch["input_ids"][0].tolist())
            assert whole.count("\n") == answers - 1  # between turns it stands, as evaluation has it
        assert encoded.end_token == "template"


LLAVA_15 = (  # of llava-hf/llava-1.5-7b-hf: pictures first, no BOS (the tokenizer adds it), a space and no end after the answer
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_the_template_of_a_real_llava(processor: Any) -> None:
    import copy

    from tokenizers import pre_tokenizers, processors

    real = copy.deepcopy(processor)
    core = real.tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    real.tokenizer.add_tokens(["ASSISTANT:", "USER:", "▁"])
    real.chat_template = LLAVA_15
    row = tiny.supervised(1, seed=8, pictures=1.0)[0]
    (example,) = Encoder(real).encode([row]).examples
    assert example.prompt[0] == 1
    assert example.prompt.count(4) == 16
    assert real.tokenizer.convert_ids_to_tokens(example.prompt[-1:].tolist()) == ["ASSISTANT:"]
    assert example.completions[0][-1] == 2
    assert real.tokenizer.decode(example.completions[0][-2:-1].tolist()).strip() != "", (
        "the space after the answer is supervised"
    )


def test_a_template_that_changes_the_prompt_is_refused() -> None:
    plain = tiny.tokenizer()
    plain.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
    )
    with pytest.raises(CheckError, match="renders the prompt otherwise"):
        Encoder(plain).encode(tiny.supervised(2, seed=5, pictures=0.0))


def test_a_long_row_is_dropped_and_counted_never_cut(processor: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = tiny.supervised(30, seed=6)
    whole = Encoder(processor).encode(rows)
    lengths = [len(e.prompt) + len(e.completions[0]) for e in whole.examples]
    limit = sorted(lengths)[20]
    encoded = Encoder(processor, limit).encode(rows)
    assert sum(encoded.dropped.values()) == sum(length > limit for length in lengths) > 0
    assert [e.completions for e in encoded.examples] == [
        e.completions for e, length in zip(whole.examples, lengths, strict=True) if length <= limit
    ]
    assert "dropped" in caplog.text


def test_pictures_and_places_must_agree(processor: Any) -> None:
    row = tiny.supervised(1, seed=7, pictures=1.0)[0]
    with pytest.raises(CheckError, match="shows 1 pictures and it brings 0"):
        Encoder(processor).encode([{**row, "images": []}])
    with pytest.raises(CheckError, match="plain language model"):
        Encoder(tiny.tokenizer()).encode([row])
