"""Text to token ids and back, backed by Hugging Face's `tokenizers`.

A tokenizer is the public `tokenizer.json` plus `tokenizer_config.json` (special tokens, chat template), so that
transformers, llama.cpp and vLLM read what is written here, and everything of theirs is read. How one is trained is
in `quatrain.text.tokenizer_training`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from quatrain.atomic import write_json, write_text
from quatrain.errors import InputError
from quatrain.text.templates import END_OF_TURN_TOKENS, TEMPLATES
from quatrain.text.tokenizer_training import UNSET, train_backend

#: What transformers writes for "no limit known".
NO_LIMIT = int(1e30)

_ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
#: Where no tokenizer_config.json says it, the role of a special token is read off its public name.
_USUAL_NAMES = {
    "bos": ("<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>"),
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    "pad": ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
    "unk": ("<unk>", "<|unk|>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}


class Tokenizer:
    """Text <-> ids. Made by `Tokenizer.train` or `Tokenizer.load`; the same text gives the same ids everywhere.

    `chat_template` is the Jinja source of the chat format, or None. Ids are 0 … `vocab_size` - 1.
    """

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None):
        """Wrap a `tokenizers.Tokenizer` and the content of its tokenizer_config.json (roles read off names if None)."""
        # A stored file may carry its trainer's truncation and padding; a text must come out whole.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.config: dict[str, Any] = dict(config) if config is not None else _roles_by_name(backend)
        template = self.config.pop("chat_template", None)
        self.chat_template: str | None = _default_template(template)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        kind: str = "bpe",
        vocab_size: int = 8192,
        special_tokens: Sequence[str] = (),
        chat_template: str | None = None,
        eos: str | None = UNSET,
        pad: str | None = UNSET,
        split_digits: bool = True,
        spaces: str = "attached",
        lowercase: bool = False,
        max_length: int | None = None,
    ) -> Tokenizer:
        """Learn a tokenizer from a stream of texts (read once, never held whole). The same texts give the same one.

        `kind`: "bpe" (byte-level, any text round-trips exactly; Sennrich et al. 2016, Radford et al. 2019),
        "wordpiece" (Schuster and Nakajima 2012, BERT's layout), "unigram" (Kudo 2018, with bytes for what is unknown),
        "word", or "char" (every character of the texts is a token, in code point order).
        `vocab_size` counts everything, special tokens too; it is an upper limit, and "char" ignores it.
        `special_tokens` come on top of `eos` (default "<|endoftext|>", which is also BOS and parts documents) and
        `pad` (default "<|pad|>"); None leaves one out. "char" has only those that are asked for, "wordpiece" has
        BERT's [PAD] [UNK] [CLS] [SEP] [MASK] instead.
        `chat_template` is a name of `quatrain.text.templates.TEMPLATES`, whose tokens are added, or Jinja source.
        `split_digits` makes every digit a token of its own, so that numbers are copied digit by digit. With `spaces`
        "free" (for "bpe") the space before a capitalised word or a digit is a token of its own, so that a name is the
        same tokens in a sentence, in quotes and in code, and a small model learns much sooner to copy it.
        `lowercase` is for "wordpiece" and "word". `max_length` is written as `model_max_length`.

        Raises InputError for an unknown kind, a vocabulary too small for the kind, or texts without a character.
        """
        backend, config = train_backend(
            texts,
            kind=kind,
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            chat_template=chat_template,
            eos=eos,
            pad=pad,
            split_digits=split_digits,
            spaces=spaces,
            lowercase=lowercase,
        )
        template = TEMPLATES.get(chat_template, chat_template) if chat_template is not None else None
        config |= {"model_max_length": max_length or NO_LIMIT, "chat_template": template}
        return cls(backend, config)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer: a folder with `tokenizer.json`, that file itself, or a folder of GPT-2's (`vocab.json`,
        `merges.txt`) or BERT's (`vocab.txt`) older files.

        Raises InputError, with what is missing or broken, when it cannot be read.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        file = folder / "tokenizer.json" if path.is_dir() else path
        if not file.exists():
            backend = _older_layout(folder) if path.is_dir() else None
            if backend is None:
                raise InputError(f"no tokenizer at {path}: expected a tokenizer.json or a folder that holds one")
        else:
            backend = _read_backend(file)
        return cls(backend, _read_config(folder))

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into `folder`, as transformers reads them."""
        folder = Path(folder)
        write_text(folder / "tokenizer.json", self._serialized)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": NO_LIMIT,
            **self.config,
        }
        config.pop("added_tokens_decoder", None)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        write_json(folder / "tokenizer_config.json", config)
        # A template file of an older tokenizer in the same folder would win over the one just written.
        (folder / "chat_template.jinja").unlink(missing_ok=True)

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """The ids of `text`. A special token written out in the text becomes its id, as everywhere in the field.

        `special_tokens=True` adds what the tokenizer's post-processor says, such as BOS, or [CLS] and [SEP].
        Raises InputError for a character that a character tokenizer without unknown token never saw.
        """
        self._refuse_lost(text)
        try:
            return self.backend.encode(text, add_special_tokens=special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(text) from error

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """The ids of several texts, on all cores; equal to `encode` of each."""
        texts = list(texts)
        for text in texts:
            self._refuse_lost(text)
        encode = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)
        try:
            return [each.ids for each in encode(texts, add_special_tokens=special_tokens)]
        except (TypeError, UnicodeEncodeError) as error:
            raise next((_not_text(text) for text in texts if not _is_text(text)), _not_text(texts)) from error

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, the span [start, end) of characters of `text` that it stands for."""
        self._refuse_lost(text)
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(text) from error
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that are no whole character come out as U+FFFD."""
        return self.backend.decode([int(each) for each in ids], skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its written form, None where there is none."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The written form of an id (byte-level tokens in GPT-2's printable alphabet), None where there is none."""
        return self.backend.id_to_token(int(token_id))

    def special_token(self, role: str) -> str | None:
        """The special token of a role: bos, eos, pad, unk, cls, sep or mask."""
        return _content(self.config.get(f"{role}_token"))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Role -> token, in the form that chat templates get: {"eos_token": "<|endoftext|>", …}."""
        named = {f"{role}_token": self.special_token(role) for role in _ROLES}
        return {role: token for role, token in named.items() if token is not None}

    def _role_id(self, *roles: str) -> int | None:
        for role in roles:
            token = self.special_token(role)
            if token is not None and (found := self.backend.token_to_id(token)) is not None:
                return found
        return None

    @property
    def bos_id(self) -> int | None:
        """Begins a text: BOS, or [CLS] where there is no BOS."""
        return self._role_id("bos", "cls")

    @property
    def eos_id(self) -> int | None:
        """Ends a text and parts documents: EOS, or [SEP] where there is no EOS."""
        return self._role_id("eos", "sep")

    @property
    def pad_id(self) -> int | None:
        """Fills a batch up."""
        return self._role_id("pad")

    @property
    def unk_id(self) -> int | None:
        """Stands for what the vocabulary lacks; None for byte-level tokenizers, which lack nothing."""
        return self._role_id("unk")

    @property
    def mask_id(self) -> int | None:
        """Hides a token in masked language modelling."""
        return self._role_id("mask")

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids after which generation stops: EOS and the end-of-turn tokens of the chat formats, as far as known."""
        found = {self.eos_id, *(self.backend.token_to_id(token) for token in END_OF_TURN_TOKENS)}
        return frozenset(each for each in found if each is not None)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows that an embedding needs."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return max(vocabulary.values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens; `decode` leaves them out."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @property
    def max_length(self) -> int | None:
        """The longest text in tokens that the model takes; None where it is not known."""
        length = self.config.get("model_max_length")
        return int(length) if isinstance(length, int | float) and length < 1e15 else None

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        self.config["model_max_length"] = length or NO_LIMIT

    @cached_property
    def kind(self) -> str:
        """bpe, wordpiece, unigram, word or char, read off the tokenizer itself."""
        model = self._description["model"]
        if model["type"] == "BPE" and not model["merges"]:
            return "char"
        return {"BPE": "bpe", "WordPiece": "wordpiece", "Unigram": "unigram", "WordLevel": "word"}[model["type"]]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokenizer.json as `save` writes it: equal fingerprints give equal ids."""
        return hashlib.sha256(self._serialized.encode()).hexdigest()

    @cached_property
    def _serialized(self) -> str:
        return self.backend.to_str(pretty=True)

    @cached_property
    def _description(self) -> dict[str, Any]:
        return json.loads(self._serialized)

    @cached_property
    def _alphabet(self) -> frozenset[str] | None:
        """The characters of a character tokenizer that has nothing to put for an unknown one; None for all others."""
        model = self._description["model"]
        if self.kind != "char" or model.get("unk_token") or model.get("byte_fallback"):
            return None
        if self._description["pre_tokenizer"] or self._description["normalizer"]:
            return None
        return frozenset(model["vocab"])

    def _refuse_lost(self, text: str) -> None:
        """Raise where a character would vanish without a trace."""
        if self._alphabet is None or not isinstance(text, str):
            return
        if unknown := set(text) - self._alphabet:
            written_out = "".join(sorted(set("".join(self._added))))
            unknown -= set(written_out) if any(token in text for token in self._added) else set()
        if unknown:
            shown = ", ".join(f"{each!r} (U+{ord(each):04X})" for each in sorted(unknown)[:8])
            raise InputError(
                f"characters that this character tokenizer does not know: {shown}. It knows the {len(self._alphabet)} "
                "characters of its training text; remove them, or train a tokenizer of kind bpe, which takes any text"
            )

    @cached_property
    def _added(self) -> list[str]:
        return [token.content for token in self.backend.get_added_tokens_decoder().values()]

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"


def _is_text(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_text(text: object) -> InputError:
    if not isinstance(text, str):
        return InputError(f"only text can be tokenized, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return InputError(
            f"the text holds half of a character (a lone surrogate, U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; remove it or read the text again with the right encoding"
        )
    return InputError("the text could not be tokenized")


def _content(token: object) -> str | None:
    """A special token as tokenizer_config.json writes it: the text, or an object with its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _default_template(template: object) -> str | None:
    """The chat template of a tokenizer_config.json: a text, or a list of named ones with a default among them."""
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None


def _roles_by_name(backend: Backend) -> dict[str, Any]:
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    found = {role: next((name for name in names if name in special), None) for role, names in _USUAL_NAMES.items()}
    return {f"{role}_token": name for role, name in found.items() if name is not None}


def _read_backend(file: Path) -> Backend:
    try:
        return Backend.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception for whatever is wrong with the file
        raise InputError(f"cannot read the tokenizer {file}: {error}. It is not a whole tokenizer.json") from error


def _read_config(folder: Path) -> dict[str, Any] | None:
    """tokenizer_config.json with the roles of special_tokens_map.json and the chat template of its own file added."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if not file.exists():
            continue
        try:
            read = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"cannot read {file}: not valid JSON ({error})") from error
        if not isinstance(read, dict):
            raise InputError(f"cannot read {file}: expected a JSON object, found {type(read).__name__}")
        config |= read
    template = folder / "chat_template.jinja"
    if template.exists():
        config["chat_template"] = template.read_text("utf-8")
    return config or None


def _older_layout(folder: Path) -> Backend | None:
    """A tokenizer from GPT-2's or BERT's files of before tokenizer.json."""
    from tokenizers import decoders, models, pre_tokenizers, processors
    from tokenizers.implementations import BertWordPieceTokenizer

    vocabulary, merges, words = folder / "vocab.json", folder / "merges.txt", folder / "vocab.txt"
    try:
        if vocabulary.exists() and merges.exists():
            backend = Backend(models.BPE.from_file(str(vocabulary), str(merges)))
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
            backend.post_processor = processors.ByteLevel(trim_offsets=False)
            if backend.token_to_id("<|endoftext|>") is not None:
                backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
            return backend
        if words.exists():
            lowercase = "A" not in words.read_text("utf-8").split("\n")
            return Backend.from_str(BertWordPieceTokenizer(str(words), lowercase=lowercase).to_str())
    except Exception as error:  # as in _read_backend
        raise InputError(f"cannot read the tokenizer files in {folder}: {error}") from error
    return None
