"""PEFT's rules for which layers `target_modules`, `rank_pattern` and related options select.

The patterns are untrusted, and a regular expression can take exponential time. One that could is matched in a separate
process with a time limit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value

SECONDS = 10
"""Time limit for all patterns of an adapter."""
LONGEST = 200_000
"""Most characters of one pattern."""
ALL_LINEAR = "all-linear"

Expression = tuple[str, bool]
"""A regular expression, and whether it must match the whole path or only its start."""

_CHILD = """
import json, re, sys
expressions, paths = json.load(sys.stdin)
result = []
for pattern, whole in expressions:
    match = getattr(re.compile(pattern), "fullmatch" if whole else "match")
    each = {path: match(path) for path in paths}
    result.append({path: m.groupdict().get("idx") or "" for path, m in each.items() if m})
json.dump(result, sys.stdout)
"""


def expressions(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The regular expressions of a configuration, each with its key, as PEFT builds them."""
    for key in ("target_modules", "exclude_modules"):
        value = config.get(key)
        if isinstance(value, str) and value.lower() != ALL_LINEAR:
            yield key, value
    for key in ("rank_pattern", "alpha_pattern"):
        yield from ((key, _suffix_expression(pattern)) for pattern in config.get(key) or {})
    yield from (("modules_to_save", _module_expression(name)) for name in config.get("modules_to_save") or ())
    yield from (("layers_pattern", _layer_expression(pattern)) for pattern in _as_list(config.get("layers_pattern")))


def fault(pattern: str) -> str | None:
    """Why a text cannot be used as a regular expression; None if it can."""
    if len(pattern) > LONGEST:
        return f"{len(pattern):,} characters; must be at most {LONGEST:,}"
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        return str(error)
    return None


def first_matching(patterns: Mapping[str, Any] | None, paths: Sequence[str], default: Any) -> dict[str, Any]:
    """For each path the value of the first pattern that matches its end, else `default`."""
    patterns = patterns or {}
    matches = _matches([(_suffix_expression(pattern), False) for pattern in patterns], paths)
    return {
        path: next((value for value, matched in zip(patterns.values(), matches, strict=True) if path in matched),
                   patterns.get(path, default))
        for path in paths
    }  # fmt: skip


def targeted(config: Mapping[str, Any], paths: Sequence[str]) -> set[str] | None:
    """The paths that a configuration selects, by PEFT's rules; None if it leaves the choice to the family.

    Raises InputError for patterns that take too long.
    """
    targets = config.get("target_modules")
    if targets is None:
        return None
    excluded = config.get("exclude_modules") or ()
    out = (
        _with_endings(excluded, paths) if not isinstance(excluded, str) else set(_matches([(excluded, True)], paths)[0])
    )
    for saved in _matches([(_module_expression(name), False) for name in config.get("modules_to_save") or ()], paths):
        out |= set(saved)
    candidates = [path for path in paths if path not in out]
    if isinstance(targets, str):
        return set(candidates) if targets.lower() == ALL_LINEAR else set(_matches([(targets, True)], candidates)[0])
    exact = {path for path in candidates if path in set(targets)}
    return exact | _of_layers(config, _with_endings(targets, candidates) - exact)


def _of_layers(config: Mapping[str, Any], paths: set[str]) -> set[str]:
    """The paths in the layers of `layers_to_transform`."""
    selected = config.get("layers_to_transform")
    if selected is None or selected == []:
        return paths
    numbers = {selected} if isinstance(selected, int) else set(selected)
    patterns = _as_list(config.get("layers_pattern"))
    tried = [(_layer_expression(pattern), False) for pattern in patterns] or [(r".*?\.[^.]*\.(?P<idx>\d+)\.", False)]
    matches = _matches(tried, sorted(paths))
    first = {path: next((each[path] for each in matches if path in each), "") for path in paths}
    return {path for path, number in first.items() if number and int(number) in numbers}


def _with_endings(names: Iterable[str], paths: Sequence[str]) -> set[str]:
    """The paths that are one of these names, or end with a dot and one."""
    known = set(names)
    ends = ((path, (path[place + 1 :] for place, letter in enumerate(path) if letter == ".")) for path in paths)
    return {path for path, parts in ends if path in known or any(part in known for part in parts)}


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _suffix_expression(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _module_expression(name: str) -> str:
    return rf"(^|.*\.){name}($|\..*)"


def _layer_expression(pattern: str) -> str:
    return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."


def _matches(expressions: Sequence[Expression], paths: Sequence[str]) -> list[dict[str, str]]:
    """For each expression the paths that it matches, with the text of its group `idx`."""
    if not any(_may_be_slow(pattern) for pattern, _ in expressions):
        matches = []
        for pattern, whole in expressions:
            compiled = re.compile(pattern)
            each = ((path, compiled.fullmatch(path) if whole else compiled.match(path)) for path in paths)
            matches.append({path: (match.groupdict().get("idx") or "") for path, match in each if match})
        return matches
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", "-c", _CHILD],
            input=json.dumps([expressions, paths]), capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        slow = [format_value(pattern) for pattern, _ in expressions if _may_be_slow(pattern)]
        raise InputError(
            f"The patterns of adapter_config.json are not matched within {SECONDS} seconds; write them without "
            "repetitions within each other, or name the layers in full:",
            slow[:5],
        ) from error
    answer: list[dict[str, str]] = json.loads(child.stdout)
    return answer


def _may_be_slow(pattern: str) -> bool:
    """Whether a pattern repeats a group, refers back, or has more than three repetitions of any length."""
    return bool(re.search(r"\)[*+{]|\(\?P=|\\[1-9]", pattern)) or len(re.findall(r"[*+{]", pattern)) > 4
