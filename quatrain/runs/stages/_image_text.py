"""Implementation of the image-text stage."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.image_text import ImageTextProcessor
from quatrain.data.pictures import PictureSet, load_pictures
from quatrain.evaluation.metrics.classification import accuracy
from quatrain.evaluation.metrics.objectives import evaluate_objective
from quatrain.loading.model import load_model
from quatrain.models.families import get_family
from quatrain.models.transformer.stack import Model
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import example_stream, learn, with_dropout
from quatrain.runs.material import model_folder_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._vision import split
from quatrain.runs.stages.image_text import ImageTextStage
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives.image_text import ImageText, image_vectors, text_vectors

LONGEST_CAPTION = 32
"""Tokens of a caption, its end among them."""
WORDS = 4_000
"""The most words of the captions that are tokens."""
SHOWN = 5


def run(settings: ImageTextStage, context: StageContext) -> StageResult:
    """Trains both towers, writes `model/`, and names the pictures held out by every caption there is."""
    pictures = load_pictures(settings.images, context.seed)
    job = setup(settings, context, pictures)
    _, result = learn(job, context)
    score(job, pictures, result, context)
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: ImageTextStage, context: StageContext) -> str:
    """What `quatrain check` says. Raises InputError for pictures without captions."""
    pictures = load_pictures(settings.images, context.seed)
    job = setup(settings, context, pictures)
    count = len({picture.caption for picture in pictures.train})
    return f"{len(pictures.train):,} pictures with {count:,} captions; {job.steps:,} steps"


def setup(settings: ImageTextStage, context: StageContext, pictures: PictureSet) -> TrainingJob:
    """The training job of the stage on these pictures."""
    if not all(picture.caption for picture in pictures.train):
        raise InputError(f"images: {settings.images} has pictures without captions; shapes has some for each.")
    folder = model_folder_of(context)
    if folder is None:
        said = [text for picture in pictures.train for text in (picture.caption, *picture.captions)]
        tokenizer = Tokenizer.train(said, kind="word", vocab_size=WORDS, eos="<|endoftext|>")
        side = ImageProcessor.of(settings.image_size)
        processor = ImageTextProcessor(
            ImageProcessor(**{**vars(side), "kind": "CLIP", "do_center_crop": False}), tokenizer
        )
        model = Model(clip_config(settings, context, tokenizer)).initialize(context.seed)
    else:
        model, loaded = load_model(folder)
        processor = ImageTextProcessor(ImageProcessor.load(folder), loaded)
    model = with_dropout(model, settings.train.dropout)
    objective = ImageText(
        processor, length=model.config.context_length, augment=settings.augment, short=settings.short_captions,
        largest_scale=settings.largest_scale,
    )  # fmt: skip
    learned, held = split(pictures.train, settings.validation, context.seed)
    stream, steps = example_stream(settings, context, learned)
    vectors = model.config.max_position_embeddings
    both: Any = processor
    job = TrainingJob(
        model, both, objective, stream, settings.train, steps, length=vectors, limit=vectors, held_out=held,
        describe=lambda batch: batch.input_ids.tolist(),
        notes=[f"{len(learned):,} pictures with captions"],
    )  # fmt: skip
    if held:
        job.validate = lambda network: {
            f"validation_{name}": value for name, value in evaluate_objective(objective, network, held).items()
        }
    return job


def clip_config(settings: ImageTextStage, context: StageContext, tokenizer: Tokenizer) -> Any:
    """The configuration of a new model: both towers have the recipe's sizes."""
    shape = context.recipe.model
    sizes = {
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "intermediate_size": shape.resolved_intermediate_size,
        "hidden_act": "gelu",
        "projection_dim": settings.projection,
    }
    text = sizes | {
        "num_hidden_layers": settings.text_layers, "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": LONGEST_CAPTION, "eos_token_id": tokenizer.eos_id,
        "bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    image = sizes | {
        "num_hidden_layers": shape.num_hidden_layers, "image_size": settings.image_size,
        "patch_size": settings.patch_size,
    }  # fmt: skip
    raw = {"text_config": text, "vision_config": image, "projection_dim": settings.projection}
    return get_family("clip").from_hf(raw)


def score(job: TrainingJob, pictures: PictureSet, result: StageResult, context: StageContext) -> None:
    """Zero-shot accuracy on each held-out set: the caption is chosen among all of all sets, and among its own.

    Captions of training are the likelier mistake: the first number is the one that counts.
    """
    objective: Any = job.objective
    model = job.model.eval()
    everything = [*pictures.train, *(each for held in pictures.held_out.values() for each in held)]
    choices = sorted({picture.caption for picture in everything})
    texts = text_vectors(model, objective.processor, choices)
    result.samples = []
    for name, held in pictures.held_out.items():
        vectors = image_vectors(model, objective.features(held))
        truth = [picture.caption for picture in held]
        own = [place for place, caption in enumerate(choices) if caption in set(truth)]
        similar = vectors @ texts.t()
        chosen = [choices[place] for place in similar.argmax(1).tolist()]
        among = [choices[own[place]] for place in similar[:, own].argmax(1).tolist()]
        values = {"accuracy": accuracy(chosen, truth), "accuracy_own_captions": accuracy(among, truth)}
        values["count"] = float(len(held))
        often = max(choices, key=Counter(truth).__getitem__)
        dumb = {"accuracy": accuracy([often] * len(held), truth)}
        result.scores = (result.scores or {}) | {name: values}
        result.baselines = (result.baselines or {}) | {name: {"name": "the most frequent caption of the set", **dumb}}
        context.reporter.score(name, values, dumb)
        for place in np.linspace(0, len(held) - 1, min(SHOWN, len(held))).round().astype(int):
            right = chosen[place] == held[place].caption
            result.samples.append({"set": name, "prompt": held[place].place, "reference": held[place].caption,
                                   "output": chosen[place], "correct": right})  # fmt: skip
    result.notes.append(
        f"zero-shot: one of {len(choices)} captions is chosen for each picture; accuracy_own_captions: one of its set's"
    )
