"""ARPA files: n-gram models as text, as SRILM, KenLM and others read and write them.

    \\data\\
    ngram 1=3
    \\1-grams:
    -0.5    the     -0.3
    \\end\\

Each line has log10 p, the words, and the log10 weight of the n-gram as a context where it has one. Words are separated
by spaces, so that a token with a space or a line break in it is written with `<0x20>` and `<0x0A>` for them.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.core.wording import shorten
from quatrain.models.classic._counts import Array, NgramCounts, Table
from quatrain.models.classic._smoothing import Estimate
from quatrain.models.classic.ngram import NgramModel

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -99.0
"""The log10 of the probability of what is never predicted, by the convention of SRILM."""
LINES = 100_000
"""Lines that are written at once."""
LN10 = math.log(10)


def escaped(word: str) -> str:
    """A token as one word of a line."""
    return re.sub(r"\s", lambda match: "".join(f"<0x{byte:02X}>" for byte in match[0].encode()), word) or "<0x>"


def unescaped(word: str) -> str:
    """The token that `escaped` has written."""
    if word == "<0x>":
        return ""
    return re.sub(
        r"(?:<0x[0-9A-F]{2}>)+",
        lambda match: bytes.fromhex(re.sub(r"<0x|>", "", match[0])).decode(errors="replace"),
        word,
    )


def write_arpa(model: NgramModel, words: Sequence[str], path: str | Path) -> None:
    """Writes a model to an ARPA file; `words` are its tokens by id.

    Raises InputError for a model that asks no shorter context (add_k), which the format cannot express.
    """
    if model.config.direct:
        raise InputError(
            f"{path}: a model smoothed with add_k asks no shorter context; an ARPA file has only those that do"
        )
    if len(words) != model.config.vocab_size:
        raise InputError(f"words: {len(words):,}; the model has a vocabulary of {model.config.vocab_size:,}")
    named = np.array([escaped(word) for word in words], dtype=object)
    if len(set(named)) < len(named):
        raise InputError("words: two tokens are written alike, so that a file could not tell them apart")
    counts = _counts_of(model)
    with atomic_write(path) as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {order}={len(table)}\n" for order, table in enumerate(counts.tables, 1))
        for order in range(1, counts.order + 1):
            file.write(f"\n\\{order}-grams:\n")
            _write_order(file, model, counts, order, named)
        file.write("\n\\end\\\n")


def _counts_of(model: NgramModel) -> NgramCounts:
    """The tables of a model, without counts."""
    tables = [Table(model.part(order, "keys"), model.part(order, "counts"), model.part(order, "keys"))
              for order in range(1, model.config.order + 1)]  # fmt: skip
    return NgramCounts(model.config.vocab_size, tables, model.config.tokens, model.config.bos_token_id)


def _write_order(file: IO[str], model: NgramModel, counts: NgramCounts, order: int, words: Array) -> None:
    rows = counts.rows(order)
    values = np.maximum(model.part(order, "log_probs") / LN10, NEVER)
    weights = np.maximum(model.part(order, "log_weights") / LN10, NEVER)
    for start in range(0, len(rows), LINES):
        part = slice(start, start + LINES)
        texts = [" ".join(row) for row in words[rows[part]]]
        if order == counts.order:
            lines = [f"{value:.7g}\t{text}\n" for value, text in zip(values[part], texts, strict=True)]
        else:
            lines = [f"{value:.7g}\t{text}\t{weight:.7g}\n"
                     for value, text, weight in zip(values[part], texts, weights[part], strict=True)]  # fmt: skip
        file.writelines(lines)


def read_arpa(path: str | Path) -> tuple[NgramModel, list[str]]:
    """The model of an ARPA file, plain or gzip, and its words by id, in the order of the file's single words.

    `<s>` is never predicted, and no n-gram reaches over it. Raises InputError with the line that is wrong.
    """
    place = user_path(path, "the ARPA file")
    try:
        with _opened(place) as file:
            orders = _read(file, place)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{place}: this is not an ARPA file in UTF-8: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{place}: there is no such file.") from error
    words = [unescaped(word) for word in orders[0][0]]
    bos = orders[0][0].index(BOS) if BOS in orders[0][0] else None
    counts, estimate = _model_of(orders, len(words), bos, place)
    config = {"smoothing": "arpa", "bos_token_id": bos}
    if EOS in words:
        config["eos_token_id"] = words.index(EOS)
    return NgramModel.from_estimate(counts, estimate, **config), words


def _opened(path: Path) -> IO[str]:
    return (
        cast(IO[str], gzip.open(path, "rt", encoding="utf-8")) if path.suffix == ".gz" else path.open(encoding="utf-8")
    )


_Order = tuple[list[str], Array, Array, Array]
"""The words of order 1 (empty for others), ids (N, order), log10 p (N,) and log10 weights (N,)."""


def _read(file: IO[str], path: Path) -> list[_Order]:
    """The sections of a file."""
    announced: dict[int, int] = {}
    ids: dict[str, int] = {}
    orders: list[_Order] = []
    current, rows, values, weights = 0, [], [], []  # type: int, list[list[int]], list[float], list[float]

    def close() -> None:
        if current:
            if announced.get(current) != len(rows):
                raise InputError(
                    f"{path}: {len(rows):,} {current}-grams; the header says {announced.get(current, 0):,}. "
                    "The file is cut or damaged."
                )
            array = np.array(rows, dtype=np.int64).reshape(len(rows), current)
            orders.append((list(ids) if current == 1 else [], array, np.array(values), np.array(weights)))

    for number, line in enumerate(_lines(file), 1):
        if match := re.fullmatch(r"ngram (\d+)\s*=\s*(\d+)", line):
            announced[int(match[1])] = int(match[2])
        elif match := re.fullmatch(r"\\(\d+)-grams:", line):
            close()
            if int(match[1]) != current + 1:
                raise InputError(f"{path}, line {number}: {line}; the {current + 1}-grams must come here")
            current, rows, values, weights = int(match[1]), [], [], []
        elif line == "\\end\\":
            close()
            break
        elif line and current:
            cells = line.split()
            words = cells[1 : 1 + current]
            try:
                value, weight = float(cells[0]), float(cells[1 + current]) if len(cells) > 1 + current else 0.0
                if len(words) < current or len(cells) > current + 2:
                    raise ValueError
                if current == 1:
                    ids.setdefault(words[0], len(ids))
                rows.append([ids[word] for word in words])
            except (ValueError, KeyError) as error:
                what = f"the word {error} is no single word of the file" if isinstance(error, KeyError) else (
                    f"must be log10 p, {current} words and perhaps a weight")  # fmt: skip
                raise InputError(f"{path}, line {number}: {shorten(line, 80)!r}; {what}") from error
            values.append(value)
            weights.append(weight)
    else:
        raise InputError(f"{path}: ends without \\end\\: the file is cut, or no ARPA file.")
    if not orders:
        raise InputError(f"{path}: has no n-grams.")
    return orders


def _lines(file: IO[str]) -> Iterator[str]:
    return (line.strip() for line in file)


def _model_of(orders: list[_Order], size: int, bos: int | None, path: Path) -> tuple[NgramCounts, Estimate]:
    """Sorted tables. A context that the file lacks is added with the probability that it has without its own entry."""
    tables: list[Table] = []
    probabilities: list[Array] = []
    weights: list[Array] = []
    for order, (_, ids, values, weight) in enumerate(orders, 1):
        if order > 1:
            missing = _missing_contexts(ids, tables, size)
            if len(missing):
                raise InputError(
                    f"{path}: {len(missing):,} {order}-grams have no entry for their first {order - 1} words, such as "
                    f"{' '.join(np.array(orders[0][0], dtype=object)[missing[0]])!r}; the file is not complete"
                )
        context = _context_places(ids[:, :-1], tables, size)
        keys = context * size + ids[:, -1]
        sorting = np.argsort(keys, kind="stable")
        if len(keys) > 1 and bool((np.diff(keys[sorting]) == 0).any()):
            raise InputError(f"{path}: a {order}-gram is there twice")
        tables.append(Table(keys[sorting], np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.int64)))
        with np.errstate(under="ignore"):
            probabilities.append(np.where(values[sorting] <= NEVER, 0.0, 10.0 ** values[sorting]))
            weights.append(np.where(weight[sorting] <= NEVER, 0.0, 10.0 ** weight[sorting]))
    if bos is not None:
        probabilities[0][bos] = 0.0
    return NgramCounts(size, tables, 0, bos), Estimate(probabilities, weights, 0.0, [])


def _context_places(contexts: Array, tables: Sequence[Table], size: int) -> Array:
    place = np.zeros(len(contexts), dtype=np.int64)
    for column in range(contexts.shape[1]):
        keys = place * size + contexts[:, column]
        place = np.where(place < 0, -1, tables[column].find(keys))
    return place


def _missing_contexts(ids: Array, tables: Sequence[Table], size: int) -> Array:
    return ids[:, :-1][_context_places(ids[:, :-1], tables, size) < 0]
