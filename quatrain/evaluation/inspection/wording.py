"""Results of an inspection as lines of text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from quatrain.core.wording import format_bytes, shorten, text_table
from quatrain.evaluation.inspection.architecture import Architecture, ModulePart
from quatrain.evaluation.inspection.attribution import Attribution
from quatrain.evaluation.inspection.choices import choices
from quatrain.evaluation.inspection.embedding_map import EmbeddingMap
from quatrain.evaluation.inspection.induction import InductionScores
from quatrain.evaluation.inspection.logit_lens import LogitLens
from quatrain.evaluation.inspection.neighbours import Neighbour
from quatrain.evaluation.inspection.predictions import Prediction, Predictions
from quatrain.evaluation.inspection.tokens import Token

NARROWEST = 50
KINDS = {
    "next": "The next token at each position:",
    "masked": "The token at each mask:",
    "each masked": "Each token, predicted as if it alone were masked:",
    "answer": "The decoder's next token, given the text and its output so far:",
}
LONGEST_TOKEN = 20
LENS_CELL = 9
"""Columns of a cell of the logit lens."""


def architecture_lines(result: Architecture, *, width: int = 100) -> Iterator[str]:
    """The tree with shapes, parameters and shares, then the design choices of the configuration."""
    width = max(width, NARROWEST)
    dtypes = dict.fromkeys(part.dtype for _, part in result.root.walk() if part.dtype)
    yield f"{result.parameters:,} parameters, {' and '.join(dtypes)}, {format_bytes(result.bytes)}"
    yield ""
    yield from _tree(result.root, width, uniform=bool(result.root.dtype))
    yield ""
    words = choices(result.config)
    margin = max(map(len, words)) + 2
    for name, chosen in words.items():
        lines = textwrap.wrap(chosen, max(20, width - margin)) or [""]
        yield f"{name:<{margin}}{lines[0]}"
        yield from (" " * margin + line for line in lines[1:])


def fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """What a classic model says of itself: a line for each fact, then a table for each list of rows."""
    plain = {name: value for name, value in facts.items() if not _is_rows(value)}
    margin = max(map(len, plain), default=0) + 2
    for name, value in plain.items():
        yield f"{name:<{margin}}{_fact(value)}"
    for name, rows in facts.items():
        if _is_rows(rows) and rows:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            cells = [[_fact(row[column]) if column in row else "" for column in columns] for row in rows]
            yield from ("", f"{name}:", *text_table(columns, cells).splitlines())


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if value < 10**15 else f"{float(value):.3g}"
    return f"{value:.4g}"


def _tree(root: ModulePart, width: int, *, uniform: bool) -> Iterator[str]:
    rows = [("part", "shape", "parameters", "share")]
    rows += [
        (branch + _name(part), _shape(part, uniform), _count(part), _share(part, root.total))
        for branch, part in _branches(root, "", "")
    ]
    names, counts = (max(len(row[column]) for row in rows) for column in (0, 2))
    room = width - names - counts - 7 - 6
    shapes = max(len("shape"), min(room, max(len(row[1]) for row in rows)))
    for name, shape, count, share in rows:
        yield f"{name:<{names}}  {shorten(shape, shapes):<{shapes}}  {count:>{counts}}  {share:>7}".rstrip()
    if any(part.count > 1 for _, part in root.walk()):
        yield "Under N ×, parameter counts are for one layer, shares for all of them."


def _branches(part: ModulePart, before: str, inner: str) -> Iterator[tuple[str, ModulePart]]:
    """Every entry with its branch lines."""
    yield before, part
    for number, child in enumerate(part.children):
        last = number == len(part.children) - 1
        yield from _branches(child, inner + ("└─ " if last else "├─ "), inner + ("   " if last else "│  "))


def _name(part: ModulePart) -> str:
    return f"{part.name} ({part.count} ×)" if part.count > 1 else part.name


def _shape(part: ModulePart, uniform: bool) -> str:
    words = [part.note] if part.note else []
    if part.tied:
        # Its shape is that of the tied tensor, transposed.
        bias = " + bias" if "bias" in part.tensors else ""
        words = [f"= {part.tied.removesuffix('.weight')}{bias}"]
    elif not uniform and part.tensors and part.dtype:
        words.append(part.dtype)
    return ", ".join(words)


def _count(part: ModulePart) -> str:
    elements = part.parameters * part.count
    return "tied" if part.tied and not elements else f"{elements:,}"


def _share(part: ModulePart, whole: int) -> str:
    return "" if part.tied and not part.total else f"{part.total / max(1, whole):.1%}"


def token_lines(read: Sequence[Token]) -> Iterator[str]:
    """One line per token: its position, its id and its text."""
    ids = max(len("id"), *(len(str(token.id)) for token in read))
    places = max(len("pos"), len(str(len(read))))
    yield f"{'pos':>{places}}  {'id':>{ids}}  token"
    for token in read:
        special = "  (special)" if token.special else ""
        yield f"{token.position:>{places}}  {token.id:>{ids}}  {token.shown}{special}"


def prediction_lines(result: Predictions, *, width: int = 100) -> Iterator[str]:
    """One block per position: the actual token with probability, rank and surprisal, then the most likely tokens."""
    width = max(width, NARROWEST)
    yield KINDS[result.kind]
    yield ""
    names = [shorten(item.token.shown, LONGEST_TOKEN) if item.token else _absent(result, item) for item in result.items]
    longest = max(_cells(name) for name in [*names, "token"])
    places = max(len("pos"), len(str(result.items[-1].position)))
    head = f"{'pos':>{places}}  {_pad('token', longest)}  {'prob':>7}  {'rank':>6}  {'bits':>5}  "
    yield f"{head}most likely"
    for name, item in zip(names, result.items, strict=True):
        begin = f"{item.position:>{places}}  {_pad(name, longest)}  {_figures(item)}  "
        lines = _wrapped([_candidate(each.token, each.probability) for each in item.candidates], width - len(head))
        yield begin + lines[0]
        yield from (" " * len(head) + line for line in lines[1:])
    mean = result.mean_bits
    if mean is not None:
        count = sum(item.bits is not None for item in result.items)
        yield ""
        yield f"{count:,} tokens: surprisal {mean:.2f} bits/token, perplexity {2 ** min(mean, 1000):,.1f}"


def _absent(result: Predictions, item: Prediction) -> str:
    return "(mask)" if result.kind == "masked" else "(next)"


def _figures(item: Prediction) -> str:
    if item.probability is None or item.bits is None:
        return f"{'':>7}  {'':>6}  {'':>5}"
    return f"{_percent(item.probability):>7}  {item.rank:>6,}  {item.bits:>5.1f}"


def _candidate(token: Token, probability: float) -> str:
    return f"{shorten(token.shown, LONGEST_TOKEN)} {_percent(probability)}"


def _percent(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """Wrap words to a width, separated by three spaces; words are never broken."""
    lines: list[str] = []
    for word in words:
        if lines and _cells(lines[-1]) + 3 + _cells(word) <= width:
            lines[-1] += f"   {word}"
        else:
            lines.append(word)
    return lines or [""]


def lens_lines(lens: LogitLens, *, width: int = 100) -> Iterator[str]:
    """The first guess of each layer at the last positions, then how likely the right tokens are after each layer."""
    width = max(width, NARROWEST)
    room = max(1, (width - 12) // (LENS_CELL + 1))
    places = range(max(0, len(lens.read) - room), len(lens.read))
    yield "The first guess after each layer (logit lens); * marks the right token:"
    yield ""
    yield f"{'read':<11} " + " ".join(_pad(shorten(lens.read[place].shown, LENS_CELL), LENS_CELL) for place in places)
    for number in reversed(range(len(lens.readings))):
        cells = []
        for place in places:
            reading = lens.readings[number][place]
            guess = shorten(reading.candidates[0].token.shown, LENS_CELL - 1)
            cells.append(_pad(guess + ("*" if reading.rank == 1 else ""), LENS_CELL))
        yield f"{lens.layer_name(number):<11} " + " ".join(cells)
    right = [
        None if each is None else shorten(each.shown, LENS_CELL) for each in (lens.right[place] for place in places)
    ]
    yield f"{'right':<11} " + " ".join(_pad(each or "(next)", LENS_CELL) for each in right)
    yield ""
    yield "layer        mean probability of the right token, median rank"
    for number, row in enumerate(lens.readings):
        ranks = sorted(each.rank for each in row if each.rank is not None)
        mean = lens.mean_probability(number)
        if mean is not None:
            yield f"{lens.layer_name(number):<11}  {_percent(mean):>7}  {ranks[len(ranks) // 2]:>7,}"


def attribution_lines(result: Attribution, *, width: int = 100) -> Iterator[str]:
    """One line per token with a bar, then what the integration misses."""
    yield f"What changes the output {result.target} ({result.output:.2f} nats), by {result.method.replace('_', ' ')}:"
    yield ""
    longest = max(_cells(shorten(each.shown, LONGEST_TOKEN)) for each in result.tokens)
    most = max(abs(score) for score in result.scores) or 1.0
    bars = max(10, min(40, width - longest - 12))
    for each, score in zip(result.tokens, result.scores, strict=True):
        bar = ("+" if score > 0 else "-") * round(bars * abs(score) / most)
        yield f"{_pad(shorten(each.shown, LONGEST_TOKEN), longest)}  {score:>8.3f}  {bar}"
    if result.gap is not None and result.baseline is not None:
        yield ""
        yield (
            f"The scores sum to {sum(result.scores):.3f}; the output differs from the baseline's by "
            f"{result.output - result.baseline:.3f} ({result.steps} steps)."
        )


def rollout_lines(read: Sequence[Token], weights: Tensor) -> Iterator[str]:
    """The tokens that reach the last position through all layers, largest first."""
    yield f"What reaches the last token, {read[-1].shown}, through all layers (attention rollout):"
    yield ""
    values, places = weights[-1, -1].topk(min(10, len(read)))
    for share, place in zip(values.tolist(), places.tolist(), strict=True):
        yield f"{_percent(share):>7}  {place:>4}  {read[place].shown}"


def map_lines(result: EmbeddingMap) -> Iterator[str]:
    """How many points a map has, its axes, and the points at their ends."""
    shares = " and ".join(f"{share:.1%}" for share in result.explained)
    yield f"{len(result.names):,} points, {result.method}" + (
        f"; the axes have {shares} of the variance" if shares else ""
    )
    for axis, name in enumerate(("first", "second")):
        order = result.points[:, axis].argsort().tolist()
        low, high = (
            " ".join(shorten(result.names[at], LONGEST_TOKEN) for at in ends) for ends in (order[:6], order[-6:])
        )
        yield f"{name} axis: {low}  …  {high}"
    yield "Add --page FILE.html to see all of them."


def induction_lines(scores: InductionScores) -> Iterator[str]:
    """The strongest heads, and the loss in the two copies."""
    yield f"Loss on {scores.length} random tokens: {scores.loss_first:.2f} nats, repeated: {scores.loss_second:.2f}"
    yield ""
    yield "layer  head  prefix matching  copying  the token before"
    for layer, head in scores.strongest(10):
        yield (
            f"{layer:>5}  {head:>4}  {float(scores.prefix_matching[layer, head]):>15.3f}  "
            f"{float(scores.copying[layer, head]):>7.2f}  {float(scores.previous_token[layer, head]):>16.3f}"
        )


def neighbour_lines(token: Token, result: Sequence[Neighbour]) -> Iterator[str]:
    """One line per neighbour: its similarity, its id and its text."""
    yield f"Nearest to {token.shown} (#{token.id}) in the embedding:"
    yield ""
    ids = max([len("id"), *(len(str(each.token.id)) for each in result)])
    yield f"cosine  {'id':>{ids}}  token"
    for each in result:
        special = "  (special)" if each.token.special else ""
        yield f"{each.similarity:>6.3f}  {each.token.id:>{ids}}  {each.token.shown}{special}"


def _cells(text: str) -> int:
    """The width of a text in a terminal, where characters take zero, one or two columns."""
    from rich.cells import cell_len

    return cell_len(text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))
