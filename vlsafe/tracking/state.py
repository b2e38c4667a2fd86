"""What was already sent: `tracking.json` in the sweep's folder. It saves work only; without it everything is sent again.

    {"wandb offline api.wandb.ai//vlsafe":
        {"inputs": "1f…", "runs": {"safety_tune-3c…": {"digest": "9a…", "steps": 60, "group": "demo"}}}}

`inputs` stands for all records of the sweep at the time when every one of its runs had been sent.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlsafe.files import read_json, write_json
from vlsafe.keys import digest
from vlsafe.lock import held
from vlsafe.tracking.base import Destination, Tracking

FILE = "tracking.json"
VERSION = 2  # raise it when the same records make other runs
RECORDS = ("results.csv", "cells.jsonl")  # they name every artifact by its key, and what failed


class Sent(NamedTuple):
    digest: str
    steps: int
    group: str


def read_state(sweep: Path) -> dict[str, Any]:
    """By destination; empty where the file can't be read."""
    try:
        state = read_json(sweep / FILE)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def sent_runs(state: dict[str, Any], destination: str) -> dict[str, Sent]:
    try:
        runs = state[destination]["runs"]
        return {str(id): Sent(str(r["digest"]), int(r["steps"]), str(r["group"])) for id, r in runs.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


@contextlib.contextmanager
def changed(sweep: Path, destination: str) -> Iterator[dict[str, Any]]:
    """The part of one destination, to be changed in place. Of two processes that send one sweep none loses the other's."""
    with held(sweep / ".tracking.lock"):
        state = read_state(sweep)
        part = state.get(destination)
        if not isinstance(part, dict) or not isinstance(part.get("runs"), dict):
            part = state[destination] = {"inputs": None, "runs": {}}
        yield part
        write_json(sweep / FILE, state)


def inputs(sweep: Path, tracking: Tracking) -> str:
    """Stands for all that a sweep's runs are made from; changes when any of it does."""
    sums = []
    for name in RECORDS:
        with contextlib.suppress(OSError):
            sums.append(hashlib.sha256((sweep / name).read_bytes()).hexdigest())
    return digest([VERSION, tracking.upload_text, sums])


def up_to_date(sweep: Path, tracking: Tracking, destination: Destination) -> bool:
    part = read_state(sweep).get(destination.name)
    return isinstance(part, dict) and part.get("inputs") == inputs(sweep, tracking)


class Known(NamedTuple):
    """What this and the other sweeps of the same outputs say of a run: the group it was first sent in, the sweeps that have it,
    and how many rows went to the same project, by destination."""

    group: str
    sweeps: set[str]
    steps: dict[str, int]


def known_runs(sweep: Path, destination: Destination) -> dict[str, Known]:
    tool, _, project = destination.project.partition(" ")
    known: dict[str, Known] = {}
    for path in sorted(sweep.parent.glob(f"*/{FILE}")):
        state = read_state(path.parent)
        for name in state:
            if not (name.startswith(f"{tool} ") and name.endswith(f" {project}")):
                continue
            for id, sent in sent_runs(state, name).items():
                run = known.setdefault(id, Known(sent.group, set(), {}))
                run.steps[name] = max(run.steps.get(name, 0), sent.steps)
                if name == destination.name:
                    run.sweeps.add(path.parent.name)
    return known
