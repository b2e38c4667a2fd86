"""Safetensors checkpoints, tensor by tensor: names, shapes and dtypes without loading, one tensor at a time; written likewise.

Files are read and written in plain blocks, never mapped or held whole, so that a stage over a 70B model needs the memory of a
few of its tensors. One file or shards with an index, as `save_pretrained` writes them. Pickled weights are refused.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlsafe.errors import CheckError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What belongs to a model besides its weights: everything that transformers, vLLM and mergekit read, and the licence.
AUXILIARY = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template*",
    "additional_chat_templates",
    "LICENSE*",
    "NOTICE*",
)
# Safetensors' names of dtypes: torch's name, bytes each.
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_TORCH_NAMES = {torch_name: code for code, (torch_name, _) in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # the format's own limit, in bytes


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header describes it. `dtype` is torch's name, such as `bfloat16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.parameters * DTYPES[_TORCH_NAMES[self.dtype]][1]


@dataclass(frozen=True)
class _Place:
    file: Path
    start: int  # bytes from the beginning of the file


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder of weights: `tensors` in the order of the files, `read` one of them."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, _Place]

    def read(self, name: str) -> Tensor:
        """The tensor, in memory of its own, in its stored dtype; raises `KeyError` for a name that isn't there."""
        import torch

        info, place = self.tensors[name], self.places[name]
        dtype = getattr(torch, info.dtype)
        if info.bytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        flat = torch.empty(info.bytes, dtype=torch.uint8)
        with place.file.open("rb", buffering=0) as file:
            file.seek(place.start)
            view = memoryview(flat.numpy())
            while view:
                count = file.readinto(view)
                if not count:
                    raise CheckError(f"{place.file}: ends inside '{name}': the file is truncated; copy or build it again")
                view = view[count:]
        return flat.view(dtype).reshape(info.shape)

    def config(self) -> dict[str, Any]:
        """The contents of `config.json`; empty where there is none."""
        path = self.folder / "config.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads headers only; raises `CheckError` for a folder without safetensors weights, or with truncated or mixed-up ones."""
    folder = Path(folder)
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    for file, expected in _weight_files(folder):
        found = _read_header(file)
        if expected is not None and expected != {info.name for info, _ in found}:
            difference = sorted(expected ^ {info.name for info, _ in found})
            raise CheckError(
                f"{file}: {INDEX} and the file disagree about {', '.join(difference[:3])}: copy the checkpoint again"
            )
        for info, start in found:
            if info.name in tensors:
                raise CheckError(f"{file}: '{info.name}' is in {places[info.name].file.name} too: copy the checkpoint again")
            tensors[info.name], places[info.name] = info, _Place(file, start)
    return Checkpoint(folder, tensors, places)


def open_file(file: Path) -> Checkpoint:
    """One file by itself; raises `CheckError` as `open_checkpoint`."""
    found = _read_header(file)
    return Checkpoint(
        file.parent, {info.name: info for info, _ in found}, {info.name: _Place(file, start) for info, start in found}
    )


def _weight_files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """The files that hold the model, each with the names that the index expects in it."""
    if not folder.is_dir():
        raise CheckError(f"{folder}: no such folder; a model's folder holds {SINGLE}, or its shards and {INDEX}")
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise CheckError(f"{folder}: holds both {SINGLE} and {INDEX}: remove the one that is left over from an earlier save")
    if single.is_file():
        return [(single, None)]
    if index.is_file():
        shards: dict[str, set[str]] = {}
        for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items():
            shards.setdefault(file, set()).add(name)
        missing = [file for file in shards if Path(file).name != file or not (folder / file).is_file()]
        if missing:
            raise CheckError(f"{folder}: {INDEX} names {', '.join(sorted(missing)[:3])}, not there: copy the checkpoint again")
        return [(folder / file, names) for file, names in sorted(shards.items())]
    if (folder / "adapter_model.safetensors").is_file():
        raise CheckError(f"{folder}: a PEFT adapter without its model: load both, call merge_and_unload(), and save the result")
    if any(next(folder.glob(pattern), None) for pattern in PICKLED):
        raise CheckError(
            f"{folder}: its weights are pickled, which could run code when loaded, and are not read. Convert them once, if you "
            f"trust who made them: python -m vlsafe.model.convert {folder} NEW_FOLDER, and set the source's folder to that"
        )
    raise CheckError(
        f"{folder}: no weights; expected {SINGLE}, or its shards and {INDEX}, as save_pretrained writes them. If the hub has "
        "only pickled ones (pytorch_model.bin), which are not read: hf download ID --local-dir FOLDER, "
        "python -m vlsafe.model.convert FOLDER NEW_FOLDER, and set the source's folder to that"
    )


def _read_header(file: Path) -> list[tuple[TensorInfo, int]]:
    """Each tensor with its first byte's place, in the order of the data; raises `CheckError` where sizes don't add up."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise CheckError(f"{file}: not a safetensors file, or truncated; copy or build it again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckError(f"{file}: its header is unreadable ({error}); copy or build it again") from None
    header.pop("__metadata__", None)
    found: list[tuple[TensorInfo, int]] = []
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        if entry["dtype"] not in DTYPES:
            raise CheckError(
                f"{file}: '{name}' has the dtype {entry['dtype']}, which is not supported; save the model in bfloat16"
            )
        info = TensorInfo(name, DTYPES[entry["dtype"]][0], tuple(entry["shape"]))
        start, end = entry["data_offsets"]
        if start != at or end - start != info.bytes:
            raise CheckError(f"{file}: the header's offsets of '{name}' don't fit its shape; copy or build it again")
        found.append((info, 8 + length + start))
        at = end
    if 8 + length + at != size:
        raise CheckError(f"{file}: {size} bytes where the header asks for {8 + length + at}: truncated; copy or build it again")
    return found


def shards_of(layout: Sequence[TensorInfo], max_shard_bytes: int) -> list[list[TensorInfo]]:
    """Filled in order, a new one whenever the next tensor would not fit; a tensor above the limit gets one of its own."""
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in layout:
        if shards[-1] and filled + info.bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += info.bytes
    return shards


def write_checkpoint(
    folder: Path, layout: Sequence[TensorInfo], tensor: Callable[[TensorInfo], Tensor], max_shard_bytes: int = 5 * 10**9
) -> list[Path]:
    """Writes the tensors of `layout`, asking `tensor` for each one when its turn comes and keeping none.

    One file, or shards of at most `max_shard_bytes` with an index. Returns the files written. Raises `CheckError` where
    `tensor` gives another shape or dtype than `layout` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = shards_of(layout, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / SINGLE, shards[0], tensor)
        return [folder / SINGLE]
    files = [folder / f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write_file(file, shard, tensor)
    totals = {"total_parameters": sum(i.parameters for i in layout), "total_size": sum(i.bytes for i in layout)}
    weight_map = {info.name: file.name for file, shard in zip(files, shards, strict=True) for info in shard}
    index = {"metadata": totals, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return [*files, folder / INDEX]


def _write_file(file: Path, layout: Sequence[TensorInfo], tensor: Callable[[TensorInfo], Tensor]) -> None:
    # Wide dtypes first, so that every tensor starts at a multiple of its own width, as readers that map the file need.
    order = sorted(layout, key=lambda info: -DTYPES[_TORCH_NAMES[info.dtype]][1])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for info in order:
        header[info.name] = {"dtype": _TORCH_NAMES[info.dtype], "shape": info.shape, "data_offsets": [at, at + info.bytes]}
        at += info.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb", buffering=0) as stream:
        _write_all(stream, memoryview(len(text).to_bytes(8, "little") + text))
        for info in order:
            _write_all(stream, _bytes_of(tensor(info), info))


def _bytes_of(tensor: Tensor, info: TensorInfo) -> memoryview:
    import torch

    if tuple(tensor.shape) != info.shape or str(tensor.dtype).removeprefix("torch.") != info.dtype:
        got = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise CheckError(f"'{info.name}' should have been written as {info.shape} {info.dtype}, and came as {got}")
    if info.bytes == 0:
        return memoryview(b"")
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _write_all(stream: BinaryIO | Any, view: memoryview) -> None:
    while view:
        view = view[stream.write(view) :]


def auxiliary_files(folder: Path) -> list[Path]:
    """What belongs to the model besides its weights: configuration, tokenizer, processor, chat template, licence."""
    found = {path for pattern in AUXILIARY for path in Path(folder).glob(pattern)}
    return sorted(found)


def copy_auxiliary(source: Path, target: Path, leave_out: Iterable[str] = ()) -> list[str]:
    """Copies `auxiliary_files`, but for the names in `leave_out`; returns the names copied."""
    copied = []
    for path in auxiliary_files(source):
        if path.name in leave_out:
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target / path.name)
        copied.append(path.name)
    return copied
