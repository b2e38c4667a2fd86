"""Loads and saves a model artifact: the folder that `save_pretrained` writes, with its processor and chat template.

Weights are safetensors only, nothing runs remote code, and what does not fit exactly is an error rather than a fresh tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
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


def save_model(model: Any, processor: Any, out: Path | str, dtypes: Mapping[str, Any] | None = None) -> list[Path]:
    """Write the artifact's files, read them back, and return the weight files.

    The names in the file are those of `model.state_dict()` (tied tensors once); `CheckError` where a name or a bit differs.
    `dtypes` are those of the file by name (`torch.dtype`); by default the model's own.
    """
    out = Path(out)
    state = None if dtypes is None else in_dtypes(model.state_dict(), dtypes)
    with quiet():
        # Else transformers 5 writes the names of version 4.
        model.save_pretrained(out, state_dict=state and dict(state), save_original_format=False)  # which empties it
        processor.save_pretrained(out)
    first = next(name for name, _ in model.named_parameters())
    say_dtype(out / "config.json", str((state or model.state_dict())[first].dtype).removeprefix("torch."))
    files = sorted(out.glob("*.safetensors"))
    verify_weights(model, files, state)
    return files


def in_dtypes(state: Mapping[str, Any], dtypes: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict in other dtypes, on the CPU where one differs; tied tensors stay one."""
    made: dict[tuple[int, Any], Any] = {}
    for name, tensor in state.items():
        if tensor.dtype != dtypes[name]:
            made.setdefault((tensor.data_ptr(), tensor.shape), in_dtype(tensor.detach().cpu(), dtypes[name], name))
    return {name: made.get((tensor.data_ptr(), tensor.shape), tensor) for name, tensor in state.items()}


def in_dtype(tensor: torch.Tensor, dtype: Any, name: str) -> torch.Tensor:
    """Raises `CheckError` where the tensor holds a number that is too large for `dtype`."""
    made = tensor.to(dtype)
    if made.is_floating_point() and not made.isfinite().all():
        raise CheckError(f"{name}: holds numbers that {str(dtype).removeprefix('torch.')} can't; set save_dtype=fp32 or bf16")
    return made


def say_dtype(config: Path, dtype: str) -> None:
    """Where a `config.json` or one of its parts names another dtype than `dtype`, it is made to say that."""
    said = json.loads(config.read_text("utf-8"))
    levels = [said, *(level for level in said.values() if isinstance(level, dict))]
    wrong = [level for level in levels if level.get("dtype", dtype) not in (dtype, None)]
    for level in wrong:
        level["dtype"] = dtype
    if wrong:
        config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", "utf-8")


def verify_weights(model: Any, files: list[Path], state: Mapping[str, Any] | None = None) -> None:
    """Raises `CheckError` unless the files hold the model's state dict (or that one in its place), bit for bit."""
    import torch
    from safetensors import safe_open

    state = model.state_dict() if state is None else state
    storages: dict[int, str] = {}
    left = dict(state)
    for file in files:
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name not in state:
                    raise CheckError(f"{file}: holds '{name}', which {type(model).__name__} has no parameter for")
                read = reader.get_tensor(name)
                if read.dtype != state[name].dtype or not torch.equal(_bits(read), _bits(state[name])):
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
