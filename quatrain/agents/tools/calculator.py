"""The calculator: arithmetic on numbers, exact where the result is a whole number or a fraction of few digits."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from quatrain.agents.tool import Tool, ToolError, tool
from quatrain.agents.toolbox import ToolSpec

MAX_LENGTH = 500
"""Characters of an expression."""
MAX_BITS = 4096
"""Bits of a whole number."""
DIGITS = 12
"""Significant digits of a result that is no whole number."""

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("sqrt", "exp", "sin", "cos", "tan", "floor", "ceil", "log10", "log2")},
    **{"log": math.log, "ln": math.log, "abs": abs, "round": round, "min": min, "max": max},
}
_CONSTANTS = {"pi": math.pi, "e": math.e}


def evaluated(expression: str) -> str:
    """The value of an expression: + - * / // % ** ( ), numbers, pi, e and functions such as sqrt and round.

    Raises ToolError that says what cannot be computed.
    """
    text = expression.strip().rstrip("=").replace("×", "*").replace("÷", "/").replace("−", "-").replace("^", "**")
    if not text or len(text) > MAX_LENGTH:
        raise ToolError(f"expression: {len(text)} characters; must be between 1 and {MAX_LENGTH}")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except SyntaxError:
        raise ToolError(f"expression: {expression!r} is not arithmetic; write for example (12 + 7.5) * 3") from None
    except ZeroDivisionError:
        raise ToolError("expression: division by zero") from None
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise ToolError(f"expression: {error}") from None
    return number(value)


def number(value: float) -> str:
    """A number as text: whole ones without a point, others with at most 12 significant digits."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise ToolError("expression: the result is too large")
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.{DIGITS}g}"


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left), _value(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(_BINARY[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None:
            return _bounded(function(*map(_value, node.args)))
    raise ToolError(f"expression: {ast.unparse(node)!r} is not allowed; numbers, + - * / // % **, {_names()}")


def _names() -> str:
    return ", ".join([*_FUNCTIONS, *_CONSTANTS])


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * base.bit_length() > MAX_BITS:
        raise ToolError(f"expression: {base} ** {exponent} is too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ToolError(f"expression: {base} ** {exponent} is no real number")
    return _bounded(value)


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ToolError("expression: a number is too large")
    return value


@tool
def calculator(expression: str) -> str:
    """Compute an arithmetic expression such as (12 + 7.5) * 3.

    expression: numbers with + - * / ** and brackets, functions such as sqrt and round
    """
    return evaluated(expression)


def build(value: str, stack: ExitStack) -> list[Tool]:
    """The calculator."""
    return [calculator]


SPEC = ToolSpec("calculator", build, "arithmetic")
