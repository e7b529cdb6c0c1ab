"""Implementation of the vision stage."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.pictures import Picture, PictureSet, load_pictures
from quatrain.data.processors import find_processor
from quatrain.evaluation.metrics.classification import accuracy, f1
from quatrain.evaluation.metrics.objectives import evaluate_objective, measure
from quatrain.loading.model import load_weights
from quatrain.models.families import get_family
from quatrain.models.hub import resolve
from quatrain.models.transformer.settings import ModelSettings
from quatrain.models.transformer.stack import Model
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import example_stream, learn, with_dropout
from quatrain.runs.material import model_folder_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.vision import VisionStage
from quatrain.training import checkpoints
from quatrain.training.objectives.images import ImageClassification

HEADS = {"deit": "distilled_classification"}
"""The heads of families whose usual one is not `image_classification`."""
SHOWN = 5
"""Pictures of each set whose prediction is shown."""


def run(settings: VisionStage, context: StageContext) -> StageResult:
    """Trains the model, writes `model/` and scores it beside the most frequent class and a linear classifier."""
    pictures = load_pictures(settings.images, context.seed)
    job = setup(settings, context, pictures)
    _, result = learn(job, context)
    score(job, pictures, result, context)
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: VisionStage, context: StageContext) -> str:
    """What `quatrain check` says. Raises InputError for pictures and models that cannot be used."""
    pictures = load_pictures(settings.images, context.seed)
    job = setup(settings, context, pictures)
    job.objective.collate(pictures.train[:1])
    held = sum(map(len, pictures.held_out.values()))
    return (
        f"{len(pictures.train):,} pictures of {len(pictures.labels)} classes and {held:,} held out; "
        f"{job.steps:,} steps of {job.length} vectors a picture"
    )


def setup(settings: VisionStage, context: StageContext, pictures: PictureSet) -> TrainingJob:
    """The training job of the stage on these pictures."""
    model, processor = starting_model(settings, context, pictures.labels)
    model = with_dropout(model, settings.train.dropout)
    teacher = None if settings.teacher is None else teacher_of(settings.teacher, pictures.labels)
    objective = ImageClassification(processor, pictures.labels, augment=settings.augment, teacher=teacher)
    learned, held = split(pictures.train, settings.validation, context.seed)
    stream, steps = example_stream(settings, context, learned)
    vectors = model.config.max_position_embeddings
    tokenizer: Any = processor
    job = TrainingJob(
        model, tokenizer, objective, stream, settings.train, steps, length=vectors, limit=vectors, held_out=held,
        describe=lambda batch: list(batch.inputs["features"].shape),
        notes=[f"{len(learned):,} pictures of {len(pictures.labels)} classes"],
    )  # fmt: skip
    if held:
        plain = objective.plain()
        job.validate = lambda network: {
            f"validation_{name}": value for name, value in evaluate_objective(plain, network, held).items()
        }
    return job


def starting_model(settings: VisionStage, context: StageContext, labels: Sequence[str]) -> tuple[Model, ImageProcessor]:
    """The model of the stages before, or `model.folder`, with these labels; otherwise fresh weights."""
    folder = model_folder_of(context)
    if folder is None:
        config = vision_config(context.recipe.model, settings.image_size, settings.patch_size, labels)
        return Model(config).initialize(context.seed), ImageProcessor.of(settings.image_size)
    family = get_family(read_family(folder))
    if family.features != "pictures":
        raise InputError(f"{folder}: a {family.name} model reads no pictures; a vision stage needs one that does.")
    head = HEADS.get(family.name, "image_classification")
    model = load_weights(folder, head=head, labels=labels, seed=context.seed)
    side = (settings.image_size, settings.image_size)
    processor: ImageProcessor = find_processor(folder) or ImageProcessor.of(settings.image_size)
    if model.frontend.patches.image_size != side:
        patches = model.frontend.resize(side)
        model.config = model.config.replace(frontend=patches, max_position_embeddings=patches.num_vectors)
        context.reporter.info(f"positions are interpolated to {patches.grid[0]}x{patches.grid[1]} patches")
    if processor.sides != side:
        processor = ImageProcessor.of(
            settings.image_size, image_mean=processor.image_mean, image_std=processor.image_std
        )
    return model, processor


def read_family(folder: Path) -> str | None:
    """The family that a folder's config.json names."""
    from quatrain.models.io.model_folder import read_config

    return read_config(folder).get("model_type")


def vision_config(
    settings: ModelSettings, image_size: int, patch_size: int | Sequence[int], labels: Sequence[str]
) -> Any:
    """The configuration of a new vision model with the sizes of a recipe."""
    raw = {
        "model_type": settings.family,
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_hidden_layers,
        "num_attention_heads": settings.num_attention_heads,
        "intermediate_size": settings.resolved_intermediate_size,
        "image_size": image_size,
        "patch_size": patch_size if isinstance(patch_size, int) else list(patch_size),
        "id2label": {str(number): label for number, label in enumerate(labels)},
    }
    return get_family(settings.family).from_hf(raw, head=HEADS.get(settings.family, "image_classification"))


def teacher_of(name: str, labels: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """What a teacher says of prepared pictures: the index of its class. Raises InputError for other labels."""
    model = load_weights(resolve(name))
    if tuple(model.config.labels) != tuple(labels):
        raise InputError(
            f"teacher: {name} has the classes {', '.join(model.config.labels[:8])}; must be those of the data"
        )

    def teach(features: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model.to(features.device)(features=features)[0]
        return logits.argmax(-1)

    return teach


def split(pictures: Sequence[Picture], share: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """The pictures to learn from, and those of validations, drawn by `seed`."""
    order = np.random.default_rng((seed, 1)).permutation(len(pictures))
    held = set(order[: round(share * len(pictures))].tolist())
    parts: tuple[list[Picture], list[Picture]] = ([], [])
    for place, picture in enumerate(pictures):
        parts[place in held].append(picture)
    return parts


def score(job: TrainingJob, pictures: PictureSet, result: StageResult, context: StageContext) -> None:
    """Adds the scores on every held-out set, with the most frequent class and logistic regression beside them."""
    plain = job.objective.plain()  # type: ignore[attr-defined]
    counts = {label: sum(each.label == label for each in pictures.train) for label in pictures.labels}
    most = max(counts, key=lambda label: counts[label])
    linear = linear_classifier(plain, pictures.train)
    result.samples = []
    for name, held in pictures.held_out.items():
        values, details = measure(plain, job.model, held)
        values = {"accuracy": values["accuracy"], "f1_macro": values["f1_macro"], "count": float(len(held))}
        truth = plain.references(held)
        dumb = {"accuracy": accuracy([pictures.labels.index(most)] * len(held), truth)}
        result.scores = (result.scores or {}) | {name: values}
        result.baselines = (result.baselines or {}) | {name: {"name": f"the most frequent class ({most})", **dumb}}
        result.extra |= {key: value for key, value in details.items() if key not in result.extra}
        context.reporter.score(name, values, dumb)
        if linear is not None:
            predicted = linear(held)
            macro = f1(predicted, truth)["f1"]
            right = accuracy(predicted, truth)
            result.notes.append(
                f"{name}: logistic regression on the pixels: accuracy {right:.4f}, macro F1 {macro:.4f}"
            )
        result.samples += _samples(job, held, name)


def _samples(job: TrainingJob, held: Sequence[Picture], name: str) -> list[dict[str, Any]]:
    plain = job.objective.plain()  # type: ignore[attr-defined]
    chosen = [held[place] for place in np.linspace(0, len(held) - 1, min(SHOWN, len(held))).round().astype(int)]
    job.model.eval()
    outputs = plain.predict(job.model, plain.collate(chosen).to(job.model.device))
    return [
        {"set": name, "prompt": picture.place, "reference": picture.label, "output": plain.labels[output],
         "correct": plain.labels[output] == picture.label}
        for picture, output in zip(chosen, outputs, strict=True)
    ]  # fmt: skip


def linear_classifier(
    objective: ImageClassification, pictures: Sequence[Picture]
) -> Callable[[Sequence[Picture]], list[int]] | None:
    """Logistic regression on the pixels of prepared pictures, the classic method; None without scikit-learn."""
    try:
        linear = importlib.import_module("sklearn.linear_model")
    except ImportError:
        return None

    def rows(some: Sequence[Picture]) -> np.ndarray:
        return np.stack([objective.prepared.pixels(each).reshape(-1) for each in some]).astype(np.float32) / 255

    model = linear.LogisticRegression(C=0.1, max_iter=1000)
    model.fit(rows(pictures), objective.references(pictures))
    return lambda some: model.predict(rows(some)).tolist()
