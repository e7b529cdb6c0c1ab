"""Word vectors: published files exactly, files written and read, gensim's numbers, our objectives, the stage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.models.classic.word_vectors import WordVectorModel, WordVectorsConfig
from quatrain.models.io import model_folder
from quatrain.models.word_vectors import WordVectors, gensim_model, of_gensim
from quatrain.runs.recipe import load
from quatrain.training.objectives.word_vectors import (
    Cbow,
    Glove,
    Sent2Vec,
    SkipGram,
    cooccurrences,
    sentence_rows,
    subsampled,
)
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import TextRowStream, micro_seeds
from quatrain.training.trainer import Trainer

DATA = Path(os.environ.get("QUATRAIN_DATA", "")) / "embeddings"
needs_data = pytest.mark.skipif(not os.environ.get("QUATRAIN_DATA"), reason="QUATRAIN_DATA is not set: no shared data")
SENTENCES = [line.split() for line in ["the king rules the land", "the queen rules the sea", "a dog eats a bone",
                                       "a cat eats a fish", "the king and the queen"] * 20]  # fmt: skip


@needs_data
def test_published_vectors_give_the_published_scores():
    glove = WordVectors.read(DATA / "glove.6B.50d.top2445.txt.gz")
    wordsim, simlex = (glove.similarities(DATA / name) for name in ("wordsim353.tsv", "simlex999.tsv"))
    assert (round(wordsim.score, 4), wordsim.covered, wordsim.total) == (0.6138, 137, 353)
    assert (round(simlex.score, 4), simlex.covered, simlex.total) == (0.1860, 189, 999)
    found = glove.analogies(DATA / "questions-words.txt")
    assert (found.right, found.covered, found.total) == (646, 961, 19_544)
    assert sum(right for right, _ in found.sections.values()) == 646
    news = WordVectors.read(DATA / "word2vec_googlenews_top1000.txt.gz").analogies(DATA / "questions-words.txt")
    assert (news.right, news.covered) == (219, 258)


@needs_data
def test_the_binary_file_is_gensims():
    from gensim.models import KeyedVectors

    ours = WordVectors.read(DATA / "word2vec_binary_example.bin")
    theirs = KeyedVectors.load_word2vec_format(str(DATA / "word2vec_binary_example.bin"), binary=True)
    assert ours.words == theirs.index_to_key and np.array_equal(ours.matrix, theirs.vectors)
    assert [word for word, _ in ours.nearest(ours.words[50], 5)] == [
        word for word, _ in theirs.most_similar(ours.words[50], topn=5)
    ]


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return WordVectors([f"w{number}" for number in range(40)] + ["é", "New_York"], rng.normal(size=(42, 7)))


@pytest.mark.parametrize("format", ["word2vec", "word2vec-binary", "glove"])
def test_files_are_read_as_they_were_written_and_gensim_reads_them(vectors, format, tmp_path):
    from gensim.models import KeyedVectors

    vectors.write(tmp_path / "v", format)
    again = WordVectors.read(tmp_path / "v")
    assert again.words == vectors.words and np.array_equal(again.matrix, vectors.matrix)
    assert WordVectors.read(tmp_path / "v", limit=5).words == vectors.words[:5]
    theirs = KeyedVectors.load_word2vec_format(
        str(tmp_path / "v"), binary=format == "word2vec-binary", no_header=format == "glove"
    )
    assert theirs.index_to_key == vectors.words and np.array_equal(theirs.vectors, vectors.matrix)
    content = (tmp_path / "v").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut"):
        WordVectors.read(tmp_path / "cut", format)


def test_questions_are_gensims(vectors):
    from gensim.models import KeyedVectors

    theirs = KeyedVectors(7)
    theirs.add_vectors(vectors.words, vectors.matrix)
    assert vectors.similarity("w1", "w2") == pytest.approx(float(theirs.similarity("w1", "w2")), abs=1e-6)
    for ours, other in (
        (vectors.nearest("w3", 6), theirs.most_similar("w3", topn=6)),
        (vectors.analogy("w1", "w2", "w3", top=6), theirs.most_similar(positive=["w2", "w3"], negative=["w1"], topn=6)),
        (
            vectors.analogy("w1", "w2", "w3", method="multiply", top=6),
            theirs.most_similar_cosmul(positive=["w2", "w3"], negative=["w1"], topn=6),
        ),
    ):
        if ours[0][1] <= 1.5 and other is not None:
            assert [word for word, _ in ours] == [word for word, _ in other]
    words = ["w4", "w5", "w6", "unknown"]
    assert vectors.odd_one_out(words) == theirs.doesnt_match(words[:3])
    with pytest.raises(InputError, match="w39"):
        vectors["w399"]


def test_sentence_vectors_by_mean_and_by_sif(vectors):
    mean = vectors.sentence(["w1", "w2", "unknown"])
    assert np.allclose(mean, (vectors["w1"] + vectors["w2"]) / 2, atol=1e-6)
    weighted = vectors.sentence(["w1", "w2"], frequencies={"w1": 0.5, "w2": 0.0})
    assert np.linalg.norm(weighted - vectors["w2"] / 2) < 0.01, "a frequent word hardly counts"
    found = vectors.sentences([["w1", "w2"], ["w3"], ["w4", "w5"]], frequencies={})
    assert np.linalg.matrix_rank(found, tol=1e-4) == 2, "the common direction is gone"
    assert not vectors.sentence([]).any()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(1, 4))
def test_cooccurrences_are_counted_by_distance(ids, window):
    first, second, often = cooccurrences(np.array(ids), 6, window)
    expected: dict[tuple[int, int], float] = {}
    for i, one in enumerate(ids):
        for j, other in enumerate(ids):
            if 0 < abs(i - j) <= window:
                expected[one, other] = expected.get((one, other), 0) + 1 / abs(i - j)
    found = {(int(a), int(b)): float(c) for a, b, c in zip(first, second, often, strict=True)}
    assert found.keys() == expected.keys() and all(found[key] == pytest.approx(expected[key]) for key in expected)


def loss_by_hand(kind, model, batch, objective):
    """The published sums, one pair after the other."""
    words, windows, drawn = (batch.inputs[name] for name in ("words", "windows", "drawn"))
    log = torch.nn.functional.logsigmoid
    share = objective.negatives / len(drawn)
    total, count = torch.zeros(()), 0
    for row, own in zip(words.tolist(), windows.tolist(), strict=True):
        for i, word in enumerate(row):
            near = [row[j] for j in range(len(row)) if 0 < abs(i - j) <= own[i] and row[j] >= 0] if word >= 0 else []
            pairs = [(model.embed_tokens.weight[word], other) for other in near]
            if kind is Cbow and near:
                pairs = [(model.embed_tokens.weight[near].mean(dim=0), word)]
            for vector, target in pairs:
                total = total - log(vector @ model.context.weight[target])
                total = total - share * log(-(model.context.weight[drawn] @ vector)).sum()
                count += 1
    return total, count


@pytest.mark.parametrize("kind", [SkipGram, Cbow])
def test_the_objectives_are_the_published_sums(kind):
    torch.manual_seed(0)
    model = WordVectorModel(WordVectorsConfig(vocab_size=9, hidden_size=5)).initialize(0)
    torch.nn.init.normal_(model.context.weight)
    torch.nn.init.normal_(model.embed_tokens.weight)
    objective = kind(np.arange(1, 10), window=3, negatives=4)
    batch = objective.collate(np.array([[1, 2, 3, 4, 5, 8], [6, 7, 0, 0, -1, -1]]), 7)
    total, weight, _ = objective.loss(model, batch)
    expected, count = loss_by_hand(kind, model, batch, objective)
    assert weight == count and float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_sent2vec_predicts_a_word_from_the_rest_of_its_sentence():
    torch.manual_seed(0)
    model = WordVectorModel(WordVectorsConfig(vocab_size=9, hidden_size=5, pair_buckets=50)).initialize(0)
    for table in (model.context, model.pairs, model.embed_tokens):
        torch.nn.init.normal_(table.weight)
    objective = Sent2Vec(np.arange(1, 10), negatives=4)
    batch = objective.collate(np.array([[1, 2, 3, 4, 5, 8, -1, -1], [6, 7, 0, -1, -1, -1, -1, -1], [4] + [-1] * 7]), 3)
    assert batch.inputs["words"].shape == (3, 6), "padding that every row has is cut"
    kept, drawn = batch.inputs["kept"], batch.inputs["drawn"]
    assert 0 < int(kept.sum()) < kept.numel()
    total, weight, _ = objective.loss(model, batch)
    log, expected, count = torch.nn.functional.logsigmoid, torch.zeros(()), 0
    for row, stays in zip(batch.inputs["words"].tolist(), kept.tolist(), strict=True):
        row = [word for word in row if word >= 0]
        for place, word in enumerate(row):
            rest = [model.embed_tokens.weight[other] for i, other in enumerate(row) if i != place]
            for i in range(len(row) - 1):
                if stays[i] and place not in (i, i + 1):
                    rest.append(model.pairs.weight[int(model.pair_ids(torch.tensor([row[i : i + 2]]))[0, 0])])
            if rest:
                mean, count = torch.stack(rest).mean(dim=0), count + 1
                expected = expected - log(mean @ model.context.weight[word])
                expected = expected - 4 / len(drawn) * log(-(model.context.weight[drawn] @ mean)).sum()
    assert weight == count == 9 and float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_sentence_with_its_pairs_is_one_mean(tmp_path):
    model = WordVectorModel(WordVectorsConfig(vocab_size=9, hidden_size=5, pair_buckets=50)).initialize(0)
    torch.nn.init.normal_(model.pairs.weight)
    model.save(tmp_path)
    model = model_folder.load(tmp_path)
    ids, segments = torch.tensor([[1, 2, 3], [4, 2, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    found, _ = model(ids, segments=segments)
    words = model.embed_tokens.weight
    own = [model.pairs.weight[model.pair_ids(torch.tensor([pair]))[0, 0]] for pair in ([1, 2], [2, 3], [4, 2])]
    torch.testing.assert_close(found[0], (words[1] + words[2] + words[3] + own[0] + own[1]) / 5)
    torch.testing.assert_close(found[1], (words[4] + words[2] + own[2]) / 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=0, max_size=12), st.integers(2, 5))
def test_rows_of_sentences_hold_every_word_that_has_another_beside_it(lengths, length):
    ids = np.arange(sum(lengths))
    sentences = np.repeat(np.arange(len(lengths)) * 2, lengths)
    expected, start = [], 0
    for size in lengths:
        parts = [ids[place : min(place + length, start + size)] for place in range(start, start + size, length)]
        expected += [part.tolist() for part in parts if len(part) > 1]
        start += size
    rows = sentence_rows(ids, sentences, length)
    assert [[word for word in row if word >= 0] for row in rows.tolist()] == expected


@pytest.mark.parametrize("kind", [SkipGram, Cbow])
def test_one_step_from_the_same_weights_is_gensims(kind):
    """The text is "a b"; the drawn word is always "c", which is far more frequent. So nothing is left to chance."""
    from gensim.models import Word2Vec

    rate, names = 1e-3, ["c", "a", "b"]
    theirs = Word2Vec(vector_size=6, window=1, min_count=1, sg=int(kind is SkipGram), negative=1, sample=0, cbow_mean=1,
                      alpha=rate, min_alpha=rate, workers=1)  # fmt: skip
    theirs.build_vocab_from_freq({"c": 10**9, "a": 2, "b": 1})
    assert theirs.wv.index_to_key == names
    rng = np.random.default_rng(0)
    theirs.wv.vectors[:] = rng.normal(size=(3, 6))
    theirs.syn1neg[:] = rng.normal(size=(3, 6))
    model = WordVectorModel(WordVectorsConfig(vocab_size=3, hidden_size=6))
    with torch.no_grad():
        model.embed_tokens.weight.copy_(torch.from_numpy(theirs.wv.vectors))
        model.context.weight.copy_(torch.from_numpy(theirs.syn1neg))
    theirs.train([["a", "b"]], total_examples=1, epochs=1)
    objective = kind(np.array([10**12, 1, 1]), window=1, negatives=1)
    total, _, _ = objective.loss(model, objective.collate(np.array([[1, 2]]), 0))
    before = model.embed_tokens.weight.detach().clone()
    total.backward()
    with torch.no_grad():
        for table in (model.embed_tokens.weight, model.context.weight):
            table -= rate * table.grad
    moved = (model.embed_tokens.weight - before).abs().max()
    assert np.allclose(model.embed_tokens.weight.detach(), theirs.wv.vectors, atol=0.02 * float(moved))
    assert np.allclose(model.context.weight.detach(), theirs.syn1neg, atol=0.02 * float(moved))


@pytest.mark.parametrize("objective", [SkipGram, Cbow])
def test_sparse_gradients_step_as_dense_ones_and_by_the_sum_of_the_pairs(objective):
    ids = np.random.default_rng(0).integers(0, 30, 600)
    plan = TrainSettings(
        steps=6, batch_tokens=64, optimizer="sgd", learning_rate=0.05, schedule="constant", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=0.0, precision="float32",
    )  # fmt: skip
    ends = {}

    def train(name, steps=6):
        model = WordVectorModel(WordVectorsConfig(vocab_size=40, hidden_size=5)).initialize(0)
        if name != "dense":
            model.use_sparse_gradients()
        if name == "by hand":
            model.context.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        stream = TextRowStream(lambda generator: ids, length=16, rows=4, seed=0)
        return model, Trainer(model, objective(np.bincount(ids, minlength=40)), stream, plan, steps=steps)

    for name in ("sparse", "dense"):
        model, trainer = train(name)
        trainer.train()
        ends[name] = [model.embed_tokens.weight, model.context.weight]
    assert float(ends["dense"][0][:30].norm()) > 0
    fresh = WordVectorModel(WordVectorsConfig(vocab_size=40, hidden_size=5)).initialize(0)
    assert torch.equal(ends["sparse"][0][30:], fresh.embed_tokens.weight[30:])
    for sparse, dense in zip(ends["sparse"], ends["dense"], strict=True):
        torch.testing.assert_close(sparse, dense, atol=1e-6, rtol=1e-5)

    model, trainer = train("by hand", steps=1)
    before = model.embed_tokens.weight.detach().clone().requires_grad_()
    batch = trainer.gradients.objective.collate(
        TextRowStream(lambda generator: ids, length=16, rows=4, seed=0).next(),
        micro_seeds(trainer.gradients.source, 0, 0),
    )
    copy = WordVectorModel(model.config)
    copy.load_state_dict({"embed_tokens.weight": before.detach(), "context.weight": model.context.weight.detach()})
    trainer.gradients.objective.loss(copy, batch)[0].backward()
    trainer.train()
    torch.testing.assert_close(model.embed_tokens.weight, before - 0.05 * copy.embed_tokens.weight.grad)


def test_glove_fits_the_logarithms():
    model = WordVectorModel(WordVectorsConfig(vocab_size=4, hidden_size=3, biases=True)).initialize(1)
    objective = Glove(most=10)
    batch = objective.collate([np.array([0, 1]), np.array([2, 3]), np.array([5.0, 20.0])])
    total, weight, _ = objective.loss(model, batch)
    first, second = model.embed_tokens.weight, model.context.weight
    errors = [float(first[i] @ second[j]) - float(np.log(x)) for i, j, x in ((0, 2, 5.0), (1, 3, 20.0))]
    assert weight == 2 and float(total.detach()) == pytest.approx(0.5**0.75 * errors[0] ** 2 + errors[1] ** 2, rel=1e-5)


def test_frequent_words_are_thinned_out():
    ids = np.array([0] * 9_000 + [1] * 10)
    kept = subsampled(ids, np.bincount(ids), 1e-3, np.random.default_rng(0))
    assert (kept == 1).sum() == 10 and 200 < (kept == 0).sum() < 400
    assert len(subsampled(ids, np.bincount(ids), 0.0, np.random.default_rng(0))) == len(ids)


@pytest.mark.parametrize("method", ["skip_gram", "cbow", "fasttext", "doc2vec"])
def test_gensim_trains_the_others(method):
    model = gensim_model(SENTENCES, method, vector_size=8, epochs=2, min_count=1, workers=1, seed=1)
    assert len(of_gensim(model)) == len({word for line in SENTENCES for word in line})
    if method == "fasttext":
        assert model.wv["kingdom"].shape == (8,), "subwords give a vector to a word that was never seen"
    if method == "doc2vec":
        assert model.dv.vectors.shape == (len(SENTENCES), 8)


@needs_data
@pytest.mark.parametrize(
    "more", [[], *([f"stage.word-vectors.{one}"] for one in ("method=glove", "method=sent2vec", "library=gensim"))]
)
def test_the_recipe_word2vec_runs(more, tmp_path, monkeypatch):
    overrides = ["data.source=the-verdict", "tokenizer.vocab_size=300", "stage.word-vectors.dimensions=16",
                 "stage.word-vectors.train.epochs=2", "stage.word-vectors.train.warmup_steps=1",
                 f"stage.word-vectors.similarity={DATA / 'wordsim353.tsv'}", 'evaluate.prompts=["picture"]',
                 *more]  # fmt: skip
    done = quatrain.run(load("word2vec", overrides), runs_dir=tmp_path, reporter=SilentReporter())
    last = done.results[-1]
    assert last["samples"][0]["prompt"] == "picture" and last["samples"][0]["output"].count(",") == 4
    assert any("353 pairs" in note for note in last["notes"])
    model = quatrain.load(done.model)
    (vector,) = quatrain.pipeline("sentence-embeddings", str(done.model))(["the picture"])
    assert model.config.family == "word-vectors" and len(vector) == 16
