"""One small grid on SmolLM2-135M-Instruct, run as a user would; everything here is about what it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from tests.real import shop


@pytest.fixture(scope="session")
def package() -> tuple[Any, Any]:
    """The language model and the tokenizer as they lie in the package."""
    from vlsafe.model.embedded import embedded_file, read_gguf

    return read_gguf(embedded_file())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    launch = Launch(tmp_path_factory.mktemp("real") / "outputs")
    shop.write(launch.outputs.parent / "data")
    done = launch.run("train.py", *shop.EXPERIMENT, "sweep=real", f"outputs={launch.outputs}", *shop.GRID)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return launch


@pytest.fixture(scope="session")
def shop_folder(finished: Launch) -> Path:
    return finished.outputs.parent / "data"
