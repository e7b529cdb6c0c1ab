"""Tiny random models of every task, as transformers writes them, for tests of pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

TEXTS = ["a fine film, and a long one", "dull from start to end", "Paris is in France; the fox is not."]
LABELS = {0: "bad", 1: "good", 2: "so-so"}
CLASSES = ["contradiction", "neutral", "entailment"]


def tokenizer(folder: Path, pieces: str = "bert") -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    if pieces == "bert":
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    else:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        inner.train_from_iterator(TEXTS * 3, trainer)
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        names = dict(bos="<s>", pad="<pad>", eos="</s>", unk="<unk>", mask="<mask>", cls="<s>", sep="</s>")
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if pieces == "bert" else [])]
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=40,
        model_input_names=inputs,
        **{f"{name}_token": token for name, token in names.items()},
    )
    wrapped.save_pretrained(folder)
    return wrapped


def saved(folder: Path, task: str, pieces: str = "bert", **settings: Any) -> Path:
    """A tiny random model of a task, as transformers writes it."""
    torch.manual_seed(3)
    words = tokenizer(folder, pieces)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    family = "Bert" if pieces == "bert" else "Roberta"
    more = {} if pieces == "bert" else dict(type_vocab_size=1, bos_token_id=0, eos_token_id=2)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(words), max_position_embeddings=42, pad_token_id=words.pad_token_id, **sizes, **more, **settings
    )
    model = getattr(transformers, f"{family}For{task}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


NLI = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: number for number, name in enumerate(CLASSES)}}


def summarizer(folder: Path, **settings: Any) -> Path:
    """A tiny random BART."""
    torch.manual_seed(0)
    words = tokenizer(folder, "roberta")
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2)
    config = transformers.BartConfig(vocab_size=len(words), **sizes, **heads, **ids, **settings)
    model = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    return folder


def decoder(folder: Path, head: str = "LMHeadModel", **settings: Any) -> Path:
    """A tiny random GPT-2 with a byte-level tokenizer."""
    torch.manual_seed(1)
    words = tokenizer(folder, "roberta")
    words._tokenizer.post_processor = None
    words.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=2,
        **settings,
    )  # fmt: skip
    model = getattr(transformers, f"GPT2{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder
