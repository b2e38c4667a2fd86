"""A task's processes: whichever ends first says why, the others are ended, and what had not begun runs again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.execute.ranks import warm_pool
from vlsafe.execute import running
from vlsafe.execute.devices import Share
from vlsafe.execute.events import EventReader, EventWriter
from vlsafe.execute.progress import Progress
from vlsafe.execute.resources import Needs
from vlsafe.execute.running import PEER_GONE, RankLog, Running
from vlsafe.ranks import in_words

STAGES = ("generate/a", "generate/b", "judge/b")
GLOO = "rank 1: RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31337"


def act(events: str, moves: list[tuple[str, str]]) -> None:
    """A rank: says states of the second stage, waits, and ends as told."""
    writer = EventWriter(Path(events))
    for move, what in moves:
        if move == "wait":
            time.sleep(float(what))
        elif move == "hears":  # goes on once another has said that, however late it was started
            while what not in Path(events).read_text():
                time.sleep(0.01)
        elif move == "signal":
            os.kill(os.getpid(), int(what))
        elif move == "exit":
            os._exit(int(what))
        else:
            writer.state(STAGES[1], move, error=what)  # type: ignore[arg-type]


Act = Callable[..., tuple[dict[str, Progress], tuple[str, ...]]]


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Act:
    """What is known of the stages, and what is to run again, after ranks that did `moves` have ended."""
    monkeypatch.setattr(running, "GRACE_SECONDS", 0.5)

    def run(*moves: list[tuple[str, str]]) -> tuple[dict[str, Progress], tuple[str, ...]]:
        events = tmp_path / "events.jsonl"
        EventWriter(events).state(STAGES[0], "done")
        context = warm_pool()._context
        processes = [context.Process(target=act, args=(str(events), m)) for m in moves]
        for process in processes:
            process.start()
        task = Running(processes, EventReader(events), STAGES, Share(Needs(len(moves), 1, 0, 1), ()))
        stages = {id: Progress("pending") for id in STAGES}
        deadline = time.monotonic() + 60
        while not task.has_ended() and time.monotonic() < deadline:
            task.read(stages)
            time.sleep(0.01)
        task.read(stages)
        assert not any(process.is_alive() for process in processes)
        return stages, task.settle(stages)

    return run


def test_a_killed_rank_is_the_cause_and_not_what_others_say_of_their_connection(ended: Act) -> None:
    stages, again = ended(
        [("running", ""), ("signal", str(int(signal.SIGKILL)))],
        [("wait", "0.3"), ("failed", GLOO), ("exit", "1")],
    )
    assert stages["generate/b"].error == "rank 0 was ended by SIGKILL: out of memory?"
    assert stages["generate/a"].state == "done"
    assert again == ("judge/b",)


def test_a_reason_that_was_given_first_stands_and_a_rank_that_hangs_is_killed(ended: Act) -> None:
    stages, again = ended(
        [("running", ""), ("wait", "3600")],
        [("wait", "0.2"), ("failed", "rank 1: item 3 shows 2 pictures"), ("exit", "1")],
    )
    assert (stages["generate/b"].state, stages["generate/b"].error) == ("failed", "rank 1: item 3 shows 2 pictures")
    assert again == ("judge/b",)


def test_an_abort_that_follows_is_not_the_cause(ended: Act) -> None:
    stages, _ = ended(
        [("running", ""), ("hears", "no tokens"), ("failed", GLOO), ("signal", str(int(signal.SIGABRT)))],
        [("hears", "running"), ("failed", "rank 1: no tokens"), ("exit", "1")],
    )
    assert stages["generate/b"].error == "rank 1: no tokens"


def test_an_abort_is_the_cause_where_the_others_only_lost_their_connection(ended: Act) -> None:
    stages, _ = ended(
        [("running", ""), ("wait", "0.3"), ("failed", GLOO), ("exit", "1")], [("signal", str(int(signal.SIGABRT)))]
    )
    assert stages["generate/b"].error == "rank 1 was ended by SIGABRT"


def test_ranks_that_hang_after_one_was_killed_leave_its_signal_as_the_reason(ended: Act) -> None:
    stages, again = ended([("running", ""), ("wait", "3600")], [("wait", "0.2"), ("signal", str(int(signal.SIGKILL)))])
    assert stages["generate/b"].error == "rank 1 was ended by SIGKILL: out of memory?"
    assert again == ("judge/b",)


def test_a_task_that_stopped_on_request_is_interrupted_and_not_failed(ended: Act) -> None:
    stages, again = ended([("running", ""), ("interrupted", ""), ("exit", "75")], [("exit", "75")])
    assert [stages[id].state for id in STAGES] == ["done", "interrupted", "interrupted"]
    assert again == ()


def test_a_task_that_dies_before_it_says_anything_fails_one_stage(ended: Act) -> None:
    stages, again = ended([("exit", "3")])
    assert stages["generate/b"].error == "the worker ended with status 3; see its log"
    assert again == ("judge/b",)


def test_lines_of_other_ranks_are_marked_and_none_is_lost(tmp_path: Path) -> None:
    source, log = tmp_path / "rank1.log", tmp_path / "task.log"
    source.write_text("of an earlier try\n")
    copied = RankLog(1, source, log)
    copied.copy()
    log.write_text("main\n")
    with source.open("a", buffering=1) as printed:
        printed.write("loading\nhalf a ")
        printed.flush()
        copied.copy()
        printed.write("line\nTraceback")
    copied.copy()
    assert log.read_text() == "main\n[rank 1] loading\n[rank 1] half a line\n"
    copied.copy(all_of_it=True)
    assert log.read_text().endswith("\n[rank 1] Traceback\n")


def test_what_a_rank_says_of_one_that_is_gone_is_told_in_words() -> None:
    said = (
        "RuntimeError: [/x/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:21424. GLHF!"
    )
    assert in_words(said) == "another process of this stage is gone (gloo: connection closed); its log says what ended it"
    assert in_words("OSError: Connection refused") == "OSError: Connection refused"
    assert PEER_GONE.search(in_words(said))  # a signal that ended another rank still outweighs it
