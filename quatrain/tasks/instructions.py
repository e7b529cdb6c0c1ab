"""The instruction task: chats, whose assistant turns are learned and measured.

Short answers are also compared with the reference as texts, such as the label of a classification put as a question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.batches import TokenExample
from quatrain.data.corpus import Corpus, DataParts
from quatrain.data.messages import content_text, has_calls
from quatrain.data.records import Conversation, LabelledText
from quatrain.tasks.task import DataTask, Score
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer

Chat = tuple[str, list[dict[str, Any]]]
"""A conversation with its place."""

ANSWERED = ("labelled", "pair")
"""Formats whose records are a text and its answer."""
LEFT = "left out"
"""Marks the notes on chats that are left out."""
NAMED = 3
"""Chats left out that a note names; it counts the others."""
SHORT = 5
"""The most words of an answer that is compared as a text."""


class Instructions(DataTask[Chat]):
    """Chats with their places; the reference is the last turn, of the assistant."""

    name = "chat"
    baseline_name = "token frequencies; the commonest answer"
    measures_loss = True
    by_source = True

    @staticmethod
    def corpus(data: DataParts, part: str = "source") -> Corpus:
        """A part of the data: conversations, or texts with their answers."""
        return data.corpus(part, default_format="chat", accept=ANSWERED)

    def read(self, data: DataParts, part: str) -> Iterator[Chat]:
        for place, record in self.corpus(data, part).placed():
            yield place, record.messages if isinstance(record, Conversation) else turns_of(record)

    def messages(self, example: Chat) -> list[dict[str, Any]]:
        return example[1]

    def place(self, example: Chat) -> str:
        return example[0]

    def counted(self, examples: Sequence[Chat]) -> Sequence[Chat]:
        return [example for example in super().counted(examples) if self.answered(example)]

    def question(self, example: Chat) -> str:
        return content_text(example[1][-2] if len(example[1]) > 1 else example[1][-1])

    def reference(self, example: Chat) -> str:
        return content_text(example[1][-1])

    def answered(self, example: Chat) -> bool:
        """Whether the chat ends with a turn of the assistant, which a completion can be compared with."""
        return example[1][-1]["role"] == "assistant"

    def encode(
        self, tokenizer: Tokenizer, examples: Sequence[Chat], limit: int
    ) -> tuple[list[TokenExample], list[str]]:
        """Token examples with the assistant's tokens marked, and notes on the chats left out."""
        encoded, notes = encode_chats(examples, tokenizer, limit)
        return encoded, [note for note in notes if LEFT in note]

    def comparable(self, examples: Sequence[Chat]) -> bool:
        """Whether completions can be compared as texts: all references are short and none calls a tool."""
        turns = [example[1][-1] for example in examples]
        return bool(turns) and all(len(content_text(turn).split()) <= SHORT and not has_calls(turn) for turn in turns)

    def score(self, example: Chat, completion: str) -> Score:
        return Score({"exact": float(completion.strip() == self.reference(example).strip())})

    def baseline(self, examples: Sequence[Chat]) -> list[str]:
        """The answer that is right most often among the training examples."""
        common = Counter(self.reference(example).strip() for example in self.counted(examples)).most_common(1)
        return [common[0][0] if common else ""] * len(examples)


def turns_of(record: Any) -> list[dict[str, Any]]:
    """A labelled text or a pair as two turns: the text, and the label or the target as its answer."""
    if isinstance(record, LabelledText):
        text, answer = record.text if record.other is None else f"{record.text}\n{record.other}", record.label
    else:
        text, answer = record.source, record.target
    return [{"role": "user", "content": text}, {"role": "assistant", "content": str(answer)}]


class ChatEncoder:
    """Encodes chats, and leaves out those that are too long or have no token to learn; `notes` count and name them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.long = self.empty = self.all = 0
        self.first: dict[str, list[str]] = {"long": [], "empty": []}
        self.notes: list[str] = []

    def encode(self, chats: Iterable[tuple[str, list[dict[str, Any]]]], tokenizer: Tokenizer) -> Iterator[TokenExample]:
        """The examples of the usable chats. Counts of an earlier, longer reading are kept."""
        long = empty = count = 0
        for place, messages in chats:
            count += 1
            self.all = max(self.all, count)
            try:
                rendered = render(tokenizer, messages)
            except InputError as error:
                raise InputError(f"{place}: {error.message}", error.problems) from error
            example = TokenExample(rendered.ids, rendered.assistant_mask)
            if len(example) - 1 > self.limit:
                long += 1
                self._name("long", place, long)
            elif example.num_labels == 0:
                empty += 1
                self._name("empty", place, empty)
            else:
                yield example
                continue
            self._note(long, empty)
        self._note(long, empty)

    def _name(self, why: str, place: str, number: int) -> None:
        if len(self.first[why]) < number <= NAMED:
            self.first[why].append(place)

    def _note(self, long: int, empty: int) -> None:
        self.long, self.empty = max(long, self.long), max(empty, self.empty)
        self.notes.clear()
        for why, count, what in (
            ("long", self.long, f"of {self.all:,} chats are longer than {self.limit:,} tokens and {LEFT}"),
            ("empty", self.empty, f"of {self.all:,} chats have no token of the assistant to learn and are {LEFT}"),
        ):
            if count:
                more = ", …" if count > NAMED else ""
                self.notes.append(f"{count:,} {what}: {', '.join(self.first[why])}{more}")


def encode_chats(
    chats: Iterable[tuple[str, list[dict[str, Any]]]], tokenizer: Tokenizer, limit: int
) -> tuple[list[TokenExample], list[str]]:
    """Chats with their places as examples with the assistant's tokens marked, and notes on the chats left out.

    Leaves out chats longer than `limit` tokens and chats without an assistant token. Raises InputError where no chat is
    left.
    """
    encoder = ChatEncoder(limit)
    examples = list(encoder.encode(chats, tokenizer))
    if not examples:
        raise InputError(
            f"No chat is left to learn from: {encoder.long} are longer than {limit} tokens, {encoder.empty} have no "
            "assistant token. Give a longer context, or check the data with `quatrain data check`."
        )
    notes = list(encoder.notes)
    learned = sum(example.num_labels for example in examples)
    total = sum(map(len, examples))
    notes.append(f"{len(examples):,} chats, {total:,} tokens, {learned / total:.0%} of them learned")
    return examples, notes
