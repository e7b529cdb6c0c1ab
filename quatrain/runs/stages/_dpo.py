"""Implementation of the dpo stage: preferences, training on them, and the choice of the better model.

Preferences are given in a file, or sampled from the model and judged by the task that the data generate or by rewards.
Of given preferences a share of the prompts, or `dev`, is held out for validation. The accuracy that is reported beside
dumb rules is that of `test`, or else of those. Of a generated task the split "development" decides whether the trained
model replaces the previous one, which is kept if the new one does not answer more of these questions. The task's
held-out sets take no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quatrain.adapters.settings import PROMPT_METHODS
from quatrain.alignment import held_out
from quatrain.alignment.dpo import DPO, PreferenceExample, PreferenceObjective
from quatrain.alignment.kto import KTO, RatedExample, unpaired, with_unrelated
from quatrain.alignment.preferences import (
    PairStatistics,
    RewardStatistics,
    encode_preferences,
    prompt_key,
    sample_by_reward,
    sample_pairs,
)
from quatrain.alignment.rewards import build
from quatrain.alignment.watch import Watch
from quatrain.data.corpus import DataParts
from quatrain.data.records import Conversation
from quatrain.data.settings import DataSettings
from quatrain.evaluation.evaluate import evaluate
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.models.transformer.stack import Model
from quatrain.planning.machine import choose_device
from quatrain.runs.assess import assess
from quatrain.runs.job import TrainingData
from quatrain.runs.learning import example_stream, learn, longest, training_job, with_dropout
from quatrain.runs.material import generated_task, model_of, tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._finetune import with_template
from quatrain.runs.stages._online import reward_context
from quatrain.runs.stages.dpo import DPOStage
from quatrain.tasks.instructions import Instructions
from quatrain.tasks.task import Task, source_task
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.precision import Precision, working_dtype

Statistics = TypeVar("Statistics", PairStatistics, RewardStatistics)

PORTION = 256
"""Examples that are sampled and judged together."""

HELD_OUT = "held-out preferences"
FIRST = 8
"""Examples on which the loss before the first step is checked."""


@dataclass
class Preferences:
    """What the stage learns from, is validated on during training and measured on at its end, and notes.

    Without a `test` the validation's are measured.
    """

    learned: Sequence[Any]
    validation: Sequence[Any] = ()
    test: Sequence[Any] = ()
    notes: list[str] = field(default_factory=list)


def run(settings: DPOStage, context: StageContext) -> StageResult:
    """Collects preferences, trains, chooses the better model, writes `model/` and evaluates it."""
    tokenizer = with_template(tokenizer_of(context), context)
    model = with_dropout(model_of(context, settings.adapter), settings.train.dropout)
    task = generated_task(context, settings) if context.recipe.data_of(settings).preferences is None else None
    with task or nullcontext():
        return _run(settings, context, task, model, tokenizer)


def _run(
    settings: DPOStage, context: StageContext, task: Task[Any] | None, model: Model, tokenizer: Tokenizer
) -> StageResult:
    limit = longest(model, settings, model.config.max_position_embeddings)
    model.to(choose_device(settings.train.device))
    preferences = _collected(settings, context, task, model, tokenizer, limit)
    notes, learned = preferences.notes, preferences.learned
    if not learned:
        notes.append("no pair to learn from: the model stays as it was")
        return _unchanged(settings, context, model, tokenizer, notes)
    before = None if task is None else _development_score(context, task, model, tokenizer)
    objective, measured = (objective_of(settings, model, tokenizer.pad_id or 0, mode) for mode in (None, "precomputed"))
    validation, test = preferences.validation, preferences.test
    weights = Precision(model, working_dtype(settings.train, model.device))
    try:
        if objective.needs_references:
            learned = objective.add_references(model, learned)
        # Both are measured after the adapter, under which the base was, is merged.
        validation, test = (measured.add_references(model, each) if each else [] for each in (validation, test))
        objective.check_start(model, learned[:FIRST])
    finally:
        weights.close()
    data = TrainingData(*example_stream(settings, context, learned), learned, validation)
    job = training_job(settings, model, tokenizer, objective, data, limit=limit, notes=notes, watch=Watch())
    if validation:
        job.validate = lambda model: _validation(model, measured, validation)
    _, result = learn(job, context, check=False)
    if test or validation:
        _compare(job.model, measured, test or validation, context, result)
    if task is not None and before is not None:
        after = _development_score(context, task, model, tokenizer)
        result.notes.append(f"questions kept apart: {before:.1%} right before, {after:.1%} after")
        if after <= before:
            result.notes.append("the model from before is kept, because the new one does not answer more of them")
            model = model_of(context)
            result.model_bytes = write_model(model, tokenizer, context.model_folder)
    scores, baselines = result.scores, result.baselines
    assess(settings, context, model, tokenizer, result)
    result.scores = {**(scores or {}), **(result.scores or {})} or None
    result.baselines = {**(baselines or {}), **(result.baselines or {})} or None
    checkpoints.remove(context.checkpoints)
    return result


def _collected(
    settings: DPOStage,
    context: StageContext,
    task: Task[Any] | None,
    model: Model,
    tokenizer: Tokenizer,
    limit: int,
) -> Preferences:
    """The stage's preferences that fit, of their source; for KTO as rated answers."""
    if settings.rewards:
        preferences = _ranked_by_rewards(settings, context, task, model, tokenizer)
    elif task is not None:
        preferences = _judged_by_task(settings, context, task, model, tokenizer)
    else:
        preferences = given(settings, context, tokenizer)
    parts = []
    sets = {"": preferences.learned, "validation: ": preferences.validation, "test: ": preferences.test}
    for which, examples in sets.items():
        short = [each for each in examples if len(each) // 2 <= limit]
        if len(short) < len(examples):
            count = len(examples) - len(short)
            preferences.notes.append(f"{which}{count:,} longer than {limit} tokens left out")
        parts.append(with_unrelated(unpaired(short)) if settings.loss == "kto" and short else short)
    learned, validation, test = parts
    return Preferences(learned, validation, test, preferences.notes)


def _unchanged(
    settings: DPOStage, context: StageContext, model: Model, tokenizer: Tokenizer, notes: list[str]
) -> StageResult:
    result = StageResult(parameters=model.num_parameters(), notes=notes)
    result.model_bytes = write_model(model, tokenizer, context.model_folder)
    assess(settings, context, model, tokenizer, result)
    return result


def objective_of(settings: DPOStage, model: Model, pad_id: int, reference: str | None = None) -> PreferenceObjective:
    """The objective that the stage's `loss` names for a model, with its `reference` or another one."""
    reference = reference or settings.reference
    if settings.loss == "kto":
        return KTO(
            **({} if settings.beta is None else {"beta": settings.beta}),
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
            reference=reference,
            pad_id=pad_id,
        )
    return DPO(
        loss=settings.loss,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        simpo_gamma=settings.simpo_gamma,
        sft_weight=settings.sft_weight,
        reference=reference,
        share_prompts=shares_prompts(settings, model),
        pad_id=pad_id,
    )


def shares_prompts(settings: DPOStage, model: Model) -> bool:
    """Whether both answers of a pair can share their prompt: a soft prompt would have to precede both."""
    soft = settings.adapter is not None and settings.adapter.method in PROMPT_METHODS
    return model.config.supports_branches and not soft


def given(settings: DPOStage, context: StageContext, tokenizer: Tokenizer) -> Preferences:
    """The preferences of `data.preferences` or `data.source`; `dev` or a share of the prompts is for validation."""
    data = context.recipe.data_of(settings)
    if data.preferences is not None:
        data = DataSettings(source=data.preferences, validation=data.validation)
    parts = context.parts(data)
    kind = "rated" if settings.loss == "kto" else "preference"
    records: list[Any] = list(parts.corpus("source", format=kind))
    sets: dict[str, list[Any]] = {
        part: [] if parts.name(part) is None else list(parts.corpus(part, format=kind)) for part in ("dev", "test")
    }
    held = ""
    if parts.name("dev") is None:
        records, sets["dev"] = parts.split(records, group=prompt_key)
        held = f", {len(sets['dev']):,} of them held out"
    noun = "rated answers" if kind == "rated" else "pairs"
    notes = [f"{len(records) + (len(sets['dev']) if held else 0):,} {noun} from {data.source}{held}"]
    notes += [f"{len(sets[part]):,} {noun} from {parts.name(part)}" for part in sets if parts.name(part) is not None]
    encoded = []
    for which, each in (("", records), ("validation: ", sets["dev"]), ("test: ", sets["test"])):
        examples, others = encode_preferences(tokenizer, each)
        encoded.append(examples)
        notes += [which + note for note in others]
    learned, validation, test = encoded
    return Preferences(learned, validation, test, notes)


def _judged_by_task(
    settings: DPOStage, context: StageContext, task: Task[Any], model: Model, tokenizer: Tokenizer
) -> Preferences:
    """Pairs of the model's own completions of practice examples, judged by the task.

    The reference is chosen where none is right.
    """
    examples, notes = task.judgeable(task.splits["practice"][: settings.prompts])
    engine = Engine(model, tokenizer)
    prompts, gold = [], []
    for example in examples:
        rendered = render(tokenizer, task.messages(example))
        start = rendered.assistant_mask.index(True)
        prompts.append(rendered.ids[:start])
        gold.append([token for token, learned in zip(rendered.ids, rendered.assistant_mask, strict=True) if learned])

    def sample(start: int, end: int) -> tuple[list[PreferenceExample], PairStatistics]:
        return sample_pairs(
            engine,
            prompts[start:end],
            lambda number, completion: task.score(examples[start + number], completion).correct,
            samples=settings.samples,
            temperature=settings.temperature,
            seed=context.seed + start,
            gold=gold[start:end],
            pairs_per_prompt=settings.pairs_per_prompt,
            max_new_tokens=context.recipe.evaluate.max_new_tokens,
        )

    pairs, total = _sampled(context, len(examples), sample, PairStatistics())
    note = (
        f"{len(pairs):,} pairs from {total.samples:,} samples of {total.prompts:,} practice questions, "
        f"{total.accuracy:.1%} of them right; the reference answer was chosen in {total.from_gold:,}"
    )
    return Preferences(pairs, notes=[*notes, note])


def _ranked_by_rewards(
    settings: DPOStage, context: StageContext, task: Task[Any] | None, model: Model, tokenizer: Tokenizer
) -> Preferences:
    """Pairs of the model's own completions, ranked by the stage's rewards."""
    examples, notes, asked = _prompts(settings, context, task)
    engine, rewards = Engine(model, tokenizer), build(settings.rewards, reward_context(context, asked))
    chats = [asked.prompt(each) if asked is not None else each["prompt"] for each in examples]
    prompts = [render(tokenizer, chat, add_generation_prompt=True).ids for chat in chats]

    def sample(start: int, end: int) -> tuple[list[PreferenceExample], RewardStatistics]:
        return sample_by_reward(
            engine,
            prompts[start:end],
            examples[start:end],
            rewards,
            samples=settings.samples,
            temperature=settings.temperature,
            seed=context.seed + start,
            pairs_per_prompt=settings.pairs_per_prompt,
            max_new_tokens=context.recipe.evaluate.max_new_tokens,
        )

    pairs, total = _sampled(context, len(examples), sample, RewardStatistics())
    note = (
        f"{len(pairs):,} pairs from {total.samples:,} samples of {total.prompts:,} prompts, mean reward "
        f"{total.mean_reward:.3f}; {total.flat:,} prompts whose samples all had the same reward, "
        f"{total.unscorable:,} samples that no reward could judge"
    )
    return Preferences(pairs, notes=[*notes, note])


def _sampled(
    context: StageContext,
    count: int,
    sample: Callable[[int, int], tuple[list[PreferenceExample], Statistics]],
    total: Statistics,
) -> tuple[list[PreferenceExample], Statistics]:
    """The pairs of all portions of `count` prompts with progress, and their statistics added to `total`."""
    pairs: list[PreferenceExample] = []
    with context.reporter.task("sampling", total=count, unit="question") as bar:
        for start in range(0, count, PORTION):
            sampled, statistics = sample(start, start + PORTION)
            pairs += sampled
            total += statistics
            bar.update(min(start + PORTION, count), pairs=len(pairs))
    return pairs, total


def _prompts(
    settings: DPOStage, context: StageContext, task: Task[Any] | None
) -> tuple[list[Any], list[str], Task[Any] | None]:
    """What the model is asked, notes, and the task whose examples these are; without one they have a `prompt`."""
    if task is not None:
        return *task.judgeable(task.splits["practice"][: settings.prompts]), task
    parts: DataParts = context.data_of(settings)
    if parts.corpus().format == "prompts":
        chats = [record.messages for record in parts.corpus() if isinstance(record, Conversation)]
        return [{"prompt": messages} for messages in chats[: settings.prompts]], [], None
    of_source: Task[Any] = source_task(parts) or Instructions(parts)
    return *of_source.judgeable(of_source.splits["train"][: settings.prompts]), of_source


def _validation(model: Model, objective: PreferenceObjective, held: Sequence[Any]) -> dict[str, float]:
    """The held-out loss and the share of held-out preferences that the model ranks correctly."""
    metrics = held_out.measure(model, objective, held)
    return {"validation_loss": metrics["loss"], "validation_accuracy": metrics["accuracy"]}


def _compare(
    model: Model, objective: PreferenceObjective, held: Sequence[Any], context: StageContext, result: StageResult
) -> None:
    """Adds the accuracy on held-out preferences, beside that of rules that need no training on them."""
    metrics = held_out.measure(model, objective, held)
    scores = {"accuracy": metrics["accuracy"], "margin": metrics.get("margin", 0.0), "count": float(len(held))}
    pairs = [each for each in held if isinstance(each, PreferenceExample)]
    rules: dict[str, float] = {}
    if pairs:
        after = held_out.likelihood_accuracy(model, pairs, pad_id=objective.pad_id)
        scores["likelihood_accuracy"] = after[held_out.LIKELIHOOD]
        rules = held_out.baselines(pairs)
    else:
        rated = [each for each in held if isinstance(each, RatedExample)]
        rules = {held_out.MAJORITY: held_out.rated_baseline(rated)}
        scores.pop("margin")
    name = next(iter(rules))
    result.scores = {HELD_OUT: scores}
    result.baselines = {HELD_OUT: {"name": name, "accuracy": rules[name]}}
    result.extra["preference_baselines"] = rules
    shown = "; ".join(f"{rule}: {accuracy:.1%}" for rule, accuracy in rules.items())
    result.notes.append(f"{HELD_OUT}: {scores['accuracy']:.1%} of {len(held):,} ranked correctly ({shown})")
    context.reporter.score(HELD_OUT, scores, {"accuracy": rules[name]})


def _development_score(context: StageContext, task: Task[Any], model: Model, tokenizer: Tokenizer) -> float:
    """The main metric of the model's greedy completions of the development split."""
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens)
    examples, _ = task.judgeable(task.splits["development"])
    return evaluate(Engine(model, tokenizer), task, "development", examples, params=params).main if examples else 0.0
