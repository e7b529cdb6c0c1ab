"""The reward by words: naive Bayes by hand, labels that examples ask for, and wrong settings."""

import math

import pytest

from quatrain.alignment.rewards.base import RewardContext
from quatrain.alignment.rewards.words import WordsReward
from quatrain.core.errors import InputError
from quatrain.core.settings import parse


def test_words_learn_a_label_from_texts(tmp_path):
    path = tmp_path / "reviews.tsv"
    rows = ["a fine film\tgood", "fine and warm\tgood", "a dull film\tbad", "dull , not fine\tbad", "not warm\tbad"]
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    texts = ["so fine", "so dull", "not fine", "unseen"]
    good = WordsReward(source=str(path), label="good").build(RewardContext())([None] * 4, texts)
    assert good[0] > good[3] > good[1] and good[2] < good[0]
    # Naive Bayes by hand: "fine" is the one known feature, in 2 good texts and 1 bad one. The good texts have 10
    # features, the bad ones 15, and there are 18 different ones.
    expected = math.log(2 / 3) + math.log((2 + 1) / (10 + 18)) - math.log((1 + 1) / (15 + 18))
    assert good[0] == pytest.approx(expected)
    bad = WordsReward(source=str(path), label="good", flip=True).build(RewardContext())([None] * 4, texts)
    assert bad == [-score for score in good]
    asked = WordsReward(source=str(path), label_field="want", undecided="neither").build(RewardContext())
    examples = [{"want": want} for want in ("good", "bad", "neither", "good")]
    assert asked(examples, ["so fine"] * 4) == pytest.approx([good[0], -good[0], -abs(good[0]), good[0]])
    with pytest.raises(InputError, match="has bad, good"):
        WordsReward(source=str(path), label="great").build(RewardContext())([None], ["fine"])


def test_words_need_two_labels_and_one_way_to_ask(tmp_path):
    path = tmp_path / "one.tsv"
    path.write_text("text\tlabel\na fine film\tgood\nfine and warm\tgood\n")
    with pytest.raises(InputError, match="two labels"):
        WordsReward(source=str(path), label="good").build(RewardContext())
    for wrong in ({}, {"label": "a", "label_field": "b"}):
        with pytest.raises(InputError, match="must have exactly one"):
            parse(WordsReward, {"source": "x", **wrong})
