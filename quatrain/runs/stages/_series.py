"""Implementation of the series stage."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.data.series import SeriesWindow, generate, read_csv
from quatrain.evaluation.metrics.classification import by_label, confusion
from quatrain.evaluation.metrics.objectives import batches_of
from quatrain.models.classic.sensor import SensorConfig, SensorNetwork
from quatrain.runs.plain_training import train_examples
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.series import SeriesStage
from quatrain.training import checkpoints
from quatrain.training.objectives.series import SeriesClassification

BATCH_READINGS = 65_536
"""Readings that are evaluated together."""


def run(settings: SeriesStage, context: StageContext) -> StageResult:
    """Trains the network, writes `model/`, and measures it on the windows held out, by label."""
    learned, held_out = windows_of(settings, context)
    model, objective = make(settings, context, learned)
    trained = train_examples(model, objective, learned, settings.train, context, size=settings.window)
    shutil.rmtree(context.model_folder, ignore_errors=True)
    model.save(context.model_folder)
    result = measured(settings, model, objective, learned, held_out)
    result.tokens, result.parameters = trained.tokens, trained.parameters
    result.extra |= trained.extra
    context.reporter.score("windows held out", result.scores["windows held out"], result.baselines["windows held out"])  # type: ignore[index]
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: SeriesStage, context: StageContext) -> str:
    """What `quatrain check` says, after the windows were read."""
    learned, held_out = windows_of(settings, context)
    labels = Counter(window.label for window in learned)
    return f"{len(learned):,} windows to learn, {len(held_out):,} held out; {len(labels)} labels; steps not measured"


def windows_of(settings: SeriesStage, context: StageContext) -> tuple[list[SeriesWindow], list[SeriesWindow]]:
    """The windows to learn from, and the last ones of each label, which are held out.

    Raises InputError for fewer than two labels.
    """
    data = context.recipe.data_of(settings)
    if data.source is None:
        windows = generate(settings.examples, seed=context.seed, length=settings.window)
    else:
        windows = read_csv(data.source, length=settings.window, stride=settings.stride)
    groups: dict[str, list[SeriesWindow]] = defaultdict(list)
    for window in windows:
        groups[window.label].append(window)
    if len(groups) < 2:
        raise InputError(f"data.source: every window has the label {windows[0].label!r}: there is nothing to classify.")
    learned, held_out = [], []
    for group in groups.values():
        kept = max(1, round((1 - data.validation) * len(group)))
        learned += group[:kept]
        held_out += group[kept:]
    if not held_out:
        raise InputError("data.validation: no window is left to measure the accuracy on; take a larger share.")
    return learned, held_out


def make(
    settings: SeriesStage, context: StageContext, learned: Sequence[SeriesWindow]
) -> tuple[SensorNetwork, SeriesClassification]:
    """A fresh network for the windows' labels and channels, and its objective."""
    labels = tuple(dict.fromkeys(window.label for window in learned))
    config = SensorConfig(
        network=settings.network,
        channels=learned[0].values.shape[1],
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        kernel_size=settings.kernel_size,
        max_length=settings.window,
        dropout=settings.train.dropout,
        labels=labels,
    )
    model = SensorNetwork(config).initialize(context.seed)
    model.fit_scale(torch.from_numpy(np.stack([window.values for window in learned])))
    return model, SeriesClassification(labels)


def measured(
    settings: SeriesStage,
    model: SensorNetwork,
    objective: SeriesClassification,
    learned: Sequence[SeriesWindow],
    held_out: Sequence[SeriesWindow],
) -> StageResult:
    """Accuracy on the windows held out, beside that of means and deviations alone; and by label."""
    model.eval()
    predicted: list[int] = [0] * len(held_out)
    for places in batches_of(held_out, BATCH_READINGS):
        batch = objective.collate([held_out[place] for place in places]).to(model.device)
        for place, output in zip(places, objective.predict(model, batch), strict=True):
            predicted[place] = output
    right = objective.references(held_out)
    counts = confusion(predicted, right, len(objective.labels))
    rows = by_label(counts, objective.labels)
    accuracy = float(np.mean(np.equal(predicted, right)))
    centroid = by_statistics(learned, held_out)
    result = StageResult(
        scores={"windows held out": {"accuracy": accuracy, "count": float(len(held_out))}},
        baselines={"windows held out": {"name": "means and deviations, nearest centroid", "accuracy": centroid}},
    )
    bars = [{"label": row["label"], "value": row["recall"], "text": f"{row['recall']:.0%}"} for row in rows]
    name = "1-D CNN" if settings.network == "cnn" else "LSTM"
    field = model.config.receptive_field
    seen = f"a filter sees {field} readings at a time" if field else "reads the window from its beginning to its end"
    result.extra = {
        "confusion": {"labels": list(objective.labels), "counts": counts},
        "by_label": rows,
        "figures": [{"kind": "bars", "title": f"{name}: right by label", "note": seen, "bars": bars}],
    }
    return result


def by_statistics(learned: Sequence[SeriesWindow], held_out: Sequence[SeriesWindow]) -> float:
    """The accuracy of the nearest centroid of each channel's mean and deviation: no network, no order."""

    def features(windows: Sequence[SeriesWindow]) -> np.ndarray:
        stacked = np.stack([window.values for window in windows])
        return np.concatenate([stacked.mean(1), stacked.std(1)], axis=1)

    known, new = features(learned), features(held_out)
    scale = known.std(0) + 1e-9
    labels = sorted({window.label for window in learned})
    own = np.array([window.label for window in learned])
    centroids = np.stack([known[own == label].mean(0) for label in labels])
    distances: Any = (((new[:, None] - centroids) / scale) ** 2).sum(-1)
    chosen = [labels[number] for number in distances.argmin(1)]
    return float(np.mean([label == window.label for label, window in zip(chosen, held_out, strict=True)]))
