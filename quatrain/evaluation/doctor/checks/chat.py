"""A conversation rendered for training, for the server, and by the template of an exported folder: ids, stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.evaluation.doctor.check import Check, DoesNotApply, Finding
from quatrain.evaluation.doctor.checks.reference import quiet
from quatrain.evaluation.doctor.subject import ModelUnderTest, readable
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer

CHAT = (
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "It is 7."},
    {"role": "user", "content": "Naïve – wirklich? «да»"},
    {"role": "assistant", "content": "Yes: 3 + 4 = 7."},
)


def _tokenizer(subject: ModelUnderTest) -> Tokenizer:
    tokenizer = subject.tokenizer
    if tokenizer is None or not tokenizer.chat_templates:
        raise DoesNotApply("the tokenizer has no chat template")
    return tokenizer


def _chat(tokenizer: Tokenizer) -> list[dict[str, str]]:
    """The conversation, in characters that the tokenizer knows."""
    return [{**message, "content": readable(tokenizer, message["content"])} for message in CHAT]


def _mismatches(one: Sequence[int], other: Sequence[int]) -> int:
    """Ids that differ at their places, with those that one of them lacks."""
    return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))


def _for_training(subject: ModelUnderTest) -> Finding:
    tokenizer = _tokenizer(subject)
    chat = _chat(tokenizer)
    try:
        trained = render(tokenizer, chat)
    except InputError as error:
        return Finding(1, error.message)
    if not any(trained.assistant_mask):
        return Finding(1, "no token of the assistant is marked, so nothing would be learned")
    wrong, notes = 0, []
    for count in (1, 3):
        prompt = subject.engine.render(chat[:count])
        # Earlier turns may be rendered in another way than the last one, as those of templates that drop reasoning are.
        whole = trained if count == 3 else render(tokenizer, chat[: count + 1])
        found = _mismatches(prompt, whole.ids[: len(prompt)])
        begins = len(prompt) < len(whole.ids) and whole.assistant_mask[len(prompt)]
        if found:
            notes.append(f"the prompt of message {count} is not the beginning of the trained conversation")
        elif not begins:
            found = 1
            notes.append(f"after the prompt of message {count} the first trained token is not the assistant's")
        wrong += found
    return Finding(wrong, "; ".join(notes) or f"{len(trained.ids)} ids, {sum(trained.assistant_mask)} of them learned")


def _stops(subject: ModelUnderTest) -> Finding:
    tokenizer = _tokenizer(subject)
    try:
        trained = render(tokenizer, _chat(tokenizer))
    except InputError as error:
        raise DoesNotApply(f"without marks the end of a turn is unknown ({error.message[:60]}…)") from error
    learned = [token for token, mark in zip(trained.ids, trained.assistant_mask, strict=True) if mark]
    if not learned:
        raise DoesNotApply("no token of the assistant is marked")
    end, ends = learned[-1], subject.engine.end_ids
    name = tokenizer.id_to_token(end)
    if end in ends:
        return Finding(0, f"turns end with {name} (#{end}), which stops generation")
    known = ", ".join(f"{tokenizer.id_to_token(each)} (#{each})" for each in ends) or "none"
    return Finding(1, f"the assistant's turns end with {name} (#{end}); generation stops at {known}")


def _exported(subject: ModelUnderTest) -> Finding:
    tokenizer = _tokenizer(subject)
    chat = _chat(tokenizer)
    folder = subject.folder("tokenizer")
    tokenizer.save(folder)
    again = Tokenizer.load(folder)
    wrong, how = 0, ["saved and loaded"]
    for count, prompt in ((1, True), (2, False), (3, True), (4, False)):
        ours = render(tokenizer, chat[:count], add_generation_prompt=prompt, mask=False).ids
        wrong += _mismatches(render(again, chat[:count], add_generation_prompt=prompt, mask=False).ids, ours)
    if theirs := _their_tokenizer(subject, str(folder)):
        how.append("read by transformers")
        for count, prompt in ((1, True), (2, False), (3, True), (4, False)):
            ours = render(tokenizer, chat[:count], add_generation_prompt=prompt, mask=False).ids
            with quiet():
                found = theirs.apply_chat_template(chat[:count], add_generation_prompt=prompt, tokenize=True)
            ids = found if isinstance(found, list) else found["input_ids"]
            wrong += _mismatches(ids, ours)
    return Finding(wrong, f"4 renderings, {' and '.join(how)}")


def _their_tokenizer(subject: ModelUnderTest, folder: str) -> Any:
    """transformers' tokenizer of a folder; None without the library."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        return None
    with quiet():
        import transformers

        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


CHECKS = (
    Check(
        "chat-training", "chat rendered for training and for the server: ids", "ids", 0,
        "A model trained with this template would be asked in another form than it learned. Put {% generation %} "
        "before and {% endgeneration %} after the assistant's text and end token in the template, or take one of "
        "Quatrain's (chat_template = \"chatml\").", _for_training,
    ),
    Check(
        "chat-export", "chat rendered here and by the exported template: ids", "ids", 0,
        "Another program would render conversations differently. Compare chat_template.jinja and "
        "tokenizer_config.json with the original's; report the template.", _exported,
    ),
    Check(
        "chat-stop", "the end of the assistant's turn and the stop tokens", "tokens", 0,
        "Generation would not stop where the assistant's turn ends. Add the token to eos_token_id in "
        "generation_config.json.", _stops,
    ),
)  # fmt: skip
