"""Nothing heavy is imported before a stage needs it: help, configs, plans and tables come at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY

HEAVY = (
    "torch", "transformers", "trl", "peft", "deepspeed", "datasets", "accelerate", "wandb", "numpy", "pandas", "PIL",
    "matplotlib", "jinja2",
)  # fmt: skip
PROBE = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    print("STATUS", end.code)
print("HEAVY", sorted({name.partition(".")[0] for name in sys.modules} & set(%r)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("train.py", "--help"),
        ("train.py", "--cfg", "job"),
        ("plan.py", *TINY, "safety_tune=none,tiny_sft", "merge=none,linear,ties"),
        ("store.py", "--help"),
        ("dashboard.py", "--help"),
        ("report.py", "--help"),
        ("status.py", "--help"),
        ("doctor.py", "+experiment=llava15_released", "tracking=wandb"),
    ],
)
def test_no_heavy_imports(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE % (HEAVY,), str(ROOT / "launch" / arguments[0]), *arguments[1:]],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert "HEAVY []" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]


def test_every_component_can_be_described_without_heavy_imports(tmp_path: Path) -> None:
    code = f"""
import sys
import vlsafe.registry
vlsafe.registry.load()
print(sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"
