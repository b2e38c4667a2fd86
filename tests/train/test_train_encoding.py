"""Rows are encoded once, by one of the ranks and by one try, to the ids that asking for each turn by itself gives."""

from __future__ import annotations

import copy
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import train_qwen
import train_tiny as tiny

from vlsafe.data.encode import CHUNK, Encoded, Encoder
from vlsafe.data.examples import Example
from vlsafe.data.mix import Unpaired
from vlsafe.data.pictures import Picture
from vlsafe.data.render import renderer
from vlsafe.errors import CheckError
from vlsafe.model.load import load_processor
from vlsafe.model.templates import FAMILIES, with_pictures
from vlsafe.ranks import ALONE, Ranks
from vlsafe.stand_in.words import WORDS, make_tokenizer
from vlsafe.train.encoding import encoded_rows, forget

SAID = ["What is it?", "  a red\n\nsquare ", "日本 🙂 and 1234567", "It's  the other", "no", "then\tthe end."]


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processors")
    made = {"llava": load_processor(tiny.llava(folder / "llava")), "qwen": load_processor(train_qwen.qwen(folder / "qwen"))}
    for family in WORDS:
        tokenizer = make_tokenizer(family)
        tokenizer.chat_template = tokenizer.chat_template or FAMILIES["vicuna"]
        made[f"{family}, text"] = tokenizer
        shown = copy.deepcopy(made["llava"])
        tokenizer = make_tokenizer(family)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        shown.tokenizer, shown.image_token_id = tokenizer, tokenizer.convert_tokens_to_ids("<image>")
        shown.chat_template = with_pictures(tokenizer.chat_template or FAMILIES["vicuna"])
        made[family] = shown
    return made


def conversations(n: int, pictures: bool) -> list[Any]:
    """Of one to six turns, some with a system prompt and some with a picture."""
    rows = []
    for i in range(n):
        turns = 1 + i % 6
        messages = [
            tiny.message(("user", "assistant")[k % 2], SAID[(i + k) % len(SAID)], pictures and k == 0 and i % 2 == 0)
            for k in range(2 * turns)
        ]
        first = [tiny.message("system", "Be brief.")] if i % 3 == 0 else []
        shown = [tiny.picture(i)] if pictures and i % 2 == 0 else []
        rows.append({"source": "ab"[i % 2], "prompt": [*first, messages[0]], "completion": messages[1:], "images": shown})
    return rows


def asked_for_each_turn(processor: Any, row: Any, name: str) -> tuple[list[int], list[bool], int]:
    """Ids, which of them are learned, and how many the prompt has: by asking template and tokenizer for all there is until each
    mark."""
    tokenizer = getattr(processor, "tokenizer", processor)

    def text(messages: Any, asking: bool) -> str:
        if processor is tokenizer:
            messages = [{**m, "content": "".join(p.get("text", "") for p in m["content"])} for m in messages]
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking))

    messages, end = [*row["prompt"], *row[name]], tokenizer.eos_token
    until, marks, rest = "", list[str](), ""
    for k in range(len(row["prompt"]), len(messages)):
        if messages[k]["role"] != "assistant":
            continue
        question, told = text(messages[:k], True), text(messages[: k + 1], False)
        until += rest + question[len(text(messages[: k - 1], False)) :] if marks else question
        answer = told[len(question) :].rstrip()
        marks += [until, until + answer + ("" if answer.endswith(end) else end)]
        until, rest = marks[-1], told[len(question) + len(answer) :] if answer.endswith(end) else ""
    special = processor is not tokenizer and not (tokenizer.bos_token and marks[0].startswith(tokenizer.bos_token))
    parts = [tokenizer(mark, add_special_tokens=special)["input_ids"] for mark in marks]
    whole = parts[-1]
    assert all(whole[: len(part)] == part for part in parts)
    learned = [any(len(a) <= i < len(b) for a, b in zip(parts[::2], parts[1::2], strict=True)) for i in range(len(whole))]
    sizes = [p.size for p in row["images"]]
    counts: Iterator[int] = iter([Encoder(processor).image_tokens(size) for size in sizes])
    times = [next(counts) if sizes and id == processor.image_token_id else 1 for id in whole]
    spread = [(id, flag) for id, flag, n in zip(whole, learned, times, strict=True) for _ in range(n)]
    return [id for id, _ in spread], [flag for _, flag in spread], sum(times[: len(parts[0])])


def parts_of(example: Example, side: int) -> tuple[list[int], list[bool], int]:
    learned = [True] * len(example.completions[side])
    for start, end in example.asked[side] if example.asked else ():
        learned[start:end] = [False] * (end - start)
    n = len(example.prompt)
    return [*example.prompt, *example.completions[side]], [False] * n + learned, n


@pytest.mark.parametrize("kind", ["llava", "qwen", *(f"{f}{more}" for f in WORDS for more in ("", ", text"))])
def test_ids_and_what_is_learned_are_those_of_asking_for_each_turn(processors: dict[str, Any], kind: str) -> None:
    processor, pictures = processors[kind], "text" not in kind
    rows = conversations(18, pictures)
    if kind in ("llava", "mistral", "mistral, text"):
        rows = [{**row, "prompt": row["prompt"][-1:]} for row in rows]
    encoded = Encoder(processor).encode(rows)
    assert [e.row for e in encoded.examples] == list(range(18))
    for example, row in zip(encoded.examples, rows, strict=True):
        assert parts_of(example, 0) == asked_for_each_turn(processor, row, "completion")
    assert Counter(encoded.supervised) == {
        s: sum(sum(parts_of(e, 0)[1]) for e in encoded.examples if e.source == s) for s in "ab"
    }


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_pairs_and_their_sides_too(processors: dict[str, Any], kind: str) -> None:
    pairs = tiny.preferences(9, seed=3)
    for example, row in zip(Encoder(processors[kind]).encode(pairs).examples, pairs, strict=True):
        for side, name in enumerate(("chosen", "rejected")):
            assert parts_of(example, side) == asked_for_each_turn(processors[kind], row, name)
    labelled = Unpaired(pairs)
    examples = Encoder(processors[kind]).encode(labelled).examples
    assert examples.labels == [e.label for e in examples] == [True, False] * 9
    for example, row in zip(examples, labelled, strict=True):
        assert parts_of(example, 0) == asked_for_each_turn(processors[kind], row, "completion")


SHAPES = [
    [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": ""}],
    [{"role": "user", "content": []}, {"role": "assistant", "content": [{"type": "text", "text": ""}]}],
    [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": "b"}]}],
    [{"role": "system", "content": [{"type": "text", "text": "Be\nbrief."}]}, tiny.message("user", " {{ w1 }} ", True)],
    [{"role": "user", "content": [{"type": "image", "text": "w1"}, {"type": "video"}, {"type": "text", "text": "w2"}]}],
    [{"role": "user", "content": [{"text": "w1"}, {"type": "text", "text": "w2"}]}],
]


@pytest.mark.parametrize("kind", ["llava", "qwen", *(f"{f}{more}" for f in WORDS for more in ("", ", text"))])
def test_what_is_rendered_is_what_the_library_renders(processors: dict[str, Any], kind: str) -> None:
    for messages in SHAPES:
        if kind.endswith("text") or kind == "llava":
            messages = [{**m, "content": [{"type": "text", "text": str(m["content"])}]} for m in messages]
        given = [{**m, "content": m["content"][0]["text"]} for m in messages] if kind.endswith("text") else messages
        for n in range(1, len(messages) + 1):
            for asking in (True, False):
                if messages[n - 1]["role"] == "system":
                    continue
                expected = processors[kind].apply_chat_template(given[:n], tokenize=False, add_generation_prompt=asking)
                assert renderer(processors[kind])(messages)(n, asking) == expected


def test_messages_that_are_more_than_text_are_rendered_as_the_library_does(processors: dict[str, Any]) -> None:
    processor = copy.copy(processors["llava"])
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['name'] }} {{ m['content'][0] }} {% endfor %}{{ add_generation_prompt }}"
    )
    url = {"type": "image_url", "image_url": {"url": "w1"}}
    for message in (
        {"role": "user", "content": [{"type": "text", "text": "w1"}], "name": None},
        {"role": "user", "content": [{"type": "text", "text": "w1"}], "name": "w2"},
        {"role": "user", "content": [url]},
        {"role": "user", "content": [{"type": "text", "text": Path("w1")}]},
    ):
        expected = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        assert renderer(processor)([message])(1, True) == expected


class Meeting:
    """So many ranks as threads of this process."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier = world, threading.Barrier(world, timeout=60)
        self.told: list[Any] = [None] * world

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.told[rank] = copy.deepcopy(value)
        self.barrier.wait()
        everything = list(self.told)
        self.barrier.wait()
        return everything

    def run(self, work: Callable[[Ranks], Any]) -> list[Any]:
        """What each rank returns or raises."""
        found: list[Any] = [None] * self.world

        def one(rank: int) -> None:
            try:
                found[rank] = work(Thread(rank, self.world, group=self))
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found


class Thread(Ranks):
    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = self.group.gather(self.rank, value)
        return found


class Counted(Sequence[Any]):
    """Rows, and how often each was asked for."""

    def __init__(self, rows: Sequence[Any], most_broken: float = 1.0) -> None:
        self.rows, self.most_broken, self.asked = rows, most_broken, Counter[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        self.asked[index] += 1
        return self.rows[index]


def mixed(n: int) -> list[Any]:
    """Rows of two sources, some too long, some with a picture that is missing."""
    rows = tiny.supervised(n, seed=4, words=(3, 14))
    for i in range(7, n, 11):
        rows[i] = (
            {**rows[i], "id": f"id {i}", "images": [Picture(f"{i}.png", Path("nowhere"))]} if rows[i]["images"] else rows[i]
        )
    return rows


def content(encoded: Encoded) -> Any:
    counts = {name: value for name, value in vars(encoded).items() if name not in ("examples", "parts")}
    return json.dumps(counts), list(encoded.examples), encoded.examples.sources, encoded.examples.pictured


@pytest.mark.parametrize(("world", "n"), [(1, 40), (2, 1500), (3, 1500), (2, 1), (4, 10)])
def test_ranks_encode_each_row_once_to_what_one_process_has(
    processors: dict[str, Any], tmp_path: Path, world: int, n: int
) -> None:
    rows, shared, ticks = Counted(mixed(n)), Counted(mixed(n)), list[int]()
    alone = Encoder(processors["llava"], limit=45).encode(rows)
    assert n < 40 or (alone.dropped and alone.broken and len(alone.named["pictures"]) > 1)
    encode = Encoder(processors["llava"], limit=45).encode
    for encoded in Meeting(world).run(lambda ranks: encode(shared, ticks.append, ranks, tmp_path)):
        assert content(encoded) == content(alone)
    assert shared.asked == rows.asked == dict.fromkeys(range(n), 1)
    assert ticks.count(n) == world  # `tick` may be a collective: each rank calls it as often
    assert len(ticks) == world * -(-n // (world * min(CHUNK, -(-n // world))))


@pytest.mark.parametrize("bad", [3, 700])
def test_a_row_that_is_wrong_ends_all_ranks_with_what_one_process_says(
    processors: dict[str, Any], tmp_path: Path, bad: int
) -> None:
    rows = tiny.supervised(1100, seed=1)
    for i in (bad, bad + 20, 900):
        rows[i] = {**rows[i], "completion": []}
    with pytest.raises(CheckError, match=rf"row {bad} of source '\w+': has no answer of the assistant") as one:
        Encoder(processors["llava"]).encode(rows)
    for error in Meeting(2).run(lambda ranks: Encoder(processors["llava"]).encode(rows, ranks=ranks, folder=tmp_path)):
        assert isinstance(error, CheckError) and str(error) == str(one.value)


def test_what_else_fails_on_a_rank_is_told_by_all(processors: dict[str, Any], tmp_path: Path) -> None:
    rows = tiny.supervised(10, seed=1)
    del rows[7]["images"]
    first, second = Meeting(2).run(lambda ranks: Encoder(processors["llava"]).encode(rows, ranks=ranks, folder=tmp_path))
    assert isinstance(second, KeyError)
    assert isinstance(first, CheckError) and str(first) == "rank 1: KeyError: 'images'"


def test_more_broken_pictures_than_allowed_on_all_ranks_together(processors: dict[str, Any], tmp_path: Path) -> None:
    rows = Counted(mixed(200), most_broken=0.02)
    one, other = Meeting(2).run(lambda ranks: Encoder(processors["llava"]).encode(rows, ranks=ranks, folder=tmp_path))
    assert isinstance(one, CheckError) and "more than data.most_broken=0.02 allows" in str(one)
    assert str(one) == str(other)


def again(encoder: Encoder, rows: Counted, folder: Path, resumes: bool = False, ranks: Ranks = ALONE) -> Encoded:
    rows.asked.clear()
    return encoded_rows(encoder, rows, folder, ranks, lambda done: None, resumes)


def test_what_an_earlier_try_encoded_is_read(processors: dict[str, Any], tmp_path: Path) -> None:
    encoder, rows = Encoder(processors["llava"]), Counted(tiny.supervised(300, seed=1))
    expected = content(Meeting(3).run(lambda ranks: again(encoder, rows, tmp_path, ranks=ranks))[0])
    for found in (again(encoder, rows, tmp_path), *Meeting(2).run(lambda ranks: again(encoder, rows, tmp_path, ranks=ranks))):
        assert not rows.asked
        assert content(found) == expected
    other = copy.copy(processors["llava"])
    other.chat_template = "w1 " + other.chat_template
    for changed in (Encoder(other), Encoder(processors["llava"], limit=60)):
        again(changed, rows, tmp_path)
        assert len(rows.asked) == 300
    again(encoder, rows, tmp_path)
    (tmp_path / "encoded-0.ids").write_bytes((tmp_path / "encoded-0.ids").read_bytes()[:-4])
    assert content(again(encoder, rows, tmp_path)) == expected
    assert len(rows.asked) == 300
    encoded = again(encoder, rows, tmp_path)
    forget(encoded, tmp_path, ALONE)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="closed"):
        encoded.examples[0]


def test_pictures_that_were_broken_are_tried_anew_unless_steps_were_taken_without_them(
    processors: dict[str, Any], tmp_path: Path
) -> None:
    encoder, rows = Encoder(processors["llava"]), Counted(mixed(60))
    left_out = again(encoder, rows, tmp_path).broken
    assert left_out
    again(encoder, rows, tmp_path)
    assert len(rows.asked) == 60
    assert again(encoder, rows, tmp_path, resumes=True).broken == left_out
    assert not rows.asked
    rows.most_broken = 0.0
    with pytest.raises(CheckError, match=r"more than data\.most_broken=0 allows"):
        again(encoder, rows, tmp_path, resumes=True)


def test_ids_that_were_cut_off_while_training_ran_are_an_error(processors: dict[str, Any], tmp_path: Path) -> None:
    encoded = Encoder(processors["llava"]).encode(tiny.supervised(5, seed=1), folder=tmp_path)
    (tmp_path / "encoded-0.ids").write_bytes((tmp_path / "encoded-0.ids").read_bytes()[:-4])
    assert encoded.examples[3].prompt
    with pytest.raises(CheckError, match=r"encoded-0.ids: has less than was written"):
        encoded.examples[4]


def test_pictures_are_asked_of_their_rows_once(processors: dict[str, Any]) -> None:
    from vlsafe.data.collate import Collator

    rows = Counted(tiny.supervised(4, seed=1, pictures=1.0))
    encoder = Encoder(processors["llava"])
    encoded = encoder.encode(rows)
    for kept in (encoded.examples.kept, type(encoded.examples.kept)()):  # as of one process, and of one of several
        encoded.examples.kept = kept
        rows.asked.clear()
        collate = Collator(encoder, encoded.examples, rows)
        for _ in range(2):
            collate([{"example": 1}, {"example": 2}])
        assert rows.asked == ({} if kept.of(0) else {1: 1, 2: 1})
