"""The transformer model of every family: token embedding, stack of blocks and head, with an encoder if it has one.

Families (`quatrain.models.families`) differ in their configuration alone. Parameter names follow Hugging Face's Llama.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.kernels import cpu
from quatrain.models.transformer import heads
from quatrain.models.transformer.blocks import Block, RunInputs, Stack
from quatrain.models.transformer.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.context import Routing, Trace
from quatrain.models.transformer.heads import IGNORE_INDEX
from quatrain.models.transformer.initialization import initialize
from quatrain.models.transformer.kv_cache import CacheRows, KVCache
from quatrain.models.transformer.positions import positions_without_padding
from quatrain.models.transformer.soft_prompts import SoftPrompt, StackInput
from quatrain.models.transformer.trainable_tokens import TrainableTokens
from quatrain.planning.limits import check_weights

__all__ = ["IGNORE_INDEX", "Block", "Model", "Stack", "Trace"]


class MoreInputs(TypedDict, total=False):
    """Inputs of `Model.forward` and `hidden_states` that few models take.

    - `adapters`, for a model with an adapter set: each row's adapter.
    - `features` (B, …): what the model's frontend reads, pictures (B, C, H, W) or sound. A model without a vocabulary
      reads them alone, an encoder-decoder in place of input_ids, and a decoder beside them: their vectors replace the
      embeddings of the frontend's token.
    - `vectors`: in place of features, where a part of a text is read. Those tokens (B, T) that are replaced, and the
      vectors (N, embedding_size) that replace them.
    - `branches` (B, T), with positions, for `hidden_states`: texts in a row share their beginning (0); a token sees it
      and its own branch (1, 2, …). The model's configuration must have `supports_branches`.
    - `encoded` (B, S, hidden_size), for a decoder with cross-attention: the output of another model's encoder, with
      `encoded_segments` (B, S), 0 for padding. A cache holds its keys and values. Without it the layers leave
      cross-attention out.
    - `routing`, for `hidden_states`: a list to which each mixture of experts adds its decisions.
    """

    adapters: Sequence[str | None] | None
    features: Tensor | None
    vectors: tuple[Tensor, Tensor] | None
    branches: Tensor | None
    routing: list[Routing] | None
    encoded: Tensor | None
    encoded_segments: Tensor | None


class Model(Stack):
    """A transformer: `model(input_ids, labels) -> (logits, loss)`; for a language model logits (B, T, V), loss (B, T).

    `labels[b, t]` is the target of a language model after `input_ids[b, : t + 1]`: labels are already shifted, with
    -100 at positions without a target. The loss is unreduced, in nats, and 0 where the label is -100. `forward` lists
    the outputs and labels of the other heads.
    """

    carries_state: ClassVar[bool] = False
    compares_hidden_states: ClassVar[bool] = True
    is_planned: ClassVar[bool] = True
    """What sets it apart from the models in `quatrain.models.classic`, which say the same of themselves."""

    def __init__(self, config: ModelConfig):
        check_weights(config, 8 * torch.get_default_dtype().itemsize, torch.get_default_device())
        super().__init__(config)
        width = config.embedding_size or config.hidden_size
        frozen_row = (
            config.pad_token_id if config.padding_embedding == "fixed" and (config.pad_token_id or 0) >= 0 else None
        )
        self.embed_tokens: Any = None
        if config.vocab_size:
            self.embed_tokens = nn.Embedding(config.vocab_size, width, padding_idx=frozen_row)
        self.encoder = Stack(config.encoder) if config.architecture == "encoder-decoder" else None
        self.embed_source_tokens: nn.Embedding | None = None
        """The encoder's embedding, if its vocabulary is its own."""
        if config.encoder_vocab_size:
            inner = config.encoder.embedding_size or config.encoder.hidden_size
            self.embed_source_tokens = nn.Embedding(config.encoder_vocab_size, inner, padding_idx=frozen_row)
        self.encoder_projection: nn.Linear | None = None
        """From the width of the encoder to that of the decoder, where they are two models."""
        if config.architecture == "encoder-decoder" and config.encoder.output_hidden_size != config.hidden_size:
            self.encoder_projection = nn.Linear(config.encoder.output_hidden_size, config.hidden_size)
        self.transform = heads.make_transform(config)
        self.pooler = heads.make_pooler(config)
        self.score = heads.make_score(config)
        self.embedding_layers = heads.make_embedding_layers(config)
        self.distillation_score = heads.make_distillation_score(config)
        self.projection = heads.make_projection(config)
        self.image_tower: Any = None
        self.log_scale: nn.Parameter | None = None
        """The logarithm of the factor of similarities, learned (CLIP)."""
        if config.image_tower is not None:
            self.image_tower = Model(config.image_tower)
            self.log_scale = nn.Parameter(torch.tensor(heads.LOG_SCALE))
        self.lm_head: nn.Linear | None = None
        if config.head in LANGUAGE_HEADS:
            self.lm_head = nn.Linear(width, config.vocab_size, bias=config.head_bias == "learned")
            if config.tie_word_embeddings:
                self.lm_head.weight = self.embed_tokens.weight
        fixed = config.head in LANGUAGE_HEADS and config.head_bias == "fixed"
        self.soft_prompt: SoftPrompt | None = None
        self.trainable_tokens: TrainableTokens | None = None
        self.adapter_set: Any = None
        """Several adapters, one for each row of a batch (`quatrain.adapters.adapter_set`)."""
        self.untied_after_load = False
        """Whether the head was untied after loading, so that the embedding's files tie it and this model does not."""
        self.newly_initialized: list[str] = []
        self.added_token_ids: list[int] = []
        """Tokens that were added to the vocabulary and are not trained yet."""
        self.unused_tensors: dict[str, Tensor] = {}
        """Tensors of the model folder that this model does not use; saved with the model under the same names."""
        self.generation_config: dict[str, Any] | None = None
        """The `generation_config.json` of the model folder; saved with the model. None: the folder has none."""
        self.register_buffer("logits_bias", torch.zeros(1, config.vocab_size) if fixed else None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Any = None,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        token_types: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_segments: Tensor | None = None,
        cache: KVCache | CacheRows | None = None,
        trace: Trace | None = None,
        **more: Unpack[MoreInputs],
    ) -> tuple[Any, Any]:
        """Runs input_ids (B, T) through the model; returns logits and, given labels, the loss.


        positions (B, T): the default is each token's position in its segment, continuing after the cache. segments (B,
        T): tokens attend within their segment only; 0 is padding. token_types (B, T): default 0. A cache is read and
        extended; a trace is filled. `more` has the inputs of `MoreInputs`.

        The encoder of an encoder-decoder reads input_ids (B, S), which may be None once the cache holds its keys and
        values; `segments` and `positions` are the encoder's. The decoder reads decoder_input_ids (B, T), by default the
        labels shifted right.

        | head | logits | labels | loss |
        |---|---|---|---|
        | causal, masked, seq2seq | (B, T, V) | (B, T) | (B, T) |
        | pretraining | (B, T, V) and (B, 2) | the pair (B, T), (B) | the pair (B, T), (B) |
        | next_sentence | (B, 2) | (B) | (B) |
        | sequence_classification | (B, L) | (B), for `multi_label` and `regression` (B, L) | (B) |
        | token_classification | (B, T, L) | (B, T) | (B, T) |
        | question_answering | (B, T, 2) | (B, 2): first and last token | (B) |
        | multiple_choice, input_ids (B, C, T) | (B, C) | (B) | (B) |
        | image_classification | (B, L) | as sequence_classification | (B) |
        | distilled_classification | (B, L), the mean of two | (B, 2): the label and the teacher's | (B) |
        | contrastive | (B, N): texts by pictures | (B, B): 1 for pairs | (B) |
        | embedding | (B, hidden_size), pooled | | |
        | replaced_tokens | (B, T) | (B, T): 1 where a token was replaced | (B, T) |
        | value | (B, T) | (B, T), NaN where unknown | (B, T) |
        | none | hidden states | | |

        Raises InputError for a text longer than the model's context, and for ids outside its vocabulary.
        """
        if self.config.head == "multiple_choice" and input_ids is not None:
            return self._score_choices(input_ids, labels, segments, token_types)
        if self.config.head == "contrastive":
            return self._compare(input_ids, labels, segments, more.get("features"))
        if self.encoder is not None and decoder_input_ids is None:
            if self.config.head != "seq2seq" and decoder_segments is None:
                decoder_segments = segments
            decoder_input_ids = self._shift_right(labels, input_ids, decoder_segments)
        hidden = self.hidden_states(
            input_ids,
            positions=positions,
            segments=segments,
            token_types=token_types,
            decoder_input_ids=decoder_input_ids,
            decoder_segments=decoder_segments,
            cache=cache,
            trace=trace,
            **more,
        )
        return self.head(hidden, labels, input_ids, segments)

    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        token_types: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_segments: Tensor | None = None,
        cache: KVCache | CacheRows | None = None,
        trace: Trace | None = None,
        **more: Unpack[MoreInputs],
    ) -> Tensor:
        """The last hidden states (B, T, hidden_size), after the final norm; the decoder's in an encoder-decoder.

        Arguments as in `forward`.
        """
        adapters, features, branches = more.get("adapters"), more.get("features"), more.get("branches")
        if adapters is not None:
            self.adapter_set.activate(adapters)
        rows = None if cache is None else cache.rows()
        if self.encoder is None and features is not None and self.embed_tokens is None:
            return self.run(self.vectors_of(features), segments=segments, trace=trace)
        if self.encoder is None:
            new = ids = self._require_ids(input_ids)
            positions = self._default_positions(ids, segments, self.config) if positions is None else positions
            if rows is not None:
                new, positions, segments = rows.tokens_to_process(ids, positions, segments)
            embedded = self.embed(new)
            if features is not None:
                embedded = self._with_vectors(embedded, new, features)
            if (vectors := more.get("vectors")) is not None:
                embedded = embedded.masked_scatter(vectors[0][..., None], vectors[1].to(embedded.dtype))
            inputs = StackInput(embedded, positions, segments, token_types)
            if self.soft_prompt is not None:
                inputs = self.soft_prompt.prepend_to(inputs, first=rows is None or rows.length == 0)
            encoded, seen = more.get("encoded"), more.get("encoded_segments")
            if encoded is not None and not self.config.cross_attention:
                raise InputError(f"encoded: a {self.config.family} model without cross-attention reads no encoder.")
            if rows is not None and self.config.cross_attention:
                if encoded is not None:
                    rows.encode(seen, encoded.shape[1])
                seen = rows.encoder_segments
            own: RunInputs = {"branches": branches, "routing": more.get("routing"), "token_ids": new}
            hidden = self.run(**vars(inputs), cache=rows, trace=trace, encoded=encoded, encoder_segments=seen, **own)
            return hidden if hidden.shape[1] == ids.shape[1] else hidden[:, -ids.shape[1] :]
        encoded = None
        if input_ids is not None or features is not None:
            encoded, segments = self._encode(
                input_ids, positions=positions, segments=segments, trace=trace, features=features
            )
        elif rows is None or not rows.has_encoded:
            raise InputError("An encoder-decoder needs input_ids until a cache holds the output of its encoder.")
        if rows is not None:
            if encoded is not None:
                rows.encode(segments, encoded.shape[1])
            segments = rows.encoder_segments
        return self.run(
            self.embed(decoder_input_ids),
            segments=decoder_segments,
            cache=rows,
            trace=trace,
            encoded=encoded,
            encoder_segments=segments,
        )

    def _with_vectors(self, embedded: Tensor, ids: Tensor, features: Tensor) -> Tensor:
        """Embedded tokens (B, T, C) with the vectors of the features in the places of the frontend's token.

        Raises InputError if there are not as many such tokens as vectors.
        """
        vectors = self.vectors_of(features).flatten(0, 1)
        places: Tensor = ids == self.frontend.token_id
        if (count := int(places.sum())) != len(vectors):
            raise InputError(
                f"features: become {len(vectors)} vectors, and the text has {count} tokens {self.frontend.token_id} "
                "for them; must be as many."
            )
        return embedded.masked_scatter(places[..., None], vectors.to(embedded.dtype))

    def encode(
        self,
        input_ids: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        trace: Trace | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """The encoder's output (B, S, hidden_size) for input_ids (B, S); with a soft prompt its slots come first.

        `features` replace the ids for an encoder that reads these. Raises InputError for a model without an encoder.
        """
        return self._encode(input_ids, positions=positions, segments=segments, trace=trace, features=features)[0]

    def _encode(
        self,
        input_ids: Tensor | None,
        *,
        positions: Tensor | None,
        segments: Tensor | None,
        trace: Trace | None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The encoder's output, and the segments of its input."""
        if self.encoder is None:
            raise InputError(f"A {self.config.family} model is no encoder-decoder: it has no separate encoder.")
        if features is None and self.encoder.frontend is not None:
            raise InputError(f"features: missing; the encoder of a {self.config.family} model reads no tokens.")
        if positions is None and self.encoder.config.padding_positions == "skipped":
            positions = self._default_positions(input_ids, segments, self.encoder.config)
        embedded = self.embed_source(input_ids) if features is None else self.encoder.vectors_of(features)
        inputs = StackInput(embedded, positions, segments)
        if self.soft_prompt is not None:
            inputs = self.soft_prompt.prepend_to(inputs, first=True)
        encoded = self.encoder.run(**vars(inputs), trace=None if trace is None else trace.encoder())
        return encoded if self.encoder_projection is None else self.encoder_projection(encoded), inputs.segments

    def head(
        self, hidden: Tensor, labels: Any = None, input_ids: Tensor | None = None, segments: Tensor | None = None
    ) -> tuple[Any, Any]:
        """Logits and loss of hidden states (B, T, hidden_size), as in `forward`.

        Raises InputError for labels of a head that has none, and for labels that do not fit the logits.
        """
        config = self.config
        if labels is not None and config.head in ("none", "embedding", "contrastive"):
            raise InputError(f"This model has the head {config.head}, which has no labels.")
        if config.head == "none":
            return hidden, None
        if config.head in ("causal", "masked", "seq2seq"):
            logits = self.lm_logits(hidden)
            return logits, None if labels is None else heads.token_loss(logits, labels)
        if config.head == "pretraining":
            return self._pretrain(hidden, labels, input_ids, segments)
        if config.head == "distilled_classification":
            return self._classify_twice(hidden, labels)
        if config.head in ("token_classification", "question_answering", "value", "replaced_tokens"):
            return self._label_tokens(hidden, labels, segments)
        pooled = heads.pool(hidden, config, input_ids, segments)
        if config.head in ("embedding", "contrastive"):
            pooled = pooled if self.projection is None else self.projection(pooled)
            pooled = heads.through_layers(pooled, self.embedding_layers, config)
            return F.normalize(pooled, dim=-1) if config.normalize_embedding else pooled, None
        logits = self._score(pooled if self.pooler is None else self.pooler(pooled))
        return logits, None if labels is None else heads.label_loss(logits, labels, config.problem_type)

    def lm_logits(self, hidden: Tensor, owners: Tensor | None = None) -> Tensor:
        """The logits (…, V) of hidden states (…, hidden_size).

        With an adapter set, each row of a batch (B, T, …) uses its own adapter; for single states (N, hidden_size),
        `owners` (N) gives the batch row of each. Raises InputError for a head that does not predict tokens.
        """
        if self.lm_head is None:
            raise InputError(f"This model has the head {self.config.head}, which does not predict tokens.")
        config = self.config
        hidden = hidden if self.transform is None else self.transform(hidden)
        if config.logit_scale != 1.0:
            hidden = hidden * config.logit_scale
        logits = self.lm_head(hidden)
        if self.trainable_tokens is not None:
            logits = self.trainable_tokens.lm_logits(hidden, logits, getattr(self.lm_head, "bias", None), owners)
        if self.logits_bias is not None:
            logits = logits + self.logits_bias.to(logits.dtype)  # Training converts weights to its dtype, not buffers.
        if config.logit_softcap is not None:
            logits = cpu.SoftCapFunction.apply(logits, config.logit_softcap)
        return logits

    def _score(self, x: Tensor) -> Tensor:
        if self.score is None:
            raise InputError(f"This model has the head {self.config.head}, which has no score layer.")
        return self.score(x)

    def _label_tokens(
        self, hidden: Tensor, labels: Tensor | None, segments: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        logits = self._score(hidden if self.pooler is None else self.pooler(hidden))
        if self.config.head == "question_answering" and segments is not None:
            # A span neither starts nor ends in padding.
            logits = logits.masked_fill((segments == 0)[..., None], torch.finfo(logits.dtype).min)
        if self.config.head == "replaced_tokens":
            found = logits[..., 0]
            return found, None if labels is None else heads.replaced_loss(found, labels)
        if self.config.head == "value":
            values = logits[..., 0]
            return values, None if labels is None else heads.value_loss(values, labels)
        loss = heads.span_loss if self.config.head == "question_answering" else heads.token_loss
        return logits, None if labels is None else loss(logits, labels)

    def text_vectors(self, input_ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """The vectors (B, projection_size) of texts, of length 1, for a model with an image tower."""
        vectors: Tensor = self.head(self.hidden_states(input_ids, segments=segments), None, input_ids, segments)[0]
        return vectors

    def image_vectors(self, features: Tensor) -> Tensor:
        """The vectors (N, projection_size) of pictures, of length 1. Raises InputError without an image tower."""
        if self.image_tower is None:
            raise InputError(f"features: a {self.config.family} model has no image tower.")
        vectors: Tensor = self.image_tower(features=features)[0]
        return vectors

    def _compare(
        self, input_ids: Tensor | None, labels: Tensor | None, segments: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The similarities of texts and pictures, and the loss of pairs."""
        if features is None or self.log_scale is None:
            raise InputError("This model compares texts with pictures: give input_ids and features.")
        texts = self.text_vectors(self._require_ids(input_ids), segments)
        logits = texts @ self.image_vectors(features).t() * self.log_scale.exp()
        return logits, None if labels is None else heads.contrastive_loss(logits, labels)

    def _classify_twice(self, hidden: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """DeiT's two classifiers: the class token learns the label, the distillation token the teacher's (B, 2)."""
        if self.distillation_score is None:
            raise InputError(f"This model has the head {self.config.head}, which has no distillation token.")
        logits = self._score(hidden[:, 0]), self.distillation_score(hidden[:, 1])
        mean = (logits[0] + logits[1]) / 2
        if labels is None:
            return mean, None
        losses = [heads.label_loss(each, label, "single_label")
                  for each, label in zip(logits, labels.unbind(1), strict=True)]  # fmt: skip
        return mean, (losses[0] + losses[1]) / 2

    def _pretrain(self, hidden: Tensor, labels: Any, input_ids: Tensor | None, segments: Tensor | None) -> Any:
        """Logits and losses of BERT's pre-training: masked tokens and next-sentence prediction."""
        pooled = heads.pool(hidden, self.config, self._require_ids(input_ids), segments)
        tokens = self.lm_logits(hidden)
        follows = self._score(pooled if self.pooler is None else self.pooler(pooled))
        if labels is None:
            return (tokens, follows), None
        if not isinstance(labels, tuple | list) or len(labels) != 2:
            raise InputError("labels: this head needs a pair: masked tokens (B, T) and next-sentence labels (B).")
        masked, sentence = labels
        return (tokens, follows), (
            heads.token_loss(tokens, masked),
            heads.label_loss(follows, sentence, "single_label"),
        )

    def _score_choices(
        self, input_ids: Tensor, labels: Tensor | None, segments: Tensor | None, token_types: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """One score for each choice: input_ids (B, C, T) to logits (B, C)."""
        if input_ids.dim() != 3:
            raise InputError(f"multiple choice: input_ids have shape {tuple(input_ids.shape)}; must be (B, choices, T)")
        flat, flat_segments, types = (
            None if x is None else x.flatten(0, 1) for x in (input_ids, segments, token_types)
        )
        hidden = self.hidden_states(flat, segments=flat_segments, token_types=types)
        pooled = heads.pool(hidden, self.config, self._require_ids(flat), flat_segments)
        logits = self._score(pooled if self.pooler is None else self.pooler(pooled)).view(input_ids.shape[:2])
        return logits, None if labels is None else heads.label_loss(logits, labels, "single_label")

    def embed(self, input_ids: Tensor | None) -> Tensor:
        """The embeddings (…, embedding_size) of tokens (…), with trained rows of an adapter if there are any.

        Raises InputError for ids outside the vocabulary; they are checked on the CPU only, and not in an export.
        """
        ids = self._require_ids(input_ids)
        if self.embed_tokens is None:
            raise InputError(f"input_ids: a {self.config.family} model has no vocabulary; give it features.")
        self._check_ids(ids, self.config.vocab_size)
        embedded = self.embed_tokens(ids)
        return embedded if self.trainable_tokens is None else self.trainable_tokens.embed(ids, embedded)

    def embed_source(self, input_ids: Tensor | None) -> Tensor:
        """The embeddings (…, embedding_size) of tokens that the encoder reads; otherwise as `embed`."""
        if self.embed_source_tokens is None:
            return self.embed(input_ids)
        ids = self._require_ids(input_ids)
        self._check_ids(ids, self.config.encoder_vocab_size)
        return self.embed_source_tokens(ids)

    @staticmethod
    def _check_ids(ids: Tensor, vocabulary: int) -> None:
        if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in torch.aminmax(ids))
            if low < 0 or high >= vocabulary:
                raise InputError(
                    f"Token {high if high >= vocabulary else low} is not in the model's vocabulary of "
                    f"{vocabulary}: model and tokenizer do not match."
                )

    def _default_positions(
        self, input_ids: Tensor | None, segments: Tensor | None, config: ModelConfig
    ) -> Tensor | None:
        """The positions (B, T) of a family whose padding takes no positions; None for all others."""
        if config.padding_positions == "counted":
            return None
        ids = self._require_ids(input_ids)
        if config is self.config:
            self._check_length(None, 0, ids.shape[1])
        padding = next((token for token in (config.unplaced_token_id, config.pad_token_id) if token is not None), -1)
        return positions_without_padding(ids, padding, segments)

    def _require_ids(self, ids: Tensor | None) -> Tensor:
        if ids is None:
            what = "input_ids" if self.embed_tokens is not None else "features"
            what = what if self.encoder is None else "decoder_input_ids, or labels to derive them from"
            raise InputError(f"A {self.config.family} model needs {what}.")
        return ids

    def _shift_right(self, labels: Any, input_ids: Tensor | None, segments: Tensor | None) -> Tensor | None:
        """The decoder's input for `labels`: the start token, then all labels but the last, in each segment.

        In a classifier the decoder reads the text itself.
        """
        source = labels if self.config.head == "seq2seq" else input_ids
        if source is None:
            return None
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None:
            raise InputError("decoder_start_token_id: missing in this model's configuration; give decoder_input_ids.")
        shifted = torch.cat((torch.full_like(source[:, :1], start), source[:, :-1]), dim=1)
        if segments is not None:
            shifted[:, 1:].masked_fill_(segments[:, 1:] != segments[:, :-1], start)
        return shifted.masked_fill(shifted == IGNORE_INDEX, pad if pad is not None else start)

    def initialize(self, seed: int = 0) -> Model:
        """Initializes all weights from `seed` (`quatrain.models.transformer.initialization`)."""
        initialize(self, self.config, seed)
        return self

    @property
    def output_size(self) -> int:
        """The last dimension of the logits: the vocabulary size."""
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self, *, trainable: bool = False) -> int:
        """Number of parameters, tied ones counted once; `trainable`: only those that require a gradient."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)
