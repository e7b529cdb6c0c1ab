"""How one completion is generated: `SamplingParams`, checked when they are created, all problems at once.

The docstring under each field says what it does; `filters`, `constraints` and `beam` name the papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from quatrain.core.errors import InputError
from quatrain.core.reading import shown

MIN_REPETITION_PENALTY = 1e-6
"""A repetition penalty below it, or above its inverse, would drive logits out of float32."""

_SHARES = {
    **{"top_p": False, "min_p": True, "typical_p": False},
    **{"epsilon_cutoff": True, "eta_cutoff": True, "top_h": False},
}
"""Filters that keep a share between 0 and 1, and whether 0 is allowed."""


@dataclass(frozen=True)
class SamplingParams:
    """How a completion is generated. Raises InputError, all problems at once, for values out of range."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 always takes the likeliest token (greedy decoding); 1 samples from the model's own distribution."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p."""
    min_p: float | None = None
    """Keep the tokens that are at least min_p times as likely as the likeliest."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion and are not part of its text. Empty: the model's own stop strings."""
    seed: int | None = None
    """The same seed and prompt give the same completion, whatever else is in the batch. None: a new seed each call."""
    ignore_eos: bool = False
    """Continue after an end token, up to max_new_tokens (to measure speed)."""
    num_beams: int = 1
    """Number of beams of a beam search; 1: no beam search."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / length ** length_penalty: above 0 favours long ones, below 0 short ones."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search stops: True once num_beams hypotheses have ended, False once no beam of the current length can
    beat them, "never" once no beam of any length can."""
    num_return_sequences: int = 1
    """How many hypotheses a beam search returns: the best one, and the next best as its `alternatives`."""
    min_new_tokens: int | None = None
    """No end token before this many new tokens. None (here and in the next two): the model's own setting."""
    no_repeat_ngram_size: int | None = None
    """No sequence of this many tokens occurs twice, prompt included (encoder-decoders: excluded); 0: no rule."""
    repetition_penalty: float | None = None
    """Divides (negative: multiplies) the logits of tokens that already occurred; 1: no penalty."""
    typical_p: float | None = None
    """Keep the tokens whose information is nearest to the distribution's entropy, until they have this probability."""
    epsilon_cutoff: float | None = None
    """Keep the tokens with at least this probability; 0 keeps every token."""
    eta_cutoff: float | None = None
    """Keep the tokens with at least min(eta, √eta · e^-entropy) probability; 0 keeps every token."""
    top_h: float | None = None
    """Keep the likeliest of the first 100 tokens until they have this share of the entropy."""

    def __post_init__(self) -> None:
        given: Any = self.stop
        stop = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (given,)
        object.__setattr__(self, "stop", stop)
        problems = [*self._beam_problems(), *self._constraint_problems(), *self._filter_problems()]
        if not _whole(self.max_new_tokens, 1):
            problems.append(f"max_new_tokens: {shown(self.max_new_tokens)}; must be at least 1, a whole number")
        if not _number(self.temperature) or not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature: {shown(self.temperature)}; must be 0 (greedy) or a positive number")
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool)):
            problems.append(f"seed: {shown(self.seed)}; must be a whole number")
        if not isinstance(self.ignore_eos, bool):
            problems.append(f"ignore_eos: {shown(self.ignore_eos)}; must be true or false")
        if any(text == "" for text in stop):
            problems.append("stop: an empty string would end every completion at once; remove it")
        problems += [f"stop: {shown(text)}; must be a text" for text in stop if not isinstance(text, str)]
        if problems:
            raise InputError("These sampling parameters cannot be used:", problems)

    def _filter_problems(self) -> Iterator[str]:
        if self.top_k is not None and not _whole(self.top_k, 1):
            yield f"top_k: {shown(self.top_k)}; must be at least 1, a whole number; leave it out to keep every token"
        for name, includes_0 in _SHARES.items():
            value = getattr(self, name)
            if value is None or (_number(value) and (0 < value <= 1 or (includes_0 and value == 0))):
                continue
            bounds = "between 0 and 1" if includes_0 else "above 0 and at most 1"
            yield f"{name}: {shown(value)}; must be {bounds}; leave it out to keep every token"

    def _beam_problems(self) -> Iterator[str]:
        if not _whole(self.num_beams, 1):
            yield f"num_beams: {shown(self.num_beams)}; must be a whole number of at least 1"
        elif self.num_beams > 1:
            asked = {"temperature": self.temperature or None, "top_k": self.top_k}
            asked |= {name: getattr(self, name) for name in _SHARES}
            for name, value in asked.items():
                if value is not None:
                    yield (
                        f"{name}: {value}; beam search (num_beams: {self.num_beams}) takes the likeliest and does not "
                        f"draw; leave {name} out, or num_beams"
                    )
        if not _number(self.length_penalty) or not -10 <= self.length_penalty <= 10:
            yield f"length_penalty: {self.length_penalty!r}; must be a number between -10 and 10"
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            yield f'early_stopping: {self.early_stopping!r}; must be true, false or "never"'
        if not _whole(self.num_return_sequences, 1):
            yield f"num_return_sequences: {self.num_return_sequences!r}; must be a whole number of at least 1"
        elif _whole(self.num_beams, 1) and self.num_return_sequences > self.num_beams:
            yield (
                f"num_return_sequences: {self.num_return_sequences}; must be at most num_beams ({self.num_beams}); for "
                "several samples give the prompt several times"
            )

    def _constraint_problems(self) -> Iterator[str]:
        if self.min_new_tokens is not None and not _whole(self.min_new_tokens, 0):
            yield f"min_new_tokens: {self.min_new_tokens!r}; must be a whole number of at least 0"
        elif (
            self.min_new_tokens is not None
            and _whole(self.max_new_tokens, 1)
            and self.min_new_tokens > self.max_new_tokens
        ):
            yield f"min_new_tokens: {self.min_new_tokens}; must be at most max_new_tokens ({self.max_new_tokens})"
        if self.no_repeat_ngram_size is not None and not _whole(self.no_repeat_ngram_size, 0):
            yield f"no_repeat_ngram_size: {self.no_repeat_ngram_size!r}; must be a whole number of at least 0"
        penalty = self.repetition_penalty
        least, most = MIN_REPETITION_PENALTY, 1 / MIN_REPETITION_PENALTY
        if penalty is not None and not (_number(penalty) and least <= penalty <= most):
            yield (
                f"repetition_penalty: {shown(penalty)}; must be a positive number from {MIN_REPETITION_PENALTY:g} to "
                f"{1 / MIN_REPETITION_PENALTY:g}; 1 changes nothing"
            )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
