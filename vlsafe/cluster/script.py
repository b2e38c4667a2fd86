"""The job script: options, the site's own set-up lines, checks, one command, and what becomes of the job when that ends.

A stop signal (the time limit is near, a preemption) lets the stage checkpoint and exit with 75; the script then puts its own
job back into the queue, as it does where another of the job's nodes is lost. Whatever Slurm ends itself (scancel, `scontrol
requeue`, a lost first node) is left to Slurm.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlsafe.cluster.settings import WHERE, Resources, SlurmSettings, one_line
from vlsafe.report.text import printable

LOG_START = "--- job "  # of what one job adds to its task's log
PORTS = (20000, 40000)  # where the rendezvous of a job that names none lies


@dataclass(frozen=True)
class Shape:
    """What a task takes: on each of `nodes`, `processes` of `cpus` cores, and `gpus` for all of them together."""

    nodes: int = 1
    processes: int = 1
    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Job:
    name: str
    title: str  # a comment for whoever reads the script
    module: tuple[str, ...]  # what Python runs: a module and its arguments
    visible: tuple[Path, ...]  # must be there on the node
    store: Path
    log: Path
    journal: Path
    stop: bool = True  # it listens to stop signals


def job_script(job: Job, shape: Shape, resources: Resources, settings: SlurmSettings, python: str) -> str:
    options = "\n".join(f"#SBATCH {option}" for option in sbatch_options(job, shape, resources, settings))
    setup = "".join(line + "\n" for line in settings.setup)
    return f"""#!/bin/bash
{options}
# {printable(job.title)}
# Written by hydra/launcher=slurm; `python launch/status.py SWEEP` shows what became of it.
store={shlex.quote(str(job.store))}
journal={shlex.quote(str(job.journal))}
node=${{SLURMD_NODENAME:-$(hostname)}}
echo "{LOG_START}$SLURM_JOB_ID on $node"
restarts=${{SLURM_RESTART_COUNT:-0}}
export PYTHONUNBUFFERED=1 GOMP_SPINCOUNT="${{GOMP_SPINCOUNT:-2000}}"

note() {{ # EVENT STATUS WHY
  printf '{{"time": %s, "job": "%s", "node": "%s", "restarts": %s, "event": "%s", "status": %s, "why": "%s"}}\\n' \\
    "$(date +%s)" "$SLURM_JOB_ID" "$node" "$restarts" "$1" "$2" "$3" >> "$journal"
}}

for path in {shlex.join(map(str, job.visible))}; do
  for try in 1 2 3 4 5; do [ -e "$path" ] && break; sleep 1; done # a shared file system may be a moment behind
  if [ ! -e "$path" ]; then
    echo "error: store=$store is not visible on $node: set store= and outputs= to a shared file system" >&2
    exit 1
  fi
done
if [ "$restarts" -gt {settings.max_requeues} ]; then
  note gave-up 1 "ended from outside after $((restarts - 1)) requeues"
  exit 1
fi

setup_failed() {{ # STATUS COMMAND
  [ "$1" -ne 0 ] || set -- 1 "$2"
  echo "error: {WHERE}.setup: '${{2//[[:cntrl:]]/ }}' failed with status $1 on $node" >&2
  note end "$1" setup
  exit "$1"
}}
# What fails in a sourced file or in a function is that file's own business, as long as its last command does not.
trap 'failed=$?; [ "${{#BASH_SOURCE[@]}}" -gt 1 ] || setup_failed "$failed" "$BASH_COMMAND"' ERR
{setup}
trap - ERR
set +eu
step= stopped= signalled=
trap 'stopped=1 signalled=1; [ -n "$step" ] && kill -USR1 "$step"' USR1
trap 'stopped=1 signalled=1' TERM # Slurm has told the processes itself
note start 0 ""
{launch_line(job, shape, settings, python)} &
step=$!
[ -n "$stopped" ] && kill -USR1 "$step"
while :; do # a signal ends the waiting, not the step
  signalled=
  wait "$step"
  status=$?
  [ -z "$signalled" ] && break
done
[ -n "$stopped" ] && [ "$status" -ne 0 ] && status=75
why="time limit"
{lost_node(shape)}if [ "$status" -ne 75 ]; then
  note end "$status" ""
  exit "$status"
fi

# There is a checkpoint to go on from. While the job counts as running nobody else will put it back into the queue.
known=$(scontrol show job --oneliner "$SLURM_JOB_ID")
case "$known" in *PreemptTime=[0-9]*) why=preemption;; esac
case "$known" in
  *JobState=RUNNING*) ;;
  *) note stopped 75 ""; exit 75;;
esac
if [ "$restarts" -ge {settings.max_requeues} ]; then
  note gave-up 1 "$why after $restarts requeues"
  exit 1
fi
note requeue 75 "$why"
scontrol requeue "$SLURM_JOB_ID" && sleep 60 # Slurm ends this script
exit 75
"""


def sbatch_options(job: Job, shape: Shape, resources: Resources, settings: SlurmSettings) -> list[str]:
    options: list[tuple[str, object]] = [
        ("job-name", job.name),
        ("output", str(job.log).replace("%", "%%")),
        ("open-mode", "append"),
        ("nodes", shape.nodes),
        ("ntasks-per-node", 1),
        ("cpus-per-task", shape.cpus * shape.processes),
        ("gres", f"gpu:{shape.gpus}" if shape.gpus else None),
        ("mem", resources.mem),
        ("time", resources.time),
        ("partition", resources.partition),
        ("requeue", job.stop or None),
        ("no-requeue", None if job.stop else True),
        ("signal", f"B:USR1@{settings.signal_seconds}" if job.stop else None),
        *resources.sbatch.items(),
    ]
    return [
        f"--{name}" if value is True else f"--{name}={sbatch_quoted(str(value))}"
        for name, value in options
        if value is not None and value is not False
    ]


def sbatch_quoted(text: str) -> str:
    """As sbatch reads its own lines: quotes keep blanks and #, a backslash keeps the next character."""
    one_line(text, "an option of sbatch")  # a line end would begin another option
    if all(c.isalnum() or c in "_-+=./:,@%" for c in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def lost_node(shape: Shape) -> str:
    """The lines that tell a lost node from a stage that failed, before Slurm notices: the others' processes end first."""
    if shape.nodes == 1:
        return ""
    return """answers() { timeout 60 srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" true; }
if [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && answers "$node"; then
  for other in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    answers "$other" || { echo "$other does not answer"; why="loss of $other" status=75; break; }
  done
fi
"""


def launch_line(job: Job, shape: Shape, settings: SlurmSettings, python: str) -> str:
    """One process, or on each node a launcher of several that meet at the first node of the allocation."""
    srun = [
        "srun", f"--nodes={shape.nodes}", f"--ntasks={shape.nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={shape.cpus * shape.processes}", *settings.srun_args,
    ]  # fmt: skip
    if shape.nodes > 1:  # else those of the other nodes may wait for a rank that has failed until NCCL's patience ends
        srun.insert(1, "--kill-on-bad-exit=1")
    if shape.nodes * shape.processes == 1:
        return shlex.join([*srun, python, "-m", *job.module])
    port = str(settings.port) if settings.port else f"$(({PORTS[0]} + SLURM_JOB_ID % {PORTS[1] - PORTS[0]}))"
    node = [python, "-m", "vlsafe.cluster.node", f"--nnodes={shape.nodes}", f"--nproc-per-node={shape.processes}"]
    master = '--master-addr="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"'
    return f"{shlex.join([*srun, *node])} {master} --master-port={port} -- {shlex.join(job.module)}"


def torchrun(arguments: Sequence[str], node_rank: str) -> list[str]:
    """The command of one node, after the interpreter."""
    return ["-m", "torch.distributed.run", *arguments[: arguments.index("--")], f"--node-rank={node_rank}", "-m",
            *arguments[arguments.index("--") + 1 :]]  # fmt: skip
