"""Rows whose pictures can't be shown: named in a file of the phase's folder as they are met, so that no kill forgets one.

Most are found before the first step, by their header (`Encoder`). What only decoding finds is met by whichever rank has the
row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsafe.data.collate import Collator
from vlsafe.data.encode import MOST_BROKEN, NAMED, Encoded, check_broken
from vlsafe.data.examples import Example
from vlsafe.ranks import Ranks
from vlsafe.train.checkpoint import read_log


def watch_pictures(collator: Collator, encoded: Encoded, folder: Path, ranks: Ranks) -> None:
    """Have the collator note what it can't decode, and stop where that is more than the rows' source allows."""
    rows = collator.rows
    most = getattr(rows, "most_broken", MOST_BROKEN)

    def on_broken(example: Example, reason: str) -> None:
        id = rows[example.row].get("id", example.row)
        with (folder / f"broken-{ranks.rank}.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"row": example.row, "source": example.source, "text": f"{id}: {reason}"}) + "\n")
        count, named = encoded.broken.copy(), {source: list(lines) for source, lines in encoded.named.items()}
        for row in collator.broken:
            count[str(rows[row]["source"])] += ranks.world  # this rank has seen its share of the rows
        named.setdefault(example.source, []).append(f"{id}: {reason}")
        check_broken(count, named, len(rows), most)

    collator.on_broken = on_broken


def broken_rows(encoded: Encoded, folder: Path) -> dict[str, dict[str, Any]]:
    """For the manifest, by source: how many rows were left out before training, how many in it, and the first of them."""
    met: Mapping[int, Any] = {line["row"]: line for file in sorted(folder.glob("broken-*.jsonl")) for line in read_log(file)}
    later: Counter[str] = Counter(line["source"] for line in met.values())

    def named(source: str) -> Sequence[str]:
        return [*encoded.named.get(source, ()), *(line["text"] for line in met.values() if line["source"] == source)][:NAMED]

    return {
        source: {"left_out": encoded.broken[source], "unlearned": later[source], "rows": named(source)}
        for source in sorted({*encoded.broken, *later})
    }
