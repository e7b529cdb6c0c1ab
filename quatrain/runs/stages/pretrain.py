"""The pretrain stage: a model learns running text, from fresh weights or from the model so far.

The objective predicts every next token (GPT), masked tokens (BERT), masked spans (T5), the clean text of a corrupted
one (BART) or which tokens were replaced (ELECTRA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Problem, Settings
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, family_conflicts, unread_settings
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.training.settings import TrainSettings

SENTINELS = 100
"""Sentinel tokens of a tokenizer for span corruption, as many as T5's has."""


class TeacherSettings(Settings):
    """A stronger model whose distributions a stage learns (knowledge distillation).

    `model` is a model folder, a run, or the name of an earlier stage such as "02-pretrain". The loss is `weight` times
    the divergence, times temperature², and (1 - weight) times the cross-entropy of the text. `hidden` and `attention`
    add losses of hidden states (DistilBERT) and attention weights (TinyBERT).
    """

    model: str = Field(min_length=1, description="a model with the same tokenizer")
    divergence: Literal["forward", "reverse", "js"] = "forward"
    mixture: float = Field(default=0.5, gt=0, lt=1, description="the teacher's share in js")
    temperature: float = Field(default=1.0, gt=0, le=100)
    weight: float = Field(default=0.5, ge=0, le=1, description="the share of the divergence")
    hidden: float = Field(default=0.0, ge=0)
    attention: float = Field(default=0.0, ge=0)


class PretrainStage(StageSettings):
    """Trains on text, from fresh weights or from `model.folder`. `context` defaults to the model's longest.

    `objective` is what the model predicts: every next token (`causal`), masked tokens (`masked`: BERT), which tokens a
    `generator` has replaced (`replaced`: ELECTRA), masked spans (`span`: T5), the clean text of a corrupted one
    (`denoise`: BART), or each word from those before it and from those behind it (`bidirectional`: ELMo). `mask_ratio`
    is the fraction of tokens that those that corrupt mask; the default is 0.15, for `denoise` 0.3. With a `teacher`, a
    causal model also learns the teacher's distributions.

    `rows` = "windows" cuts the running text into rows; "documents" gives each document its own row, for corpora of
    short documents, and cuts longer ones at `context`; "carried" reads the text in order, in as many parts as a batch
    has rows, and a recurrent model carries its state from batch to batch. With a `stride` smaller than `context`
    windows overlap, and an epoch has more of them.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "hidden": "mask_ratio",
        "mean_span": "mean_span_length",
        "whole_words": "whole_word_masking",
        "next_sentence": "next_sentence_prediction",
    }

    kind: Literal["pretrain"] = "pretrain"
    objective: Literal["causal", "masked", "replaced", "span", "denoise", "bidirectional"] = "causal"
    rows: Literal["windows", "documents", "carried"] = "windows"
    mask_ratio: float | None = Field(default=None, gt=0, le=0.9, description="fraction of tokens that are masked")
    stride: int | None = Field(default=None, ge=1, description="tokens between the starts of two windows")
    mean_span_length: float = Field(default=3.0, ge=1, le=1000, description="mean tokens of a masked span")
    whole_word_masking: bool = Field(default=False, description="mask whole words (masked)")
    next_sentence_prediction: bool = Field(
        default=False, description="also predict whether two sentences follow each other (masked)"
    )
    copy_steps: int = Field(default=0, ge=0)
    copy_every: int = Field(default=0, ge=0, description="0 for never again")
    context: int | None = Field(default=None, ge=2)
    sampled_softmax: int = Field(
        default=0, ge=0, description="words that a label competes with in a training step; 0 for the whole vocabulary"
    )
    teacher: TeacherSettings | None = None
    generator: str | None = Field(
        default=None,
        min_length=1,
        description="the masked language model that replaces tokens (replaced): a model folder, a run, or the name of "
        'an earlier stage such as "02-pretrain"',
    )
    train: TrainSettings
    data: DataSettings | None = None
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        only = {
            "mask_ratio": ("masked", "replaced", "span", "denoise"),
            "generator": ("replaced",),
            "mean_span_length": ("span", "denoise"),
            "whole_word_masking": ("masked", "replaced"),
            "next_sentence_prediction": ("masked",),
            "copy_steps": ("causal",),
            "copy_every": ("causal",),
            "sampled_softmax": ("causal",),
            "teacher": ("causal",),
        }
        yield from unread_settings(self, only)
        if self.objective == "replaced" and self.generator is None:
            text = 'missing; "replaced" needs a masked language model that replaces tokens, such as "02-pretrain"'
            yield Problem(("generator",), text, (("objective",),))
        if self.stride is not None and self.rows != "windows":
            yield Problem(("stride",), f'{self.stride}; only rows = "windows" has it: leave it out', (("rows",),))
        if self.stride is not None and self.context is not None and self.stride > self.context:
            text = f"{self.stride}; must be at most context = {self.context}: what lies between would never be learned"
            yield Problem(("stride",), text, (("context",),))
        if self.rows == "carried" and self.objective != "causal":
            yield Problem(("rows",), '"carried"; only objective = "causal" reads a text in order', (("objective",),))
        if self.train.packing and (self.objective != "causal" or self.rows != "documents"):
            text = 'true; only objective = "causal" with rows = "documents" has examples to pack: leave it out'
            yield Problem(("train", "packing"), text, (("rows",), ("objective",)))

    def streaming_problems(self) -> Iterator[str]:
        if self.rows == "carried":
            yield 'rows: "carried"; a text that is read in several places at once is at hand as a whole: leave it out'
        if self.stride is not None:
            yield f"stride: {self.stride}; windows of a stream do not overlap: leave it out"
        if self.next_sentence_prediction:
            yield "next_sentence_prediction: true; pairs of sentences need all documents at hand: leave it out"


def needs(settings: PretrainStage, recipe: RecipeSettings) -> set[Need]:
    """A text and a tokenizer; the model is built from the recipe's `model` table."""
    return {"data", "tokenizer"}


def conflicts(settings: PretrainStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Families that have no head for the objective."""
    yield from family_conflicts(recipe, ("stage", index, "objective"), settings.objective)
    if settings.rows == "carried" and recipe.model.folder is None and recipe.model.family != "recurrent":
        text = f'"carried"; a {recipe.model.family} model has no state to carry on: leave it out'
        yield Problem(("stage", index, "rows"), text, (("model", "family"),))


def special_tokens(settings: PretrainStage, recipe: RecipeSettings) -> list[str]:
    """The mask token of `masked`, `replaced` and `denoise`, or the sentinels of `span`."""
    if settings.objective in ("masked", "replaced", "denoise") and recipe.tokenizer.kind != "wordpiece":
        return ["<mask>"]
    return [f"<extra_id_{number}>" for number in range(SENTINELS)] if settings.objective == "span" else []


SPEC = StageSpec(
    PretrainStage,
    run=deferred("quatrain.runs.stages._pretrain:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._pretrain:prepare"),
    conflicts=conflicts,
    special_tokens=special_tokens,
    teaches=lambda settings: "text",
    distributed=True,
)
