"""The `[model]` section of a recipe: a family and its sizes, or a model folder to start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.settings import Problem, Settings, parse
from quatrain.models.classic._settings import ClassicFamily, ClassicSettings
from quatrain.models.transformer.config import MAX_EXPERTS, MAX_LAYERS, MAX_SIZE, ModelConfig

DecoderFamily = Literal[
    "llama",
    "gpt2",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "opt",
    "bloom",
    "gpt_neox",
    "mamba2",
    "xlstm",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "granitemoe",
    "gpt_oss",
    "deepseek_v3",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "cohere2",
    "starcoder2",
    "stablelm",
    "gptj",
    "gpt_neo",
    "openai-gpt",
    "falcon",
    "glm4",
    "nanochat",
    "ministral",
    "ministral3",
    "qwen3_5_text",
    "gemma4_text",
]
"""Decoder families: causal language models."""

EncoderFamily = Literal[
    "bert", "roberta", "distilbert", "modernbert", "albert", "electra", "mpnet", "nomic_bert", "deberta-v2"
]
"""Encoder families: bidirectional models."""

EncoderDecoderFamily = Literal["t5", "mt5", "bart", "marian"]
"""Encoder-decoder families."""

VisionFamily = Literal["vit", "deit", "ijepa", "clip"]
"""Families that read pictures; the stages vision and image-text train them."""

SpeechFamily = Literal["whisper"]
"""Families whose encoder reads sound; a speech stage trains them."""

FamilyName = Literal[DecoderFamily, EncoderFamily, EncoderDecoderFamily, VisionFamily, SpeechFamily, ClassicFamily]

DECODERS, ENCODERS, ENCODER_DECODERS = map(get_args, (DecoderFamily, EncoderFamily, EncoderDecoderFamily))
VISION, SPEECH = map(get_args, (VisionFamily, SpeechFamily))
CLASSIC = get_args(ClassicFamily)
"""Networks from before the transformer."""

PLAIN_FEED_FORWARD = (
    "gpt2",
    "phi",
    "opt",
    "bloom",
    "gpt_neox",
    "starcoder2",
    "gptj",
    "gpt_neo",
    "openai-gpt",
    "falcon",
    "nanochat",
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "electra",
    "mpnet",
    "deberta-v2",
    "t5",
    "bart",
    "marian",
    *VISION,
    *SPEECH,
)
"""Families whose feed-forward network is not gated."""

WITHOUT_ATTENTION = ("mamba2", "xlstm")
"""Families whose layers are recurrent: `num_attention_heads` is the number of their heads."""

WITHOUT_FEED_FORWARD = ("mamba2",)
"""Families without a feed-forward network."""

NO_GROUPED_QUERIES = (
    *("gpt2", "opt", "bloom", "gpt_neox", "gptj", "gpt_neo", "openai-gpt", "deepseek_v3"),
    *(*WITHOUT_ATTENTION, *ENCODERS, *ENCODER_DECODERS, *VISION, *SPEECH),
)
"""Families without grouped-query attention."""

NOT_ROTARY = (
    *("gpt2", "opt", "bloom", "gpt_neo", "openai-gpt", *WITHOUT_ATTENTION, "bert", "roberta", "distilbert"),
    *("albert", "electra", "mpnet", "deberta-v2", *ENCODER_DECODERS, *VISION, *SPEECH),
)
"""Families without rotary positions."""

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "deepseek_v3")
"""Families whose feed-forward networks are mixtures of experts."""

CAUSAL_ALONE = ("granite", "cohere2", "nanochat", "gemma4_text", *WITHOUT_ATTENTION, "olmoe", "granitemoe")
"""Families of which transformers has no classifier."""

MISSING_HEADS = {
    "multiple_choice": (*(name for name in DECODERS if name != "gpt2"), *ENCODER_DECODERS, "nomic_bert"),
    "token_classification": (
        *("gemma3_text", "qwen3_5_text", "opt", "bart", "marian", "olmo2", "olmo3", "gptj", "openai-gpt"),
        *CAUSAL_ALONE,
    ),
    "question_answering": (
        *(
            "gemma2",
            "gemma3_text",
            "phi",
            "phi3",
            "qwen3_5_text",
            "marian",
            "olmo2",
            "olmo3",
            "starcoder2",
            "stablelm",
            "openai-gpt",
        ),
        *("glm4", "nomic_bert", "gpt_oss", "deepseek_v3", *CAUSAL_ALONE),
    ),
    "sequence_classification": ("marian", *CAUSAL_ALONE),
    "embedding": ("bart", "marian"),
}
"""For each head the families that do not have it; a test compares this table with the families."""

CLASSIC_HEADS: dict[str, tuple[ClassicFamily, ...]] = {
    "causal": ("recurrent", "window-lm"),
    "seq2seq": ("recurrent-seq2seq",),
    "token_classification": ("recurrent-encoder", "elmo"),
    "sequence_classification": ("recurrent-encoder", "text-cnn"),
    "bidirectional": ("elmo",),
}
"""For each head the classic networks that have it; a test compares this table with their kinds."""


def families_with_head(head: str) -> tuple[str, ...]:
    """The families that have a head."""
    language = {
        "causal": (*DECODERS, "bert", "roberta", "electra"),
        "masked": ENCODERS,
        "seq2seq": ENCODER_DECODERS,
        "bidirectional": (),
        "replaced_tokens": ("electra",),
    }
    every = language.get(head, (*ENCODERS, *DECODERS, *ENCODER_DECODERS))
    transformers = tuple(family for family in every if family not in MISSING_HEADS.get(head, ()))
    return transformers + CLASSIC_HEADS.get(head, ())


class ExpertsSettings(Settings):
    """The mixture of experts of a new model, for the families that have one; 0 or unset: the family's default.

    `quatrain.models.transformer.config.ExpertsConfig` explains the fields.
    """

    num_experts: int | None = Field(default=None, ge=1, le=MAX_EXPERTS)
    experts_per_token: int | None = Field(default=None, ge=1, le=MAX_EXPERTS)
    intermediate_size: int | None = Field(default=None, ge=1, le=MAX_SIZE, description="width of one expert")
    shared_intermediate_size: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    renormalize: bool | None = None
    groups: int | None = Field(default=None, ge=1, le=MAX_EXPERTS)
    groups_per_token: int | None = Field(default=None, ge=1, le=MAX_EXPERTS)
    dense_layers: tuple[int, ...] | None = Field(default=None, description="layers with a plain feed-forward network")
    capacity_factor: float | None = Field(default=None, gt=0, le=1e6)
    balance_loss: float | None = Field(default=None, ge=0, le=1e6, description="coefficient of the load-balancing loss")
    z_loss: float | None = Field(default=None, ge=0, le=1e6, description="coefficient of the router's z-loss")
    bias_rate: float | None = Field(default=None, ge=0, le=1, description="step of the balancing bias")

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class GenerationSettings(Settings):
    """The model's default generation settings, written to `generation_config.json` under Hugging Face's names.

    A setting that is left out stays as the model has it.
    """

    no_repeat_ngram_size: int | None = Field(
        default=None, ge=0, description="length of the token sequences that never repeat"
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=100, description="divisor of the logits of tokens that occurred before"
    )
    num_beams: int | None = Field(
        default=None, ge=1, le=1_000, description="texts that a beam search keeps; it also writes the texts to score"
    )


class ModelSettings(Settings):
    """Sizes of a model under the names of Hugging Face's `config.json`; the vocabulary size comes from the tokenizer.

    `num_key_value_heads` defaults to `num_attention_heads`. `intermediate_size` defaults to 4 * `hidden_size` for a
    plain feed-forward network (GPT-2), and to 8/3 of it, rounded up to a multiple of 64, for a gated one (Llama).
    `classic` has the choices of networks from before the transformer, for their families alone; `experts` those of a
    mixture of experts.
    """

    family: FamilyName = "llama"
    hidden_size: int = Field(default=256, ge=1, le=1_000_000)
    num_hidden_layers: int = Field(default=4, ge=1, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=4, ge=1, le=1_000_000)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=1_000_000)
    intermediate_size: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    max_position_embeddings: int = Field(default=256, ge=2, le=MAX_SIZE)
    sliding_window: int | None = Field(
        default=None, ge=1, le=MAX_SIZE, description="tokens that the windowed layers of a family see; its own default"
    )
    tie_word_embeddings: bool = True
    rope_theta: float = Field(default=10_000.0, gt=0, le=1e18)
    folder: str | None = Field(
        default=None, min_length=1, description="model folder, or hub id owner/name, to start from"
    )
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="an OpenAI-compatible address, such as http://localhost:8000/v1#NAME, that a prompting stage asks",
    )
    generation: GenerationSettings = GenerationSettings()
    classic: ClassicSettings = ClassicSettings()
    experts: ExpertsSettings = ExpertsSettings()

    @property
    def resolved_intermediate_size(self) -> int:
        """Width of the feed-forward network, with the default of the family."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.family in PLAIN_FEED_FORWARD:
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // 3 // 64) * 64

    @property
    def resolved_key_value_heads(self) -> int:
        """Number of key and value heads: `num_attention_heads` without grouped-query attention."""
        return self.num_key_value_heads or self.num_attention_heads

    def config(self, vocab_size: int, *, head: str | None = None, **more: Any) -> ModelConfig:
        """The configuration of these sizes; `more` sets other fields, such as the special token ids and labels.

        `head` defaults to the family's language head. Raises InputError if `folder` is set, whose sizes apply then.
        """
        if self.folder is not None:
            raise InputError(f"model.folder = {self.folder!r} has its own sizes; read its config.json")
        if self.family in CLASSIC:
            return self._classic_config(vocab_size, head, more)
        from quatrain.models.families.fresh import fresh_config

        sizes: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.resolved_intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.resolved_key_value_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        if self.family not in (*NOT_ROTARY, "modernbert"):
            sizes["rope_theta"] = self.rope_theta
        if self.sliding_window is not None:
            sizes["sliding_window"] = self.sliding_window
        if self.family == "llama":
            sizes["norm_eps"] = 1e-5  # That of Llama 2; config.json defaults to the 1e-6 of the first Llama.
        if own_experts := self.experts.given():
            default = fresh_config(self.family, sizes).experts
            if default is None:
                raise InputError(f"model.experts: {', '.join(own_experts)}; {self._no_experts}")
            sizes["experts"] = dataclasses.replace(default, **own_experts)
        own = {name: more.pop(name) for name in ("labels", "problem_type") if name in more}
        dropout = more.pop("dropout", 0.0)
        return fresh_config(self.family, sizes | more, head=head).replace(dropout=dropout, **own)

    @property
    def _no_experts(self) -> str:
        return f"family = {self.family} has no mixture of experts: leave it out, or use one of {', '.join(MIXTURES)}"

    def _classic_config(self, vocab_size: int, head: str | None, more: Mapping[str, Any]) -> ModelConfig:
        """The configuration of a classic network. Raises InputError for choices that it does not have."""
        from quatrain.models import classic

        kind: Any = classic.find(self.family)
        values = self.classic.given() | {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "max_length": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            **({} if head is None else {"head": head}),
            **{name: value for name, value in more.items() if value is not None},
        }
        if kind.Config.architecture == "encoder-decoder":
            start = next((more[role] for role in ("pad_token_id", "bos_token_id") if more.get(role) is not None), 0)
            values.setdefault("decoder_start_token_id", start)
        if unknown := sorted(set(self.classic.given()) - set(kind.Config.model_fields)):
            raise InputError(
                f"model.classic: {', '.join(unknown)}; a {self.family} model has no such part: leave it out"
            )
        return cast(ModelConfig, parse(kind.Config, values, what="the model"))

    def conflicts(self) -> Iterator[Problem]:
        if self.folder is not None:
            yield from self._shape_with_folder()
            return
        if self.family in CLASSIC:
            return
        if self.classic != ClassicSettings():
            text = f"is for {', '.join(CLASSIC)}; family = {self.family} reads none of it: leave it out"
            yield Problem(("classic",), text, (("family",),))
        if self.experts.given() and self.family not in MIXTURES:
            yield Problem(("experts",), self._no_experts, (("family",),))
        size, heads = self.hidden_size, self.num_attention_heads
        if size % heads:
            near = _near_multiple(size, heads)
            yield Problem(
                ("hidden_size",),
                f"{size}; must be divisible by num_attention_heads = {heads}, such as {near}",
                (("num_attention_heads",),),
            )
        elif self.family not in NOT_ROTARY and (size // heads) % 2:
            yield Problem(
                ("hidden_size",),
                f"{size}; with num_attention_heads = {heads} each head is {size // heads} wide, and rotary positions "
                f"need an even width, such as hidden_size = {_near_multiple(size, 2 * heads)}",
                (("num_attention_heads",), ("family",)),
            )
        groups = self.num_key_value_heads
        if groups is not None and heads % groups:
            divisors = [n for n in range(1, heads + 1) if heads % n == 0]
            yield Problem(
                ("num_key_value_heads",),
                f"{groups}; must divide num_attention_heads = {heads}: one of {', '.join(map(str, divisors))}",
                (("num_attention_heads",),),
            )
        if self.family == "xlstm" and "tie_word_embeddings" in self.model_fields_set and self.tie_word_embeddings:
            text = "true; the head of an xlstm model has weights of its own: leave it out"
            yield Problem(("tie_word_embeddings",), text, (("family",),))
        if self.family in WITHOUT_FEED_FORWARD and self.intermediate_size is not None:
            text = f"{self.intermediate_size}; a {self.family} model has no feed-forward network: leave it out"
            yield Problem(("intermediate_size",), text, (("family",),))
        if self.family in NO_GROUPED_QUERIES and groups not in (None, heads):
            yield Problem(
                ("num_key_value_heads",),
                f"{groups}; the {self.family} family has no grouped-query attention: leave it out or use "
                "family = llama",
                (("family",),),
            )

    def _shape_with_folder(self) -> Iterator[Problem]:
        for name, field in type(self).model_fields.items():
            if name not in ("folder", "family", "generation") and getattr(self, name) != field.default:
                text = f'must be left out (model=none), because model.folder = "{self.folder}" has its own shape'
                yield Problem((name,), f"{getattr(self, name)}; {text}", (("folder",),))


def _near_multiple(value: int, factor: int) -> int:
    return max(1, round(value / factor)) * factor
