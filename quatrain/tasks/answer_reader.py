"""What a reward model reads: a conversation with its last answer, or the answer alone, as one row of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.messages import content_text
from quatrain.data.records import Messages
from quatrain.tokenizers.chat import has_marks, render
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.texts import EncodedText

READS = "reward_reads"
"""The key of tokenizer_config.json that says what a reward model reads, where this is not the conversation."""


class AnswerReader:
    """Encodes a conversation with its last answer as a reward model reads it.

    A tokenizer with a chat template renders the conversation; the row ends with the answer's last token, which is the
    end token of the turn. Without a template, as for most encoders, prompt and answer are a pair of texts. Where the
    tokenizer's configuration says so (`READS`), a row is the answer alone, closed by an end token. A row of more than
    `max_length` tokens loses its beginning.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int | None = None):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.answer_only = tokenizer.config.get(READS) == "completion"
        self.is_chat = tokenizer.chat_template is not None and not self.answer_only
        self.marked = self.is_chat and has_marks(tokenizer.template_for())

    def read(self, prompt: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[Any]]) -> list[EncodedText]:
        """One row for each answer (a list of messages) to the prompt; all rows have the same tokens of the prompt."""
        if self.answer_only:
            return [self.text("\n".join(map(content_text, answer)), end=True) for answer in answers]
        if not self.is_chat:
            return [self._pair(prompt, answer) for answer in answers]
        messages = prompt if isinstance(prompt, Messages) else Messages(map(dict, prompt))
        rows = [self._rendered(messages.of([*messages, *map(dict, answer)])) for answer in answers]
        if self.max_length is None:
            return [EncodedText(row) for row in rows]
        shared = _common_prefix(rows) if len(rows) > 1 else max(map(len, rows))
        over = min(max(0, max(map(len, rows)) - self.max_length), shared)
        return [self._cut(row, over) for row in rows]

    def _rendered(self, messages: Messages) -> list[int]:
        rendered = render(self.tokenizer, messages, mask=self.marked)
        ids = list(rendered.ids)
        if not self.marked:
            return ids
        last = max((place for place, own in enumerate(rendered.assistant_mask) if own), default=None)
        if last is None:
            raise InputError("An answer has no tokens: the chat template marks none as the assistant's.")
        return ids[: last + 1]

    def _cut(self, row: list[int], over: int) -> EncodedText:
        """A row without its first `over` tokens, and of the longest end that fits; a begin token stays."""
        limit = len(row) if self.max_length is None else self.max_length
        over = max(over, len(row) - limit)
        if not over:
            return EncodedText(row)
        begin = row[:1] if row[0] == self.tokenizer.bos_id else []
        return EncodedText([*begin, *row[over + len(begin) :]], cut=over)

    def _pair(self, prompt: Sequence[Mapping[str, Any]], answer: Sequence[Any]) -> EncodedText:
        turns = [(str(message["role"]), content_text(message)) for message in prompt]
        before = turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)
        after = "\n".join(content_text(message) for message in answer)
        if not before:
            return self.text(after)
        pair = self.tokenizer.encode_pair(before, after)
        return self._shortened(pair.ids, pair.token_types, pair.parts)

    def text(self, text: str, *, end: bool = False) -> EncodedText:
        """A text by itself, without its first tokens where it is too long; special tokens around it stay.

        With `end` an end token closes it, if the tokenizer has one.
        """
        ids = self.tokenizer.encode(text, special_tokens=True)
        if end and self.tokenizer.eos_id is not None and ids[-1:] != [self.tokenizer.eos_id]:
            ids = [*ids, self.tokenizer.eos_id]
        return self._shortened(ids, None, [None if token in self.tokenizer.special_ids else 0 for token in ids])

    def _shortened(self, ids: list[int], types: list[int] | None, parts: list[int | None]) -> EncodedText:
        """A pair without the first tokens of the prompt, then without the last of the answer, so that it fits."""
        over = 0 if self.max_length is None else max(0, len(ids) - self.max_length)
        if not over:
            return EncodedText(ids, types)
        first = [place for place, part in enumerate(parts) if part == 0]
        last = [place for place, part in enumerate(parts) if part == 1]
        dropped = {*first[:over], *(last[len(last) - max(0, over - len(first)) :])}
        kept = [place for place in range(len(ids)) if place not in dropped]
        return EncodedText([ids[place] for place in kept], types and [types[place] for place in kept], cut=over)


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """The number of first tokens that all rows have in common."""
    for place, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, rows))
