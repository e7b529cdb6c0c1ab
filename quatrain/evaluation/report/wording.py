"""Formats numbers and text for the report: durations, counts, shares, SQL, and untrusted text."""

from __future__ import annotations

import math
import re
from typing import Any

from quatrain.core.wording import format_bytes
from quatrain.evaluation.charts import short

_LONGEST_TEXT = 4000
_INVISIBLE = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
}
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: "\u2421"}
_VISIBLE = _INVISIBLE | _CONTROLS | {code: "\N{REPLACEMENT CHARACTER}" for code in range(0x80, 0xA0)}

_SQL = re.compile(
    r"(?P<string>'(?:[^']|'')*'?|\"(?:[^\"]|\"\")*\"?)|(?P<number>\b\d+(?:\.\d+)?\b)|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_KEYWORDS = frozenset(
    "select distinct from where group by order having limit offset join left right inner outer cross on as and or not "
    "in like between is null exists union all intersect except case when then else end asc desc with values count sum "
    "avg min max round abs lower upper length strftime date cast".split()
)
_NEW_LINE = frozenset("from where group order having limit union intersect except join left inner cross".split())
_JOIN_BEGINS = frozenset(("left", "inner", "cross", "outer", "right"))


def shown(page: str) -> str:
    """The page with control characters made visible and bidirectional marks replaced.

    A lone surrogate, which UTF-8 cannot encode, becomes a replacement character too.
    """
    return page.translate(_VISIBLE).encode("utf-8", "replace").decode("utf-8")


def clipped(text: str) -> str:
    """The text; of a very long text, the beginning."""
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}\n… ({len(text) - _LONGEST_TEXT:,} more characters)"


def is_sql(text: str) -> bool:
    """Whether a text looks like an SQL query."""
    return re.match(r"\s*(?:select|with)\b", text, re.IGNORECASE) is not None


def sql_markup(text: str) -> Any:
    """A query as markup, one line per clause, with marked keywords, strings and numbers.

    Every piece is escaped; the result is a `markupsafe.Markup`.
    """
    from markupsafe import Markup, escape

    pieces: list[Any] = []
    depth, previous = 0, ""
    for match in _SQL.finditer(clipped(text.strip())):
        kind, piece = match.lastgroup, match.group()
        word = piece.lower() if kind == "word" else ""
        depth += (piece == "(") - (piece == ")")
        starts_clause = word in _NEW_LINE and not (word == "join" and previous in _JOIN_BEGINS) and depth == 0
        if starts_clause and pieces:
            if str(pieces[-1]).isspace():
                pieces.pop()
            pieces.append(Markup("\n"))
        if word in _KEYWORDS:
            pieces.append(Markup('<span class="keyword">{}</span>').format(piece))
        elif kind in ("string", "number"):
            pieces.append(Markup('<span class="literal">{}</span>').format(piece))
        else:
            pieces.append(escape(piece))
        previous = word or (previous if kind == "space" else "")
    return Markup("").join(pieces)


def duration(seconds: float | None) -> str:
    """A duration in seconds, formatted: `0.42 s`, `12.3 s`, `4 min 12 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(count: float | None) -> str:
    """Bytes, in powers of 1000."""
    return "–" if count is None else format_bytes(count)


def amount(value: float | None, unit: str = "") -> str:
    """A large count with three digits: `3.21 M`, `850`, `12.4 T`; with a unit, `12.4 TFLOP`."""
    if value is None:
        return "–"
    for limit, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:
            return f"{_three_digits(value / limit)} {prefix}{unit}"
    return f"{value:,.0f} {unit}".strip()


def metric(name: str, value: float | None) -> str:
    """A metric's value: a share as a percentage, anything else as a plain number."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if is_share(name, (value,)) else short(value)


def is_share(name: str, values: tuple[float, ...]) -> bool:
    """Whether a metric is a share of one, by its name and its values."""
    words = ("accuracy", "match", "rate", "f1", "precision", "recall", "valid", "share")
    named = any(word in name.lower() for word in words)
    return named and all(0 <= value <= 1 for value in values)


def plain(name: str) -> str:
    """A key as words: `execution_accuracy` becomes `execution accuracy`."""
    return name.replace("_", " ")


def interval(share: float, count: float | None) -> tuple[float, float] | None:
    """The 95 % interval of a share seen in `count` trials (Wilson 1927); None without a count."""
    if not count or count < 1 or not 0 <= share <= 1:
        return None
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _three_digits(value: float) -> str:
    size_of = abs(value)
    return f"{value:.0f}" if size_of >= 99.95 else f"{value:.1f}" if size_of >= 9.995 else f"{value:.2f}"
