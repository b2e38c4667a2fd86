"""A released vision-language model with the language model that it came from inside it: model=from_lvlm.

That is the role `base` of a released model: its tower, projector, processor and chat template, and an untouched language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlsafe.errors import CheckError
from vlsafe.model import templates
from vlsafe.model.assembled import FILES, TEMPLATE, Dtype, copy_licences, read_text_config, read_tokenizer
from vlsafe.model.components import ModelSource
from vlsafe.registry import register
from vlsafe.settings import PositiveInt, added
from vlsafe.sources import Source
from vlsafe.stage import StageContext

if TYPE_CHECKING:
    from vlsafe.model.released import Lvlm


@register("model", "from_lvlm")
@dataclass(frozen=True)
class FromLvlm(ModelSource):
    """`llm` is the language model that `lvlm` was made from.

    `vocabulary`: where the released model has more rows, `lvlm_rows` takes the last ones from it; `exact` is an error.
    `tower` and `chat_template` are for LLaVA's own layout, which brings neither a processor nor always a tower.
    `min_pixels` and `max_pixels` are for families whose pictures keep their size (Qwen2.5-VL); a released model behind this one
    takes them over.
    """

    one_process: ClassVar[bool] = True

    llm: Source
    lvlm: Source
    tower: Source | None = None
    chat_template: str | None = None
    vocabulary: Literal["exact", "lvlm_rows"] = "lvlm_rows"
    dtype: Dtype = "as_stored"  # as_stored: as the released model's
    min_pixels: PositiveInt | None = added(None)  # of a picture, which is enlarged to it; null: the released model's
    max_pixels: PositiveInt | None = added(None)  # of a picture, which is reduced to it

    def check(self) -> None:
        templates.check_name(self.chat_template, TEMPLATE)

    def reads(self, field: str) -> Sequence[str]:
        return FILES

    def build(self, ctx: StageContext) -> None:
        from vlsafe.model.load import template_hash
        from vlsafe.model.original import tower_parts
        from vlsafe.model.released import open_lvlm, write_lvlm
        from vlsafe.model.shown import limit

        if not ctx.ranks.main:
            return
        ctx.progress(0, 1, f"reading {self.lvlm.where()}")

        def parts(tower: Source) -> Any:
            return tower_parts(tower.fetch(self.reads("tower")), tower.where(), self.chat_template)

        given = None if self.tower is None else partial(parts, self.tower)
        model = open_lvlm(self.lvlm.fetch(self.reads("lvlm")), self.lvlm.where(), given)
        limit(model.processor, self.min_pixels, self.max_pixels, model.where)
        folder = self.llm.fetch(self.reads("llm"))
        own_rows = model.rows
        released = dict(model.places)
        rows = put_language_model(model, folder, self.llm.where(), self.vocabulary)
        write_lvlm(model, ctx.out, self.dtype, released, lambda done, total: ctx.progress(done, total, "writing the model"))
        copy_licences(folder, ctx.out)
        ctx.facts |= {
            "template_hash": template_hash(model.processor),
            "vocabulary": {"rows": own_rows, "rows_of_the_language_model": rows},
        }


def put_language_model(model: Lvlm, folder: Path, where: str, vocabulary: str) -> int:
    """Let the tensors of the language model in `folder` stand for those of `model`; returns the rows of its vocabulary.

    Raises `CheckError` unless it is of the same architecture, and its tokens are the same as the model's first ones.
    """
    from vlsafe.model.released import EMBEDDING, LANGUAGE_MODEL, OUTPUT_MATRIX, is_tied, places_of, same_text_settings
    from vlsafe.model.vocabulary import check_tokens, tokens_of

    config = read_text_config(folder)
    places = places_of(folder, where, is_tied(config))
    same_text_settings(config, model.config, where, model.where)
    if OUTPUT_MATRIX not in places and OUTPUT_MATRIX in model.shapes:
        places[OUTPUT_MATRIX] = places[EMBEDDING]
    inside = {name for name in model.shapes if name.startswith(LANGUAGE_MODEL) or name == OUTPUT_MATRIX}
    odd = sorted(inside ^ places.keys())
    if odd:
        which = where if odd[0] in places else model.where
        raise CheckError(
            f"{where} is not the language model that {model.where} came from: '{odd[0]}' is only in {which}"
            + (" (one of them ties its output matrix to the embedding)" if odd == [OUTPUT_MATRIX] else "")
        )
    rows, all_rows = places[EMBEDDING].info.shape[0], model.shapes[EMBEDDING][0]
    if rows != all_rows and (vocabulary == "exact" or rows > all_rows):
        raise CheckError(
            f"{where} has a vocabulary of {rows} rows and {model.where} of {all_rows}: "
            + ("set model.vocabulary=lvlm_rows to take the last rows from the latter" if rows < all_rows else
               "the former is not the language model that the latter came from")
        )  # fmt: skip
    for name in sorted(inside):
        own, wanted = places[name].info.shape, model.shapes[name]
        if own != wanted and (name not in (EMBEDDING, OUTPUT_MATRIX) or own[1:] != wanted[1:]):
            raise CheckError(
                f"{where} is not the language model that {model.where} came from: '{places[name].stored}' is {own} and there "
                f"{wanted}"
            )
    check_tokens(tokens_of(folder, read_tokenizer), tokens_of_processor(model), rows, where, model.where)
    model.places.update({name: places[name] for name in inside})
    return rows


def tokens_of_processor(model: Lvlm) -> dict[int, Any]:
    return {row: token for token, row in model.processor.tokenizer.get_vocab().items()}
