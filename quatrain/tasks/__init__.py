"""Tasks: what examples of data mean, and pipelines that use a model for a task."""

from quatrain.tasks.pipelines import Pipeline, Prediction, pipeline

__all__ = ["Pipeline", "Prediction", "pipeline"]
