"""Reads preferences from the fields of a row: pairs, judged and ranked answers, scores, thumbs up and down.

| row | as pairs | as rated answers |
|---|---|---|
| `prompt`, `chosen`, `rejected` (TRL; texts or messages) | one pair | one up, one down |
| whole conversations `chosen` and `rejected` (HH-RLHF) | split where they begin to differ | the same |
| `prompt`, `answers`, `choice` (`quatrain label`) | by the choice; none for a tie | both_bad: two down |
| `instruction`, `output_1`, `output_2`, `preference` (AlpacaEval) | by the preference | the same |
| `history`, `human_ref_A`, `human_ref_B`, `labels` (SHP) | by the label | the same |
| answers with `ranks`, a `ranking` or `scores` (UltraFeedback) | every two of unequal rank | |
| `prompt`, `completion`, `label` (KTO) | | one, up or down |

Where a row has scores, a pair's `margin` is their difference. Every fault names its field and a fix.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.core.wording import format_value, type_name
from quatrain.data.chat_rows import (
    alpaca_prompt,
    answer_messages,
    messages_of,
    prompt_messages,
    template_inputs,
    text_field,
    turn,
)
from quatrain.data.formats import ANSWER_LISTS, as_number
from quatrain.data.records import Fault, Message, Messages, Preference, RatedAnswer, field_names, raise_together

_PREFERENCE_FORMATS = (
    '{"prompt": …, "chosen": …, "rejected": …}, with texts or lists of messages; or {"instruction": …, "chosen": …, '
    '"rejected": …}; or chosen and rejected conversations that begin alike; or {"prompt": …, "answers": […], '
    '"scores": […]}'
)
_RATED_FORMATS = '{"prompt": …, "completion": …, "label": true or false}, or a preference pair'
_TURN = re.compile(r"\n\n(Human|Assistant):")

CHOICES = ("a", "b", "tie", "both_bad", "skip")
"""The values of `choice` in a file that `quatrain label` writes."""

_ITEM_TEXTS = ("response", "text", "answer", "completion", "content", "output")
_ITEM_SCORES = ("score", "overall_score", "fine-grained_score", "rating")
_THUMBS = {
    **dict.fromkeys(("true", "1", "up", "thumbs_up", "good", "desirable", "yes", "👍"), True),
    **dict.fromkeys(("false", "0", "-1", "down", "thumbs_down", "bad", "undesirable", "no", "👎"), False),
}


def to_preferences(fields: dict[str, Any]) -> list[Preference]:
    """The preference pairs of a row; none if the answers were judged equal. Raises Fault."""
    faults: list[Fault] = []
    pairs: list[Preference] = []
    try:
        pairs = _pairs(fields)
    except Fault as fault:
        faults.append(fault)
    inputs = template_inputs(fields, faults)
    raise_together(faults)
    return [Preference(Messages(pair.prompt, **inputs), pair.chosen, pair.rejected, pair.margin) for pair in pairs]


def to_ratings(fields: dict[str, Any]) -> list[RatedAnswer]:
    """The rated answers of a row: its own, or the two of each pair. Raises Fault."""
    if "chosen" not in fields and "label" in fields and ("completion" in fields or "messages" in fields):
        faults: list[Fault] = []
        inputs = template_inputs(fields, faults)
        raise_together(faults)
        prompt, completion = _completion(fields)
        return [RatedAnswer(Messages(prompt, **inputs), completion, _thumb(fields["label"]))]
    if "choice" in fields and _choice(fields) == "both_bad":
        prompt = _prompt_of(fields)
        return [RatedAnswer(prompt, answer, False) for answer in _answer_list(fields, "answers")[0]]
    if not {"chosen", "rejected"} & fields.keys() and not _is_judged(fields):
        raise Fault(f"fields {field_names(fields)}: no rated answer; write {_RATED_FORMATS}")
    pairs = to_preferences(fields)
    return [
        RatedAnswer(pair.prompt, answer, label)
        for pair in pairs
        for answer, label in ((pair.chosen, True), (pair.rejected, False))
    ]


def _is_judged(fields: Mapping[str, Any]) -> bool:
    return "choice" in fields or "preference" in fields or "human_ref_A" in fields


def _pairs(fields: dict[str, Any]) -> list[Preference]:
    if "chosen" not in fields and "rejected" not in fields:
        if {"output_1", "output_2", "preference"} <= fields.keys():
            return _judged(fields)
        if {"human_ref_A", "human_ref_B", "labels"} <= fields.keys():
            return _commented(fields)
        if "choice" in fields and "answers" in fields:
            return _labelled(fields)
        if (name := next((name for name in ANSWER_LISTS if isinstance(fields.get(name), list)), None)) is not None:
            return _ranked(fields, name)
    return [_paired(fields)]


def _judged(fields: dict[str, Any]) -> list[Preference]:
    """A judgement of AlpacaEval (Li et al. 2023): 1 or 2 is the better output, 0 and 1.5 are ties."""
    judged = fields["preference"]
    which = as_number(judged)
    if which not in (0.0, 1.0, 1.5, 2.0):
        raise Fault(f"field 'preference' is {judged!r}; allowed are 1 and 2, and 0 or 1.5 for a tie", "preference")
    if which in (0.0, 1.5):
        return []
    better, worse = ("output_1", "output_2") if which == 1.0 else ("output_2", "output_1")
    chosen, rejected = ([turn("assistant", text_field(fields, name))] for name in (better, worse))
    return [Preference(alpaca_prompt(fields), chosen, rejected)]


def _commented(fields: dict[str, Any]) -> list[Preference]:
    """Two comments on a post (SHP, Ethayarajh et al. 2022): label 1 if A was preferred, 0 if B."""
    label = as_number(fields["labels"])
    if label not in (0.0, 1.0):
        raise Fault(f"field 'labels' is {format_value(fields['labels'])}; allowed are 1 (A) and 0 (B)", "labels")
    first, second = (
        ([turn("assistant", text_field(fields, f"human_ref_{side}"))], as_number(fields.get(f"score_{side}")))
        for side in "AB"
    )
    better, worse = (first, second) if label else (second, first)
    margin = None if better[1] is None or worse[1] is None else better[1] - worse[1]
    return [Preference(prompt_messages(fields, "history"), better[0], worse[0], margin)]


def _choice(fields: Mapping[str, Any]) -> str:
    choice = fields["choice"]
    if choice not in CHOICES:
        raise Fault(f"field 'choice' is {format_value(choice)}; allowed are {', '.join(CHOICES)}", "choice")
    return str(choice)


def _labelled(fields: dict[str, Any]) -> list[Preference]:
    """A row of `quatrain label`: two answers in the order in which they were shown, and the choice."""
    choice, (answers, _) = _choice(fields), _answer_list(fields, "answers")
    if len(answers) != 2:
        raise Fault(f"field 'answers' has {len(answers)}, must be the two answers of the choice", "answers")
    if choice not in ("a", "b"):
        return []
    better, worse = answers if choice == "a" else reversed(answers)
    return [Preference(_prompt_of(fields), better, worse)]


def _ranked(fields: dict[str, Any], name: str) -> list[Preference]:
    """Every two answers of unequal rank, best first. Ranks are `ranks` (1 is best), a `ranking` or `scores`."""
    answers, own_scores = _answer_list(fields, name)
    scores: Sequence[float | None] = own_scores
    by_score = True
    if "scores" in fields:
        scores = _numbers(fields, "scores", len(answers))
    elif "ranks" in fields:
        scores, by_score = [-rank for rank in _numbers(fields, "ranks", len(answers))], False
    elif "ranking" in fields:
        order = [int(place) for place in _numbers(fields, "ranking", len(answers))]
        if sorted(order) != list(range(len(answers))):
            text = f"must hold each place of {name!r}, 0 to {len(answers) - 1}, once, the best answer first"
            raise Fault(f"field 'ranking' is {format_value(fields['ranking'])}; it {text}", "ranking")
        scores, by_score = [-float(order.index(place)) for place in range(len(answers))], False
    elif any(score is not None for score in scores):
        by_score = any(key in item for item in fields[name] if isinstance(item, Mapping) for key in _ITEM_SCORES)
    else:
        raise Fault(f"field {name!r}: the answers have no order; add 'scores', 'ranks' or a 'ranking'", name)
    prompt = _prompt_of(fields)
    ranked = [(score, answer) for score, answer in zip(scores, answers, strict=True) if score is not None]
    ranked.sort(key=lambda each: -each[0])
    return [
        Preference(prompt, better, worse, high - low if by_score else None)
        for (high, better), (low, worse) in itertools.combinations(ranked, 2)
        if high > low
    ]


def _answer_list(fields: Mapping[str, Any], name: str) -> tuple[list[list[Message]], list[float | None]]:
    """The answers of a list of texts or objects, and their scores (or minus their ranks), None where unscored."""
    answers: list[list[Message]] = []
    scores: list[float | None] = []
    faults: list[Fault] = []
    value = fields[name]
    if not isinstance(value, list) or not value:
        raise Fault(f"field {name!r} is {type_name(value)}, must be a list of answers", name)
    for number, item in enumerate(value):
        place, text, score = f"{name}[{number}]", item, None
        if isinstance(item, Mapping) and "role" not in item:
            key = next((key for key in _ITEM_TEXTS if key in item), None)
            if key is None:
                faults.append(Fault(f"field {place!r}: no text; the answer has {field_names(item)}", name))
                continue
            place, text = f"{place}.{key}", item[key]
            score = next((as_number(item[key]) for key in _ITEM_SCORES if item.get(key) is not None), None)
            if score is None and (rank := as_number(item.get("rank"))) is not None:
                score = -rank
        try:
            answers.append(answer_messages({place: text}, place))
            scores.append(score)
        except Fault as fault:
            faults.append(fault)
    raise_together(faults)
    return answers, scores


def _numbers(fields: Mapping[str, Any], name: str, count: int) -> list[float]:
    value = fields[name]
    if not isinstance(value, list) or len(value) != count:
        have = f"{len(value)} values" if isinstance(value, list) else type_name(value)
        raise Fault(f"field {name!r} is {have}; must be a list of {count} numbers, one for each answer", name)
    numbers = [as_number(each) for each in value]
    if None in numbers:
        wrong = format_value(value[numbers.index(None)])
        raise Fault(f"field {name!r}: {wrong} is not a number; write one for each answer", name)
    return [number for number in numbers if number is not None]


def _prompt_of(fields: dict[str, Any]) -> list[Message]:
    for name in ("messages", "conversations"):
        if name in fields:
            return messages_of(fields[name], name)
    if "instruction" in fields:
        return alpaca_prompt(fields)
    for name in ("prompt", "question", "query", "history"):
        if name in fields:
            return prompt_messages(fields, name)
    raise Fault(f"no prompt; the row has {field_names(fields)}; add 'prompt'", "prompt")


def _paired(fields: dict[str, Any]) -> Preference:
    missing = [name for name in ("chosen", "rejected") if name not in fields]
    if missing and {"completion", "label"} <= fields.keys():
        raise Fault('these are rated answers, not pairs; a dpo stage learns from them with loss = "kto"', "label")
    if missing:
        raise Fault(f"no field {' and '.join(map(repr, missing))}; write {_PREFERENCE_FORMATS}")
    chosen, rejected = (answer_messages(fields, name) for name in ("chosen", "rejected"))
    margin = _margin(fields)
    if any(name in fields for name in ("prompt", "instruction", "question", "messages", "conversations")):
        prompt = prompt_messages(fields, "prompt") if "prompt" in fields else _prompt_of(fields)
        chosen, rejected = (_without_prompt(prompt, answer) for answer in (chosen, rejected))
        return Preference(prompt, chosen, rejected, margin)
    whole = (
        _dialogue(fields[name]) if isinstance(fields[name], str) else answer
        for name, answer in (("chosen", chosen), ("rejected", rejected))
    )
    return _split_pair(*whole, margin=margin)


def _margin(fields: Mapping[str, Any]) -> float | None:
    """The row's margin: `margin`, or the difference of `score_chosen` and `score_rejected`."""
    if fields.get("margin") is not None:
        if (margin := as_number(fields["margin"])) is None:
            raise Fault(f"field 'margin' is {format_value(fields['margin'])}; must be a number", "margin")
        return margin
    chosen, rejected = (as_number(fields.get(f"score_{name}")) for name in ("chosen", "rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


def _without_prompt(prompt: Sequence[Message], answer: list[Message]) -> list[Message]:
    """An answer that may be a whole conversation, as UltraFeedback's, without the messages of the prompt."""
    size = len(prompt)
    return answer[size:] if len(answer) > size and list(answer[:size]) == list(prompt) else answer


def _split_pair(chosen: list[Message], rejected: list[Message], *, margin: float | None) -> Preference:
    """Two whole conversations split into their common prompt and two answers."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    # Of equal conversations, the last message is the answer.
    same = min(same, len(chosen) - 1, len(rejected) - 1)
    if same < 1:
        raise Fault(f"chosen and rejected do not begin alike and there is no prompt; write {_PREFERENCE_FORMATS}")
    return Preference(chosen[:same], chosen[same:], rejected[same:], margin)


def _dialogue(text: str) -> list[Message]:
    """The messages of a dialogue in one text, in the form of Anthropic's HH-RLHF (Bai et al. 2022)."""
    before, *turns = _TURN.split(text)
    if not turns or before.strip():
        raise Fault(f"no prompt in addition to chosen and rejected; write {_PREFERENCE_FORMATS}")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [turn(roles[name], text.removeprefix(" ")) for name, text in pairs]


def _completion(fields: dict[str, Any]) -> tuple[list[Message], list[Message]]:
    """The prompt and the rated completion of a row; without a prompt, the last message of the conversation."""
    if "completion" not in fields:
        messages = messages_of(fields["messages"], "messages")
        return messages[:-1], messages[-1:]
    value = fields["completion"]
    if "prompt" not in fields and isinstance(value, str):
        messages = _dialogue(value)
        return messages[:-1], messages[-1:]
    prompt, completion = _prompt_of(fields), answer_messages(fields, "completion")
    return prompt, _without_prompt(prompt, completion)


def _thumb(value: Any) -> bool:
    """A rating as a boolean: true or false, 1 or 0, up or down."""
    name = str(value).strip().lower().removesuffix(".0")
    if name not in _THUMBS:
        allowed = "true or false, 1 or 0, up or down"
        raise Fault(f"field 'label' is {format_value(value)}; allowed are {allowed}", "label")
    return _THUMBS[name]
