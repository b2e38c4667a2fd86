"""Each command of the documentation is one that can be given: what it composes is planned, and what it names is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Launch
from tests.plugin_packages import install_example, on_path

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^    (python launch/(?:.*\\\n)*.*)$", re.MULTILINE)
INLINE = re.compile(r"`(?:python )?(launch/[a-z]+\.py[^`]*)`")
PLANNED = ("train.py", "plan.py", "doctor.py")
OF_THE_HUB = ("paper_llama2", "paper_tulu2", "llava15_released", "qwen25_vl_released", "smollm2_laptop")
IN_PART = {"train.py … local=mirror"}  # with a word left out, which stands for what was said before
OF_THE_EXAMPLE = ("text_sft", "breadcrumbs", "overlap", "wording")
ROWS = {
    "captions.jsonl": '{"prompt": "What is this?", "completion": "A red square."}\n',
    "instructions.parquet": "",
    "ours.jsonl": '{"prompt": "What is this?", "target": "red"}\n',
    "projector.jsonl": '{"prompt": "What is this?", "completion": "A red square."}\n',
    "instruct.jsonl": '{"prompt": "What is this?", "completion": "A red square."}\n',
    "safety.jsonl": '{"prompt": "What is this?", "completion": "I can not say."}\n',
}


def commands() -> list[str]:
    """Script and arguments, as they stand in blocks and in lines, each once."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for command in [*BLOCK.findall(text), *INLINE.findall(text)]:
            whole = re.sub(r"\s+#\s.*$", "", command.replace("\\\n", " "))
            script, *rest = re.sub(r"^(python )?launch/", "", whole).split()
            found += [f"{script} {given}".strip() for given in " ".join(rest).split(" | ")]
    return list(dict.fromkeys(found))


COMMANDS = commands()


def planned() -> list[str]:
    return [c for c in COMMANDS if c.split()[0] in PLANNED and len(c.split()) > 1 and c not in IN_PART]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield install_example(tmp_path_factory.mktemp("example"))


@pytest.fixture
def here(launch: Launch) -> Launch:
    """A folder with the files that commands of the documentation name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = launch.outputs.parent / "data"
    data.mkdir()
    for name, text in ROWS.items():
        (data / name).write_text(text)
    pq.write_table(pa.table({"prompt": ["What is this?"], "completion": ["A red square."]}), data / "instructions.parquet")
    (data / "my-llm").mkdir()
    (data / "my-llm" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return launch


@pytest.mark.parametrize("command", planned())
def test_a_command_is_planned(here: Launch, example: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(re.search(rf"\b{name}\b", command) for name in OF_THE_EXAMPLE):
        monkeypatch.setenv("PYTHONPATH", on_path(example))
    _, *given = shlex.split(command.replace("/data/", f"{here.outputs.parent}/data/"))
    if given[0].startswith("--"):
        done = here.run("train.py", *given)
    else:
        kept = [word for word in given if not word.startswith(("outputs=", "store="))]
        invented = [f"+experiment={name}" for name in OF_THE_HUB if f"+experiment={name}" in given]
        stand_in = ["+stand_in=tiny"] if invented and "+stand_in=tiny" not in given else []
        done = here.run("plan.py", *kept, *stand_in, f"outputs={here.outputs}", f"store={here.outputs}/store")
        assert " to run, time " in done.stdout or done.returncode, done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[0] not in PLANNED and len(c.split()) > 1])
def test_a_command_on_a_sweep_is_understood(here: Launch, command: str) -> None:
    """There is no such sweep, or no store, and nothing else is said against it."""
    script, *given = shlex.split(command)
    done = here.run(script, *given)
    assert done.returncode == 2 and re.match(r"error: no (sweep|store)\b", done.stderr), done.stderr


def test_what_can_not_be_given_is_still_there() -> None:
    assert set(COMMANDS) >= IN_PART


def test_each_target_of_make_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)}
    assert named and named <= targets
