"""The evaluate stage: measures the model as the stages before have left it, or the one in `model.folder`."""

from __future__ import annotations

from quatrain.evaluation.settings import EvaluateStage
from quatrain.stages.assess import assess
from quatrain.stages.base import Context, StageResult
from quatrain.stages.material import model_of, tokenizer_of


def run(settings: EvaluateStage, context: Context) -> StageResult:
    """Scores and samples; writes no model."""
    model = model_of(context)
    result = StageResult(parameters=model.num_parameters())
    assess(settings, context, model, tokenizer_of(context), result)
    return result
