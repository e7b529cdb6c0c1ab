"""Generated pictures of one to four shapes, with questions: what colour or shape, how many, where, and whether.

As in `shapes`, some pairs of colour and shape never occur in the training pictures. Every picture of the set with new
pairs has at least one, and its questions are about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from quatrain.data.pictures import Picture, PictureSet, Question
from quatrain.data.pictures.shapes import COLOURS, PAIRS, SIDE, UNSEEN, blank, finished, shape_on

TRAIN, HELD = 8_000, 300
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("none", "one", "two", "three", "four")
RADIUS = (5.0, 6.5)
"""Half the width of a shape in pixels, from and to."""

Shape = tuple[str, str]
"""A colour and a shape."""


def load(seed: int = 0) -> PictureSet:
    """8,000 pictures of 48 pairs, and 300 each with these pairs alone and with the 16 that are never learned."""
    seen = [pair for pair in PAIRS if pair not in UNSEEN]
    train = [draw_scene((seed, 3, number), seen) for number in range(TRAIN)]
    known = [draw_scene((seed, 4, number), seen) for number in range(HELD)]
    new = [draw_scene((seed, 5, number), seen, sorted(UNSEEN)) for number in range(HELD)]
    return PictureSet(train, {"combinations never seen": new, "combinations seen": known})


def named(colour: str, shape: str) -> str:
    """A shape with its article."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def draw_scene(seed: tuple[int, ...], pairs: Sequence[Shape], new: Sequence[Shape] = ()) -> Picture:
    """A picture with shapes of these pairs, one of them of `new` if there are any; everything follows from `seed`."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, len(PLACES) + 1))
    places = draw.permutation(len(PLACES))[:count].tolist()
    chosen = [pairs[int(draw.integers(len(pairs)))] for _ in places]
    if new:
        chosen[0] = new[int(draw.integers(len(new)))]
    canvas = blank(int(draw.integers(70, 200)))
    for place, (colour, shape) in zip(places, chosen, strict=True):
        radius, half = draw.uniform(*RADIUS), SIDE / 4
        middle = [half + side * SIDE / 2 + draw.uniform(-1, 1) * (half - radius - 0.5) for side in divmod(place, 2)]
        shape_on(canvas, draw, shape, COLOURS[colour], (middle[1], middle[0]), radius)
    scene = {PLACES[place]: pair for place, pair in zip(places, chosen, strict=True)}
    questions = list(_questions(draw, scene, pairs, about=chosen[0] if new else None))
    order = draw.permutation(len(questions)).tolist()
    caption = ", ".join(f"{place} {named(colour, shape)}" for place, (colour, shape) in sorted(scene.items()))
    return Picture(
        finished(draw, canvas), chosen[0][1], caption, (), tuple(questions[number] for number in order),
        place=f"scenes:{seed[-1]}",
    )  # fmt: skip


def _questions(
    draw: np.random.Generator, scene: dict[str, Shape], pairs: Sequence[Shape], about: Shape | None
) -> Iterator[Question]:
    """A question of each kind that the scene allows, about the pair `about` where that is given."""
    pairs_there = list(scene.values())
    colours, shapes = ([pair[part] for pair in pairs_there] for part in (0, 1))

    def one(allowed: list[tuple[str, Shape]]) -> tuple[str, Shape] | None:
        allowed = [each for each in allowed if about is None or each[1] == about]
        return allowed[int(draw.integers(len(allowed)))] if allowed else None

    if found := one([each for each in scene.items() if shapes.count(each[1][1]) == 1]):
        yield Question(f"what colour is the {found[1][1]}?", found[1][0], "colour")
    if found := one([each for each in scene.items() if colours.count(each[1][0]) == 1]):
        yield Question(f"what shape is the {found[1][0]} one?", found[1][1], "shape")
    if found := one([each for each in scene.items() if pairs_there.count(each[1]) == 1]):
        place, (colour, shape) = found
        yield Question(f"where is the {colour} {shape}?", place, "position")
    yield Question("how many shapes are there?", NUMBERS[len(scene)], "count")
    colour = about[0] if about is not None else str(draw.choice([*colours, *COLOURS]))
    yield Question(f"how many {colour} shapes are there?", NUMBERS[colours.count(colour)], "count")
    there = about if about is not None else pairs_there[int(draw.integers(len(pairs_there)))]
    yield Question(f"is there {named(*there)}?", "yes", "yes or no")
    if about is None:
        absent = [pair for pair in pairs if pair not in pairs_there and (pair[0] in colours or pair[1] in shapes)]
    else:  # Words of both are in the picture, or one of them.
        absent = [pair for pair in PAIRS if pair not in pairs_there and (pair[0] == about[0]) != (pair[1] == about[1])]
    missing = absent[int(draw.integers(len(absent)))]
    yield Question(f"is there {named(*missing)}?", "no", "yes or no")
