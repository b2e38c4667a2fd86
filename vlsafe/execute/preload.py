"""Imported once by the fork server: everything heavy that stages use. Must start no threads and touch no GPU."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama
import transformers.models.llava.modeling_llava
import trl.trainer.dpo_trainer
import trl.trainer.sft_trainer  # noqa: F401

import vlsafe.registry

vlsafe.registry.load()
