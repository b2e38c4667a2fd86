"""Each data set is read from its real files, columns and folders: invented rows, laid out as the hub lays them out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from vlsafe import registry
from vlsafe.data.pictures import opened
from vlsafe.errors import CheckError, ConfigError, SourceError
from vlsafe.sources import placed
from vlsafe.stand_in.sets import REFUSAL, SETS, picture, write_all

PAIRS = ("preference", "helpful_preference")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("hub"))


def rows(mirror: Path, name: str, purpose: Any, **settings: Any) -> Any:
    return placed(registry.make("dataset", {"name": name, **settings}), str(mirror)).rows(purpose)


def text(messages: Any) -> list[str]:
    """`user: <image> What is this?`"""
    shown = [" ".join("<image>" if p["type"] == "image" else p["text"] for p in m["content"]) for m in messages]
    return [f"{m['role']}: {words}" for m, words in zip(messages, shown, strict=True)]


def test_every_set_serves_what_it_says_in_trl_columns(mirror: Path) -> None:
    for name in registry.names("dataset"):
        cls: Any = registry.get("dataset", name)
        assert cls.serves and cls.licence, name
        if name == "jsonl":
            continue
        assert cls.source.id in SETS and cls.page.endswith(cls.source.id), name
        for purpose in cls.serves:
            found = rows(mirror, name, purpose)
            assert len(found) > 4, (name, purpose)
            for row in found:
                assert set(row) == {"id", "source", "prompt", "images"} | (
                    {"chosen", "rejected"} if purpose in PAIRS else {"completion"}
                )
                assert row["source"] == name
                assert row["prompt"][-1]["role"] == "user"
                shown = sum(p["type"] == "image" for side in row.values() if side and isinstance(side, list) for m in side
                            if isinstance(m, dict) for p in m["content"])  # fmt: skip
                assert shown == len(row["images"])
                assert [opened(p).mode for p in row["images"]] == ["RGB"] * shown


def test_stand_ins_are_the_same_bytes_each_time(mirror: Path, tmp_path: Path) -> None:
    def hashes(root: Path) -> dict[str, str]:
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}

    assert hashes(write_all(tmp_path)) == hashes(mirror)


def test_llava_instruct_has_turns_and_text_and_shows_the_picture_first(mirror: Path) -> None:
    found = rows(mirror, "llava_instruct", "instruct")
    assert text(found[2]["prompt"]) == ["user: <image> What colour is the square?"]
    assert text(found[2]["completion"]) == [
        "assistant: blue.", "user: Which shape is it?", "assistant: A square.", "user: Where does it lie?",
        "assistant: On white.",
    ]  # fmt: skip
    assert text(found[3]["prompt"]) == ["user: <image> What colour is the square?"]  # its sign for the picture comes last
    assert found[5]["images"] == [] and text(found[5]["prompt"]) == ["user: Name a green thing."]
    assert [row["id"] for row in found[4:6]] == ["000000000004", "talk5_0"]


def test_vlguard_asks_both_of_a_safe_picture_in_one_conversation(mirror: Path) -> None:
    found = rows(mirror, "vlguard", "safety")
    orders = set()
    for k, row in enumerate(found):
        answers = [m["content"][0]["text"] for m in row["completion"] if m["role"] == "assistant"]
        assert (len(answers) == 2 and answers.count(REFUSAL) == 1) if k % 2 == 0 else answers == [REFUSAL]
        if k % 2 == 0:
            orders.add(answers[0] == REFUSAL)
        assert [m["role"] for m in [*row["prompt"], *row["completion"]]] == ["user", "assistant"] * len(answers)
    assert orders == {True, False}
    assert [row["prompt"] for row in rows(mirror, "vlguard", "safety")] == [row["prompt"] for row in found]


def test_safe_rlhf_prefers_the_safer_of_two_and_the_better_of_two_safe_ones(mirror: Path) -> None:
    safer, better = (rows(mirror, "safe_rlhf", purpose) for purpose in PAIRS)
    refused = [row for row in safer if text(row["chosen"]) == [f"assistant: {REFUSAL}"]]
    assert len(safer) == 36 and len(refused) == 24
    assert all("Take the" in text(row["rejected"])[0] for row in refused)
    assert len(better) == 12
    assert all("next to the wall" in text(row["chosen"])[0] and "On white." in text(row["rejected"])[0] for row in better)


def test_safe_rlhf_leaves_out_pairs_of_two_unsafe_answers(mirror: Path, tmp_path: Path) -> None:
    line = json.loads((mirror / "PKU-Alignment/PKU-SafeRLHF/data/Alpaca-7B/train.jsonl").read_text().splitlines()[1])
    unsafe = {**line, "is_response_0_safe": False, "is_response_1_safe": False}
    (tmp_path / "some.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(unsafe) + "\n")
    source = {"folder": str(tmp_path / "some.jsonl")}
    assert len(rows(tmp_path, "safe_rlhf", "preference", source=source)) == 1
    assert len(rows(tmp_path, "safe_rlhf", "preference", source=source, unsafe_pairs=True)) == 2


def test_pictures_of_llava_instruct_are_looked_for_before_anything_runs(mirror: Path, tmp_path: Path) -> None:
    name = "llava_v1_5_mix665k.json"
    (tmp_path / name).write_bytes((mirror / "liuhaotian/LLaVA-Instruct-150K" / name).read_bytes())
    source = {"folder": str(tmp_path)}
    with pytest.raises(
        CheckError, match=r"aren't on the hub; download them from their own sites .docs/data.md. and set images"
    ):
        rows(tmp_path, "llava_instruct", "instruct", source=source)
    images = {"folder": str(mirror / "liuhaotian/LLaVA-Instruct-150K/images")}
    assert rows(tmp_path, "llava_instruct", "instruct", source=source, images=images)[0]["images"][0].size == (64, 48)


def test_safety_tuned_llamas_says_that_it_is_not_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"git clone https://github.com/vinid/safety-tuned-llamas and set source"):
        rows(tmp_path, "safety_tuned_llamas", "safety")


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        (
            "llava_instruct",
            "llava_v1_5_mix665k.json",
            {"image": "../../../etc/passwd"},
            "column 'image': '../../../etc/passwd' leads out",
        ),
        (
            "llava_instruct",
            "llava_v1_5_mix665k.json",
            {"conversations": None},
            "column 'conversations' must be a list, not NoneType",
        ),
        (
            "llava_instruct",
            "llava_v1_5_mix665k.json",
            {"conversations": [{"from": "cat", "value": "x"}]},
            "turns of 'human' or 'gpt'",
        ),
        (
            "llava_instruct",
            "llava_v1_5_mix665k.json",
            {"conversations": [{"from": "human", "value": "x"}]},
            "from question to answer",
        ),
        (
            "vlguard",
            "train.json",
            {"instr-resp": [{"instruction": "x", "response": "y"}]},
            "must have safe_instruction and unsafe",
        ),
        ("vlguard", "train.json", {"safe": "yes"}, "column 'safe' must be true or false, not str"),
        ("vlguard", "train.json", {"image": "/etc/passwd"}, "column 'image': '/etc/passwd' leads out of the data set's folder"),
    ],
)
def test_a_row_that_isnt_as_it_should_be_says_file_row_and_column(
    mirror: Path, tmp_path: Path, name: str, file: str, change: dict[str, Any], message: str
) -> None:
    id = next(id for id, write in SETS.items() if write.__name__ == name)
    SETS[id](tmp_path)
    listed = json.loads((tmp_path / file).read_text())
    listed[2] |= change
    (tmp_path / file).write_text(json.dumps(listed))
    found = rows(tmp_path, name, "instruct" if name == "llava_instruct" else "safety", source={"folder": str(tmp_path)})
    assert found[1]
    with pytest.raises(CheckError) as error:
        found[2]
    assert f"{tmp_path / file}: row 2: " in str(error.value) and message in str(error.value)


def test_a_folder_that_holds_something_else_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(CheckError, match=r"has no data/train-\*.parquet: is it the data set that its setting says"):
        rows(tmp_path, "spa_vl", "preference", source={"folder": str(tmp_path)})
    with pytest.raises(SourceError, match="there is no such file or folder"):
        rows(tmp_path, "spa_vl", "preference", source={"folder": str(tmp_path / "none")})


def own(tmp_path: Path, purpose: Any, *lines: Any) -> Any:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rows(tmp_path, "jsonl", purpose, source={"folder": str(tmp_path / "own.jsonl")})


def test_own_rows_may_be_text_or_messages(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    system = {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}
    shown = {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image"}]}
    found = own(
        tmp_path, "instruct",
        {"prompt": "Why?", "completion": "So.", "id": 7},
        {"prompt": [system, question], "completion": [answer]},
        {"messages": [question, answer, question, answer, question]},
        {"prompt": "Why?", "completion": "So.", "image": "a.png"},
        {"prompt": "From <image> to <image>", "completion": "So.", "images": ["a.png", "a.png"]},
        {"messages": [shown, answer], "images": ["a.png"]},
    )  # fmt: skip
    assert [text([*row["prompt"], *row["completion"]]) for row in found] == [
        ["user: Why?", "assistant: So."],
        ["system: Be kind.", "user: Why?", "assistant: So."],
        ["user: Why?", "assistant: So.", "user: Why?", "assistant: So."],
        ["user: <image> Why?", "assistant: So."],
        ["user: From <image> to <image>", "assistant: So."],
        ["user: See <image>", "assistant: So."],
    ]
    assert [row["id"] for row in found[:2]] == ["7", "1"]
    assert [p.size for p in found[4]["images"]] == [(48, 32)] * 2


def test_own_pairs_may_repeat_the_prompt_or_leave_it_out(tmp_path: Path) -> None:
    question, good, bad = ({"role": r, "content": c} for r, c in (("user", "Why?"), ("assistant", "So."), ("assistant", "No.")))
    found = own(
        tmp_path, "preference",
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": [question], "chosen": [good], "rejected": [bad]},
        {"prompt": [question], "chosen": [question, good], "rejected": [question, bad]},
        {"chosen": [question, good], "rejected": [question, bad]},
    )  # fmt: skip
    for row in found:
        sides = (text(row[name]) for name in ("prompt", "chosen", "rejected"))
        assert [*sides] == [["user: Why?"], ["assistant: So."], ["assistant: No."]]


def test_own_parquet_holds_pictures_as_bytes(tmp_path: Path) -> None:
    part = {"type": "image", "text": None}, {"type": "text", "text": "See"}
    said = {"messages": [{"role": "user", "content": list(part)}, {"role": "assistant", "content": [part[1]]}]}
    images = [{"bytes": picture(2), "path": "p.jpg"}]
    pq.write_table(pyarrow.Table.from_pylist([{**said, "images": images}]), tmp_path / "own.parquet")
    row = rows(tmp_path, "jsonl", "instruct", source={"folder": str(tmp_path)})[0]
    assert text(row["prompt"]) == ["user: <image> See"]
    assert row["images"][0].size == (48, 32) and row["images"][0].name == "p.jpg"


@pytest.mark.parametrize(
    ("purpose", "line", "message"),
    [
        ("instruct", {"prompt": "x"}, "row 0: has no column 'completion'; it has: prompt"),
        ("preference", {"prompt": "x", "completion": "y"}, "row 0: has no column 'chosen'; it has: prompt, completion"),
        (
            "instruct",
            {"prompt": "x", "completion": 3},
            "row 0: column 'completion' must be text or a list of messages, not int",
        ),
        ("instruct", {"messages": [{"role": "robot", "content": "x"}]}, "row 0: column 'messages': each message needs a role"),
        ("instruct", {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "parts of type text or image"),
        ("instruct", {"messages": [{"role": "user", "content": "x"}]}, "row 0: column 'messages' has no answer to learn from"),
        ("instruct", {"messages": [{"role": "assistant", "content": "x"}]}, "row 0: there is no question before the answer"),
        ("instruct", {"prompt": "x <image>", "completion": "y", "images": ["a.png", "b.png"]}, "shows 1 pictures and brings 2"),
        ("instruct", {"prompt": "x", "completion": "y", "image": "../a.png"}, "column 'image': '../a.png' leads out"),
        ("instruct", {"prompt": "x", "completion": "y", "image": 3}, "column 'image' must be a path or bytes, not int"),
        ("instruct", {"prompt": "x", "completion": "y", "picture": "a.png"}, "column 'picture' is not read: name it 'image'"),
        (
            "preference",
            {"prompt": "x", "chosen": "y", "rejcted": "z", "rejected": None},
            "'rejcted' is not read: name it 'rejected'",
        ),
    ],
)
def test_own_rows_that_cant_be_used_say_what_is_wrong(tmp_path: Path, purpose: str, line: Any, message: str) -> None:
    with pytest.raises(CheckError) as error:
        own(tmp_path, purpose, line)
    assert message in str(error.value) and str(tmp_path / "own.jsonl") in str(error.value)


def test_an_unknown_setting_of_a_set_has_the_nearest_match() -> None:
    share = {"dataset": {"name": "vlguard", "sorce": {"id": "a/b"}}}
    with pytest.raises(ConfigError, match=r"data.safety.v.dataset.sorce: unknown setting; did you mean 'source'"):
        registry.make("data", {"name": "mixture", "safety": {"v": share}})
    with pytest.raises(ConfigError, match=r"data.safety.v.dataset.name=vlgard: no such dataset; did you mean 'vlguard'"):
        registry.make("data", {"name": "mixture", "safety": {"v": {"dataset": {"name": "vlgard"}}}})


def test_the_documentation_lists_every_set_with_its_licence_and_gate() -> None:
    lines = (ROOT / "docs" / "data.md").read_text().splitlines()
    for name in registry.names("dataset"):
        cls: Any = registry.get("dataset", name)
        if name == "jsonl":
            continue
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert cls.page in line and cls.licence in line and all(f"`{purpose}`" in line for purpose in cls.serves)
        assert ("HF_TOKEN" in line) == cls.gated
        assert ("non-commercial" in line) == cls.non_commercial
