"""Token ids to padded batches, on the right, with the pictures that belong to them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from vlsafe.data.encode import Encoder
from vlsafe.data.examples import Example, Kept
from vlsafe.data.pictures import PictureError
from vlsafe.model.families import TOKEN_TYPES


class Collator:
    """Batches of examples: `input_ids`, `attention_mask`, `labels` (int64, batch × length, padded on the right) and, where
    there are pictures, the family's `picture_inputs`, those of all pictures one after the other (`pixel_values`, …). A family
    that has to be told which tokens are a picture's gets `mm_token_type_ids` (1 there, else 0). In place of `labels`, pairs
    and labelled rows have TRL's `completion_mask`.

    Pairs: chosen rows first, then rejected ones. Labelled rows: `label`, and under `KL_…` the same prompts with the answers of
    the examples that the features name as `mismatched`. Where features say that their step is `pictured`, so does the batch,
    with one under `absent_picture` where it has none of its own (with `blank_always`, in every batch without pictures).

    A picture whose header could be read and whose content can't be decoded: its row keeps its place in the batch, with a blank
    picture and nothing of it supervised, so that it moves no weight. It is kept in `broken`, and `on_broken` is told once.
    """

    def __init__(self, encoder: Encoder, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> None:
        self.encoder, self.examples, self.rows = encoder, examples, rows
        self.kept: Kept = getattr(examples, "kept", None) or Kept()
        self.blank_always = False
        self.broken: dict[int, str] = {}  # by row
        self.on_broken: Callable[[Example, str], None] = lambda example, reason: None

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        chosen = [self.examples[f["example"]] for f in features]
        pictures = [picture for e in chosen if e.pictures for picture in self._opened(e)]
        sides = len(chosen[0].completions)
        batch = self._padded([(e.prompt, e.completions[k]) for k in range(sides) for e in chosen])
        self._unlearn(batch, [(e, k) for k in range(sides) for e in chosen])
        if "mismatched" in features[0]:
            others = [self.examples[f["mismatched"]].completions[0] for f in features]
            mismatched = self._padded([(e.prompt, self._fitting(e, other)) for e, other in zip(chosen, others, strict=True)])
            self._unlearn(mismatched, [(e, None) for e in chosen])
            batch |= {f"KL_{name}": values for name, values in mismatched.items()}
            batch["label"] = torch.tensor([e.label for e in chosen])
        elif sides == 1:
            batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        for name in ("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps"):
            if name in features[0]:
                batch[name] = torch.tensor([f[name] for f in features], dtype=torch.float32)
        if pictures:
            seen = self.encoder.seen(pictures)
            batch |= {name: values if sides == 1 else torch.cat([values, values]) for name, values in seen.items()}
        if "pictured" in features[0]:
            batch["pictured"] = features[0]["pictured"]
        if not pictures and (self.blank_always or batch.get("pictured")):
            batch["absent_picture"] = self.encoder.seen(self._opened(self._some)[:1])
        return batch

    @cached_property
    def _some(self) -> Example:
        """The first example with a picture."""
        return next(example for example in self.examples if example.pictures)

    def _opened(self, example: Example) -> list[Any]:
        pictures = self.kept.of(example.row)
        if pictures is None:
            pictures = self.rows[example.row]["images"]
            self.kept.keep(example.row, pictures)
        try:
            return self.encoder.open(pictures)
        except PictureError as error:
            if example.row not in self.broken:
                self.broken[example.row] = str(error)
                self.on_broken(example, str(error))
            from PIL import Image

            return [Image.new("RGB", picture.size, self.encoder.colour) for picture in pictures]

    def _unlearn(self, batch: dict[str, Any], sequences: Sequence[tuple[Example, int | None]]) -> None:
        """Takes out of the completions' mask what isn't the assistant's, and rows without their picture."""
        for i, (example, side) in enumerate(sequences):
            if example.row in self.broken:
                batch["completion_mask"][i] = 0
            elif example.asked and side is not None:
                for start, end in example.asked[side]:
                    batch["completion_mask"][i, len(example.prompt) + start : len(example.prompt) + end] = 0

    def _fitting(self, example: Example, completion: array[int]) -> array[int]:
        """A mismatched answer, cut to the model's limit as TRL does: it is only ever scored, never learned."""
        return completion if self.encoder.limit is None else completion[: self.encoder.limit - len(example.prompt)]

    def _padded(self, sequences: Sequence[tuple[array[int], array[int]]]) -> dict[str, Any]:
        import numpy as np
        import torch

        shape = (len(sequences), max(len(p) + len(c) for p, c in sequences))
        ids = np.full(shape, self.encoder.pad_id, dtype=np.int64)
        attended, answered = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for i, (prompt, completion) in enumerate(sequences):
            start, end = len(prompt), len(prompt) + len(completion)
            ids[i, :start] = prompt
            ids[i, start:end] = completion
            attended[i, :end] = 1
            answered[i, start:end] = 1
        arrays = {"input_ids": ids, "attention_mask": attended, "completion_mask": answered}
        if self.encoder.family is not None and self.encoder.family.token_types:
            arrays[TOKEN_TYPES] = (ids == self.encoder.image_id).astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in arrays.items()}
