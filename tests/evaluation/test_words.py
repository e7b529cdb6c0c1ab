"""Words of every script: ASCII as rouge-score has them, the others whole."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.evaluation.metrics.texts import ROUGES, bleu, rouge
from quatrain.evaluation.metrics.words import bleu_tokenizer, words

ascii_texts = st.text(st.sampled_from(string.printable), max_size=60) | st.lists(
    st.sampled_from("The cats, cat's running RUNNING don't 5 x86-64 a_b relational".split()), max_size=12
).map(" ".join)


@settings(deadline=None)
@given(ascii_texts, ascii_texts, st.booleans())
def test_ascii_is_scored_exactly_as_by_rouge_score(said: str, true: str, stemming: bool) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer([*ROUGES, "rouge3"], use_stemmer=stemming)
    expected = {kind: score.fmeasure for kind, score in scorer.score(true, said).items()}
    assert rouge([said], [true], kinds=[*ROUGES, "rouge3"], stemming=stemming) == expected


def test_other_scripts_are_scored_by_whole_words() -> None:
    assert rouge(["Привет мир"], ["привет, МИР!"]) == dict.fromkeys(ROUGES, 1.0)
    assert rouge(["Привет 5 мир"], ["Пока 5 друг"])["rouge1"] == pytest.approx(1 / 3)
    assert rouge(["καλημέρα κόσμε"], ["καληνύχτα κόσμε"])["rouge1"] == pytest.approx(1 / 2)
    assert rouge(["naïve café"], ["naive cafe"])["rouge1"] == 0, "an accent makes another word, not another split"
    assert rouge(["नमस्ते दुनिया"], ["नमस्ते भारत"])["rouge1"] == pytest.approx(1 / 2)
    assert rouge(["我爱北京"], ["我爱上海"])["rouge1"] == pytest.approx(2 / 4)
    assert rouge(["我爱北京"], ["我爱上海"])["rouge2"] == pytest.approx(1 / 3)


def test_words_of_scripts() -> None:
    assert words("L’été, 3½ «Straße» STRASSE") == ["l", "été", "3½", "strasse", "strasse"]
    assert words(unicodedata.normalize("NFD", "Über Ångström")) == words("über ångström")
    assert words("東京タワーは333mです") == [*"東京タワーは", "333m", *"です"]
    assert words("안녕하세요 세계") == ["안녕하세요", "세계"]
    assert words("สวัสดี") == ["ส", "วั", "ส", "ดี"], "vowels and tones stay with their consonant"
    assert words("مرحبا بالعالم") == ["مرحبا", "بالعالم"]
    assert words("می\u200cخواهم co\u00adop") == ["میخواهم", "coop"]
    assert words("🙂 — …") == []


@settings(deadline=None)
@given(st.text(max_size=40))
def test_a_text_with_words_is_like_itself(text: str) -> None:
    assert rouge([text], [text], kinds=["rouge1"])["rouge1"] == (1.0 if words(text) else 0.0)
    assert not any(character.isspace() for word in words(text) for character in word)


def test_bleu_is_tokenized_for_its_script() -> None:
    assert bleu_tokenizer(["The cat sat.", "Привет"]) == bleu_tokenizer([""]) == "13a"
    assert bleu_tokenizer(["我爱北京天安门。", "Hello"]) == "zh"
    assert bleu_tokenizer(["東京タワーはとても高いです。"]) == bleu_tokenizer(["สวัสดีชาวโลก"]) == "char"
    chinese = ["我爱北京天安门。"]
    assert bleu(chinese, chinese, tokenize="auto")["bleu"] == pytest.approx(100)
    assert "tok:zh" in str(bleu(chinese, chinese, tokenize="auto")["signature"])
    english = ["the cat sat on a mat"]
    assert bleu(english, english, tokenize="auto") == bleu(english, english)
