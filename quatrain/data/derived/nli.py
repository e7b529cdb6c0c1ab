"""Does a sentence follow from a caption? Captions that people wrote, with hypotheses by rule.

- **entailment**: parts of the caption left out, a word made more general (a dog is an animal), a colour dropped;
- **contradiction**: a person, place, action, colour or number exchanged for another that excludes it, or denied;
- **neutral**: something added that the caption does not say (a purpose, a time, a relation).

Hypotheses by rule are simpler than those that people write (SNLI, Bowman et al. 2015): a score on them is a lesson in
the task, not a measure of understanding.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quatrain.data.decoding import lines_of, read_text

BROADER = {
    "man": "person", "woman": "person", "boy": "child", "girl": "child", "men": "people", "women": "people",
    "boys": "children", "girls": "children", "dog": "animal", "dogs": "animals", "cat": "animal", "horse": "animal",
    "horses": "animals", "guitar": "instrument", "bicycle": "vehicle", "bike": "vehicle", "car": "vehicle",
    "motorcycle": "vehicle", "truck": "vehicle", "shirt": "garment", "jacket": "garment", "hat": "garment",
    "soccer": "sport", "football": "sport", "basketball": "sport", "baseball": "sport", "tennis": "sport",
}  # fmt: skip
EXCLUDES = {
    "man": "woman", "woman": "man", "boy": "girl", "girl": "boy", "men": "women", "women": "men", "boys": "girls",
    "girls": "boys", "dog": "cat", "dogs": "cats", "standing": "lying", "sitting": "standing", "walking": "sleeping",
    "running": "sitting", "playing": "sleeping", "young": "old", "old": "young", "outside": "inside",
    "inside": "outside", "outdoors": "indoors", "indoors": "outdoors", "street": "kitchen", "beach": "office",
    "water": "desert", "snow": "sand", "grass": "ice", "red": "green", "blue": "yellow", "green": "red",
    "yellow": "blue", "black": "white", "white": "black", "orange": "purple", "two": "five", "three": "six",
    "soccer": "chess", "football": "chess", "basketball": "chess", "guitar": "piano", "bicycle": "horse",
    "horse": "bicycle", "day": "night", "night": "day", "small": "huge", "large": "tiny", "smiling": "crying",
}  # fmt: skip
EXTRA = (
    "for the first time", "after work", "with an old friend", "to win a prize", "before the rain", "on a Monday",
    "because of a bet", "near the place where they were born", "for a television show", "to celebrate a birthday",
    "while waiting for a brother", "as every year",
)  # fmt: skip
COLOURS = {"red", "blue", "green", "yellow", "black", "white", "orange", "brown", "pink", "purple", "gray", "grey"}
_PLACE = re.compile(r"\s+(?:in|on|at|near|by|with|while|through|along|behind|over|under|next|during)\b.*$")
_WORD = re.compile(r"[A-Za-z]+|[^A-Za-z]+")


def rows(paths: Sequence[Path], part: str) -> Iterator[dict[str, Any]]:
    """{"premise", "hypothesis", "label"}; `part` is unused: training and test have captions of their own."""
    captions = [line.strip() for path in paths for line in lines_of(read_text(path)) if len(line.split()) >= 5]
    for number, caption in enumerate(captions):
        draw = random.Random(f"{number} {caption}")
        for label in ("entailment", "contradiction", "neutral"):
            hypothesis = _hypothesis(caption, label, draw)
            if hypothesis is not None and hypothesis != caption:
                yield {"premise": caption, "hypothesis": hypothesis, "label": label}


def _hypothesis(caption: str, label: str, draw: random.Random) -> str | None:
    """A hypothesis of this label, or None where no rule fits the caption."""
    body = caption.rstrip(" .")
    shortened = _PLACE.sub("", body) if draw.random() < 0.5 else body
    short = shortened if len(shortened.split()) >= 3 else body
    if label == "neutral":
        base = _exchanged(short, BROADER, draw) if draw.random() < 0.5 else short
        return f"{base or short} {draw.choice(EXTRA)}."
    if label == "contradiction":
        if draw.random() < 0.15 and re.search(r"\bis\b", short):
            return re.sub(r"\bis\b", "is not", short, count=1) + "."
        changed = _exchanged(short, EXCLUDES, draw) or _exchanged(body, EXCLUDES, draw)
        return None if changed is None else f"{changed}."
    broader = _exchanged(short, BROADER, draw) if draw.random() < 0.7 else None
    plain = _without_colour(broader or short) if draw.random() < 0.5 else broader or short
    if plain == body:
        plain = _exchanged(body, BROADER, draw) or _without_colour(body)
    if plain == body:
        return None
    return f"{plain}."


def _exchanged(text: str, table: dict[str, str], draw: random.Random) -> str | None:
    """The text with one word of the table exchanged; None where it has none."""
    words = _WORD.findall(text)
    places = [place for place, word in enumerate(words) if word.lower() in table]
    if not places:
        return None
    place = draw.choice(places)
    new = table[words[place].lower()]
    words[place] = new.capitalize() if words[place][0].isupper() else new
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", "".join(words))


def _without_colour(text: str) -> str:
    words = [word for word in text.split() if word.lower().strip(",") not in COLOURS]
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", " ".join(words))
