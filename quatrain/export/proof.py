"""Proves an export: token ids, logits, greedy ids and stop tokens of the written files beside those of the model.

A `Runtime` is the written model in some program: our own reader, and llama.cpp or ONNX Runtime if they are installed.
What a runtime cannot do (an encoder generates nothing) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from quatrain.core.wording import format_value
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.transformer.config import LANGUAGE_HEADS
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.samples import FIXTURES
from quatrain.tokenizers.tokenizer import Tokenizer

PROBE = 48
"""Tokens of the text on which logits are compared."""
NEW_TOKENS = 16
"""Tokens that are generated greedily after the first half of that text."""
PROBE_TEXT = (
    "The old lighthouse keeper counted 27 ships before breakfast. “Why,” asked Zoë, “do they all sail north?” "
    "SELECT name, count(*) FROM ships GROUP BY name; He shrugged, and the sea went on being grey."
)


@dataclass(frozen=True)
class Check:
    """One line of the proof: the runtime, what was compared, the result in words, and whether it is good enough."""

    runtime: str
    name: str
    result: str
    ok: bool = True


class Runtime(Protocol):
    """A written model in a program. A method that the program does not have returns None."""

    name: str
    slack: float
    """By how much more than the format's error its outputs may differ, because it computes less precisely."""

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text without added special tokens."""

    def outputs(self, ids: Sequence[int]) -> Tensor | None:
        """What the model computes of one text: logits (T, V), or the outputs of its head."""

    def greedy(self, ids: Sequence[int], count: int) -> list[int] | None:
        """The `count` likeliest next ids, one after the other; stop tokens do not end them."""

    def stop_ids(self) -> frozenset[int] | None:
        """The ids after which the program stops."""


class OwnReader:
    """The written files in this package, as its runtime."""

    slack = 0.0

    def __init__(self, model: Model, tokenizer: Tokenizer | None, name: str = "quatrain"):
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text."""
        return None if self.tokenizer is None else self.tokenizer.encode(text)

    def outputs(self, ids: Sequence[int]) -> Tensor | None:
        """The outputs of the head."""
        return outputs_of(self.model, ids)

    def greedy(self, ids: Sequence[int], count: int) -> list[int] | None:
        """The likeliest ids, from the engine."""
        return greedy_of(self.model, ids, count)

    def stop_ids(self) -> frozenset[int] | None:
        """End tokens of the configuration and the tokenizer."""
        ends = self.model.config.eos_token_id
        ids = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        return frozenset(ids | (self.tokenizer.stop_ids if self.tokenizer is not None else set()))


def outputs_of(model: Model, ids: Sequence[int]) -> Tensor:
    """The outputs of a model for one text, (T, …): logits of a language model, else what its head computes."""
    inputs = torch.tensor([list(ids)])
    with torch.inference_mode():
        if model.config.architecture == "encoder-decoder":
            start = torch.tensor([[model.config.decoder_start_token_id or 0, *ids[: len(ids) // 2]]])
            found = model(inputs, decoder_input_ids=start)[0]
        else:
            found = model(inputs)[0]
    return torch.as_tensor(found)[0].float()


def greedy_of(model: Model, ids: Sequence[int], count: int) -> list[int] | None:
    """The likeliest next ids of a model that generates, else None."""
    if model.config.head not in ("causal", "seq2seq"):
        return None
    engine = Engine(model, None)
    params = SamplingParams(max_new_tokens=count, ignore_eos=True)
    completion = engine.generate([list(ids)], params)[0]
    return list(completion.ids)


def probe_ids(source: Any) -> list[int]:
    """The ids of the text on which outputs are compared; without a tokenizer, ids drawn from the vocabulary."""
    config = source.model.config
    length = min(PROBE, max(2, config.context_length // 2))
    if source.tokenizer is not None:
        ids = source.tokenizer.encode(PROBE_TEXT)[:length]
        if len(ids) > 1 and max(ids) < config.vocab_size:
            return list(ids)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (length,), generator=draw).tolist()


def compare(source: Any, runtime: Runtime, written: Any) -> Iterator[Check]:
    """The checks of a runtime against the source's model; `written` has the tolerance and whether ids must be equal."""
    if source.tokenizer is not None:
        yield from _token_check(source.tokenizer, runtime)
    ids = probe_ids(source)
    ours = outputs_of(source.model, ids)
    theirs = runtime.outputs(ids)
    if theirs is not None:
        yield _output_check(ours, theirs, runtime, written, source.model.config.head in LANGUAGE_HEADS)
    prompt = ids[: max(1, len(ids) // 2)]
    count = min(NEW_TOKENS, source.model.config.context_length - len(prompt))
    wanted = greedy_of(source.model, prompt, count)
    found = None if wanted is None else runtime.greedy(prompt, count)
    if wanted is not None and found is not None:
        same = next(
            (n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found))
        )
        whole = same == len(wanted)
        yield Check(runtime.name, "greedy ids", f"{same} of {len(wanted)} equal", whole or not written.exact)
    stops = runtime.stop_ids()
    if stops is not None and source.model.config.head in ("causal", "seq2seq"):
        missing = sorted(source.stop_ids - stops)
        result = f"{len(source.stop_ids)} equal" if not missing else f"missing: {missing}"
        yield Check(runtime.name, "stop tokens", result, not missing)


def _token_check(tokenizer: Tokenizer, runtime: Runtime) -> Iterator[Check]:
    """Ids of the fixtures; a text that differs is shown, and more than a tenth of them is refused."""
    wrong = []
    for text in FIXTURES:
        found = runtime.encode(text)
        if found is None:
            return
        if list(found) != tokenizer.encode(text):
            wrong.append(text)
    result = f"{len(FIXTURES) - len(wrong)} of {len(FIXTURES)} texts equal"
    if wrong:
        result += f"; differs: {format_value(min(wrong, key=len))}"
    yield Check(runtime.name, "token ids", result, len(wrong) <= len(FIXTURES) // 10)


def _output_check(ours: Tensor, theirs: Tensor, runtime: Runtime, written: Any, is_language: bool) -> Check:
    if ours.shape != theirs.shape:
        return Check(runtime.name, "outputs", f"shape {tuple(theirs.shape)}, not {tuple(ours.shape)}", False)
    if not torch.isfinite(theirs).all():
        return Check(runtime.name, "outputs", "not finite", False)
    allowed = written.tolerance + runtime.slack
    share = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-30))
    result = f"differ by at most {share:.2%} of the largest (allowed {allowed:.2%})"
    if share < 1e-4:
        result = f"differ by at most {share:.1e} of the largest (allowed {allowed:.1e})"
    if is_language:
        logs = ours.log_softmax(-1)
        divergence = float((logs.exp() * (logs - theirs.log_softmax(-1))).sum(-1).mean())
        alike = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
        result += f"; KL {max(divergence, 0.0):.1e} nats, likeliest token equal {alike:.0%}"
    return Check(runtime.name, "logits" if is_language else "outputs", result, share <= allowed)
