"""Measures of suites against the reference libraries, and a test for each fault that peers have."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from quatrain.core.errors import InputError
from quatrain.data.records import Row
from quatrain.evaluation.metrics import rouge
from quatrain.evaluation.metrics.ranking import (
    average_precision,
    ndcg,
    precision,
    ranked,
    recall,
    reciprocal_rank,
)
from quatrain.evaluation.metrics.texts import bleu, bleu_of, bleu_statistics, chrf, chrf_of, chrf_statistics
from quatrain.evaluation.subject import Likelihood
from quatrain.evaluation.suite import suite_class
from quatrain.evaluation.suite_run import result_of
from quatrain.evaluation.suites.instructions import CONSTRAINTS, built_in, followed, loosely_followed
from quatrain.evaluation.suites.winrate import length_controlled

DATA = os.environ.get("QUATRAIN_DATA")
shared = pytest.mark.skipif(not DATA or not (Path(DATA) / "tagging").is_dir(), reason="QUATRAIN_DATA is not set")


def scores_of(suite, rows, outputs) -> dict[str, float]:
    return {measure.name: measure.value for measure in suite.measures(rows, outputs)}


# Baselines on the shared data, equal to what was measured independently


@shared
@pytest.mark.parametrize(
    ("name", "source", "baseline", "metric", "value"),
    [
        ("qa", "squad2-normans", "always abstain", "f1", 53.8),
        ("qa", "squad2-complexity", "always abstain", "f1", 52.9),
        ("tagging", "ud-ewt-dev", "each word's most frequent tag in ud-ewt-train", "accuracy", 84.5),
        ("classification", "sst2-test", "TF-IDF and logistic regression on sst2-train", "accuracy", 79.0),
        ("summarization", "dialogsum-test", "the first three turns or sentences", "rouge1", 27.1),
        ("summarization", "dialogsum-test", "the first three turns or sentences", "rouge2", 6.6),
        ("summarization", "dialogsum-test", "the first three turns or sentences", "rougeL", 20.7),
        ("summarization", "dialogsum-test", "human against human", "rouge1", 54.8),
        ("summarization", "dialogsum-test", "human against human", "rouge2", 28.6),
        ("summarization", "dialogsum-test", "human against human", "rougeL", 46.5),
    ],
)
def test_baselines_on_the_shared_data(name, source, baseline, metric, value):
    if name == "classification":
        pytest.importorskip("sklearn")
    assert measured(name, source)[baseline][metric] == pytest.approx(value, abs=0.05)


_measured: dict[tuple[str, str], dict[str, dict[str, float]]] = {}


def measured(name: str, source: str) -> dict[str, dict[str, float]]:
    """The scores of all baselines in per cent, computed once."""
    if (name, source) not in _measured:
        suite = suite_class(name)(source)
        rows = suite.read()
        _measured[name, source] = {
            baseline.name: {
                measure.name: 100 * measure.value
                for measure in baseline.measures or suite.measures(rows, baseline.outputs)
            }
            for baseline in suite.baselines(rows)
        }
    return _measured[name, source]


@shared
def test_no_accuracy_is_given_of_entities():
    """A tagger that finds no entity is right on 92.4 % of WNUT-2017's words; its score here is 0."""
    suite = suite_class("tagging")("wnut17-test")
    rows = suite.read()
    nothing = [{"tags": ["O"] * len(row.value["words"])} for row in rows]
    assert np.mean([tag == "O" for row in rows for tag in suite.tags(row)]) == pytest.approx(0.924, abs=0.001)
    found = scores_of(suite, rows, nothing)
    assert set(found.values()) == {0.0} and not any("accuracy" in name for name in found)
    assert not any("accuracy" in each["name"] for each in result_of(suite, rows, nothing)["scores"])


# Against the libraries


def test_rankings_are_scored_as_by_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    draw = random.Random(0)
    names = [f"d{number}" for number in range(300)]
    qrels = {f"q{q}": {draw.choice(names): draw.choice([0, 1, 2, 4, -1]) for _ in range(12)} for q in range(20)}
    # Few different scores, so that ties occur.
    run = {name: {each: float(draw.randrange(40)) for each in draw.sample(names, 200)} for name in qrels}
    keys = ("ndcg_cut_10", "map", "recip_rank", "recall_100", "P_10")
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map", "recip_rank", "recall.100", "P.10"}).evaluate(
        run
    )
    for name, scores in run.items():
        own, relevance = ranked(scores), qrels[name]
        ours = (ndcg(own, relevance), average_precision(own, relevance), reciprocal_rank(own, relevance),
                recall(own, relevance), precision(own, relevance))  # fmt: skip
        assert ours == pytest.approx([theirs[name][key] for key in keys])


PREDICTIONS = ["the cat sat on the mat .", "A dog, and a cat!", "", "Eine Katze sitzt."]
REFERENCES = [["the cat is on the mat .", "there is a cat on the mat ."], ["A dog and a cat."], ["nothing"],
              ["Eine Katze sitzt hier.", "Die Katze sitzt.", "Katzen"]]  # fmt: skip


@pytest.mark.parametrize("tokenize", ["13a", "none", "intl"])
def test_sums_of_bleu_give_corpus_bleu(tokenize):
    pytest.importorskip("sacrebleu")
    sums = np.asarray(bleu_statistics(PREDICTIONS, REFERENCES, tokenize=tokenize)).sum(0)
    assert bleu_of(sums.tolist()) == pytest.approx(bleu(PREDICTIONS, REFERENCES, tokenize=tokenize)["bleu"])


def test_sums_of_chrf_give_corpus_chrf():
    pytest.importorskip("sacrebleu")
    for predictions, references in ((PREDICTIONS, REFERENCES), (PREDICTIONS[:1], REFERENCES[:1]), (["ab"], [["abc"]])):
        sums = np.asarray(chrf_statistics(predictions, references)).sum(0)
        assert chrf_of(sums.tolist()) == pytest.approx(chrf(predictions, references)["chrf"], abs=1e-6)


def test_summaries_are_scored_as_by_rouge_score():
    scorer_of = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer
    suite = suite_class("summarization")("unused")
    rows = [Row("1", {"source": "s", "target": "The dogs were walking home. They slept.",
                      "references": ["The dogs were walking home. They slept.", "A dog walks home."]})]  # fmt: skip
    text = "A dog walked home.\nIt sleeps."
    found = scores_of(suite, rows, [{"text": text}])
    for stemming, ending in ((True, ""), (False, "_unstemmed")):
        scorer = scorer_of(["rouge1", "rouge2", "rougeL"], use_stemmer=stemming)
        theirs = [scorer.score(reference, text) for reference in rows[0].value["references"]]
        for kind in ("rouge1", "rouge2", "rougeL"):
            assert found[kind + ending] == pytest.approx(np.mean([score[kind].fmeasure for score in theirs]))
            if stemming:
                assert found[f"{kind}_best"] == pytest.approx(max(score[kind].fmeasure for score in theirs))
    assert found["rouge1"] > found["rouge1_unstemmed"]


def test_entities_are_scored_as_by_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    draw = random.Random(1)
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    true = [[draw.choice(tags) for _ in range(8)] for _ in range(30)]
    predicted = [[draw.choice(tags) if draw.random() < 0.3 else tag for tag in own] for own in true]
    rows = [Row(str(number), {"words": ["w"] * 8, "tags": own}) for number, own in enumerate(true)]
    found = scores_of(suite_class("tagging")("unused"), rows, [{"tags": own} for own in predicted])
    assert found["entity_f1"] == pytest.approx(metrics.f1_score(true, predicted))
    assert found["entity_f1_macro"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    assert found["entity_f1_weighted"] == pytest.approx(metrics.f1_score(true, predicted, average="weighted"))


def test_strict_answers_are_those_of_lm_eval():
    filters = pytest.importorskip("lm_eval.filters.extraction")
    texts = ["so #### 1,234", "#### 12.", "#### $5", "no", "#### -3 and 4", "#### 29.00"]
    rights = ["1234", "12", "5", "7", "-3", "29"]
    extract = filters.RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)")
    theirs = [
        found.replace(",", "").removesuffix(".") for (found,) in extract.apply([[text] for text in texts], [{}] * 6)
    ]
    suite = suite_class("gsm8k")("unused", shots=0)
    rows = [Row("1", {"question": "q", "answer": f"#### {right}"}) for right in rights]
    ours = next(m for m in suite.measures(rows, [{"text": text} for text in texts]) if m.name == "strict_text")
    expected = [float(one == other) for one, other in zip(theirs, rights, strict=True)]
    expected[2] = 1.0  # lm-eval's pattern does not read a dollar sign after ####
    assert ours.values.tolist() == expected


# Faults of peers


def test_identical_cyrillic_texts_score_one():
    assert rouge(["Привет, мир"], ["Привет, мир"], kinds=["rouge1", "rougeL"]) == {"rouge1": 1.0, "rougeL": 1.0}
    suite = suite_class("summarization")("unused")
    found = scores_of(suite, [Row("1", {"source": "s", "target": "Привет мир. Как дела?"})],
                      [{"text": "Привет мир. Как дела?"}])  # fmt: skip
    assert all(value == 1.0 for value in found.values())


def test_lsum_differs_by_line_breaks():
    suite = suite_class("summarization")("unused")
    rows = [Row("1", {"source": "s", "target": "One cat sat here. Two dogs ran there."})]
    found = scores_of(suite, rows, [{"text": "Two dogs ran there. One cat sat here."}])
    assert found["rougeLsum"] == pytest.approx(found["rougeL"]) and found["rougeL"] < 1
    assert found["rougeLsum_lines"] == 1.0


@pytest.mark.parametrize("metric", [
    lambda one, other: bleu_statistics(one, other, tokenize="13a"), chrf_statistics, rouge, bleu, chrf,
], ids=["bleu_statistics", "chrf_statistics", "rouge", "bleu", "chrf"])  # fmt: skip
def test_unequal_counts_of_texts_and_references_are_refused(metric):
    with pytest.raises(InputError, match="2 predictions for 1 references"):
        metric(["a", "b"], ["a"])


@pytest.mark.parametrize(("text", "score"), [
    ("unanswerable", 1.0), ("Unanswerable.", 1.0), ("", 1.0), ("no answer", 1.0), ("the Normans", 0.0),
])  # fmt: skip
def test_a_right_unanswerable_scores_one(text, score):
    suite = suite_class("qa")("unused")
    row = Row("1", {"context": "c", "question": "q", "answers": {"text": [], "answer_start": []}})
    assert scores_of(suite, [row], [{"text": text}])["f1"] == score
    answered = Row("1", {"context": "c", "question": "q", "answers": {"text": ["The Normans"], "answer_start": [0]}})
    assert scores_of(suite, [answered], [{"text": text}])["f1"] == float(text == "the Normans")


# Instructions


@pytest.mark.parametrize(("name", "options", "right", "wrong"), [
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "two words", "now three words"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "One. Two.", "One."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n\nb", "a\nb"),
    ("keywords:existence", {"keywords": ["cat"]}, "A Cat.", "concatenate"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "a cat"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a or a", "a"),
    ("keywords:letter_frequency", {"letter": "k", "let_frequency": 1, "let_relation": "less than"}, "no", "K"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a"),
    ("detectable_format:title", {}, "<<x>> y", "<< >>"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a}"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*this*", "* this"),
    ("change_case:english_lowercase", {}, "all low", "All"),
    ("change_case:english_capital", {}, "ALL 1", "All"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
    ("startend:end_checker", {"end_phrase": "That is all."}, "So. that is all.", "That is all. Bye"),
    ("startend:quotation", {}, '"x"', 'x"'),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a P.S. b", "a P.S."),
])  # fmt: skip
def test_each_check_accepts_and_refuses(name, options, right, wrong):
    row = Row("1", {"prompt": "p", "names": [name], "options": [options]})
    assert followed(row, right) == [True] and followed(row, wrong) == [False]
    assert followed(row, "") == [False]  # saying nothing follows no instruction
    assert name in CONSTRAINTS


def test_a_preface_counts_loosely_alone():
    row = Row("1", {"prompt": "p", "names": ["change_case:english_lowercase"], "options": [{}]})
    assert followed(row, "Sure, here it is:\nall low") == [False]
    assert loosely_followed(row, "Sure, here it is:\nall low") == [True]


def test_the_built_in_prompts_use_every_instruction():
    rows = built_in(0)
    assert rows == built_in(0) and rows != built_in(1)
    assert {name for row in rows for name in row["instruction_id_list"]} == set(CONSTRAINTS)
    parsed = [suite_class("instructions")().parse(row) for row in rows]
    assert all(value["prompt"] for value in parsed)
    with pytest.raises(ValueError, match="unknown instructions"):
        suite_class("instructions")().parse({"prompt": "p", "instruction_id_list": ["x"], "kwargs": [{}]})


# Win rates


class PositionJudge:
    """Prefers answer A, whatever it says."""

    name, has_chat = "judge", False

    def likelihoods(self, prompts, completions):
        return [Likelihood(0.0 if text == " A" else -9.0, 1) for text in completions]


def test_a_judge_of_positions_decides_nothing():
    suite = suite_class("winrate")("unused", judge="unused")
    suite._judge = PositionJudge()
    rows = [Row(str(number), {"instruction": "i", "output": "reference"}) for number in range(8)]
    preferred = suite.judged(rows, ["mine"] * 8)
    found = scores_of(suite, rows, [{"text": "mine", "preferred": own} for own in preferred])
    assert found["win_rate"] == pytest.approx(0.5) and found["win_rate_as_a"] > 0.99 and found["consistent"] == 0


def test_the_length_controlled_rate_takes_length_out():
    """A judge that prefers the longer answer alone: the raw rate follows the lengths, the controlled one is half."""
    draw = np.random.default_rng(0)
    lengths = draw.normal(100, 100, 800)
    wins = (draw.random(800) < 1 / (1 + np.exp(-lengths / 60))).astype(float)
    assert wins.mean() > 0.7
    assert length_controlled(wins, lengths).value == pytest.approx(0.5, abs=0.07)


def test_winrate_needs_a_judge():
    with pytest.raises(InputError, match="--judge"):
        _ = suite_class("winrate")("unused").judge
