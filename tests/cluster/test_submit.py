"""Which jobs a plan becomes, behind what they wait, and that nothing is submitted twice or left behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import PARTITIONS, Given, Queue
from vlsafe.cluster import slurm
from vlsafe.cluster.cancel import cancel
from vlsafe.cluster.jobs import JobBook, load_submission
from vlsafe.cluster.slurm import Job, SlurmError
from vlsafe.errors import ConfigError
from vlsafe.execute.task import load_task

Make = Callable[..., Given]
SLICE = ("safety_tune=sft,dpo", "merge=none,ties")


def kinds(queue: Queue, ids: list[str]) -> Counter[str]:
    return Counter(queue.task(id).partition("-")[0] for id in ids)


def test_each_unique_stage_is_in_one_job_behind_those_of_its_parents(queue: Queue, given: Make) -> None:
    sweep = given("s", *SLICE)
    wave = sweep.submit()
    assert kinds(queue, queue.live()) == {
        "model": 2, "adaptation": 1, "safety_tune": 2, "merge": 2, "generate": 7, "finish": 1,
    }  # fmt: skip
    job_of = {id: record.job for record in wave.queued for id in record.stages}
    assert sorted(job_of) == sorted(sweep.plan.stages)
    for id, stage in sweep.plan.stages.items():
        assert {job_of[p] for p in stage.parents.values()} - {job_of[id]} <= queue.behind[str(job_of[id])]
    for record in wave.queued:
        task = load_task(queue.scripts[str(record.job)].with_suffix(".task.json"))
        assert [order.id for order in task.stages] == list(record.stages)
    assert wave.finish is not None
    assert queue.behind[str(wave.finish.job)] == set(job_of.values())


def test_asked_again_nothing_is_added_and_another_sweep_shares_what_is_queued(queue: Queue, given: Make) -> None:
    given("s", *SLICE).submit()
    before = list(queue.jobs)
    again = given("s", *SLICE).submit()
    assert list(queue.jobs) == before
    assert (again.queued, len(again.shared)) == ([], 14)
    other = given("other", "safety_tune=sft,kto", "merge=none")
    wave = other.submit()
    added = [id for id in queue.live() if id not in before]
    assert kinds(queue, added) == {"safety_tune": 1, "generate": 1, "finish": 1}
    assert wave.finish is not None
    assert len(queue.behind[str(wave.finish.job)]) == 10  # all that it shares, and its own two


def test_a_sweep_that_grows_has_one_finish_job_behind_all(queue: Queue, given: Make) -> None:
    first = given("s", "safety_tune=sft", "merge=none").submit()
    grown = given("s", *SLICE).submit()
    finish = [id for id in queue.live() if queue.task(id).startswith("finish")]
    assert grown.finish is not None
    assert finish == [grown.finish.job]
    assert {r.job for r in first.queued} < queue.behind[finish[0]]


def test_a_job_that_is_gone_counts_no_more(queue: Queue, given: Make) -> None:
    wave = given("s", *SLICE).submit()
    failed = next(r for r in wave.queued if r.name.startswith("adaptation"))
    for id in queue.live():
        if id == failed.job or failed.job in queue.behind[id]:
            queue.ends(id, "FAILED")
    again = given("s", *SLICE).submit()
    assert failed.name in {r.name for r in again.queued}
    assert not any(r.job in queue.behind[i] for r in wave.queued if r.job == failed.job for i in queue.live())


def test_a_submitter_that_is_killed_between_job_and_record_loses_neither(
    queue: Queue, given: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = given("s", *SLICE)
    queue.dies_after = 4
    with monkeypatch.context() as killed:
        killed.setattr("vlsafe.cluster.slurm.cancel", lambda ids: None)  # a kill -9 cleans nothing up
        killed.setattr(JobBook, "drop", lambda self, record: None)
        with pytest.raises(KeyboardInterrupt):
            sweep.submit()
    assert len(queue.live()) == 4
    given("s", *SLICE).submit()
    assert len(queue.live()) == 15
    assert max(Counter(queue.task(id) for id in queue.live()).values()) == 1


def test_a_job_on_its_way_is_waited_for_whatever_the_clock_of_who_sent_it_says(
    queue: Queue, given: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submitter, whose clock is an hour ahead, was killed while its sbatch was still talking to Slurm."""
    sweep = given("s", *SLICE)
    queue.dies_after = 1
    with monkeypatch.context() as killed:
        killed.setattr("time.time", lambda: time.time_ns() / 1e9 + 3600)
        killed.setattr("vlsafe.cluster.slurm.cancel", lambda ids: None)
        killed.setattr(JobBook, "drop", lambda self, record: None)
        with pytest.raises(KeyboardInterrupt):
            sweep.submit()
    asked: list[int] = []

    def late(users: object) -> dict[str, Job]:
        asked.append(1)
        return {id: queue.jobs[id] for id in queue.live()} if len(asked) > 1 else {}

    monkeypatch.setattr(slurm, "queue", late)
    given("s", *SLICE).submit()
    assert len(queue.live()) == 15
    assert max(Counter(queue.task(id) for id in queue.live()).values()) == 1


@pytest.mark.parametrize("site", [False, True])
def test_a_submit_limit_is_kept_parents_first_and_the_rest_follows(queue: Queue, given: Make, site: bool) -> None:
    sweep = given("s", *SLICE) if site else given("s", *SLICE, max_submitted=5)
    queue.limit = 5 if site else None
    tried: set[str] = set()
    own = None
    for _ in range(20):
        wave = sweep.submit(tuple(tried), own)
        assert len(queue.live()) <= 5
        if not wave.queued:
            break
        assert wave.finish is not None
        for record in wave.queued:
            needed = {p for id in record.stages for p in sweep.plan.stages[id].parents.values()}
            assert needed <= tried | {id for r in wave.queued for id in r.stages}
            assert not set(record.stages) & tried
            tried |= set(record.stages)
        for id in queue.live():
            queue.ends(id, "COMPLETED")
        own = wave.finish.job
        queue.jobs[str(own)] = queue.jobs[str(own)].__class__(str(own), "RUNNING")
    assert tried == set(sweep.plan.stages)
    assert queue.last > 14 + 3  # four jobs or fewer at a time, each time with another finish job


def test_no_room_at_all_is_said(queue: Queue, given: Make) -> None:
    queue.limit = 0
    with pytest.raises(SlurmError, match=r"the site takes no more jobs of yours .*: wait until some have ended"):
        given("s", *SLICE).submit()
    assert not queue.jobs
    queue.limit = None
    for _ in range(5):
        queue.sbatch(Path(__file__), "--comment=another")
    with pytest.raises(SlurmError, match=r"max_submitted=5: 5 jobs of yours are in the queue"):
        given("s", *SLICE, max_submitted=5).submit()


def test_a_refusal_leaves_nothing_of_this_command_and_all_of_others(queue: Queue, given: Make) -> None:
    given("other", "safety_tune=none", "merge=none").submit()
    before = queue.live()
    queue.refuses = "--qos=nope"
    refused = {"resources": {"safety_tune": {"partition": "gpu", "sbatch": {"qos": "nope"}}}}
    with pytest.raises(SlurmError, match=r"Invalid qos .*--partition=gpu .*resources\.safety_tune otherwise.*: cpu, gpu"):
        given("s", *SLICE, **refused).submit()
    assert queue.live() == before
    assert load_submission(given("s", *SLICE).sweep.folder) is None  # it has nothing with Slurm
    grown = given("other", *SLICE, **refused)
    had = load_submission(grown.sweep.folder)
    with pytest.raises(SlurmError, match="Invalid qos"):
        grown.submit()
    assert queue.live() == before and had is not None and had.finish is not None
    assert load_submission(grown.sweep.folder) == had
    assert {r.job for r in JobBook(given("s", *SLICE).store).live_records()} == set(before)


def test_what_a_partition_does_not_have_is_said_before_a_job_is_queued(queue: Queue, given: Make) -> None:
    for resources, message in (
        ({"merge": {"partition": "gpuu"}}, r"resources\.merge\.partition=gpuu: no such partition; there are: cpu, gpu"),
        ({"default": {"nodes": 9}}, r"resources\.default\.nodes: a model stage needs 9 nodes, and partition cpu has 4"),
        (
            {"model": {"gpus_per_node": 1}},
            r"resources\.model\.gpus_per_node: .* needs 1 gpus on a node, and partition cpu has 0",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            given("s", *SLICE, resources=resources).submit()
    assert not queue.jobs


def test_gpus_follow_from_the_partition(queue: Queue, given: Make) -> None:
    wave = given("s", *SLICE, resources={"default": {"partition": "gpu"}}).submit()
    asked = {record.name.partition("-")[0]: queue.scripts[str(record.job)].read_text() for record in wave.queued}
    assert {name for name, text in asked.items() if "--gres=gpu:1" in text} == {
        "model",
        "adaptation",
        "safety_tune",
        "generate",
    }
    assert "--gres" not in asked["merge"]


def test_cancelling_keeps_what_another_live_sweep_waits_for(
    queue: Queue, given: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    mine, other = given("s", *SLICE), given("other", "safety_tune=sft", "merge=none")
    mine.submit()
    wave = other.submit()
    cancel(mine.sweep, mine.store, load_submission(mine.sweep.folder), "ann", Console(width=200))
    assert wave.finish is not None
    assert set(queue.live()) == {*wave.ids, wave.finish.job}
    assert "7 jobs cancelled; 8 stay, which other waits for too" in capsys.readouterr().out
    cancel(other.sweep, other.store, load_submission(other.sweep.folder), "ann", Console(width=200))
    assert queue.live() == []
    assert len(given("s", *SLICE).submit().queued) == 14  # the same command goes on


def test_cancelling_names_those_alone_that_wait_for_what_stays(
    queue: Queue, given: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    mine = given("s", "safety_tune=sft", "merge=none")
    mine.submit()
    given("other", "safety_tune=sft", "merge=none").submit()
    given("third", "model=microworld_wide", "safety_tune=none", "merge=none").submit()
    cancel(mine.sweep, mine.store, load_submission(mine.sweep.folder), "ann", Console(width=200))
    assert "stay, which other waits for too" in capsys.readouterr().out


def test_a_job_that_only_shares_a_training_with_another_sweeps_does_not_need_it(queue: Queue, given: Make) -> None:
    """It waits for it, since both would hold one lease, but the other sweep may be cancelled, or its job fail."""
    first = given("s", "safety_tune=none", "merge=none", "adaptation.checkpoints=2").submit()
    second = given("other", "safety_tune=none", "merge=none", "adaptation.checkpoints=3").submit()
    (theirs,) = [r.job for r in first.queued if r.name.startswith("adaptation")]
    (ours,) = [r.job for r in second.queued if r.name.startswith("adaptation")]
    assert ours is not None and theirs in queue.behind[ours] - queue.needs[ours]
    models = {r.job for r in second.shared if r.name.startswith("model")}
    assert queue.needs[ours] and queue.needs[ours] <= models


def test_an_error_behind_the_last_job_leaves_none_of_this_command_and_the_finish_job_that_waited(
    queue: Queue, given: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    given("s", "safety_tune=sft", "merge=none").submit()
    before = queue.live()
    grown = given("s", *SLICE)
    save, calls = grown.submission.save, list[str]()

    def full(folder: Path) -> None:
        if grown.submission.finish is not None and grown.submission.finish.job not in before and not calls:
            calls.append("full")
            raise OSError(28, "No space left on device")
        save(folder)

    monkeypatch.setattr(grown.submission, "save", full)
    with pytest.raises(OSError, match="No space left"):
        grown.submit()
    assert calls and queue.live() == before
    book = JobBook(grown.store)
    assert {r.job for r in book.live_records()} == set(before)
    again = load_submission(grown.sweep.folder)
    assert again is not None and again.finish is not None and again.finish.job in before
    assert {r.job for r in again.tasks.values()} <= set(before)


def test_a_finish_job_that_can_not_be_cancelled_undoes_nothing(queue: Queue, given: Make) -> None:
    first = given("s", "safety_tune=sft", "merge=none").submit()
    assert first.finish is not None
    queue.fails_to_cancel = str(first.finish.job)
    grown = given("s", *SLICE).submit()
    assert grown.finish is not None and {*grown.ids, grown.finish.job, first.finish.job} == set(queue.live())


def test_cancelling_what_has_ended_marks_nothing(queue: Queue, given: Make) -> None:
    from rich.console import Console

    sweep = given("s", "safety_tune=sft", "merge=none")
    sweep.submit()
    for id in queue.live():
        queue.ends(id, "COMPLETED")
    cancel(sweep.sweep, sweep.store, load_submission(sweep.sweep.folder), "ann", Console(width=200))
    again = load_submission(sweep.sweep.folder)
    assert again is not None
    assert again.cancelled == ""


def test_a_job_of_the_same_number_on_another_cluster_is_not_the_recorded_one(
    queue: Queue, given: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clusters see one store: neither waits for, nor cancels, the other's jobs."""
    first = given("s", "safety_tune=sft", "merge=none").submit()
    monkeypatch.setattr("vlsafe.cluster.slurm.cluster", lambda: "other")
    assert JobBook(given("s", "safety_tune=sft", "merge=none").store).live_records() == []
    again = given("s", "safety_tune=sft", "merge=none").submit()
    assert len(again.queued) == len(first.queued)
    assert not {r.job for r in first.queued} & {job for id in again.ids for job in queue.behind[id]}


def test_a_finish_job_submits_nothing_more_for_a_sweep_that_was_cancelled(
    queue: Queue, given: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled between its first look and its turn to submit."""
    from rich.console import Console

    from vlsafe.cluster.finish import submit_more

    s = given("s", *SLICE, max_submitted=5)
    s.submit()
    began = load_submission(s.sweep.folder)
    cancel(s.sweep, s.store, load_submission(s.sweep.folder), "ann", Console(width=200))
    monkeypatch.setattr("vlsafe.cluster.slurm.partitions", lambda: PARTITIONS)
    assert began is not None
    assert not submit_more(s.sweep, s.plan, s.store, began, set(s.plan.stages), Console(width=200))
    assert queue.live() == []
