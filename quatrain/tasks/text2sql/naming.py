"""From identifiers to English and back to SQL: labels, plurals, articles, quoting.

`InvoiceLine`, `invoice_lines` and `"invoice line"` all become the label "invoice line" with the plural
"invoice lines". Labels hold letters and digits only, so they are safe inside a template.
"""

from __future__ import annotations

import re
from functools import lru_cache

from quatrain.core.wording import format_value

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HUMP = re.compile(r"(?<=[^\W\dA-Z_])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\dA-Z_])")
_TAIL = re.compile(r"(?<=\w) (?:of|in|per|for|to|from|by|at|on|with) .+\Z")
_WORD = re.compile(r"[^\W_]+")

# https://www.sqlite.org/lang_keywords.html, all of them: which ones SQLite lets through unquoted depends on the place.
KEYWORDS = frozenset(
    """abort action add after all alter always analyze and as asc attach autoincrement before begin between by cascade
    case cast check collate column commit conflict constraint create cross current current_date current_time
    current_timestamp database default deferrable deferred delete desc detach distinct do drop each else end escape
    except exclude exclusive exists explain fail filter first following for foreign from full generated glob group
    groups having if ignore immediate in index indexed initially inner insert instead intersect into is isnull join key
    last left like limit match materialized natural no not nothing notnull null nulls of offset on or order others
    outer over partition plan pragma preceding primary query raise range recursive references regexp reindex release
    rename replace restrict returning right rollback row rows savepoint select set table temp temporary then ties to
    transaction trigger unbounded union unique update using vacuum values view virtual when where window with
    without""".split()
)
# Keywords that SQLite takes as names anywhere a name may stand; quoting them would only make the SQL longer.
_HARMLESS = frozenset(["action", "key", "plan", "query"])

#: Words for places, of which one says "in".
PLACES = frozenset("city country state county region district town province continent".split())

_IRREGULAR = {
    "person": "people",
    "child": "children",
    "man": "men",
    "woman": "women",
    "foot": "feet",
    "tooth": "teeth",
    "mouse": "mice",
    "goose": "geese",
    "datum": "data",
    "criterion": "criteria",
    "analysis": "analyses",
    "basis": "bases",
    "crisis": "crises",
    "thesis": "theses",
    "leaf": "leaves",
    "shelf": "shelves",
    "wife": "wives",
    "life": "lives",
    "knife": "knives",
    "half": "halves",
    "hero": "heroes",
    "potato": "potatoes",
    "bus": "buses",
    "status": "statuses",
    "campus": "campuses",
    "address": "addresses",
    "index": "indexes",
    "quiz": "quizzes",
    "alias": "aliases",
    "bonus": "bonuses",
    "virus": "viruses",
    "lens": "lenses",
    "gas": "gases",
    "movie": "movies",
    "cookie": "cookies",
    "zombie": "zombies",
    "tie": "ties",
    "pie": "pies",
    "medium": "media",
    "cache": "caches",
    "house": "houses",
    "case": "cases",
    "course": "courses",
    "purchase": "purchases",
    "release": "releases",
    "expense": "expenses",
    "license": "licenses",
    "response": "responses",
    "database": "databases",
    "base": "bases",
    "phase": "phases",
    "warehouse": "warehouses",
    "horse": "horses",
    "nurse": "nurses",
    "size": "sizes",
    "prize": "prizes",
    "price": "prices",
    "cause": "causes",
    "use": "uses",
    "lease": "leases",
    "disease": "diseases",
    "exercise": "exercises",
    "franchise": "franchises",
    "promise": "promises",
    "axe": "axes",
    "shoe": "shoes",
}
_SINGULAR = {plural: one for one, plural in _IRREGULAR.items()}
_NO_PLURAL = frozenset(
    """info information data equipment news series species staff feedback weather inventory stock music software
    hardware furniture money research history content media traffic training personnel sales""".split()
)


def quote(identifier: str) -> str:
    """The identifier in SQL: bare if that is safe, else in double quotes."""
    lowered = identifier.lower()
    if _PLAIN.match(identifier) and (lowered not in KEYWORDS or lowered in _HARMLESS):
        return identifier
    return '"' + identifier.replace('"', '""') + '"'


def named(identifier: str) -> str:
    """The identifier for a message: unchanged, or in quotes with control characters escaped."""
    plain = identifier.isprintable() and identifier.strip() and len(identifier) <= 80
    return identifier if plain else format_value(identifier)


@lru_cache(maxsize=4096)
def label(identifier: str) -> str:
    """English words of an identifier, in lower case: `UnitPrice`, `unit_price` and `"unit price"` give "unit price"."""
    spaced = _HUMP.sub(" ", identifier) if not identifier.isupper() else identifier
    words = _WORD.findall(spaced)
    return " ".join(word.lower() for word in words) or "value"


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and len(word) > 1 and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _singular_word(word: str) -> str:
    if word in _SINGULAR:
        return _SINGULAR[word]
    if word in _IRREGULAR or len(word) < 4 or word.endswith(("ss", "us", "is")) or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "zzes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


def _last(phrase: str) -> tuple[str, str, str]:
    """The text before the noun that takes the plural, the noun, and the text after it: "number", " of hosts"."""
    match = _TAIL.search(phrase)
    tail = match.group() if match else ""
    head, _, last = phrase.removesuffix(tail).rpartition(" ")
    return (head + " " if head else ""), last, tail


@lru_cache(maxsize=4096)
def singular(phrase: str) -> str:
    """One of the things a table holds: "order lines" gives "order line"; "weather" gives "weather record"."""
    head, last, tail = _last(phrase)
    if last in _NO_PLURAL:
        return phrase + " record"
    return head + _singular_word(last) + tail


@lru_cache(maxsize=4096)
def plural(phrase: str) -> str:
    """Several of them: "order line" and "order lines" give "order lines"."""
    head, last, tail = _last(phrase)
    if last in _NO_PLURAL:
        return phrase + " records"
    return head + _plural_word(_singular_word(last)) + tail


@lru_cache(maxsize=4096)
def is_plural(phrase: str) -> bool:
    """Whether a label is already plural ("points", "milliseconds"), so that it takes no "a"."""
    _, last, _ = _last(phrase)
    return last not in _NO_PLURAL and _singular_word(last) != last


@lru_cache(maxsize=4096)
def with_article(phrase: str) -> str:
    """ "a price", "an order date", and "points" unchanged."""
    _, last, _ = _last(phrase)
    if is_plural(phrase) or last in _NO_PLURAL - {"stock"}:
        return phrase
    if phrase.startswith(("uni", "use", "usa", "euro", "one", "unit")) and not phrase.startswith("unin"):
        return "a " + phrase
    silent = phrase.startswith(("hour", "honest", "honor", "honour"))
    return ("an " if silent or phrase[0] in "aeiou" else "a ") + phrase


def plural_label(phrase: str) -> str:
    """A column's label for several values: "price" gives "prices", "points" stays."""
    head, last, tail = _last(phrase)
    if is_plural(phrase) or last in _NO_PLURAL:
        return phrase
    if phrase.startswith("date "):
        return "dates " + phrase[5:]
    return head + _plural_word(last) + tail
