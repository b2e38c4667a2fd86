"""Stand-ins of what the hub has, written once, and stage contexts over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlsafe.sources import Source
from vlsafe.stage import StageContext

VICUNA, LLAVA, CLIP = "lmsys/vicuna-7b-v1.5", "llava-hf/llava-1.5-7b-hf", "openai/clip-vit-large-patch14-336"
LLAMA2, LLAMA3 = "meta-llama/Llama-2-7b-chat-hf", "meta-llama/Meta-Llama-3-8B-Instruct"
SIGLIP, ORIGINAL = "google/siglip-so400m-patch14-384", "liuhaotian/llava-v1.5-7b"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """A source of the id's stand-in, in a mirror."""
    from vlsafe.stand_in.models import MODELS

    root = tmp_path_factory.mktemp("hub")

    def source(id: str) -> Source:
        if not (root / id).exists():
            MODELS[id](root / id)
        return Source(id=id, local=str(root))

    return source


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., StageContext]:
    """`stage(**parents)`: a context with a folder of its own."""

    def make(**parents: Path) -> StageContext:
        out = tmp_path / f"stage-{len(list(tmp_path.glob('stage-*')))}"
        out.mkdir()
        return StageContext(out, out / "work", parents)

    return make


def messages(*turns: str, picture: bool = False, system: str | None = None) -> list[dict[str, Any]]:
    """Of user and assistant in turn, in parts."""
    made: list[dict[str, Any]] = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    for number, text in enumerate(turns):
        shown = [{"type": "image"}] if picture and number == 0 else []
        made.append({"role": ("user", "assistant")[number % 2], "content": [*shown, {"type": "text", "text": text}]})
    return made
