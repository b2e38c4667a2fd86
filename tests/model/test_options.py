"""The shipped options of real models: settings that exist, ids with a commit, and a stand-in for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from vlsafe import registry
from vlsafe.errors import ConfigError
from vlsafe.sources import sources_of
from vlsafe.stand_in.models import MODELS

REAL = [
    path
    for group in ("model", "adaptation", "safety_tune")
    for path in sorted((ROOT / "conf" / group).glob("*.yaml"))
    if yaml.safe_load(path.read_text()).get("name") in ("assembled", "from_lvlm", "checkpoint")
]


def component(path: Path, **changes: Any) -> Any:
    settings = yaml.safe_load(path.read_text().replace("${seed}", "0")) | changes
    made = registry.make(path.parent.name, settings)
    made.check()
    return made


@pytest.mark.parametrize("path", REAL, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_an_option_names_what_it_is_made_of(path: Path) -> None:
    found = list(sources_of(component(path)))
    assert found
    for where, source in found:
        assert source.id in MODELS or str(source.id).startswith("Qwen/"), where
        assert source.revision is not None or "revision: null  # ours: the newest commit" in path.read_text()


def test_a_key_holds_the_commit_and_what_changes_the_result() -> None:
    from vlsafe.settings import spec_of

    path = ROOT / "conf" / "model" / "llama2_7b.yaml"
    spec = spec_of(component(path))
    assert spec["llm"] == {"id": "meta-llama/Llama-2-7b-chat-hf", "revision": "f5db02db724555f92da89c216ac04704f23d4590"}
    assert spec_of(component(path, vocabulary="exact")) != spec
    with pytest.raises(ConfigError, match=r"model\.vocabulary=padded: .*exact, multiple_of_64"):
        component(path, vocabulary="padded")
    with pytest.raises(ConfigError, match=r"model\.dtype=int8: choose from: as_stored, bf16, fp16, fp32"):
        component(path, dtype="int8")
