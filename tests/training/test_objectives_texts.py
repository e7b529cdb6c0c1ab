"""Records become what a model reads: tokenizers' own truncation and windows, answers exactly back, words once each."""

import gzip
import json
import os
from pathlib import Path

import objective_setup as setup
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.data.records import Row
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import objectives as o
from quatrain.training.objectives.answers import ContextWindow
from quatrain.training.objectives.tagging import word_tokens
from quatrain.training.objectives.texts import frame, shortened

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")
WORDPIECE, BYTES, SENTINELS = setup.wordpiece(), setup.byte_level(), setup.with_sentinels()
LABELS = ["no", "perhaps", "yes"]
WORDS = sorted({word for text in setup.TEXTS for word in text.replace(".", "").replace(",", "").split()})
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The tokenizer of bert-base-uncased, of its vocabulary file."""
    if not DATA.is_dir():
        pytest.skip("QUATRAIN_DATA names no folder of shared data")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_bytes((DATA / "tokenizers" / "bert_base_uncased_vocab.txt").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return Tokenizer.load(folder)


@settings(deadline=None)
@given(texts, texts, st.integers(6, 60))
def test_pairs_are_cut_as_tokenizers_cut_them(one, other, limit):
    for tokenizer in (WORDPIECE, BYTES):
        pair = tokenizer.encode_pair(one, other)
        tokenizer.backend.enable_truncation(limit, strategy="longest_first")
        expected = tokenizer.backend.encode(one, other)
        tokenizer.backend.no_truncation()
        found = shortened(pair, limit)
        assert (found.ids, found.token_types) == (expected.ids, expected.type_ids)


@settings(deadline=None)
@given(texts, st.integers(4, 30))
def test_texts_are_cut_as_tokenizers_cut_them(text, limit):
    for tokenizer in (WORDPIECE, BYTES, SENTINELS):
        tokenizer.backend.enable_truncation(limit)
        expected = tokenizer.backend.encode(text).ids
        tokenizer.backend.no_truncation()
        objective = o.SequenceClassification(tokenizer, LABELS, max_length=limit)
        (row,) = objective.encode({"text": text, "label": "yes"})
        assert row.ids == expected and row.cut == len(tokenizer.encode(text, special_tokens=True)) - len(expected)


def test_frames_of_tokenizers():
    assert frame(WORDPIECE) == ([WORDPIECE.bos_id], [WORDPIECE.eos_id])
    assert frame(BYTES) == ([BYTES.bos_id], [BYTES.eos_id])
    assert frame(SENTINELS) == ([], [])
    assert frame(Tokenizer.train(["xyz"], kind="char")) == ([], [])


def test_what_is_cut_is_said():
    objective = o.SequenceClassification(WORDPIECE, LABELS, max_length=12)
    _, notes = objective.prepare([{"text": text, "label": "no"} for text in [*setup.TEXTS, "the fox"]])
    assert notes[0].startswith("6 of 7 examples are longer than 12 tokens and were cut: ")
    assert o.SequenceClassification(WORDPIECE, LABELS).prepare([{"text": setup.TEXTS[0], "label": "no"}])[1] == []


def test_labels_by_name_number_and_text():
    objective = o.SequenceClassification(WORDPIECE, LABELS)
    made = objective.collate([{"text": "a fox", "label": label} for label in ("yes", "no")])
    assert made.labels.tolist() == [2, 0]
    assert objective.collate([{"text": "a fox", "label": label} for label in (2, 0)]).labels.tolist() == [2, 0]
    numbered = o.SequenceClassification(WORDPIECE, LABELS, numbered=True)
    assert numbered.collate([{"text": "a fox", "label": label} for label in ("2", "0")]).labels.tolist() == [2, 0]
    several = o.SequenceClassification(WORDPIECE, LABELS, problem_type="multi_label")
    made = several.collate([{"text": "a fox", "labels": labels} for labels in ([], ["no", "yes"], ["perhaps"])])
    assert made.labels.tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 0]]
    numbers = o.SequenceClassification(WORDPIECE, ["x", "y"], problem_type="regression")
    assert numbers.collate([{"text": "a fox", "label": [0.5, "2"]}]).labels.tolist() == [[0.5, 2.0]]


def test_numbers_are_places_only_where_the_data_says_so():
    rows = [{"text": "a fox", "label": label} for label in (0, 2)]
    assert o.SequenceClassification(WORDPIECE, LABELS).prepare(rows)[1] == [
        "the labels of the data are numbers, used as indices of the model's labels: 0 is no, 2 is yes"
    ]
    stars = o.SequenceClassification(WORDPIECE, ["1", "2", "3"])
    assert stars.collate([{"text": "a fox", "label": label} for label in (1, "3")]).labels.tolist() == [0, 2]
    default = o.SequenceClassification(WORDPIECE, ["LABEL_0", "LABEL_1"])
    assert default.prepare([{"text": "a fox", "label": "1"}, {"text": "a fox", "label": 0}])[1] == []
    for objective, labels, said in [
        (o.SequenceClassification(WORDPIECE, LABELS), ("0", "2"), "data has the labels 0, 2; the model has no"),
        (o.SequenceClassification(WORDPIECE, LABELS), (0, "yes"), "some labels are names and some are numbers"),
        (o.SequenceClassification(WORDPIECE, LABELS), (0, 3), "the data has the labels 0, 3; the model has"),
        (stars, (0, 1), "the data has the labels 0, 1; the model has 1, 2, 3"),
        (o.TokenClassification(WORDPIECE, LABELS), ("0", "1"), "write names instead of numbers"),
    ]:
        with pytest.raises(InputError) as caught:
            objective.prepare([{"text": "a fox", "label": each, "words": ["a"], "tags": [each]} for each in labels])
        assert said in caught.value.message


def test_typed_records_and_places_are_read():
    from quatrain.data import records

    objective = o.SequenceClassification(WORDPIECE, LABELS)
    typed = records.LabelledText("a fox", None, "yes")
    assert objective.prepare([typed])[0] == objective.prepare([{"text": "a fox", "label": "yes"}])[0]
    assert objective.prepare([Row("x:1", typed)])[0] == objective.prepare([typed])[0]
    tagger = o.TokenClassification(WORDPIECE, LABELS)
    words = records.TaggedTokens(["a", "fox"], ["no", "yes"])
    assert tagger.prepare([words])[0] == tagger.prepare([{"tokens": ["a", "fox"], "tags": ["no", "yes"]}])[0]
    answers = o.ExtractiveQA(WORDPIECE)
    question = records.Question("a quick fox", "what ?", ["quick"], [2], "q1")
    assert answers.prepare([question])[0][0].answers == ("quick",)


sentences = st.lists(st.sampled_from([*WORDS, ",", "walking", "don't", "é", "日本"]), min_size=1, max_size=30)


@settings(deadline=None)
@given(sentences, st.integers(6, 40), st.data())
def test_every_word_counts_once_at_its_first_token(words, limit, data):
    for tokenizer in (WORDPIECE, BYTES, SENTINELS):
        room = limit - sum(map(len, frame(tokenizer)))
        stride = data.draw(st.integers(0, room - 1))
        objective = o.TokenClassification(tokenizer, LABELS, max_length=limit, stride=stride)
        tags = [LABELS[number % 3] for number in range(len(words))]
        found, _ = objective.prepare([{"tokens": words, "tags": tags}])
        assert all(len(each) <= limit and len(each.ids) == len(each.labels) for each in found)
        assert sorted(word for each in found for word in each.words) == list(range(len(words)))
        assert objective.references(found) == [tags]
        ids, owners = word_tokens(tokenizer, words)
        assert ids == tokenizer.encode(" ".join(words))
        before, after = frame(tokenizer)
        assert found[0].ids == [*before, *ids[: len(found[0]) - len(before) - len(after)], *after]
        # The first token of a word is where its text begins.
        whole = [tokenizer.decode(ids[: place + 1]) for place in range(len(ids))]
        assert len(whole) == len(owners)
        counted = [label for each in found for label in each.labels if label != IGNORE_INDEX]
        assert len(counted) == len(words)


def test_words_are_aligned_as_transformers_aligns_them(bert):
    words = "Holmes ' Unbelievable deduction - machine walked Baker Street 1895 .".split()
    encoding = bert.backend.encode(words, is_pretokenized=True, add_special_tokens=False)
    ids, owners = word_tokens(bert, words)
    assert ids == encoding.ids and len(ids) > len(words)
    seen, expected = set(), []
    for word in encoding.word_ids:
        expected.append(None if word in seen else word)
        seen.add(word)
    assert owners == expected


def test_a_word_without_token_is_said_and_gets_the_plain_tag():
    tokenizer = WORDPIECE
    objective = o.TokenClassification(tokenizer, ["B-X", "O"])
    found, notes = objective.prepare([{"tokens": ["fox", "\u200d\u0007", "dog"], "tags": ["B-X", "B-X", "O"]}])
    assert notes == ["words without a token of their own in this tokenizer, which are not learned: 1"]
    assert objective.predictions(found, [[0, 0]]) == [["B-X", "O", "B-X"]]
    with pytest.raises(InputError, match="3 for 2 words"):
        objective.predictions(found, [[0, 0, 0]])


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=3, max_size=70), st.integers(24, 60), st.data())
def test_windows_are_those_of_tokenizers_and_answers_come_back(words, limit, data):
    """The same ids as truncation with stride; in every window that holds it, the answer's tokens say its text."""
    question, context = "what jumps ?", " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(len(words) - 1, first + 4)))
    begin = len(" ".join(words[:first])) + (first > 0)
    answer = " ".join(words[first : last + 1])
    for tokenizer in (WORDPIECE, BYTES):
        stride = data.draw(st.integers(0, 10))
        tokenizer.backend.enable_truncation(limit, stride=stride, strategy="only_second")
        encoding = tokenizer.backend.encode(question, context)
        tokenizer.backend.no_truncation()
        objective = o.ExtractiveQA(tokenizer, max_length=limit, stride=stride)
        record = {"question": question, "context": context, "answers": [{"text": answer, "answer_start": begin}]}
        windows, _ = objective.prepare([record])
        assert [window.ids for window in windows] == [each.ids for each in (encoding, *encoding.overflowing)]
        assert [window.first for window in windows] == [True] + [False] * (len(windows) - 1)
        held = 0
        for window in windows:
            inside = [span for span in window.offsets if span is not None]
            if inside[0][0] <= begin and inside[-1][1] >= begin + len(answer):
                held += 1
                assert window.exact and window.text(*window.span) == answer
            else:
                assert window.span == (0, 0) == (window.none, window.none)
        if len(tokenizer.encode(answer)) <= stride:
            assert held >= 1


def crowned(window: ContextWindow, span, high=10.0):
    logits = torch.zeros(len(window) + 3, 2)
    logits[span[0], 0] = logits[span[1], 1] = high
    return logits


def test_the_best_answer_over_all_windows():
    objective = o.ExtractiveQA(WORDPIECE, max_length=30, stride=10)
    context = " ".join(setup.TEXTS[:3])
    windows = objective.windows("what ?", context)
    assert len(windows) > 3
    second = windows[1]
    inside = [place for place, span in enumerate(second.offsets) if span is not None]
    wanted = second.text(inside[3], inside[5])
    logits = [crowned(window, (0, 0), 4.0) for window in windows]
    logits[1] = crowned(second, (inside[3], inside[5]))
    ranked = o.best_answers(windows, logits)[0]
    assert ranked[0].text == wanted and ranked[0].score == 20
    assert abs(sum(answer.probability for answer in ranked) - 1) < 1e-9 and len(ranked) == 20
    assert [answer.score for answer in ranked] == sorted((answer.score for answer in ranked), reverse=True)
    assert len({answer.text for answer in ranked}) == len(ranked)
    # The score of no answer is the lowest of the windows': here 0, of the second one.
    with_none = o.best_answers(windows, logits, may_be_none=True)[0]
    assert with_none[0].text == wanted and "" in [answer.text for answer in with_none]
    sure = [crowned(window, (0, 0), 15.0) for window in windows]
    assert o.best_answers(windows, sure, may_be_none=True)[0][0].text == ""
    assert o.best_answers(windows, sure)[0][0].text != ""
    assert o.best_answers(windows, sure, may_be_none=True, threshold=40.0)[0][0].text != ""


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8))
def test_the_best_span_is_that_of_trying_all(seed, n_best, longest):
    window = o.ExtractiveQA(WORDPIECE).windows("what ?", setup.TEXTS[0])[0]
    logits = torch.randn(len(window), 2, generator=torch.Generator().manual_seed(seed))
    places = [place for place, span in enumerate(window.offsets) if span is not None]
    tops = [set(sorted(places, key=lambda place: -logits[place, side])[:n_best]) for side in (0, 1)]
    tried = [
        (float(logits[start, 0] + logits[end, 1]), window.text(start, end))
        for start in tops[0]
        for end in tops[1]
        if start <= end < start + longest
    ]
    best = o.best_answers([window], [logits], n_best=n_best, longest=longest)[0][0]
    if tried:
        assert (best.text, pytest.approx(best.score)) == (max(tried)[1], max(tried)[0])
    else:
        assert best.text == ""


def squad(name):
    with gzip.open(DATA / "qa" / name, "rt", encoding="utf-8") as file:
        data = json.load(file)["data"]
    for article in data:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {**question, "context": paragraph["context"]}


@needs_data
@pytest.mark.parametrize("name", ["squad_sample_dev.json.gz", "squad2_normans.json.gz"])
def test_answers_of_squad_come_back(bert, name):
    """The windows' labels, read back as text, are the answers of the file (but those that end within a token)."""
    objective = o.ExtractiveQA(bert, max_length=128, stride=48)
    records = list(squad(name))[:200]
    windows, notes = objective.prepare(records)
    found = []
    for window in windows:
        if window.first:
            found.append(set())
        if window.span != (window.none, window.none):
            found[-1].add(window.text(*window.span))
    inexact = 0
    for record, answers in zip(records, found, strict=True):
        if not record["answers"]:
            assert not answers
        else:
            text = record["answers"][0]["text"].strip()
            inexact += answers != {text}
            assert all(text in answer for answer in answers)
    assert inexact <= 6
    logits = [crowned(window, window.span) for window in windows]
    best = o.best_answers(windows, logits, may_be_none=True)
    assert len(best) == len(records) and notes


FAULTS = {
    "a label": (
        lambda: o.SequenceClassification(WORDPIECE, LABELS).prepare(
            [{"text": "x", "label": "maybe"}, {"text": "x"}, {"text": 5, "label": 3}, {"label": "no", "text": " "}]
        ),
        ['example 1: label: "maybe"; must be one of no, perhaps, yes, or a number from 0 to 2',
         "example 2: label: missing; the fields of this record are: text",
         "example 3: text: 5; must be text",
         "example 3: label: 3; must be one of no, perhaps, yes, or a number from 0 to 2",
         "example 4: text: is empty; must contain text"],
    ),
    "multi_label": (
        lambda: o.SequenceClassification(WORDPIECE, LABELS, problem_type="multi_label").prepare(
            [{"text": "x", "labels": "no"}, {"text": "x", "labels": [True]}]
        ),
        ['example 1: labels: "no"; must be a list of label names',
         "example 2: labels: true; must be one of no, perhaps, yes, or a number from 0 to 2"],
    ),
    "a number": (
        lambda: o.SequenceClassification(WORDPIECE, ["s"], problem_type="regression").prepare(
            [{"text": "x", "label": "much"}, {"text": "x", "label": float("nan")}, {"text": "x", "label": [1, 2]}]
        ),
        ['example 1: label: "much"; must be a number', "example 2: label: nan; must be a number",
         "example 3: label: [1, 2]; must be a number"],
    ),
    "tags": (
        lambda: o.TokenClassification(WORDPIECE, LABELS).prepare(
            [{"tokens": ["a", "b"], "tags": ["no"]}, {"tokens": "a b", "tags": ["no"]},
             {"tokens": ["a"], "tags": ["B-X"]}, {"tokens": ["a", " "], "tags": [0, 1]}, {"tokens": [], "tags": []}]
        ),
        ["example 1: tags: 1 for 2 tokens; must be one for each", 'example 2: tokens: "a b"; must be a list of texts',
         'example 3: tags: number 1: "B-X"; must be one of no, perhaps, yes, or a number from 0 to 2',
         "example 4: tokens: number 2 is empty", "example 5: tokens: 0 of them; must be at least 1"],
    ),
    "answers": (
        lambda: o.ExtractiveQA(WORDPIECE).prepare(
            [{"question": "what ?", "context": "a quick fox", "answers": [{"text": "fox", "answer_start": 2}]},
             {"question": "what ?", "context": "a quick fox", "answers": [{"text": "dog", "answer_start": 2}]},
             {"question": "what ?", "context": "a quick fox", "answers": {"text": ["fox"], "answer_start": []}},
             {"question": "what ?", "context": "a quick fox"}]
        ),
        ['example 1: answers: number 1: "fox" is not at character 2, which has "qui"; it starts at 8',
         'example 2: answers: number 1: "dog" is not at character 2, which has "qui"; the context does not '
         "contain it",
         'example 3: answers: {"text": ["fox"], "answer_start": []}; must have the lists text and answer_start, of one '
         "length", "example 4: answers: missing; the fields of this record are: question, context"],
    ),
    "choices": (
        lambda: o.MultipleChoice(WORDPIECE).prepare(
            [{"question": "x", "choices": ["a"], "label": 0}, {"question": "x", "choices": ["a", "b"], "label": "D"}]
        ),
        ["example 1: choices: 1 of them; must be at least 2",
         "example 2: label: 3; must be from 0 to 1, or a letter from A on"],
    ),
    "translations": (
        lambda: o.Seq2Seq(SENTINELS).prepare([{"source": "x"}, {"source": "", "target": "y"}]),
        ["example 1: target: missing; the fields of this record are: source",
         "example 2: source: is empty; must contain text"],
    ),
    "scores": (
        lambda: o.CosineSimilarity(WORDPIECE, highest=5).prepare([{"text": "x", "text_pair": "y", "score": 6}]),
        ["example 1: score: 6; must be a number from 0 to 5"],
    ),
    "anchors": (
        lambda: o.Contrastive(WORDPIECE).prepare([{"anchor": "x", "negative": ""}]),
        ["example 1: positive: missing; the fields of this record are: anchor, negative"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_every_record_is_told(fault):
    act, told = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        act()
    assert caught.value.problems[: len(told)] == told


SETTINGS = {
    "no labels": (lambda: o.SequenceClassification(WORDPIECE, []), "labels: none"),
    "twice": (lambda: o.TokenClassification(WORDPIECE, ["a", "a"]), "labels: a more than once"),
    "one text": (lambda: o.TokenClassification(WORDPIECE, "ab"), 'labels: "ab"; must be a list of names'),
    "problem": (lambda: o.SequenceClassification(WORDPIECE, LABELS, problem_type="many"), "problem_type: 'many'; must"),
    "stride": (lambda: o.TokenClassification(WORDPIECE, LABELS, max_length=12, stride=10), "stride: 10; .* below 10"),
    "negative stride": (lambda: o.ExtractiveQA(WORDPIECE, stride=-1), "stride: -1; must be a whole number"),
    "temperature": (lambda: o.Contrastive(WORDPIECE, temperature=0), "temperature: 0; must be above 0"),
    "scale": (lambda: o.CosineSimilarity(WORDPIECE, lowest=1, highest=1), "lowest must be below highest"),
    "smoothing": (lambda: o.Seq2Seq(SENTINELS, label_smoothing=1), "label_smoothing: 1; must be at least 0 and"),
    "no end": (
        lambda: o.Seq2Seq(Tokenizer.train(["abc"], kind="char")), "target_tokenizer: has no end token"),
    "long question": (
        lambda: o.ExtractiveQA(WORDPIECE, max_length=20, stride=8).prepare(
            [{"question": setup.TEXTS[0], "context": setup.TEXTS[1], "answers": []}]),
        "example 1: question: with its special tokens it has"),
    "short pairs": (
        lambda: o.SequenceClassification(WORDPIECE, LABELS, max_length=4).encode(
            {"text": "the fox", "text_pair": "the dog", "label": 0}), "max_length: 4; two texts"),
    "too few logits": (
        lambda: o.best_answers(o.ExtractiveQA(WORDPIECE).windows("what ?", "a fox"), []), "logits: 0 for 1 windows"),
    "short logits": (
        lambda: o.best_answers(o.ExtractiveQA(WORDPIECE).windows("what ?", "a fox"), [torch.zeros(2, 2)]),
        r"window 1 has shape \(2, 2\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_wrong_settings_are_told(case):
    act, told = SETTINGS[case]
    with pytest.raises(InputError, match=told):
        act()


def test_targets_end_with_the_end_token_also_where_they_are_cut():
    objective = o.Seq2Seq(SENTINELS, source_prefix="say: ", max_length=12, max_target_length=6)
    examples, notes = objective.prepare([{"source": setup.TEXTS[0], "target": setup.TEXTS[1]}])
    (example,) = examples
    assert len(example.source) == 12 and len(example.target) == 6 and example.target[-1] == SENTINELS.eos_id
    assert example.source == SENTINELS.encode("say: " + setup.TEXTS[0])[:12] and len(notes) == 1
    batch = objective.collate(examples)
    assert batch.labels[0, :6].tolist() == example.target and (batch.labels[0, 6:] == IGNORE_INDEX).all()


def test_anchors_come_first_then_what_is_theirs():
    objective = o.Contrastive(WORDPIECE)
    records = [{"anchor": "the fox", "positive": "a quick fox"},
               {"anchor": "the dog", "positive": "lazy dog", "negative": "a boat"}]  # fmt: skip
    batch = objective.collate(records)
    rows = [WORDPIECE.decode(row[row != WORDPIECE.pad_id].tolist()) for row in batch.input_ids]
    assert rows == ["the fox", "the dog", "a quick fox", "lazy dog", "a boat"]
    assert batch.labels.tolist() == [0, 1]
