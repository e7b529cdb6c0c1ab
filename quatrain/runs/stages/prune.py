"""The prune stage: weights become zero, or heads, units and layers go; then the rest may learn again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Problem
from quatrain.core.wording import format_value
from quatrain.runs.settings import RecipeSettings
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.runs.stages.pretrain import PretrainStage
from quatrain.training.settings import TrainSettings


class PruneStage(PretrainStage):
    """Prunes the model so far, and trains it again on text if there is a `train` table; zeros then stay zeros.

    Either weights become zero: `sparsity` (a share) or `pattern` ("2:4") with a `method`; or shares of `heads`, `units`
    and `layers` go and the model becomes smaller. `alternate` keeps layers at even distances. `samples` windows of the
    text calibrate. Several stages with rising `sparsity` prune iteratively.

    `rewind` gives the weights that stay other values before they learn again (lottery tickets, Frankle and Carbin 2019,
    arXiv 1803.03635): "seed" those from which the recipe's training began, "other" freshly drawn ones (the control), or
    those after an earlier stage, by its name, such as "02-pretrain".
    """

    kind: Literal["prune"] = "prune"  # type: ignore[assignment]
    method: Literal["magnitude", "magnitude-global", "wanda", "sparsegpt"] = "sparsegpt"
    sparsity: float | None = Field(default=None, ge=0, lt=1, description="the share of weights that become zero")
    pattern: str | None = Field(default=None, pattern=r"^\d+:\d+$", description='N of M weights stay, such as "2:4"')
    heads: float = Field(default=0.0, ge=0, lt=1, description="the share of each layer's heads that go")
    units: float = Field(default=0.0, ge=0, lt=1, description="the share of each layer's feed-forward units that go")
    layers: float = Field(default=0.0, ge=0, lt=1, description="the share of layers that go")
    alternate: bool = Field(default=False, description="keep layers at even distances, not the most important ones")
    samples: int = Field(default=128, ge=1, description="windows of the text that calibrate")
    rewind: str | None = Field(default=None, min_length=1, description='"seed", "other" or the name of a stage')
    train: TrainSettings | None = None  # type: ignore[assignment]

    @property
    def removes(self) -> bool:
        """Whether parts go, so that the model becomes smaller."""
        return bool(self.heads or self.units or self.layers)

    def conflicts(self) -> Iterator[Problem]:
        asked = self.sparsity is not None or self.pattern is not None
        if asked and self.removes:
            text = "sets weights to zero; heads, units and layers go in a stage of their own"
            yield Problem(("sparsity",) if self.sparsity is not None else ("pattern",), text)
        if not asked and not self.removes:
            yield Problem(
                ("sparsity",), "missing; name a share of zeros, a pattern, or shares of heads, units or layers"
            )
        if self.objective != "causal":
            yield Problem(("objective",), f'{format_value(self.objective)}; a prune stage trains "causal" models')
        if self.rewind is not None and self.train is None:
            yield Problem(("rewind",), f"{format_value(self.rewind)}; rewound weights must learn again: add train")
        if self.rewind is not None and self.removes:
            yield Problem(("rewind",), f"{format_value(self.rewind)}; only weights that became zero leave a ticket")
        if self.train is not None:
            yield from super().conflicts()


def needs(settings: PruneStage, recipe: RecipeSettings) -> set[Need]:
    """A model, and text that calibrates it."""
    return {"data", "model"}


SPEC = StageSpec(
    PruneStage,
    run=deferred("quatrain.runs.stages._prune:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._prune:prepare"),
    teaches=lambda settings: "text",
)
