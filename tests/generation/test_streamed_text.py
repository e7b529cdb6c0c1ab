"""What a stream shows is never taken back: joined, its pieces are the completion's text, whatever tokens come."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from quatrain.generation import text as text_module
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.text import TextStreamer, find_stop, stopped
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer, cleaned_beginning, cleaned_up

TEXTS = ["the cat sat . do n't ! it 's a naïve 日本 👩‍👩‍👧 test , isn't it ? é ☃"] * 20


def _llama_like() -> Tokenizer:
    """SentencePiece's BPE with bytes: a space is put before the text and taken away again."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc.'", "n't", "日", "▁s"]
    backend = Backend(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, {"eos_token": "</s>"})


def _cleaning(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer.backend, tokenizer.config | {"clean_up_tokenization_spaces": True})


TOKENIZERS = {
    "bpe": Tokenizer.train(TEXTS, vocab_size=290),
    "unigram": Tokenizer.train(TEXTS, kind="unigram", vocab_size=420),
    "wordpiece": Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=120),
    "word": Tokenizer.train(TEXTS, kind="word", vocab_size=40),
    "char": Tokenizer.train(TEXTS, kind="char"),
    "sentencepiece": _llama_like(),
}
TOKENIZERS["cleaning wordpiece"] = _cleaning(Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=120))
TOKENIZERS["cleaning unigram"] = _cleaning(Tokenizer.train(TEXTS, kind="unigram", vocab_size=420))
TOKENIZERS["cleaning word"] = _cleaning(Tokenizer.train(TEXTS, kind="word", vocab_size=40))


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    return [each for each in found if each is not None]


@pytest.mark.parametrize("window", [1, 4, 64])
@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_streamed_text_is_the_completion(kind, window, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "WINDOW", window)
        check_streamed_text(TOKENIZERS[kind], data)


def check_streamed_text(tokenizer, data):
    ordinary = st.integers(0, tokenizer.vocab_size + 3).map(lambda i: [i])  # ids without a token, too
    of_bytes = st.sampled_from("é日👩").map(lambda c: byte_ids(tokenizer, c))
    written = st.sampled_from(["do n't", " ' ", " .", "é日", "x 's"]).map(lambda t: _encoded(tokenizer, t))
    parts = data.draw(st.lists(ordinary | of_bytes | written, max_size=25))
    ids = [each for part in parts for each in part]
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    stop = data.draw(st.lists(st.sampled_from(["é", "日", "é日", " '", "n't", "t.", "👩", "a"]), max_size=2))
    growing, shown = TextStreamer(tokenizer, stop), ""
    for length in range(1, len(ids) + 1):
        if stop and stopped(tokenizer, ids[:length], stop):
            ids = ids[:length]
            break
        shown += growing.more(ids[:length])
    text = tokenizer.decode(ids)
    text = text[: find_stop(text, stop)]
    assert text.startswith(shown) and len(shown) == growing.shown


def test_ten_thousand_texts():
    """Random texts, of which whoever reads them sees several tokens at a time."""
    generator, held, cut = random.Random(0), 0, 0
    tokenizers = list(TOKENIZERS.values())
    for number in range(10_000):
        tokenizer = tokenizers[number % len(tokenizers)]
        ids = [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(1, 16))]
        ids += byte_ids(tokenizer, generator.choice(["", "é日", "👩"]))
        whole = tokenizer.decode(ids)
        place = generator.randrange(len(whole) + 1)
        string = whole[place : place + generator.randrange(1, 4)]
        stop = [string] if number % 2 and string.strip("\ufffd") else []
        growing, shown, read = TextStreamer(tokenizer, stop), "", 0
        for length in range(1, len(ids) + 1):
            if stop and stopped(tokenizer, ids[:length], stop):
                ids, cut = ids[:length], cut + 1
                break
            if length - read >= generator.randrange(1, 5):
                shown, read = shown + growing.more(ids[:length]), length
                held += tokenizer.decode(ids[:length]) != shown
        text = tokenizer.decode(ids)
        text = text[: find_stop(text, stop)]
        assert text.startswith(shown), (number, ids, stop)
    assert held > 1000 and cut > 1000


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_streaming_takes_linear_time(kind):
    tokenizer, decoded = TOKENIZERS[kind], 0
    ids = [*tokenizer.encode("the cat sat . do n't "), *byte_ids(tokenizer, "é日")] * 60

    class Counting:
        byte_ids, special_ids = tokenizer.byte_ids, tokenizer.special_ids

        def settled(self, ids):
            nonlocal decoded
            decoded += len(ids)
            return tokenizer.settled(ids)

        decode = tokenizer.decode

    growing = TextStreamer(Counting(), ())
    shown = "".join(growing.more(ids[:length]) for length in range(1, len(ids) + 1))
    assert tokenizer.decode(ids).startswith(shown) and len(shown) >= len(tokenizer.decode(ids)) - 8
    assert decoded < 4 * text_module.WINDOW * len(ids)


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    known = tokenizer._alphabet
    return tokenizer.encode("".join(c for c in text if known is None or c in known))


@given(text=st.text(" .'?!,ntmsvre日", max_size=30), more=st.text(" .'?!,ntmsvre日", max_size=12))
@settings(max_examples=500, deadline=None)
def test_a_clean_beginning_stays(text, more):
    assert cleaned_up(text + more).startswith(cleaned_beginning(text))


def test_ordinary_text_is_not_held_back():
    for kind, tokenizer in TOKENIZERS.items():
        if kind == "char":
            continue
        ids = tokenizer.encode("the cat sat")
        assert len(TextStreamer(tokenizer, ()).more(ids)) >= len(tokenizer.decode(ids)) - 4, kind


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_stream_that_ends_within_a_character(count):
    tokenizer = TOKENIZERS["unigram"]
    ids, size = byte_ids(tokenizer, "é日"), tokenizer.vocab_size
    model = Model(
        ModelConfig(
            family="llama", head_dim=4, vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
        )
    ).initialize(0)  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name or "head" in name:
                weight.zero_()
        model.embed_tokens.weight.copy_(torch.eye(size))
        for before, after in zip([5, *ids], ids, strict=False):
            model.lm_head.weight[after, before] = 5
    pieces = list(Engine(model, tokenizer).stream([5], SamplingParams(count)))
    assert pieces[-1].completion.ids == ids[:count]
    assert "".join(pieces) == pieces[-1].completion.text == tokenizer.decode(ids[:count])
