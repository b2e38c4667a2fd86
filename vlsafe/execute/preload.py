"""Imported once by the fork server: everything heavy that stages use. Must start no threads and touch no GPU."""

import gc
import importlib
import os

import vlsafe.registry

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

MODULES = (
    "torch",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.kto_trainer",
    "peft.tuners.lora",
    "vlsafe.train.trainers",
    "vlsafe.train.watch",
)

for module in MODULES:
    importlib.import_module(module)
vlsafe.registry.load()
# What is loaded by now stays: a full collection in a child then takes no time (else a quarter of a second) and copies no pages.
gc.collect()
gc.freeze()
