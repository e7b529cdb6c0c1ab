"""Makes an encoder-decoder of two pre-trained models (Rothe et al. 2020, arXiv 1907.12461)."""

from __future__ import annotations

from pathlib import Path

import torch

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.families.encoder_decoder import DECODERS, ENCODERS, join
from quatrain.models.io import model_folder
from quatrain.models.transformer.initialization import initialize
from quatrain.models.transformer.stack import Model


def join_folders(
    encoder: str | Path, decoder: str | Path, *, decoder_start_token_id: int | None = None, seed: int = 0
) -> Model:
    """An encoder-decoder whose sides are the models of two folders, to be trained by the seq2seq objective.

    The encoder is a BERT, RoBERTa or ELECTRA, the decoder a BERT, RoBERTa or GPT-2 with its language head. The decoder
    gets cross-attention, and a projection where the widths differ: both are initialized from `seed`, and the model's
    `newly_initialized` lists them. `decoder_start_token_id` is by default the decoder's bos_token_id. Raises
    InputError for models of other families, and where no token can start the decoder.
    """
    reads, says = model_folder.load(encoder, head="none"), model_folder.load(decoder)
    config, start = says.config, decoder_start_token_id
    start = config.bos_token_id if start is None else start
    problems = [
        f"{folder}: a {family} model; must be one of {', '.join(known)}"
        for folder, family, known in (
            (encoder, reads.config.family, ENCODERS), (decoder, config.family, DECODERS),
        )
        if family not in known
    ]  # fmt: skip
    if says.lm_head is None:
        problems.append(f"{decoder}: has the head {config.head}; the decoder needs a language head")
    if start is None:
        problems.append("decoder_start_token_id: missing, and the decoder has no bos_token_id")
    if problems:
        raise InputError("These two folders are no encoder and decoder:", problems)
    attending = config.replace(
        architecture="decoder", head="causal", cross_attention=True, pooler="none", padding_positions="counted"
    )
    family = get_family("encoder-decoder")
    more = join(attending, reads.config.replace(head="none", pooler="none"))
    joined = attending.replace(family=family.name, head="seq2seq", decoder_start_token_id=start, **more)
    model = Model(joined)
    given = dict(says.state_dict())
    given |= {f"encoder.{name}": tensor for name, tensor in reads.state_dict().items()}
    given["embed_source_tokens.weight"] = given["encoder.embed_tokens.weight"]
    own = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in given.items() if name in own}, strict=False)
    model.newly_initialized = sorted(set(own) - set(given))
    initialize(model, joined, seed, only=model.newly_initialized)
    model.unused_tensors = {
        f"encoder.{name}": tensor.detach().clone() for name, tensor in reads.state_dict().items() if "pooler." in name
    }
    with torch.no_grad():  # What reads the encoder starts as nothing: the decoder says what it said.
        for name in model.newly_initialized:
            if name.endswith("cross_attn.o_proj.weight"):
                own[name].zero_()
    return model.eval()
