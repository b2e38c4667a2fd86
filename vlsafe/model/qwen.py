"""Qwen2.5-VL's processor, for pictures only. Imports transformers: import this inside functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor
from transformers.models.qwen2_5_vl import processing_qwen2_5_vl as original


class Qwen2_5_VLProcessor(original.Qwen2_5_VLProcessor):  # type: ignore[misc] # noqa: N801 (saved under this name)
    """Transformers' own without videos, whose part needs torchvision. Pictures always go through PIL, so that a machine with
    torchvision sees what one without it sees. The settings for videos stay in what is saved, so that others can load it."""

    video_settings: dict[str, Any] | None = None

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    @classmethod
    def _get_arguments_from_pretrained(cls, folder: Any, processor_dict: Any = None, **kwargs: Any) -> list[Any]:
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", folder, **kwargs)
        return [AutoImageProcessor.from_pretrained(folder, backend="pil", **kwargs), tokenizer]

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> Qwen2_5_VLProcessor:
        processor: Qwen2_5_VLProcessor = super().from_pretrained(folder, **kwargs)
        processor.video_settings = video_settings(Path(folder))
        return processor

    def to_dict(self) -> dict[str, Any]:
        saved: dict[str, Any] = super().to_dict()
        pictures = self.image_processor.to_dict()
        videos = self.video_settings or {n: pictures[n] for n in ("patch_size", "temporal_patch_size", "merge_size")}
        return saved | {"video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", **videos}}


def video_settings(folder: Path) -> dict[str, Any] | None:
    """As any release stored them; None where only those for pictures are stored."""
    for name, part in (("processor_config.json", "video_processor"), ("video_preprocessor_config.json", None)):
        if (folder / name).is_file():
            stored = json.loads((folder / name).read_text("utf-8"))
            found = stored.get(part) if part else stored
            if found:
                return dict(found)
    return None
