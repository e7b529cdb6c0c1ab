"""Labels of tokens, words and entities, with their exact places in the text.

A long text is read in overlapping windows: each token takes its scores from the window in which it has more of the
text on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from quatrain.core.settings import Listing, Settings
from quatrain.tasks.pipelines.base import Alias, Field, Pipeline, Prediction
from quatrain.training.objectives.tagging import word_tokens
from quatrain.training.objectives.texts import EncodedText, frame

NUMBER = re.compile(r"\d+(?:[.,]\d+)+")
"""A number with separators, such as 5.975,74: one word, whatever the tokenizer makes of it."""

Aggregation = Literal["none", "simple", "first", "average", "max", "words"]


class TokenOptions(Settings):
    """How tokens become entities."""

    aggregation_strategy: Aggregation = "none"
    """`none`: every token; `simple`: neighbours of one label are an entity; `first`, `average`, `max`: the same, after
    the pieces of a word got one label, by the first piece, by the mean of the scores, or by the highest score.
    `words`: every word with the label of its first piece, as the stage `finetune` trains it."""
    ignore_labels: Listing[str] = ("O",)
    """Labels that are left out, except with `words`."""
    stride: int | None = Key(None, ge=0)
    """Tokens that two windows of a long text share; None: a quarter of the model's context."""
    is_split_into_words: bool = False
    """A list of a call is one text of words, not a list of texts."""


@dataclass
class Piece:
    """A token, or a word, with its scores (L) and its characters [start, end) in the text."""

    word: str
    scores: Tensor
    start: int
    end: int
    index: int
    continues: bool = False
    """Whether it is part of the word before it."""
    in_number: bool = False
    """Whether it continues a number with separators."""


class TokenClassification(Pipeline):
    """Tokens as {"entity", "score", "index", "word", "start", "end"}, or entities as {"entity_group", "score", "word",
    "start", "end"}; for `words` as {"entity", "score", "word", "start", "end"}.

    `start` and `end` are the characters of the word in the text, without white space around it.
    """

    task = "token-classification"
    aliases = {
        "ner": Alias(recipes=("ner",)),
        "pos": Alias({"aggregation_strategy": "words"}, ("pos",)),
        "part-of-speech": Alias({"aggregation_strategy": "words"}, ("pos",)),
    }
    heads = ("token_classification",)
    default_for = ("token_classification",)
    recipes = ("ner", "pos")
    reads_ahead = 8
    fields = (Field("text", optional=True), Field("words", optional=True, kind="texts"))
    format = "tagged"
    Options = TokenOptions

    @classmethod
    def required(cls, given: Mapping[str, Any]) -> Iterable[Field]:
        return () if "words" in given else cls.fields[:1]

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The labels of inputs; see `Pipeline.__call__`."""
        if self.settings(options).is_split_into_words and isinstance(inputs, list | tuple):
            nested = bool(inputs) and not isinstance(inputs[0], str)
            inputs = [{"words": list(each)} for each in inputs] if nested else [{"words": list(inputs)}]
        return super().__call__(inputs, batch_size=batch_size, **options)

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: TokenOptions) -> list[Prediction]:
        texts, encoded, spans = [], [], []
        for each in inputs:
            if "words" in each:
                text = " ".join(each["words"])
                ids, _ = word_tokens(self.tokenizer, each["words"])
                offsets = self.tokenizer.encode_with_offsets(text)[1]
            else:
                text = each["text"]
                ids, offsets = self.tokenizer.encode_with_offsets(text)
            texts.append(text)
            encoded.append(ids)
            spans.append(offsets)
        found = self._token_logits(encoded, options.stride)
        return [
            Prediction(self._labelled(each, text, ids, offsets, logits, options))
            for each, text, ids, offsets, logits in zip(inputs, texts, encoded, spans, found, strict=True)
        ]

    def _token_logits(self, encoded: Sequence[list[int]], stride: int | None) -> list[Tensor]:
        """The logits (T, L) of the tokens of each text, read in windows where they are too long."""
        before, after = frame(self.tokenizer)
        room = max(1, self.limit - len(before) - len(after))
        shared = min(room - 1, room // 4 if stride is None else stride)
        rows, places = [], []
        for text, ids in enumerate(encoded):
            start = 0
            while start < len(ids):
                end = min(start + room, len(ids))
                rows.append(EncodedText([*before, *ids[start:end], *after]))
                places.append((text, start, end))
                if end == len(ids):
                    break
                start = end - shared
        result = [torch.zeros(len(ids), len(self.config.labels)) for ids in encoded]
        for (text, start, end), logits in zip(places, self.logits(rows), strict=True):
            own = logits[len(before) : len(before) + end - start]
            # Half of what two windows share belongs to each.
            skip = 0 if start == 0 else shared // 2
            result[text][start + skip : end] = own[skip:]
        return result

    def _labelled(
        self,
        given: Mapping[str, Any],
        text: str,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        logits: Tensor,
        options: TokenOptions,
    ) -> list[dict[str, Any]]:
        if options.aggregation_strategy == "words":
            return self._words(given, text, logits)
        pieces = self._pieces(text, ids, offsets, logits)
        if options.aggregation_strategy == "none":
            found = [self._of_piece(piece) | {"index": piece.index} for piece in pieces]
            entities = [{name: each[name] for name in ("entity", "score", "index", "word", "start", "end")}
                        for each in found]  # fmt: skip
        else:
            words = pieces
            if options.aggregation_strategy != "simple":
                words = self._joined(pieces, options.aggregation_strategy)
            entities = self._grouped(words)
        ignored = set(options.ignore_labels)
        kept = [each for each in entities if each.get("entity", each.get("entity_group")) not in ignored]
        for each in kept:
            each["start"], each["end"] = _stripped(text, each["start"], each["end"])
        return kept

    def _probabilities(self, logits: Tensor, places: Sequence[int]) -> Tensor:
        """The scores (T, L) of tokens.

        A model that labels whole sentences (`tag`, such as a CRF) decides about the tokens at `places`, which begin
        words: its label gets its probability, and the others share the rest.
        """
        scores = logits.softmax(-1)
        tag = getattr(self.model, "tag", None)
        if tag is None or not places:
            return scores
        mask = torch.zeros(1, len(logits), dtype=torch.bool, device=self.model.device)
        mask[0, list(places)] = True
        (labels,), (own,) = tag(logits[None].to(self.model.device), mask)
        for place, label, score in zip(places, labels, own, strict=True):
            # The best sequence may hold a label that is unlikely by itself; it stays the highest.
            scores[place] = min((1 - score) / max(1, scores.shape[1] - 1), 0.99 * score)
            scores[place, label] = score
        return scores

    def _pieces(self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], logits: Tensor) -> list[Piece]:
        """The tokens of a text."""
        numbers = [match.span() for match in NUMBER.finditer(text)]
        marked = bool(getattr(self.tokenizer.backend.model, "continuing_subword_prefix", None))
        first = len(frame(self.tokenizer)[0])
        pieces, places = list[Piece](), list[int]()
        for place, (token, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
            if token in self.tokenizer.special_ids and token != self.tokenizer.unk_id:
                continue
            word, shown = self.tokenizer.id_to_token(token) or "", text[start:end]
            continues = len(word) != len(shown) if marked else start > 0 and " " not in text[start - 1 : start + 1]
            if token == self.tokenizer.unk_id:
                word, continues = shown, False
            in_number = any(begin < start < stop for begin, stop in numbers)
            pieces.append(Piece(word, logits[place], start, end, place + first, continues or in_number, in_number))
            places.append(place)
        begins = [place for place, piece in zip(places, pieces, strict=True) if not piece.continues]
        scores = self._probabilities(logits, begins)
        for place, piece in zip(places, pieces, strict=True):
            piece.scores = scores[place]
        return pieces

    def _of_piece(self, piece: Piece) -> dict[str, Any]:
        best = int(piece.scores.argmax())
        return {
            "entity": self.config.labels[best], "score": float(piece.scores[best]), "word": piece.word,
            "start": piece.start, "end": piece.end,
        }  # fmt: skip

    def _joined(self, pieces: Sequence[Piece], strategy: Aggregation) -> list[Piece]:
        """The words of a text, each with the scores that the strategy takes."""
        groups: list[list[Piece]] = []
        for piece in pieces:
            if piece.continues and groups:
                groups[-1].append(piece)
            else:
                groups.append([piece])
        words = []
        for group in groups:
            stacked = torch.stack([piece.scores for piece in group])
            if strategy == "first":
                scores = stacked[0]
            elif strategy == "average":
                scores = stacked.mean(0)
            else:
                scores = stacked[int(stacked.amax(-1).argmax())]
            word = self._decoded([piece.word for piece in group])
            words.append(Piece(word, scores, group[0].start, group[-1].end, group[0].index))
        return words

    def _grouped(self, words: Sequence[Piece]) -> list[dict[str, Any]]:
        """Neighbours of one label as one entity; a label that begins with B- begins another."""
        groups: list[list[dict[str, Any]]] = []
        for piece in words:
            entity = self._of_piece(piece)
            begins, tag = _parts(entity["entity"])
            same = bool(groups) and _parts(groups[-1][-1]["entity"])[1] == tag
            if same and (not begins or piece.in_number):
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": sum(each["score"] for each in group) / len(group),
                "word": self._decoded([each["word"] for each in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]

    def _decoded(self, tokens: Sequence[str]) -> str:
        """Tokens as text."""
        decoder = self.tokenizer.backend.decoder
        return str(decoder.decode(list(tokens))) if decoder is not None else " ".join(tokens)

    def _words(self, given: Mapping[str, Any], text: str, logits: Tensor) -> list[dict[str, Any]]:
        """Every word of a text with the label of its first token; a word without a token gets the label O."""
        if "words" in given:
            _, owners = word_tokens(self.tokenizer, given["words"])
            spans, start = [], 0
            for word in given["words"]:
                spans.append((start, start + len(word)))
                start += len(word) + 1
        else:
            _, offsets, numbers = self.with_words(text)
            spans, owners = _word_spans(text, offsets, numbers)
        outside = "O" if "O" in self.config.labels else None
        words: list[dict[str, Any]] = [
            {"entity": outside, "score": None, "word": text[start:end], "start": start, "end": end}
            for start, end in spans
        ]
        begins = [place for place, owner in enumerate(owners) if owner is not None]
        for owner, own in zip(owners, self._probabilities(logits, begins), strict=True):
            if owner is not None:
                best = int(own.argmax())
                words[owner] |= {"entity": self.config.labels[best], "score": float(own[best])}
        return words

    def with_words(self, text: str) -> tuple[list[int], list[tuple[int, int]], list[int | None]]:
        """Ids, the span of characters of each, and the number of the word that each belongs to.

        Words are those of the tokenizer's pre-tokenizer; a tokenizer without one has the words between spaces.
        """
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        words: list[int | None] = self.tokenizer.backend.encode(text, add_special_tokens=False).word_ids
        if len(text.split()) > 1 and len({word for word in words if word is not None}) < 2:
            words = [None if text[begin:end].isspace() else len(text[:end].split()) - 1 for begin, end in offsets]
        return ids, offsets, words

    def record(self, value: Any) -> dict[str, Any]:
        """`words` with their labels where every word has one, otherwise `entities`."""
        if value and "entity_group" not in value[0] and "index" not in value[0]:
            return {
                "words": [{"word": each["word"], "label": each["entity"]} | {
                    name: each[name] for name in ("score", "start", "end")} for each in value]
            }  # fmt: skip
        return {"entities": value}

    def served_options(self) -> dict[str, Any]:
        return {"aggregation_strategy": "simple"} if self.name in (self.task, "ner") else {}

    def file_options(self) -> dict[str, Any]:
        return {"aggregation_strategy": "words"} if self.name == self.task else {}

    def line(self, text: str, value: Any) -> str:
        """One word or entity a line, with an empty line behind them."""
        return "".join(f"{each['word']}\t{each.get('entity', each.get('entity_group'))}\n" for each in value)


def _parts(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity (B-), and its tag."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """A span of characters without the white space around it; one of white space alone stays."""
    if not text[start:end].strip():
        return start, end
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _word_spans(
    text: str, offsets: Sequence[tuple[int, int]], numbers: Sequence[int | None]
) -> tuple[list[tuple[int, int]], list[int | None]]:
    """The spans of the words, and for each token the place of the word that it begins, or None."""
    spans: dict[int, tuple[int, int]] = {}
    for (begin, end), number in zip(offsets, numbers, strict=True):
        if number is not None and end > begin:
            first, last = spans.get(number, (begin, end))
            spans[number] = min(first, begin), max(last, end)
    places = {number: place for place, number in enumerate(spans)}
    seen: set[int] = set()
    owners: list[int | None] = []
    for number in numbers:
        begins = number in places and number not in seen
        owners.append(places[number] if begins and number is not None else None)
        if number is not None:
            seen.add(number)
    return [_stripped(text, *span) for span in spans.values()], owners
