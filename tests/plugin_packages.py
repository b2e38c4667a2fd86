"""Installed plug-ins for tests: our example as pip installs it, and tiny packages written by hand as pip would leave them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "vlsafe-example"
HEAD = """
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from vlsafe.eval.base import Benchmark, Judge
from vlsafe.merge.base import MergeMethod
from vlsafe.registry import Component, register
from vlsafe.settings import Fraction
"""


def install_example(folder: Path) -> Path:
    """The folder to put on the path. It is built from a copy, since a build leaves files beside the source."""
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-build-isolation", "--no-index", "--target", str(folder / "site"), str(source),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def write_plugin(
    site: Path, name: str, code: str = "", configs: Mapping[str, str] | None = None, point: str | None = None
) -> None:
    """A package `NAME` of distribution `vlsafe-NAME`, whose entry point names it unless `point` says otherwise."""
    package, info = site / name, site / f"vlsafe_{name}-1.0.dist-info"
    for path, text in {
        package / "__init__.py": HEAD + code,
        info / "METADATA": f"Metadata-Version: 2.1\nName: vlsafe-{name}\nVersion: 1.0\n",
        info / "entry_points.txt": f"[vlsafe.plugins]\n{name} = {point or name}\n",
        **{package / "conf" / path: text for path, text in (configs or {}).items()},
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def on_path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
