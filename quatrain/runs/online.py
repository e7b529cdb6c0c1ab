"""Settings that stages of online reinforcement learning share: what is sampled, how it is rewarded and measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.adapters.settings import AdapterSettings
from quatrain.alignment.rewards import AnyReward, name_problems
from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Problem
from quatrain.core.wording import format_value
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, family_conflicts
from quatrain.runs.stage import Need
from quatrain.training.settings import TrainSettings


class OnlineStage(StageSettings):
    """A stage that learns from its own completions. Base of the kinds `ppo` and `grpo`.

    A phase draws `prompts` prompts with `samples` completions each, and passes over them `passes` times in
    `minibatches` optimizer steps; then it draws again. `train.steps` counts optimizer steps, `train.epochs` passes over
    the prompts. Completions have at most `max_new_tokens` tokens; `stop` strings end them too.

    `rewards` score the completions; without any, the task's own score does. `true_rewards` are measured on `held_out`
    prompts every `train.evaluate_every` steps and never learned from, and so are the metrics of a task.

    Prompts are the examples of a task, the conversations of `data.source` before their last answer, or the beginnings
    of its texts, `prompt_tokens` = [least, most] tokens long. `prompt_format` = "auto" renders chats if the tokenizer
    has a chat template. `controls` maps a text that is put before every prompt to the label that it asks for; rewards
    read it as the field `control` of the example.
    """

    batches_of_tokens: ClassVar[bool] = False

    prompts: int = Field(default=32, ge=1, description="prompts drawn in each phase")
    samples: int = Field(default=1, ge=1, description="completions of each prompt")
    minibatches: int = Field(default=1, ge=1, description="optimizer steps of a pass over the rollouts")
    passes: int = Field(default=1, ge=1, description="passes over the rollouts of a phase")
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    stop: Listing[str] = Field(default=(), description="strings that end a completion")
    tools: Listing[str] = Field(default=(), description='tools that completions may call, such as "calculator"')
    max_calls: int = Field(default=1, ge=1, description="calls of tools in a completion")
    rollout_batch: int = Field(default=64, ge=1, description="completions that are generated together")
    rewards: Listing[AnyReward] = ()
    reward_timeout: float = Field(default=600.0, gt=0, description="seconds that one reward may take for a phase")
    true_rewards: Listing[AnyReward] = Field(default=(), description="measured on held-out prompts, not learned from")
    held_out: int = Field(default=64, ge=0, description="held-out prompts of each measurement")
    prompt_format: Literal["auto", "chat", "text"] = "auto"
    prompt_tokens: Listing[int] = Field(default=(2, 8), description="least and most tokens of a text's beginning")
    controls: dict[str, str] = Field(default={}, description='texts before the prompts: {"[good] " = "positive"}')
    context: int | None = Field(default=None, ge=2, description="longest prompt with completion, in tokens")
    train: TrainSettings
    adapter: AdapterSettings | None = None
    data: DataSettings | None = None
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        yield from name_problems(self.rewards)
        yield from name_problems(self.true_rewards, "true_rewards")
        if len(self.prompt_tokens) != 2 or not 1 <= self.prompt_tokens[0] <= self.prompt_tokens[-1]:
            text = f"{list(self.prompt_tokens)}; must be two numbers, the least (at least 1) and the most tokens"
            yield Problem(("prompt_tokens",), text)
        rollouts, parts = self.prompts * self.samples, self.minibatches * self.train.accumulation
        if rollouts < parts:
            text = f"{self.prompts} with samples = {self.samples} gives {rollouts} rollouts; must be at least {parts}: "
            text += f"minibatches = {self.minibatches} x train.accumulation = {self.train.accumulation}"
            yield Problem(("prompts",), text, (("samples",), ("minibatches",), ("train", "accumulation")))
        train, default = self.train, TrainSettings.model_fields
        refused = {
            "batch_tokens": "prompts, samples and minibatches say how large a step is",
            "dropout": "the policy that learns would not be the one that was sampled, and no ratio would be 1",
            "packing": "rollouts are rows of their own",
            "compile": "generation has other shapes at every step",
        }
        for name, reason in refused.items():
            if getattr(train, name) != default[name].default:
                yield Problem(("train", name), f"{format_value(getattr(train, name))}; {reason}: leave it out")
        if train.parallel not in ("auto", "ddp"):
            text = f'{format_value(train.parallel)}; generation needs whole weights in every process: use "ddp"'
            yield Problem(("train", "parallel"), text)
        if self.adapter is not None and self.adapter.slots:
            text = f"{format_value(self.adapter.method)}; a soft prompt changes the model before it has learned: the "
            text += 'policy would not start from its reference; use another method, such as "lora"'
            yield Problem(("adapter", "method"), text)
        if self.adapter is not None and self.adapter.dropout:
            yield Problem(("adapter", "dropout"), f"{self.adapter.dropout}; {refused['dropout']}: leave it out")


def needs_prompts(settings: OnlineStage, recipe: RecipeSettings) -> set[Need]:
    """A model, and data with prompts."""
    return {"model", "data"}


def online_lesson(settings: OnlineStage) -> Literal["text", "chat"]:
    """What the model learns to complete."""
    return "text" if settings.prompt_format == "text" else "chat"


def online_file_problems(settings: OnlineStage, recipe: RecipeSettings) -> Iterator[str]:
    """A stage that the score of a task rewards, over data that no task judges. Looks at the format of the source."""
    from quatrain.alignment.rewards import kinds
    from quatrain.data.corpus import DataParts
    from quatrain.tasks.task import spec_of_source

    data, named = recipe.data_of(settings), [*settings.rewards, *settings.true_rewards]
    if data.generates or data.source is None or (settings.rewards and not any(each.needs_task for each in named)):
        return
    try:
        judged = spec_of_source(DataParts(data)) is not None
    except InputError:
        return  # whatever reads the source says what is wrong with it
    if not judged:
        what = 'kind = "task" is the score of a task' if settings.rewards else "missing"
        yield (
            f"stage {settings.kind}: rewards: {what}, and no task judges the answers to {data.source}; name what to "
            f"reward, a table with a kind of {', '.join(sorted(set(kinds()) - {'task'}))}"
        )


def online_conflicts(settings: OnlineStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Families that are no decoders, and data that give no prompts."""
    yield from family_conflicts(recipe, ("stage", index), settings.kind)
    if recipe.data_of(settings).streaming:
        yield Problem(("stage", index), f"{settings.kind} shuffles its prompts: leave data.streaming out", (("data",),))
