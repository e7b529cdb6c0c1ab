"""Tokens beside tokenizer.json have transformers' ids, order and flags, whatever mixture of files names them."""

from __future__ import annotations

import ast
import inspect
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.tokenizers.token_config import DEFAULT_ROLES, ROLES
from quatrain.tokenizers.tokenizer import Tokenizer

HONOURED = frozenset(
    {
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
        *("added_tokens_decoder", "chat_template", "tokenizer_class", "model_max_length", "max_len"),
        *("clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"),
        *("split_special_tokens", "add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
        *("add_bos_token", "add_eos_token", "extra_ids", "legacy", "source_lang", "target_lang"),
        *("prefix_token", "middle_token", "suffix_token", "eot_token", "fill_token"),
    }
)
"""Read and followed. `add_bos_token`, `add_eos_token`, `extra_ids` and `legacy` say how older files are read; beside a
tokenizer.json its own post-processor decides, as in transformers."""

_FILES = "names a file; the files of the folder itself are read"
_LOADING = "an argument of transformers' loading, not of the tokenizer"
_CUTTING = "texts are encoded whole; what cuts or pads them has its own settings and says so"
HARMLESS: dict[str, str] = {
    **dict.fromkeys(("vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file"), _FILES),
    **dict.fromkeys(
        ("normalizer_file", "vocab", "merges", "source_spm", "target_spm", "target_vocab_file", "gguf_file"), _FILES
    ),
    **dict.fromkeys(("max_length", "stride", "truncation", "truncation_side", "truncation_strategy"), _CUTTING),
    **dict.fromkeys(("padding", "padding_side", "pad_to_multiple_of", "pad_token_type_id"), _CUTTING),
    **dict.fromkeys(
        ("max_target_length", "tokenizer_padding", "tokenizer_truncation", "_json_padding", "_json_truncation"),
        _CUTTING,
    ),
    **dict.fromkeys(("name_or_path", "is_local", "local_files_only", "revision", "subfolder", "token"), _LOADING),
    **dict.fromkeys(("cache_dir", "force_download", "proxies", "repo_id", "commit_message"), _LOADING),
    **dict.fromkeys(("_commit_hash", "_from_auto", "_from_pipeline", "save_jinja_files", "verbose"), _LOADING),
    **dict.fromkeys(("backend", "files_loaded", "init_inputs", "tokenizer_object", "tokenizer"), _LOADING),
    **dict.fromkeys(("_spm_precompiled_charsmap", "post_processor", "unk_id"), "read from the tokenizer's file itself"),
    **dict.fromkeys(("sp_model_kwargs", "separate_vocabs"), "sampling of SentencePiece is off; its file says the rest"),
    "errors": "bytes that are no character come out as U+FFFD, as from transformers' backend, which does not ask it",
    "auto_map": "code of others is never run; the tokenizer's file says how text is cut",
    "model_input_names": "names of arguments of transformers' models",
    "processor_class": "of models that read pictures or sound",
    "return_token_type_ids": "whether transformers returns a second list; ids are the same",
    "use_source_tokenizer": "an argument of transformers' decode",
    "sanitize_control_tokens": "an argument of transformers' apply_chat_template",
    "chat_control_tokens": "used by transformers only where a caller asks to sanitize a chat",
    "response_template": "describes how an answer is parsed, not its ids",
    "response_schema": "describes how an answer is parsed, not its ids",
    "trim_offsets": "offsets are those of the tokenizer's own post-processor",
    "use_default_system_prompt": "transformers keeps it and does not use it; the chat template decides",
    "fix_mistral_regex": "how words are cut stands in tokenizer.json and is taken from there",
    "language": "Whisper's prompt, which its processor sets for speech",
    "task": "Whisper's prompt, which its processor sets for speech",
    "predict_timestamps": "Whisper's prompt, which its processor sets for speech",
    "transformers_version": "who wrote the file",
}
"""What changes neither ids nor texts here, and why."""

transformers = pytest.importorskip("transformers")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
NAMES = ["</s>", "<s>", "[PAD]", "<tool>", "<img>", "world", "<|endoftext|>", "<|pad|>", " tool ", "é日"]
TEXT = "<tool> hello</s>  world <img>x[PAD]worldly<s> é日 <|pad|> tool <tool><|endoftext|>"


def write(folder: Path, **files: Any) -> None:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Tokenizer.train(["hello world, hello tool"] * 5, vocab_size=300).save(folder)
    return folder


def same(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, once it is seen to be transformers'."""
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = Tokenizer.load(folder)
    described = [
        {number: (token.content, *(getattr(token, flag) for flag in FLAGS)) for number, token in tokens.items()}
        for tokens in (ours.backend.get_added_tokens_decoder(), theirs.added_tokens_decoder)
    ]
    assert described[0] == described[1]
    assert len(ours) == len(theirs)
    for role in ROLES:
        token = ours.special_token(role)
        assert token == getattr(theirs, f"{role}_token"), role
        assert token is None or ours.token_to_id(token) == getattr(theirs, f"{role}_token_id"), role
    ids = ours.encode(TEXT)
    assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    return ours


tokens = st.sampled_from(NAMES)
flags = st.fixed_dictionaries({}, optional=dict.fromkeys(FLAGS, st.booleans()))
objects = st.builds(lambda content, given: {"__type": "AddedToken", "content": content} | given, tokens, flags)
role_keys = [f"{role}_token" for role in ROLES]
lists = st.lists(tokens, max_size=3, unique=True)
configs = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(role_keys, tokens | objects),
        "image_token": tokens,
        "additional_special_tokens": lists,
        "extra_special_tokens": lists | st.dictionaries(st.sampled_from(["a_token", "b"]), tokens, max_size=2),
        "added_tokens_decoder": st.dictionaries(
            st.integers(262, 300).map(str),
            st.builds(lambda content, given: {"content": content} | given, tokens, flags),
            max_size=3,
        ),
        "split_special_tokens": st.booleans(),
        "clean_up_tokenization_spaces": st.booleans(),
    },
)
maps = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(role_keys, tokens | st.builds(lambda c, g: {"content": c} | g, tokens, flags)),
        "additional_special_tokens": lists,
    },
)
added = st.dictionaries(tokens, st.integers(262, 300), max_size=3).filter(lambda v: len({*v.values()}) == len(v))


@given(config=configs, roles=st.none() | maps, numbered=st.none() | added)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mixture_equals_transformers(
    base: Path, tmp_path_factory: pytest.TempPathFactory, config: Any, roles: Any, numbered: Any
) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    write(folder, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"} | config)
    if roles is not None:
        write(folder, special_tokens_map=roles)
    if numbered is not None:
        write(folder, added_tokens=numbered)
    ours = same(folder)
    again = tmp_path_factory.mktemp("again")
    write(again, special_tokens_map={"eos_token": "<stale>"}, added_tokens={"<stale>": 400})
    ours.save(again)
    assert same(again).fingerprint == ours.fingerprint


def known_keys() -> set[str]:
    """Every key that transformers' tokenizers take, from their code and signatures."""
    found: set[str] = set()
    for module in (transformers.tokenization_utils_base, transformers.tokenization_utils_tokenizers):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if not is_call or node.func.attr not in ("pop", "get", "setdefault") or not node.args:
                continue
            if ast.unparse(node.func.value) in ("kwargs", "init_kwargs", "local_kwargs"):
                found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    for name in DEFAULT_ROLES:
        found |= inspect.signature(getattr(transformers, name).__init__).parameters.keys()
    return found - {"self", "args", "kwargs"}


def test_every_key_that_transformers_knows_is_honoured_or_said_to_be_harmless() -> None:
    assert {key for key in known_keys() if key not in HONOURED and key not in HARMLESS} == set()
    assert not HONOURED & HARMLESS.keys() and all(HARMLESS.values())


def test_roles_of_classes_are_transformers() -> None:
    for name, roles in DEFAULT_ROLES.items():
        parameters: dict[str, Any] = {}
        for each in reversed(getattr(transformers, name).__mro__):
            if "__init__" in vars(each):
                parameters |= inspect.signature(each.__init__).parameters
        theirs = {f"{role}_token": parameters.get(f"{role}_token") for role in ROLES}
        assert roles == {
            role: each.default for role, each in theirs.items() if each is not None and isinstance(each.default, str)
        }, name


@pytest.mark.parametrize(("key", "value"), [("do_lower_case", False), ("do_lower_case", True), ("strip_accents", True)])
def test_bert_settings_beside_tokenizer_json_hold(key: str, value: bool, tmp_path: Path) -> None:
    Tokenizer.train(["Hello wörld, hello"] * 5, kind="wordpiece", vocab_size=100, split_digits=False).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path, tokenizer_config=config | {"tokenizer_class": "BertTokenizer", "do_lower_case": False, key: value})
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ("Hello WÖRLD!", "hello wörld ."):
        assert ours.encode(text, special_tokens=True) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize("value", [True, False])
def test_a_prefix_space_beside_tokenizer_json_holds(value: bool, tmp_path: Path) -> None:
    data = Path(os.environ.get("QUATRAIN_DATA", "")) / "tokenizers/gpt2"
    if not data.is_dir():
        pytest.skip("needs QUATRAIN_DATA")
    Tokenizer.load(data).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path, tokenizer_config=config | {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": value})
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert Tokenizer.load(tmp_path).encode("Hello world") == theirs("Hello world")["input_ids"]


def test_ids_that_files_write_otherwise_are_said(base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    write(tmp_path, added_tokens={"<x>": 900})
    with pytest.warns(UserWarning, match="'<x>' should have id 900 and has id 27"):
        Tokenizer.load(tmp_path)


WRONG = [None, True, -1, 0, 10**30, float("nan"), 1.5, "x", "", [], [1], [None], [[]], {}, {"a": 1}, {"content": 3}]
KEYS = [*role_keys, "image_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder",
        "model_max_length", "padding_side", "clean_up_tokenization_spaces", "split_special_tokens", "chat_template",
        "tokenizer_class", "add_prefix_space", "do_lower_case", "strip_accents", "extra_ids"]  # fmt: skip


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens"])
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "BertTokenizer"])
def test_wrong_types_are_refused_or_mean_nothing(name: str, tokenizer_class: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    write(tmp_path, tokenizer_config={"tokenizer_class": tokenizer_class})
    for key in KEYS:
        for value in WRONG:
            whole = {"tokenizer_class": tokenizer_class} if name == "tokenizer_config" else {}
            write(tmp_path, **{name: whole | {key: value}})
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tokenizer = Tokenizer.load(tmp_path)
                assert isinstance(tokenizer.encode("hello <tool>"), list) and isinstance(tokenizer.decode([1, 2]), str)
                assert tokenizer.max_length is None or tokenizer.max_length >= 1
                tokenizer.save(tmp_path / "again")
            except InputError as error:
                assert key in str(error) or shown_in(value, str(error)), (key, value, error)


def shown_in(value: Any, message: str) -> bool:
    return "a token" in message or str(value)[:10] in message or "chat" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"a": ' * 10_000, b"[" * 10_000, b'{"a": 1}\0', "é".encode("latin-1"), b"\xff\xfe\0",
     b'{"model_max_length": 1' + b"0" * 5000 + b"}", b'{"pad_token": NaN}', b'{"a": "\\ud800"}'],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens", "tokenizer"])
def test_broken_files_are_one_error(name: str, content: bytes, base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    (tmp_path / f"{name}.json").write_bytes(content)
    with pytest.raises(InputError, match=name):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                                  "tokenizer.json", "chat_template.jinja"])  # fmt: skip
def test_a_folder_a_pipe_or_a_broken_link_is_not_passed_over(name: str, base: Path, tmp_path: Path) -> None:
    links = (lambda p: p.symlink_to(p), lambda p: p.symlink_to("no"))
    for number, put in enumerate((lambda p: p.mkdir(), os.mkfifo, *links)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
        (folder / name).unlink(missing_ok=True)
        put(folder / name)
        with pytest.raises(InputError):
            Tokenizer.load(folder)


def test_a_byte_order_mark_is_no_fault(base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + (base / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(b'\xef\xbb\xbf{"eos_token": "</s>"}')
    assert Tokenizer.load(tmp_path).special_token("eos") == "</s>"


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "source.spm"])
def test_older_files_of_another_kind_do_not_hang(name: str, tmp_path: Path) -> None:
    links = (lambda p: p.symlink_to(p), lambda p: p.symlink_to("/dev/zero"))
    for number, put in enumerate((lambda p: p.mkdir(), os.mkfifo, *links)):
        folder = tmp_path / str(number)
        folder.mkdir()
        put(folder / name)
        with pytest.raises(InputError):
            Tokenizer.load(folder)


def changed(whole: Any, data: st.DataObject) -> Any:
    """A copy of a JSON value with one place of it changed to something else."""
    copy = json.loads(json.dumps(whole))
    place, at = None, copy
    for _ in range(data.draw(st.integers(1, 4))):
        if not isinstance(at, dict | list) or not at:
            break
        place = (at, data.draw(st.sampled_from(list(at)[:30] if isinstance(at, dict) else range(min(len(at), 5)))))
        at = at[place[1]]
    assert place is not None
    place[0][place[1]] = data.draw(st.sampled_from([*WRONG, "\0", 2**32 - 1, 2**31]))
    return copy


@given(data=st.data(), kind=st.sampled_from(["bpe", "unigram", "wordpiece", "word"]))
@settings(max_examples=80, deadline=None)
def test_a_changed_tokenizer_json_is_read_or_refused(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = {"unigram": 400, "word": 30}.get(kind, 300)
    whole = json.loads(Tokenizer.train(["the cat sat é日"] * 9, kind=kind, vocab_size=size).backend.to_str())
    folder = tmp_path_factory.mktemp("changed")
    write(folder, tokenizer=changed(whole, data))
    try:
        tokenizer = Tokenizer.load(folder)
    except InputError:
        return
    assert isinstance(tokenizer.encode("the cat é日 <x>", special_tokens=True), list)
    assert isinstance(tokenizer.decode(range(20)), str) and isinstance(tokenizer.settled([1, 2]), str)
    assert tokenizer.kind and tokenizer.fingerprint and tokenizer.vocab_size >= 0
