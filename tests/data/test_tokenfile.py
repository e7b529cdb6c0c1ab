"""Token files hold exactly the ids of whole texts, whatever the pieces they came in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError, QuatrainError
from quatrain.data.documents import DocumentChunk, read_chunks, read_documents
from quatrain.data.token_file import TokenFile, build
from quatrain.tokenizers.text_splits import cut, cut_pattern
from quatrain.tokenizers.tokenizer import Tokenizer

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")
TEXT = ["To be, or not to be:\n\n  that is the question…\n", "We'll sell 1234 items\tin 2024, naïve ☃. \n"] * 20
# Runs of white space become tokens of their own, so that a cut inside one would show.
SPACED = [f"a{space}b.{space}c'd{space}1{space}" * 5 for space in (
    "  ", "   ", "    ", "\n\n", "\n\n\n", " \n", "\n ", "\t\t", "\n\t", "  \n  ", "\r\n", "\r\n\r\n", "\u00a0 ",
    " \u2028",
)]  # fmt: skip
KINDS = ("bpe", "wordpiece", "unigram", "word", "char")
# White space, letters, digits, apostrophes and marks in every order: what pre-tokenizers look at.
TRICKY = st.text(alphabet=[*" \n\t\r ab1'é.☃,s", "\u00a0", "\u2028", "\x1c", "\x85"], max_size=60)
SPACY = st.lists(st.sampled_from(["a", "b", ".", ",", "1", "'d", " ", "  ", "\n", "\t", "\r\n", "\u00a0"])).map("".join)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    texts = [*TEXT, *SPACED]
    made = {kind: Tokenizer.train(texts, kind=kind, vocab_size=400) for kind in KINDS}
    return made | {"free": Tokenizer.train(texts, vocab_size=400, spaces="free")}


def llama3_like() -> Tokenizer:
    """Byte-level BPE with the pattern of Llama 3, GPT-4 and Qwen: line ends stay with the punctuation before them."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.decoder = decoders.ByteLevel()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=alphabet)
    backend.train_from_iterator([*TEXT, *SPACED, ".\n\n,\n!\r\n" * 20], trainer)
    return Tokenizer(backend)


def joined(tokenizer: Tokenizer, text: str, size: int, pieces: list[str] | None = None) -> list[int]:
    parts = list(cut(pieces if pieces is not None else [text], cut_pattern(tokenizer), size))
    assert "".join(parts) == text
    return [each for part in parts for each in tokenizer.encode(part)]


@pytest.mark.parametrize("kind", [*KINDS[:4], "llama-3", "free"])
@settings(max_examples=300, deadline=None)
@given(text=TRICKY | st.text(max_size=40) | SPACY, size=st.integers(1, 9))
@example(text="a   b", size=1)
@example(text="a\n\n\nb.\n\nc", size=1)
def test_cutting_changes_no_token(trained: dict[str, Tokenizer], kind: str, text: str, size: int) -> None:
    tokenizer = trained.setdefault(kind, llama3_like()) if kind == "llama-3" else trained[kind]
    assert cut_pattern(tokenizer) is not None
    assert joined(tokenizer, text, size) == tokenizer.encode(text)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=sorted(set("".join(TEXT))), max_size=40), size=st.integers(1, 9))
def test_cutting_characters(trained: dict[str, Tokenizer], text: str, size: int) -> None:
    assert joined(trained["char"], text, size) == trained["char"].encode(text)
    special = Tokenizer.train(TEXT, kind="char", eos="<|endoftext|>")
    text = text.replace("e", "<|endoftext|>")
    assert joined(special, text, size) == special.encode(text)


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(TRICKY, max_size=6), size=st.integers(1, 9))
def test_the_pieces_that_a_text_comes_in_do_not_matter(
    trained: dict[str, Tokenizer], pieces: list[str], size: int
) -> None:
    text = "".join(pieces)
    assert joined(trained["bpe"], text, size, pieces) == trained["bpe"].encode(text)


def test_long_texts_are_really_cut(trained: dict[str, Tokenizer]) -> None:
    for kind in KINDS:
        text = "to be or not\n" * 500
        parts = list(cut([text], cut_pattern(trained[kind]), 100))
        assert len(parts) > 40 and max(map(len, parts)) < 120, kind


def test_a_tokenizer_that_changes_beginnings_keeps_texts_whole() -> None:
    from tokenizers import AddedToken, normalizers
    from tokenizers import Tokenizer as Backend

    serialized = Tokenizer.train(TEXT, kind="unigram", vocab_size=400).backend.to_str()
    prefixed = Backend.from_str(serialized)
    prefixed.normalizer = normalizers.Prepend("▁")
    reaching = Backend.from_str(serialized)
    reaching.add_tokens([AddedToken("New York", normalized=False)])
    stripping = Backend.from_str(serialized)
    stripping.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    for backend in (prefixed, reaching, stripping):
        tokenizer = Tokenizer(backend)
        assert cut_pattern(tokenizer) is None
        text = "in New York <mask> and New York " * 9
        assert joined(tokenizer, text, 5) == tokenizer.encode(text)


def expected(tokenizer: Tokenizer, documents: list[str]) -> list[int]:
    ids: list[int] = []
    for document in documents:
        if ids and tokenizer.eos_id is not None:
            ids.append(tokenizer.eos_id)
        ids += tokenizer.encode(document)
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_ids_separators_and_starts(trained: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = trained[kind]
    documents = ["To be", "or not to be", "that", "is"]
    file = build(documents, tokenizer, tmp_path)
    assert file[:].tolist() == expected(tokenizer, documents)
    starts = file.document_starts.tolist()
    assert len(starts) == 4 and starts[0] == 0
    first = file[starts[1] :].tolist()
    assert first[: len(tokenizer.encode("or not"))] == tokenizer.encode("or not")
    assert file.vocab_size == tokenizer.vocab_size and file.fingerprint == tokenizer.fingerprint
    file.verify()
    assert TokenFile(tmp_path)[3] == file[:][3]


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(st.lists(TRICKY, min_size=1, max_size=4), min_size=1, max_size=6))
def test_pieces_make_the_documents_that_they_say(
    trained: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]]
) -> None:
    tokenizer = trained["bpe"]
    whole = ["".join(pieces) for pieces in documents]
    filled = [text for text in whole if text]
    stream: Iterator[DocumentChunk] = (
        DocumentChunk(piece, number == len(pieces) - 1) for pieces in documents for number, piece in enumerate(pieces)
    )
    folder = tmp_path_factory.mktemp("tokens")
    if not filled:
        with pytest.raises(InputError, match="no tokens to write"):
            build(stream, tokenizer, folder)
        return
    file = build(stream, tokenizer, folder)
    assert file[:].tolist() == expected(tokenizer, filled)
    assert len(file.document_starts) == len(filled)


def test_a_separator_stands_once(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = trained["bpe"]
    file = build(["a<|endoftext|>", "b", "", "c"], tokenizer, tmp_path)
    a, b, c = (tokenizer.encode(each)[0] for each in "abc")
    assert file[:].tolist() == [a, tokenizer.eos_id, b, tokenizer.eos_id, c]
    assert file.document_starts.tolist() == [0, 2, 4]
    assert build(["a", "b"], tokenizer, tmp_path, separator=None)[:].tolist() == [a, b]
    assert build(["a", "b"], tokenizer, tmp_path, separator=7)[:].tolist() == [a, 7, b]


def test_parts(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    file = build(["to be or not", "that is"] * 30, trained["bpe"], tmp_path)
    train, validation = file.split(0.1)
    assert len(train) == int(len(file) * 0.9) and len(train) + len(validation) == len(file)
    assert np.array_equal(np.concatenate([train[:], validation[:]]), file[:])
    assert validation[-1] == file[len(file) - 1] and train[:].dtype == np.int64
    inside = file.document_starts[file.document_starts >= len(train)] - len(train)
    assert np.array_equal(validation.document_starts, inside)
    half, _ = train.split(0.5)
    assert np.array_equal(half[:], file[: len(half)])
    assert len(file.split(0.0)[1]) == 0
    with pytest.raises(InputError):
        file.split(1.0)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a"], kind="char", special_tokens=[f"<{i}>" for i in range(1 << 16)])
    assert tokenizer.vocab_size == (1 << 16) + 1
    file = build([f"<{(1 << 16) - 1}>a"], tokenizer, tmp_path)
    assert file[:].tolist() == [1 << 16, 0] and file.about["dtype"] == "uint32"
    assert (tmp_path / "tokens.bin").stat().st_size == 8
    smaller = Tokenizer.train(["a"], kind="char", special_tokens=[f"<{i}>" for i in range((1 << 16) - 1)])
    file = build([f"<{(1 << 16) - 2}>a"], smaller, tmp_path)
    assert file[:].tolist() == [65535, 0] and file.about["dtype"] == "uint16"


@needs_data
@pytest.mark.parametrize("name", ["tinyshakespeare", "gutenberg:1661", "c4-sample"])
def test_real_text_is_tokenized_as_a_whole(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train((piece.text for piece in read_chunks("the-verdict")), vocab_size=600)
    seen: list[tuple[int, int]] = []
    file = build(read_chunks(name), tokenizer, tmp_path, progress=lambda *each: seen.append(each), source=name)
    documents = list(read_documents(name))
    assert file[:].tolist() == expected(tokenizer, documents)
    assert seen[-1] == (len(file), sum(map(len, documents)))
    assert file.about["source"] == name
    stored = np.fromfile(tmp_path / "tokens.bin", dtype="<u2")
    assert np.array_equal(stored, file[:])


@needs_data
def test_gpt2_counts_the_verdict(tmp_path: Path) -> None:
    assert len(build(read_chunks("the-verdict"), Tokenizer.load(DATA / "tokenizers/gpt2"), tmp_path)) == 5145


KILLED = """
import os, signal, sys
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.data.token_file import build
def documents():
    for i in range(100000):
        if i == 5000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield "another text"
build(documents(), Tokenizer.load(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_while_building_the_old_file_stays(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    trained["bpe"].save(tmp_path / "tokenizer")
    old = build(["old"], trained["bpe"], tmp_path / "tokens")[:].tolist()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "tokenizer"), str(tmp_path / "tokens")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    file = TokenFile(tmp_path / "tokens")
    file.verify()
    assert file[:].tolist() == old
    assert len(list((tmp_path / "tokens").glob(".*.partial"))) > 0
    build(["new"], trained["bpe"], tmp_path / "tokens")
    assert list((tmp_path / "tokens").glob(".*.partial")) == []


def test_a_failing_source_keeps_the_old_file(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    old = build(["old"], trained["bpe"], tmp_path)[:].tolist()

    def failing() -> Iterator[str]:
        yield "new"
        raise InputError("line 3")

    with pytest.raises(InputError, match="line 3"):
        build(failing(), trained["bpe"], tmp_path)
    assert TokenFile(tmp_path)[:].tolist() == old
    assert sorted(each.name for each in tmp_path.iterdir()) == ["documents.bin", "tokens.bin", "tokens.json"]


def test_broken_token_files_are_told(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="build it first"):
        TokenFile(tmp_path)
    build(["to be or not"], trained["bpe"], tmp_path)
    data = (tmp_path / "tokens.bin").read_bytes()
    (tmp_path / "tokens.bin").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(QuatrainError, match="differs from its checksum"):
        TokenFile(tmp_path).verify()
    (tmp_path / "tokens.bin").write_bytes(data[:-2])
    with pytest.raises(QuatrainError, match="incomplete"):
        TokenFile(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(QuatrainError, match="cannot read"):
        TokenFile(tmp_path)
    about = json.loads((tmp_path / "tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps(about | {"dtype": "object"}))
    with pytest.raises(InputError, match="does not describe a token file of this version"):
        TokenFile(tmp_path)
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        TokenFile(tmp_path)
    (tmp_path / "tokens.bin").write_bytes(data)
    (tmp_path / "tokens.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        TokenFile(tmp_path)


def test_nothing_to_write(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokens to write"):
        build([], trained["bpe"], tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_an_unwritable_place(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(QuatrainError, match="in the way"):
        build(["a"], trained["bpe"], tmp_path / "file")
