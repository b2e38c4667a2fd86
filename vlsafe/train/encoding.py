"""A phase's rows as ids: each row encoded by one of the ranks, and by one try of the stage.

<phase's folder>/encoded-<rank>.ids, .lines   what a rank encoded; they count only with `encoded.json`

A later try reads what an earlier one wrote, whatever its number of ranks, if model, settings and code make the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vlsafe.data
from vlsafe.data.encode import MOST_BROKEN, Encoded, Encoder, check_broken
from vlsafe.data.examples import Examples
from vlsafe.ranks import Ranks
from vlsafe.train.checkpoint import mark, verified

MARKER = "encoded.json"
COUNTED = ("dropped", "supervised", "tokens", "broken")


def encoded_rows(
    encoder: Encoder,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    ranks: Ranks,
    tick: Callable[[int], None],
    resumes: bool,
) -> Encoded:
    """All of `rows`, on each of the ranks. `resumes`: a checkpoint of this phase is there, so that its examples must stay what
    they are; else rows whose pictures could not be shown are tried anew. Raises what `Encoder.encode` does."""
    marker, found = folder / MARKER, None
    if ranks.main:
        made_from = digest(encoder, len(rows))
        found = verified(marker)
        if found is not None and (found["made_from"] != made_from or (not resumes and found["counts"]["broken"])):
            marker.unlink()
            found = None
    found = ranks.broadcast(found)
    if found is not None:
        counts: dict[str, Any] = {name: Counter(value) if name in COUNTED else value for name, value in found["counts"].items()}
        encoded = Encoded(**counts, parts=found["parts"], examples=Examples.read(folder, found["parts"]))
        check_broken(encoded.broken, encoded.named, len(rows), getattr(rows, "most_broken", MOST_BROKEN))
        return encoded
    encoded = encoder.encode(rows, tick, ranks, folder)
    if ranks.main:
        counts = {name: getattr(encoded, name) for name in (*COUNTED, "named", "end_token")}
        names = [f"{name}.{kind}" for name, _ in encoded.parts for kind in ("ids", "lines")]
        mark(marker, names, made_from=made_from, counts=counts, parts=encoded.parts)
    return encoded


def forget(encoded: Encoded, folder: Path, ranks: Ranks) -> None:
    """The phase is over: its files go, once no rank holds them open."""
    encoded.examples.close()
    ranks.barrier()
    if ranks.main:
        for file in (folder / MARKER, *folder.glob("encoded-*")):
            file.unlink(missing_ok=True)


def digest(encoder: Encoder, rows: int) -> str:
    """Of what ids follow from, beside the rows themselves, which the stage's key stands for."""
    tokenizer, processor = encoder.tokenizer, encoder.processor
    backend = getattr(tokenizer, "backend_tokenizer", None)
    made_from = {
        "code": code(),
        "packages": {name: version(name) for name in ("transformers", "tokenizers", "jinja2", "pillow")},
        "tokenizer": [backend.to_str() if backend is not None else type(tokenizer).__name__, tokenizer.special_tokens_map],
        "template": processor.chat_template,
        "pictures": encoder.pictures and encoder.pictures.to_dict(),
        "processor": {n: v for n, v in vars(processor).items() if isinstance(v, int | str | None)},
        "rows": rows,
        "limit": encoder.limit,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code() -> str:
    """Of the modules that encode."""
    folder = Path(str(vlsafe.data.__file__)).parent
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))).hexdigest()
