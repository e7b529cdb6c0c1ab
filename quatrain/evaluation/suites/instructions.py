"""Instructions whose following a program can verify: lengths, letters, words, forms.

After IFEval (Zhou et al. 2023, arXiv 2311.07911), with checks and prompts of our own; files in IFEval's form are read
as far as their instructions are known. Strictly, the whole answer is checked; loosely, also without its first or last
line and without asterisks, since a model may put "Sure, here it is:" before a right answer.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.suite import Baseline, Output, WritingSuite, by_group

Check = Callable[..., bool]
OWN = "built in"
PROMPTS = 120
"""Prompts of the built-in set."""


@dataclass(frozen=True)
class Constraint:
    """A check, how it is asked for, and values for the built-in prompts."""

    check: Check
    wording: str
    values: tuple[Mapping[str, Any], ...]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _compare(count: int, relation: str, wanted: int) -> bool:
    return count >= wanted if relation == "at least" else count < wanted if relation == "less than" else count == wanted


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n|\s*\*\*\*\s*", text.strip()) if part.strip()]


def _is_json(text: str) -> bool:
    plain = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(plain)
    except ValueError:
        return False
    return True


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part])


CONSTRAINTS: dict[str, Constraint] = {
    "length_constraints:number_words": Constraint(
        lambda text, relation, num_words: _compare(len(_words(text)), relation, num_words),
        "Answer with {relation} {num_words} words.",
        ({"relation": "at least", "num_words": 30}, {"relation": "less than", "num_words": 20})),
    "length_constraints:number_sentences": Constraint(
        lambda text, relation, num_sentences: _compare(_sentences(text), relation, num_sentences),
        "Your answer must have {relation} {num_sentences} sentences.",
        ({"relation": "at least", "num_sentences": 3}, {"relation": "less than", "num_sentences": 4})),
    "length_constraints:number_paragraphs": Constraint(
        lambda text, num_paragraphs: len(_paragraphs(text)) == num_paragraphs,
        "Write exactly {num_paragraphs} paragraphs, with an empty line between them.",
        ({"num_paragraphs": 2}, {"num_paragraphs": 3})),
    "keywords:existence": Constraint(
        lambda text, keywords: all(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in keywords),
        "Use the words: {keywords}.",
        ({"keywords": ["water", "green"]}, {"keywords": ["always", "light"]})),
    "keywords:forbidden_words": Constraint(
        lambda text, forbidden_words: not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
                                              for word in forbidden_words),
        "Do not use the words: {forbidden_words}.",
        ({"forbidden_words": ["the", "and"]}, {"forbidden_words": ["is", "very"]})),
    "keywords:frequency": Constraint(
        lambda text, keyword, frequency, relation: _compare(
            len(re.findall(rf"\b{re.escape(keyword)}\b", text, re.IGNORECASE)), relation, frequency),
        "The word {keyword} must occur {relation} {frequency} times.",
        ({"keyword": "good", "frequency": 2, "relation": "at least"},)),
    "keywords:letter_frequency": Constraint(
        lambda text, letter, let_frequency, let_relation: _compare(
            text.lower().count(letter.lower()), let_relation, let_frequency),
        "The letter {letter} must occur {let_relation} {let_frequency} times.",
        ({"letter": "q", "let_frequency": 1, "let_relation": "less than"},
         {"letter": "k", "let_frequency": 3, "let_relation": "at least"})),
    "detectable_format:number_bullet_lists": Constraint(
        lambda text, num_bullets: len(re.findall(r"^\s*[*\-•]\s+\S", text, re.MULTILINE)) == num_bullets,
        "Write exactly {num_bullets} bullet points, each a line that begins with *.",
        ({"num_bullets": 2}, {"num_bullets": 4})),
    "detectable_format:title": Constraint(
        lambda text: any(found.strip() for found in re.findall(r"<<([^\n]+)>>", text)),
        "Give a title in double angular brackets, such as <<title>>.", ({},)),
    "detectable_format:json_format": Constraint(_is_json, "The whole answer must be JSON.", ({},)),
    "detectable_format:number_highlighted_sections": Constraint(
        lambda text, num_highlights: len(re.findall(r"\*[^\n*]+\*", text)) >= num_highlights,
        "Highlight at least {num_highlights} parts with asterisks, such as *this*.", ({"num_highlights": 2},)),
    "change_case:english_lowercase": Constraint(
        lambda text: bool(text.strip()) and text == text.lower(), "Write in lower case letters alone.", ({},)),
    "change_case:english_capital": Constraint(
        lambda text: any(map(str.isalpha, text)) and text == text.upper(), "Write in capital letters alone.", ({},)),
    "punctuation:no_comma": Constraint(lambda text: "," not in text, "Do not use commas.", ({},)),
    "startend:end_checker": Constraint(
        lambda text, end_phrase: text.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
        'End with the words "{end_phrase}", and nothing after them.', ({"end_phrase": "That is all."},)),
    "startend:quotation": Constraint(
        lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
        "Put the whole answer in double quotation marks.", ({},)),
    "detectable_content:postscript": Constraint(
        lambda text, postscript_marker: bool(re.search(rf"{re.escape(postscript_marker)}\s*\S", text)),
        "Add a postscript that begins with {postscript_marker}", ({"postscript_marker": "P.S."},)),
}  # fmt: skip
"""The checks by IFEval's names of instructions."""

TOPICS = ("Describe a walk in the rain.", "Explain why the sky is blue.", "Recommend a way to learn a language.",
          "Tell a short story about a dog.", "Name the advantages of bicycles.", "Describe your favourite season.",
          "Explain how bread is made.", "Write about a day at the sea.", "Give advice to a new student.",
          "Describe a market in a small town.", "Explain what a computer does.",
          "Write about an old friend.")  # fmt: skip


class Instructions(WritingSuite):
    """The share of prompts, and of single instructions, that are followed."""

    name = "instructions"
    title = "following instructions that a program verifies"
    paper = "after Zhou et al. 2023, arXiv 2311.07911"
    data = OWN
    columns = "IFEval's columns prompt, instruction_id_list and kwargs"
    default_new_tokens = 200
    stop = ("\n\n\n",)

    def rows_of(self, source: str, limit: int | None = None) -> list[Row]:
        if source != OWN:
            return super().rows_of(source, limit)
        return [Row(f"{OWN} {number}", self.parse(row)) for number, row in enumerate(built_in(self.seed)[:limit], 1)]

    def sources(self) -> list[str]:
        return [] if self.source == OWN else super().sources()

    def parse(self, value: Mapping[str, Any]) -> dict[str, Any]:
        names, options = list(value["instruction_id_list"]), list(value["kwargs"])
        unknown = sorted(set(names) - CONSTRAINTS.keys())
        if unknown:
            raise ValueError(f"unknown instructions {', '.join(unknown)}; known are {', '.join(CONSTRAINTS)}")
        if len(names) != len(options) or not names:
            raise ValueError("instruction_id_list and kwargs must have one entry for each instruction")
        own = [{name: each for name, each in (given or {}).items() if each is not None} for given in options]
        return {"prompt": str(value["prompt"]), "names": names, "options": own}

    def prompt_text(self, row: Row) -> str:
        return str(row.value["prompt"])

    def question(self, example: Row) -> str:
        return str(example.value["prompt"])

    def reference(self, example: Row) -> str:
        return ", ".join(example.value["names"])

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        strict = [followed(row, output["text"]) for row, output in zip(rows, outputs, strict=True)]
        loose = [loosely_followed(row, output["text"]) for row, output in zip(rows, outputs, strict=True)]

        def over(checks: Sequence[Sequence[bool]]) -> tuple[list[float], list[float], list[int]]:
            return ([float(all(own)) for own in checks], [sum(own) / len(own) for own in checks], [*map(len, checks)])

        prompts, shares, counts = over(strict)
        loose_prompts, loose_shares, _ = over(loose)
        return [
            mean_of("prompt_strict", prompts, "The share of answers that follow every instruction of their prompt."),
            mean_of("instruction_strict", shares, "The share of instructions that are followed.", weights=counts),
            mean_of("prompt_loose", loose_prompts, "Also without the first or the last line, or asterisks."),
            mean_of("instruction_loose", loose_shares, "The share of instructions, loosely.", weights=counts),
        ]

    def details(self, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
        names: list[str] = []
        values: list[float] = []
        for row, output in zip(rows, outputs, strict=True):
            names += row.value["names"]
            values += map(float, followed(row, output["text"]))
        return {"by_group": by_group(names, values)}

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        return [
            Baseline("the prompt, repeated", [{"text": self.question(row)} for row in rows]),
            Baseline('always "yes"', [{"text": "yes"}] * len(rows)),
        ]

    def correct(self, row: Row, output: Output) -> bool | None:
        return all(followed(row, output["text"]))


def followed(row: Row, text: str) -> list[bool]:
    """Whether each instruction is followed; an empty answer follows none."""
    pairs = zip(row.value["names"], row.value["options"], strict=True)
    return [bool(text.strip()) and bool(CONSTRAINTS[name].check(text, **options)) for name, options in pairs]


def loosely_followed(row: Row, text: str) -> list[bool]:
    """Whether each instruction is followed by the text or by one of its loose forms."""
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    forms = [each.strip() for form in cut for each in (form, form.replace("*", ""))]
    return [any(checks) for checks in zip(*(followed(row, form) for form in forms), strict=True)]


def built_in(seed: int, count: int = PROMPTS) -> list[dict[str, Any]]:
    """Prompts of our own: a topic with one to three instructions."""
    draw = random.Random(seed)
    names = list(CONSTRAINTS)
    rows = []
    for number in range(count):
        # Every instruction occurs about equally often; a prompt has at most one of a kind, so that none contradict.
        chosen = [names[number % len(names)]]
        for name in draw.sample(names, len(names)):
            if len(chosen) < 1 + number % 3 and name.split(":")[0] not in {each.split(":")[0] for each in chosen}:
                chosen.append(name)
        if any("json" in name for name in chosen):
            chosen = [name for name in chosen if "json" in name]
        options = [dict(draw.choice(CONSTRAINTS[name].values)) for name in chosen]
        asked = [CONSTRAINTS[name].wording.format(**{
            key: ", ".join(value) if isinstance(value, list) else value for key, value in own.items()})
            for name, own in zip(chosen, options, strict=True)]  # fmt: skip
        prompt = " ".join([TOPICS[number % len(TOPICS)], *asked])
        rows.append({"prompt": prompt, "instruction_id_list": chosen, "kwargs": options})
    return rows


SUITE = Instructions
