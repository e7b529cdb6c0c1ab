"""What a run will read, before it begins: rows with what is learned of them, counts, and what cannot work."""

import pytest
from tiny_training import windows

from quatrain.data.batches import TokenExample
from quatrain.models.families.fresh import fresh_config
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import Causal, Masked, Seq2Seq, SequenceClassification, SpanCorruption
from quatrain.training.preflight import preview_data

TEXTS = ["the cat sat on the mat and saw a dog", "no dog was in the old town by the sea"] * 20
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "max_position_embeddings": 64}  # fmt: skip
CHAT = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]


def config(family, vocabulary, head=None):
    return fresh_config(family, SIZES | {"vocab_size": vocabulary}, head=head)


@pytest.fixture(scope="module")
def chatty():
    return Tokenizer.train(TEXTS, kind="bpe", vocab_size=320, chat_template="chatml")


def chat_example(tokenizer, messages=CHAT):
    rendered = render(tokenizer, messages)
    return TokenExample(rendered.ids, rendered.assistant_mask)


def chats(tokenizer, examples, **more):
    return preview_data(
        Causal(), tokenizer, config("llama", tokenizer.vocab_size), examples=examples, chats=True, **more
    )


def test_a_chat_shows_what_is_learned(chatty):
    found = chats(chatty, [chat_example(chatty)] * 5)
    assert not found.problems and found.examples == 5
    said = "".join(text for text, learned in found.samples[0] if learned)
    read = "".join(text for text, learned in found.samples[0] if not learned)
    assert said.startswith("sat on the mat") and "<|im_end|>" in said
    assert "the cat" in read and "<|im_start|>assistant" in read
    assert found.special["<|im_end|>"] == "10, 2 per row, 5 learned"
    assert found.lengths["shortest"] == found.lengths["longest"] == len(chat_example(chatty))
    assert 0 < found.learned < found.tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: TokenExample(e.ids, [False] * len(e.ids)), "my.jsonl:7: no token is learned"),
        (lambda e: TokenExample(e.ids, [True] * len(e.ids)), "every token is learned, including the user's"),
        (lambda e: TokenExample([*e.ids, 999], [*e.mask, True]), "it has the token id 999, but the embedding"),
        (lambda e: TokenExample([0, 0, *e.ids], [False, False, *e.mask]), "it begins with two begin-of-text tokens"),
    ],
)
def test_what_cannot_work_is_named_with_its_place(chatty, change, message):
    assert chatty.bos_id == 0
    found = chats(chatty, [chat_example(chatty), change(chat_example(chatty))], places=["my.jsonl:1", "my.jsonl:7"])
    assert any(message in problem for problem in found.problems), found.problems
    assert all(problem.startswith("my.jsonl:7") for problem in found.problems)


def test_a_turn_that_is_never_ended_is_refused(chatty):
    end = chatty.token_to_id("<|im_end|>")
    example = chat_example(chatty)
    learned = [mask and token != end for token, mask in zip(example.ids, example.mask, strict=True)]
    (problem,) = chats(chatty, [TokenExample(example.ids, learned)] * 3).problems
    assert "never stop" in problem and "<|im_end|>" in problem


def test_nothing_learned_at_all_is_refused(chatty):
    example = chat_example(chatty)
    found = chats(chatty, [TokenExample(example.ids, [False] * len(example))] * 9)
    assert any("and 6 more: no token is learned" in problem for problem in found.problems)
    assert any(problem.startswith("no token is learned") for problem in found.problems)


def test_windows_of_a_text_are_looked_at_through_their_stream(chatty):
    found = preview_data(Causal(), chatty, config("llama", chatty.vocab_size), stream=windows())
    assert found.examples is None and found.samples and not found.problems
    assert found.tokens == found.learned == 2 * 4 * 32


def test_hidden_words_spans_pairs_and_classes():
    words = Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=90)
    records = [{"text": text} for text in TEXTS]
    masked = Masked(words, max_length=32)
    found = preview_data(masked, words, config("bert", words.vocab_size), examples=masked.prepare(records)[0])
    assert not found.problems and 0.05 < found.learned / found.tokens < 0.25
    assert found.special["[CLS]"].endswith("1 per row")

    spans = Tokenizer.train(TEXTS, kind="bpe", vocab_size=320, special_tokens=["<extra_id_0>", "<extra_id_1>"])
    corruption = SpanCorruption(spans, max_length=32)
    found = preview_data(corruption, spans, config("t5", spans.vocab_size), examples=corruption.prepare(records)[0])
    assert not found.problems and "<extra_id_0>" in "".join(text for text, _ in found.samples[0])
    assert "source: " in found.samples[0][0][0] and any(text == "\ntarget: " for text, _ in found.samples[0])

    pairs = Seq2Seq(spans, max_length=32)
    examples = pairs.prepare([{"source": "the cat", "target": "sat on the mat"}] * 3)[0]
    found = preview_data(pairs, spans, config("t5", spans.vocab_size), examples=examples)
    assert "".join(text for text, learned in found.samples[0] if learned).startswith("sat on the mat")

    classes = SequenceClassification(words, ["no", "yes"], max_length=32)
    both = classes.prepare([{"text": "the cat", "label": label} for label in ("no", "yes", "yes")])[0]
    found = preview_data(classes, words, config("bert", words.vocab_size, "sequence_classification"), examples=both)
    assert found.labels == {"yes": 2, "no": 1} and not found.problems
    one = classes.prepare([{"text": "the cat", "label": "yes"}] * 3)[0]
    (problem,) = preview_data(classes, words, config("bert", words.vocab_size), examples=one).problems
    assert "every example has the label 'yes'" in problem


def test_labels_of_a_sorted_file_are_seen(monkeypatch):
    """Many more examples than are examined, sorted by their label: the first ones alone have one label."""
    monkeypatch.setattr("quatrain.training.preflight.MOST_EXAMPLES", 4)
    words = Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=90)
    classes = SequenceClassification(words, ["no", "yes"], max_length=32)
    rows = [{"text": "the cat", "label": label} for label in ("no",) * 12 + ("yes",) * 12]
    shape = config("bert", words.vocab_size, "sequence_classification")
    found = preview_data(classes, words, shape, examples=classes.prepare(rows)[0])
    assert set(found.labels) == {"no", "yes"} and not found.problems


def test_samples_show_what_is_learned_beside_the_tokens():
    from quatrain.training import objectives as o

    tokenizer = Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=120)
    text, labels = "the cat sat on the mat", ["bad", "good"]
    cases = [
        (o.SequenceClassification(tokenizer, labels), {"text": text, "label": "good"}, "label: good"),
        (o.SequenceClassification(tokenizer, labels, problem_type="multi_label"),
         {"text": text, "labels": ["bad", "good"]}, "labels: bad, good"),
        (o.SequenceClassification(tokenizer, ["score"], problem_type="regression"), {"text": text, "label": 2.5},
         "score: 2.5"),
        (o.TokenClassification(tokenizer, ["O", "B-X"]), {"words": text.split(), "tags": ["O", "B-X", *["O"] * 4]},
         "tags: O B-X O O O O"),
        (o.MultipleChoice(tokenizer), {"question": text, "choices": ["a", "dog"], "label": 1}, "right: choice 2 of 2"),
        (o.ExtractiveQA(tokenizer, max_length=60, stride=4),
         {"context": text, "question": "who sat", "answers": {"text": ["cat"], "answer_start": [4]}}, "answer: cat"),
        (o.CosineSimilarity(tokenizer), {"text": text, "text_pair": text, "score": 0.5}, "score: 0.5"),
    ]  # fmt: skip
    for objective, record, target in cases:
        examples = objective.prepare([record])[0]
        found = preview_data(objective, tokenizer, config("bert", tokenizer.vocab_size), examples=examples)
        assert found.samples[0][0] == (target, True)
        assert "cat" in "".join(piece for piece, _ in found.samples[0][2:])
