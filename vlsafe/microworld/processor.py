"""The microworld's tokenizer, image processor and chat template, in the standard classes: `LlavaProcessor` over whole words."""

from __future__ import annotations

from typing import Any

from vlsafe.microworld.pictures import PATCH, SIZE
from vlsafe.microworld.world import vocabulary

PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT, IMAGE = "<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>", "<image>"
SPECIAL = (PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT, IMAGE)

# Content is a string or a list of parts. A prompt with the generation prompt is a prefix of the whole conversation.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{% generation %}"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %} {{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ eos_token }}{% endgeneration %}"
    "{% else %}<user>"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer() -> Any:
    """A fast word-level tokenizer of every word that the world can say. Decoding joins the words with single spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate((*SPECIAL, *vocabulary()))}
    backend = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"user_token": USER, "assistant_token": ASSISTANT, "image_token": IMAGE},
        chat_template=CHAT_TEMPLATE,
        model_max_length=128,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> Any:
    """A `LlavaProcessor`: pictures are taken as they are (24 × 24), scaled to [-1, 1]; one becomes 9 image tokens."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    pictures = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        do_resize=False,
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
