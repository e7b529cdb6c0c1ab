"""Runs untrusted chat templates with limits on time, memory and output.

Jinja's own sandbox protects Python's internals, but allows an endless loop or a text of 10 GB. This one meters the
work. The syntax tree is rewritten before compilation so that each loop iteration, literal and comparison is charged;
calls, filters and operators are charged before they run, by an upper bound on their result (`check_call`,
`check_filter`, `check_operation`). Nothing depends on signals, tracing or threads: each rendering has its own `Meter`
in a context variable, and threads share compiled templates.
"""

from __future__ import annotations

import re
import time
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, _PassArg, pass_context
from jinja2.visitor import NodeTransformer

from quatrain.core.errors import InputError

MAX_STEPS = 1_000_000
"""Limit on loop iterations, calls and visited elements. A chat of 1,000 turns needs some 50,000."""

MORE_STEPS = 3_000
"""Additional steps per message, for templates that visit all messages in each turn."""

MAX_CHARACTERS = 200_000_000
"""Limit on the characters that all operations together produce or copy."""

MAX_TEXT = 8_000_000
"""Limit on the characters of one text in a template, raised for long conversations."""

MAX_BITS = 16_000
"""Limit on the bits of an integer."""

MAX_NESTED_CALLS = 100
"""Limit on nested macros, blocks and recursive loops."""

MAX_SECONDS = 5.0
"""Limit on the CPU time of the rendering thread."""


class TemplateLimitError(InputError):
    """A chat template exceeded a limit, which the message names."""


class Meter:
    """The remaining budget of one rendering. Once a limit is exceeded, all further charges fail too."""

    def __init__(self, characters: int = 0, messages: int = 0):
        """`given` is the number of characters of the conversation, which a template may copy."""
        self.most = self.steps = MAX_STEPS + MORE_STEPS * messages
        self.characters = MAX_CHARACTERS + 20 * characters
        self.longest = MAX_TEXT + 6 * characters
        self.depth = 0
        self.ends = time.thread_time() + MAX_SECONDS
        self.failed: TemplateLimitError | None = None

    def fail(self, limit: str) -> TemplateLimitError:
        """The error for a limit; further calls return the same error."""
        self.failed = self.failed or TemplateLimitError(
            f"the chat template was stopped: {limit}. It takes too much time or memory; use another template"
        )
        return self.failed

    def step(self, count: int = 1) -> None:
        """Charge `count` elementary operations."""
        before = self.steps
        self.steps = before - count
        if self.steps < 0:
            raise self.fail(f"more than {self.most:,} steps (loops, calls, elements)")
        if (before ^ self.steps) >> 10 and time.thread_time() > self.ends:
            raise self.fail(f"more than {MAX_SECONDS:g} seconds")
        if self.failed is not None:
            raise self.failed

    def text(self, length: int) -> None:
        """Charge the creation of a text."""
        if length > self.longest:
            raise self.fail(f"a text of {length:,} characters; at most {self.longest:,} are allowed")
        self.characters -= length
        if self.characters < 0:
            raise self.fail(f"more than {MAX_CHARACTERS:,} characters of text in total")
        self.step(1 + (length >> 12))

    def number(self, bits: float) -> None:
        """Raise for an integer of more than `MAX_BITS` bits."""
        if bits > MAX_BITS:
            raise self.fail(f"a whole number of more than {MAX_BITS:,} bits")

    def value(self, value: Any) -> int:
        """Charge an operation that visits a whole value, such as printing or comparing; returns its characters.

        An element that occurs twice is charged twice.
        """
        if isinstance(value, str | bytes):
            self.text(len(value))
            return len(value)
        if value is None or isinstance(value, bool | int | float | Undefined):
            self.step()
            return 24
        total = 0
        waiting = [value]
        while waiting:
            each = waiting.pop()
            self.step()
            if isinstance(each, str | bytes):
                self.text(len(each))
                total += len(each) + 4
                if total > self.longest:
                    raise self.fail(f"a value of {total:,} characters; at most {self.longest:,} are allowed")
            elif isinstance(each, Mapping):
                waiting += each.keys()
                waiting += each.values()
            elif isinstance(each, list | tuple | KeysView | ValuesView | ItemsView):
                self.step(len(each) >> 3)
                waiting += each
            elif isinstance(each, range):
                self.step(len(each) >> 3)
            elif isinstance(each, Namespace):
                waiting.append(object.__getattribute__(each, "_Namespace__attrs"))
            else:
                total += 24
        return total

    def shallow(self, value: Any) -> None:
        """Charge an operation that iterates over a value without visiting nested elements."""
        if isinstance(value, str | bytes):
            self.text(len(value))
        elif isinstance(value, list | tuple | Mapping | range):
            self.step(1 + len(value))
        else:
            self.step()

    def result(self, value: Any) -> Any:
        """Charge the result of an operation and return it."""
        if isinstance(value, str | bytes):
            self.text(len(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            self.number(value.bit_length())
        elif isinstance(value, list | tuple):
            self.step(1 + len(value))
        elif isinstance(value, Iterator):
            return self.metered(value)
        return value

    def metered(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield items, charging each."""
        for item in items:
            self.value(item)
            yield item


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def meter() -> Meter:
    """The meter of this thread's current rendering; a new one outside any."""
    return _METER.get() or Meter()


@contextmanager
def metered(characters: int = 0, messages: int = 0) -> Iterator[Meter]:
    """Use one meter for everything rendered in a block of code."""
    current = Meter(characters, messages)
    token = _METER.set(current)
    try:
        yield current
    finally:
        _METER.reset(token)


# What operations cost.

MAX_WIDTH = 10_000
"""Columns that a format, `center` and the like may fill."""

MAX_SLOW = 200_000
"""Characters for filters whose time grows faster than their input."""

MAX_PRODUCT = 500_000_000
"""Comparisons of characters in one search."""

_DIGITS = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")


def check_operation(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Charge `left operator right`."""
    meter.step()
    if operator == "+":
        if isinstance(left, str | bytes) and isinstance(right, str | bytes):
            meter.text(len(left) + len(right))
        elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
            meter.step((len(left) + len(right)) >> 3)
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                _check_product(meter, many, times)
        if isinstance(left, int) and isinstance(right, int):
            meter.number(left.bit_length() + right.bit_length() - 1)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        meter.number(left.bit_length() * max(0, right) if abs(left) > 1 else 0)
    elif operator == "%" and isinstance(left, str | bytes):
        check_percent(meter, left, right)


def _check_product(meter: Meter, many: Sequence[Any], times: int) -> None:
    if isinstance(many, str | bytes):
        meter.text(len(many) * max(0, times))
    else:
        meter.step(len(many) * max(0, times))


def check_widths(meter: Meter, specification: str) -> None:
    """Refuse a width or precision of more than `MAX_WIDTH` in a format."""
    for digits in _DIGITS.findall(specification):
        _check_width(meter, int(digits) if len(digits) < 9 else MAX_WIDTH + 1)


def check_percent(meter: Meter, pattern: str | bytes, values: Any) -> None:
    """Charge `pattern % values`, in which a named value can occur many times."""
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    width = 0
    fields = _PERCENT.findall(text)
    for numbers in fields:
        for number in numbers:
            if number == "*":
                raise meter.fail("a format whose width is a value (%*d)")
            if number:
                check_widths(meter, number)
                width += int(number)
    size = meter.value(values)
    meter.text(len(text) + width + (size * len(fields) if isinstance(values, Mapping) else size))


def check_call(meter: Meter, called: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Charge a call of anything but a macro."""
    for each in (*args, *kwargs.values()):
        meter.value(each)
    if not isinstance(called, types.BuiltinMethodType | types.MethodWrapperType):
        return
    owner, name = called.__self__, called.__name__
    if isinstance(owner, str | bytes):
        meter.text(len(owner))
        if name in _TEXT_METHODS:
            _TEXT_METHODS[name](meter, owner, [*args, *kwargs.values()])
    elif isinstance(owner, int) or (isinstance(owner, type) and issubclass(owner, int)):
        for each in (*args, *kwargs.values()):
            # int.to_bytes(length), int.from_bytes(bytes)
            size = each if isinstance(each, int) else len(each) if isinstance(each, str | bytes | list) else 0
            _check_width(meter, size)
    elif isinstance(owner, list | tuple | range) and name in ("index", "count"):
        meter.value(owner)
    elif isinstance(owner, list | tuple | Mapping) and name not in ("get", "items", "keys", "values"):
        meter.shallow(owner)


def _check_width(meter: Meter, width: Any) -> None:
    if isinstance(width, int) and abs(width) > MAX_WIDTH:
        raise meter.fail(f"a width of more than {MAX_WIDTH:,}")


def _widened(meter: Meter, text: Any, args: list[Any]) -> None:
    if args:
        _check_width(meter, args[0])


def _expanded(meter: Meter, text: Any, args: list[Any]) -> None:
    if args and isinstance(args[0], int):
        _check_width(meter, args[0])
        meter.text(len(text) + text.count("\t" if isinstance(text, str) else b"\t") * max(0, args[0]))
    else:
        meter.text(8 * len(text))


def _replaced(meter: Meter, text: Any, args: list[Any]) -> None:
    if len(args) >= 2 and isinstance(args[0], type(text)) and isinstance(args[1], type(text)):
        meter.text(len(text) + (text.count(args[0]) * max(0, len(args[1]) - len(args[0]))))


def _joined(meter: Meter, text: Any, args: list[Any]) -> None:
    if args and hasattr(args[0], "__len__"):
        meter.text(len(text) * len(args[0]) + (meter.value(args[0]) if not isinstance(args[0], str) else len(args[0])))


def _translated(meter: Meter, text: Any, args: list[Any]) -> None:
    if args and isinstance(args[0], Mapping):
        longest = max((len(each) for each in args[0].values() if isinstance(each, str)), default=1)
        meter.text(len(text) * max(1, longest))


def _split(meter: Meter, text: Any, args: list[Any]) -> None:
    separator = args[0] if args and isinstance(args[0], str | bytes) and args[0] else None
    if separator is not None and isinstance(separator, type(text)):
        meter.step(text.count(separator))
    else:
        meter.step(len(text) >> 3)


def _searched_slowly(meter: Meter, text: Any, args: list[Any]) -> None:
    """Searching from the end and stripping characters take up to the product of both lengths."""
    if args and isinstance(args[0], str | bytes) and len(text) * len(args[0]) > MAX_PRODUCT:
        raise meter.fail(f"searching {len(args[0]):,} characters in {len(text):,}")


def _split_from_the_end(meter: Meter, text: Any, args: list[Any]) -> None:
    _searched_slowly(meter, text, args)
    _split(meter, text, args)


def _grown(meter: Meter, text: Any, args: list[Any]) -> None:
    meter.text(4 * len(text))


_TEXT_METHODS: dict[str, Callable[[Meter, Any, list[Any]], None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _widened),
    **dict.fromkeys(("split", "splitlines"), _split),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"), _searched_slowly),
    "rsplit": _split_from_the_end,
    **dict.fromkeys(("hex", "encode", "decode", "upper", "title", "swapcase", "casefold", "escape"), _grown),
    "expandtabs": _expanded,
    "replace": _replaced,
    "join": _joined,
    "translate": _translated,
}


_Args = Sequence[Any]
_Named = Mapping[str, Any]


def check_filter(meter: Meter, name: str, args: _Args, kwargs: _Named) -> None:
    """Charge a filter or a test. `args` begin with the value that it is applied to."""
    value = args[0] if args else None
    if name in _SHALLOW:
        meter.shallow(value)
    else:
        size = meter.value(value)
        if name in _SLOW and size > MAX_SLOW:
            raise meter.fail(f"{size:,} characters for the filter {name}; at most {MAX_SLOW:,} are allowed")
    if name in _LISTING and isinstance(value, str | bytes):
        meter.step(len(value))
    elif name in ("title", "wordcount") and isinstance(value, str):
        meter.step(len(value) >> 2)
    for each in (*args[1:], *kwargs.values()):
        meter.value(each)
    if name in _FILTERS:
        _FILTERS[name](meter, value, args[1:], kwargs)


_SHALLOW = frozenset(
    "default d length count first last list trim upper lower capitalize title reverse safe items map select selectattr "
    "reject rejectattr attr int float abs round batch slice random wordcount indent replace center truncate".split()
)
"""Filters that do not visit the elements of a list. What comes of generators is charged for item by item."""

_SLOW = frozenset("urlize striptags wordwrap xmlattr pprint".split())
"""Filters whose time grows faster than their input."""

_LISTING = frozenset("list sort unique batch slice groupby".split())
"""Filters that make an item of each character of a text."""


def _argument(args: _Args, kwargs: _Named, position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 24


def _center(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    _check_width(meter, _argument(args, kwargs, 0, "width", 80))


def _indent(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    width = _argument(args, kwargs, 0, "width", 4)
    _check_width(meter, width)
    lines = value.count("\n") + 1 if isinstance(value, str) else 1
    meter.text(_length(value) + lines * (abs(width) if isinstance(width, int) else _length(width)))


def _replace(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    old, new = _argument(args, kwargs, 0, "old", ""), _argument(args, kwargs, 1, "new", "")
    if not isinstance(value, str):
        meter.value(value)
        value = str(value)
    _replaced(meter, value, [str(old), str(new)])


def _join(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    between = _length(_argument(args, kwargs, 0, "d", ""))
    if isinstance(value, str | list | tuple | Mapping | range):
        meter.text(between * len(value))


def _wordwrap(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    width, between = _argument(args, kwargs, 0, "width", 79), _argument(args, kwargs, 2, "wrapstring", None)
    if isinstance(width, int) and isinstance(value, str):
        meter.text(len(value) + (len(value) // max(1, width) + value.count("\n") + 1) * _length(between or "\n"))


def _urlize(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    more = sum(_length(each) for each in (*args, *kwargs.values()))
    meter.text(_length(value) * 8 + (_length(value) // 4 + 1) * (more + 40))


def _numbers(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    """`batch(linecount)`, `slice(slices)` make that many items."""
    for each in (*args, *kwargs.values()):
        if isinstance(each, int):
            meter.step(abs(each))


def _round(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    precision = _argument(args, kwargs, 0, "precision", 0)
    if isinstance(precision, int) and abs(precision) > 400:
        raise meter.fail("a rounding to more than 400 places")


def _int(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    if _length(value) > 4_000:
        raise meter.fail("a number of more than 4,000 digits")


def _tojson(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    for each in (*args, *kwargs.values()):
        parts = each if isinstance(each, list | tuple) else [each]
        wide = isinstance(each, int) and abs(each) > 64
        if wide or any(isinstance(part, str) and len(part) > 64 for part in parts):
            raise meter.fail("an indent or a separator of more than 64 characters")
    indent = _argument(args, kwargs, 1, "indent", None)
    if indent is None:
        return
    width = indent if isinstance(indent, int) else _length(indent)
    total, waiting = 0, [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        total += 2 + width * depth
        meter.step()
        if isinstance(each, Mapping):
            waiting += [(item, depth + 1) for item in each.values()]
        elif isinstance(each, list | tuple):
            waiting += [(item, depth + 1) for item in each]
    meter.text(max(0, total))


def _trim(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    _searched_slowly(meter, value if isinstance(value, str) else "", [_argument(args, kwargs, 0, "chars", None)])


def _format(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    check_percent(meter, str(value), dict(kwargs) if kwargs else tuple(args))


def _escaped(meter: Meter, value: Any, args: _Args, kwargs: _Named) -> None:
    meter.text(6 * _length(value))


_FILTERS: dict[str, Callable[[Meter, Any, _Args, _Named], None]] = {
    "center": _center,
    "indent": _indent,
    "replace": _replace,
    "join": _join,
    "wordwrap": _wordwrap,
    "urlize": _urlize,
    "batch": _numbers,
    "slice": _numbers,
    "round": _round,
    "int": _int,
    "tojson": _tojson,
    "format": _format,
    "trim": _trim,
    **dict.fromkeys(("e", "escape", "forceescape", "urlencode", "xmlattr"), _escaped),
}


# Filters that the rewritten syntax tree calls, with names that no template can contain. `pass_context` keeps Jinja
# from evaluating them, and their arguments, at compile time.


@pass_context
def _charge_steps(context: Context, count: int) -> bool:
    meter().step(count)
    return True


@pass_context
def _charge_text(context: Context, length: int) -> None:
    meter().text(length)


@pass_context
def _charge_compared(context: Context, value: Any) -> Any:
    if isinstance(value, str):
        meter().step(1 + (len(value) >> 10))
    elif value is not None and not isinstance(value, bool | int | float | Undefined):
        meter().value(value)
    return value


@pass_context
def _charge_searched(context: Context, value: Any) -> Any:
    return value if isinstance(value, Mapping | range) else _charge_compared(context, value)


@pass_context
def _charge_printed(context: Context, value: Any) -> Any:
    meter().value(value)
    return value


@pass_context
def _charge_sliced(context: Context, value: Any) -> Any:
    return meter().result(value)


_HOOKS: dict[str, Callable[..., Any]] = {
    "steps ": _charge_steps,
    "text ": _charge_text,
    "compared ": _charge_compared,
    "searched ": _charge_searched,
    "printed ": _charge_printed,
    "sliced ": _charge_sliced,
}


def _hook(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno or 1)


def _plain(node: nodes.Node) -> bool:
    """Whether a node is a constant that is cheap to visit."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return len(node.items) <= 8 and all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


class _Metering(NodeTransformer):
    """Inserts the charges into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        line = node.lineno or 1
        turn = _hook("steps ", nodes.Const(1, lineno=line))
        node.body.insert(0, nodes.ExprStmt(turn, lineno=line))
        if node.test is not None:
            node.test = nodes.And(_hook("steps ", nodes.Const(1, lineno=line)), node.test, lineno=line)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node | list[nodes.Node]:
        self.generic_visit(node)
        length = sum(len(each.data) for each in node.nodes if isinstance(each, nodes.TemplateData))
        if not length:
            return node
        line = node.lineno or 1
        return [nodes.ExprStmt(_hook("text ", nodes.Const(length, lineno=line)), lineno=line), node]

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        operands = [node.expr, *(each.expr for each in node.ops)]
        # Comparing a text or a number with anything else returns at once.
        simple = any(isinstance(each, nodes.Const) for each in operands) and len(node.ops) == 1
        for each in node.ops:
            if not _plain(each.expr) and (not simple or each.op in ("in", "notin")):
                each.expr = _hook("searched " if each.op in ("in", "notin") else "compared ", each.expr)
        if not simple:
            node.expr = _hook("compared ", node.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [each if isinstance(each, nodes.Const) else _hook("printed ", each) for each in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _hook("sliced ", node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return node if _plain(node) else _hook("printed ", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _hook("printed ", node) if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return node if node.ctx != "load" or _plain(node) else _hook("printed ", node)


class TemplateDict:
    """`dict` in templates, without its other attributes, as in transformers."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """dict.fromkeys."""
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(Namespace):
    """`namespace` in templates; it rejects names with a leading underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` may be the name of an attribute.
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            TemplateNamespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        TemplateNamespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


class _Formatter(SandboxedFormatter):
    """`str.format` that charges each field."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_widths(meter(), format_spec)
        meter().value(value)
        text = super().format_field(value, format_spec)
        meter().text(len(text))
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            meter().value(value)
        return super().convert_field(value, conversion)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, with every operation charged."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(
        self,
        extensions: Sequence[type[jinja2.ext.Extension]] = (),
        filters: Mapping[str, Callable[..., Any]] | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ):
        """Adds `extensions`, `filters` and global `functions` to Jinja's own."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_charge_printed,
            extensions=[*extensions, jinja2.ext.loopcontrols],
        )
        self.filters.update(filters or {})
        for name, function in list(self.filters.items()):
            self.filters[name] = metered_function(name, function)
        for name in ("eq", "==", "equalto", "ne", "!=", "in", "lt", "<", "lessthan", "le", "<=", "gt", ">", "ge", ">=",
                     "greaterthan"):  # fmt: skip
            self.tests[name] = metered_function(name, cast("Callable[..., Any]", self.tests[name]))
        self.filters.update(_HOOKS)
        self.globals |= {
            "range": _range,
            "lipsum": _no_lipsum,
            "dict": TemplateDict(),
            "namespace": TemplateNamespace,
            **(functions or {}),
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            meter().value(argument)  # as a key it is hashed as a whole
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operation(meter(), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        current = meter()
        current.step(4)
        if isinstance(__obj, Macro | LoopContext):
            # Arguments are references, but a tuple may be used as a key, and hashing visits all of it.
            for each in args:
                if isinstance(each, tuple):
                    current.value(each)
        else:
            check_call(current, __obj, args, {key: each for key, each in kwargs.items() if key not in _HIDDEN})
        if current.depth >= MAX_NESTED_CALLS:
            raise current.fail(f"macros or recursive loops nested deeper than {MAX_NESTED_CALLS}")
        current.depth += 1
        try:
            return current.result(super().call(__context, __obj, *args, **kwargs))
        finally:
            current.depth -= 1

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text: str = value.__self__
        takes_map = value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if takes_map:
                return type(text)(_Formatter(self).vformat(text, (), args[0]))
            return type(text)(_Formatter(self).vformat(text, args, kwargs))

        return formatted


_HIDDEN = ("_loop_vars", "_block_vars", "caller")
"""Keyword arguments that Jinja adds to calls."""


def metered_function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter or test so that its cost and its result are charged; Jinja does not evaluate it at compile time."""
    first_argument = _PassArg.from_obj(function)

    @pass_context
    def charged(context: Context, *args: Any, **kwargs: Any) -> Any:
        current = meter()
        current.step()
        check_filter(current, name, args, kwargs)
        if name == "join" and args and isinstance(args[0], Iterator):
            args = (list(args[0]), *args[1:])  # separators are charged by the number of items
            check_filter(current, name, args, kwargs)
        lead: tuple[Any, ...] = ()
        if first_argument is _PassArg.context:
            lead = (context,)
        elif first_argument is _PassArg.eval_context:
            lead = (context.eval_ctx,)
        elif first_argument is _PassArg.environment:
            lead = (context.environment,)
        return current.result(function(*lead, *args, **kwargs))

    return charged


def _range(*args: int) -> range:
    numbers = range(*args)
    if numbers and (numbers[-1] - numbers[0]) // numbers.step >= MAX_RANGE:
        raise meter().fail(f"a range of more than {MAX_RANGE:,} numbers")
    return numbers


def _no_lipsum(*args: Any, **kwargs: Any) -> str:
    raise meter().fail("lipsum is not available in chat templates")
