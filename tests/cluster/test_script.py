"""Job scripts: what they ask for, that no path breaks them, and what they do without Slurm: complain, and count."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from vlsafe.cluster.script import Job, Shape, job_script, launch_line, sbatch_options
from vlsafe.cluster.settings import Resources, SlurmSettings, slurm_settings

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
        "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 '/py thon' -m vlsafe.cluster.node --nnodes=2 "
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
