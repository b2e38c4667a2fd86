"""One small grid on SmolLM2-135M-Instruct, run as a user would; everything here is about what it left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.plugin_packages import on_path, write_plugin
from tests.real import reader, shop


@pytest.fixture(autouse=True, scope="session")
def real_only(request: pytest.FixtureRequest) -> None:
    from vlsafe.model.embedded import embedded_file

    embedded_file()  # where it isn't installed, all fail with the line that says how


SMALL = (
    "adaptation.projector.steps=10", "adaptation.projector.batch_size=4", "adaptation.projector.learning_rate=2e-3",
    "adaptation.projector.warmup_steps=1", "adaptation.instruct.steps=10", "adaptation.instruct.batch_size=4",
    "adaptation.instruct.learning_rate=1e-4", "adaptation.instruct.warmup_steps=1", "safety_tune.optimization.steps=6",
    "safety_tune.optimization.batch_size=4", "safety_tune.optimization.warmup_steps=1",
    "safety_tune.optimization.learning_rate=5e-5", "engine.max_new_tokens=24", "engine.batch_size=4", "judge=keyword",
    "checkpoint_seconds=600", "jobs=1", "threads=2", "tracking=none",
)  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("real")
    shop.write(folder / "shop")
    write_plugin(folder / "site", "shop_reader", reader.CODE, reader.CONFIGS)
    launch = Launch(folder / "outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", on_path(folder / "site"))
        done = launch.run(
            "train.py", "-m", "sweep=real", f"outputs={launch.outputs}", "model=smollm2_embedded", "data=shop",
            f"data.folder={folder / 'shop'}", "eval=shop", "safety_tune=sft,dpo", "merge=none,ties", *SMALL,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return launch


@pytest.fixture(scope="session")
def shop_folder(finished: Launch) -> Path:
    return finished.outputs.parent / "shop"
