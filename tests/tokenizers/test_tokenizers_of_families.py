"""Every family's tokenizer files: the ids of the library that the family was made with, special tokens exactly once."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.files import has_tokenizer
from quatrain.tokenizers.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
tiktoken = pytest.importorskip("tiktoken")
transformers = pytest.importorskip("transformers")

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")

ENGLISH = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "It was the best of times, it was the worst of times; it was 1859 when this was written.",
    "def add(a, b):\n\treturn a + b  # two spaces, then a comment",
    "A naïve café owner paid £12.50 for 3 crêpes — “too much”, she said…",
    "Tokens are pieces of words: walk, walks, walked, walking, walker.",
]
GERMAN = [
    "Der schnelle braune Fuchs springt über den faulen Hund, und dem Hund ist es gleich.",
    "Größe, Straße, Müller, Übermut: Wörter mit Umlauten und scharfem S.",
    "Es war die beste aller Zeiten, es war die schlechteste aller Zeiten.",
]
ODD = [
    "",
    " ",
    "  two  leading and   three inside ",
    "\n\n\ttabs\r\nand lines\n ",
    "naïve café ☃ 日本語テキスト 👩‍👩‍👧 Ünïcödé",
    "aaaaaaaaa ----------- ........",
    "don't you've we'll I'M 12345 3.14 £9",
    "x\u00a0y\u200bz\u3000w\ufeff",
    "▁ is the sign for a space▁",
]
PLAIN = st.text(alphabet="abcdefgh aeinrst.,'12é日☃\n\t-▁") | st.text(
    st.characters(exclude_characters="<", codec="utf-8")
)


def trained(texts: list[str], **options: Any) -> bytes:
    """A SentencePiece model of a few hundred pieces, as the trainer writes it."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 4),
        model_writer=writer,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return writer.getvalue()


def llama_model(**options: Any) -> bytes:
    """Settings of Llama's tokenizer: BPE, bytes for what is unknown, text left as it is."""
    usual = dict(
        model_type="bpe",
        vocab_size=460,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
    )
    return trained(ENGLISH + GERMAN, **{**usual, **options})


def same(ours: list[int], theirs: list[int]) -> bool:
    """Equal, or a tie: of two splits into the same pieces neither is better, and rounding to float32 picks one."""
    return ours == theirs or sorted(ours) == sorted(theirs)


def reference(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def folder(path: Path, **files: Any) -> Path:
    """A folder with files; a name's first "__" is its dot, objects become JSON."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        file = path / name.replace("__", ".", 1)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


# --- byte-level BPE: GPT-2, RoBERTa, BART, OPT, Qwen --------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.load(DATA / "tokenizers/gpt2")


def ranks_of_gpt2() -> dict[bytes, int]:
    """GPT-2's vocabulary as tiktoken wants it: the bytes of each token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in printable)}
    vocabulary = json.loads((DATA / "tokenizers/gpt2/vocab.json").read_text("utf-8"))
    return {bytes(letters[c] for c in token): i for token, i in vocabulary.items() if token != "<|endoftext|>"}


@pytest.fixture(scope="module")
def gpt2_of_tiktoken() -> Any:
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = {"<|endoftext|>": 50_256}
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks_of_gpt2(), special_tokens=special)


@needs_data
def test_gpt2_equals_tiktoken_on_real_text(gpt2: Tokenizer, gpt2_of_tiktoken: Any) -> None:
    for name in ("the-verdict.txt", "tinyshakespeare.txt"):
        text = (DATA / "text" / name).read_text("utf-8")[:200_000]
        assert gpt2.encode(text) == gpt2_of_tiktoken.encode(text)
    for text in (*ENGLISH, *GERMAN, *ODD, "a<|endoftext|>b<|endoftext|>"):
        ids = gpt2.encode(text)
        assert ids == gpt2_of_tiktoken.encode(text, allowed_special="all")
        assert gpt2.decode(ids, skip_special_tokens=False) == text


@needs_data
@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\t\r\u00a0\u3000'sdmtlvre12aB日é.,!"))
def test_gpt2_equals_tiktoken_on_any_text(gpt2: Tokenizer, gpt2_of_tiktoken: Any, text: str) -> None:
    ids = gpt2.encode(text)
    assert ids == gpt2_of_tiktoken.encode(text, allowed_special="all")
    assert gpt2.decode(ids, skip_special_tokens=False) == text


@needs_data
def test_whisper_ranks_equal_tiktoken(tmp_path: Path) -> None:
    import base64

    packed = DATA / "tokenizers/whisper_multilingual.tiktoken.gz"
    lines = gzip.decompress(packed.read_bytes()).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = {"<|endoftext|>": 50_257}
    theirs = tiktoken.Encoding("whisper", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    ours = Tokenizer.load(packed)
    assert ours.vocab_size == 50_258 and ours.eos_id == 50_257
    for text in (*ENGLISH, *GERMAN, *ODD, "한국어 और हिन्दी, русский текст", "x<|endoftext|>"):
        assert ours.encode(text) == theirs.encode(text, allowed_special="all")
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
    unpacked = tmp_path / "multilingual.tiktoken"
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    assert Tokenizer.load(unpacked).fingerprint == ours.fingerprint


def test_llama_3_ranks_equal_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer.model is a file of ranks; here a small one with its pattern and its 256 special tokens."""
    import base64

    from quatrain.tokenizers import tiktoken as ours_of

    learned = Tokenizer.train(ENGLISH * 3, vocab_size=420, eos=None, pad=None)
    letters = {letter: byte for byte, letter in enumerate(ours_of._letters())}
    tokens = [bytes(letters[c] for c in learned.id_to_token(i) or "") for i in range(learned.vocab_size)]
    ranks = {token: rank for rank, token in enumerate(sorted(tokens, key=len))}
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    monkeypatch.setattr(ours_of, "_LLAMA_3_RANKS", len(ranks))
    special = {token: len(ranks) + n for n, token in enumerate(ours_of._LLAMA_3_SPECIAL)}
    theirs = tiktoken.Encoding("x", pat_str=ours_of.LLAMA_3_WORDS, mergeable_ranks=ranks, special_tokens=special)
    ours = Tokenizer.load(folder(tmp_path / "a", tokenizer__model=lines, config__json={"model_type": "llama"}))
    for text in (*ENGLISH, *GERMAN, *ODD, "<|start_header_id|>user<|end_header_id|>\n\nfox<|eot_id|>"):
        ids = theirs.encode(text, allowed_special="all")
        assert ours.encode(text) == ids and ours.encode(text, special_tokens=True) == [len(ranks), *ids]
    # The distances of the published ids: 128000, 128001, 128006, 128009, 128255.
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>")
    assert [special[name] - len(ranks) for name in names] == [0, 1, 6, 9] and len(special) == 256
    assert (ours.bos_id, ours.eos_id) == (len(ranks), len(ranks) + 1) and len(ranks) + 9 in ours.stop_ids


def byte_level_files(*special: str) -> dict[str, Any]:
    """A trained vocab.json and merges.txt, special tokens first."""
    model = json.loads(Tokenizer.train(ENGLISH * 3, vocab_size=420, eos=None, pad=None).backend.to_str())["model"]
    tokens = [*special, *sorted(model["vocab"], key=lambda token: model["vocab"][token])]
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    return {"vocab__json": {token: number for number, token in enumerate(tokens)}, "merges__txt": merges}


@pytest.mark.parametrize("name", ["RobertaTokenizer", "BartTokenizer"])
def test_roberta_and_bart_equal_transformers(name: str, tmp_path: Path) -> None:
    files = byte_level_files("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    bare = Tokenizer.load(folder(tmp_path / "bare", **files))
    named = Tokenizer.load(folder(tmp_path / "named", **files, tokenizer_config__json={"tokenizer_class": name}))
    assert bare.fingerprint == named.fingerprint
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "named")
    for text in (*ENGLISH, *ODD):
        assert bare.encode(text, special_tokens=True) == theirs(text)["input_ids"]
    pair = bare.encode_pair(ENGLISH[0], ENGLISH[1])
    assert pair.ids == theirs(ENGLISH[0], ENGLISH[1])["input_ids"]
    assert pair.ids[0] == 0 and pair.ids.count(2) == 3 and set(pair.token_types) == {0}
    assert bare.mask_id == 4 and bare.encode("a <mask>")[-1] == 4 and len(bare.encode("a <mask>")) == 2
    assert (bare.bos_id, bare.pad_id, bare.eos_id, bare.unk_id) == (0, 1, 2, 3)


def test_opt_begins_every_text_with_its_end_token(tmp_path: Path) -> None:
    files = byte_level_files("<s>", "<pad>", "</s>", "<unk>")
    roles = {f"{role}_token": "</s>" for role in ("bos", "eos", "unk")} | {"pad_token": "<pad>"}
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, **roles}
    tokenizer = Tokenizer.load(folder(tmp_path / "a", **files, tokenizer_config__json=config))
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "a")
    for text in (*ENGLISH, *ODD):
        assert tokenizer.encode(text, special_tokens=True) == theirs(text)["input_ids"] == [2, *tokenizer.encode(text)]
    bare = Tokenizer.load(folder(tmp_path / "b", **files, config__json={"model_type": "opt"}))
    assert bare.encode("fox", special_tokens=True) == tokenizer.encode("fox", special_tokens=True)
    assert bare.bos_id == bare.eos_id == 2 and bare.pad_id == 1


def test_qwen_with_its_added_tokens_equals_transformers(tmp_path: Path) -> None:
    files = byte_level_files()
    size = len(files["vocab__json"])
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>")
    added = {size + n: {"content": name, "special": name != "<tool>"} for n, name in enumerate(names)}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    tokenizer = Tokenizer.load(folder(tmp_path / "a", **files, tokenizer_config__json=config))
    theirs = transformers.Qwen2Tokenizer.from_pretrained(tmp_path / "a")
    for text in (*ENGLISH, *ODD, "<|im_start|>user\ncafe\u0301<|im_end|>\n<tool>x"):
        assert tokenizer.encode(text, special_tokens=True) == theirs(text)["input_ids"]
    assert tokenizer.vocab_size == size + 4 and tokenizer.bos_id is None and tokenizer.eos_id == size + 2
    assert size + 3 not in tokenizer.special_ids and size + 1 in tokenizer.special_ids


# --- WordPiece: BERT, DistilBERT ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    shutil.copy(DATA / "tokenizers/bert_base_uncased_vocab.txt", path / "vocab.txt")
    return path


@needs_data
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
    ],
)
def test_bert_equals_transformers(options: dict[str, Any], bert_folder: Path, tmp_path: Path) -> None:
    shutil.copy(bert_folder / "vocab.txt", tmp_path / "vocab.txt")
    ours = Tokenizer.load(folder(tmp_path, tokenizer_config__json=options))
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    fast = transformers.BertTokenizer.from_pretrained(tmp_path)
    # The tokenizer of the original code, written in Python.
    original = BertTokenizerLegacy(str(tmp_path / "vocab.txt"), **options)
    for text in (*ENGLISH, *GERMAN, *ODD, "Ça déjà ÉTÉ 東京タワー [MASK] unaffable ﬁ", "x" * 101 + " y"):
        ids = ours.encode(text, special_tokens=True)
        assert ids == fast(text)["input_ids"]
        assert ids == original(text)["input_ids"]
    theirs, pair = fast("Who?", "The fox."), ours.encode_pair("Who?", "The fox.")
    assert (pair.ids, pair.token_types) == (theirs["input_ids"], theirs["token_type_ids"])


@needs_data
@settings(max_examples=200, deadline=None)
@given(text=st.text(), other=st.text(alphabet="abÉ日 .\u0301\x00\u00ad[]CLSEP"))
def test_bert_equals_transformers_on_any_text(bert_folder: Path, text: str, other: str) -> None:
    if not hasattr(test_bert_equals_transformers_on_any_text, "both"):
        both = Tokenizer.load(bert_folder), transformers.BertTokenizer.from_pretrained(bert_folder)
        test_bert_equals_transformers_on_any_text.both = both  # type: ignore[attr-defined]
    ours, theirs = test_bert_equals_transformers_on_any_text.both  # type: ignore[attr-defined]
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    if other and not any(token in text + other for token in ("[CLS]", "[SEP]")):
        pair = ours.encode_pair(text, other)
        assert (
            pair.ids == theirs(text, other)["input_ids"] and pair.token_types == theirs(text, other)["token_type_ids"]
        )


# --- SentencePiece BPE: Llama, Mistral, Gemma, Phi-3 --------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any, Path]:
    model = llama_model()
    path = folder(tmp_path_factory.mktemp("llama"), tokenizer__model=model)
    return Tokenizer.load(path), reference(model), path


@settings(max_examples=300, deadline=None)
@given(text=PLAIN)
@example(text="  leading")
@example(text="\x00\x01 ▁▁ a▁")
def test_llama_equals_sentencepiece_on_any_text(llama: tuple[Tokenizer, Any, Path], text: str) -> None:
    ours, theirs, _ = llama
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    if "▁" not in text:
        assert ours.decode(ids) == text


def test_llama_equals_sentencepiece_and_transformers(llama: tuple[Tokenizer, Any, Path], tmp_path: Path) -> None:
    ours, theirs, path = llama
    hf = transformers.LlamaTokenizer.from_pretrained(path)
    for text in (*ENGLISH, *GERMAN, *ODD):
        ids = ours.encode(text)
        assert ids == theirs.encode(text) and ours.decode(ids) == text.replace("▁", " ")
        assert ours.encode(text, special_tokens=True) == [theirs.bos_id(), *ids]
        # transformers puts no second space where a text begins with one, SentencePiece does.
        if text.strip(" ▁") and text[0] not in " ▁":
            assert ids == hf(text, add_special_tokens=False)["input_ids"]
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, None)
    assert ours.token_text(ours.encode("the fox")[0]).startswith(" ")
    ours.save(tmp_path)
    again, fast = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == ours.fingerprint and (again.bos_id, again.eos_id) == (1, 2)
    for text in (*ENGLISH, *ODD):
        assert fast(text)["input_ids"] == again.encode(text, special_tokens=True) == [1, *ours.encode(text)]


def test_a_prefix_only_for_the_first_word_where_the_configuration_says_so(tmp_path: Path) -> None:
    config = {"legacy": False, "tokenizer_class": "LlamaTokenizer"}
    path = folder(tmp_path / "a", tokenizer__model=llama_model(), tokenizer_config__json=config)
    ours, theirs = Tokenizer.load(path), transformers.LlamaTokenizer.from_pretrained(path)
    for text in (*ENGLISH, *ODD, "fox</s>dog", "</s> dog <s>"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_phi_3_and_mistral_have_added_and_control_tokens(tmp_path: Path) -> None:
    model = llama_model(control_symbols=["[INST]", "[/INST]"])
    size = reference(model).get_piece_size()
    turns = {str(size): {"content": "<|user|>", "rstrip": True, "special": False}}
    path = folder(
        tmp_path / "a", tokenizer__model=model, added_tokens__json={"<|user|>": size, "<|end|>": size + 1},
        tokenizer_config__json={"added_tokens_decoder": turns, "add_bos_token": False},
    )  # fmt: skip
    ours = Tokenizer.load(path)
    assert ours.vocab_size == size + 2
    ids = ours.encode("<|user|>\n fox<|end|>[INST]", special_tokens=True)
    assert ids == [size, *ours.encode("fox"), size + 1, ours.token_to_id("[INST]")]
    assert ours.token_to_id("[INST]") in ours.special_ids and size not in ours.special_ids


def test_gemma_has_no_prefix_and_tokens_of_white_space(tmp_path: Path) -> None:
    symbols = ["<table>", "\n", "\n\n", "▁▁", "▁▁▁", "<start_of_turn>"]
    model = llama_model(add_dummy_prefix=False, user_defined_symbols=symbols, pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    theirs = reference(model)
    ours = Tokenizer.load(folder(tmp_path / "a", tokenizer__model=model, config__json={"model_type": "gemma2"}))
    for text in (*ENGLISH, *GERMAN, *ODD, "a  b   c    d\n\n\nx<table>y", "    \n\n\n\n  "):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text.replace("▁", " ")
    assert ours.encode("fox", special_tokens=True)[0] == ours.bos_id == 2 and ours.pad_id == 0


def test_a_tab_that_is_a_piece_only_as_a_byte_is_joined_all_the_same(tmp_path: Path) -> None:
    """As in Gemma: two tabs are a piece, one is not."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(llama_model(add_dummy_prefix=False))
    names = [piece.piece for piece in proto.pieces]
    proto.pieces[names.index("\t")].piece = "字"
    longest = next(i for i, piece in enumerate(proto.pieces) if len(piece.piece) > 2 and piece.type == 1)
    proto.pieces[longest].piece = "\t\t"
    model = proto.SerializeToString()
    ours, theirs = Tokenizer.load(folder(tmp_path / "a", tokenizer__model=model)), reference(model)
    for text in ("\t", "\t\t", "a\tb\t\t\tc", "字\t"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert len(ours.encode("\t\t")) == 1


def test_symbols_of_the_user_do_not_part_a_text_with_a_prefix(tmp_path: Path) -> None:
    model = llama_model(user_defined_symbols=["<x>", "▁▁▁", "(a.b)"])
    theirs = reference(model)
    ours = Tokenizer.load(folder(tmp_path / "a", tokenizer__model=model))
    for text in (*ENGLISH, *ODD, "fox<x>dog (a.b)(aXb)   <x><x> quick"):
        assert ours.encode(text) == theirs.encode(text)


def test_without_bytes_what_is_unknown_is_unknown(tmp_path: Path) -> None:
    model = llama_model(byte_fallback=False, vocab_size=240)
    theirs = reference(model)
    ours = Tokenizer.load(folder(tmp_path / "a", tokenizer__model=model))
    for text in (*ENGLISH, *ODD, "日本 fox 語"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.unk_id in ours.encode("日本")


# --- SentencePiece unigram: T5, mT5 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any, Path]:
    path = tmp_path_factory.mktemp("t5")
    shutil.copy(DATA / "tokenizers/t5_spm.model", path / "spiece.model")
    return Tokenizer.load(path), reference((path / "spiece.model").read_bytes()), path


@needs_data
def test_t5_equals_sentencepiece_and_transformers(t5: tuple[Tokenizer, Any, Path], tmp_path: Path) -> None:
    ours, theirs, path = t5
    hf = transformers.T5Tokenizer.from_pretrained(path)
    assert ours.vocab_size == len(hf) == 32_100
    verdict = (DATA / "text/the-verdict.txt").read_text("utf-8")
    for text in (*ENGLISH, *GERMAN, *ODD, verdict, "ﬁne ① Ａ½ ™ e\u0301", "\u1112\u1161\u11ab한글"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.encode(text, special_tokens=True) == [*ids, 1]
        if "\u1161" not in text:  # transformers leaves Korean syllables apart that SentencePiece joins
            assert hf(text)["input_ids"] == [*ids, 1]
        assert ours.decode(ids) == theirs.decode(ids).replace("⁇", "<unk>").replace(" <unk> ", "<unk>") or 2 in ids
    text = "The <extra_id_0> walks in <extra_id_1> park<extra_id_99>."
    assert ours.encode(text, special_tokens=True) == hf(text)["input_ids"]
    assert ours.token_to_id("<extra_id_0>") == 32_099 and ours.token_to_id("<extra_id_99>") == 32_000
    pair = ours.encode_pair("premise", "hypothesis")
    assert pair.ids == hf("premise", "hypothesis")["input_ids"]
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert all(saved(text)["input_ids"] == ours.encode(text, special_tokens=True) for text in (*ENGLISH, *ODD))


@needs_data
@settings(max_examples=300, deadline=None)
@given(text=PLAIN)
@example(text="\u00a0\u0301 \u200d\u064e ﬁ ①\u0302")
def test_t5_equals_sentencepiece_on_any_normal_text(t5: tuple[Tokenizer, Any, Path], text: str) -> None:
    ours, theirs, _ = t5
    text = "".join(each for each in text if unicodedata.category(each) != "Cc" or each in "\n\t\r")
    text = unicodedata.normalize("NFKC", text)
    if "<" not in text:
        assert same(ours.encode(text), theirs.encode(text))


@needs_data
def test_marks_on_compatibility_characters_are_not_lost(t5: tuple[Tokenizer, Any, Path]) -> None:
    ours, _, _ = t5
    assert ours.decode(ours.encode("Ｅ\u0301t\u0065\u0301")) == "Été"


def test_unigram_with_bytes_and_symbols_as_mt5_has_them(tmp_path: Path) -> None:
    symbols = ["▁<extra_id_1>", "▁<extra_id_0>"]
    model = trained(
        ENGLISH + GERMAN, model_type="unigram", vocab_size=480, byte_fallback=True, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, user_defined_symbols=symbols,
    )  # fmt: skip
    theirs = reference(model)
    path = folder(tmp_path / "a", spiece__model=model, config__json={"model_type": "mt5"})
    ours = Tokenizer.load(path)
    assert ours.vocab_size == theirs.get_piece_size()
    for text in (*ENGLISH, *GERMAN, *ODD[:-1], "The <extra_id_0> fox <extra_id_1>", "日本語 <0x41>"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, special_tokens=True)[-1] == ours.eos_id == 1


TEXTS = st.text(alphabet=" abcdethquick.-日é☃12\n\t\u00a0\u3000ﬁＡ", max_size=24)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc", "nfkc_cf"])
@pytest.mark.parametrize(("prefix", "squeeze", "fallback"), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("symbols", [[], ["<x>", "aa", "▁▁"]])
def test_every_setting_of_a_model_is_followed(
    kind: str, rule: str, prefix: int, squeeze: int, fallback: int, symbols: list[str], tmp_path: Path
) -> None:
    model = trained(
        ENGLISH + GERMAN, model_type=kind, vocab_size=420, normalization_rule_name=rule, add_dummy_prefix=bool(prefix),
        remove_extra_whitespaces=bool(squeeze), byte_fallback=bool(fallback), user_defined_symbols=symbols,
    )  # fmt: skip
    ours, theirs = Tokenizer.load(folder(tmp_path / "a", tokenizer__model=model)), reference(model)

    @settings(max_examples=40, deadline=None, database=None)
    @given(text=TEXTS)
    @example(text="  x  yaaa <x>aaa   \n ")
    def check(text: str) -> None:
        assert same(ours.encode(text), theirs.encode(text))

    check()


# --- Marian -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source English, target German, ids of a vocab.json that holds the pieces of both and two target languages."""
    options = dict(model_type="unigram", vocab_size=150, normalization_rule_name="nmt_nfkc")
    source, target = trained(ENGLISH, **options), trained(GERMAN, **options)
    models = [reference(target), reference(source)]
    named = [model.id_to_piece(i) for model in models for i in range(model.get_piece_size())]
    pieces = [piece for piece in dict.fromkeys(named) if piece not in ("<unk>", "<s>", "</s>")]
    tokens = ["</s>", "<unk>", *pieces, ">>deu<<", ">>nds<<", "<pad>"]
    return folder(
        tmp_path_factory.mktemp("marian"),
        source__spm=source,
        target__spm=target,
        vocab__json={token: number for number, token in enumerate(tokens)},
        tokenizer_config__json={"source_lang": "en", "target_lang": "de", "tokenizer_class": "MarianTokenizer"},
    )


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_marian_equals_transformers(marian: Path, tmp_path: Path) -> None:
    theirs = transformers.MarianTokenizer.from_pretrained(marian)
    source, target = Tokenizer.load(marian), Tokenizer.load(marian, target=True)
    assert source.vocab_size == target.vocab_size == len(theirs)
    for text in (
        *ENGLISH,
        ">>deu<< The quick fox.",
        ">>nds<<dog",
        "Größe of ü",
        "ein ß",
        "привет, fox",
        "two  spaces \n and lines",
    ):
        assert source.encode(text, special_tokens=True) == theirs(text)["input_ids"]
    for text in GERMAN:
        ids = target.encode(text, special_tokens=True)
        assert ids == theirs(text_target=text)["input_ids"]
        assert target.decode(ids) == source.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert source.encode(GERMAN[0]) != target.encode(GERMAN[0])
    assert (source.eos_id, source.unk_id, source.pad_id) == (0, 1, len(theirs) - 1) and source.bos_id is None
    source.save(tmp_path)
    target.save(tmp_path / "target_tokenizer")
    assert Tokenizer.load(tmp_path).fingerprint == source.fingerprint
    assert Tokenizer.load(tmp_path, target=True).fingerprint == target.fingerprint


def test_where_one_tokenizer_serves_both_sides_it_is_the_target_too(tmp_path: Path) -> None:
    Tokenizer.train(ENGLISH, vocab_size=300).save(tmp_path)
    assert Tokenizer.load(tmp_path, target=True).fingerprint == Tokenizer.load(tmp_path).fingerprint


# --- special tokens, exactly once ---------------------------------------------------------------------------------


def test_what_a_text_begins_or_ends_with_is_not_added_again(llama: tuple[Tokenizer, Any, Path], tmp_path: Path) -> None:
    ours, _, path = llama
    fox = ours.encode("fox")
    assert ours.encode("<s>fox", special_tokens=True) == [1, *fox] == ours.encode("fox", special_tokens=True)
    assert ours.encode("<s>", special_tokens=True) == ours.encode("", special_tokens=True) == [1]
    # A second one that the text itself has is the text's own.
    assert ours.encode("<s><s>fox", special_tokens=True) == [1, 1, *fox]
    both = folder(tmp_path / "both", tokenizer__model=(path / "tokenizer.model").read_bytes(),
                  tokenizer_config__json={"add_eos_token": True})  # fmt: skip
    ended = Tokenizer.load(both)
    for text in ("fox", "<s>fox", "fox</s>", "<s>fox</s>"):
        assert ended.encode(text, special_tokens=True) == [1, *fox, 2]
    assert ended.encode_batch(["fox", "<s>fox</s>"], special_tokens=True) == [[1, *fox, 2]] * 2
    assert ended.encode("</s>", special_tokens=True) == [1, 2]
    assert ended.encode("", special_tokens=True) == [1, 2]


def test_pairs_have_each_special_token_once() -> None:
    tokenizer = Tokenizer.train(ENGLISH, kind="wordpiece", vocab_size=300)
    cls, sep = tokenizer.bos_id, tokenizer.eos_id
    a, b = tokenizer.encode("the fox"), tokenizer.encode("a lazy dog")
    pair = tokenizer.encode_pair("the fox", "a lazy dog")
    assert pair.ids == [cls, *a, sep, *b, sep]
    assert pair.token_types == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert pair.parts == [None, *[0] * len(a), None, *[1] * len(b), None]
    assert [b"a lazy dog"[s:e].decode() for (s, e), part in zip(pair.offsets, pair.parts) if part == 1][:1] == ["a"]
    assert tokenizer.encode_pair("[CLS]the fox", "a lazy dog[SEP]").ids == pair.ids
    assert tokenizer.encode_pair("the fox", "a lazy dog", special_tokens=False).ids == [*a, *b]
    assert tokenizer.encode_pair("", "").ids == [cls, sep, sep]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="abc ") | st.sampled_from(["[CLS]", "[SEP]", "[CLS]a", "a[SEP]", "[SEP][CLS]"]))
def test_ends_are_there_once_whatever_the_text(text: str) -> None:
    tokenizer = Tokenizer.train(["abc cab bca"], kind="wordpiece", vocab_size=40)
    ids, plain = tokenizer.encode(text, special_tokens=True), tokenizer.encode(text)
    body = plain[1:] if plain[:1] == [tokenizer.bos_id] else plain
    body = body[:-1] if body[-1:] == [tokenizer.eos_id] else body
    assert ids == [tokenizer.bos_id, *body, tokenizer.eos_id]


def test_a_rendered_chat_has_one_bos(llama: tuple[Tokenizer, Any, Path]) -> None:
    ours = Tokenizer.load(llama[2])
    ours.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' }}"
        "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    )
    rendered = render(ours, [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog"}])
    assert rendered.ids.count(1) == 1 and rendered.ids[0] == 1
    # Whoever encodes the rendered text again, as a server does, gets the same ids.
    assert ours.encode(rendered.text, special_tokens=True) == rendered.ids


def test_roles_are_known_where_a_published_folder_names_none(tmp_path: Path) -> None:
    Tokenizer.train(ENGLISH, kind="wordpiece", vocab_size=300).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    tokenizer = Tokenizer.load(tmp_path)
    assert None not in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id)
    assert tokenizer.max_length == 512


def test_the_verb_shows_tokens_of_pieces_and_pairs(
    llama: tuple[Tokenizer, Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from quatrain.cli import main

    assert main(["tokenize", str(llama[2]), "the fox", "--json"]) == 0
    assert "".join(json.loads(capsys.readouterr().out)["tokens"]) == " the fox"
    words = Tokenizer.train(ENGLISH, kind="wordpiece", vocab_size=300)
    words.save(tmp_path)
    assert main(["tokenize", str(tmp_path), "the fox", "--pair", "a dog", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    pair = words.encode_pair("the fox", "a dog")
    assert (shown["ids"], shown["token_types"]) == (pair.ids, pair.token_types)
    assert main(["tokenize", str(tmp_path), "the fox", "--pair", "a dog"]) == 0
    assert "type" in capsys.readouterr().out.splitlines()[0]


# --- wrong and broken files ---------------------------------------------------------------------------------------


def test_one_of_two_files_is_missing(tmp_path: Path) -> None:
    files = byte_level_files()
    with pytest.raises(InputError, match=r"it has vocab\.json but not merges\.txt"):
        Tokenizer.load(folder(tmp_path / "a", vocab__json=files["vocab__json"]))
    with pytest.raises(InputError, match=r"it has merges\.txt but not vocab\.json"):
        Tokenizer.load(folder(tmp_path / "b", merges__txt=files["merges__txt"]))
    with pytest.raises(InputError, match=r"target\.spm missing"):
        Tokenizer.load(folder(tmp_path / "c", source__spm=b"x", vocab__json={}))
    with pytest.raises(InputError, match=r"no tokenizer at .*spiece\.model"):
        Tokenizer.load(folder(tmp_path / "d"))
    assert not has_tokenizer(tmp_path / "d")
    assert all(has_tokenizer(tmp_path / name) for name in "ac")


def test_broken_merges_are_named_by_line(tmp_path: Path) -> None:
    files = byte_level_files()
    lines = files["merges__txt"].splitlines()
    lines[2], lines[4] = "oneword", "zz qq"
    path = folder(tmp_path / "a", vocab__json=files["vocab__json"], merges__txt="\n".join(lines))
    with pytest.raises(InputError) as caught:
        Tokenizer.load(path)
    assert "merges.txt:3: 'oneword'" in str(caught.value) and "merges.txt:5: 'zz' is not in vocab.json" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        ([1, 2], "expected a JSON object, found list"),
        ({"a": 0, "b": "1"}, "'b': id '1' is not a whole number"),
        ({"a": 0, "b": 0}, "'b': id 0 is also the id of 'a'"),
        ({"a": 0, "b": 1}, "254 of the 256 bytes have no token"),
        ("{", "not valid JSON"),
    ],
)
def test_broken_vocabularies(vocabulary: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Tokenizer.load(folder(tmp_path / "a", vocab__json=vocabulary, merges__txt="#version: 0.2\na b\n"[:14]))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nfox\ndog\nfox\n", "vocab.txt:7: 'fox' is already in line 5"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\ncaf\xe9\n", "vocab.txt:5: byte 0xe9 is not UTF-8"),
        (b"fox\ndog\n", "it has no '[CLS]'"),
        (b"", "is empty"),
    ],
)
def test_broken_word_lists(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Tokenizer.load(folder(tmp_path / "a", vocab__txt=content))
    assert words in str(caught.value)


def test_truncated_sentencepiece_files(tmp_path: Path) -> None:
    model = llama_model()
    for length in (0, 1, 100, len(model) // 2, len(model) - 40):
        path = folder(tmp_path / str(length), tokenizer__model=model[:length])
        with pytest.raises(InputError, match=r"not a (valid|complete) SentencePiece model"):
            Tokenizer.load(path)
    # Cut between two fields it is a valid message, without the settings that come last.
    from sentencepiece import sentencepiece_model_pb2

    whole = sentencepiece_model_pb2.ModelProto.FromString(model)
    whole.ClearField("trainer_spec")
    with pytest.raises(InputError, match="pieces, no settings"):
        Tokenizer.load(folder(tmp_path / "cut", tokenizer__model=whole.SerializeToString()))
    with pytest.raises(InputError, match="model_type 3"):
        Tokenizer.load(folder(tmp_path / "kind", tokenizer__model=trained(ENGLISH, model_type="word", vocab_size=30)))


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "a", tokenizer__model=llama_model())
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"pip install 'quatrain\[sentencepiece\]'"):
        Tokenizer.load(path)


def test_a_corrupted_tokenizer_json_is_not_passed_over(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", tokenizer__json='{"version": "1.0", "model": {"type": "BPE"', **byte_level_files())
    with pytest.raises(InputError, match=r"not a valid tokenizer\.json"):
        Tokenizer.load(path)


def test_added_tokens_of_another_vocabulary(tmp_path: Path) -> None:
    files = byte_level_files()
    size = len(files["vocab__json"])
    path = folder(tmp_path / "a", **files, added_tokens__json={"<|x|>": size + 7, "!": 5000})
    with pytest.raises(InputError) as caught:
        Tokenizer.load(path)
    assert len(caught.value.problems) == 2 and f"the next free id is {size}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"IQ== 0\nnot a rank\n", "x.tiktoken:2: b'not a rank' is not a token in base64"),
        (b"IQ== 0\nIg== 5\n", "x.tiktoken:2: rank 5 is out of order"),
        (b"IQ== 0\n", "255 of the 256 bytes have no rank"),
    ],
)
def test_broken_ranks(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path / "x.tiktoken")
    assert words in str(caught.value)
