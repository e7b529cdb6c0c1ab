"""Runs untrusted chat templates with limits on time, memory and output.

Jinja's own sandbox protects Python's internals, but allows an endless loop or a text of 10 GB. This one meters the
work. The syntax tree is rewritten before compilation so that each loop iteration, literal and comparison is charged;
calls, filters and operators are charged before they run, by an upper bound on their result. Nothing depends on signals,
tracing or threads: each rendering has its own `Meter` in a context variable, and threads share compiled templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, _PassArg, pass_context
from jinja2.visitor import NodeTransformer

from quatrain.tokenizers.metering import (
    MAX_NESTED_CALLS,
    check_call,
    check_filter,
    check_operation,
    check_widths,
    meter,
)

# Filters that the rewritten syntax tree calls, with names that no template can contain. `pass_context` keeps Jinja
# from evaluating them, and their arguments, at compile time.


@pass_context
def _turn(context: Context, count: int) -> bool:
    meter().step(count)
    return True


@pass_context
def _static(context: Context, length: int) -> None:
    meter().text(length)


@pass_context
def _looked_at(context: Context, value: Any) -> Any:
    if isinstance(value, str):
        meter().step(1 + (len(value) >> 10))
    elif value is not None and not isinstance(value, bool | int | float | Undefined):
        meter().value(value)
    return value


@pass_context
def _searched(context: Context, value: Any) -> Any:
    return value if isinstance(value, Mapping | range) else _looked_at(context, value)


@pass_context
def _printed(context: Context, value: Any) -> Any:
    meter().value(value)
    return value


@pass_context
def _sliced(context: Context, value: Any) -> Any:
    return meter().made(value)


_HOOKS: dict[str, Callable[..., Any]] = {
    "turn ": _turn,
    "static ": _static,
    "looked at ": _looked_at,
    "searched ": _searched,
    "printed ": _printed,
    "sliced ": _sliced,
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
        turn = _hook("turn ", nodes.Const(1, lineno=line))
        node.body.insert(0, nodes.ExprStmt(turn, lineno=line))
        if node.test is not None:
            node.test = nodes.And(_hook("turn ", nodes.Const(1, lineno=line)), node.test, lineno=line)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node | list[nodes.Node]:
        self.generic_visit(node)
        length = sum(len(each.data) for each in node.nodes if isinstance(each, nodes.TemplateData))
        if not length:
            return node
        line = node.lineno or 1
        return [nodes.ExprStmt(_hook("static ", nodes.Const(length, lineno=line)), lineno=line), node]

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        operands = [node.expr, *(each.expr for each in node.ops)]
        # Comparing a text or a number with anything else returns at once.
        simple = any(isinstance(each, nodes.Const) for each in operands) and len(node.ops) == 1
        for each in node.ops:
            if not _plain(each.expr) and (not simple or each.op in ("in", "notin")):
                each.expr = _hook("searched " if each.op in ("in", "notin") else "looked at ", each.expr)
        if not simple:
            node.expr = _hook("looked at ", node.expr)
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
            trim_blocks=True, lstrip_blocks=True, finalize=_printed, extensions=[*extensions, jinja2.ext.loopcontrols]
        )
        self.filters.update(filters or {})
        for name, function in list(self.filters.items()):
            self.filters[name] = paying(name, function)
        for name in ("eq", "==", "equalto", "ne", "!=", "in", "lt", "<", "lessthan", "le", "<=", "gt", ">", "ge", ">=",
                     "greaterthan"):  # fmt: skip
            self.tests[name] = paying(name, cast("Callable[..., Any]", self.tests[name]))
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
        own = meter()
        own.step(4)
        if isinstance(__obj, Macro | LoopContext):
            # Arguments are references, but a tuple may be used as a key, and hashing visits all of it.
            for each in args:
                if isinstance(each, tuple):
                    own.value(each)
        else:
            check_call(own, __obj, args, {key: each for key, each in kwargs.items() if key not in _HIDDEN})
        if own.depth >= MAX_NESTED_CALLS:
            raise own.fail(f"macros or recursive loops nested deeper than {MAX_NESTED_CALLS}")
        own.depth += 1
        try:
            return own.made(super().call(__context, __obj, *args, **kwargs))
        finally:
            own.depth -= 1

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


def paying(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter or test so that its cost and its result are charged; Jinja does not evaluate it at compile time."""
    wanted = _PassArg.from_obj(function)

    @pass_context
    def paid(context: Context, *args: Any, **kwargs: Any) -> Any:
        own = meter()
        own.step()
        check_filter(own, name, args, kwargs)
        if name == "join" and args and isinstance(args[0], Iterator):
            args = (list(args[0]), *args[1:])  # separators are charged by the number of items
            check_filter(own, name, args, kwargs)
        lead: tuple[Any, ...] = ()
        if wanted is _PassArg.context:
            lead = (context,)
        elif wanted is _PassArg.eval_context:
            lead = (context.eval_ctx,)
        elif wanted is _PassArg.environment:
            lead = (context.environment,)
        return own.made(function(*lead, *args, **kwargs))

    return paid


def _range(*args: int) -> range:
    found = range(*args)
    if found and (found[-1] - found[0]) // found.step >= MAX_RANGE:
        raise meter().fail(f"a range of more than {MAX_RANGE:,} numbers")
    return found


def _no_lipsum(*args: Any, **kwargs: Any) -> str:
    raise meter().fail("lipsum makes random text without end, and no chat template needs it")
