"""What `prune` and `quantize` share: their texts, the folder they write, and the table of before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from quatrain.models.transformer.stack import Model

MEASURED = 32_768
"""Most tokens on which the perplexity is measured."""
LONGEST = 2048
"""Longest window of a text."""


@dataclass
class Texts:
    """The batches of the calibration, and the tokens of the perplexity (None without a text)."""

    batches: list[Any] = field(default_factory=list)
    tokens: np.ndarray | None = None
    context: int = LONGEST

    @classmethod
    def read(cls, calibrate: str | None, text: str | None, tokenizer: Any, config: Any, samples: int) -> Texts:
        """Reads `samples` windows for the calibration, and the tokens behind them or of `text`. Raises InputError."""
        from quatrain.core.errors import InputError
        from quatrain.evaluation.compression import calibration_batches, text_tokens

        context = min(LONGEST, config.context_length)
        calibrate = calibrate or text
        if calibrate is None:
            return cls(context=context)
        if tokenizer is None:
            raise InputError(f"{calibrate}: the model has no tokenizer, so it cannot read a text.")
        count = samples * context
        learned = text_tokens(calibrate, tokenizer, count)
        if text is not None and text != calibrate:
            held_out = text_tokens(text, tokenizer, MEASURED)
        else:
            held_out = text_tokens(calibrate, tokenizer, count + MEASURED)
            cut = min(count, len(held_out) * 3 // 4)
            learned, held_out = held_out[:cut], held_out[cut:]
        return cls(calibration_batches(learned, context=context), held_out, context)


def check_out(out: Path | None) -> list[str]:
    """The problem of a folder that is to be written."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        return [f"--out {out}: is not empty; name a new folder"]
    return []


def check_texts(needs: Sequence[str], calibrate: str | None, text: str | None, samples: int) -> list[str]:
    """The problems of the texts that a request reads; `needs` names what reads them."""
    problems = [] if samples >= 1 else [f"--samples {samples}: must be at least 1"]
    if needs and calibrate is None and text is None:
        problems.append(f"--calibrate: missing; {needs[0]} reads a text, such as --calibrate my.txt")
    return problems


def write(model: Model, tokenizer: Any, out: Path) -> None:
    """Writes a model folder with its tokenizer."""
    from quatrain.models.io import model_folder

    model_folder.save(model, out)
    if tokenizer is not None:
        tokenizer.save(out)


def present(models: Sequence[tuple[str, Model]], texts: Texts, *, out: Path | None, json_lines: bool) -> None:
    """Measures the models, the first of which is the one before, and shows the table; the bad news comes first."""
    from quatrain.cli.output import show, show_json, show_marked, show_table
    from quatrain.evaluation.compression import COLUMNS, side_by_side, slower, verdict

    found = side_by_side(models, texts.tokens, context=texts.context)
    lines = list(verdict(found[0], found[1])) if len(found) == 2 else list(slower(found))
    if json_lines:
        written = None if out is None else str(out)
        show_json({"out": written, "verdict": lines, "models": [each.as_dict() for each in found]})
        return
    for line in lines:
        show_marked(line, red=line.startswith("SLOWER"))
    show_table(COLUMNS, [each.row() for each in found])
    if texts.tokens is None:
        show("perplexity: not measured; name a text with --text")
    if out is not None:
        show(f"written {out}")
