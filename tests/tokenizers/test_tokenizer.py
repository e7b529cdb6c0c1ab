"""Tokenizers: exact round trips, determinism, and the same ids as transformers and the original files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.tokenizers.training import _short_words

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")
TEXT = ["To be, or not to be: that is the question.\n", "Sales of 1234 items in 2024, naïve ☃.\n"] * 20
KINDS = ("bpe", "wordpiece", "unigram", "word", "char")
EXACT = ("bpe", "unigram")


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(TEXT, kind=kind, vocab_size=400) for kind in KINDS}


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=200, deadline=None)
@given(text=st.text())
@example(text="<0x41> is no byte")
@example(text="\r\n\n  \x00\u2028é👩‍👩‍👧\ufeff")
def test_any_text_comes_back_exactly(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = trained[kind]
    if "▁" in text and kind == "unigram":
        text = text.replace("▁", "")  # SentencePiece's own sign for a space
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.unk_id is None or tokenizer.unk_id not in ids or "<|unk|>" in text
    assert tokenizer.encode_batch([text, text]) == [ids, ids]


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=sorted(set("".join(TEXT)))))
def test_a_character_tokenizer_gives_one_token_for_each(trained: dict[str, Tokenizer], text: str) -> None:
    ids = trained["char"].encode(text)
    assert len(ids) == len(text)
    assert trained["char"].decode(ids) == text


def test_character_vocabulary_is_the_alphabet_in_order() -> None:
    tokenizer = Tokenizer.train(["hello\n", "world"], kind="char")
    assert [tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)] == sorted(set("hello\nworld"))
    assert tokenizer.special_ids == frozenset() and tokenizer.eos_id is None and tokenizer.pad_id is None
    with_eos = Tokenizer.train(["hello"], kind="char", eos="<|endoftext|>")
    assert with_eos.vocab_size == 5 and with_eos.eos_id == 4
    assert Tokenizer.train(["hello"], kind="char", special_tokens=["<|endoftext|>"]).eos_id == 4


def test_an_unknown_character_is_named_and_not_dropped(trained: dict[str, Tokenizer]) -> None:
    with pytest.raises(InputError, match=r"'€' \(U\+20AC\)"):
        trained["char"].encode("to €")
    with pytest.raises(InputError, match="U\\+20AC"):
        trained["char"].encode_batch(["to", "€"])


def test_special_tokens_of_a_character_tokenizer_are_known_to_it() -> None:
    tokenizer = Tokenizer.train(["user assistant\nhi"], kind="char", chat_template="chatml")
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert len(ids) == len("user\nhi") + 2
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>user\nhi<|im_end|>"
    with pytest.raises(InputError):
        tokenizer.encode("<|im_start|>user\nhi€<|im_end|>")


@needs_data
def test_tiny_shakespeare_has_65_characters() -> None:
    text = (DATA / "text/tinyshakespeare.txt").read_text("utf-8")
    tokenizer = Tokenizer.train([text], kind="char")
    assert tokenizer.vocab_size == 65
    ids = tokenizer.encode(text)
    assert len(ids) == 1_115_394
    assert tokenizer.decode(ids) == text
    # nanoGPT's own numbering
    assert tokenizer.encode("\nFirst") == [0, 18, 47, 56, 57, 58]


def test_digits_stand_alone(trained: dict[str, Tokenizer]) -> None:
    for kind in ("bpe", "unigram", "wordpiece", "word"):
        tokenizer = trained[kind]
        tokens = [tokenizer.id_to_token(each) for each in tokenizer.encode("items 1234")]
        assert [each for each in tokens if each and each[-1].isdigit()] == ["1", "2", "3", "4"], kind
    merged = Tokenizer.train(["1234 1234 1234"] * 9, vocab_size=300, split_digits=False)
    assert len(merged.encode("1234")) < 4


def test_special_tokens_and_roles() -> None:
    tokenizer = Tokenizer.train(TEXT, vocab_size=300, special_tokens=["<|x|>"], chat_template="chatml")
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_id] == [0]
    assert tokenizer.bos_id == tokenizer.eos_id and tokenizer.pad_id == 1 and tokenizer.unk_id is None
    assert {tokenizer.id_to_token(i) for i in tokenizer.special_ids} == {
        "<|endoftext|>", "<|pad|>", "<|x|>", "<|im_start|>", "<|im_end|>",
    }  # fmt: skip
    assert tokenizer.stop_ids == {0, tokenizer.token_to_id("<|im_end|>")}
    assert tokenizer.decode(tokenizer.encode("a<|x|>b<|endoftext|>")) == "ab"
    assert tokenizer.decode(tokenizer.encode("a<|x|>b"), skip_special_tokens=False) == "a<|x|>b"
    bare = Tokenizer.train(TEXT, vocab_size=300, eos=None, pad=None)
    assert bare.special_ids == frozenset() and bare.eos_id is None


def test_wordpiece_is_laid_out_like_bert(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["wordpiece"]
    ids = tokenizer.encode("To be", special_tokens=True)
    assert ids[0] == tokenizer.bos_id == tokenizer.token_to_id("[CLS]")
    assert ids[-1] == tokenizer.eos_id == tokenizer.token_to_id("[SEP]")
    assert tokenizer.mask_id == tokenizer.token_to_id("[MASK]")
    assert tokenizer.decode(ids) == "To be"
    lower = Tokenizer.train(TEXT, kind="wordpiece", vocab_size=400, lowercase=True)
    assert lower.encode("TO BE") == lower.encode("to be")


SCRIPT = """
import sys
from quatrain.tokenizers.tokenizer import Tokenizer
text = open(sys.argv[1], encoding="utf-8").read()
print(*(Tokenizer.train([text], kind=kind, vocab_size=500).fingerprint for kind in sys.argv[2:]))
"""


def test_the_same_text_gives_the_same_tokenizer_in_every_process(tmp_path: Path) -> None:
    words = [f"{stem}{end} {number}" for number, stem in enumerate(("walk", "sing", "naïv", "SELECT", "größ"))
             for end in ("s", "ing", "ed", "er", "e", "")]  # fmt: skip
    (tmp_path / "text.txt").write_text("\n".join(words * 5), "utf-8")
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "text.txt"), *KINDS],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(1 + seed)},
            check=True,
        ).stdout
        for seed in range(2)
    ]
    assert len(set(runs[0].split())) == len(KINDS)
    assert runs[0] == runs[1]


def test_training_reads_a_stream_once_and_in_pieces() -> None:
    long = " ".join(f"word{i % 97}" for i in range(40_000))

    def stream() -> Any:
        yield from (long, long)

    whole = Tokenizer.train([long, long], vocab_size=350)
    assert Tokenizer.train(stream(), vocab_size=350).fingerprint == whole.fingerprint


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize("unit", ["a", "=", "日", "\n"])
def test_a_word_without_an_end_does_not_take_the_square_of_its_length(kind: str, unit: str) -> None:
    """Base64 or a table without spaces is one word for the trainers: 60,000 characters took half a minute."""
    start = time.process_time()
    tokenizer = Tokenizer.train([unit * 60_000, "the cat sat on a mat", ""], kind=kind, vocab_size=400)
    assert time.process_time() - start < 15
    assert tokenizer.encode("the cat")


def test_words_are_cut_only_where_they_are_very_long() -> None:
    short = " ".join(f"word{i % 97}" + "x" * (i % 900) for i in range(400))
    assert list(_short_words(short)) == [short]
    assert list(_short_words("")) == [""]
    long = "x" * 2500 + " " + "=" * 1000
    assert [len(part) for part in _short_words(long)] == [1000, 1000, 1501] and "".join(_short_words(long)) == long


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(trained: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = trained[kind]
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(place)
        assert loaded.fingerprint == tokenizer.fingerprint and loaded.kind == kind
        assert loaded.encode("To be 2024") == tokenizer.encode("To be 2024")
        assert loaded.chat_template == tokenizer.chat_template
        assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.unk_id) == (
            tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id,
        )  # fmt: skip
        assert loaded.special_ids == tokenizer.special_ids and loaded.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_written(trained: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    extra = {} if kind == "char" else {"special_tokens": ["<|x|>"]}
    tokenizer = Tokenizer.train(TEXT, kind=kind, vocab_size=400, chat_template=template, **extra)
    tokenizer.max_length = 512
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "To be 1234\n\n naïve" if kind == "char" else "To be, “1234”\n\n  naïve\t☃ <|x|> or<|endoftext|>"
    text = "".join(each for each in text if kind != "char" or each in "".join(TEXT))
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs(text)["input_ids"] == tokenizer.encode(text, special_tokens=True)
    ids = tokenizer.encode(text)
    assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert theirs.chat_template == template and theirs.model_max_length == 512
    assert theirs.pad_token_id == tokenizer.pad_id and theirs.unk_token_id == tokenizer.unk_id
    if kind != "wordpiece":
        assert theirs.eos_token_id == tokenizer.eos_id and theirs.bos_token_id == tokenizer.bos_id
    assert len(theirs) == tokenizer.vocab_size
    assert set(theirs.all_special_ids) == tokenizer.special_ids


def test_reads_what_transformers_writes(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.train(TEXT, vocab_size=400, chat_template="chatml")
    ours.save(tmp_path / "a")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    theirs.save_pretrained(str(tmp_path / "b"))  # the template goes into a file of its own
    again = Tokenizer.load(tmp_path / "b")
    assert again.chat_template == ours.chat_template and again.eos_id == ours.eos_id and again.pad_id == ours.pad_id
    assert again.encode("To be ☃ <|im_end|>") == ours.encode("To be ☃ <|im_end|>")
    ours.chat_template = None
    ours.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").chat_template is None


@needs_data
def test_gpt2_from_its_original_files() -> None:
    tokenizer = Tokenizer.load(DATA / "tokenizers/gpt2")
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.encode("Hello, world! <|endoftext|>") == [15496, 11, 995, 0, 220, 50256]
    assert tokenizer.eos_id == tokenizer.bos_id == 50_256
    assert len(tokenizer.encode((DATA / "text/the-verdict.txt").read_text("utf-8"))) == 5145


@needs_data
def test_bert_from_its_original_file(tmp_path: Path) -> None:
    vocabulary = (DATA / "tokenizers/bert_base_uncased_vocab.txt").read_text("utf-8")
    (tmp_path / "vocab.txt").write_text(vocabulary, "utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 30_522
    ids = [101, 7592, 2088, 999, 102]
    assert tokenizer.encode("Hello WORLD!", special_tokens=True) == ids
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (101, 102, 0, 103)


def test_a_stored_truncation_does_not_cut_texts(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(trained["bpe"].backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "To be, or not to be"
    assert Tokenizer.load(tmp_path).encode(text) == trained["bpe"].encode(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "bep"}, "did you mean bpe?"),
        ({"vocab_size": 0}, "from 1 to 4,000,000"),
        ({"vocab_size": 257}, "needs at least 258"),
        ({"special_tokens": [" "]}, "neither empty"),
        ({"kind": "bep", "vocab_size": -1, "special_tokens": [""]}, "neither empty"),
    ],
)
def test_wrong_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        Tokenizer.train(TEXT, **options)
    assert words in str(caught.value)
    if len(options) == 3:
        assert len(caught.value.problems) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_train_on(kind: str, texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text to train"):
        Tokenizer.train(texts, kind=kind, vocab_size=400)


def test_broken_and_absent_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(InputError, match=r"not a valid tokenizer\.json"):
        Tokenizer.load(tmp_path)
    Tokenizer.train(TEXT, vocab_size=300).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_told(trained: dict[str, Tokenizer], kind: str) -> None:
    with pytest.raises(InputError):
        trained[kind].encode("ab\ud83d")
    with pytest.raises(InputError):
        trained[kind].encode_batch(["ab", "ab\ud83d"])
    with pytest.raises(InputError, match="not int"):
        trained["bpe"].encode(3)  # type: ignore[arg-type]


NAMES = [*TEXT, "Ulm and 'Ulm' have Anna, 'Anna' and 12 USA\tmen; in Ulm, of Ulm, to Anna\n" * 9]


@pytest.fixture(scope="module")
def free() -> Tokenizer:
    return Tokenizer.train(NAMES, vocab_size=400, spaces="free")


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\tabAB1'.é"))
@example(text="  Two  Spaces, 12 USAb 'Ulm'\r\n")
def test_free_spaces_lose_nothing(free: Tokenizer, text: str) -> None:
    assert free.decode(free.encode(text), skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(name=st.from_regex(r"[A-ZÄØ][a-zäø]{1,9}", fullmatch=True) | st.from_regex(r"[0-9]{1,9}", fullmatch=True))
@example(name="Ulm")
@example(name="Quetzalcoatl")
def test_with_free_spaces_a_name_is_the_same_tokens_everywhere(free: Tokenizer, name: str) -> None:
    alone = free.encode(name)
    assert free.encode(f"in {name}") == free.encode("in ") + alone
    assert free.encode(f"= '{name}'") == free.encode("= '") + alone + free.encode("'")
    assert free.encode(f"{name}\n") == alone + free.encode("\n")


def test_without_free_spaces_it_is_not(free: Tokenizer) -> None:
    """What the option is for; words in lower case keep their space with either."""
    usual = Tokenizer.train(NAMES, vocab_size=400)
    assert usual.encode("in Ulm") != usual.encode("in ") + usual.encode("Ulm")
    assert free.id_to_token(free.encode("a question")[-1]) == "\u0120question"


def test_free_spaces_are_kept_in_the_folder_and_by_transformers(free: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    free.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.fingerprint == free.fingerprint and again.kind == "bpe"
    for text in (*TEXT[:2], "in Ulm = 'Ulm'  USA 12\n\n x", " Été Ågot  ☃"):
        assert again.encode(text) == free.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert theirs.decode(free.encode(text)) == text


@pytest.mark.parametrize(("kind", "spaces"), [(kind, "free") for kind in KINDS if kind != "bpe"] + [("bpe", "loose")])
def test_spaces_that_a_kind_does_not_have(kind: str, spaces: str) -> None:
    with pytest.raises(InputError, match=f"spaces '{spaces}': allowed are attached, and free for kind bpe"):
        Tokenizer.train(TEXT, kind=kind, vocab_size=400, spaces=spaces)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [[], TEXT])
def test_a_fault_in_reading_the_texts_is_what_is_said(kind: str, before: list[str]) -> None:
    def texts() -> Iterator[str]:
        yield from before
        raise InputError("this file is no text")

    with pytest.raises(InputError, match="this file is no text"):
        Tokenizer.train(texts(), kind=kind, vocab_size=400)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_said(kind: str) -> None:
    for texts in ([], [""]):
        with pytest.raises(InputError, match="there is no text to train a tokenizer on"):
            Tokenizer.train(texts, kind=kind, vocab_size=400)


@given(
    text=st.text("abcé日 \n☃x1▁,", min_size=1, max_size=30).filter(str.strip),
    kind=st.sampled_from(["unigram", "wordpiece"]),
    digits=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_least_vocabulary_is_said_and_is_enough(text: str, kind: str, digits: bool) -> None:
    texts, smallest = [text, "a cat"] * 3, {"unigram": 260, "wordpiece": 6}[kind]
    with pytest.raises(InputError, match="need at least") as caught:
        Tokenizer.train(texts, kind=kind, vocab_size=smallest, split_digits=digits)
    least = int(str(caught.value).partition("need at least ")[2].partition(" ")[0])
    assert Tokenizer.train(texts, kind=kind, vocab_size=least, split_digits=digits).vocab_size <= least
    with pytest.raises(InputError, match=f"need at least {least} "):
        Tokenizer.train(texts, kind=kind, vocab_size=least - 1, split_digits=digits)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "word"])
@pytest.mark.parametrize("size", [10**9, 10**12, 10**30, 0, -1, True, 1.5, "8", None, float("nan")])
def test_sizes_out_of_bounds(kind: str, size: Any) -> None:
    with pytest.raises(InputError, match="vocab_size"):
        Tokenizer.train(["the cat"], kind=kind, vocab_size=size)
