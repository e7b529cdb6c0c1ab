"""What the stages of online reinforcement learning share: prompts, the training job, held-out measurements, the result.

A stage adds its objective, and what trains beside the policy, if anything does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from quatrain.agents.tool_engine import engine_with
from quatrain.alignment.comparison import comparison, outcome
from quatrain.alignment.policy import BaseReference, FrozenReference, Reference
from quatrain.alignment.reward_model import RewardTask
from quatrain.alignment.rewards import build
from quatrain.alignment.rewards.base import RewardContext
from quatrain.alignment.rollouts import (
    HeldOutScores,
    PolicyObjective,
    Prompt,
    Rollout,
    RolloutPlan,
    RolloutStream,
    Sampler,
    Scores,
    seed_of,
)
from quatrain.alignment.watch import Watch
from quatrain.core.errors import InputError
from quatrain.data.records import Conversation, Row
from quatrain.evaluation.evaluate import evaluate
from quatrain.generation.config import GenerationConfig
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_model, load_weights
from quatrain.models.transformer.stack import Model
from quatrain.planning.machine import choose_device
from quatrain.runs.assess import assess
from quatrain.runs.contexts import judges
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import learn, longest
from quatrain.runs.material import (
    fresh_model,
    generated_task,
    model_folder_of,
    model_of,
    texts_of,
    tokenizer_of,
    tools_of,
)
from quatrain.runs.online import OnlineStage
from quatrain.runs.stage import StageContext, StageResult
from quatrain.tasks.instructions import Instructions
from quatrain.tasks.task import Task, source_task
from quatrain.training import checkpoints

LONG_TEXT = 10_000
"""Characters from which on a text is divided at its line breaks, so that it has more than one beginning."""
CHARACTERS = 24
"""Characters of a text that are read for each token of its beginning."""

SMALL = 100_000_000
"""Parameters below which a policy on a CPU trains in float32 unless a recipe says otherwise."""

CONSTANT_PHASES = 5
"""Phases without any spread of rewards after which a run stops."""

ObjectiveFactory = Callable[[int, Reference | None], PolicyObjective]
"""The objective, from the id of the padding token and the reference."""


@dataclass
class PromptSets:
    """Prompts to learn from and to measure with; `examples` are those of the held-out prompts of a `task`."""

    learned: list[Prompt]
    held_out: list[Prompt]
    task: Task[Any] | None = None
    examples: Sequence[Any] = ()
    as_text: bool = False
    notes: list[str] = field(default_factory=list)


def online_job(
    settings: OnlineStage,
    context: StageContext,
    make_objective: ObjectiveFactory,
    *,
    needs_reference: bool,
    trainee: Callable[[Model], nn.Module] | None = None,
    attempts: int = 1,
) -> TrainingJob:
    """The training job of a stage that learns from rollouts. `trainee` gives what the trainer trains, if that is more
    than the model; `attempts` is that of `RolloutPlan`.
    """
    tokenizer = tokenizer_of(context)
    model = model_of(context, settings.adapter)
    # Penalties and forced tokens of the model's own settings would draw from another distribution than the policy.
    tools = tools_of(settings.tools, settings, context), settings.max_calls
    engine = engine_with(*tools, model, tokenizer, settings=GenerationConfig(), max_rows=settings.rollout_batch)
    prompts = prompt_sets(settings, context, engine)
    rewards = build(settings.rewards, reward_context(context, prompts.task), timeout=settings.reward_timeout)
    folder = context.stage_folder if context.stage_folder.is_dir() else None
    proxy, true = HeldOutScores(rewards, prompts.held_out, folder), None
    if settings.true_rewards:
        judged = build(settings.true_rewards, reward_context(context, prompts.task), timeout=settings.reward_timeout)
        true = HeldOutScores(judged, prompts.held_out, folder)
    sampler = Sampler(
        engine,
        prompts.learned,
        rewards,
        sampling_params(settings),
        samples=settings.samples,
        seed=context.seed,
        rows=settings.rollout_batch,
    )
    reference: Reference | None = None
    if needs_reference:
        has_base = settings.adapter is not None and not settings.adapter.trains_base_weights
        reference = BaseReference(model) if has_base else FrozenReference(model)
    objective = make_objective(tokenizer.pad_id or 0, reference)
    plan = RolloutPlan(
        settings.prompts,
        settings.samples,
        settings.minibatches,
        settings.passes,
        settings.train.accumulation,
        attempts,
        # The preflight samples from fresh weights, to which a reward may well give one score.
        constant_phases=0 if context.fresh_model else CONSTANT_PHASES,
    )
    trained = None if trainee is None else trainee(model)
    stream = RolloutStream(trained or model, objective, sampler, plan, folder=folder)
    phases = max(1, round((settings.train.epochs or 1) * len(prompts.learned) / settings.prompts))
    limit = max(len(prompt.ids) for prompt in prompts.learned) + settings.max_new_tokens
    rows = -(-settings.prompts * settings.samples // settings.minibatches)
    return TrainingJob(
        model,
        tokenizer,
        cast(Any, objective),
        stream,
        settings.train.model_copy(update={"batch_tokens": rows * limit, "precision": precision(settings, model)}),
        settings.train.steps or phases * plan.steps,
        length=limit,
        limit=limit,
        examples=[Rollout(prompt.ids, []) for prompt in prompts.learned],
        held_out=prompts.held_out,
        validate=measurement(settings, context, engine, prompts, proxy, true),
        outcome=lambda reference: outcome(
            prompts.held_out,
            held_out_completions(settings, context, engine, prompts.held_out),
            proxy,
            true,
            reference or engine,
        ),
        sample=lambda trained: samples_of(settings, context, engine, prompts),
        adapter=settings.adapter,
        notes=prompts.notes,
        trainee=trained,
        watch=Watch(),
    )


def precision(settings: OnlineStage, model: Model) -> Any:
    """The precision of training. For a small policy on a CPU "auto" is float32: the engine samples with the float32
    weights, and with bfloat16 the policy that learns would be another one, by a tenth of a nat per token and more.
    """
    chosen = settings.train.precision
    is_small = model.num_parameters() < SMALL and choose_device(settings.train.device).type == "cpu"
    return "float32" if chosen == "auto" and is_small else chosen


def run_online(settings: OnlineStage, context: StageContext, job: TrainingJob) -> StageResult:
    """Trains a job of `online_job`, writes `model/` and evaluates it. The result says where the time went."""
    stream: Any = job.stream
    measure = job.outcome if job.held_out and context.is_main else None
    before = {} if measure is None else measure(None)
    _, result = learn(job, context)
    if measure is not None:
        start = model_of(context).to(job.model.device)
        tools = tools_of(settings.tools, settings, context), settings.max_calls
        reference = engine_with(*tools, start, job.tokenizer, settings=GenerationConfig())
        result.extra["alignment"] = comparison(job.held_out, before, measure(reference))
    spent = dict(stream.seconds)
    seconds = result.extra["training_seconds"]
    result.extra["rollouts"] = {f"{name}_seconds": value for name, value in spent.items()} | {
        "phases": stream.phase + 1,
        "share_of_training": sum(spent.values()) / seconds if seconds else 0.0,
    }
    if seconds:
        shares = ", ".join(f"{name} {value / seconds:.0%}" for name, value in spent.items())
        result.notes.append(f"of the training time: {shares}, optimizer steps the rest")
    assess(settings, context, job.model, job.tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def reward_context(context: StageContext, task: Task[Any] | None) -> RewardContext:
    """What rewards may use: the task, and the models of earlier stages that judge."""
    return RewardContext(task, {kind: partial(_judge, context, folder) for kind, folder in judges(context).items()})


def _judge(context: StageContext, folder: Path | None) -> tuple[Model, Any]:
    """A judging model with its tokenizer; in the preflight, whose stages have not run, one with random weights."""
    if folder is not None:
        return load_model(folder, device=choose_device("auto"))
    tokenizer, start = tokenizer_of(context), model_folder_of(context)
    head: dict[str, Any] = {"head": "sequence_classification", "labels": ("LABEL_0",)}
    model = fresh_model(context, tokenizer, **head) if start is None else load_weights(start, **head)
    return model, tokenizer


def sampling_params(settings: OnlineStage) -> SamplingParams:
    """How rollouts are drawn; their log-probabilities are those of the policy at the temperature, without filters."""
    return SamplingParams(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        stop=settings.stop,
        logprobs_mode="temperature",
    )


# Prompts


def prompt_sets(settings: OnlineStage, context: StageContext, engine: Engine) -> PromptSets:
    """The prompts of a stage that fit into the model's context with their completions.

    Raises InputError if there is none.
    """
    has_template = bool(getattr(engine.tokenizer, "chat_templates", None))
    as_text = settings.prompt_format == "text" or (settings.prompt_format == "auto" and not has_template)
    data = context.data_of(settings)
    task = generated_task(context, settings)
    if task is None and data.name() is not None:
        task = source_task(data)
    if task is not None:
        sets = _task_prompts(task, engine, settings.held_out, as_text)
    elif as_text:
        sets = _text_prompts(settings, context, engine)
    else:
        sets = _chat_prompts(context, settings, engine)
    room = longest(engine.model, settings, engine.model.config.max_position_embeddings)
    limit = room - settings.max_new_tokens
    if limit < 1:
        raise InputError(
            f"{context.name}: max_new_tokens: {settings.max_new_tokens}; the context of {room:,} tokens leaves no room "
            f"for a prompt: must be at most {room - 1:,}"
        )
    for name in ("learned", "held_out"):
        prompts: list[Prompt] = getattr(sets, name)
        short = [prompt for prompt in prompts if len(prompt.ids) <= limit]
        if len(short) < len(prompts):
            what = f"{len(prompts) - len(short):,} of {len(prompts):,} prompts left out ({name.replace('_', ' ')})"
            sets.notes.append(f"{what}: longer than the {limit:,} tokens that max_new_tokens leaves of the context")
        setattr(sets, name, short)
    if not sets.learned:
        raise InputError(f"{context.name}: there is no prompt to learn from.", sets.notes)
    sets.held_out = sets.held_out[: settings.held_out]
    return sets


def _task_prompts(task: Task[Any], engine: Engine, held_out: int, as_text: bool) -> PromptSets:
    learned, notes = task.judgeable(task.splits["practice" if "practice" in task.splits else "train"])
    measured, _ = task.judgeable(task.splits["development"])

    def prompt(example: Any) -> Prompt:
        text = task.text_prompt(example) if as_text else task.prompt(example)
        ids = engine.encode(text) if isinstance(text, str) else engine.render(text)
        return Prompt(ids, example, task.question(example))

    examples = measured[:held_out]
    return PromptSets(
        [prompt(example) for example in learned],
        [prompt(example) for example in examples],
        task,
        examples,
        as_text,
        notes,
    )


def _chat_prompts(context: StageContext, settings: OnlineStage, engine: Engine) -> PromptSets:
    """Conversations without their last answer, which is the example's `reference`."""
    data = context.data_of(settings)
    splits = ("train", "development")
    if (data.settings.format or data.detected_format()) == "preference":
        # The reward stage's own reading: what it holds out is held out here too.
        pairs = RewardTask(None, data)
        learned, held_out = ([_of_pair(row) for row in pairs.splits[name]] for name in splits)
    else:
        chats = Instructions(data)
        learned, held_out = ([_of_chat(chat) for _, chat in chats.splits[name]] for name in splits)
    return PromptSets(
        [_chat_prompt(each, engine) for each in learned], [_chat_prompt(each, engine) for each in held_out]
    )


def _of_pair(row: Row) -> dict[str, Any]:
    if row.fault is not None:
        raise InputError(f"{row.place}: {row.fault}")
    return {"messages": list(row.value["prompt"]), "reference": str(row.value["chosen"][-1]["content"])}


def _of_chat(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    answered = messages[-1]["role"] == "assistant"
    reference = {"reference": str(messages[-1]["content"])} if answered else {}
    return {"messages": messages[:-1] if answered else messages, **reference}


def _chat_prompt(example: dict[str, Any], engine: Engine) -> Prompt:
    return Prompt(engine.render(example["messages"]), example, str(example["messages"][-1]["content"]))


def _text_prompts(settings: OnlineStage, context: StageContext, engine: Engine) -> PromptSets:
    """The beginnings of the texts, each after every one of `controls`; the example has the text and the `control`."""
    data = context.data_of(settings)
    learned, held_out = data.split(list(_texts(data.corpus())))
    if data.name("dev") is not None:
        learned, held_out = [*learned, *held_out], list(_texts(data.corpus("dev")))
    parts: list[list[Prompt]] = []
    for part, texts in enumerate((learned, held_out)):
        lengths = np.random.default_rng((context.seed, part))
        least, most = settings.prompt_tokens
        parts.append([])
        for text in texts:
            length = int(lengths.integers(least, most + 1))
            for before, control in (settings.controls or {"": ""}).items():
                if (prompt := _beginning(engine, text, length, before, control)) is not None:
                    parts[-1].append(prompt)
    return PromptSets(parts[0], parts[1], as_text=True)


def _texts(corpus: Any) -> Iterator[str]:
    for record in corpus:
        if isinstance(record, Conversation):
            raise InputError(f'{corpus.source}: chats have no beginnings of texts; use prompt_format = "chat".')
        text = texts_of(record)[0]
        yield from (line for line in (text.splitlines() if len(text) > LONG_TEXT else [text]) if line.strip())


def _beginning(engine: Engine, text: str, length: int, before: str, control: str) -> Prompt | None:
    """The first `length` tokens of a text after a control text; None for a text of fewer tokens."""
    tokenizer: Any = engine.tokenizer
    own = tokenizer.encode(text[: CHARACTERS * length])[:length]
    if len(own) < length:
        return None
    beginning = tokenizer.decode(own)
    special = engine.encode(before + beginning)
    example = {"prompt": beginning, "text": text} | ({"control": control} if before else {})
    return Prompt(special, example, before + beginning)


# Held-out measurements


def measurement(
    settings: OnlineStage,
    context: StageContext,
    engine: Engine,
    prompts: PromptSets,
    rewards: Scores,
    true: Scores | None,
) -> Callable[[Any], dict[str, float]] | None:
    """Measures the policy on held-out prompts: `true/NAME` for each metric of the task and each true reward.

    `validation_reward` is what is learned from, on these prompts. None where nothing is held out.
    """
    if not prompts.held_out:
        return None

    def measure(trained: Any) -> dict[str, float]:
        completions = held_out_completions(settings, context, engine, prompts.held_out)
        examples, texts = [prompt.example for prompt in prompts.held_out], [each.text for each in completions]
        metrics: dict[str, float] = {}
        if prompts.task is not None:
            params = SamplingParams(max_new_tokens=settings.max_new_tokens, stop=settings.stop)
            with prompts.task as task:
                scores = evaluate(
                    engine, task, "development", prompts.examples, params=params, as_text=prompts.as_text
                ).scores
            metrics |= {f"true/{name}": value for name, value in scores.items() if name != "count"}
        if true is not None:
            scored = true.score(examples, texts)
            metrics |= {f"true/{name}": scored.mean(values) for name, values in scored.parts.items()}
        scored = rewards.score(examples, texts)
        return metrics | {"validation_reward": scored.mean(scored.total)}

    return measure


def held_out_completions(
    settings: OnlineStage, context: StageContext, engine: Engine, prompts: Sequence[Prompt]
) -> list[Any]:
    """Completions of held-out prompts, drawn as rollouts are, with the same seeds at every measurement."""
    with torch.no_grad():
        return engine.generate(
            [list(prompt.ids) for prompt in prompts],
            sampling_params(settings),
            batch_size=settings.rollout_batch,
            seeds=[seed_of(context.seed, number) for number in range(len(prompts))],
        )


def samples_of(
    settings: OnlineStage, context: StageContext, engine: Engine, prompts: PromptSets
) -> list[dict[str, Any]]:
    """Completions of the first held-out prompts, for `train.sample_every`."""
    shown = (prompts.held_out or prompts.learned)[:3]
    completions = held_out_completions(settings, context, engine, shown)
    return [
        {"set": "held out", "prompt": prompt.text, "output": completion.text}
        for prompt, completion in zip(shown, completions, strict=True)
    ]
