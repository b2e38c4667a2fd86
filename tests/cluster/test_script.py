"""Job scripts: what they ask for, that no path breaks them, and what they do without Slurm: complain, and count."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vlsafe.cluster.script import Job, Shape, job_script, launch_line, sbatch_options
from vlsafe.cluster.settings import Resources, SlurmSettings, slurm_settings
from vlsafe.errors import ConfigError

HOSTILE = "a b'c\"d$(touch broken)%j;#"
WORKER = "vlsafe.execute.worker"


def job(folder: Path, stop: bool = True) -> Job:
    task = folder / "task.json"
    return Job(
        "vlsafe-merge-1", "a title", (WORKER, str(task)), (task,), folder / "store", folder / "log", folder / "notes", stop
    )


def launched(folder: Path, shape: Shape, **settings: object) -> str:
    return launch_line(job(folder), shape, slurm_settings(settings), "/py thon")


def test_options_are_those_of_the_stage(tmp_path: Path) -> None:
    resources = Resources(
        mem="8G",
        time="2:00:00",
        partition="gpu",
        sbatch={"account": "lab", "exclusive": True, "qos": None, "contiguous": False},
    )
    options = sbatch_options(job(Path("/f")), Shape(2, 4, 3, 4), resources, SlurmSettings(signal_seconds=60))
    assert options == [
        "--job-name=vlsafe-merge-1", "--output=/f/log", "--open-mode=append", "--nodes=2", "--ntasks-per-node=1",
        "--cpus-per-task=12", "--gres=gpu:4", "--mem=8G", "--time=2:00:00", "--partition=gpu", "--requeue",
        "--signal=B:USR1@60", "--account=lab", "--exclusive",
    ]  # fmt: skip
    plain = sbatch_options(job(tmp_path, stop=False), Shape(), Resources(), SlurmSettings())
    assert not any(o.startswith(("--gres", "--mem", "--time", "--partition", "--signal", "--requeue")) for o in plain)
    assert "--no-requeue" in plain


def test_one_process_is_the_worker_and_several_meet_at_the_first_node() -> None:
    folder = Path("/f")
    assert launched(folder, Shape(cpus=2), srun_args=["--container-image=my image"]) == (
        "srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=2 '--container-image=my image' "
        f"'/py thon' -m {WORKER} /f/task.json"
    )
    several = launched(folder, Shape(2, 8, 1, 8))
    assert several == (
        "srun --kill-on-bad-exit=1 --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 "
        "'/py thon' -m vlsafe.cluster.node --nnodes=2 "
        '--nproc-per-node=8 --master-addr="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" '
        f"--master-port=$((20000 + SLURM_JOB_ID % 20000)) -- {WORKER} /f/task.json"
    )
    assert "--master-port=29500 --" in launched(folder, Shape(2), port=29500)


def run(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = folder / "job.sh"
    path.write_text(script)
    return subprocess.run(
        ["bash", str(path)], cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node9", **env},
    )  # fmt: skip


def test_a_node_that_does_not_see_the_folder_says_what_to_set(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    folder.mkdir()
    done = run(job_script(job(folder), Shape(), Resources(), SlurmSettings(), "python3"), folder)
    assert done.returncode == 1
    assert (
        f"error: store={folder}/store is not visible on node9: set store= and outputs= to a shared file system" in done.stderr
    )
    assert not list(tmp_path.rglob("broken"))


def test_no_job_goes_back_into_the_queue_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    folder.mkdir()
    (folder / "task.json").touch()
    script = job_script(job(folder), Shape(), Resources(), SlurmSettings(max_requeues=2), "python3")
    done = run(script, folder, SLURM_RESTART_COUNT="3")
    assert done.returncode == 1
    note = json.loads((folder / "notes").read_text())
    assert note["event"] == "gave-up"
    assert note["why"] == "ended from outside after 2 requeues"
    assert (note["job"], note["node"], note["restarts"]) == ("7", "node9", 3)
    assert not list(tmp_path.rglob("broken"))


def test_set_up_lines_come_before_the_command_and_no_secret_is_written(tmp_path: Path) -> None:
    os.environ["WANDB_API_KEY"] = "local-0123456789"
    try:
        settings = slurm_settings({"setup": ["module load cuda/12.4", "conda activate 'my env'"]})
        script = job_script(job(tmp_path), Shape(), Resources(), settings, "python3")
    finally:
        del os.environ["WANDB_API_KEY"]
    assert script.index("module load cuda/12.4\nconda activate 'my env'\n") < script.index("srun ")
    assert "0123456789" not in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def set_up(folder: Path, *lines: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, object]]]:
    """A job with these lines before a command that says `ran`."""
    (folder / "task.json").touch()
    (folder / "srun").write_text("#!/bin/bash\necho ran; exit 3\n")
    (folder / "srun").chmod(0o755)
    script = job_script(job(folder), Shape(), Resources(), slurm_settings({"setup": list(lines)}), "python3")
    done = run(script, folder, PATH=f"{folder}:{os.environ['PATH']}")
    return done, [json.loads(line) for line in (folder / "notes").read_text().splitlines()]


@pytest.mark.parametrize(
    ("lines", "named", "status"),
    [
        (("true", "module load cuda/99", "echo further"), "module load cuda/99", 127),
        (("source missing.sh",), "source missing.sh", 1),
        (("if true; then", "  (exit 4)", "fi"), "( exit 4 )", 4),
        (("grep 'a\nb' /dev/null",), "grep 'a b' /dev/null", 1),
        (("printf 'exit_code() { return 5; }\\nexit_code\\n' > own.sh", "source own.sh"), "source own.sh", 5),
    ],
)
def test_a_set_up_line_that_fails_ends_the_job_and_is_named(
    tmp_path: Path, lines: tuple[str, ...], named: str, status: int
) -> None:
    done, notes = set_up(tmp_path, *lines)
    assert done.returncode == status
    assert f"error: hydra.launcher.setup: '{named}' failed with status {status} on node9\n" in done.stderr
    assert [(n["event"], n["status"], n["why"]) for n in notes] == [("end", status, "setup")]
    assert "ran" not in done.stdout
    assert "further" not in done.stdout


def test_what_a_site_s_own_files_do_is_theirs(tmp_path: Path) -> None:
    """As activation scripts do: a command that fails on the way, in a file or a function; `set -eu` that is left on."""
    (tmp_path / "activate.sh").write_text("false\nstep=x\ntrue\n")
    done, notes = set_up(
        tmp_path, "source activate.sh", "tolerant() { false; true; }", "tolerant", "false || true", "[ -d none ] && false",
        "true", "set -eu",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "ran" in done.stdout
    assert [n["event"] for n in notes] == ["start", "end"]


def test_no_text_begins_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "task.json").touch()
    title = "of t\n#SBATCH --uid=0\r\ntouch broken\x1b[2J"
    script = job_script(replace(job(tmp_path), title=title), Shape(), Resources(), SlurmSettings(), "python3")
    assert "# of t\\x0a#SBATCH --uid=0\\x0d\\x0atouch broken\\x1b[2J\n" in script
    assert not [line for line in script.splitlines() if line.startswith(("#SBATCH --uid", "touch"))]
    folder = tmp_path / "a\n#SBATCH --uid=0"
    folder.mkdir()
    with pytest.raises(ConfigError, match="must be one line of text"):
        job_script(job(folder), Shape(), Resources(), SlurmSettings(), "python3")
