"""Runs presets one after the other in one process: what they import is imported once. `python run_all.py OUTPUTS PRESET…`

A line on stdout for each: its name and exit status.
"""

from __future__ import annotations

import sys

from tests.conftest import ROOT

# What a preset is cut to, so that all of them take a minute: it stands for the rest of its grid.
FEWER = {
    "paper_llama2": ["safety_tune=sft,dpo", "merge=linear,ties"],  # the command of the issue
    "adaptation_curve": ["adaptation=llava"],
    "demo": ["safety_tune=sft", "merge=dare_ties"],
    "findings": [
        "seed=0",
        "adaptation=filtered",
        "data.planted=0.05",
        "safety_tune=none",
        "safety_tune.order=after",
        "merge=linear",
        "merge.t=0.25",
    ],  # fmt: skip
    "findings_control": ["seed=0", "safety_tune=none"],
    "full_grid": ["adaptation=llava", "safety_tune=sft", "safety_tune.order=joint", "merge=slerp"],
    "merge_curve": ["safety_tune=sft", "merge=slerp", "merge.t=0.1"],
    "seeds": ["seed=0", "safety_tune=none"],
    "smoke": ["safety_tune=sft", "merge=linear"],
}


def run(outputs: str, preset: str) -> int:
    from vlsafe.app import main

    sys.argv = [preset, "+stand_in=tiny", f"+experiment={preset}", f"outputs={outputs}", *FEWER.get(preset, [])]
    try:
        main("train", ROOT / "conf")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    outputs, *presets = sys.argv[1:]
    for preset in presets:
        print(f"{preset} {run(outputs, preset)}", flush=True)
