"""Chat templates: those of the language models' families, and how a language model's own is made to show pictures.

A template is Jinja over `messages`, as `transformers` renders it. A language model's takes messages whose content is text;
`with_pictures` puts in front of it what turns a list of parts into text, so that the model reads its own template's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vlsafe.errors import CheckError, ConfigError
from vlsafe.settings import closest

IMAGE = "<image>"  # LLaVA's; followed by a newline, as its conversations have it

# Written after each family's description; the system prompt is where the family has it, its default where it has one.
_LLAMA2 = r"""
{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}
{%- if message['role'] == 'user' -%}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
{%- else -%}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}
"""
_MISTRAL = r"""
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] + '\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{{ bos_token }}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}
{%- if message['role'] == 'user' -%}{{ ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else -%}{{ ' ' + message['content'] + eos_token }}{%- endif -%}
{%- endfor -%}
"""
_TULU = r"""
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\n' + message['content'] }}
{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{{ '\n' if not (loop.last and message['role'] == 'assistant') else '' }}
{%- endfor -%}
{{ '<|assistant|>\n' if add_generation_prompt else '' }}
"""
_VICUNA = r"""
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set turns = messages -%}
{%- set system = 'A chat between a curious user and an artificial intelligence assistant. '
 + "The assistant gives helpful, detailed, and polite answers to the user's questions." -%}{%- endif -%}
{{ bos_token + system + ' ' }}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{%- endif -%}
{%- endfor -%}
{{ 'ASSISTANT:' if add_generation_prompt else '' }}
"""
_LLAMA3 = r"""
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt else '' }}
"""
_CHATML = r"""
{%- if messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{%- endif -%}
{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}
"""
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "llama2": _LLAMA2.strip(),
        "llama3": _LLAMA3.strip(),
        "tulu": _TULU.strip(),
        "vicuna": _VICUNA.strip(),
        "mistral": _MISTRAL.strip(),
        "qwen2": _CHATML.strip().replace("SYSTEM", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        "smollm2": _CHATML.strip().replace("SYSTEM", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    }
)

# Parts in their order; `messages` is bound anew, so that what follows sees text. The last newline is swallowed by the block
# before it, as transformers sets Jinja up, and leaves the template that follows at the start of a line, as it was.
_PARTS_TO_TEXT = (
    "{%- set parts_to_text = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or not message['content'] -%}"
    "{%- set parts_to_text.text = message['content'] or '' -%}"
    "{%- else -%}"
    "{%- set parts_to_text.text = '' -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set parts_to_text.text = parts_to_text.text + '<image>\\n' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set parts_to_text.text = parts_to_text.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- set parts_to_text.messages = parts_to_text.messages + [dict(message, content=parts_to_text.text)] -%}"
    "{%- endfor -%}"
    "{%- set messages = parts_to_text.messages %}\n"
)


def with_pictures(template: str) -> str:
    """The template, made to take content that is a list of parts: a picture is `<image>` and a newline, where it stands."""
    return template if template.startswith(_PARTS_TO_TEXT) else _PARTS_TO_TEXT + template


def of_text(template: str) -> str | None:
    """The template that `with_pictures` was given, for messages that `parts_to_text` has been over; None where it was not."""
    return template.removeprefix(_PARTS_TO_TEXT) if template.startswith(_PARTS_TO_TEXT) else None


def parts_to_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `with_pictures` puts in front of a template does, without Jinja, which takes longer for it than for the template."""

    def text(content: Any) -> str:
        if isinstance(content, str) or not content:
            return content or ""
        return "".join(
            f"{IMAGE}\n" if part["type"] == "image" else part["text"] for part in content if part["type"] in ("image", "text")
        )

    return [{**message, "content": text(message["content"])} for message in messages]


def check_name(chosen: str | None, where: str) -> None:
    """Raises `ConfigError` for a template that is neither a family's name nor Jinja."""
    if chosen is not None and chosen not in FAMILIES and "{" not in chosen:
        raise ConfigError(f"{where}={chosen}: neither a family nor Jinja; {closest(chosen, list(FAMILIES))}")


def chosen_template(chosen: str | None, tokenizer: Any, where: str, whose: str) -> str:
    """The template text: that of a family, Jinja as given, or (None) the tokenizer's own.

    Raises `CheckError` where the tokenizer has none, or several.
    """
    if chosen is not None:
        return FAMILIES.get(chosen, chosen)
    own = tokenizer.chat_template
    if isinstance(own, Mapping):
        own = own.get("default")
    if not own:
        raise CheckError(
            f"{whose}: its tokenizer has no chat template; set {where} to the one that the model was trained with: "
            f"{', '.join(FAMILIES)}, or Jinja text"
        )
    return str(own)


def check_template(processor: Any, where: str, pictures: bool = True) -> None:
    """Renders a question with a picture, and the same with its answer.

    Raises `CheckError` where the template fails, leaves out what was said, shows no picture or several, or renders the prompt
    otherwise when an answer follows: then nothing could be supervised as evaluation will ask it.
    """
    question, answer = "Which colour is the cube?", "It is green."
    asked: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    if pictures:
        asked[0]["content"].insert(0, {"type": "image"})
    told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    prompt, whole = _render(processor, asked, True, where), _render(processor, told, False, where)
    tokenizer = getattr(processor, "tokenizer", processor)
    for text, wanted, what in ((prompt, question, "the question"), (whole, answer, "the answer")):
        if wanted not in text:
            raise CheckError(f"{where}: the chat template leaves out {what}: it renders {text[-120:]!r}; set another one")
    image = getattr(processor, "image_token", IMAGE)
    if pictures and prompt.count(image) != 1:
        raise CheckError(
            f"{where}: the chat template writes {prompt.count(image)} times '{image}' for one picture: it renders {prompt!r}"
        )
    ids, all_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole))
    if all_ids[: len(ids)] != ids or len(all_ids) == len(ids):
        raise CheckError(
            f"{where}: with an answer the chat template renders the prompt otherwise ({whole[-80:]!r}) than when it is asked "
            f"({prompt[-80:]!r}), so no token of the answer could be supervised as it is asked; its generation prompt must "
            "begin the answer's turn"
        )


def _render(processor: Any, messages: Sequence[Mapping[str, Any]], ask: bool, where: str) -> str:
    try:
        return str(processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # Jinja's own, and whatever a template makes of what it is given
        raise CheckError(
            f"{where}: the chat template can't render a question of role 'user' and an answer of role 'assistant' "
            f"({type(error).__name__}: {error}); set one that has these roles"
        ) from error
