"""The finetune stage: chats with loss on the assistant's tokens only, or a task of typed records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.adapters.settings import PROMPT_METHODS, AdapterSettings
from quatrain.core.settings import Problem, Settings
from quatrain.core.wording import format_value
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import (
    RecipeSettings,
    StageSettings,
    family_conflicts,
    pooling_conflicts,
    unread_settings,
)
from quatrain.runs.stage import Lesson, Need, StageSpec, deferred
from quatrain.training.settings import TaskSettings, TrainSettings


class TeacherAnswers(Settings):
    """A stronger model whose answers replace those of the chats (sequence-level distillation, Kim and Rush 2016)."""

    model: str = Field(min_length=1, description="a model folder, a run or http://HOST/v1#NAME, with any tokenizer")
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=10)


class FinetuneStage(TaskSettings, StageSettings):
    """Finetunes the model so far; for tasks other than chats, fresh weights too. Without `adapter` every weight trains.

    `objective` and `labels` are those of `TaskSettings`. `mixture` has several sets of chats by name that are trained
    together over one frozen model: each has its own adapter, and a batch holds rows of all of them. The embedding,
    which they share, is not trained. A `teacher` answers the training chats anew before the model learns them.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {**TaskSettings.renamed_keys, "tasks": "mixture"}

    kind: Literal["finetune"] = "finetune"
    context: int | None = Field(default=None, ge=2)
    train: TrainSettings
    adapter: AdapterSettings | None = None
    teacher: TeacherAnswers | None = None
    data: DataSettings | None = None
    mixture: dict[str, DataSettings] = Field(default={}, description="sets of chats, each with an adapter of its own")
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        only = {
            "mixture": ("chat",),
            "teacher": ("chat",),
            "labels": ("classify", "tag"),
            "stride": ("tag", "answer"),
            "source_prefix": ("seq2seq",),
            "max_target_length": ("seq2seq",),
            "label_smoothing": ("seq2seq",),
            "temperature": ("embed",),
            "pooling": ("classify", "regress"),
        }
        yield from unread_settings(self, only)
        if self.train.packing and self.objective != "chat":
            yield Problem(("train", "packing"), 'true; only objective = "chat" has it: leave it out', (("objective",),))
        if self.train.packing and self.adapter is not None and self.adapter.method in PROMPT_METHODS:
            text = f'true; a soft prompt precedes one text per row: leave it out with method = "{self.adapter.method}"'
            yield Problem(("train", "packing"), text, (("adapter", "method"),))
        if self.mixture:
            yield from self._joint_conflicts(self.adapter)

    def _joint_conflicts(self, adapter: AdapterSettings | None) -> Iterator[Problem]:
        """Conflicts of sets that are trained together."""
        if adapter is None:
            yield Problem(
                ("adapter",), "missing; each set of the mixture learns an adapter of its own over the frozen model"
            )
        elif adapter.trains_base_weights:
            text = "learns weights of the model itself, which all sets share; take another for a mixture"
            yield Problem(("adapter", "method"), f'"{adapter.method}"; {text}', (("mixture",),))
        elif adapter.quantize_base != "float":
            text = f'"{adapter.quantize_base}"; the sets of a mixture learn over floats alone: leave it out'
            yield Problem(("adapter", "base"), text, (("mixture",),))
        if self.data is not None:
            yield Problem(
                ("data",), "given beside mixture, whose sets have data of their own: leave it out", (("mixture",),)
            )
        if self.train.packing:
            yield Problem(("train", "packing"), "true; a row is of one set: leave it out", (("mixture",),))
        for name, data in self.mixture.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                text = f"{format_value(name)}; must be letters, digits, - and _, for a folder will bear the name"
                yield Problem(("mixture", name), text)
            if data.streaming:
                yield Problem(
                    ("mixture", name, "streaming"), "true; the sets are read whole to be shuffled: leave it out"
                )
            if data.source is None:
                yield Problem(("mixture", name, "source"), "missing; name a file, a folder or a catalog name")

    def streaming_problems(self) -> Iterator[str]:
        if self.teacher is not None:
            yield "teacher: it answers the chats before the training; leave it out, or data.streaming"
        if self.objective in ("classify", "tag") and not self.labels:
            yield 'labels: none; a stream shows only at its end which there are: name them: labels = ["no", "yes"]'


def needs(settings: FinetuneStage, recipe: RecipeSettings) -> set[Need]:
    """Chats need a model. Other tasks train fresh weights too, and need a tokenizer at least."""
    needed: set[Need] = {"model" if settings.objective == "chat" else "tokenizer"}
    return needed if settings.mixture else needed | {"data"}


def conflicts(settings: FinetuneStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Families that have no head for the objective, and tasks of records beside a database."""
    place = ("stage", index, "objective")
    yield from family_conflicts(recipe, place, settings.objective)
    yield from pooling_conflicts(settings.pooling, recipe, ("stage", index, "pooling"))
    if settings.objective != "chat" and recipe.data_of(settings).generates:
        text = f"{format_value(settings.objective)}; it learns from data.source; a database has only chats and texts"
        yield Problem(place, text, (("data", "database"), ("data", "task")))


def teaches(settings: FinetuneStage) -> Lesson:
    """Chats, or the task of the model's head."""
    return "chat" if settings.objective == "chat" else "task"


SPEC = StageSpec(
    FinetuneStage,
    run=deferred("quatrain.runs.stages._finetune:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._finetune:prepare"),
    conflicts=conflicts,
    teaches=teaches,
    distributed=True,
)
