from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlsafe import registry
from vlsafe.sources import placed
from vlsafe.stand_in.benchmarks import BENCHMARKS


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of every benchmark, as a mirror of the hub."""
    root = tmp_path_factory.mktemp("mirror")
    for id, write in BENCHMARKS.items():
        write(root / id)
    return root


Make = Callable[..., Any]


@pytest.fixture
def made(mirror: Path) -> Make:
    """A benchmark by name, read from the mirror or from the folder that its settings say."""

    def make(name: str, **settings: Any) -> Any:
        return placed(registry.make("benchmark", {"name": name, **settings}), str(mirror))

    return make
