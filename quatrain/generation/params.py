"""How one completion is generated: `SamplingParams`, checked when they are created, all problems at once.

The docstring under each field says what it does; `filters`, `constraints`, `beam` and their neighbours name the papers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value

if TYPE_CHECKING:
    from torch import Tensor

MIN_REPETITION_PENALTY = 1e-6
"""A repetition penalty below it, or above its inverse, would drive logits out of float32."""
MAX_BIAS = 100.0
"""The largest logit bias: it decides by itself already."""
MAX_GRAMMAR = 200_000
"""The most characters of a schema, an expression, a grammar or a choice."""
MAX_LOGPROBS = 1000
"""The most alternatives that are returned with each token."""

LogitsProcessor = Callable[[list[int], "Tensor"], "Tensor"]
"""The ids that the decoder has read and generated so far, and the logits (V,) of the next token, to logits (V,)."""

_HALF = "holds half of a character (a lone surrogate)"
_SHARES = {
    **{"top_p": False, "min_p": True, "typical_p": False},
    **{"epsilon_cutoff": True, "eta_cutoff": True, "top_h": False},
}
"""Filters that keep a share between 0 and 1, and whether 0 is allowed."""


@dataclass(frozen=True)
class SamplingParams:
    """How a completion is generated. Raises InputError, all problems at once, for values out of range.

    Lists and mappings are kept as tuples, so that parameters are values: equal ones are processed together.
    """

    max_new_tokens: int = 128
    """The most tokens of a completion, its end token included."""
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
    """How many completions of a prompt: independent samples, or the best hypotheses of a beam search. The first is the
    completion, the others are its `alternatives`."""
    min_new_tokens: int | None = None
    """No end token before this many new tokens. None: the model's own setting."""
    no_repeat_ngram_size: int | None = None
    """No sequence of this many tokens occurs twice, prompt included (encoder-decoders: excluded); 0: no rule, None:
    the model's own setting."""
    repetition_penalty: float | None = None
    """Divides (negative: multiplies) the logits of tokens that already occurred; 1: no penalty, None: the model's own
    setting."""
    typical_p: float | None = None
    """Keep the tokens whose information is nearest to the distribution's entropy, until they have this probability."""
    epsilon_cutoff: float | None = None
    """Keep the tokens with at least this probability; 0 keeps every token."""
    eta_cutoff: float | None = None
    """Keep the tokens with at least min(eta, √eta · e^-entropy) probability; 0 keeps every token."""
    top_h: float | None = None
    """Keep the likeliest of the first 100 tokens until they have this share of the entropy."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for every time that the completion already contains the token; -2 to 2."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once the completion contains the token; -2 to 2."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of tokens, by id; -100 practically forbids a token, 100 practically forces it."""
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    """Texts that the completion never contains, however they are tokenized; or sequences of token ids that it never
    contains."""
    stop_token_ids: tuple[int, ...] = ()
    """More tokens that end a completion, besides the model's end tokens; as these, they are not part of its text."""
    logprobs: int | None = None
    """Return the log-probabilities of this many of the likeliest tokens at each token of the completion."""
    logprobs_mode: Literal["raw", "temperature", "processed"] = "raw"
    """Log-probabilities of the model itself; at the sampling temperature, over the whole vocabulary; or of the
    distribution from which the token was taken, after all constraints and filters."""
    logits_processors: tuple[LogitsProcessor, ...] = ()
    """The caller's own functions (ids, logits) -> logits, after all other constraints and before the filters."""

    json_schema: str | None = None
    """The completion is JSON that this JSON schema accepts (given as a mapping, or as JSON text)."""
    regex: str | None = None
    """The whole completion matches this regular expression (without look-around and back-references)."""
    grammar: str | None = None
    """The completion is a text of this grammar, in the Lark syntax of llguidance."""
    choice: tuple[str, ...] = ()
    """The completion is one of these texts."""
    num_beam_groups: int = 1
    """Divides the beams into this many groups, each of which avoids the tokens of those before it."""
    diversity_penalty: float = 0.0
    """With num_beam_groups: subtracted from a token's log-probability for every beam of the groups before that chose it
    in the same step."""
    force_words: tuple[str | tuple[int, ...] | tuple[str | tuple[int, ...], ...], ...] = ()
    """Words that a completion of a beam search contains: texts or lists of token ids; a list of these is a word with
    several forms, one of which is enough."""
    penalty_alpha: float = 0.0
    """Contrastive search, with top_k: takes the one of the k likeliest tokens with the best (1 - alpha) · probability -
    alpha · similarity to a token so far; 0: no contrastive search."""
    guidance_scale: float = 1.0
    """Classifier-free guidance: how far the logits are moved away from those without the prompt (or from those of the
    negative_prompt); 1: no guidance."""
    negative_prompt: str | tuple[int, ...] | None = None
    """With guidance_scale: what the logits are moved away from. None: the prompt's last token alone."""

    def __post_init__(self) -> None:
        given: Any = self.stop
        self._set("stop", (given,) if isinstance(given, str) else _listed(given))
        bias: Any = self.logit_bias
        self._set("logit_bias", tuple(bias.items()) if isinstance(bias, Mapping) else _listed(bias))
        words: Any = self.bad_words
        words = (words,) if isinstance(words, str) else _listed(words)
        self._set("bad_words", tuple(tuple(word) if isinstance(word, list) else word for word in words))
        self._set("stop_token_ids", _listed(self.stop_token_ids))
        self._set("logits_processors", _listed(self.logits_processors))
        schema: Any = self.json_schema
        if isinstance(schema, Mapping | bool):
            try:
                self._set("json_schema", json.dumps(schema, allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                problem = f"json_schema: cannot be written as JSON ({type(error).__name__}: {error})"
                raise InputError("These sampling parameters cannot be used:", [problem]) from error
        self._set("choice", _listed(self.choice))
        self._set("force_words", _words(self.force_words))
        if isinstance(self.negative_prompt, list):
            self._set("negative_prompt", tuple(self.negative_prompt))
        problems = [
            *self._grammar_problems(),
            *self._search_problems(),
            *self._beam_problems(),
            *self._constraint_problems(),
            *self._token_problems(),
            *self._filter_problems(),
            *self._length_problems(),
        ]
        if problems:
            raise InputError("These sampling parameters cannot be used:", problems)
        # Ids as keys of JSON objects are texts.
        self._set("logit_bias", tuple((int(token), float(value)) for token, value in self.logit_bias))
        self._set("temperature", float(self.temperature))  # No tensor takes an integer of more than 64 bits.

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _length_problems(self) -> Iterator[str]:
        if not _whole(self.max_new_tokens, 1):
            yield f"max_new_tokens: {format_value(self.max_new_tokens)}; must be at least 1, a whole number"
        if not _number(self.temperature) or not 0 <= self.temperature <= sys.float_info.max:
            yield f"temperature: {format_value(self.temperature)}; must be 0 (greedy) or a positive number"
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool)):
            yield f"seed: {format_value(self.seed)}; must be a whole number"
        if not isinstance(self.ignore_eos, bool):
            yield f"ignore_eos: {format_value(self.ignore_eos)}; must be true or false"
        if any(text == "" for text in self.stop):
            yield "stop: an empty string would end every completion at once; remove it"
        for text in self.stop:
            if not isinstance(text, str):
                yield f"stop: {format_value(text)}; must be a text"
            elif not _is_text(text):
                yield f"stop: {format_value(text)}; {_HALF}"

    def _filter_problems(self) -> Iterator[str]:
        if self.top_k is not None and not _whole(self.top_k, 1):
            value = format_value(self.top_k)
            yield f"top_k: {value}; must be at least 1, a whole number; leave it out to keep every token"
        for name, includes_0 in _SHARES.items():
            value = getattr(self, name)
            if value is None or (_number(value) and (0 < value <= 1 or (includes_0 and value == 0))):
                continue
            bounds = "between 0 and 1" if includes_0 else "above 0 and at most 1"
            yield f"{name}: {format_value(value)}; must be {bounds}; leave it out to keep every token"

    def _beam_problems(self) -> Iterator[str]:
        if not _whole(self.num_beams, 1):
            yield f"num_beams: {format_value(self.num_beams)}; must be a whole number of at least 1"
        elif self.num_beams > 1:
            asked = {"temperature": self.temperature or None, "top_k": self.top_k}
            asked |= {name: getattr(self, name) for name in _SHARES}
            for name, value in asked.items():
                if value is not None:
                    yield (
                        f"{name}: {value}; beam search (num_beams: {self.num_beams}) takes the likeliest and does not "
                        f"draw; leave {name} out, or num_beams"
                    )
            if self.logprobs is not None:
                yield (
                    f"logprobs: {format_value(self.logprobs)}; beam search (num_beams: {self.num_beams}) keeps those "
                    "of its own tokens only; leave logprobs out, or num_beams"
                )
            if self.logprobs_mode in ("temperature", "processed"):
                yield (
                    f"logprobs_mode: {self.logprobs_mode}; beam search (num_beams: {self.num_beams}) gives those of "
                    "the model itself; leave logprobs_mode out, or num_beams"
                )
        if not _number(self.length_penalty) or not -10 <= self.length_penalty <= 10:
            yield f"length_penalty: {self.length_penalty!r}; must be a number between -10 and 10"
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            yield f'early_stopping: {self.early_stopping!r}; must be true, false or "never"'
        if not _whole(self.num_return_sequences, 1):
            yield f"num_return_sequences: {self.num_return_sequences!r}; must be a whole number of at least 1"
        elif _whole(self.num_beams, 2) and self.num_return_sequences > self.num_beams:
            yield f"num_return_sequences: {self.num_return_sequences}; must be at most num_beams ({self.num_beams})"
        elif self.num_beams == 1 and self.num_return_sequences > 1 and self.temperature == 0:
            yield (
                f"num_return_sequences: {self.num_return_sequences}; greedy decoding gives the same completion each "
                "time; for several samples set temperature, for the best hypotheses num_beams"
            )

    def _search_problems(self) -> Iterator[str]:
        beams, groups, alpha = self.num_beams, self.num_beam_groups, self.penalty_alpha
        if not _whole(groups, 1):
            yield f"num_beam_groups: {format_value(groups)}; must be a whole number of at least 1"
        elif _whole(beams, 1) and beams % groups:
            yield f"num_beam_groups: {groups}; must divide num_beams ({beams})"
        if not _number(self.diversity_penalty) or not 0 <= self.diversity_penalty <= MAX_BIAS:
            yield f"diversity_penalty: {format_value(self.diversity_penalty)}; must be a number from 0 to {MAX_BIAS:g}"
        elif self.diversity_penalty and groups == 1:
            yield f"diversity_penalty: {self.diversity_penalty}; needs num_beam_groups, since groups avoid each other"
        elif not self.diversity_penalty and groups != 1:
            yield f"num_beam_groups: {format_value(groups)}; without diversity_penalty all groups are equal"
        for word in self.force_words:
            if not (_is_word(word) or (isinstance(word, tuple) and word and all(map(_is_word, word)))):
                yield f"force_words: {format_value(word)}; must be a text, a list of token ids, or a list of these"
        if self.force_words and (beams == 1 or groups != 1):
            yield "force_words: need a beam search (num_beams above 1) without num_beam_groups"
        if not _number(alpha) or not 0 <= alpha <= 1:
            yield f"penalty_alpha: {format_value(alpha)}; must be a number from 0 to 1"
        elif alpha:
            if not _whole(self.top_k, 2):
                yield f"penalty_alpha: {alpha}; contrastive search compares top_k tokens; set top_k to at least 2"
            if self.temperature or beams != 1:
                yield f"penalty_alpha: {alpha}; contrastive search does not draw and has no beams; leave them out"
        scale = self.guidance_scale
        if not _number(scale) or not 0 <= scale <= MAX_BIAS:
            yield f"guidance_scale: {format_value(scale)}; must be a number from 0 to {MAX_BIAS:g}; 1 changes nothing"
        elif scale != 1 and (beams != 1 or alpha):
            yield f"guidance_scale: {scale}; not possible together with num_beams or penalty_alpha"
        negative = self.negative_prompt
        if negative is not None:
            if not _is_word(negative):
                yield f"negative_prompt: {format_value(negative)}; must be a text or a list of token ids, not empty"
            if scale == 1:
                yield "negative_prompt: needs guidance_scale, which says how far to move away from it"

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
                f"repetition_penalty: {format_value(penalty)}; must be a positive number from {least:g} to {most:g}; "
                "1 changes nothing"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            if not _number(value) or not -2 <= value <= 2:
                yield f"{name}: {format_value(value)}; must be a number from -2 to 2; 0 changes nothing"

    def _token_problems(self) -> Iterator[str]:
        for pair in self.logit_bias:
            token, value = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
            if isinstance(token, str) and token.isascii() and token.isdigit():
                token = int(token)
            if not _whole(token, 0) or not _number(value) or not -MAX_BIAS <= value <= MAX_BIAS:
                yield f"logit_bias: {format_value(pair)}; must give a number from -100 to 100 for a token id"
        for word in self.bad_words:
            if not (isinstance(word, str) and word) and not (word and _ids(word)):
                yield f"bad_words: {format_value(word)}; must be a text or a list of token ids, neither of them empty"
            elif isinstance(word, str) and not _is_text(word):
                yield f"bad_words: {format_value(word)}; {_HALF}"
        for token in self.stop_token_ids:
            if not _whole(token, 0):
                yield f"stop_token_ids: {format_value(token)}; must be a token id"
        if self.logprobs is not None and not (_whole(self.logprobs, 0) and self.logprobs <= MAX_LOGPROBS):
            yield f"logprobs: {format_value(self.logprobs)}; must be a whole number from 0 to {MAX_LOGPROBS}"
        if self.logprobs_mode not in ("raw", "temperature", "processed"):
            yield f'logprobs_mode: {format_value(self.logprobs_mode)}; must be "raw", "temperature" or "processed"'
        for process in self.logits_processors:
            if not callable(process):
                yield f"logits_processors: {format_value(process)}; must be a function (ids, logits) -> logits"

    @property
    def rows(self) -> int:
        """Rows of the model that run at once for one sequence."""
        if self.penalty_alpha:
            return self.top_k or 1
        return self.num_beams if self.guidance_scale == 1 else 2

    @property
    def constrained(self) -> bool:
        """Whether the text must match a schema, an expression, a grammar or a choice."""
        return any(value not in (None, ()) for value in (self.json_schema, self.regex, self.grammar, self.choice))

    def _grammar_problems(self) -> Iterator[str]:
        names = ("json_schema", "regex", "grammar", "choice")
        given = [name for name in names if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            yield f"{', '.join(given)}: only one of them can constrain a completion"
        for name in given[:1]:
            for other in ("stop", "ignore_eos"):
                if getattr(self, other):
                    yield f"{other}: would cut the text that {name} asks for; leave one of them out"
        for name in given:
            value = getattr(self, name)
            for text in value if name == "choice" else [value]:
                if not isinstance(text, str) or not text:
                    allowed = "a mapping or JSON text" if name == "json_schema" else "a text that is not empty"
                    yield f"{name}: {format_value(text)}; must be {allowed}"
                elif not _is_text(text):
                    yield f"{name}: {format_value(text)}; {_HALF}"
            size = sum(len(text) for text in (value if name == "choice" else [value]) if isinstance(text, str))
            if size > MAX_GRAMMAR:
                yield f"{name}: {size:,} characters; must be at most {MAX_GRAMMAR:,}"
        if isinstance(self.json_schema, str) and self.json_schema and _is_text(self.json_schema):
            try:
                schema = json.loads(self.json_schema)
            except (ValueError, RecursionError) as error:
                yield f"json_schema: not JSON: {error}"
            else:
                if not isinstance(schema, dict | bool):
                    yield f"json_schema: {format_value(schema)}; must be a mapping, or true or false"

    @property
    def forced_words(self) -> list[tuple[str | tuple[int, ...], ...]]:
        """The forced words, each as its alternatives."""
        return [(word,) if isinstance(word, str) or _ids(word) else word for word in self.force_words]  # type: ignore[misc]

    def check_vocabulary(self, size: int) -> Iterator[str]:
        """Problems of token ids that a model with a vocabulary of `size` does not have."""
        given = {
            "logit_bias": [token for token, _ in self.logit_bias],
            "bad_words": [token for word in self.bad_words if not isinstance(word, str) for token in word],
            "stop_token_ids": self.stop_token_ids,
            "force_words": [token for word in self.forced_words for each in word if each for token in _tokens(each)],
            "negative_prompt": _tokens(self.negative_prompt),
        }
        for name, tokens in given.items():
            for token in sorted({token for token in tokens if token >= size}):
                yield f"{name}: token {token} is not in the model's vocabulary of {size}"


def _words(value: Any) -> tuple[Any, ...]:
    """Forced words as tuples all the way down."""
    if isinstance(value, str):
        return (value,)
    return tuple(_tuples(word, 2) for word in _listed(value))


def _tuples(value: Any, depth: int) -> Any:
    """Lists as tuples, as deep as forced words may be nested."""
    return tuple(_tuples(each, depth - 1) for each in value) if depth and isinstance(value, list | tuple) else value


def _is_word(value: object) -> bool:
    """Whether a value is a text or a list of token ids that is not empty."""
    if isinstance(value, str):
        return bool(value) and _is_text(value)
    return isinstance(value, tuple) and bool(value) and _ids(value)


def _tokens(value: object) -> list[int]:
    return list(value) if isinstance(value, tuple) and _ids(value) else []


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _listed(value: Any) -> tuple[Any, ...]:
    """A list's members; anything else is one member, for the checks to refuse."""
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)


def _ids(value: object) -> bool:
    return isinstance(value, list | tuple) and all(_whole(token, 0) for token in value)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
