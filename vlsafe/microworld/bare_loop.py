"""A bare PyTorch training loop over ready batches: what a step costs when nothing else is done, and a recipe's first try."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlsafe.data.rows import SupervisedRow
from vlsafe.train.optimization import Optimization


def ready_batch(processor: Any, rows: Sequence[SupervisedRow]) -> dict[str, Any]:
    """What the model takes for supervised rows, padded on the right: `labels` are -100 on the prompt and the padding."""
    import torch

    template = processor.apply_chat_template
    whole = [template([*row["prompt"], *row["completion"]], tokenize=False) for row in rows]
    head = [template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    images = [picture for row in rows for picture in row["images"]]
    pixels = {"pixel_values": processor.image_processor(images, return_tensors="pt")["pixel_values"]} if images else {}
    image = processor.image_token
    tokens = len(processor.replace_image_token(pixels, 0)) // len(image) if images else 1
    encode = processor.tokenizer.backend_tokenizer.encode_batch
    ids = [e.ids for e in encode([text.replace(image, image * tokens) for text in whole], add_special_tokens=False)]
    prompts = [len(e.ids) for e in encode([text.replace(image, image * tokens) for text in head], add_special_tokens=False)]
    width = max(map(len, ids))
    input_ids = torch.full((len(ids), width), processor.tokenizer.pad_token_id)
    labels = torch.full((len(ids), width), -100)
    for i, (sequence, prompt) in enumerate(zip(ids, prompts, strict=True)):
        input_ids[i, : len(sequence)] = torch.tensor(sequence)
        labels[i, prompt : len(sequence)] = torch.tensor(sequence[prompt:])
    mask = (torch.arange(width) < torch.tensor([len(sequence) for sequence in ids])[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, **pixels}


def train(
    model: Any, parameters: Sequence[Any], batches: Iterable[Mapping[str, Any]], optimization: Optimization
) -> list[float]:
    """The losses of one step a batch with AdamW; `parameters` are those to train, all others are taken as they are."""
    import torch

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=optimization.learning_rate, weight_decay=optimization.weight_decay)
    losses = []
    model.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = optimization.learning_rate * optimization.factor(step)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, optimization.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    model.eval()
    return [float(loss) for loss in losses]
