"""The options of `generate`, `chat` and `serve`: which model is loaded, and how its tokens are chosen.

Options that are not given keep the model's own settings (`generation_config.json`). Nothing here imports torch, so that
`--help` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument, named_folders
from quatrain.compression.settings import Method
from quatrain.models.transformer.config import CacheFormat

if TYPE_CHECKING:
    from quatrain.generation.engine import Engine, SamplingParams


DRAWN = {"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"}
"""Parameters of sampling, which a beam search does not have."""


@Parameter(name="*")
@dataclass(frozen=True)
class LoadingOptions:
    """How models are loaded and how they guess ahead; those of `serve` too."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The number format of the weights. 16 bits halve the memory and about double the speed."""
    quantize: Method | None = None
    """Round the weights to 8 or 4 bits while they are loaded."""
    kv_cache: CacheFormat | None = None
    """Memory: store keys and values rounded to 8 or 4 bits. Texts take a quarter or a sixth of the bytes."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1 or mps."""
    draft: str | None = None
    """Speed: a smaller model of the same vocabulary guesses tokens, which are verified; the answer is the same."""
    prompt_lookup: int | None = None
    """Speed: guess this many tokens from repetitions in the text and verify them; the answer is the same."""

    def checked(self) -> dict[str, Any]:
        """`dtype`, `device` and `quantize` as `load_model` takes them. Raises InputError, all problems at once."""
        import torch

        from quatrain.core.errors import InputError
        from quatrain.core.wording import format_value

        problems = []
        if self.draft is not None and self.prompt_lookup is not None:
            problems.append("--draft and --prompt-lookup: must be at most one of them")
        if self.prompt_lookup is not None and self.prompt_lookup < 1:
            problems.append(f"--prompt-lookup {self.prompt_lookup}: must be at least 1")
        device = torch.device("cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            problems.append(
                f"--device {format_value(self.device)}: not available here; use cpu, or see `quatrain doctor`"
            )
        if len(problems) == 1:
            raise InputError(problems[0])
        if problems:
            raise InputError("The model cannot be loaded with these options:", problems)
        return {"dtype": getattr(torch, self.dtype), "device": device, "quantize": self.quantize}


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions(LoadingOptions):
    """How the one model of a command is loaded."""

    adapter: str | None = None
    """The adapter to use, for a model with several."""
    adapters: tuple[str, ...] = ()
    """Load another adapter over the model, as NAME=FOLDER; may be given several times."""

    def load(self, model: str) -> Engine:
        """The engine of a model folder, run or hub id. Raises InputError for an adapter without a name or folder."""
        from quatrain.generation.engine import Engine
        from quatrain.generation.speculative import PromptLookup

        folders = named_folders("--adapters", self.adapters)
        options = self.checked()
        return Engine.load(
            model,
            **options,
            adapters=folders or None,
            adapter=self.adapter,
            speculation=self.draft if self.prompt_lookup is None else PromptLookup(self.prompt_lookup),
            native="compiled",
            kv_cache=self.kv_cache,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; None keeps the model's own setting."""

    max_new_tokens: int | None = None
    """The most new tokens."""
    min_new_tokens: int | None = None
    """No end before this many new tokens."""
    temperature: float | None = None
    """0 always takes the most likely token; 1 samples from the model's distribution."""
    top_k: int | None = None
    """Sample only from the k most likely tokens."""
    top_p: float | None = None
    """Sample only from the most likely tokens whose probabilities sum to this value."""
    min_p: float | None = None
    """Sample only from tokens with at least this fraction of the highest probability."""
    typical_p: float | None = None
    """Sample only from the most typical tokens whose probabilities sum to this value."""
    repetition_penalty: float | None = None
    """Above 1, tokens that already occurred become less likely."""
    frequency_penalty: float | None = None
    """Lowers the logit of a token by this much for each time it was generated."""
    presence_penalty: float | None = None
    """Lowers the logit of every token that was generated by this much."""
    no_repeat_ngram_size: int | None = None
    """No sequence of this many tokens occurs twice."""
    seed: int | None = None
    """Makes sampling repeatable."""
    stop: tuple[TextArgument, ...] = ()
    """Stop at this text; may be given several times."""
    num_beams: int | None = None
    """The number of beams of a beam search; 1 turns it off."""
    length_penalty: float | None = None
    """For beam search: values above 0 favour long texts, below 0 short ones."""
    num_beam_groups: int | None = None
    """For beam search: groups of beams that are kept different from each other."""
    diversity_penalty: float | None = None
    """With --num-beam-groups: how much a group avoids the tokens of the groups before it."""
    penalty_alpha: float | None = None
    """Contrastive search among the --top-k likeliest tokens: how much resembling the text so far counts against one."""
    guidance_scale: float | None = None
    """Above 1: moves away from what the model would say to the --negative-prompt."""
    negative_prompt: TextArgument | None = None
    """What --guidance-scale moves away from; by default the prompt's last token."""
    bad_words: tuple[TextArgument, ...] = ()
    """A text that is never generated; may be given several times."""
    force_words: tuple[TextArgument, ...] = ()
    """For beam search: a text that occurs in the answer; may be given several times."""
    json_schema: Path | None = None
    """A file with a JSON schema; the answer is JSON that fits it."""
    regex: TextArgument | None = None
    """The answer matches this regular expression."""
    grammar: Path | None = None
    """A file with a grammar in Lark's syntax; the answer is a text of it."""
    choice: tuple[TextArgument, ...] = ()
    """The answer is this text or one of the others given; may be given several times."""

    def given(self) -> dict[str, Any]:
        """The options that were given, as fields of SamplingParams; files are read."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: value for name, value in values.items() if value not in (None, ())}
        return values | {name: _content(name, values[name]) for name in ("json_schema", "grammar") if name in values}

    def params(self, engine: Engine, *, max_new_tokens: int, **more: Any) -> SamplingParams:
        """The model's own settings, overridden by the options that were given.

        `max_new_tokens` applies if neither the options nor the model's settings name one. Raises InputError, all
        problems at once.
        """
        own = engine.recommended
        given = self.given() | more
        if "max_new_tokens" not in given and own.max_new_tokens == type(own)().max_new_tokens:
            given["max_new_tokens"] = max_new_tokens
        defaults = type(own)()
        drawn = {name: getattr(defaults, name) for name in DRAWN}
        if given.get("num_beams", 1) > 1:
            given = drawn | given  # a beam search does not sample, whatever the model's settings say
        elif given.keys() & DRAWN:
            given = {"num_beams": 1, "num_return_sequences": 1} | given
        return replace(own, **given)


def _content(name: str, path: Path) -> Any:
    """The content of a file that an option names."""
    from quatrain.core.reading import read_json, read_text

    return read_json(path, dict | bool) if name == "json_schema" else read_text(path)


LOADING_DEFAULTS, MODEL_DEFAULTS, SAMPLING_DEFAULTS = LoadingOptions(), ModelOptions(), SamplingOptions()
"""The options of a command that gives none."""
