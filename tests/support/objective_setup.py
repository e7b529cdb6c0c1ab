"""What the tests of objectives share: small tokenizers of each kind, and tiny random models that transformers wrote."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from quatrain.models.io import model_folder
from quatrain.tokenizers.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "It was the best of times, it was the worst of times; it was 1859 when this was written.",
    "Holmes rubbed his long, thin hands together. His eyes glistened in the lamplight!",
    "Tokens are pieces of words: walk, walks, walked, walking, walker. Is that so? It is.",
    "A small boat drifted slowly past the harbour wall while nobody was looking.",
    "She wrote three letters in 1902, sealed them, and burned the fourth.",
]


@cache
def wordpiece() -> Tokenizer:
    """BERT's layout: [CLS] and [SEP] around, [MASK]."""
    return Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=190, lowercase=True)


@cache
def with_sentinels(count: int = 100) -> Tokenizer:
    """T5's roles: </s> at the end, sentinels."""
    sentinels = [f"<extra_id_{number}>" for number in range(count)]
    return Tokenizer.train(TEXTS, kind="unigram", vocab_size=480, special_tokens=sentinels, eos="</s>", pad="<pad>")


@cache
def byte_level() -> Tokenizer:
    """BART's roles: <s> and </s> around, <mask>."""
    from tokenizers.processors import RobertaProcessing

    tokenizer = Tokenizer.train(
        TEXTS, kind="bpe", vocab_size=420, special_tokens=["<s>", "<mask>"], eos="</s>", pad="<pad>"
    )
    begin, end = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.backend.post_processor = RobertaProcessing(("</s>", end), ("<s>", begin), True, False)
    config = {**tokenizer.config, "bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return Tokenizer(tokenizer.backend, config)


SHAPES = {
    "Bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "Roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "Llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "Bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}  # fmt: skip
LENGTHS = {"T5": "n_positions"}


def pair_of_models(folder: Path, name: str, tokenizer: Tokenizer, *, head: str | None = None, **settings: Any) -> Any:
    """A tiny random model of transformers, such as "BertForMaskedLM", and ours from the folder that it writes."""
    family = name.partition("For")[0]
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else 0
    config = getattr(transformers, f"{family}Config")(
        vocab_size=tokenizer.vocab_size,
        bos_token_id=begin,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        **{LENGTHS.get(family, "max_position_embeddings"): 128},
        **({"decoder_start_token_id": tokenizer.pad_id} if family in ("T5", "Bart") else {}),
        **SHAPES[family],
        **settings,
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    theirs.save_pretrained(folder)
    return theirs, model_folder.load(folder, head=head)


def their_inputs(batch: Any) -> dict[str, Any]:
    """A batch as transformers takes it."""
    mask = torch.ones_like(batch.input_ids) if batch.segments is None else (batch.segments != 0).long()
    found = {"input_ids": batch.input_ids, "attention_mask": mask}
    return found if batch.token_types is None else {**found, "token_type_ids": batch.token_types}
