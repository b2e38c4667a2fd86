"""Benchmarks of the tool itself, printed as Markdown: python -m vlsafe.bench startup | demo

`startup` times what a user waits for before anything runs. `demo` runs the demo's sweep into an empty store and reads from the
manifests and events where its time and memory went; it takes minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from vlsafe.execute.events import EventReader
from vlsafe.files import read_json

ROOT = Path(__file__).resolve().parent.parent
HUNDRED = ("seed=range(25)", "safety_tune=sft,dpo", "merge=linear,ties")  # 100 cells


def launch(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / script), *arguments]


def seconds(command: Sequence[str], folder: Path, repeats: int) -> float:
    """The median wall time of a command that must succeed."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def startup() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            ("`launch/train.py --help`", seconds(launch("train.py", "--help"), folder, 5), 1.0),
            ("`launch/train.py --cfg job`", seconds(launch("train.py", "--cfg", "job"), folder, 5), 1.0),
            ("`launch/plan.py` of one cell", seconds(launch("plan.py"), folder, 5), None),
            ("`launch/plan.py` of 100 cells", seconds(launch("plan.py", *HUNDRED), folder, 3), 10.0),
        ]
        composing, ours = split_of_a_plan(folder)
        rows += [("— of which Hydra composes", composing, None), ("— of which ours", ours, 3.0)]
    print("| command | seconds | bound |\n|---|---|---|")
    for what, taken, bound in rows:
        print(f"| {what} | {taken:.2f} | {'' if bound is None else f'≤ {bound:g}'} |")


def split_of_a_plan(folder: Path) -> tuple[float, float]:
    """Seconds of planning 100 cells inside Hydra's composing, and in our own code."""
    code = """
import sys, time
import vlsafe.app as app
import vlsafe.hydra_plugins as plugins
from pathlib import Path
spent = {}
def timed(name, function):
    def wrapped(*a, **k):
        began = time.perf_counter()
        try:
            return function(*a, **k)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
    return wrapped
plugins.compose_all = timed("compose", plugins.compose_all)
app.run = timed("run", app.run)
root, *sys.argv[1:] = sys.argv[1:]
try:
    app.main("plan", Path(root) / "conf")
finally:
    print("SPENT", spent["compose"], spent["run"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *HUNDRED], cwd=folder, check=True, capture_output=True, text=True
    )
    compose, run = done.stdout.rpartition("SPENT ")[2].split()
    return float(compose), float(run)


def demo(keep: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        outputs = (keep or Path(name)).absolute() / "outputs"
        command = launch("train.py", "-m", "+experiment=demo", f"outputs={outputs}", "live=false")
        began = time.perf_counter()
        peak = run_and_watch(command, outputs.parent)
        first = time.perf_counter() - began
        again = seconds(command, outputs.parent, 3)
        manifests = [read_json(p) for p in outputs.glob("store/[a-z]*/*/manifest.json")]
        overhead = overhead_of_a_stage(outputs, manifests)
    groups: dict[str, list[float]] = {}
    for manifest in manifests:
        kind = "evaluation" if manifest["stage"] in ("generate", "judge") else manifest["stage"]
        groups.setdefault(kind, []).append(manifest["seconds"])
    models = len({m["parents"]["model"] for m in manifests if m["stage"] == "generate"})
    print("| what | seconds | bound |\n|---|---|---|")
    print(f"| the demo from an empty store to its table | {first:.0f} | ≤ 420 |")
    print(f"| the same command again | {again:.1f} | ≤ 5 |")
    print(f"| language model and tower | {sum(groups['model']):.0f} | ≤ 150 |")
    print(f"| both stages of adaptation | {sum(groups['adaptation']):.0f} | ≤ 120 |")
    for kind in ("safety_tune", "merge"):
        print(f"| {kind}, mean of {len(groups[kind])} | {statistics.mean(groups[kind]):.1f} | |")
    evaluation = sum(groups["evaluation"]) / models
    print(f"| evaluation of a model, mean of {models} | {evaluation:.1f} | |")
    print(f"| a further tuned cell (tuning and evaluation) | {max(groups['safety_tune']) + evaluation:.1f} | ≤ 25 |")
    print(f"| a further merged cell (merge and evaluation) | {statistics.mean(groups['merge']) + evaluation:.1f} | ≤ 25 |")
    print(f"| a stage's time outside its own work, mean of {len(manifests)} | {overhead:.3f} | ≤ 0.5 |")
    print(f"\nPeak memory of all processes together: {peak / 2**20:.0f} MiB (bound 2048).")


def overhead_of_a_stage(outputs: Path, manifests: Sequence[dict[str, object]]) -> float:
    """Mean seconds between a task's being handed over and its end that no stage of it was at work, for each stage."""
    work = {f"{m['stage']}/{m['key']}": float(str(m["seconds"])) for m in manifests}
    outside = 0.0
    for task in outputs.glob("sweeps/*/work/*/*.task.json"):
        events = EventReader(task.with_name(task.name.replace(".task.json", ".events.jsonl"))).new()
        if not events:  # what the same command found in the store
            continue
        handed_over = task.stat().st_mtime
        outside += events[-1]["time"] - handed_over - sum(work[f"{s['kind']}/{s['key']}"] for s in read_json(task)["stages"])
    return outside / len(work)


def run_and_watch(command: Sequence[str], folder: Path) -> int:
    """Run a command that must succeed; the peak of its and its descendants' memory in bytes, shared pages counted once."""
    import psutil

    folder.mkdir(parents=True, exist_ok=True)
    peak, ended = 0, threading.Event()
    with subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.5):
                total = 0
                try:
                    for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                        total += member.memory_full_info().pss
                except psutil.Error:
                    continue
                peak = max(peak, total)

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        ended.set()
        watcher.join()
    if status:
        raise SystemExit(status)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["startup", "demo"])
    parser.add_argument("--keep", type=Path, help="a folder for the demo's outputs; default: a temporary one")
    options = parser.parse_args()
    if options.what == "startup":
        startup()
    else:
        demo(options.keep)


if __name__ == "__main__":
    main()
