"""Every objective's loss: transformers' on the same batch, sums that add up however examples are batched."""

import objective_setup as setup
import pytest
import torch
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.models.io import model_folder
from quatrain.training import objectives as o
from quatrain.training.chunked_loss import chunking
from quatrain.training.objectives.pairs import FOLLOWS, RANDOM

LABELS = ["no", "perhaps", "yes"]
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}
TEXTS = setup.TEXTS
RECORDS = [{"text": text, "label": LABELS[number % 3]} for number, text in enumerate(TEXTS)]
PAIRS = [{**record, "text_pair": TEXTS[-number]} for number, record in enumerate(RECORDS)]
TAGGED = [
    {"tokens": text.split(), "tags": [LABELS[len(word) % 3] for word in text.split()]} for text in TEXTS
]  # fmt: skip
DOCUMENTS = [{"sentences": TEXTS[:3]}, {"sentences": TEXTS[3:]}, {"text": " ".join(TEXTS[1:5])}]
QUESTIONS = [
    {
        "question": "what jumps over the dog ?",
        "context": " ".join(TEXTS[:2]),
        "answers": [{"text": "quick brown fox", "answer_start": 4}],
    },
    {"question": "who wrote letters ?", "context": TEXTS[4], "answers": []},
    {"question": "where was the boat ?", "context": TEXTS[4], "answers": {"text": ["harbour"], "answer_start": [37]}},
]
CHOICES = [
    {"question": TEXTS[0], "choices": ["the dog", "the quick fox", "nobody at all"], "label": 1},
    {"question": TEXTS[1], "choices": ["1859", "the best", "times of tokens"], "label": "C"},
]
TRANSLATIONS = [{"source": text, "target": " ".join(reversed(text.split()[:5]))} for text in TEXTS]


def batch_of(objective, records, seed=3):
    examples, _ = objective.prepare(records)
    return o.collate(objective, examples, seed), examples


def mean(objective, model, batch):
    total, weight, _ = objective.loss(model, batch)
    return total / weight


CASES = {
    "masked bert": (
        "BertForMaskedLM", setup.wordpiece, lambda t: o.Masked(t, max_length=40), RECORDS, {}, None),
    "whole words roberta": (
        "RobertaForMaskedLM", setup.byte_level, lambda t: o.Masked(t, whole_word_masking=True), RECORDS, {}, None),
    "spans t5": (
        "T5ForConditionalGeneration", setup.with_sentinels, lambda t: o.SpanCorruption(t), RECORDS, {}, None),
    "denoising bart": (
        "BartForConditionalGeneration", setup.byte_level, lambda t: o.Denoising(t), RECORDS, {}, None),
    "seq2seq t5": (
        "T5ForConditionalGeneration", setup.with_sentinels, lambda t: o.Seq2Seq(t), TRANSLATIONS, {}, None),
    "seq2seq bart": (
        "BartForConditionalGeneration", setup.byte_level, lambda t: o.Seq2Seq(t), TRANSLATIONS, {}, None),
    "texts bert": (
        "BertForSequenceClassification", setup.wordpiece,
        lambda t: o.SequenceClassification(t, LABELS), RECORDS, NAMES, None),
    "pairs bert": (
        "BertForSequenceClassification", setup.wordpiece,
        lambda t: o.SequenceClassification(t, LABELS), PAIRS, NAMES, None),
    "pairs distilbert": (
        "DistilBertForSequenceClassification", setup.wordpiece,
        lambda t: o.SequenceClassification(t, LABELS), PAIRS, NAMES, None),
    "texts llama": (
        "LlamaForSequenceClassification", setup.byte_level,
        lambda t: o.SequenceClassification(t, LABELS), RECORDS, NAMES, None),
    "several bert": (
        "BertForSequenceClassification", setup.wordpiece,
        lambda t: o.SequenceClassification(t, LABELS, problem_type="multi_label"),
        [{"text": text, "labels": LABELS[: number % 4]} for number, text in enumerate(TEXTS)],
        {**NAMES, "problem_type": "multi_label_classification"}, None),
    "regression bert": (
        "BertForSequenceClassification", setup.wordpiece,
        lambda t: o.SequenceClassification(t, ["score"], problem_type="regression"),
        [{"text": text, "label": len(text) / 30} for text in TEXTS],
        {"id2label": {0: "score"}, "label2id": {"score": 0}, "problem_type": "regression"}, None),
    "tags bert": (
        "BertForTokenClassification", setup.wordpiece,
        lambda t: o.TokenClassification(t, LABELS), TAGGED, NAMES, None),
    "tags roberta": (
        "RobertaForTokenClassification", setup.byte_level,
        lambda t: o.TokenClassification(t, LABELS, max_length=30, stride=8), TAGGED, NAMES, None),
    "choices bert": (
        "BertForMultipleChoice", setup.wordpiece, lambda t: o.MultipleChoice(t), CHOICES, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_transformers(case, tmp_path):
    name, make, objective_of, records, settings, head = CASES[case]
    tokenizer = make()
    theirs, model = setup.pair_of_models(tmp_path, name, tokenizer, head=head, **settings)
    objective = objective_of(tokenizer)
    batch, _ = batch_of(objective, records)
    given = setup.their_inputs(batch)
    if name.startswith(("Distil", "Roberta", "Llama")):
        given.pop("token_type_ids", None)
    labels = batch.labels[:, 0] if "regression" in case else batch.labels
    with torch.no_grad():
        expected = theirs(**given, labels=labels).loss
        found = mean(objective, model, batch)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    assert found > 0.01


def test_the_loss_of_answers_is_that_of_transformers(tmp_path):
    """On each window alone: transformers lets padding take part where rows are padded, so that a loss depends on it."""
    tokenizer = setup.wordpiece()
    theirs, model = setup.pair_of_models(tmp_path, "BertForQuestionAnswering", tokenizer)
    objective = o.ExtractiveQA(tokenizer, max_length=40, stride=8)
    batch, windows = batch_of(objective, QUESTIONS)
    assert len(windows) > len(QUESTIONS) and batch.segments is not None
    expected = [
        theirs(
            input_ids=torch.tensor([window.ids]),
            token_type_ids=torch.tensor([window.token_types]),
            start_positions=torch.tensor([window.span[0]]),
            end_positions=torch.tensor([window.span[1]]),
        ).loss
        for window in windows
    ]
    torch.testing.assert_close(mean(objective, model, batch), sum(expected) / len(windows), atol=2e-6, rtol=2e-6)


def test_the_loss_of_pretraining_is_that_of_transformers(tmp_path):
    """Where all pairs hide equally many tokens the sum of both means; else each pair counts by its hidden tokens."""
    tokenizer = setup.wordpiece()
    theirs, model = setup.pair_of_models(tmp_path, "BertForPreTraining", tokenizer)
    objective = o.Masked(tokenizer, next_sentence_prediction=True, max_length=48)
    batch, examples = batch_of(objective, DOCUMENTS)
    assert {example.label for example in examples} == {FOLLOWS, RANDOM}
    masked, follows = batch.labels
    hidden = (masked != IGNORE_INDEX).sum(1)
    with torch.no_grad():
        output = theirs(**setup.their_inputs(batch), labels=masked, next_sentence_label=follows)
        total, weight, metrics = objective.loss(model, batch)
    told = F.cross_entropy(output.seq_relationship_logits, follows, reduction="none")
    both = F.cross_entropy(output.prediction_logits.flatten(0, 1), masked.flatten()) + (told * hidden).sum() / weight
    torch.testing.assert_close(total / weight, both, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(metrics["masked_loss"] + metrics["next_sentence_loss"], total)
    alike = [row for row in range(len(hidden)) if hidden[row] == hidden.mode().values]
    assert len(alike) > 1
    same = [examples[row] for row in alike]
    again = objective.collate(same, seed=5)
    with torch.no_grad():
        expected = theirs(**setup.their_inputs(again), labels=again.labels[0], next_sentence_label=again.labels[1]).loss
        torch.testing.assert_close(mean(objective, model, again), expected, atol=2e-6, rtol=2e-6)


def embedding_model(folder):
    setup.pair_of_models(folder, "BertForMaskedLM", setup.wordpiece())
    return model_folder.load(folder, head="embedding")


RELATED = [{"anchor": TEXTS[n], "positive": TEXTS[-n - 1], "negative": TEXTS[(n + 2) % 6][:40]} for n in range(4)]


def test_contrastive_loss_by_its_formula(tmp_path):
    tokenizer, model = setup.wordpiece(), embedding_model(tmp_path)
    objective = o.Contrastive(tokenizer, temperature=0.1)

    def vectors(texts):
        rows = [torch.tensor([tokenizer.encode(text, special_tokens=True)]) for text in texts]
        return F.normalize(torch.cat([model(row)[0] for row in rows]), dim=-1)

    anchors, others = vectors([each["anchor"] for each in RELATED]), vectors([each["positive"] for each in RELATED])
    negatives = vectors([each["negative"] for each in RELATED])
    scores = anchors @ torch.cat((others, negatives)).T / 0.1
    expected = F.cross_entropy(scores, torch.arange(4), reduction="sum")
    batch, _ = batch_of(objective, RELATED)
    total, weight, metrics = objective.loss(model, batch)
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-5)
    assert weight == 4 and metrics["accuracy"] == (scores.argmax(1) == torch.arange(4)).sum()
    both = o.Contrastive(tokenizer, temperature=0.1, symmetric=True)
    back = F.cross_entropy(scores[:, :4].T, torch.arange(4), reduction="sum")
    torch.testing.assert_close(both.loss(model, batch)[0], (expected + back) / 2, atol=1e-4, rtol=1e-5)


def test_what_belongs_to_the_anchor_is_no_negative(tmp_path):
    """Two anchors with one positive text: each finds it, neither is pushed from it."""
    model, objective = embedding_model(tmp_path), o.Contrastive(setup.wordpiece())
    twice = [{"anchor": TEXTS[0], "positive": TEXTS[1]}, {"anchor": TEXTS[2], "positive": TEXTS[1]}]
    total, weight, _ = objective.loss(model, batch_of(objective, twice)[0])
    assert weight == 2 and total.abs() < 1e-6
    apart = [twice[0], {"anchor": TEXTS[2], "positive": TEXTS[3]}]
    assert objective.loss(model, batch_of(objective, apart)[0])[0] > 1e-3


def test_cosines_are_learned_as_scores(tmp_path):
    model, objective = embedding_model(tmp_path), o.CosineSimilarity(setup.wordpiece(), highest=5)
    records = [{"text": TEXTS[n], "text_pair": TEXTS[n + 1], "score": n} for n in range(5)]
    batch, _ = batch_of(objective, records)
    cosines = torch.tensor(objective.predict(model, batch))
    total, weight, _ = objective.loss(model, batch)
    torch.testing.assert_close(total, (cosines - torch.arange(5) / 5).square().sum(), atol=1e-5, rtol=1e-5)
    assert weight == 5


ADDITIVE = [name for name in CASES if not name.startswith(("pairs distil", "seq2seq bart"))]


@pytest.mark.parametrize("case", ADDITIVE)
def test_ragged_batches_add_up(case, tmp_path):
    """One batch of all examples, batches of some, and single ones: the same sum, weight, metrics and gradients."""
    name, make, objective_of, records, settings, head = CASES[case]
    _, model = setup.pair_of_models(tmp_path, name, make(), head=head, **settings)
    objective = objective_of(make())
    examples, _ = objective.prepare(records)
    found = []
    for size in (len(examples), 2, 1):
        model.zero_grad()
        total, weight, metrics = 0.0, 0, {}
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            seeds = [(7, 0, start + number) for number in range(len(part))]
            loss, count, more = objective.loss(model, o.collate(objective, part, seeds))
            loss.backward()
            total, weight = total + loss.detach(), weight + count
            metrics = {key: metrics.get(key, 0) + value for key, value in more.items()}
        gradients = [parameter.grad / weight for parameter in model.parameters() if parameter.grad is not None]
        found.append([total / weight, torch.tensor(float(weight)), *(metrics[key] / weight for key in sorted(metrics)),
                      *gradients])  # fmt: skip
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, atol=2e-6, rtol=1e-5)


def test_losses_in_chunks_are_the_same(tmp_path):
    tokenizer = setup.wordpiece()
    _, model = setup.pair_of_models(tmp_path, "BertForMaskedLM", tokenizer)
    objective = o.Masked(tokenizer)
    batch, _ = batch_of(objective, RECORDS)
    plain = mean(objective, model, batch)
    with chunking(True):
        torch.testing.assert_close(mean(objective, model, batch), plain, atol=1e-6, rtol=1e-6)


def test_label_smoothing_is_that_of_transformers(tmp_path):
    from transformers.trainer_pt_utils import LabelSmoother

    tokenizer = setup.with_sentinels()
    theirs, model = setup.pair_of_models(tmp_path, "T5ForConditionalGeneration", tokenizer)
    objective = o.Seq2Seq(tokenizer, label_smoothing=0.1)
    batch, _ = batch_of(objective, TRANSLATIONS)
    output = theirs(**setup.their_inputs(batch), labels=batch.labels)
    expected = LabelSmoother(epsilon=0.1)(output, batch.labels)
    torch.testing.assert_close(mean(objective, model, batch), expected, atol=2e-6, rtol=2e-6)
    _, weight, metrics = objective.loss(model, batch)
    torch.testing.assert_close(metrics["plain_loss"] / weight, output.loss, atol=2e-6, rtol=2e-6)


def test_questions_with_fewer_choices_count_their_own(tmp_path):
    tokenizer = setup.wordpiece()
    _, model = setup.pair_of_models(tmp_path, "BertForMultipleChoice", tokenizer)
    objective = o.MultipleChoice(tokenizer)
    ragged = [CHOICES[0], {**CHOICES[1], "choices": CHOICES[1]["choices"][:2], "label": 0}]
    together = objective.loss(model, objective.collate(ragged))
    alone = [objective.loss(model, objective.collate([record])) for record in ragged]
    torch.testing.assert_close(together[0], sum(each[0] for each in alone), atol=1e-5, rtol=1e-5)
    assert all(0 <= choice < len(record["choices"]) for choice, record in zip(
        objective.predict(model, objective.collate(ragged)), ragged, strict=True))  # fmt: skip


WRONG_MODELS = {
    "head": ("BertForMaskedLM", {}, lambda t: o.SequenceClassification(t, LABELS), RECORDS,
             "head: masked; this objective"),
    "labels": ("BertForSequenceClassification", NAMES, lambda t: o.SequenceClassification(t, LABELS[::-1]),
               RECORDS,
               "the model has no, perhaps, yes, the objective yes, perhaps, no"),
    "problem": ("BertForSequenceClassification", NAMES,
                lambda t: o.SequenceClassification(t, LABELS, problem_type="multi_label"),
                [{"text": "the fox", "labels": []}], "problem_type: the model has single_label"),
    "no decoder": ("BertForMaskedLM", {}, lambda t: o.Seq2Seq(t), TRANSLATIONS, "this objective trains seq2seq"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_model_that_does_not_fit_is_told(case, tmp_path):
    name, settings, objective_of, records, told = WRONG_MODELS[case]
    _, model = setup.pair_of_models(tmp_path, name, setup.wordpiece(), **settings)
    objective = objective_of(setup.wordpiece())
    with pytest.raises(InputError, match=told):
        objective.loss(model, batch_of(objective, records)[0])


def test_predictions_are_those_of_the_labels_after_learning(tmp_path):
    """A few steps on some examples, then each is told right: labels, tags, choices and spans hang together."""
    tokenizer = setup.wordpiece()
    cases = {
        "BertForSequenceClassification": (o.SequenceClassification(tokenizer, LABELS), RECORDS, NAMES),
        "BertForTokenClassification": (o.TokenClassification(tokenizer, LABELS), TAGGED, NAMES),
        "BertForQuestionAnswering": (o.ExtractiveQA(tokenizer, max_length=64, stride=16), QUESTIONS, {}),
        "BertForMultipleChoice": (o.MultipleChoice(tokenizer), CHOICES, {}),
    }
    for name, (objective, records, settings) in cases.items():
        _, model = setup.pair_of_models(tmp_path / name, name, tokenizer, **settings)
        batch, examples = batch_of(objective, records)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            mean(objective, model, batch).backward()
            optimizer.step()
        found = objective.predict(model, batch)
        if name == "BertForQuestionAnswering":
            assert objective.predictions(examples, found) == ["quick brown fox", "", "harbour"]
        elif name == "BertForTokenClassification":
            assert objective.predictions(examples, found) == [record["tags"] for record in TAGGED]
            assert objective.references(examples) == [record["tags"] for record in TAGGED]
        else:
            assert found == batch.labels.tolist()
