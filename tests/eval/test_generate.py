"""Answers do not depend on batches, interruptions or what is reused; what would make them silently wrong stops the stage."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.eval.conftest import Words, picture
from vlsafe.errors import CheckError, StageInterrupted
from vlsafe.eval import generate
from vlsafe.eval.base import Item
from vlsafe.eval.engines import HfEngine
from vlsafe.eval.rows import read_rows
from vlsafe.stage import StageContext

ENGINE = HfEngine(max_new_tokens=6, batch_size=8)
Folder = Callable[[str], Path]


def run(out: Path, model: Path, engine: HfEngine = ENGINE, benchmark: Any = None, limit: int | None = None, **more: Any) -> Any:
    """The rows and facts of one stage; `work` is kept beside `out`."""
    ctx = StageContext(out=out, work=out / "work", parents={"model": model}, **more)
    generate.run(benchmark or Words(), engine, limit, ctx)
    (out / "manifest.json").write_text(json.dumps({"facts": ctx.facts}))
    return read_rows(out / "responses.jsonl"), ctx.facts


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("plain")
    return (*run(out, model), out)


@pytest.mark.parametrize("size", [1, 3, 24])
def test_any_batch_size_gives_the_same_answers(plain: Any, model: Path, folder: Folder, size: int) -> None:
    rows, _ = run(folder("out"), model, replace(ENGINE, batch_size=size))
    assert rows == plain[0]


def test_answers_differ_between_prompts_and_pictures(plain: Any) -> None:
    assert len({row["response"] for row in plain[0]}) > 12
    assert len({row["image"] for row in plain[0]}) == 13  # twelve pictures, and none


def test_answers_are_the_argmax_of_whole_forward_passes_without_cache_or_padding(plain: Any, model: Path) -> None:
    import torch

    from vlsafe.model.load import load_model, load_processor

    lvlm, processor = load_model(model), load_processor(model)
    for item, row in list(zip(Words().items(None), plain[0], strict=True))[:6]:
        parts = ([{"type": "image", "image": item.image()}] if item.image else []) + [{"type": "text", "text": item.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids, new = inputs["input_ids"], []
        while len(new) < ENGINE.max_new_tokens:
            with torch.no_grad():
                token = lvlm(input_ids=ids, pixel_values=inputs.get("pixel_values")).logits[0, -1].argmax()
            if int(token) == processor.tokenizer.eos_token_id:
                break
            new.append(int(token))
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
        assert processor.tokenizer.decode(new, skip_special_tokens=True).strip() == row["response"]


def test_rows_are_in_item_order_with_what_the_items_say(plain: Any) -> None:
    rows, facts, _ = plain
    assert [(r["id"], r["prompt"], r["target"]) for r in rows] == [(i.id, i.prompt, i.target) for i in Words().items(None)]
    assert (facts["n"], facts["reused"], facts["text_image"]) == (24, 0, "no_image")
    assert facts["probe"]["items"] == 4  # two with and two without a picture
    assert facts["cut_off"] == len(facts["cut_off_ids"]) <= 24


def test_a_larger_limit_reuses_the_rows_and_a_smaller_one_copies_them(plain: Any, model: Path, folder: Folder) -> None:
    small = folder("small")
    run(small, model, limit=10)
    rows, facts = run(folder("large"), model, earlier=(small,))
    assert (facts["reused"], rows, facts["cut_off_ids"]) == (10, plain[0], plain[1]["cut_off_ids"])
    copied, facts = run(folder("copy"), Path("/nowhere"), limit=5, earlier=(plain[2],))  # no model is read for a copy
    assert (facts["n"], facts["reused"], facts["new_tokens"], copied) == (5, 5, 0, plain[0][:5])
    assert facts["template_hash"] == plain[1]["template_hash"]


def test_rows_of_another_question_are_not_reused(plain: Any, model: Path, folder: Folder) -> None:
    changed = folder("changed")
    shutil.copytree(plain[2], changed, dirs_exist_ok=True)
    rows = [{**row, "prompt": "w0"} if row["id"] == "item-03" else row for row in plain[0]]
    (changed / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again, facts = run(folder("out"), model, earlier=(changed,))
    assert (facts["reused"], again) == (23, plain[0])


def test_a_stopped_stage_goes_on_from_its_answers(plain: Any, model: Path, folder: Folder) -> None:
    out, calls = folder("out"), iter(range(100))
    with pytest.raises(StageInterrupted):
        run(out, model, should_stop=lambda: next(calls) >= 2)
    with (out / "work" / generate.PARTIAL).open("ab") as partial:
        partial.write(b'{"row": {"id": "item-0')  # what a kill in the middle of a line leaves
    rows, facts = run(out, model)
    assert (facts["resumed"], rows, facts["cut_off_ids"]) == (12, plain[0], plain[1]["cut_off_ids"])


def test_kill_9_loses_no_whole_answer(plain: Any, model: Path, folder: Folder) -> None:
    out = folder("out")
    script = f"""
import os, signal
from pathlib import Path
from tests.eval.test_generate import run
def progress(done, total, note):
    if done == 11:
        os.kill(os.getpid(), signal.SIGKILL)
run(Path({str(out)!r}), Path({str(model)!r}), progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    rows, facts = run(out, model)
    assert (facts["resumed"], rows) == (11, plain[0])


def test_a_stage_that_died_after_its_last_answer_asks_nothing_again(plain: Any, model: Path, folder: Folder) -> None:
    out = folder("out")
    (out / "work").mkdir()
    shutil.copy(plain[2] / "work" / generate.PARTIAL, out / "work")
    rows, facts = run(out, model)
    assert (facts["resumed"], facts["new_tokens"], rows) == (24, 0, plain[0])


def test_a_models_own_generation_settings_change_nothing(plain: Any, model: Path, folder: Folder) -> None:
    other = folder("other")
    shutil.copytree(model, other, dirs_exist_ok=True)
    settings = json.loads((other / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_length": 3}
    (other / "generation_config.json").write_text(json.dumps(settings))
    assert run(folder("out"), other)[0] == plain[0]


def test_text_prompts_get_a_blank_picture_where_asked_for(plain: Any, model: Path, folder: Folder) -> None:
    benchmark = Words(pictures=False)
    blank, facts = run(folder("blank"), model, replace(ENGINE, text_image="blank_image"), benchmark)
    without, _ = run(folder("without"), model, ENGINE, benchmark)
    assert facts["text_image"] == "blank_image"
    assert len({row["image"] for row in blank}) == 1
    assert {row["image"] for row in without} == {""}
    assert [row["response"] for row in blank] != [row["response"] for row in without]


def test_a_system_prompt_is_part_of_the_question(plain: Any, model: Path, folder: Folder) -> None:
    rows, facts = run(folder("out"), model, replace(ENGINE, system_prompt="w5 w6 w7"))
    assert facts["decoding"]["system_prompt"] == "w5 w6 w7"
    assert [row["response"] for row in rows] != [row["response"] for row in plain[0]]


def test_another_template_than_in_training_stops_the_stage(model: Path, folder: Folder) -> None:
    other = folder("other")
    shutil.copytree(model, other, dirs_exist_ok=True)
    (other / "manifest.json").write_text(json.dumps({"facts": {"template_hash": "0123456789abcdef"}}))
    with pytest.raises(CheckError, match="trained under chat template 0123456789ab"):
        run(folder("out"), other)


def with_template(model: Path, other: Path, template: str) -> Path:
    shutil.copytree(model, other, dirs_exist_ok=True)
    (other / "chat_template.jinja").write_text(template)
    return other


def test_a_template_that_leaves_out_what_is_asked_stops_the_stage(model: Path, folder: Folder) -> None:
    own = (model / "chat_template.jinja").read_text()
    silent = with_template(model, folder("silent"), own.replace("{{ part['text'] }}", "w3"))
    with pytest.raises(CheckError, match=r"item item-\d+: the chat template leaves out its prompt, 'w\d+ "):
        run(folder("out"), silent)
    deaf = with_template(model, folder("deaf"), own.replace("for m in messages", "for m in messages if m['role'] == 'user'"))
    run(folder("asked"), deaf, benchmark=Few())
    with pytest.raises(CheckError, match="leaves out its system prompt, 'w5 w6 w7'"):
        run(folder("told"), deaf, replace(ENGINE, system_prompt="w5 w6 w7"), Few())


def test_a_processor_of_a_larger_vocabulary_stops_the_stage(model: Path, folder: Folder) -> None:
    from vlsafe.model.load import load_processor

    other = folder("other")
    shutil.copytree(model, other, dirs_exist_ok=True)
    processor = load_processor(model)
    processor.tokenizer.add_tokens(["w99"])
    processor.save_pretrained(other)
    with pytest.raises(CheckError, match="item new: token id 48 is beyond the model's 48 embeddings"):
        run(folder("out"), other, benchmark=Few(last=Item("new", "words", "w1 w99", "refuse")))


def test_a_prompt_without_room_for_its_answer_stops_the_stage(model: Path, folder: Folder) -> None:
    long = Few(last=Item("long", "words", "w1 " * 2040, "refuse"))
    assert len(run(folder("short"), model, replace(ENGINE, max_new_tokens=4), long)[0]) == 3
    with pytest.raises(CheckError, match=r"item long: 204\d tokens and 8 for the answer are more than the model's 2048"):
        run(folder("out"), model, replace(ENGINE, max_new_tokens=8), long)


@dataclass(frozen=True)
class Few(Words):
    """Two items that are right and one that is not."""

    last: Item | None = None

    def items(self, limit: int | None) -> list[Item]:
        return [*super().items(2), *([self.last] if self.last else [])]


def test_a_prompt_that_spells_out_the_image_token_stops_the_stage(model: Path, folder: Folder) -> None:
    hostile = Item("hostile", "words", "w1 <image> w2", "refuse")
    with pytest.raises(CheckError, match="item hostile: its prompt shows 1 '<image>' for 0 pictures"):
        run(folder("out"), model, benchmark=Few(last=hostile))


def test_two_items_of_one_id_stop_the_stage(model: Path, folder: Folder) -> None:
    with pytest.raises(CheckError, match="two items have the id 'item-01'"):
        run(folder("out"), model, benchmark=Few(last=Item("item-01", "words", "w1", "refuse")))


def test_wrong_image_token_counts_stop_the_stage(model: Path, folder: Folder) -> None:
    other = folder("other")
    shutil.copytree(model, other, dirs_exist_ok=True)
    settings = json.loads((other / "processor_config.json").read_text())
    (other / "processor_config.json").write_text(json.dumps(settings | {"patch_size": 16}))
    with pytest.raises(CheckError, match="4 image tokens for 16 image features"):
        run(folder("out"), other)


def test_padding_on_the_wrong_side_stops_the_stage(model: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsafe.eval import decoding

    encode = decoding.encode

    def padded_right(*arguments: Any) -> Any:
        inputs, hashes = encode(*arguments)
        for row, mask in enumerate(inputs["attention_mask"]):
            shift = int((mask == 0).sum())
            for name in ("input_ids", "attention_mask"):
                inputs[name][row] = inputs[name][row].roll(-shift)
        return inputs, hashes

    monkeypatch.setattr(decoding, "encode", padded_right)
    with pytest.raises(CheckError, match="its answer depends on the batch"):
        run(folder("out"), model)


def test_weights_that_are_not_finite_stop_the_stage(model: Path, folder: Folder) -> None:
    from safetensors.torch import load_file, save_file

    other = folder("other")
    shutil.copytree(model, other, dirs_exist_ok=True)
    weights = load_file(other / "model.safetensors")
    weights[next(name for name in weights if name.endswith("lm_head.weight"))][0] = float("nan")
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckError, match="logits are not finite"):
        run(folder("out"), other)


def test_no_control_character_stands_in_the_file(folder: Folder) -> None:
    from vlsafe.eval.rows import write_rows

    path = folder("out") / "rows.jsonl"
    hostile = {"response": "\x1b[2J\x9b31m\x7f\u202e\u2028 é"}
    write_rows(path, [hostile])
    assert all(32 <= byte < 127 for byte in path.read_bytes().rstrip(b"\n"))
    assert read_rows(path) == [hostile]


def test_the_picture_hash_tells_pictures_apart_and_nothing_else() -> None:
    from vlsafe.eval.decoding import picture_hash

    assert picture_hash(picture(1)) == picture_hash(picture(1).convert("RGBA"))
    assert picture_hash(picture(1)) != picture_hash(picture(2))
    assert picture_hash(picture(1).transpose(2)) != picture_hash(picture(1))
