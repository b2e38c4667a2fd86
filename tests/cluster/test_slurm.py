"""What Slurm 22.05 wrote, recorded from the commands of `vlsafe/cluster/slurm.py`."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlsafe.cluster.jobs import JobBook
from vlsafe.cluster.slurm import Job, SlurmError, gpus_in, queue, sacct_line, scontrol_line
from vlsafe.store import Store

SACCT = """24|COMPLETED|0:0|2026-11-24T14:35:40
35|FAILED|1:0|2026-11-24T14:37:32
127|CANCELLED by 0|0:0|2026-11-24T14:44:47
39|CANCELLED by 0|0:0|None
2|REQUEUED|0:0|2026-11-24T14:05:18"""
SCONTROL = (
    "JobId=3 JobName=a UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901757 Nice=0 Account=(null) QOS=normal "
    "JobState=CANCELLED Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:03 "
    "TimeLimit=UNLIMITED TimeMin=N/A SubmitTime=2026-11-24T14:10:09 StartTime=2026-11-24T14:10:09 EndTime=2026-11-24T14:10:12"
)
LIMIT = (
    "sbatch: error: AssocMaxSubmitJobLimit sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


def test_accounting_says_how_a_job_ended_and_whether_it_ever_ran() -> None:
    jobs = {job.id: job for job in map(sacct_line, SACCT.splitlines())}
    assert [(j.state, j.started) for j in jobs.values()] == [
        ("COMPLETED", True), ("FAILED", True), ("CANCELLED", True), ("CANCELLED", False), ("REQUEUED", True),
    ]  # fmt: skip
    assert jobs["127"].by == "root"
    assert not jobs["127"].live
    assert jobs["2"].live


def test_without_accounting_the_controller_is_asked() -> None:
    job = scontrol_line("3", SCONTROL)
    assert (job.state, job.exit, job.started, job.live) == ("CANCELLED", "0:0", True, False)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [("(null)", 0), ("gpu:4", 4), ("gpu", 1), ("gpu:a100:8(S:0-1)", 8), ("gpu:a100:4(IDX:0-3),gpu:v100:2,nvme:1", 6)],
)
def test_gpus_are_counted_whatever_their_type(gres: str, gpus: int) -> None:
    assert gpus_in(gres) == gpus


def test_a_submit_limit_is_told_from_other_refusals() -> None:
    assert SlurmError("", LIMIT).is_limit
    assert SlurmError("", "sbatch: error: Batch job submission failed: QOSMaxSubmitJobPerUserLimit").is_limit
    assert not SlurmError("", "sbatch: error: Batch job submission failed: Invalid partition name specified").is_limit
    assert not SlurmError("", "sbatch: error: Batch job submission failed: Requested reservation is invalid").is_limit


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A site whose squeue says this and ends so; the file of how it was called."""

    def make(said: str, status: int = 0) -> Path:
        script = tmp_path / "squeue"
        script.write_text(f'#!/bin/bash\necho "$*" >> "$0.calls"\ncat "$0.said"\nexit {status}\n')
        script.chmod(0o755)
        (tmp_path / "squeue.said").write_text(said)
        return tmp_path / "squeue.calls"

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return make


QUEUE = f"""Welcome to the cluster
7|RUNNING|{os.getuid()}|None|vlsafe:1|of a pipe
and a second line | of | the | same | comment
8_3|PENDING|{os.getuid() + 1}|Resources|(null)
"""


def test_the_queue_is_asked_once_and_says_whose_jobs_are_one_s_own(squeue: Callable[..., Path], tmp_path: Path) -> None:
    calls = squeue(QUEUE)
    book = JobBook(Store(tmp_path / "store"))
    assert book.queue == {
        "7": Job("7", "RUNNING", "None", "vlsafe:1|of a pipe"),
        "8_3": Job("8_3", "PENDING", "Resources", "(null)", started=False, mine=False),
    }
    assert [job.id for job in book.mine] == ["7"]
    (call,) = calls.read_text().splitlines()
    assert "--user=" in call


def test_a_user_who_is_gone_hides_nobody_s_jobs(squeue: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue refuses, or leaves them out, where one name of several is not known."""
    monkeypatch.setenv("USER", "as-the-container-has-it")
    monkeypatch.setenv("LOGNAME", "as-the-container-has-it")
    calls = squeue(QUEUE)
    assert set(queue({"left-last-year"})) == {"7", "8_3"}
    assert "--user" not in calls.read_text()
    assert getpass.getuser() == "as-the-container-has-it"
    queue(())
    assert "as-the-container-has-it" not in calls.read_text()


@pytest.mark.parametrize(("said", "status"), [("slurm_load_jobs error", 1), ("<html>maintenance</html>", 0)])
def test_a_queue_that_can_not_be_read_is_no_empty_queue(squeue: Callable[..., Path], said: str, status: int) -> None:
    squeue(said, status)
    with pytest.raises(SlurmError, match="squeue: "):
        queue(())
