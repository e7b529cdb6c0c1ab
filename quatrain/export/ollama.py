"""Exports to Ollama: a GGUF file and a Modelfile with the chat template, the stop tokens and the context length.

Create the model with `ollama create NAME -f Modelfile` in the written folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from quatrain.core.atomic import write_text
from quatrain.core.errors import InputError
from quatrain.export import gguf
from quatrain.export.exporter import Exporter, ExportSettings, Source, Written
from quatrain.export.go_template import TRIALS, TurnTemplate, turn_template
from quatrain.export.proof import Check

MODELFILE = "Modelfile"


def problems(source: Source, settings: ExportSettings) -> Iterator[str]:
    """Why Ollama could not run the model."""
    yield from gguf.problems(source, settings)
    if source.model.config.head not in ("causal", "embedding"):
        yield f"head {source.model.config.head}: Ollama runs models that generate text, and embeddings"
    if source.tokenizer is None:
        yield "the model has no tokenizer"


def write(source: Source, out: Path, settings: ExportSettings) -> Written:
    """Writes NAME-FORMAT.gguf and the Modelfile."""
    written = gguf.write(source, out, settings)
    tokenizer = source.tokenizer
    if tokenizer is None:
        raise InputError("Ollama needs a tokenizer.")
    template = turn_template(tokenizer)
    write_text(out / MODELFILE, modelfile(source, written.files[0].name, template))
    notes = list(written.notes)
    checks: list[Check] = []
    if template is not None:
        checks.append(Check("Modelfile", "chat template", f"{len(TRIALS)} of {len(TRIALS)} conversations equal"))
    elif tokenizer.chat_template is None:
        notes.append("the model has no chat template: Ollama continues texts, as `quatrain generate` does")
    else:
        notes.append(
            "the chat template does more than put texts around messages, so the Modelfile has none: Ollama takes that "
            "of the GGUF file if it knows it"
        )
    return dataclasses.replace(
        written, files=[*written.files, out / MODELFILE], notes=notes, checks=[*written.checks, *checks]
    )


def modelfile(source: Source, file: str, template: TurnTemplate | None) -> str:
    """The text of the Modelfile."""
    lines = [f"FROM ./{file}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template.source()}"""')
    elif source.tokenizer is not None and source.tokenizer.chat_template is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    tokens = [source.tokenizer.id_to_token(number) for number in sorted(source.stop_ids)] if source.tokenizer else []
    lines += [f'PARAMETER stop "{token}"' for token in tokens if token]
    lines.append(f"PARAMETER num_ctx {source.model.config.context_length}")
    settings = source.model.generation_config or {}
    names = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repeat_penalty"}
    given = {theirs: settings[ours] for ours, theirs in names.items() if settings.get(ours) is not None}
    if not settings.get("do_sample"):
        given["temperature"] = 0
    lines += [f"PARAMETER {name} {value}" for name, value in given.items()]
    return "\n".join(lines) + "\n"


EXPORTER = Exporter(
    "ollama",
    "a GGUF file and a Modelfile for Ollama",
    ("Q8_0", *(x for x in gguf.TYPES if x != "Q8_0")),
    write,
    problems,
)
