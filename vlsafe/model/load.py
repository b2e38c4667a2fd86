"""Loads and saves a model artifact: the folder that `save_pretrained` writes, with its processor and chat template.

Weights are safetensors only, nothing runs remote code, and what does not fit exactly is an error rather than a fresh tensor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsafe.errors import CheckError

if TYPE_CHECKING:
    import torch


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else deepspeed, which trainers import, warns that it found no GPU
    if device == "cuda" and not torch.cuda.is_available():
        raise CheckError("device=cuda, but no CUDA device is visible here: set device=cpu or auto")
    return torch.device(device)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and with errors only: what matters is checked and raised by us."""
    import warnings

    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the libraries' own use of each other
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_model(path: Path | str, device: str = "auto", dtype: Any = None, train: bool = False) -> Any:
    """The model of a folder, on `device`, in `dtype` (a `torch.dtype` or its name; by default as stored).

    Raises `CheckError` when a tensor is missing, left over or of another shape than the configuration's.
    """
    import torch
    import transformers

    path = Path(path)
    where = pick_device(device)
    with quiet():
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        name = (config.architectures or [""])[0]
        cls = getattr(transformers, name, None)
        if cls is None:
            raise CheckError(
                f"{path}/config.json: architectures[0] is '{name}', which this version of transformers does not have"
            )
        wanted = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype or "auto"
        model, seen = cls.from_pretrained(
            path,
            config=config,
            dtype=wanted,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    wrong = {k: sorted(str(n) for n in seen[k]) for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if seen.get(k)}
    if wrong:
        told = "; ".join(f"{k.replace('_', ' ')}: {len(v)}, such as {v[0]}" for k, v in wrong.items())
        raise CheckError(f"{path}: the weights do not fit {name} ({told}): they would be freshly initialised or ignored")
    model = model.to(where)
    return model.train() if train else model.eval()


def load_processor(path: Path | str) -> Any:
    """The processor of a vision-language model's folder, the tokenizer of a plain language model's."""
    from vlsafe.model.families import load_processor as load

    with quiet():
        return load(Path(path))


def save_model(model: Any, processor: Any, out: Path | str) -> list[Path]:
    """Write the artifact's files, read them back, and return the weight files.

    The names in the file are those of `model.state_dict()` (tied tensors once); `CheckError` where a name or a bit differs.
    """
    out = Path(out)
    with quiet():
        # Else transformers 5 writes the names of version 4.
        model.save_pretrained(out, save_original_format=False)
        processor.save_pretrained(out)
    files = sorted(out.glob("*.safetensors"))
    verify_weights(model, files)
    return files


def verify_weights(model: Any, files: list[Path]) -> None:
    """Raises `CheckError` unless the files hold the model's state dict, bit for bit."""
    import torch
    from safetensors import safe_open

    state = model.state_dict()
    storages: dict[int, str] = {}
    left = dict(state)
    for file in files:
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name not in state:
                    raise CheckError(f"{file}: holds '{name}', which {type(model).__name__} has no parameter for")
                if not torch.equal(_bits(reader.get_tensor(name)), _bits(state[name])):
                    raise CheckError(f"{file}: '{name}' reads back with other bits than were written")
                storages[state[name].data_ptr()] = name
                left.pop(name, None)
    missing = [name for name, tensor in left.items() if tensor.data_ptr() not in storages]
    if missing:
        raise CheckError(
            f"{files[0].parent if files else 'weights'}: {len(missing)} tensors were not written, such as {missing[0]}"
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def template_hash(processor: Any) -> str:
    """What names the chat template (first 16 hex digits of its SHA-256): evaluation compares it with training's."""
    template = getattr(processor, "chat_template", None) or getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    )
    if not template:
        raise CheckError("the processor has no chat template: save one with the model (chat_template.jinja)")
    return hashlib.sha256(str(template).encode()).hexdigest()[:16]
