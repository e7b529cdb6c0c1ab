"""Days, months, quarters and relative dates in a question, written as SQLite writes dates.

"1st of May 2024" is 2024-05-01, "May 2024" is 2024-05, and "last year" is the year before that of `today`: the last day
that a database knows, since its data ends there.
"""

from __future__ import annotations

import datetime
import re

_MONTH_NAMES = (
    "january jan,february feb,march mar,april apr,may,june jun,july jul,august aug,september sept sep,"
    "october oct,november nov,december dec"
).split(",")
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES, 1) for name in names.split()}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_ORDINALS = {
    word: number
    for number, word in enumerate("first second third fourth fifth sixth seventh eighth ninth tenth".split(), 1)
}
_ORDINAL = "|".join(_ORDINALS)
_DAY_FIRST = re.compile(
    rf"\b(?:the\s+)?(\d{{1,2}}|{_ORDINAL})(?:st|nd|rd|th)?\.?\s+(?:day\s+)?(?:of\s+)?({_MONTH})\.?,?\s+(\d{{4}})\b",
    re.I,
)
_MONTH_FIRST = re.compile(rf"\b({_MONTH})\.?\s+(?:the\s+)?(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b", re.I)
_MONTH_YEAR = re.compile(rf"\b({_MONTH})\.?,?\s+(?:of\s+)?(?:the\s+year\s+)?(\d{{4}})\b", re.I)
_YEAR_MONTH = re.compile(rf"\b(\d{{4}})\s+({_MONTH})\b\.?", re.I)
_SLASHES = re.compile(r"\b(\d{4})[/.](\d{1,2})[/.](\d{1,2})\b")
_POINTS = re.compile(r"\b(\d{1,2})\.(\d{1,2})\.(\d{4})\b")
_BEFORE = r"\b(?:(?:in|during|of|for|from|over|within)\s+)?(?:the\s+)?"
_YEAR = r"(?:of\s+)?(?:the\s+year\s+)?(\d{4})\b"
_QUARTER = re.compile(rf"{_BEFORE}(?:q([1-4])|(first|second|third|fourth|last)\s+quarter)\s+{_YEAR}", re.I)
_YEAR_QUARTER = re.compile(rf"{_BEFORE}(\d{{4}})\s*,?\s*q([1-4])\b", re.I)
_HALF = re.compile(rf"{_BEFORE}(first|second)\s+half\s+{_YEAR}", re.I)
_PERIOD = re.compile(
    r"\b((?:in|during|of|from|for|since)\s+)?(?:the\s+)?(last|this|previous|past|current)\s+(year|month)(?:'s)?\b"
    r"(?!\s*(?:was|is|has|had|with))",
    re.I,
)
_COUNTS = dict(two=2, three=3, four=4, five=5, six=6, seven=7, ten=10, twelve=12, thirty=30, ninety=90)
_LAST = r"(?:last|past|previous)"
_SPAN = re.compile(rf"{_BEFORE}{_LAST}\s+(\d+|{'|'.join(_COUNTS)})\s+(day|week|month|year)s\b", re.I)
_WEEK = re.compile(rf"{_BEFORE}{_LAST}\s+week\b", re.I)


def with_days(question: str, today: str | None = None) -> str:
    """The question with its dates as SQLite writes them; relative ones only where `today` ("2025-06-30") is known."""
    question = _QUARTER.sub(lambda m: _months(m[3], _quarter(m[1] or m[2]), 3), question)
    question = _YEAR_QUARTER.sub(lambda m: _months(m[1], _quarter(m[2]), 3), question)
    question = _HALF.sub(lambda m: _months(m[2], 1 if m[1].lower() == "first" else 7, 6), question)
    question = _DAY_FIRST.sub(lambda m: f"{m[3]}-{_MONTHS[m[2].lower()]:02d}-{_day(m[1]):02d}", question)
    question = _MONTH_FIRST.sub(lambda m: f"{m[3]}-{_MONTHS[m[1].lower()]:02d}-{int(m[2]):02d}", question)
    question = _MONTH_YEAR.sub(lambda m: f"{m[2]}-{_MONTHS[m[1].lower()]:02d}", question)
    question = _YEAR_MONTH.sub(lambda m: f"{m[1]}-{_MONTHS[m[2].lower()]:02d}", question)
    question = _SLASHES.sub(lambda m: f"{m[1]}-{int(m[2]):02d}-{int(m[3]):02d}", question)
    question = _POINTS.sub(lambda m: f"{m[3]}-{int(m[2]):02d}-{int(m[1]):02d}", question)
    return question if today is None else _relative(question, datetime.date.fromisoformat(today[:10]))


def _relative(question: str, today: datetime.date) -> str:
    def period(match: re.Match[str]) -> str:
        back = match[2].lower() in ("last", "previous", "past")
        if match[3].lower() == "year":
            when = f"{today.year - back:04d}"
        else:
            month = today.year * 12 + today.month - 1 - back
            when = f"{month // 12:04d}-{month % 12 + 1:02d}"
        return f"{match[1] or 'in '}{when}"

    def span(match: re.Match[str]) -> str:
        count = _COUNTS.get(match[1].lower()) or int(match[1])
        days = {"day": 1, "week": 7, "month": 30, "year": 365}[match[2].lower()] * min(count, 36_500)
        if match[2].lower() in ("month", "year"):
            month = max(12, today.year * 12 + today.month - 1 - count * (12 if match[2].lower() == "year" else 1))
            return f" since {month // 12:04d}-{month % 12 + 1:02d}-{min(today.day, 28):02d}"
        return f" since {max(today - datetime.timedelta(days), datetime.date(1, 1, 1))}"

    question = _SPAN.sub(span, question)
    question = _WEEK.sub(lambda _: f" since {today - datetime.timedelta(7)}", question)
    return _PERIOD.sub(period, question)


def _day(text: str) -> int:
    return _ORDINALS.get(text.lower()) or int(text)


def _quarter(text: str) -> int:
    """The first month of a quarter."""
    number = 4 if text.lower() == "last" else _ORDINALS.get(text.lower()) or int(text)
    return 3 * number - 2


def _months(year: str, first: int, count: int) -> str:
    last = first + count - 1
    days = 30 if last in (6, 9) else 31
    return f" between {year}-{first:02d}-01 and {year}-{last:02d}-{days}"
