"""Pickled weights, or adapters, to safetensors, once, where you trust who made them:

    hf download lmsys/vicuna-7b-v1.5 --revision 3321f76e3f527bd14065daf69dad9344000a201d --local-dir pickled
    python -m vlsafe.model.convert pickled mirror/lmsys/vicuna-7b-v1.5
    python launch/train.py … local=mirror

Nothing else here reads a pickle: it could run code when it is loaded. This command lets torch's restricted loader read tensors
and nothing else (`weights_only=True`), names and bits as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError, VlsafeError
from vlsafe.model import adapters
from vlsafe.model.weights import INDEX, SINGLE, copy_auxiliary, open_file

FILES = "pytorch_model*.bin"
PICKLED_SINGLE, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def convert(source: Path, target: Path) -> int:
    """Writes `source`'s weights as safetensors to `target`, a file for each of its files, with all that belongs to the model;
    returns how many tensors. Raises `CheckError` where there are none, or more than tensors in them."""
    from safetensors.torch import save_file

    files = pickled_files(source)
    if target.exists() and any(target.iterdir()):
        raise CheckError(f"{target}: is not empty; name a new folder")
    target.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, 1):
        state = dict(_tensors(file))
        name = (
            adapters.WEIGHTS
            if file.name == adapters.PICKLED
            else SINGLE
            if len(files) == 1
            else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        for tensor in state:
            if tensor in places:
                raise CheckError(f"{file}: '{tensor}' is in an earlier file, too: copy the checkpoint again")
            places[tensor] = name
        size += sum(t.numel() * t.element_size() for t in state.values())
        save_file(state, target / name, {"format": "pt"})
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    copy_auxiliary(source, target)
    if adapters.WEIGHTS in places.values():
        shutil.copyfile(source / adapters.ADAPTER, target / adapters.ADAPTER)
    return sum(len(open_file(target / name).tensors) for name in set(places.values()))


def patterns(allow: Sequence[str]) -> list[str]:
    """Of the files to convert, from those that are read afterwards."""
    pickled_too = [adapters.PICKLED] if adapters.WEIGHTS in allow else []
    return [FILES, *(pattern for pattern in allow if not pattern.endswith(".safetensors")), *pickled_too]


def pickled_files(folder: Path) -> list[Path]:
    if (folder / PICKLED_INDEX).is_file():
        names = set(json.loads((folder / PICKLED_INDEX).read_text("utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
        if missing:
            raise CheckError(f"{folder}: {PICKLED_INDEX} names {missing[0]}, not there: download the repository again")
        return [folder / name for name in sorted(names)]
    if (folder / PICKLED_SINGLE).is_file():
        return [folder / PICKLED_SINGLE]
    if (folder / adapters.PICKLED).is_file():
        adapters.refuse_beside(folder, str(folder))
        return [folder / adapters.PICKLED]
    raise CheckError(f"{folder}: none of {PICKLED_SINGLE}, {PICKLED_INDEX}, {adapters.PICKLED} there: nothing to convert")


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Each one in memory of its own: safetensors has no shared storage."""
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckError(f"{file}: holds more than tensors, or is damaged, and is not read ({type(error).__name__})") from error
    for name, value in state.items() if isinstance(state, dict) else [("", state)]:
        if not isinstance(value, torch.Tensor):
            raise CheckError(f"{file}: '{name}' is no tensor but a {type(value).__name__}: not a model's weights")
        yield name, value.clone().contiguous()


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m vlsafe.model.convert FOLDER_WITH_PICKLES NEW_FOLDER", file=sys.stderr)
        return 2
    try:
        count = convert(Path(arguments[0]), Path(arguments[1]))
    except VlsafeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} tensors written to {arguments[1]}; set the source's folder to it, or put it into a mirror (local=FOLDER)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
