"""Implementation of the bag-of-words stage."""

from __future__ import annotations

import time
from typing import Any, cast

from quatrain.models.classic.bag_of_words import BagOfWords
from quatrain.models.classic.base import UNLIMITED
from quatrain.runs import tasks
from quatrain.runs.material import tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.bag_of_words import BagOfWordsStage
from quatrain.tasks.kinds import record_task


def run(settings: BagOfWordsStage, context: StageContext) -> StageResult:
    """Fits the classifier, writes `model/` and scores it beside the most frequent class."""
    tokenizer, data = tokenizer_of(context), context.data_of(settings)
    task_settings = cast(Any, settings)
    kind = record_task(task_settings)
    corpus = kind.corpus(data)
    labels = kind.labels(task_settings, corpus)
    objective = kind.make_objective(task_settings, tokenizer, corpus.format, labels, UNLIMITED)
    task = kind(objective, data, limit=context.recipe.evaluate.examples)
    examples, notes, _ = tasks.prepare(settings, context, task, data, UNLIMITED)
    began = time.perf_counter()
    model = BagOfWords.fit(
        [example.ids for example in examples],
        [example.label for example in examples],
        labels,
        tokenizer.vocab_size,
        ngrams=settings.ngrams,
        weighting=settings.weighting,
        classifier=settings.classifier,
        strength=settings.strength,
        ignored_ids=sorted(tokenizer.special_ids - {tokenizer.unk_id}),
    )
    fitted: Any = model
    result = StageResult(
        seconds=time.perf_counter() - began,
        tokens=sum(len(example.ids) for example in examples),
        parameters=model.num_parameters(),
        notes=list(notes),
    )
    result.model_bytes = write_model(fitted, tokenizer, context.model_folder)
    tasks.measure(task, context, fitted, tokenizer, result)
    return result


def prepare(settings: BagOfWordsStage, context: StageContext) -> str:
    """What `quatrain check` says."""
    return "fits a linear classifier, without steps to measure"
