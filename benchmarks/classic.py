"""n-grams, classifiers of bags of words, and word vectors beside NLTK, scikit-learn and gensim, on the shared data.

n-grams: the nats or perplexity of modified Kneser-Ney on three texts, with the seconds of counting, and NLTK's
interpolated Kneser-Ney on the beginning of one. Classifiers: accuracy on SST-2 and the seconds of fitting. With
`--vectors`, skip-gram on 24 novels, ours on the trainer and gensim's; scores on WordSim, SimLex and analogies. With
`--sentences`, the vectors of sentences that the mean, SIF, Doc2Vec and Sent2Vec give, by the accuracy of a linear
classifier of them. With `--large` so many copies of the novels, each with words of its own, are counted: seconds and
peak memory.

    python benchmarks/classic.py [--vectors] [--sentences] [--large 4] [--data FOLDER]
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish, parser, require

from quatrain.models.classic.bag_of_words import BagOfWords
from quatrain.models.classic.ngram import NgramModel
from quatrain.models.classic.word_vectors import WordVectorModel, WordVectorsConfig
from quatrain.models.word_vectors import WordVectors, gensim_model, of_gensim
from quatrain.training.objectives.word_vectors import Sent2Vec, SkipGram, sentence_rows, subsampled, thinned
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import TextRowStream
from quatrain.training.trainer import Trainer

Sentences = list[list[str]]


def read(path: Path) -> str:
    """The text of a file, plain or gzip."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")


def characters(data: Path | None) -> dict[str, Any]:
    """Tiny Shakespeare by character, 90/10."""
    text = read(data / "text/tinyshakespeare.txt") if data else "the cat sat on the mat. a dog sat. " * 60
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = np.array([numbers[character] for character in text])
    border, found = int(len(ids) * 0.9), {}
    for order in (5, 7):
        began = time.process_time()
        model = NgramModel.fit(ids[:border], len(numbers), order)
        total, count = model.text_loss(ids[border:])
        found[str(order)] = {"nats": total / count, "seconds": time.process_time() - began}
    return found


def sentences_of(data: Path | None, name: str) -> tuple[Sentences, Sentences]:
    """WikiText-2's valid and test, or Sherlock Holmes' paragraphs in lower case, 90/10."""
    if data is None:
        lines = [random.Random(number).choices("the cat sat on a mat".split(), k=9) for number in range(200)]
        return lines[:180], lines[180:]
    if name == "wikitext2":
        valid, test = (read(data / f"pretrain/wikitext2/{part}.txt.gz") for part in ("valid", "test"))
        return tuple([line.split() for line in text.split("\n") if line.split()] for text in (valid, test))  # type: ignore[return-value]
    text = read(data / "text/sherlock_holmes_adventures.txt").lower()
    paragraphs = [re.findall(r"\w+|[^\w\s]", part) for part in re.split(r"\n\s*\n", text)]
    paragraphs = [words for words in paragraphs if words]
    border = int(len(paragraphs) * 0.9)
    return paragraphs[:border], paragraphs[border:]


def words(data: Path | None, name: str, orders: tuple[int, ...], least: int) -> dict[str, Any]:
    """Perplexities of sentences between <s> and </s>; words rarer than `least` are <unk>."""
    learned, held_out = sentences_of(data, name)
    counts = Counter(word for line in learned for word in line)
    kept = ["<s>", "</s>", "<unk>", *(word for word in counts if counts[word] >= least and word != "<unk>")]
    numbers = {word: number for number, word in enumerate(kept)}
    stream, asked = (
        np.array([numbers.get(word, 2) for line in part for word in ["<s>", *line, "</s>"]])
        for part in (learned, held_out)
    )
    found: dict[str, Any] = {"vocabulary": len(kept) - 1}
    for order in orders:
        began = time.process_time()
        model = NgramModel.fit(stream, len(kept), order, bos_token_id=0)
        losses = model.token_log_probs(asked)[asked != 0]
        found[str(order)] = {"perplexity": math.exp(-losses.mean()), "seconds": time.process_time() - began}
    return found


def beside_nltk(data: Path | None) -> dict[str, Any]:
    """The seconds of counting and scoring 2,000 sentences, ours and NLTK's interpolated Kneser-Ney of order 3."""
    lm, util = require("nltk.lm", "eval"), require("nltk.util", "eval")
    learned, held_out = sentences_of(data, "wikitext2")
    learned, held_out = learned[:400], held_out[:20]
    kept = ["</s>", "<unk>", *{word for line in learned for word in line if word != "<unk>"}]
    numbers = {word: number for number, word in enumerate(kept)}
    streams = [[word for line in part for word in [*line, "</s>"]] for part in (learned, held_out)]
    began = time.process_time()
    ids, asked = (np.array([numbers.get(word, 1) for word in stream]) for stream in streams)
    loss, count = NgramModel.fit(ids, len(kept), 3, "kneser_ney").text_loss(asked)
    ours = time.process_time() - began
    began = time.process_time()
    model = lm.KneserNeyInterpolated(3, vocabulary=lm.Vocabulary(kept[2:] + kept[:1], unk_label="<unk>"))
    model.fit([[gram for n in (1, 2, 3) for gram in util.ngrams(streams[0], n)]])
    theirs = [model.score(gram[-1], gram[:-1]) for gram in util.ngrams(model.vocab.lookup(streams[1]), 3)]
    return {
        "quatrain": {"seconds": ours, "perplexity": math.exp(loss / count)},
        "nltk": {"seconds": time.process_time() - began, "of probability 0": sum(value == 0 for value in theirs)},
    }


def classifiers(data: Path | None) -> dict[str, Any]:
    """SST-2: naive Bayes on words and pairs, TF-IDF and regression, ours and scikit-learn's."""
    text = require("sklearn.feature_extraction.text", "classic")
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB

    (learned, labels), (asked, right) = (sst2(data, part) for part in ("train", "test"))
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {
        "naive_bayes": {"ngrams": 2, "weighting": "counts"},
        "logistic_regression": {"ngrams": 1, "weighting": "tf_idf"},
    }
    for name, options in settings.items():
        spread = (1, options["ngrams"])
        kind = text.CountVectorizer if name == "naive_bayes" else text.TfidfVectorizer
        began = time.process_time()
        vectorizer, theirs = kind(ngram_range=spread), MultinomialNB()
        if name == "logistic_regression":
            theirs = LogisticRegression(max_iter=1000)
        theirs.fit(vectorizer.fit_transform(learned), labels)
        accuracy = float(theirs.score(vectorizer.transform(asked), right))
        found[name] = {"scikit-learn": {"accuracy": accuracy, "seconds": time.process_time() - began}}
        began = time.process_time()
        texts = [re.findall(r"(?u)\b\w\w+\b", each.lower()) for each in (*learned, *asked)]
        numbers = {
            word: number for number, word in enumerate(dict.fromkeys(w for t in texts[: len(learned)] for w in t))
        }
        ids = [[numbers[word] for word in each if word in numbers] for each in texts]
        model = BagOfWords.fit(ids[: len(learned)], labels, ["0", "1"], len(numbers), classifier=name, **options)  # type: ignore[arg-type]
        matrix = model.weighted(model.count_matrix(ids[len(learned) :]))
        scores = matrix @ model.weight.double().numpy().T + model.bias.double().numpy()
        accuracy = float((scores.argmax(axis=1) == np.array(right)).mean())
        found[name]["quatrain"] = {"accuracy": accuracy, "seconds": time.process_time() - began}
    return found


def sst2(data: Path | None, part: str) -> tuple[list[str], list[int]]:
    """The sentences of a part of SST-2 and their labels."""
    if data is None:
        return ["a good fine film", "a bad dull film"] * 20, [1, 0] * 20
    cells = [line.split("\t") for line in read(data / f"sentiment/sst2/{part}.tsv").splitlines()]
    return [cell[0] for cell in cells], [int(cell[1]) for cell in cells]


def sentence_vectors(data: Path | None, epochs: int, rate: float) -> dict[str, Any]:
    """Vectors of SST-2's sentences, 100 wide, learned from film reviews and its training sentences without labels; each
    is measured by logistic regression on them. Seconds of processor time.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (learned, labels), (asked, right) = (sst2(data, part) for part in ("train", "test"))
    texts = list(learned)
    if data is not None:
        for line in read(data / "sentiment/movie_reviews.jsonl.gz").splitlines():
            texts += re.split(r"(?<=[.!?])\s+", json.loads(line)["text"])
    split = [re.findall(r"[a-z']+|[.!?]", text.lower()) for text in texts]
    lines = [words for words in split if len(words) > 1]
    both = [split[: len(learned)], [re.findall(r"[a-z']+|[.!?]", text.lower()) for text in asked]]
    counted = Counter(word for line in lines for word in line)
    least = 3 if data else 1
    options = {"vector_size": 100, "epochs": epochs, "min_count": least, "workers": 1, "seed": 1}
    found: dict[str, Any] = {"majority": {"accuracy": max(Counter(right).values()) / len(right)}}

    def measured(name: str, began: float, rows: list[np.ndarray]) -> None:
        seconds, scaler = time.process_time() - began, StandardScaler().fit(rows[0])
        classifier = LogisticRegression(max_iter=2000).fit(scaler.transform(rows[0]), labels)
        found[name] = {"accuracy": float(classifier.score(scaler.transform(rows[1]), right)), "seconds": seconds}

    began = time.process_time()
    vectors = of_gensim(gensim_model(lines, "skip_gram", **options))
    measured("mean", began, [vectors.sentences(each) for each in both])
    total = sum(counted.values())
    shares = {word: count / total for word, count in counted.items()}
    measured("sif", began, [vectors.sentences(each, frequencies=shares) for each in both])

    began = time.process_time()
    model = gensim_model(lines, "doc2vec", **options)
    measured("doc2vec", began, [np.stack([model.infer_vector(words) for words in each]) for each in both])

    began = time.process_time()
    kept = [word for word, count in counted.most_common() if count >= least]
    numbers = {word: number for number, word in enumerate(kept)}
    known = [[numbers[word] for word in line if word in numbers] for line in lines]
    ids, places = np.concatenate(known).astype(np.int64), np.repeat(np.arange(len(known)), [len(one) for one in known])
    counts = np.bincount(ids, minlength=len(kept))

    def drawn(generator: np.random.Generator) -> np.ndarray:
        stays = thinned(ids, counts, 1e-3 if data else 0, generator)
        return sentence_rows(ids[stays], places[stays], 64)

    stream = TextRowStream(drawn, length=64, rows=64, seed=0)
    steps = len(stream.plan(0)) * epochs
    ours = WordVectorModel(WordVectorsConfig(vocab_size=len(kept), hidden_size=100, pair_buckets=200_000)).initialize(0)
    ours.use_sparse_gradients()
    settings = TrainSettings(
        steps=steps, batch_tokens=1024, optimizer="sgd", learning_rate=rate, schedule="linear", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=0.0, precision="float32", log_every=500,
    )  # fmt: skip
    Trainer(ours, Sent2Vec(counts), stream, settings, steps=steps).train()

    def vector(words: list[str]) -> np.ndarray:
        own = [numbers[word] for word in words if word in numbers] or [0]
        with torch.no_grad():
            return np.asarray(ours(torch.tensor([own]))[0][0])

    measured("sent2vec", began, [np.stack([vector(words) for words in each]) for each in both])
    return found


def novels(data: Path | None) -> tuple[Sentences, list[str], np.ndarray, np.ndarray]:
    """Sentences of the novels, their words that occur five times, the ids of the text, and the counts."""
    if data is None:
        lines = [random.Random(number).choices([f"w{n}" for n in range(30)], k=20) for number in range(100)]
    else:
        texts = [
            json.loads(line)["text"].lower() for line in read(data / "pretrain/british_novels.jsonl.gz").splitlines()
        ]
        lines = [re.findall("[a-z]+", part) for text in texts for part in re.split(r"[.!?]\s", text)]
        lines = [line for line in lines if line]
    counted = Counter(word for line in lines for word in line)
    kept = [word for word, count in counted.most_common() if count >= 5]
    numbers = {word: number for number, word in enumerate(kept)}
    ids = np.array([numbers[word] for line in lines for word in line if word in numbers])
    return lines, kept, ids, np.array([counted[word] for word in kept])


def scored(vectors: WordVectors, data: Path | None, seconds: float) -> dict[str, Any]:
    """The scores on the three sets."""
    found: dict[str, Any] = {"seconds": seconds}
    if data is not None:
        sets = data / "embeddings"
        found["wordsim"] = vectors.similarities(sets / "wordsim353.tsv").score
        found["simlex"] = vectors.similarities(sets / "simlex999.tsv").score
        analogies = vectors.analogies(sets / "questions-words.txt")
        found |= {"analogies": analogies.score, "covered": analogies.covered}
    return found


def skip_gram(data: Path | None, epochs: int, rate: float, rows: int) -> dict[str, Any]:
    """Skip-gram of 100 dimensions by gensim and on our trainer, from the same words; seconds of processor time."""
    lines, kept, ids, counts = novels(data)
    began = time.process_time()
    options = {"vector_size": 100, "window": 5, "epochs": epochs, "min_count": 5, "workers": 1, "seed": 1}
    found = {
        "gensim": scored(of_gensim(gensim_model(lines, "skip_gram", **options)), data, time.process_time() - began)
    }
    stream = TextRowStream(lambda generator: subsampled(ids, counts, 1e-3, generator), length=64, rows=rows, seed=0)
    steps = len(stream.plan(0)) * epochs
    model = WordVectorModel(WordVectorsConfig(vocab_size=len(kept), hidden_size=100)).initialize(0)
    model.use_sparse_gradients()
    settings = TrainSettings(
        steps=steps, batch_tokens=64 * rows, optimizer="sgd", learning_rate=rate, schedule="linear", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=0.0, precision="float32", log_every=500,
    )  # fmt: skip
    began = time.process_time()
    Trainer(model, SkipGram(counts), stream, settings, steps=steps).train()
    found["quatrain"] = scored(model.word_vectors(kept), data, time.process_time() - began)
    return found


def large(data: Path | None, copies: int, order: int = 3) -> dict[str, Any]:
    """Seconds and peak memory of counting copies of the novels, each with words of its own."""
    _, kept, ids, _ = novels(data)
    text = np.concatenate([ids + len(kept) * number for number in range(copies)])
    plan = NgramModel.plan(len(text), len(kept) * copies, order)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    model = NgramModel.fit(text, len(kept) * copies, order)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"tokens": len(text), "ngrams": model.config.ngrams, "seconds": time.process_time() - began,
            "bound_bytes": plan.memory, "peak_bytes": (peak - before) * 1024}  # fmt: skip


def main() -> None:
    """Reads the command line, measures, and prints one JSON line."""
    asked = parser(__doc__)
    asked.add_argument("--data", type=Path, default=os.environ.get("QUATRAIN_DATA"), help="folder of the shared data")
    asked.add_argument("--vectors", action="store_true")
    asked.add_argument("--sentences", action="store_true")
    asked.add_argument("--sentence-rate", type=float, default=0.3)
    asked.add_argument("--large", type=int, default=0, help="copies of the novels; each has 29 MB")
    asked.add_argument("--epochs", type=int, default=5)
    asked.add_argument("--rate", type=float, default=0.025)
    asked.add_argument("--rows", type=int, default=4, help="rows of 64 words of a batch")
    arguments = asked.parse_args()
    data = None if arguments.quick or arguments.data is None else Path(arguments.data)
    if arguments.quick:
        arguments.epochs, arguments.rows = 5, 4
    figures: dict[str, Any] = {
        "tinyshakespeare": characters(data),
        "wikitext2": words(data, "wikitext2", (2, 3, 5), 1),
        "sherlock": words(data, "sherlock", (2, 3, 4), 2),
        "nltk": beside_nltk(data),
        "sst2": classifiers(data),
    }
    if arguments.vectors or arguments.quick:
        figures["skip_gram"] = skip_gram(data, arguments.epochs, arguments.rate, arguments.rows)
    if arguments.sentences or arguments.quick:
        figures["sentences"] = sentence_vectors(data, arguments.epochs, arguments.sentence_rate)
    if arguments.large or arguments.quick:
        figures["large"] = large(data, arguments.large or 2)
    ratio = figures["nltk"]["nltk"]["seconds"] / figures["nltk"]["quatrain"]["seconds"]
    finish("classic", ratio, "NLTK's seconds over ours, Kneser-Ney of order 3", quick=arguments.quick, **figures)


if __name__ == "__main__":
    main()
