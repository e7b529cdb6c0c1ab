"""One self-contained page of interactive views: logit lens, attribution, rollout, embedding map, induction heads.

All data and the script are in the file; it loads nothing. Tokens are untrusted: they reach the page as JSON and are
shown as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.attribution import Attribution
from quatrain.evaluation.inspection.embedding_map import EmbeddingMap
from quatrain.evaluation.inspection.induction import InductionScores
from quatrain.evaluation.inspection.logit_lens import LogitLens
from quatrain.evaluation.inspection.tokens import Token, visible

if TYPE_CHECKING:
    from jinja2 import Template

DIGITS = 5
"""Significant digits of the numbers in a page."""
MOST_ROLLOUT = 2_000_000
"""Most numbers of a rollout in a page."""


def views_page(
    title: str,
    *,
    lens: LogitLens | None = None,
    attribution: Attribution | None = None,
    rollout: tuple[Sequence[Token], Tensor] | None = None,
    embedding: EmbeddingMap | None = None,
    induction: InductionScores | None = None,
) -> str:
    """The page of these views as HTML. `rollout` is the tokens and the result of `attention_rollout`.

    Raises InputError without a view, and for a rollout that is too large for a page.
    """
    from markupsafe import Markup

    data: dict[str, Any] = {}
    heads: list[dict[str, str]] = []
    for kind, found in (
        ("lens", _lens(lens)),
        ("attribution", _attribution(attribution)),
        ("rollout", _rollout(rollout)),
        ("map", _map(embedding)),
        ("induction", _induction(induction)),
    ):
        if found is not None:
            head, data[kind] = found
            heads.append({"kind": kind, **head})
    if not heads:
        raise InputError("The page has no view: give at least one of lens, attribution, rollout, embedding, induction.")
    text = json.dumps(_rounded(data), ensure_ascii=False, separators=(",", ":"))
    # Inside a script element only "<" can end it or begin a comment.
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return _template().render(title=title, views=heads, data=Markup(safe))


View = tuple[dict[str, str], Mapping[str, Any]]


def _lens(lens: LogitLens | None) -> View | None:
    if lens is None:
        return None
    layers = lens.as_dict()["layers"]
    for layer in layers:
        for reading in layer["positions"]:
            for each in reading["candidates"]:
                each["text"] = visible(each["text"])
    entropies = [reading.entropy for row in lens.readings for reading in row]
    data = {
        "read": [each.shown for each in lens.read],
        "right": [None if each is None else each.shown for each in lens.right],
        "layers": layers,
        "most_entropy": max(1e-9, *entropies),
    }
    head = {
        "title": "Logit lens",
        "subtitle": f"{len(lens.readings) - 1} layers, {len(lens.read)} tokens",
        "explanation": "What the model would predict if each layer were its last: its state there, through the final "
        "norm and the head. Bold cells have the right token first. Early layers need not be in the basis of the head.",
    }
    return head, data


def _attribution(attribution: Attribution | None) -> View | None:
    if attribution is None:
        return None
    data = attribution.as_dict()
    for each, own in zip(data["tokens"], attribution.tokens, strict=True):
        each["text"] = own.shown
    gap = attribution.gap
    missed = "" if gap is None else f" The scores miss {abs(gap):.4f} nats of the difference to the baseline."
    head = {
        "title": "Attribution",
        "subtitle": f"of “{attribution.target}”, {attribution.method.replace('_', ' ')}",
        "explanation": f"How much each token changes the output, {attribution.output:.2f} nats." + missed,
    }
    return head, data


def _rollout(rollout: tuple[Sequence[Token], Tensor] | None) -> View | None:
    if rollout is None:
        return None
    read, weights = rollout
    if weights.numel() > MOST_ROLLOUT:
        raise InputError(f"A rollout of {weights.numel():,} numbers is too large for a page; shorten the text.")
    data = {"tokens": [each.shown for each in read], "layers": weights.tolist()}
    head = {
        "title": "Attention rollout",
        "subtitle": f"{len(weights)} layers",
        "explanation": "Which input tokens can reach the chosen one through the attention of all layers so far. Each "
        "row sums to 100 %. It shows where information can flow, not what a model uses.",
    }
    return head, data


def _map(embedding: EmbeddingMap | None) -> View | None:
    if embedding is None:
        return None
    words = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[embedding.method]
    shares = " and ".join(f"{share:.1%}" for share in embedding.explained)
    meaning = (
        f"The axes are the two directions of most variance, {shares} of it."
        if shares
        else "Neighbours are meaningful; distances between groups and their sizes are not."
    )
    head = {"title": "Embedding map", "subtitle": f"{words}, {len(embedding.names):,} points", "explanation": meaning}
    return head, embedding.as_dict()


def _induction(scores: InductionScores | None) -> View | None:
    if scores is None:
        return None
    head = {
        "title": "Induction heads",
        "subtitle": f"{scores.length} random tokens, twice",
        "explanation": "Prefix matching: attention from a repeated token to the one after its first copy. Copying: "
        f"whether a head raises what it reads. The loss is {scores.loss_first:.2f} nats in the first copy and "
        f"{scores.loss_second:.2f} in the second.",
    }
    return head, scores.as_dict() | {"strongest": scores.strongest()}


def _rounded(value: Any) -> Any:
    """Numbers with few digits, which keeps pages small; others unchanged."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files("quatrain.evaluation.inspection")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name, file in (("style", "style.css"), ("views_style", "views.css"), ("script", "views.js")):
        environment.globals[name] = Markup((here / file).read_text(encoding="utf-8"))
    return environment.from_string((here / "views.html.jinja").read_text(encoding="utf-8"))
