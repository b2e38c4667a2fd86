"""Asking a guard model, a language model that says `safe` or `unsafe` of a conversation, with `transformers`.

Conversations are padded on the left and grouped by length, and answered greedily; a verdict does not depend on its batch. What
it said is kept (`verdicts.py`), so that nothing is asked twice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlsafe.errors import StageInterrupted
from vlsafe.eval.verdicts import Said, Turns, Verdict, known_as
from vlsafe.stage import StageContext

if TYPE_CHECKING:
    from vlsafe.sources import Source

FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")  # of its repository
NEW_TOKENS = 24  # "unsafe" and a few categories; what goes on is in no known form
WINDOW = 4096  # conversations that are held in memory, with the guard's own policy in front of each, and sorted by length
_VERDICT = re.compile(r"safe|unsafe\s*\n\s*(S(?:1[0-4]|[1-9])(?:\s*,\s*S(?:1[0-4]|[1-9]))*)")


@dataclass(frozen=True)
class Guard:
    model: Any
    tokenizer: Any
    device: str
    longest: int  # tokens that it can read


_opened: dict[tuple[Path, str], Guard] = {}  # one at most


def parse(answer: str) -> Verdict:
    """Llama Guard 3's form: `safe`, or `unsafe` and on the next line the categories S1 to S14. Anything else is unclear."""
    found = _VERDICT.fullmatch(answer.strip())
    if not found:
        return Verdict(None)
    return Verdict(found[1] is not None, tuple(dict.fromkeys(re.findall(r"S\d+", found[1] or ""))))


def open_guard(source: Source, device: Literal["auto", "cpu", "cuda"]) -> Guard:
    """The model, kept until `close`; before it is loaded the model that answered is let go, since both may not fit."""
    from vlsafe.eval import decoding
    from vlsafe.model.load import load_model, load_processor, pick_device, template_hash

    folder = source.fetch(FILES).absolute()
    where = str(pick_device(device))
    if (folder, where) not in _opened:
        close()
        decoding.close()
        model, tokenizer = load_model(folder, where), load_processor(folder)
        template_hash(tokenizer)  # raises where there is none
        decoding.make_greedy(model, tokenizer, source.where(), max_new_tokens=NEW_TOKENS)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.generation_config.pad_token_id)
        longest = int(getattr(model.config, "max_position_embeddings", 0) or 2**30) - NEW_TOKENS
        _opened[folder, where] = Guard(model, tokenizer, where, longest)
    return _opened[folder, where]


def ran_on() -> dict[str, str]:
    """Of the guard that is loaded, for the manifest; empty where nothing had to be asked."""
    return {
        name: value
        for guard in _opened.values()
        for name, value in (("device", guard.device), ("dtype", str(guard.model.dtype).removeprefix("torch.")))
    }


def close() -> None:
    """Lets go of the guard, and of the GPU's memory that it had."""
    import gc

    import torch

    if _opened:
        _opened.clear()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def judge(
    source: Source,
    conversations: Iterable[Turns | None],
    batch_size: int,
    ctx: StageContext,
    said: Said | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """A verdict on the last turn of each, in order; none on None. `said` (the main rank's) holds those that are known and keeps
    what the guard says, batch by batch; the guard is loaded when something is missing. Ranks share the batches, and call this
    with the same conversations. Raises `StageInterrupted` after a stop signal.
    """
    found: list[Verdict] = []
    known: dict[str, Verdict] = {"": Verdict(None)}

    def counted(more: int) -> None:
        tell(len(found) + more)

    rest = iter(conversations)
    while window := list(itertools.islice(rest, WINDOW)):
        names = [known_as(turns) if turns is not None else "" for turns in window]
        new = {name: turns for name, turns in zip(names, window, strict=True) if turns is not None and name not in known}
        taken = {name: said.before[name] for name in new if name in said.before} if said else {}
        mine = {name: said.mine[name] for name in new if name in said.mine} if said else {}
        taken, mine = ctx.ranks.broadcast((taken, mine))
        known |= {**mine, **taken}
        missing = {name: turns for name, turns in new.items() if name not in taken}
        if missing.keys() - mine.keys():
            opened = open_guard(source, ctx.execution.device)
            known |= _ask_all(opened, missing, mine, batch_size, ctx, said, counted)
        found += [known[name] for name in names]
        counted(0)
    return found


def _ask_all(
    guard: Guard,
    missing: Mapping[str, Turns],
    mine: Mapping[str, Verdict],
    batch_size: int,
    ctx: StageContext,
    said: Said | None,
    tell: Callable[[int], None],
) -> dict[str, Verdict]:
    """Of all that are missing, but for batches of which everything was said in an earlier try (`mine`): so each conversation is
    asked in the batch in which it would be if nothing had stopped that try."""
    prompts = {name: render(guard, turns) for name, turns in missing.items()}
    tokens = guard.tokenizer(list(prompts.values()), add_special_tokens=False)["input_ids"]
    lengths = dict(zip(prompts, map(len, tokens), strict=True))
    order = sorted(prompts, key=lambda name: -lengths[name])
    readable = [name for name in order if lengths[name] <= guard.longest]
    found = {name: Verdict(None) for name in order if lengths[name] > guard.longest}
    if said is not None:
        said.add(found)
    batches = [readable[i : i + batch_size] for i in range(0, len(readable), batch_size)]
    batches = [batch for batch in batches if not all(name in mine for name in batch)]
    for first in range(0, len(batches), ctx.ranks.world):
        if ctx.should_stop():
            raise StageInterrupted("judging was stopped: what the guard said so far is kept")
        own = batches[first + ctx.ranks.rank] if first + ctx.ranks.rank < len(batches) else []
        answers = ask(guard, [prompts[name] for name in own]) if own else []
        new = {name: v for part in ctx.ranks.gather(list(zip(own, answers, strict=True))) for name, v in part}
        if said is not None:
            said.add(new)
        found |= new
        tell(len({*found, *mine}))
    return found


def ask(guard: Guard, prompts: Sequence[str]) -> list[Verdict]:
    """One batch; half of it at a time where it does not fit in the GPU's memory."""
    import torch

    inputs = guard.tokenizer(
        list(prompts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    ).to(guard.device)
    inputs.pop("token_type_ids", None)
    try:
        with torch.inference_mode():
            output = guard.model.generate(**inputs)
    except torch.cuda.OutOfMemoryError:
        if len(prompts) == 1:
            raise
        output = None
    if output is None:
        torch.cuda.empty_cache()
        half = len(prompts) // 2
        return [*ask(guard, prompts[:half]), *ask(guard, prompts[half:])]
    new = output[:, inputs["input_ids"].shape[1] :]
    return [parse(text) for text in guard.tokenizer.batch_decode(new, skip_special_tokens=True)]


def render(guard: Guard, turns: Turns) -> str:
    """Through the guard's own template, which holds its policy. A text that spells out one of its special tokens would end its
    turn early and be judged for something else: such tokens are broken up."""
    special = {*guard.tokenizer.all_special_tokens, *guard.tokenizer.get_added_vocab()}
    plain = [{"role": turn["role"], "content": broken_up(turn["content"], special)} for turn in turns]
    return str(guard.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=False))


def broken_up(text: str, special: set[str]) -> str:
    for token in sorted(special, key=len, reverse=True):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
