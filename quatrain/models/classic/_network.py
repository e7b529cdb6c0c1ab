"""The base of classic networks that learn by gradients: configuration, heads, losses, dropout, fresh weights.

A network answers like `quatrain.models.transformer.stack.Model`: `hidden_states`, `lm_logits` and
`model(input_ids, labels)`, which gives the logits and the unreduced loss. The objectives, tasks and verbs therefore
take both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.classic import find
from quatrain.models.classic.base import ClassicConfig, ClassicModel, check_tensors, misfit
from quatrain.models.transformer import heads

HEAD_PARTS = ("score.", "crf.", "lm_head.", "mix.", "tagger.")
"""Names of tensors that belong to a head: another head has its own."""
LANGUAGE_HEADS = ("causal", "seq2seq", "bidirectional")


class NetworkConfig(ClassicConfig):
    """Sizes and choices that the networks share. `embedding_size` of 0 means `hidden_size`.

    `max_length` is the number of tokens of a training row; the networks read texts of any length. `dropout` is that of
    inputs, of states between layers and of outputs, with one mask for a whole text.
    """

    heads: ClassVar[tuple[str, ...]] = ("causal",)
    """The heads that the model has, its own first."""

    head: str = "causal"
    hidden_size: int = Field(default=256, ge=1, le=1_000_000)
    num_hidden_layers: int = Field(default=1, ge=1, le=1_000)
    embedding_size: int = Field(default=0, ge=0, le=1_000_000)
    max_length: int = Field(default=256, ge=2, le=2**30)
    tie_word_embeddings: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)
    pooling: Literal["max", "mean", "last"] = "max"

    position: ClassVar[str] = "none"
    layer_types: ClassVar[tuple[str, ...]] = ()
    num_attention_heads: ClassVar[int] = 0
    num_key_value_heads: ClassVar[int] = 0
    head_dim: ClassVar[int] = 0
    sliding_window: ClassVar[int | None] = None
    local_rope_scaling: ClassVar[None] = None
    logit_scale: ClassVar[float] = 1.0
    logit_softcap: ClassVar[None] = None
    max_text_length: ClassVar[int] = 0
    supports_branches: ClassVar[bool] = False
    decoder_start_token_id: int | None = None
    extra: ClassVar[dict[str, Any]] = {}

    @property
    def embedding_width(self) -> int:
        """Width of the token embedding."""
        return self.embedding_size or self.hidden_size

    @property
    def context_length(self) -> int:
        """The tokens of a training row."""
        return self.max_length

    @property
    def is_causal(self) -> bool:
        """Whether no token is read with a later one."""
        return self.head == "causal"

    def flops_per_token(self, training: bool) -> float:
        """Two operations for each weight that a token is multiplied with, six in training."""
        kind = find(self.model_type)
        if kind is None:
            return 0.0
        with torch.device("meta"):
            network: Any = kind(self)
        return float((6 if training else 2) * network.matrix_weights())

    @property
    def output_hidden_size(self) -> int:
        """Width of the last hidden states of a language model: that of the embedding which its head shares."""
        return self.embedding_width if self.tie_word_embeddings else self.hidden_size


class Network(ClassicModel):
    """A classic network. A subclass builds its layers in `__init__`, ends with `add_head`, and has `hidden_states`."""

    config: Any
    score: nn.Linear | None
    embed_tokens: Any
    transform = trainable_tokens = logits_bias = pooler = None
    """Parts of a transformer's head that the losses ask for."""

    def add_head(self, feature_size: int) -> None:
        """Adds the language head, or the score layer over states of `feature_size`.

        Raises InputError for a head that the model does not have, and for a classifier without labels.
        """
        config = self.config
        if config.head not in type(config).heads:
            known = ", ".join(type(config).heads)
            raise InputError(f"head: {config.head!r} is not a head of {config.model_type}; must be one of {known}")
        self.score = None
        if config.head in LANGUAGE_HEADS:
            self.lm_head = nn.Linear(config.output_hidden_size, config.vocab_size)
            self.tie()
            return
        if config.num_labels < 1:
            raise InputError(f"labels: none; the head {config.head} needs the names of its classes.")
        self.score = nn.Linear(feature_size, config.num_labels)

    @property
    def is_tied(self) -> bool:
        """Whether the language head shares the embedding's weights."""
        return self.lm_head is not None and bool(self.config.tie_word_embeddings)

    def tie(self) -> None:
        """Shares the embedding with the language head (Press and Wolf 2017, arXiv 1608.05859)."""
        if self.is_tied:
            self.lm_head.weight = self.embed_tokens.weight

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moving a module may replace its parameters one by one.
        moved = super()._apply(fn, recurse)
        self.tie()
        return moved

    def initialize(self, seed: int = 0) -> Self:
        """Draws all weights from `seed`: PyTorch's own distributions, embeddings normal (`embedding_std`), forget
        gates at 1.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.modules():
                reset: Any = getattr(module, "reset_parameters", None)
                if module is not self and reset is not None:
                    reset()
                if isinstance(module, nn.LSTM):
                    for name, parameter in module.named_parameters():
                        if name.startswith("bias_ih"):
                            nn.init.ones_(parameter.data[module.hidden_size : 2 * module.hidden_size])
            # Last, because a head that shares an embedding's weights has drawn them anew.
            for module in self.modules():
                if isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight, std=self.embedding_std)
        self.tie()
        return self

    # Files

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The tensors by name; a head that shares the embedding's weights is not in it twice."""
        tensors = super().state_dict(*args, **options)
        if self.is_tied:
            tensors.pop("lm_head.weight", None)
        return tensors

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads what `state_dict` gives."""
        own = dict(state_dict)
        if self.is_tied:
            own["lm_head.weight"] = own["embed_tokens.weight"]
        return super().load_state_dict(own, strict=strict, assign=assign)

    @classmethod
    def from_tensors(cls, config: Any, tensors: Mapping[str, Tensor], *, seed: int = 0) -> Self:
        """The model of a configuration with these tensors. Weights of a head that are not there are drawn from `seed`.

        Raises InputError naming every tensor that is missing, unexpected or misshapen.
        """
        network = cls(config).initialize(seed)
        own, given = network.state_dict(), dict(tensors)
        problems = []
        for name in sorted(set(own) | set(given)):
            problem = misfit(name, own, given)
            if problem and name.startswith(HEAD_PARTS):
                given.pop(name, None)
            elif problem:
                problems.append(problem)
        check_tensors(config, problems)
        network.newly_initialized = sorted(set(own) - set(given))
        network.load_state_dict({**own, **given})
        return network

    @classmethod
    def load(
        cls,
        folder: str | Path,
        raw: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        head: str | None = None,
        **more: Any,
    ) -> Self:
        """As `ClassicModel.load`; `head`, `labels` and `problem_type` replace those of the files.

        Weights of a head that the files lack are drawn from `seed`.
        """
        labels, seed = more.get("labels"), more.get("seed", 0)
        changes = {"head": head, "labels": None if labels is None else list(labels)}
        changes["problem_type"] = more.get("problem_type")
        given = {name: value for name, value in changes.items() if value is not None}
        network = super().load(folder, {**raw, **given}, dtype=dtype, device=device)
        if network.newly_initialized and seed:
            fresh = cls(network.config).initialize(seed).state_dict()
            own = network.state_dict()
            with torch.no_grad():
                for name in network.newly_initialized:
                    own[name].copy_(fresh[name])
        return network

    def learn_words(self, texts: Iterable[Sequence[int]]) -> None:
        """Takes over the frequent words of texts of token ids, if the model has an embedding of words."""

    def start_from_vectors(self, words: Sequence[str], vectors: Tensor, encode: Callable[[str], Sequence[int]]) -> int:
        """Puts vectors (N, C) of words into the first C columns of the embedding, and returns how many rows they are.

        They are scaled to the deviation of fresh embeddings, so that words without a vector weigh as much. `encode`
        gives the tokens of a word; words of several tokens have no row. Raises InputError for vectors that are wider
        than the embedding.
        """
        table, width = self.vector_table, vectors.shape[1]
        if width > table.weight.shape[1]:
            raise InputError(
                f"vectors: {width} wide, and the embedding has {table.weight.shape[1]}; set "
                f"{self.vector_size} = {width}."
            )
        rows: dict[int, int] = {}
        for number, word in enumerate(words):
            row = self.vector_row(encode(word))
            if row is not None:
                rows.setdefault(row, number)
        with torch.no_grad():
            places, numbers = (torch.tensor(list(side), dtype=torch.long) for side in (rows.keys(), rows.values()))
            scale = self.embedding_std / vectors.std().clamp(min=1e-12)
            table.weight[places, :width] = (vectors[numbers] * scale).to(table.weight)
        return len(rows)

    embedding_std: ClassVar[float] = 0.3
    """Deviation of fresh embeddings. With a tenth of it a recurrent network sees next to nothing of its input: a
    translator has 5.7 nats after 200 steps in place of 4.3."""
    vector_size: ClassVar[str] = "model.classic.embedding_size (or model.hidden_size)"
    """The setting of the width of what `start_from_vectors` fills."""

    @property
    def vector_table(self) -> nn.Embedding:
        """The embedding that word vectors go into."""
        table: nn.Embedding = self.embed_tokens
        return table

    def vector_row(self, ids: Sequence[int]) -> int | None:
        """The row of this embedding for a word of these tokens; None if it has none."""
        return ids[0] if len(ids) == 1 else None

    def describe(self) -> dict[str, Any]:
        """The parameters, and every choice of the configuration that differs from its default."""
        config = self.config
        fields = type(config).model_fields
        chosen = {name: getattr(config, name) for name in fields if getattr(config, name) != fields[name].default}
        left_out = ("labels", "boundary_token_ids", "model_type", "bos_token_id", "eos_token_id", "pad_token_id")
        facts = {
            name.replace("_", " "): list(value) if isinstance(value, tuple) else value
            for name, value in chosen.items()
            if name not in left_out
        }
        return super().describe() | {"head": config.head, "hidden size": config.hidden_size} | facts

    # Forward

    def matrix_weights(self) -> int:
        """Weights that are multiplied with each token: all but embedding tables, and a head that shares one."""
        tables = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Embedding))
        return self.num_parameters() - tables + (self.lm_head.weight.numel() if self.is_tied else 0)

    def embed(self, input_ids: Tensor) -> Tensor:
        """The embeddings (…, C) of tokens (…). Raises InputError for ids outside the vocabulary."""
        check_ids(input_ids, self.config.vocab_size)
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded

    def drop(self, x: Tensor, rate: float | None = None) -> Tensor:
        """Dropout with one mask for all steps of a text (B, T, C) (Gal and Ghahramani 2016, arXiv 1512.05287)."""
        rate = self.config.dropout if rate is None else rate
        if not self.training or not rate:
            return x
        mask = torch.empty(x.shape[0], 1, x.shape[2], device=x.device, dtype=x.dtype).bernoulli_(1 - rate)
        return x * mask.div_(1 - rate)

    def forward(
        self, input_ids: Tensor, labels: Any = None, *, segments: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and with labels the unreduced loss, in the shapes of `Model.forward` for the same head.

        Labels are shifted by the caller; -100 has no loss. Segment 0 is padding, on the right.
        """
        hidden = self.hidden_states(input_ids, segments=segments, **inputs)
        return self.head(hidden, labels, segments)

    def head(self, hidden: Tensor, labels: Any = None, segments: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits and loss of hidden states (B, T, C); for texts as a whole they are pooled first."""
        if self.score is None:
            logits = self.lm_logits(hidden)
            return logits, None if labels is None else heads.token_loss(logits, labels)
        if self.config.head == "token_classification":
            logits = self.score(hidden)
            return logits, None if labels is None else heads.token_loss(logits, labels)
        logits = self.score(self.pool(hidden, segments))
        problem_type = self.config.problem_type or "single_label"
        return logits, None if labels is None else heads.label_loss(logits, labels, problem_type)

    def pool(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        """One vector (B, C) of the states (B, T, C) of a text: their maximum, mean, or the last one."""
        if segments is None:
            segments = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        inside = (segments != 0)[..., None]
        if self.config.pooling == "mean":
            return (hidden * inside).sum(1) / inside.sum(1).clamp(min=1)
        if self.config.pooling == "last":
            last = (segments != 0).sum(1).clamp(min=1) - 1
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        return hidden.masked_fill(~inside, torch.finfo(hidden.dtype).min).amax(1)

    def lm_logits(self, hidden: Tensor, owners: Tensor | None = None) -> Tensor:
        """The logits (…, V) of hidden states (…, C). Raises InputError for a head that does not predict tokens."""
        if self.lm_head is None:
            raise InputError(f"This model has the head {self.config.head}, which does not predict tokens.")
        logits: Tensor = self.lm_head(hidden)
        return logits


def check_ids(input_ids: Tensor, vocabulary: int) -> None:
    """Raises InputError for ids outside the vocabulary; they are checked on the CPU only."""
    if input_ids.device.type != "cpu" or not input_ids.numel():
        return
    low, high = (int(end) for end in torch.aminmax(input_ids))
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"Token {high if high >= vocabulary else low} is not in the model's vocabulary of {vocabulary}: "
            "model and tokenizer do not match."
        )


def lengths_of(input_ids: Tensor, segments: Tensor | None) -> Tensor:
    """The number of tokens (B,) of each row of (B, T) before its padding."""
    if segments is None:
        return torch.full((input_ids.shape[0],), input_ids.shape[1], device=input_ids.device)
    return (segments != 0).sum(1)


def reversed_rows(x: Tensor, lengths: Tensor) -> Tensor:
    """Each row of (B, T, C) from its last token to its first; padding stays behind them. Its own inverse."""
    slots = torch.arange(x.shape[1], device=x.device)
    order = torch.where(slots < lengths[:, None], lengths[:, None] - 1 - slots, slots)
    return x.gather(1, order[..., None].expand_as(x))
