"""Conditions on columns in English: templates with `{v}` and `{w}` where the values go.

Every template follows a plural noun ("products whose price is above {v}"). The general ones fit any column; where the
name or the role of a column allows more natural words ("cheaper than {v}", "joined in {v}", "in {v}"), these come on
top.
"""

from __future__ import annotations

from functools import cache

from quatrain.tasks.text2sql.naming import PLACES, is_plural, plural, with_article
from quatrain.tasks.text2sql.schema import Column, ForeignKey, Schema, Table

_GROUPS = frozenset("category genre department group class section playlist league division series".split())
_PARTICIPLES = {
    "order": "placed", "join": "who joined", "joined": "who joined", "hire": "hired", "birth": "born",
    "invoice": "issued",
    "release": "released", "start": "that started", "end": "that ended", "publish": "published", "create": "created",
    "open": "opened", "opening": "opened", "ship": "shipped", "founding": "founded", "signup": "who signed up",
    "enroll": "enrolled", "enrolment": "enrolled", "enrollment": "enrolled", "registration": "registered",
}  # fmt: skip
_COMPARE = {
    ">": (("above", "over"), ("more than", "greater than", "higher than")),
    "<": (("below", "under"), ("less than", "lower than", "smaller than")),
}  # fmt: skip
_DATES = {
    ">": ("after {v}", ("after {v}", "later than {v}")),
    "<": ("before {v}", ("before {v}", "earlier than {v}")),
    ">=": ("since {v}", ("on or after {v}", "not before {v}")),
    "<=": ("up to {v}", ("on or before {v}", "not after {v}")),
}  # fmt: skip


class Phrases:
    """The condition templates of one schema, made once per column."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.condition = cache(self._condition)

    def _condition(self, kind: str, operator: str, path: tuple[ForeignKey, ...], column: Column) -> tuple[str, ...]:
        """The templates for a condition of `kind` on the column that `path` leads to."""
        if not path:
            return tuple(self._own(kind, operator, column))
        if len(path) == 1:
            return tuple(self._parents(kind, operator, path[0], column))
        label, inner = path[0].label, self._parents(kind, operator, path[1], column)
        return tuple(
            f"{opening} {phrase}" for phrase in inner for opening in (f"of {plural(label)}", f"with {_a(label)}")
        )

    def _parents(self, kind: str, operator: str, key: ForeignKey, column: Column) -> list[str]:
        label = key.label
        parent = self.schema.table(key.parent)
        templates: list[str] = []
        if kind in ("equal", "not equal", "one of") and parent.title == column and self.schema.named(key):
            value = "{v} or {w}" if kind == "one of" else "{v}"
            if kind == "not equal":
                templates = [
                    f"whose {label} is not {value}",
                    f"where the {label} is not {value}",
                    f"not of the {label} {value}",
                ]
                return [*templates, f"with {_a(label)} other than {value}"]
            templates = [f"whose {label} is {value}", f"with the {label} {value}", f"where the {label} is {value}"]
            if label.split()[-1] in PLACES | _GROUPS:
                templates.append(f"in the {label} {value}")
                if self.bare_place(self.schema.table(key.table)) == key:
                    templates.append(f"in {value}")
            else:
                templates += [f"of the {label} {value}", f"for the {label} {value}"]
            return templates
        for phrase in self._own(kind, operator, column):
            if phrase.startswith("with "):
                templates += [f"whose {label} has {phrase[5:]}", f"where the {label} has {phrase[5:]}"]
            elif phrase.startswith("whose "):
                templates += [f"with {_a(label)} {phrase}", f"of {plural(label)} {phrase}"]
        return templates

    def bare_place(self, table: Table) -> Column | ForeignKey | None:
        """The only column that "in Paris" can mean for rows of this table; None if there are several."""
        own = [
            column
            for column in table.columns
            if column.is_choice and column.values > 1 and column not in table.identity
            and column.label.split()[-1] in PLACES
        ]  # fmt: skip
        above = [
            key
            for key in self.schema.parents(table.name)
            if key.label.split()[-1] in PLACES and self.schema.table(key.parent).title is not None
            and self.schema.named(key)
        ]  # fmt: skip
        places: list[Column | ForeignKey] = [*own, *above]
        return places[0] if len(places) == 1 else None

    def participle(self, column: Column) -> str:
        """The verb of the only date of a table ("placed" for an order date), or ""."""
        table = self.schema.table(column.table)
        if sum(other.role == "date" for other in table.columns) != 1:
            return ""
        for word in column.label.split():
            if word in _PARTICIPLES:
                return _PARTICIPLES[word]
            if word.endswith("ed") and len(word) > 4:
                return word
        return ""

    def _own(self, kind: str, operator: str, column: Column) -> list[str]:
        table = self.schema.table(column.table)
        name, a = column.label, with_article(column.label)
        be = "are" if is_plural(name) else "is"
        if column.role == "date":
            return self._date(kind, operator, column)
        if (kind == "equal" and column.is_number) or (kind == "equal" and column.role == "key"):
            return [
                f"with {a} of {{v}}", f"whose {name} {be} {{v}}", f"where the {name} {be} {{v}}",
                f"whose {name} {be} exactly {{v}}", f"that have {a} of {{v}}",
            ]  # fmt: skip
        if kind in ("equal", "one of"):
            value = "{v} or {w}" if kind == "one of" else "{v}"
            templates = [
                f"whose {name} {be} {value}", f"with the {name} {value}", f"where the {name} {be} {value}",
                f"that have the {name} {value}",
            ]  # fmt: skip
            if kind == "one of":
                templates.append(f"whose {name} {be} either {value}")
            if column == table.title:
                templates += [f"called {value}", f"named {value}"]
            elif self.bare_place(table) == column:
                templates += [f"in {value}", f"in the {name} {value}"]
            return templates
        if kind == "not equal":
            templates = [
                f"whose {name} {be} not {{v}}", f"with {a} other than {{v}}", f"that do not have the {name} {{v}}",
                f"where the {name} {be} not {{v}}", f"except those with the {name} {{v}}",
            ]  # fmt: skip
            return templates + (["not in {v}"] if self.bare_place(table) == column else [])
        if kind in ("compare", "bound"):
            return self._number(operator, column)
        if kind == "between":
            templates = [
                f"with {a} between {{v}} and {{w}}", f"whose {name} {be} between {{v}} and {{w}}",
                f"where the {name} {be} between {{v}} and {{w}}", f"with {a} from {{v}} to {{w}}",
            ]  # fmt: skip
            return templates + (["costing between {v} and {w}"] if _priced(column, table) else [])
        if kind == "contains":
            return [
                f"whose {name} contains {{v}}", f"with {{v}} in the {name}", f"that have {{v}} in their {name}",
                f"with {a} containing {{v}}", f"where the {name} contains {{v}}",
            ]  # fmt: skip
        if kind == "starts":
            return [
                f"whose {name} starts with {{v}}", f"with {a} starting with {{v}}", f"whose {name} begins with {{v}}",
                f"with {a} that starts with {{v}}", f"where the {name} begins with {{v}}",
            ]  # fmt: skip
        return [
            f"without {a}", f"that have no {name}", f"with no {name}", f"whose {name} {be} missing",
            f"whose {name} {be} not known", f"where the {name} {be} missing",
        ]  # fmt: skip

    def _number(self, operator: str, column: Column) -> list[str]:
        name, a = column.label, with_article(column.label)
        be = "are" if is_plural(name) else "is"
        table = self.schema.table(column.table)
        if operator in _COMPARE:
            places, words = _COMPARE[operator]
            templates = [f"with {a} {place} {{v}}" for place in places]
            templates += [f"whose {name} {be} {word} {{v}}" for word in (*places, *words)]
            templates += [f"with {a} of {words[0]} {{v}}", f"where the {name} {be} {words[0]} {{v}}"]
            templates += [f"that have {a} {words[2 if operator == '>' else 1]} {{v}}"]
            if _priced(column, table):
                templates += [f"costing {words[0]} {{v}}", f"that cost {words[0]} {{v}}"]
                templates.append("cheaper than {v}" if operator == "<" else "more expensive than {v}")
            if is_plural(name):
                templates.append(f"with {words[0]} {{v}} {name}")
            return templates
        least, after = ("at least", "or more") if operator == ">=" else ("at most", "or less")
        templates = [
            f"with {a} of {least} {{v}}", f"whose {name} {be} {least} {{v}}", f"where the {name} {be} {least} {{v}}",
            f"whose {name} {be} {{v}} {after}", f"with {a} of {{v}} {after}",
            f"whose {name} {be} {'not less' if operator == '>=' else 'not more'} than {{v}}",
        ]  # fmt: skip
        if _priced(column, table):
            templates += [f"costing {least} {{v}}", f"that cost {{v}} {after}"]
        if is_plural(name):
            templates.append(f"with {least} {{v}} {name}")
        return templates

    def _date(self, kind: str, operator: str, column: Column) -> list[str]:
        name, a, verb = column.label, with_article(column.label), self.participle(column)
        if kind == "between":
            templates = [
                f"with {a} between {{v}} and {{w}}", f"whose {name} is between {{v}} and {{w}}",
                f"where the {name} is between {{v}} and {{w}}", f"with {a} from {{v}} to {{w}}",
            ]  # fmt: skip
            return templates + ([f"{verb} between {{v}} and {{w}}", f"{verb} from {{v}} to {{w}}"] if verb else [])
        if kind == "date":
            short, long = _DATES[operator]
            templates = [f"with {a} {short}"]
            templates += [f"{opening} {name} is {text}" for text in long for opening in ("whose", "where the")]
            return templates + ([f"{verb} {text}" for text in dict.fromkeys((short, long[0]))] if verb else [])
        if kind in ("year", "month"):
            templates = [f"with {a} in {{v}}", f"whose {name} is in {{v}}", f"where the {name} is in {{v}}"]
            if kind == "year":
                templates += [f"with {a} in the year {{v}}", f"whose {name} is in the year {{v}}"]
            if sum(other.role == "date" for other in self.schema.table(column.table).columns) == 1:
                templates.append(f"{verb} in {{v}}" if verb else "in {v}")
            return templates + ([f"{verb} in {{v}}"] if verb else [])
        if kind == "equal":
            templates = [f"with the {name} {{v}}", f"whose {name} is {{v}}", f"where the {name} is {{v}}"]
            return [*templates, f"whose {name} is exactly {{v}}", *([f"{verb} on {{v}}"] if verb else [])]
        return [f"without {a}", f"that have no {name}", f"with no {name}", f"whose {name} is missing"]


def _a(label: str) -> str:
    return with_article(label)


def _priced(column: Column, table: Table) -> bool:
    """Whether "cheaper" is unambiguous for this column."""
    return column.label == "price" and sum(other.role == "money" for other in table.columns) == 1
