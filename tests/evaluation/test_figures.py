"""Figures that stages leave: charts of every kind, and pictures of words in their sentences."""

import re

import pytest

from quatrain.core.errors import InputError
from quatrain.evaluation.charts import Point, heat_chart, point_chart
from quatrain.evaluation.evaluate import bleu_by_length
from quatrain.evaluation.inspection.contextual import contextual_picture, occurrences
from quatrain.evaluation.report.figures import DRAWN, figures
from quatrain.evaluation.report.reading import StageRecord
from quatrain.evaluation.report.sections import _ngram
from quatrain.models.classic.elmo import Elmo, ElmoConfig
from quatrain.models.classic.recurrent import RecurrentLM, RecurrentLMConfig

FIGURES = [
    {"kind": "lines", "title": "<a>", "lines": [{"name": "x", "x": [1, 2], "y": [3, None]}],
     "x_label": "", "y_label": ""},
    {"kind": "points", "title": "b", "points": [{"label": "one", "x": 0, "y": 2}, {"label": "two", "x": 90, "y": 1}],
     "x_label": "", "y_label": ""},
    {"kind": "bars", "title": "c", "bars": [{"label": "<l>", "value": 0.5, "text": "50%"}]},
    {"kind": "heat", "title": "d", "rows": ["r"], "columns": ["p", "q"], "values": [[0.25, float("nan")]]},
]  # fmt: skip


def stage(found):
    return StageRecord("01-x", "x", result={"figures": found})


def test_every_kind_is_drawn_and_a_damaged_figure_left_out():
    assert {figure["kind"] for figure in FIGURES} == set(DRAWN)
    damaged = [{"kind": "lines"}, {"kind": "unknown", "title": "e"}, "text", {"title": "f"}]
    (section,) = figures([stage([*damaged, *FIGURES])], {"01-x": "x"})
    assert [figure["title"] for figure in section["figures"]] == ["<a>", "b", "c", "d"]
    for figure in section["figures"]:
        assert figure["chart"].startswith("<svg") and "nan" not in figure["chart"].lower()
        assert "<a>" not in figure["chart"] and "<l>" not in figure["chart"]
    assert figures([stage(None)], {"01-x": "x"}) is None


def test_points_stand_over_a_logarithmic_axis():
    points = [Point("a", 1, 1.0), Point("b", 10, 2.0), Point("c", 100, 3.0), Point("d", 0, 4.0)]
    chart = point_chart(points, label="", x_label="s", y_label="bits")
    places = [float(x) for x in re.findall(r'<circle class="dot single" cx="([\d.]+)"', chart)]
    one, ten, hundred, zero = places
    assert ten - one == pytest.approx(hundred - ten, abs=0.2) and zero == one
    assert "nothing to draw" in point_chart([], label="", x_label="", y_label="")
    near = [
        Point("three words long", 10, 2.0),
        Point("other", 11, 2.02),
        Point("third", 12, 2.04),
        Point("far", 1, 9.0),
    ]
    chart = point_chart(near, label="", x_label="s", y_label="bits")
    dots = [tuple(map(float, place)) for place in re.findall(r'single" cx="([\d.]+)" cy="([\d.]+)"', chart)]
    named = [text for text in re.findall(r'<text class="legend" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', chart)]
    assert len(dots) == len(named) == 4
    for x, y, name in ((float(x), float(y), name) for x, y, name in named):
        assert not any(x < dot < x + 6 * len(name) and abs(y - 4 - other) < 9 for dot, other in dots), name
    assert heat_chart(["r"], ["c"], [[2.0]], label="").count('fill-opacity="1.000"') == 1


def test_bleu_is_measured_in_groups_by_length():
    pytest.importorskip("sacrebleu")
    sources = [" ".join(["word"] * (1 + number % 10)) for number in range(100)]
    right = [[f"{source} end of it"] for source in sources]
    texts = [references[0] if len(references[0].split()) < 9 else "nothing at all here" for references in right]
    (line,) = bleu_by_length(texts, right, sources)["lines"]
    assert len(line["x"]) == 5 and line["x"] == sorted(line["x"])
    assert line["y"][0] == pytest.approx(100) and line["y"][-1] < 10
    assert bleu_by_length(texts[:50], right[:50], sources[:50]) is None


def test_a_word_is_found_in_its_sentences():
    letters = " abcdefghijklmnopqrstuvwxyz."
    model = Elmo(ElmoConfig(vocab_size=28, hidden_size=8, word_vocab_size=9, boundary_token_ids=[0])).initialize(0)
    encode = lambda text: [letters.index(letter) for letter in text]  # noqa: E731
    sentences = ["play a game", "a long play.", "nothing of it"]
    found = occurrences(model, encode, sentences, "play")
    assert [(each.sentence, each.place) for each in found] == [(0, 0), (1, 2)]
    assert contextual_picture(model, encode, sentences, "play").count("<circle") == 2
    assert contextual_picture(model, encode, sentences[:1], "play").count("<circle") == 1
    with pytest.raises(InputError, match="occurs in none of the 3 sentences"):
        occurrences(model, encode, sentences, "absent")
    plain = RecurrentLM(RecurrentLMConfig(vocab_size=28)).initialize(0)
    with pytest.raises(InputError, match="gives words no vectors"):
        occurrences(plain, encode, sentences, "play")


@pytest.mark.parametrize(
    ("own", "words"), [(1.4, "0.120 above the model's"), (1.6, "it still wins"), (None, None), ("x", None)]
)
def test_the_counted_model_to_beat_is_named(own, words):
    counted = {"order": 7, "loss": 1.52, "seconds": 3.0}
    notes = _ngram(StageRecord("01-x", "x", result={"ngram": counted, "validation_loss": own}))
    assert len(notes) == (words is not None)
    if words is not None:
        assert words in notes[0] and notes[0].startswith("a 7-gram")
    assert _ngram(StageRecord("01-x", "x", result={"ngram": {"loss": "?"}, "validation_loss": 1.0})) == []
