"""Long labelled texts in pieces: nothing is lost, nothing is too long, and the pieces of a text stay together."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data.corpus import Corpus, DataParts
from quatrain.data.records import LabelledText
from quatrain.data.settings import DataSettings
from quatrain.tasks.records import placed
from quatrain.tasks.task import data_sets


@given(st.text(alphabet="ab .!?\n", max_size=200), st.integers(1, 9))
def test_pieces_hold_all_words_and_no_more_than_asked(text: str, words: int) -> None:
    pieces = LabelledText(text, None, "x").pieces(words)
    assert " ".join(piece.text for piece in pieces).split() == text.split()
    assert all(len(piece.text.split()) <= words and piece.label == "x" for piece in pieces)


def test_a_piece_ends_with_a_sentence_or_a_line() -> None:
    text = LabelledText("a b c. d e f g! h\ni j k l m n o", None, 1.0)
    assert [piece.text for piece in text.pieces(5)] == ["a b c.", "d e f g! h", "i j k l m", "n o"]
    pair = LabelledText("a b c", "d", "x")
    assert pair.pieces(1) == [pair]


def test_the_pieces_of_a_text_are_on_one_side_of_the_split(tmp_path) -> None:
    path = tmp_path / "texts.jsonl"
    texts = [". ".join(f"text{number} sentence{index}" for index in range(9)) for number in range(20)]
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataParts(DataSettings(source=str(path), piece_words=4, validation=0.3))
    assert len(list(data.corpus())) > 60
    splits, held_out = data_sets("x", data, lambda parts, part: placed(parts.corpus(part)))
    sides = [{row.value["text"].split()[0] for row in side} for side in (splits["train"], held_out["held out"])]
    assert len(sides[0]) == 14 and len(sides[1]) == 6 and not sides[0] & sides[1]
    whole = DataParts(DataSettings(source=str(path), validation=0.3)).corpus()
    assert len(list(whole)) == 20 and whole.fingerprint != data.corpus().fingerprint


def test_only_labelled_texts_are_cut(tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("only text\n", encoding="utf-8")
    with pytest.raises(InputError, match="only labelled texts are cut"):
        Corpus(path, format="text", piece_words=3)
