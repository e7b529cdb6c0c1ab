"""What a trained model says of new inputs, by the task that its head is of."""

from quatrain.tasks.predict import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
