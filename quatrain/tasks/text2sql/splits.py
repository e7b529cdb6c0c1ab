"""Which combinations of tables and columns are held out.

Combinations whose SQL differs only in values and directions are closed together, so that no other shape shows what a
held-out combination looks like; and one is closed only while each of its parts (the shape, every column in its use,
every join) stays in open ones.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping

from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.schema import Schema
from quatrain.tasks.text2sql.shapes import Combination, Shape
from quatrain.tasks.text2sql.values import skeleton

#: At most this many combinations of a shape take part; wide schemas have many thousands.
MOST = 250


def usable_combinations(
    shapes: Mapping[str, Shape], schema: Schema, draw: Draw
) -> tuple[dict[str, list[Combination]], dict[tuple[str, ...], str], list[str]]:
    """The combinations of every shape that can be filled, the skeleton of each, and the shapes without any."""
    usable: dict[str, list[Combination]] = {}
    skeletons: dict[tuple[str, ...], str] = {}
    unfit = []
    for name, shape in shapes.items():
        everything = list(shape.combinations(schema))
        if len(everything) > MOST:
            everything = draw.rng.sample(everything, MOST)
        fitting = []
        for combination in everything:
            for _ in range(12):
                filled = shape.fill(combination, draw)
                if filled is not None:
                    skeletons[identify(combination)] = skeleton(filled.sql)
                    fitting.append(combination)
                    break
        if fitting:
            usable[name] = fitting
        else:
            unfit.append(name)
    return usable, skeletons, unfit


def identify(combination: Combination) -> tuple[str, ...]:
    """A key for the combination: shape, tables, columns."""
    return (combination.shape, *combination.tables, "|", *combination.columns)


def split(
    found: Mapping[str, list[Combination]], skeletons: Mapping[tuple[str, ...], str], rng: random.Random, share: float
) -> tuple[dict[str, list[Combination]], dict[str, list[Combination]]]:
    """Divide the combinations of every shape into open and closed ones."""
    groups: dict[str, list[Combination]] = defaultdict(list)
    counts: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for name, combinations in found.items():
        left[name] = len(combinations)
        for combination in combinations:
            groups[skeletons[identify(combination)]].append(combination)
            counts.update(set(combination.parts))
    closed_skeletons: set[str] = set()
    closed_count: Counter[str] = Counter()
    for name, combinations in found.items():
        total = len(combinations)
        target = min(round(total * share), 20) or (1 if total >= 4 else 0)
        for combination in rng.sample(combinations, total):
            if closed_count[name] >= target:
                break
            key = skeletons[identify(combination)]
            if key in closed_skeletons:
                continue
            group = groups[key]
            taken = Counter(part for member in group for part in set(member.parts))
            by_shape = Counter(member.shape for member in group)
            enough = all(counts[part] - number >= 2 for part, number in taken.items())
            if enough and all(left[shape] - number >= 3 for shape, number in by_shape.items()):
                closed_skeletons.add(key)
                counts.subtract(taken)
                left.subtract(by_shape)
                closed_count.update(by_shape)
    opened: dict[str, list[Combination]] = {}
    closed: dict[str, list[Combination]] = {}
    for name, combinations in found.items():
        for combination in combinations:
            side = closed if skeletons[identify(combination)] in closed_skeletons else opened
            side.setdefault(name, []).append(combination)
    return opened, closed
