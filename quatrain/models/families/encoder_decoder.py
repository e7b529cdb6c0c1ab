"""Encoder-decoders of two models: an encoder and a decoder with cross-attention, each of a family of its own.

Rothe et al. 2020 (arXiv 1907.12461), `EncoderDecoderModel` of transformers: BERT to BERT, BERT to GPT-2 and so on. The
files hold both models under the prefixes `encoder.` and `decoder.`, and a projection where their widths differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.bert import FAMILIES as BERT
from quatrain.models.families.electra import FAMILIES as ELECTRA
from quatrain.models.families.gpt2 import FAMILIES as GPT2
from quatrain.models.families.mapping import Family, Head
from quatrain.models.families.nested import NestedFamily, within
from quatrain.models.families.roberta import FAMILIES as ROBERTA
from quatrain.models.families.weights import Operation, Rename, expand, renames
from quatrain.models.transformer.config import ModelConfig

ENCODERS = {family.name: family for family in (*BERT, *ROBERTA, *ELECTRA)}
DECODERS = {family.name: family for family in (*BERT, *ROBERTA, *GPT2)}
"""The families that may be the encoder, and those that have cross-attention."""


def _chosen(known: Mapping[str, Family], raw: Mapping[str, Any], head: str) -> tuple[Family, str]:
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in known:
        raise InputError(f"model_type: {format_value(name)}; must be one of {', '.join(known)}")
    return known[name], head


def join(decoder: ModelConfig, encoder: ModelConfig) -> dict[str, Any]:
    """The fields in which an encoder-decoder differs from its decoder. Raises InputError for one that cannot be it."""
    problems = []
    if encoder.architecture != "encoder":
        problems.append("encoder.is_decoder: true; must be false")
    if not decoder.cross_attention:
        problems.append("decoder.add_cross_attention: false; must be true")
    if problems:
        raise InputError("These two models are no encoder-decoder:", problems)
    return {
        "architecture": "encoder-decoder",
        "encoder_config": encoder.replace(extra=encoder.extra),
        "encoder_vocab_size": encoder.vocab_size,
        "num_encoder_layers": encoder.num_hidden_layers,
        "decoder_family": decoder.family,
        "cross_attention": False,
    }


def _join(parts: Mapping[str, ModelConfig], raw: Mapping[str, Any]) -> dict[str, Any]:
    tokens = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if raw.get(key) is not None}
    return join(parts["decoder"], parts["encoder"]) | tokens | {"decoder_start_token_id": raw.get(START)}


START = "decoder_start_token_id"


def _split(config: ModelConfig) -> dict[str, ModelConfig]:
    decoder = config.replace(
        family=config.decoder_family, architecture="decoder", head="causal", cross_attention=True, encoder_config=None,
        encoder_vocab_size=0, num_encoder_layers=0, decoder_family="", decoder_start_token_id=None,
        extra=config.extra.get("decoder", {}),
    )  # fmt: skip
    return {"decoder": decoder, "encoder": config.encoder}


class TwoModels(NestedFamily):
    """The family of encoder-decoders of two models."""

    def weights(self, config: ModelConfig) -> list[Operation]:
        """The weight operations of both models, and of the projection between them."""
        parts = _split(config)
        found = [within(each, "decoder.", "") for each in DECODERS[config.decoder_family].weights(parts["decoder"])]
        encoder = ENCODERS[parts["encoder"].family]
        body = encoder.operations(parts["encoder"]) if callable(encoder.operations) else encoder.operations
        for operation in expand(body, parts["encoder"]):
            if operation.targets == ["embed_tokens.weight"]:
                found.append(Rename(f"encoder.{operation.sources[0]}", "embed_source_tokens.weight"))
            else:
                found.append(within(operation, "encoder.", "encoder."))
        return [*found, *renames("enc_to_dec_proj", "encoder_projection")]

    def to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """The config.json of our configuration, with those of both models in it, each naming its class."""
        written = super().to_hf(config)
        for key, (known, head) in {"decoder": (DECODERS, "causal"), "encoder": (ENCODERS, "none")}.items():
            written[key]["architectures"] = [known[written[key]["model_type"]].heads[head].architecture]
        return written


def _aliases(families: Sequence[Family]) -> dict[str, str]:
    return {f"decoder.{alias}": f"decoder.{name}" for family in families for alias, name in family.aliases.items()}


FAMILIES = (
    TwoModels(
        name="encoder-decoder",
        keys=(),
        operations=(),
        heads={"seq2seq": Head("EncoderDecoderModel")},
        required={"is_encoder_decoder": True, "tie_encoder_decoder": False},
        reads=frozenset({"encoder", "decoder", START}),
        write=lambda config: {
            START: config.decoder_start_token_id, "is_encoder_decoder": True, "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id,
        },
        aliases=_aliases(tuple(DECODERS.values())),
        parts={
            "decoder": lambda raw: _chosen(DECODERS, raw, "causal"),
            "encoder": lambda raw: _chosen(ENCODERS, raw, "none"),
        },
        join=_join,
        split=_split,
        ignored=(r".*\.embeddings\.position_ids", r"decoder\.transformer\.h\.\d+\.(cross)?attn\.(bias|masked_bias)",
                 r"decoder\.transformer\.h\.\d+\.crossattention\.(bias|masked_bias)"),
        kept=lambda name, config: name.startswith("encoder.pooler."),
    ),
)  # fmt: skip
