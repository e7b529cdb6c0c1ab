"""Chat templates: Quatrain's own, those of a tokenizer by name, and which one a conversation is rendered with.

Quatrain's own templates are the files `templates/NAME.jinja`, Jinja in the Hugging Face format. `{% generation %} …
{% endgeneration %}` encloses what the assistant generates, the end-of-turn token included, so that a model learns to
stop. The line break after the end-of-turn token is outside: no model generates it. Leading white space of the
assistant's content is dropped, so that a rendered prompt is a prefix of the rendered conversation, token by token.

Sources: ChatML is OpenAI's chat markup with Qwen 2.5's tool format and Qwen 3's reasoning format; Llama 2 (Touvron et
al. 2023, arXiv 2307.09288); Llama 3 and 3.1 with function calls (Dubey et al. 2024, arXiv 2407.21783); Gemma (Gemma
Team 2024, arXiv 2403.08295; the system message is put before the first turn, as in Gemma 3); Phi-3 (Abdin et al. 2024,
arXiv 2404.14219); Alpaca (Taori et al. 2023); LLaVA 1.5 (Liu et al. 2023, arXiv 2310.03744), whose pictures are tokens
`<image>` that a tokenizer must know; `plain` needs no special token. A template that comes with a checkpoint takes
precedence.

A tokenizer's own templates are read as transformers reads them: `tokenizer_config.json` has one template or a list of
named ones; the files `chat_template.jinja` (the default) and `additional_chat_templates/NAME.jinja` replace them all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import read_json, read_text, user_path
from quatrain.core.settings import did_you_mean
from quatrain.core.wording import format_value

#: Name -> the tokens that a tokenizer must know for that template, the end-of-turn token last.
TEMPLATE_TOKENS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-2": (),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "phi-3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "alpaca": (),
    "llava": (),
    "plain": (),
}

_FOLDER = resources.files("quatrain.tokenizers") / "templates"

#: Name -> Jinja source.
TEMPLATES: dict[str, str] = {name: (_FOLDER / f"{name}.jinja").read_bytes().decode() for name in TEMPLATE_TOKENS}

#: Tokens that end a turn in the public chat formats; generation stops at those that the tokenizer knows.
END_OF_TURN_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")

MAX_SOURCE = 100_000
"""Limit on the characters of a template. The largest published ones have 30,000."""

DEFAULT = "default"
TOOL_USE = "tool_use"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
PROCESSOR_FILE = "chat_template.json"
"""The template of a model that reads more than text, in older folders (LLaVA 1.5)."""


def named_templates(value: Any) -> dict[str, str]:
    """Name -> source, from the `chat_template` of tokenizer_config.json: a text, or a list or table of named ones.

    Raises InputError for anything else.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = [(each.get("name"), each.get("template")) if isinstance(each, dict) else (None, each)
                 for each in value]  # fmt: skip
    else:
        raise InputError(f"chat_template is {format_value(value)}; must be text, or a list of named templates")
    problems = [
        f'number {number}: must be {{"name": text, "template": text}}, not {format_value(source)} with the name '
        f"{format_value(name)}"
        for number, (name, source) in enumerate(pairs)
        if not isinstance(name, str) or not isinstance(source, str)
    ]
    if problems:
        raise InputError("chat_template has templates that cannot be used", problems)
    return dict(pairs)


def template_files(folder: Path) -> dict[str, str]:
    """The template files of a model folder. Raises InputError for an unreadable file."""
    templates = {}
    if os.path.lexists(folder / TEMPLATE_FILE):
        templates[DEFAULT] = read_text(folder / TEMPLATE_FILE, 4 * MAX_SOURCE)
    elif os.path.lexists(folder / PROCESSOR_FILE):
        templates |= named_templates(read_json(folder / PROCESSOR_FILE, dict).get("chat_template"))
    for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        templates[path.name.removesuffix(".jinja")] = read_text(path, 4 * MAX_SOURCE)
    return templates


def templates_at(template: str) -> dict[str, str]:
    """The chat templates given by a user: one of `TEMPLATES`, a Jinja file, Jinja source, or a model folder.

    Raises InputError if there is none.
    """
    if template in TEMPLATES:
        return {DEFAULT: TEMPLATES[template]}
    path = user_path(template, "the chat template")
    if path.is_dir():
        config = path / "tokenizer_config.json"
        configured = read_json(config, dict).get("chat_template") if config.exists() else None
        templates = template_files(path) or named_templates(configured)
        if not templates:
            raise InputError(f"{path} has no chat template: neither tokenizer_config.json nor {TEMPLATE_FILE} has one")
        return templates
    if path.exists():
        return {DEFAULT: source_of(read_text(path, 4 * MAX_SOURCE))}
    return {DEFAULT: source_of(template)}


def template_for(templates: Mapping[str, str], name: str | None, *, tools: bool) -> str:
    """One of a tokenizer's templates: `name`, else "tool_use" with tools and such a template, else "default"."""
    if not templates:
        raise InputError(
            "the tokenizer has no chat template, which conversations need. Set one: "
            f"tokenizer.chat_template = TEMPLATES[name], with a name of {', '.join(sorted(TEMPLATES))}"
        )
    if name is None:
        name = TOOL_USE if tools and TOOL_USE in templates else DEFAULT
        if name not in templates:
            raise InputError(
                f'the tokenizer has no chat template named "{DEFAULT}"; choose one by its name: '
                f"{', '.join(map(format_value, sorted(templates)))}"
            )
    if name not in templates:
        raise InputError(
            f"the tokenizer has no chat template {format_value(name)}{did_you_mean(name, list(templates))}; it has "
            f"{', '.join(map(format_value, sorted(templates)))}"
        )
    return templates[name]


def source_of(template: str) -> str:
    """The Jinja source of a template: one of `TEMPLATES` by its name, or the source itself.

    Raises InputError for an unknown name.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return template
    raise InputError(
        f"chat_template {format_value(template)} is neither Jinja source ({{{{ … }}}}, {{% … %}}) nor a known name"
        f"{did_you_mean(str(template), list(TEMPLATES))}; the names are {', '.join(sorted(TEMPLATES))}"
    )
