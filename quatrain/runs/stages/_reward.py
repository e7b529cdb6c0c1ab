"""Implementation of the reward stage: the pairs, the model with one score, and its accuracy on held-out pairs."""

from __future__ import annotations

from dataclasses import replace

from quatrain.alignment.reward_model import RewardTask, length_baselines
from quatrain.models.transformer.stack import Model
from quatrain.runs import tasks
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import learn
from quatrain.runs.material import tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._finetune import with_template
from quatrain.runs.stages.reward import RewardStage
from quatrain.tasks.answer_reader import READS
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives.texts import frame

PAD = "<|pad|>"


def run(settings: RewardStage, context: StageContext) -> StageResult:
    """Trains the reward model, writes `model/` and measures it on held-out pairs, beside what lengths alone give."""
    job = prepare(settings, context)
    _, result = learn(job, context)
    task = job.task
    if settings.evaluate and task is not None:
        tasks.measure(task, context, job.model, job.tokenizer, result)
        name, records = tasks.records_to_score(task, context.recipe.evaluate.examples)
        if records and result.scores:
            result.scores[name]["ece"] = result.extra["calibration"]["ece"]
            result.extra["length_baselines"] = baselines = length_baselines(records)
            shown = "; ".join(f"{rule}: {accuracy:.1%}" for rule, accuracy in baselines.items())
            result.notes += task.notes
            result.notes.append(f"{name}: of {len(records):,} pairs, right by their lengths alone: {shown}")
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: RewardStage, context: StageContext, model: Model | None = None) -> TrainingJob:
    """The training job of the stage. `model` replaces the one that earlier stages have left."""
    tokenizer, context = with_padding(tokenizer_of(context), context)
    tokenizer.config.pop(READS, None)
    if settings.reads == "answer":
        tokenizer.config[READS] = "completion"
    elif not reads_pairs(tokenizer):
        tokenizer = with_template(tokenizer, context)
    job = tasks.setup(settings, context, model, kind=RewardTask, tokenizer=tokenizer)
    job.model.config = job.model.config.replace(pad_token_id=tokenizer.pad_id)
    return job


def reads_pairs(tokenizer: Tokenizer) -> bool:
    """Whether prompt and answer are a pair of texts: an encoder's tokenizer, which ends texts itself, has no chats."""
    return tokenizer.chat_template is None and bool(frame(tokenizer)[1])


def with_padding(tokenizer: Tokenizer, context: StageContext) -> tuple[Tokenizer, StageContext]:
    """The tokenizer with a padding token that ends nothing, and the context whose model has a row for it.

    transformers reads a decoder's score at the last token that is not padding. Padding that equals the end token would
    move it to the token before.
    """
    if tokenizer.pad_id is not None and tokenizer.pad_id not in tokenizer.stop_ids:
        return tokenizer, context
    settings = context.recipe.tokenizer
    settings = settings.model_copy(update={"special_tokens": (*settings.special_tokens, PAD)})
    context = replace(context, recipe=context.recipe.model_copy(update={"tokenizer": settings}))
    tokenizer = tokenizer_of(context)
    tokenizer.config["pad_token"] = PAD
    return tokenizer, context
