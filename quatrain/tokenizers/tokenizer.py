"""Text to token ids and back, backed by Hugging Face's `tokenizers`.

A tokenizer is the public `tokenizer.json` plus `tokenizer_config.json` (special tokens, chat template), so that
transformers, llama.cpp and vLLM read what is written here, and everything of theirs is read. How one is trained is
in `quatrain.tokenizers.training`, which files one is read from in `quatrain.tokenizers.files`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding, models
from tokenizers import Tokenizer as Backend

from quatrain.core.atomic import write_json, write_text
from quatrain.core.errors import InputError
from quatrain.tokenizers.files import has_tokenizer, read, roles_by_name
from quatrain.tokenizers.templates import (
    DEFAULT,
    END_OF_TURN_TOKENS,
    TEMPLATE_FILE,
    TEMPLATE_FOLDER,
    TEMPLATE_TOKENS,
    named_templates,
    source_of,
    template_for,
)
from quatrain.tokenizers.token_config import ROLES, content_of, own_names
from quatrain.tokenizers.training import UNSET, train_backend


def once(encoding: Encoding) -> slice:
    """What to keep of an encoding, so that what a text begins or ends with already is not there twice."""
    added, ids = encoding.special_tokens_mask, encoding.ids
    own = [number for number, special in enumerate(added) if not special]
    if not own:
        return slice(None)
    start, end = own[0], own[-1] + 1
    before, after = ids[:start], ids[end:]
    doubled = bool(before) and ids[start : start + len(before)] == before and not any(added[start : 2 * start])
    # A token is counted once, as the beginning or as the end.
    rest = ids[start + len(before) * doubled : end]
    return slice(start if doubled else 0, end if after and rest[-len(after) :] == after else None)


def is_text(text: object) -> bool:
    """Whether this is a text without lone surrogates, which no tokenizer takes."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_text(text: object) -> InputError:
    """The error of something that cannot be tokenized."""
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


def unknown_characters(unknown: set[str], known: int) -> InputError:
    """The error of characters that a character tokenizer of `known` ones would lose."""
    shown = ", ".join(f"{each!r} (U+{ord(each):04X})" for each in sorted(unknown)[:8])
    return InputError(
        f"characters that this character tokenizer does not know: {shown}. It knows the {known} characters of its "
        "training text; remove them, or train a tokenizer of kind bpe, which takes any text"
    )


_BYTE = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
_CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""What transformers' `clean_up_tokenization` replaces, in its order."""
_LOOKS_BACK = max(len(before) for before, _ in _CLEANED) - 1


def is_byte_token(token: str) -> bool:
    """Whether a token's written form is that of one byte, "<0xE6>", as `tokenizers` takes it."""
    return _BYTE.fullmatch(token) is not None


def cleaned_up(text: str) -> str:
    """A text without the spaces before punctuation and English contractions, as transformers cleans it up."""
    for before, after in _CLEANED:
        text = text.replace(before, after)
    return text


def cleaned_beginning(text: str) -> str:
    """What `cleaned_up` makes of every text that begins with this one: its clean beginning.

    Each replacement begins with a space; one that is further back than the longest of them is in no open replacement.
    """
    end = len(text)
    while end and " " in text[max(end - _LOOKS_BACK, 0) : end]:
        end -= 1
    return cleaned_up(text[:end])


#: What transformers writes for "no limit known".
NO_LIMIT = int(1e30)
_INSISTS = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


@dataclass(frozen=True)
class EncodedPair:
    """Two texts as one input. All lists have one entry for each token.

    `token_types` is 0 and 1 as BERT's second embedding reads it, `parts` says whose a token is: 0 the first text's, 1
    the second's, None for what was put around them; `offsets` are [start, end) in the characters of that text.
    """

    ids: list[int]
    token_types: list[int]
    parts: list[int | None]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """Text <-> ids. Made by `Tokenizer.train` or `Tokenizer.load`; the same text gives the same ids everywhere.

    `chat_templates` are the Jinja sources of the chat formats by their names: "default", and of some models "tool_use"
    and others; `chat_template` is the default one, or None. Ids are 0 … `vocab_size` - 1.
    """

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None):
        """Wrap a `tokenizers.Tokenizer` and the content of its tokenizer_config.json (roles read off names if None)."""
        # A stored file may carry its trainer's truncation and padding; a text must come out whole.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        backend.encode_special_tokens = bool((config or {}).get("split_special_tokens"))
        self.config: dict[str, Any] = dict(config) if config is not None else roles_by_name(backend)
        self.chat_templates: dict[str, str] = named_templates(self.config.pop("chat_template", None))

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
        `chat_template` is a name of `quatrain.tokenizers.templates.TEMPLATES`, whose tokens are added, or Jinja source;
        anything else is refused.
        `split_digits` makes every digit a token of its own, so that numbers are copied digit by digit. With `spaces`
        "free" (for "bpe") the space before a capitalised word or a digit is a token of its own, so that a name is the
        same tokens in a sentence, in quotes and in code, and a small model learns much sooner to copy it.
        `lowercase` is for "wordpiece" and "word". `max_length` is written as `model_max_length`.

        Raises InputError for an unknown kind, a vocabulary too small for the kind, or texts without a character.
        """
        template = source_of(chat_template) if chat_template is not None else None
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
        config |= {"model_max_length": max_length or NO_LIMIT, "chat_template": template}
        return cls(backend, config)

    @classmethod
    def find(cls, folder: str | Path, *, target: bool = False) -> Tokenizer | None:
        """The tokenizer of a model folder, or None where the folder has no tokenizer file; `target` as for `load`."""
        return cls.load(folder, target=target) if has_tokenizer(folder) else None

    @classmethod
    def load(cls, path: str | Path, *, target: bool = False) -> Tokenizer:
        """Read a tokenizer: a model folder, or one file of it.

        Read are `tokenizer.json`, and where there is none the older files of the families: `vocab.json` with
        `merges.txt`, `vocab.txt`, SentencePiece's `tokenizer.model` and `spiece.model` (with the extra
        `sentencepiece`), Marian's `source.spm` and `target.spm` with `vocab.json`, and tiktoken's ranks. `target=True`
        gives the tokenizer of what an encoder-decoder's decoder says: Marian's second one, for all others the same.

        Raises InputError, with what is missing or broken, when it cannot be read.
        """
        return cls(*read(Path(path), target=target))

    def extended(self, tokens: Sequence[str] = (), *, chat_template: str | None = None) -> Tokenizer:
        """This tokenizer with more special tokens, which get the ids after the last, and another chat template.

        `chat_template` is as for `train`; the tokens that it needs are added too. Itself where it has all of it.
        """
        templates = self.chat_templates if chat_template is None else {DEFAULT: source_of(chat_template)}
        wanted = (*tokens, *TEMPLATE_TOKENS.get(chat_template or "", ()))
        missing = [token for token in dict.fromkeys(wanted) if self.backend.token_to_id(token) is None]
        if not missing and templates == self.chat_templates:
            return self
        backend = Backend.from_str(self._serialized)
        if missing:
            backend.add_special_tokens(missing)
        return Tokenizer(backend, {**self.config, "chat_template": templates})

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the default chat format, None where there is none. Setting it replaces all templates."""
        return self.chat_templates.get(DEFAULT)

    @chat_template.setter
    def chat_template(self, source: str | None) -> None:
        self.chat_templates = {} if source is None else {DEFAULT: source_of(source)}

    def template_for(self, name: str | None = None, *, tools: bool = False) -> str:
        """The chat template that transformers takes: the one named, "tool_use" with `tools`, or "default".

        Raises InputError where there is none.
        """
        return template_for(self.chat_templates, name, tools=tools)

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
        if set(self.chat_templates) == {DEFAULT}:
            config["chat_template"] = self.chat_templates[DEFAULT]
        elif self.chat_templates:
            config["chat_template"] = [{"name": name, "template": own} for name, own in self.chat_templates.items()]
        write_json(folder / "tokenizer_config.json", config)
        # Files of an older tokenizer in the same folder would win over what was just written.
        stale = (folder / name for name in (TEMPLATE_FILE, "special_tokens_map.json", "added_tokens.json"))
        for path in (*stale, *(folder / TEMPLATE_FOLDER).glob("*.jinja")):
            path.unlink(missing_ok=True)

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """The ids of `text`. A special token written out in the text becomes its id, as everywhere in the field.

        `special_tokens=True` adds what the tokenizer's post-processor says, such as BOS, or [CLS] and [SEP]; what the
        text itself begins or ends with already is not added a second time.
        Raises InputError for a character that a character tokenizer without unknown token never saw.
        """
        self._refuse_lost(text)
        try:
            encoding = self.backend.encode(text, add_special_tokens=special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise not_text(text) from error
        return encoding.ids[once(encoding)] if special_tokens else encoding.ids

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """The ids of several texts, on all cores; equal to `encode` of each."""
        texts = list(texts)
        for text in texts:
            self._refuse_lost(text)
        encode = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)
        try:
            found = encode(texts, add_special_tokens=special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise next((not_text(text) for text in texts if not is_text(text)), not_text(texts)) from error
        return [each.ids[once(each)] if special_tokens else each.ids for each in found]

    def encode_pair(self, text: str, other: str, *, special_tokens: bool = True) -> EncodedPair:
        """Two texts as one input, parted as the tokenizer's post-processor says: [CLS] text [SEP] other [SEP] for BERT.

        A tokenizer that puts nothing between texts (GPT-2's) gives the one after the other. Raises InputError as
        `encode` does.
        """
        for each in (text, other):
            self._refuse_lost(each)
        try:
            found = self.backend.encode(text, other, add_special_tokens=special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise next((not_text(each) for each in (text, other) if not is_text(each)), not_text(text)) from error
        kept = once(found) if special_tokens else slice(None)
        return EncodedPair(found.ids[kept], found.type_ids[kept], found.sequence_ids[kept], found.offsets[kept])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, the span [start, end) of characters of `text` that it stands for."""
        self._refuse_lost(text)
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise not_text(text) from error
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that are no whole character come out as U+FFFD.

        Where the configuration has `clean_up_tokenization_spaces`, spaces before punctuation and English contractions
        go, as in transformers (of a BPE only where it insists).
        """
        text = self.backend.decode([int(each) for each in ids], skip_special_tokens=skip_special_tokens)
        return cleaned_up(text) if self._cleans_up else text

    def settled(self, ids: Sequence[int]) -> str:
        """The beginning of the text of `ids` that no further ids change: a beginning of `decode` of them and more.

        Half a character at the end (U+FFFD) is in it all the same where the tokenizer goes by bytes alone.
        """
        end, silent = len(ids), self.byte_ids | self.special_ids
        while end and (ids[end - 1] in silent or self.backend.id_to_token(int(ids[end - 1])) is None):
            end -= 1
        text = self.backend.decode([int(each) for each in ids[:end]])
        return cleaned_beginning(text) if self._cleans_up else text

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids of tokens that are one byte each, which only a run of them makes a text; none in a byte-level BPE."""
        if "ByteFallback" not in str(self._description["decoder"]):
            return frozenset()
        return frozenset(i for token, i in self.backend.get_vocab().items() if is_byte_token(token))

    @property
    def _cleans_up(self) -> bool:
        """Whether decoding removes spaces before punctuation."""
        if not self.config.get("clean_up_tokenization_spaces"):
            return False
        return not isinstance(self.backend.model, models.BPE) or bool(self.config.get(_INSISTS))

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its written form, None where there is none."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The written form of an id (byte-level tokens in GPT-2's printable alphabet), None where there is none."""
        return self.backend.id_to_token(int(token_id))

    def token_text(self, token_id: int) -> str:
        """How a token reads by itself, for showing; a token of SentencePiece with the space that it begins with."""
        written = self.backend.id_to_token(int(token_id)) or ""
        if (self.kind == "bpe" and "▁" not in written) or token_id in self.special_ids:
            return self.decode([token_id], skip_special_tokens=False)
        return written.replace("▁", " ")

    def special_token(self, role: str) -> str | None:
        """The special token of a role: bos, eos, pad, unk, cls, sep or mask."""
        return content_of(self.config.get(f"{role}_token"))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> token, in the form that chat templates get: {"eos_token": "<|endoftext|>", …}."""
        named = {f"{role}_token": self.special_token(role) for role in ROLES}
        named |= {name: content_of(value) for name, value in own_names(self.config).items()}
        return {name: token for name, token in named.items() if token is not None}

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
        length = self.config.get("model_max_length", self.config.get("max_len"))
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
            raise unknown_characters(unknown, len(self._alphabet))

    @cached_property
    def _added(self) -> list[str]:
        return [token.content for token in self.backend.get_added_tokens_decoder().values()]

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"
