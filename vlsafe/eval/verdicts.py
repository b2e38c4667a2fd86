"""What a guard said of a conversation, kept as it is said. A stage that was stopped or killed goes on from there, and other
stages that ask the same guard about the same conversations take over what is known.

A line is `{"of": HASH, "harmful": true, false or null, "categories": ["S1"]}`; HASH is the conversation's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlsafe.errors import StageInterrupted
from vlsafe.eval.rows import line, read_partial
from vlsafe.lock import Lease
from vlsafe.stage import StageContext

VERDICTS = "verdicts.jsonl"
SYNC_SECONDS = 10.0  # a kill costs nothing that was written; only the machine's own end may cost these
POLL_SECONDS = 1.0

Turns = Sequence[Mapping[str, str]]  # role (user, assistant) and content; the last one is judged


class Verdict(NamedTuple):
    """`harmful` is None where the guard said neither in its form, or the conversation is too long for it."""

    harmful: bool | None
    categories: tuple[str, ...] = ()


class Said:
    """The file `own` with what this stage asked for, in this try or an earlier one, which grows; and what there was `before`,
    in `others`. Batches are made of what was not there before, so that a second try has those of the first."""

    def __init__(self, own: Path, others: Iterable[Path] = ()) -> None:
        own.parent.mkdir(parents=True, exist_ok=True)
        self.before = dict(entry for path in others for entry in entries(read_whole(path)))
        self.mine = dict(entries(read_partial(own)))
        self._handle = own.open("a", encoding="utf-8")
        self._synced = time.monotonic()

    def add(self, verdicts: Mapping[str, Verdict]) -> None:
        self.mine |= verdicts
        self._handle.write("".join(line(record(of, verdict)) for of, verdict in verdicts.items()))
        self._handle.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._handle.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        self._handle.close()


def known_as(turns: Turns) -> str:
    """A hash of who says what in a conversation: 128 bits."""
    said = json.dumps([[turn["role"], turn["content"]] for turn in turns])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def record(of: str, verdict: Verdict) -> dict[str, Any]:
    return {"of": of, "harmful": verdict.harmful, "categories": list(verdict.categories)}


def entries(rows: Iterable[Any]) -> Iterator[tuple[str, Verdict]]:
    """Rows that are no verdict are passed over: what they stood for is asked again."""
    for row in rows:
        of, harmful, categories = (row.get(name) for name in ("of", "harmful", "categories"))
        listed = isinstance(categories, list) and all(isinstance(category, str) for category in categories)
        if isinstance(of, str) and "harmful" in row and isinstance(harmful, bool | None) and listed:
            yield of, Verdict(harmful, tuple(categories))


def read_whole(path: Path) -> Iterator[Any]:
    """The rows of a file that somebody may be writing to: it stays as it is, and what is no row is passed over."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as handle:
        for text in handle:
            try:
                row = json.loads(text) if text.endswith(b"\n") else None
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


@contextlib.contextmanager
def shared(ctx: StageContext, tell: Callable[[str], None]) -> Iterator[Said | None]:
    """What the stages that share the folder of `ctx.verdicts` were told, on the main rank; None on others. All ranks call it.

    One stage at a time asks: another waits, and then finds the answers. Raises `StageInterrupted` after a stop signal.
    """
    own = ctx.verdicts or ctx.work / VERDICTS
    lease = Lease(own.parent / "lease.json")
    while not ctx.ranks.broadcast(lease.acquire() if ctx.ranks.main else None):
        if ctx.should_stop():
            raise StageInterrupted("stopped while another stage had the same rows judged; nothing is lost")
        tell(f"the same rows are being judged by {lease.holder()}")
        time.sleep(POLL_SECONDS)
    said = None
    try:
        if ctx.ranks.main:
            said = Said(own, sorted(own.parent.glob("*.jsonl")))  # its own too: a row of two phases is asked about once
        yield said
    finally:
        if said is not None:
            said.close()
        if ctx.ranks.main:
            lease.release()
