"""Which input tokens an output depends on, by gradients: input × gradient, and integrated gradients.

Simonyan et al. 2013 (arXiv 1312.6034), Shrikumar et al. 2016 (arXiv 1605.01713); Sundararajan et al. 2017 (arXiv
1703.01365). Integrated gradients sum to the difference of the output between the text and a baseline (completeness);
`Attribution.gap` is what the numerical integration misses of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.predictions import decoder_start
from quatrain.evaluation.inspection.tokens import Token, check_ids, tokens
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

METHODS = ("integrated_gradients", "input_x_gradient")
ROWS = 16
"""Points of the path that are computed together."""
MOST_STEPS = 512


@dataclass(frozen=True)
class Attribution:
    """The share of each token in an output, a log-probability in nats.

    scores (T): positive where a token makes the output likelier. `output` is that of the text, `baseline` that of the
    baseline (None for input × gradient). `target` names the output; `method` and `steps` say how it was computed.
    """

    tokens: tuple[Token, ...]
    scores: tuple[float, ...]
    target: str
    target_id: int
    output: float
    baseline: float | None
    method: str
    steps: int

    @property
    def gap(self) -> float | None:
        """What the scores miss of output - baseline, in nats; None without a baseline."""
        return None if self.baseline is None else self.output - self.baseline - sum(self.scores)

    def as_dict(self) -> dict[str, Any]:
        shown = [{"id": t.id, "text": t.text, "score": s} for t, s in zip(self.tokens, self.scores, strict=True)]
        fields = {"target": self.target, "target_id": self.target_id, "output": self.output, "baseline": self.baseline}
        return fields | {"gap": self.gap, "method": self.method, "steps": self.steps, "tokens": shown}


def attribute(
    model: Model,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    target: int | None = None,
    position: int | None = None,
    method: str = "integrated_gradients",
    steps: int = 64,
    target_tokenizer: Tokenizer | None = None,
) -> Attribution:
    """Attributes an output to the tokens `ids` that a model reads.

    The output of a language model is the log-probability of the token `target` at `position`: by default the likeliest
    token after a decoder's text, at an encoder's first mask token, or that a decoder begins its answer with. Of a
    classifier it is the log-probability of the label `target`, of a regression its value. The baseline is the mean
    embedding of the vocabulary at every position: unlike zeros, a model's norms can read it. `steps` are doubled up to
    512 until the scores miss at most 1 % of the difference. Raises InputError for a model without such an output.
    """
    if method not in METHODS:
        raise InputError(f"method: {method!r}; must be one of {', '.join(METHODS)}")
    if steps < 1:
        raise InputError(f"steps: {steps}; must be at least 1")
    check_ids(ids, tokenizer, model.config)
    output, words = _output(model, tokenizer, ids, position)
    row = torch.tensor([list(ids)], device=model.device)
    with torch.no_grad():
        given = model.embed_tokens(row)
        choices = output(model, row)[0]
    chosen = int(choices.argmax()) if target is None else target
    if not 0 <= chosen < len(choices):
        raise InputError(f"target: {chosen}; this model has {len(choices):,} outputs, numbered from 0")
    name = words(chosen) if target_tokenizer is None else _token_word(target_tokenizer, chosen)

    def gradients(points: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs (N) at points (N, T, C), and their gradients."""
        values, slopes = [], []
        for part in points.split(ROWS):
            part = part.detach().requires_grad_(True)
            with torch.enable_grad(), _embedded(model, part):
                value = output(model, row.expand(len(part), -1))[:, chosen]
                (slope,) = torch.autograd.grad(value.sum(), part)
            values.append(value.detach())
            slopes.append(slope)
        return torch.cat(values), torch.cat(slopes)

    with _frozen(model):
        if method == "input_x_gradient":
            value, slope = gradients(given)
            scores = (given * slope)[0].sum(-1)
            found, before, used = float(value[0]), None, 1
        else:
            scores, found, before, used = _integrate(model, given, gradients, steps)
    shown = tuple(scores.double().cpu().tolist())
    return Attribution(tokens(tokenizer, ids), shown, name, chosen, found, before, method, used)


def _integrate(
    model: Model, given: Tensor, gradients: Callable[[Tensor], tuple[Tensor, Tensor]], steps: int
) -> tuple[Tensor, float, float, int]:
    """Gauss-Legendre integration along the straight path from the mean embedding to the given ones (1, T, C)."""
    start = model.embed_tokens.weight.detach().mean(0, keepdim=True).expand_as(given[0])[None].to(given.dtype)
    (end_value, start_value), _ = gradients(torch.cat([given, start]))
    output, before = float(end_value), float(start_value)
    while True:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        places = torch.tensor((nodes + 1) / 2, dtype=given.dtype, device=given.device)[:, None, None]
        _, slopes = gradients(start + places * (given - start))
        shares = torch.tensor(weights / 2, dtype=torch.float64, device=given.device)[:, None, None]
        mean = (shares * slopes.double()).sum(0)
        scores = ((given - start)[0].double() * mean).sum(-1)
        missed = abs(output - before - float(scores.sum()))
        if missed <= 0.01 * abs(output - before) or missed <= 1e-4 or 2 * steps > MOST_STEPS:
            return scores, output, before, steps
        steps *= 2


@contextmanager
def _embedded(model: Model, embedded: Tensor) -> Iterator[None]:
    """In this context the embedding gives these vectors instead of those of its tokens; later calls are unchanged.

    Only the first call is replaced: an encoder-decoder embeds the text first, then the decoder's tokens.
    """
    used = False

    def replace(module: nn.Module, inputs: Any, result: Tensor) -> Tensor | None:
        nonlocal used
        if used:
            return None
        used = True
        return embedded

    handle = model.embed_tokens.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _frozen(model: Model) -> Iterator[None]:
    """In this context no weight gets a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


Output = Callable[[Model, Tensor], Tensor]


def _output(
    model: Model, tokenizer: Tokenizer, ids: Sequence[int], position: int | None
) -> tuple[Output, Callable[[int], str]]:
    """A function from ids (B, T) to log-probabilities (B, V or L), and the names of these outputs."""
    head, config = model.config.head, model.config
    if position is not None and not 0 <= position < len(ids):
        raise InputError(f"position: {position}; the text has {len(ids)} tokens, numbered from 0")
    if head == "sequence_classification":
        by_label = {"single_label": lambda x: x.log_softmax(-1), "multi_label": torch.nn.functional.logsigmoid}
        score = by_label.get(config.problem_type, lambda x: x)
        return (
            lambda model, rows: score(model(rows)[0]),
            lambda chosen: config.labels[chosen] if chosen < len(config.labels) else str(chosen),
        )
    if head == "seq2seq":
        start = decoder_start(config)

        def first(model: Model, rows: Tensor) -> Tensor:
            return model(rows, decoder_input_ids=torch.full_like(rows[:, :1], start))[0][:, 0].log_softmax(-1)

        return first, lambda chosen: _token_word(tokenizer, chosen)
    if head not in ("causal", "masked"):
        raise InputError(
            f"This {config.family} model's head is {head!r}; attribution needs a language model or a text classifier."
        )
    place = len(ids) - 1 if position is None else position
    if head == "masked" and position is None:
        masks = [number for number, each in enumerate(ids) if each == tokenizer.mask_id]
        if not masks:
            raise InputError(f"The text has no mask token ({tokenizer.mask_id!r}); put one where the output is wanted.")
        place = masks[0]

    def at_place(model: Model, rows: Tensor) -> Tensor:
        return model.lm_logits(model.hidden_states(rows)[:, place]).log_softmax(-1)

    return at_place, lambda chosen: _token_word(tokenizer, chosen)


def _token_word(tokenizer: Tokenizer, token_id: int) -> str:
    return tokens(tokenizer, [token_id])[0].shown
