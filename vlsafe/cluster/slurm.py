"""Slurm's own commands, and what they say as plain values. Nothing here knows of stages."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlsafe.errors import VlsafeError

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")
TIMEOUT_SECONDS = 120.0
# A site's limit on how many jobs one may have in the queue, as sbatch words it; its users call it by these names.
LIMIT = re.compile(r"\w*MaxSubmit\w*|job submit limit", re.IGNORECASE)
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "SPECIAL_EXIT",
        "TIMEOUT",
    }
)


class SlurmError(VlsafeError):
    """A command of Slurm's is missing or refuses; `said` is what it wrote."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said

    @property
    def is_limit(self) -> bool:
        return bool(LIMIT.search(self.said))


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    cpus: int  # of its largest node
    gpus: int
    nodes: int


@dataclass(frozen=True)
class Job:
    """As squeue or sacct has it. `state` is Slurm's word; `by` who cancelled it."""

    id: str
    state: str
    reason: str = ""
    comment: str = ""
    by: str = ""
    exit: str = ""
    started: bool = True
    mine: bool = True

    @property
    def live(self) -> bool:
        return self.state not in ENDED


def check_there() -> None:
    """Raises `SlurmError` where this host has no Slurm, or it doesn't answer."""
    missing = [c for c in COMMANDS if shutil.which(c) is None]
    if missing:
        raise SlurmError(
            f"hydra/launcher=slurm: no {', '.join(missing)} on this host; run it where jobs are submitted, "
            "or use hydra/launcher=local"
        )


def call(command: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What it writes; raises `SlurmError` where it fails."""
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, check=False, env=env, timeout=TIMEOUT_SECONDS,
            start_new_session=True,  # the terminal's Ctrl-C must not cut an answer short
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SlurmError(f"no {command} on this host: Slurm is not installed here, or not in PATH") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command} gave no answer in {TIMEOUT_SECONDS:.0f} s: is the site's slurmctld up?") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise SlurmError(f"{command}: {re.sub(rf'{command}: (error: )?', '', said)}", said)
    return done.stdout


def sbatch(script: Path, *options: str) -> str:
    """The new job's id."""
    # A job that submits (the finish job, or an interactive one) must not pass on what Slurm says of itself: srun would obey it.
    inside = "SLURM_JOB_ID" in os.environ
    env = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not (inside and k.startswith("SLURM_"))}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [env.get("PYTHONPATH")])])
    return call("sbatch", "--parsable", *options, str(script), env=env).strip().split(";")[0]


def me() -> str:
    """Whose jobs this process submits, as Slurm has it: not what `USER` says, which a container may have wrong."""
    return user_name(str(os.getuid()))


def queue(users: Collection[str]) -> dict[str, Job]:
    """All jobs of these users and of one's own that Slurm has not let go of, by id. Others' may be among them."""
    names = {me(), *users}
    # A name that this host does not know makes squeue fail, or leave jobs out in silence, by version: then all are asked for.
    whose = [f"--user={','.join(sorted(names))}"] if all(map(known, names)) else []
    said = call("squeue", "--noheader", "--array", *whose, "--format=%i|%T|%U|%r|%k").splitlines()
    jobs = {job.id: job for job in map(squeue_line, said) if job is not None}
    if said and not jobs:
        raise SlurmError(f"squeue: can't be read: {said[0][:100]!r}")
    return jobs


def squeue_line(line: str) -> Job | None:
    """None for what is no job: a site's own greeting, the rest of somebody's comment of several lines."""
    parts = line.split("|", 4)
    if len(parts) < 5 or not re.fullmatch(r"\d+(_\d+)?(\+\d+)?", parts[0]):
        return None
    id, state, uid, reason, comment = parts
    return Job(id, state, reason, comment, started=state != "PENDING", mine=uid == str(os.getuid()))


def accounted(ids: Collection[str]) -> dict[str, Job]:
    """What became of jobs, from accounting; without accounting what slurmctld still knows of them. Others are left out."""
    if not ids:
        return {}
    with contextlib.suppress(SlurmError):
        lines = call(
            "sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(sorted(ids))}",
            "--format=JobIDRaw,State,ExitCode,Start",
        ).splitlines()  # fmt: skip
        return {job.id: job for job in map(sacct_line, lines)}
    jobs = {}
    for id in ids:
        with contextlib.suppress(SlurmError):
            jobs[id] = scontrol_line(id, call("scontrol", "--oneliner", "show", "job", id))
    return jobs


def sacct_line(line: str) -> Job:
    id, state, exit, start = line.split("|")
    word, _, by = state.partition(" by ")
    return Job(id, word.split()[0], by=user_name(by), exit=exit, started=start not in ("None", "Unknown", ""))


def scontrol_line(id: str, line: str) -> Job:
    said = dict(part.split("=", 1) for part in line.split() if "=" in part)
    return Job(
        id, said.get("JobState", "UNKNOWN"), said.get("Reason", ""), exit=said.get("ExitCode", ""),
        started=said.get("StartTime", "Unknown") != "Unknown" and said.get("RunTime", "") != "00:00:00",
    )  # fmt: skip


def known(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def user_name(uid: str) -> str:
    if not uid.isdigit():
        return uid
    import pwd

    try:
        return pwd.getpwuid(int(uid)).pw_name
    except KeyError:
        return f"user {uid}"


def cancel(ids: Sequence[str]) -> None:
    if ids:
        call("scancel", *ids)


@cache
def cluster() -> str:
    match = re.search(r"^ClusterName\s*=\s*(\S+)", call("scontrol", "show", "config"), re.MULTILINE)
    return match[1] if match else "unknown"


def partitions() -> dict[str, Partition]:
    found: dict[str, Partition] = {}
    for line in call("sinfo", "--noheader", "--all", "--format=%P|%c|%G|%D").splitlines():
        name, cpus, gres, nodes = line.split("|")
        default, name = name.endswith("*"), name.rstrip("*")
        before = found.get(name, Partition(name, default, 0, 0, 0))
        found[name] = Partition(
            name, default, max(before.cpus, int(cpus.rstrip("+"))), max(before.gpus, gpus_in(gres)), before.nodes + int(nodes)
        )
    return found


def gpus_in(gres: str) -> int:
    """`gpu:a100:4(S:0-1),gpu:2,nvme:1` has 6."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    parts = [part.split(":") for part in plain.split(",")]
    return sum(int(p[-1]) if p[-1].isdigit() else 1 for p in parts if p[0] == "gpu")
