"""The typed settings of a recipe that do not depend on the kinds of its stages.

`RecipeSettings` is what stages and their specs see of a recipe. `quatrain.runs.recipe.Recipe` adds the union of all
kinds of stages to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Listing, Place, Problem, Settings
from quatrain.core.wording import format_value
from quatrain.data.settings import DataSettings, TokenizerSettings
from quatrain.evaluation.settings import EvaluateSettings
from quatrain.models.transformer.settings import ModelSettings, families_with_head
from quatrain.planning.energy import EnergySettings
from quatrain.runs.gates import Gate

UNMARKED_KEYS = frozenset({"log_every", "checkpoint_every", "parallel", "device", "gates"})
"""Keys of any table that change what a run shows, or where it runs, but not its results."""

HEAD_OF_OBJECTIVE = {
    "causal": "causal",
    "chat": "causal",
    "dpo": "causal",
    "ppo": "causal",
    "grpo": "causal",
    "rejection-sampling": "causal",
    "distill": "causal",
    "masked": "masked",
    "replaced": "replaced_tokens",
    "bidirectional": "bidirectional",
    "span": "seq2seq",
    "denoise": "seq2seq",
    "seq2seq": "seq2seq",
    "classify": "sequence_classification",
    "regress": "sequence_classification",
    "reward": "sequence_classification",
    "tag": "token_classification",
    "answer": "question_answering",
    "choice": "multiple_choice",
    "embed": "embedding",
}
"""The head that a recipe's objective trains."""


class StageSettings(Settings):
    """One `[[stage]]` table. Each kind of stage extends it and fixes `kind`."""

    kind: str
    gates: Listing[Gate] = Field(default=(), description="numbers that the stage must reach before the run goes on")
    batches_of_tokens: ClassVar[bool] = True
    """Whether `train.batch_tokens` says how large a batch is."""

    def datasets(self) -> dict[str, DataSettings]:
        """The stage's own data by the place in its table: `{"data": …}`, `{"mixture.reviews": …}`."""
        datasets: dict[str, DataSettings] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, DataSettings):
                datasets[name] = value
            elif isinstance(value, dict):
                datasets |= {f"{name}.{key}": item for key, item in value.items() if isinstance(item, DataSettings)}
        return datasets

    def model_folders(self) -> dict[str, str]:
        """Models and files that the stage reads, by the place in its table, such as `{"rewards[0].folder": …}`."""
        return {
            f"{name}[{number}].folder": folder
            for name in type(self).model_fields
            if isinstance(items := getattr(self, name), tuple)
            for number, item in enumerate(items)
            if isinstance(folder := getattr(item, "folder", None), str)
        }

    def streaming_problems(self) -> Iterator[str]:
        """Settings of this kind of stage that do not work with `data.streaming`."""
        yield from ()


class RecipeSettings(Settings):
    """A recipe, without knowledge of the kinds of stages.

    `next` are hints on what to try afterwards; `{run}` in them is the run's folder, `{database}` its database.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$",
        description="a name for the run's folder: letters, digits, _, - and ., at most 100",
    )
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    stage: Listing[StageSettings]
    evaluate: EvaluateSettings = EvaluateSettings()
    tracking: Listing[Literal["tensorboard", "trackio", "wandb"]] = ()
    energy: EnergySettings = EnergySettings()
    next: Listing[str] = ()

    def data_of(self, stage: Settings) -> DataSettings:
        """The data of a stage: its own, or the recipe's."""
        data: DataSettings | None = getattr(stage, "data", None)
        return data or self.data

    def context_of(self, stage: Settings) -> int:
        """Tokens of one training sequence of a stage: its own `context`, or the model's longest."""
        context: int | None = getattr(stage, "context", None)
        return context or self.model.max_position_embeddings


def family_conflicts(recipe: RecipeSettings, place: Place, objective: str) -> Iterator[Problem]:
    """The conflict of an objective with a `model.family` that has no head for it."""
    families = families_with_head(HEAD_OF_OBJECTIVE[objective])
    if recipe.model.folder is None and recipe.model.family not in families:
        named = ", ".join(families)
        family = format_value(recipe.model.family)
        text = f"{format_value(objective)}; no model of family = {family} does it, only {named}"
        yield Problem(place, text, (("model", "family"),))


MEAN_POOLED = ("modernbert",)
"""Families whose config.json says whether a classifier reads the first state or the mean."""


def pooling_conflicts(pooling: str, recipe: RecipeSettings, place: Place) -> Iterator[Problem]:
    """The conflict of `pooling` = "mean" with a `model.family` whose files cannot say so."""
    if pooling == "mean" and recipe.model.folder is None and recipe.model.family not in MEAN_POOLED:
        text = f'"mean"; only model.family = {" or ".join(map(format_value, MEAN_POOLED))} has it: leave it out'
        yield Problem(place, text, (("model", "family"),))


def whole_text_conflicts(settings: StageSettings, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """The conflict of a stage that reads its whole data before it learns with `data.streaming`."""
    if recipe.data_of(settings).streaming:
        text = f"true; the {settings.kind} stage reads all data before it learns: leave it out"
        yield Problem(("data", "streaming"), text, (("stage", index),))


def unread_settings(stage: Any, objectives: Mapping[str, tuple[str, ...]]) -> Iterator[Problem]:
    """Settings of a stage that are given although its objective does not read them.

    `objectives` maps the name of a setting to the objectives that read it.
    """
    for name, readers in objectives.items():
        value = getattr(stage, name)
        if value != type(stage).model_fields[name].default and stage.objective not in readers:
            objectives_of = " or ".join(map(format_value, readers))
            text = f"{format_value(value)}; only objective = {objectives_of} reads it: leave it out"
            yield Problem((name,), text, (("objective",),))


def to_dict(recipe: Settings) -> dict[str, Any]:
    """Plain TOML values with every default filled in; keys without a value are left out."""
    return _plain(recipe.model_dump(exclude_none=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
