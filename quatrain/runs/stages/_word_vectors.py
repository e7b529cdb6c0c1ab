"""Implementation of the word-vectors stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.models.classic.word_vectors import WordVectorModel, WordVectorsConfig
from quatrain.models.word_vectors import WordVectors, gensim_model
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import learn
from quatrain.runs.material import tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._pretrain import split_tokens
from quatrain.runs.stages.word_vectors import WordVectorsStage
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives.word_vectors import (
    Cbow,
    Glove,
    Sent2Vec,
    SkipGram,
    cooccurrences,
    sentence_rows,
    subsampled,
    thinned,
)
from quatrain.training.streams import ArrayStream, TextRowStream

ROW = 64
"""Words of a row of text."""
SENTENCE = 1000
"""Words that gensim gets as a sentence, at most 10,000."""
SHOWN = 5
"""Nearest words of each of the recipe's prompts."""
SENTENCE_WORDS = 16
"""Words of a mean sentence, about: how many rows a batch of sentences has."""
SENTENCE_ENDS = (".", "!", "?")
OBJECTIVES: dict[str, Callable[..., Any]] = {"skip_gram": SkipGram, "cbow": Cbow}

Array = np.ndarray


def run(settings: WordVectorsStage, context: StageContext) -> StageResult:
    """Learns the vectors, writes `model/` and scores it on the sets that the stage names."""
    tokenizer = tokenizer_of(context)
    learned, _ = split_tokens(settings, context, tokenizer)
    ids = np.asarray(learned.tokens).astype(np.int64)
    special = np.isin(ids, sorted(tokenizer.special_ids))
    marks = [tokenizer.token_to_id(mark) for mark in SENTENCE_ENDS]
    ends = special | np.isin(ids, [mark for mark in marks if mark is not None])
    # A sentence holds the mark that ends it.
    sentences: Array = (np.cumsum(ends) - ends)[~special]
    ids = ids[~special]
    if not len(ids):
        raise InputError(f"{context.name}: the text has no word of the vocabulary")
    if settings.library == "gensim":
        model, result = _by_gensim(settings, context, tokenizer, ids)
    else:
        model, result = _by_trainer(settings, context, tokenizer, ids, sentences)
    words = [tokenizer.id_to_token(token) or f"<{token}>" for token in range(tokenizer.vocab_size)]
    seen = np.bincount(ids, minlength=len(words)) > 0
    matrix = model.embed_tokens.weight.detach().float().cpu().numpy()
    vectors = WordVectors([word for word, known in zip(words, seen, strict=True) if known], matrix[seen])
    _score(settings, context, vectors, result)
    checkpoints.remove(context.checkpoints)
    return result


def _by_trainer(
    settings: WordVectorsStage, context: StageContext, tokenizer: Tokenizer, ids: Array, sentences: Array
) -> tuple[WordVectorModel, StageResult]:
    """Skip-gram, CBOW, Sent2Vec or GloVe on the trainer; `sentences` numbers the sentence of each word."""
    size, train = tokenizer.vocab_size, settings.train
    rows = max(1, train.batch_tokens // train.accumulation)
    counts = np.bincount(ids, minlength=size)
    config = WordVectorsConfig(
        vocab_size=size,
        hidden_size=settings.dimensions,
        method=settings.method,
        biases=settings.method == "glove",
        pair_buckets=settings.pair_buckets if settings.method == "sent2vec" else 0,
        pad_token_id=tokenizer.pad_id,
    )
    model: Any = WordVectorModel(config).initialize(context.seed)
    objective: Any
    stream: Any
    if settings.method == "glove":
        pairs = cooccurrences(ids, size, settings.window)
        objective, stream = Glove(), ArrayStream(pairs, rows=rows, seed=context.seed)
        batches = -(-len(pairs[0]) // rows)
    elif settings.method == "sent2vec":
        objective = Sent2Vec(counts, negatives=settings.negatives)

        def read_sentences(generator: np.random.Generator) -> Array:
            stays = thinned(ids, counts, settings.sample, generator)
            return sentence_rows(ids[stays], sentences[stays], ROW)

        stream = TextRowStream(read_sentences, length=ROW, rows=max(1, rows // SENTENCE_WORDS), seed=context.seed)
        batches = len(stream.plan(0))
    else:
        objective = OBJECTIVES[settings.method](counts, window=settings.window, negatives=settings.negatives)

        def read(generator: np.random.Generator) -> Array:
            return subsampled(ids, counts, settings.sample, generator)

        stream = TextRowStream(read, length=ROW, rows=max(1, rows // ROW), seed=context.seed)
        batches = len(stream.plan(0))
    if train.optimizer == "sgd":
        model.use_sparse_gradients()
    steps = train.steps or max(1, round((train.epochs or 1) * batches / train.accumulation))
    job = TrainingJob(
        model, tokenizer, objective, stream, train, steps, length=ROW, limit=ROW,
        describe=lambda batch: batch.inputs["words"].tolist(),
    )  # fmt: skip
    _, result = learn(job, context)
    return model, result


def _by_gensim(
    settings: WordVectorsStage, context: StageContext, tokenizer: Tokenizer, ids: Array
) -> tuple[WordVectorModel, StageResult]:
    """A method of gensim, with its own learning rate."""
    named = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.vocab_size)]
    sentences = [[named[token] for token in ids[start : start + SENTENCE]] for start in range(0, len(ids), SENTENCE)]
    options: dict[str, Any] = {
        "vector_size": settings.dimensions,
        "window": settings.window,
        "epochs": round(settings.train.epochs or 1),
        "sample": settings.sample,
        "negative": 0 if settings.hierarchical else settings.negatives,
        "hs": int(settings.hierarchical),
        "min_count": 1,
        "workers": 1,
        "seed": context.seed + 1,
    }
    if settings.method == "fasttext":
        options |= {"min_n": settings.min_subword, "max_n": settings.max_subword, "sg": 1}
    began = time.perf_counter()
    trained = gensim_model(sentences, settings.method, **options)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    matrix = np.zeros((tokenizer.vocab_size, settings.dimensions), dtype=np.float32)
    places = {word: number for number, word in enumerate(named)}
    matrix[[places[word] for word in trained.wv.index_to_key]] = trained.wv.vectors
    model: Any = WordVectorModel.of_matrix(torch.from_numpy(matrix), settings.method)
    result = StageResult(seconds=seconds, tokens=len(ids), parameters=model.num_parameters())
    result.model_bytes = write_model(model, tokenizer, context.model_folder)
    return model, result


def _score(settings: WordVectorsStage, context: StageContext, vectors: WordVectors, result: StageResult) -> None:
    """Scores on the sets, with what they cover, and the nearest words of the recipe's prompts."""
    scores: dict[str, dict[str, float]] = {}
    if settings.similarity is not None:
        found = vectors.similarities(settings.similarity)
        scores["similarity"] = {"spearman": found.score, "count": float(found.covered)}
        result.notes.append(f"similarity: {found.covered:,} of {found.total:,} pairs have vectors")
    if settings.analogies is not None:
        found = vectors.analogies(settings.analogies)
        scores["analogies"] = {"accuracy": found.score, "count": float(found.covered)}
        result.notes.append(f"analogies: {found.covered:,} of {found.total:,} questions have vectors")
    for name, values in scores.items():
        result.scores = (result.scores or {}) | {name: values}
        context.reporter.score(name, values, None)
    result.samples = [
        {"set": "nearest words", "prompt": word, "output": ", ".join(near for near, _ in vectors.nearest(word, SHOWN))}
        for word in context.recipe.evaluate.prompts
        if word in vectors
    ]


def prepare(settings: WordVectorsStage, context: StageContext) -> str:
    """What `quatrain check` says."""
    return "counts the words of the whole text before its first step"
