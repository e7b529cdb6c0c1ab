"""Implementation of the vision-language stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.batches import TokenExample
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.image_text import ImageTextProcessor
from quatrain.data.pictures import Picture, PictureSet, Question, load_pictures
from quatrain.data.processors import find_processor
from quatrain.evaluation.metrics.objectives import evaluate_objective
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.families import get_family
from quatrain.models.hub import resolve
from quatrain.models.io.model_folder import read_config
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.vocabulary import resize_vocabulary
from quatrain.models.vision.tower import PictureTokens
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import example_stream, learn, with_dropout
from quatrain.runs.material import model_folder_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._vision import split
from quatrain.runs.stages.vision_language import VisionLanguageStage
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives.picture_text import PictureChat, PictureText, widened

IMAGE = "<image>"
TEMPLATE = "llava"
LONGEST_ANSWER = 12
"""New tokens of an answer."""
SHOWN = 6
"""Questions of each set whose answer is shown."""
TOWERS = {"clip": "clip_vision_model"}
"""Families of which a part is the tower, and the part's family."""


@dataclass
class Joined:
    """A model of a tower, a projector and a decoder, with what prepares its inputs."""

    model: Model
    tokenizer: Tokenizer
    images: ImageProcessor

    @property
    def frontend(self) -> PictureTokens:
        """The sizes of the tower and the projector."""
        frontend: Any = self.model.config.frontend
        return frontend


def run(settings: VisionLanguageStage, context: StageContext) -> StageResult:
    """Trains the model, writes `model/`, and asks it about the pictures held out."""
    pictures = questioned(settings, context)
    joined = join(settings, context, pictures)
    job = setup(settings, context, pictures, joined)
    _, result = learn(job, context)
    score(joined, pictures, result, context, blind=settings.learns == "text")
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: VisionLanguageStage, context: StageContext) -> str:
    """What `quatrain check` says. Raises InputError for pictures without questions, and models that do not fit."""
    pictures = questioned(settings, context)
    joined = join(settings, context, pictures)
    job = setup(settings, context, pictures, joined)
    count = sum(len(picture.questions) for picture in pictures.train)
    return (
        f"{len(pictures.train):,} pictures with {count:,} questions, {joined.frontend.num_vectors} tokens a picture; "
        f"{job.steps:,} steps"
    )


def questioned(settings: VisionLanguageStage, context: StageContext) -> PictureSet:
    """The pictures with questions. Raises InputError for pictures without them."""
    key = f"pictures:{settings.images}:{context.seed}"
    if key not in context.shared:
        context.shared[key] = load_pictures(settings.images, context.seed)
    pictures: PictureSet = context.shared[key]
    if not all(picture.questions for picture in pictures.train):
        raise InputError(f"images: {settings.images} has pictures without questions; scenes has some for each.")
    return pictures


def setup(settings: VisionLanguageStage, context: StageContext, pictures: PictureSet, joined: Joined) -> TrainingJob:
    """The training job of the stage on these pictures."""
    model = with_dropout(joined.model, settings.train.dropout)
    freeze(model, settings.learns)
    blind = settings.learns == "text"
    key = f"chats:{settings.images}:{context.seed}:{joined.tokenizer.fingerprint}:{joined.frontend.num_vectors}:{blind}"
    if key not in context.shared:
        context.shared[key] = encoded(pictures.train, joined, blind=blind)
    chats = context.shared[key]
    limit = model.config.context_length
    if (longest := max(len(chat.tokens) for chat in chats) - 1) > limit:
        raise InputError(
            f"model.max_position_embeddings: {limit}; the questions of a picture have {longest} tokens with it: set "
            f"at least {longest}"
        )
    objective = PictureText(joined.images, joined.tokenizer.pad_id or 0, augment=settings.augment)
    learned, held = split(chats, settings.validation, context.seed)
    stream, steps = example_stream(settings, context, learned)
    both: Any = ImageTextProcessor(joined.images, joined.tokenizer)
    mean = round(float(np.mean([len(chat.tokens) for chat in chats])))
    count = sum(len(picture.questions) for picture in pictures.train)
    job = TrainingJob(
        model, both, objective, stream, settings.train, steps, length=mean, limit=limit, held_out=held,
        describe=lambda batch: batch.input_ids.tolist(),
        notes=[f"{count:,} questions about {len(pictures.train):,} pictures" + ", which are not shown" * blind],
    )  # fmt: skip
    if held:
        job.validate = lambda network: {
            f"validation_{name}": value for name, value in evaluate_objective(objective, network, held).items()
        }
    return job


def freeze(model: Model, learns: str) -> None:
    """Freezes what does not learn. The tower's layers that are not read never do."""
    frontend: Any = model.frontend
    parts = {"text": (model,), "projector": (frontend.linear_1, frontend.linear_2), "all": (model,)}
    model.requires_grad_(False)
    for part in parts[learns]:
        if part is not None:
            part.requires_grad_(True)
    if learns == "text":
        frontend.requires_grad_(False)
    for unread in (*frontend.tower.layers[frontend.sizes.depth :], frontend.tower.norm):
        if unread is not None:
            unread.requires_grad_(False)


def join(settings: VisionLanguageStage, context: StageContext, pictures: PictureSet) -> Joined:
    """The model so far if it is joined already; otherwise its tower with a projector and a decoder.

    Raises InputError for a model that reads no pictures.
    """
    folder = model_folder_of(context)
    if folder is not None and read_config(folder).get("model_type") == "llava":
        model, tokenizer = load_model(folder)
        return Joined(model, tokenizer, ImageProcessor.load(folder))
    tower, images = _tower(settings, context)
    decoder, tokenizer = _decoder(settings, context, pictures)
    token = tokenizer.token_to_id(IMAGE)
    frontend = PictureTokens(
        tower.config, int(token or 0), settings.layer, settings.selection, settings.projector,
        decoder_family=decoder.config.family,
    )  # fmt: skip
    config = decoder.config.replace(family="llava", frontend=frontend)
    model = Model(config).initialize(context.seed)
    weights = decoder.state_dict() | {f"frontend.tower.{name}": value for name, value in tower.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    lost = [name for name in missing if not name.startswith(("frontend.linear_1.", "frontend.linear_2."))]
    if lost or unexpected:
        raise InputError("This decoder cannot be joined with a vision tower:", [*lost, *unexpected])
    model.generation_config = decoder.generation_config
    return Joined(model, tokenizer, images)


def _tower(settings: VisionLanguageStage, context: StageContext) -> tuple[Model, ImageProcessor]:
    """The tower of the model so far without its head, or a new one, and what prepares its pictures."""
    folder = model_folder_of(context)
    if folder is None:
        shape = context.recipe.model
        raw = {
            "model_type": "clip_vision_model", "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_hidden_layers, "num_attention_heads": shape.num_attention_heads,
            "intermediate_size": shape.resolved_intermediate_size, "image_size": settings.image_size,
            "patch_size": settings.patch_size, "hidden_act": "gelu",
        }  # fmt: skip
        tower = Model(get_family("clip_vision_model").from_hf(raw, head="none")).initialize(context.seed)
        return tower, ImageProcessor(**{**vars(ImageProcessor.of(settings.image_size)), "kind": "CLIP"})
    family = get_family(read_config(folder).get("model_type"))
    if family.features != "pictures":
        raise InputError(
            f"{folder}: a {family.name} model reads no pictures; a vision-language stage needs one that does, such as "
            "that of an image-text stage."
        )
    whole = load_model(folder)[0] if family.name in TOWERS else _without_tokenizer(folder)
    source = whole.image_tower if whole.image_tower is not None else whole
    own = get_family(source.config.family)
    config = own.from_hf(own.to_hf(source.config), head="none").replace(pooler="none")
    tower = Model(config)
    kept = tower.state_dict()
    tower.load_state_dict({name: value for name, value in source.state_dict().items() if name in kept})
    side: Any = config.frontend
    images = find_processor(folder) or ImageProcessor.of(side.image_size[0])
    return tower, images


def _without_tokenizer(folder: Any) -> Model:
    from quatrain.loading.model import load_weights

    return load_weights(folder)


def _decoder(settings: VisionLanguageStage, context: StageContext, pictures: PictureSet) -> tuple[Model, Tokenizer]:
    """The decoder, new or of a folder, and its tokenizer, which knows the image token and a chat template."""
    if settings.decoder is not None:
        model, tokenizer = load_model(resolve(settings.decoder))
        if model.config.head != "causal" or model.config.frontend is not None:
            raise InputError(f"decoder: {settings.decoder}; must be a decoder of texts, which predicts the next token")
        tokenizer = tokenizer.extended([IMAGE], chat_template=TEMPLATE)
        resize_vocabulary(model, max(model.config.vocab_size, tokenizer.vocab_size))
        return model, tokenizer
    texts = sorted({text for picture in pictures.train for text in _texts(picture)})
    tokenizer = Tokenizer.train(
        [*texts, "USER: ASSISTANT:"], vocab_size=settings.vocab_size, special_tokens=[IMAGE], chat_template=TEMPLATE
    )
    shape = context.recipe.model.model_copy(update={"family": "llama", "folder": None})
    tokens: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    return Model(shape.config(tokenizer.vocab_size, **tokens)).initialize(context.seed), tokenizer


def _texts(picture: Picture) -> Iterator[str]:
    for question in picture.questions:
        yield f"{question.text} ASSISTANT: {question.answer}"


def conversation(picture: Picture, questions: Sequence[Question], *, blind: bool) -> list[dict[str, Any]]:
    """The questions as a conversation whose first turn shows the picture, unless `blind`."""
    messages: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        parts: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        if number == 0 and not blind:
            parts.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages


def encoded(pictures: Sequence[Picture], joined: Joined, *, blind: bool) -> list[PictureChat]:
    """The questions of each picture as one conversation, with the assistant's tokens marked."""
    chats = []
    for picture in pictures:
        rendered = render(joined.tokenizer, conversation(picture, picture.questions, blind=blind))
        example = TokenExample(rendered.ids, rendered.assistant_mask)
        if not blind:
            example = widened(example, joined.frontend.token_id, joined.frontend.num_vectors)
        chats.append(PictureChat(example, None if blind else picture))
    return chats


def score(joined: Joined, pictures: PictureSet, result: StageResult, context: StageContext, *, blind: bool) -> None:
    """Asks every question about every held-out picture alone, and adds what is right beside the commonest answers.

    A model that has seen pictures is also asked without them.
    """
    engine = Engine(joined.model, joined.tokenizer)
    engine.processor = joined.images
    frequent = commonest(pictures.train)
    result.samples = []
    for name, held in pictures.held_out.items():
        asked = [(picture, question) for picture in held for question in picture.questions]
        said = answers(engine, asked, blind=blind)
        truth = [question.answer for _, question in asked]
        right = [one == other for one, other in zip(said, truth, strict=True)]
        values = {"accuracy": float(np.mean(right)), "count": float(len(asked))}
        dumb = {"accuracy": float(np.mean([frequent.get(q.kind, "") == q.answer for _, q in asked]))}
        result.scores = (result.scores or {}) | {name: values}
        named = {"name": "the commonest answer of each kind of question", **dumb}
        result.baselines = (result.baselines or {}) | {name: named}
        kinds: dict[str, dict[str, int]] = {}
        for (_, question), is_right in zip(asked, right, strict=True):
            one = kinds.setdefault(question.kind, {"right": 0, "count": 0})
            one["right"], one["count"] = one["right"] + is_right, one["count"] + 1
        result.kinds = (result.kinds or {}) | {name: dict(sorted(kinds.items()))}
        context.reporter.score(name, values, dumb)
        if not blind:
            unseen = answers(engine, asked, blind=True)
            share = float(np.mean([one == other for one, other in zip(unseen, truth, strict=True)]))
            result.extra.setdefault("without_picture", {})[name] = share
            result.notes.append(f"{name}: {share:.1%} of the questions are answered right without the picture")
        for number in np.linspace(0, len(asked) - 1, min(SHOWN, len(asked))).round().astype(int):
            picture, question = asked[number]
            result.samples.append({
                "set": name, "prompt": f"{picture.place}: {question.text}", "reference": question.answer,
                "output": said[number], "correct": right[number],
            })  # fmt: skip


def commonest(pictures: Sequence[Picture]) -> dict[str, str]:
    """The commonest answer of each kind of question."""
    counts: dict[str, Counter[str]] = {}
    for picture in pictures:
        for question in picture.questions:
            counts.setdefault(question.kind, Counter())[question.answer] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def answers(engine: Engine, asked: Sequence[tuple[Picture, Question]], *, blind: bool) -> list[str]:
    """The greedy answer to each question alone."""
    prompts: list[list[int]] = []
    texts: dict[str, list[int]] = {}
    prepared: dict[int, Any] = {}
    for picture, question in asked:
        if question.text not in texts:
            messages = conversation(picture, [question], blind=blind)[:1]
            tokenizer: Any = engine.tokenizer
            texts[question.text] = render(tokenizer, messages, add_generation_prompt=True).ids
        ids = texts[question.text]
        if blind:
            prompts.append(ids)
            continue
        if id(picture) not in prepared:
            import torch

            prepared[id(picture)] = torch.from_numpy(engine.processor([picture.source]))
        prompts.append(engine.with_pictures(ids, prepared[id(picture)]))
    found = engine.generate(prompts, SamplingParams(max_new_tokens=LONGEST_ANSWER), batch_size=64)
    return [each.text.strip() for each in found]
