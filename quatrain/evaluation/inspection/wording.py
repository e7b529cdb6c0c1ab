"""Results of an inspection as lines of text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quatrain.core.wording import format_bytes, shorten, text_table
from quatrain.evaluation.inspection.architecture import Architecture, ModulePart
from quatrain.evaluation.inspection.choices import choices
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
