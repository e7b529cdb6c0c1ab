"""The scope stage: the problem in numbers, before anything is trained."""

from __future__ import annotations

from typing import Literal

from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Need, StageContext, StageResult, StageSpec


class ScopeStage(StageSettings):
    """Counts the examples to learn from and those held out, and scores the dumb baseline, which a model has to beat.

    Its gates say whether the project is worth starting: `training_examples`, `held_out_examples`, and the baseline's
    score of a set.
    """

    kind: Literal["scope"] = "scope"
    data: DataSettings | None = None


def needs(settings: ScopeStage, recipe: RecipeSettings) -> set[Need]:
    """Data alone."""
    return {"data"}


def run(settings: ScopeStage, context: StageContext) -> StageResult:
    """Reads the data; writes no model. The scores are those of the dumb baseline."""
    from quatrain.core.errors import InputError
    from quatrain.evaluation.evaluate import judge
    from quatrain.runs.material import opened_task
    from quatrain.tasks.prompting.texts import usable

    result = StageResult()
    with opened_task(settings, context) as task:
        sets = {name: usable(task, examples) for name, examples in task.held_out.items()}
        sets = {name: examples for name, examples in sets.items() if examples}
        if not sets:
            raise InputError(
                "nothing is held out to measure a model on: name data.test, or a share with data.validation"
            )
        result.scores = {
            name: judge(task, name, examples, task.baseline(examples)).scores for name, examples in sets.items()
        }
        result.extra["training_examples"] = len(task.splits.get("train", ()))
        result.extra["held_out_examples"] = sum(map(len, sets.values()))
        result.notes.append(f"the scores are those of the dumb baseline: {task.baseline_name}")
        for name, scores in result.scores.items():
            context.reporter.score(f"{name}, dumb baseline", scores)
    return result


SPEC = StageSpec(ScopeStage, run=run, needs=needs)
