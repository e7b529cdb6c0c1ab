"""Text to token ids and back, backed by Hugging Face's `tokenizers`.

A tokenizer is saved as `tokenizer.json` and `tokenizer_config.json` (special tokens, chat template), the public format
that transformers, llama.cpp and vLLM read and write. `quatrain.tokenizers.training` trains one,
`quatrain.tokenizers.files` reads one from any published files.
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
from quatrain.core.reading import lone_surrogate
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
    """The slice of an encoding without added special tokens that the text itself already begins or ends with."""
    added, ids = encoding.special_tokens_mask, encoding.ids
    text_tokens = [number for number, special in enumerate(added) if not special]
    if not text_tokens:
        return slice(None)
    start, end = text_tokens[0], text_tokens[-1] + 1
    before, after = ids[:start], ids[end:]
    doubled = bool(before) and ids[start : start + len(before)] == before and not any(added[start : 2 * start])
    # Count a token once, as the beginning or as the end.
    rest = ids[start + len(before) * doubled : end]
    return slice(start if doubled else 0, end if after and rest[-len(after) :] == after else None)


def not_text(texts: Iterable[object]) -> InputError:
    """The error for the first of some values that cannot be tokenized: another type, or a lone surrogate."""
    for text in texts:
        if not isinstance(text, str):
            return InputError(f"only text can be tokenized, not {type(text).__name__}")
        if (fault := lone_surrogate(text)) is not None:
            return InputError(f"the text has {fault}, or read the text again with the right encoding")
    return InputError("the text could not be tokenized")


def unknown_characters(unknown: set[str], known: int) -> InputError:
    """The error for characters that a character tokenizer of `known` ones does not have."""
    first = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in sorted(unknown)[:8])
    return InputError(
        f"characters that this character tokenizer does not know: {first}. It knows the {known} characters of its "
        "training text; remove them, or train a tokenizer of kind bpe, which takes any text"
    )


_BYTE = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
_CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""The replacements of transformers' `clean_up_tokenization`, in its order."""
_LOOKS_BACK = max(len(before) for before, _ in _CLEANED) - 1


def is_byte_token(token: str) -> bool:
    """Whether a token stands for one byte, such as "<0xE6>"."""
    return _BYTE.fullmatch(token) is not None


def cleaned_up(text: str) -> str:
    """A text without spaces before punctuation and English contractions, as in transformers."""
    for before, after in _CLEANED:
        text = text.replace(before, after)
    return text


def cleaned_beginning(text: str) -> str:
    """The prefix that `cleaned_up` gives for every text that begins with this one.

    Each replacement begins with a space, so a space further back than the longest replacement is settled.
    """
    end = len(text)
    while end and " " in text[max(end - _LOOKS_BACK, 0) : end]:
        end -= 1
    return cleaned_up(text[:end])


#: What transformers writes for an unknown limit.
NO_LIMIT = int(1e30)
_INSISTS = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


@dataclass(frozen=True)
class EncodedPair:
    """Two texts as one input. All lists have one entry per token.

    `token_types` are 0 and 1, for BERT's segment embedding. `parts` is 0 for tokens of the first text, 1 for those of
    the second, None for special tokens added around them; `offsets` are [start, end) in characters of that text.
    """

    ids: list[int]
    token_types: list[int]
    parts: list[int | None]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """Text <-> token ids, from `Tokenizer.train` or `Tokenizer.load`.

    `chat_templates` are Jinja sources by name: "default", for some models also "tool_use" and others; `chat_template`
    is the default one, or None. Ids are 0 … `vocab_size` - 1.
    """

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None):
        """Wrap a `tokenizers.Tokenizer` and its tokenizer_config.json (None: infer roles from token names)."""
        # A stored file may have truncation and padding enabled; texts are always encoded whole.
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
    ) -> Tokenizer:
        """Train a tokenizer on a stream of texts, which is read once and never held whole.

        The same texts give the same tokenizer.

        - `kind`: "bpe" (byte-level, restores any text exactly; Sennrich et al. 2016, Radford et al. 2019), "wordpiece"
          (Schuster and Nakajima 2012, in BERT's layout), "unigram" (Kudo 2018, with byte fallback), "word", or "char"
          (one token per character of the texts, in code point order).
        - `vocab_size`: upper limit on all tokens, special tokens included. "char" ignores it.
        - `special_tokens`: tokens in addition to `eos` (default "<|endoftext|>", also BOS and document separator) and
          `pad` (default "<|pad|>"); None omits one. "char" has only the requested ones; "wordpiece" has BERT's [PAD],
          [UNK], [CLS], [SEP] and [MASK] instead.
        - `chat_template`: a name in `quatrain.tokenizers.templates.TEMPLATES`, whose tokens are added, or Jinja source.
        - `split_digits`: each digit is a token, so that numbers are copied digit by digit.
        - `spaces`: with "free" ("bpe" only), the space before a capitalized word or a digit is a separate token. A name
          then has the same tokens in a sentence, in quotes and in code, and small models learn to copy it sooner.
        - `lowercase`: convert the texts to lower case ("wordpiece" and "word").

        Raises InputError for an unknown kind or template, a vocabulary too small for the kind, or texts without
        characters.
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
        config |= {"model_max_length": NO_LIMIT, "chat_template": template}
        return cls(backend, config)

    @classmethod
    def find(cls, folder: str | Path, *, target: bool = False) -> Tokenizer | None:
        """The tokenizer of a model folder, or None if it has no tokenizer file; `target` as in `load`."""
        return cls.load(folder, target=target) if has_tokenizer(folder) else None

    @classmethod
    def load(cls, path: str | Path, *, target: bool = False) -> Tokenizer:
        """Read a tokenizer: a model folder, or one file of it.

        Formats are `tokenizer.json` and, without it, the older files: `vocab.json` with `merges.txt`, `vocab.txt`,
        SentencePiece's `tokenizer.model` and `spiece.model` (with the extra `sentencepiece`), Marian's `source.spm` and
        `target.spm` with `vocab.json`, and tiktoken's ranks. `target=True` gives the tokenizer for the decoder of an
        encoder-decoder: Marian has a second one, all others use the same.

        Raises InputError that names what is missing or broken.
        """
        return cls(*read(Path(path), target=target))

    def extended(self, tokens: Sequence[str] = (), *, chat_template: str | None = None) -> Tokenizer:
        """A tokenizer with added special tokens, which get the ids after the last, and another chat template.

        `chat_template` is as in `train`; the tokens that it needs are added too. Returns self if nothing changes.
        """
        templates = self.chat_templates if chat_template is None else {DEFAULT: source_of(chat_template)}
        required = (*tokens, *TEMPLATE_TOKENS.get(chat_template or "", ()))
        missing = [token for token in dict.fromkeys(required) if self.backend.token_to_id(token) is None]
        if not missing and templates == self.chat_templates:
            return self
        backend = Backend.from_str(self._serialized)
        if missing:
            backend.add_special_tokens(missing)
        return Tokenizer(backend, {**self.config, "chat_template": templates})

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the default chat template, or None. Setting it replaces all templates."""
        return self.chat_templates.get(DEFAULT)

    @chat_template.setter
    def chat_template(self, source: str | None) -> None:
        self.chat_templates = {} if source is None else {DEFAULT: source_of(source)}

    def template_for(self, name: str | None = None, *, tools: bool = False) -> str:
        """The chat template as transformers chooses it: `name`, else "tool_use" with `tools`, else "default".

        Raises InputError if there is none.
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
            config["chat_template"] = [
                {"name": name, "template": source} for name, source in self.chat_templates.items()
            ]
        write_json(folder / "tokenizer_config.json", config)
        # Files of a previous tokenizer in the folder would override the new ones.
        stale = (folder / name for name in (TEMPLATE_FILE, "special_tokens_map.json", "added_tokens.json"))
        for path in (*stale, *(folder / TEMPLATE_FOLDER).glob("*.jinja")):
            path.unlink(missing_ok=True)

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """The ids of `text`. Special tokens in the text become their ids.

        `special_tokens=True` adds the special tokens of the post-processor, such as BOS, or [CLS] and [SEP], unless the
        text already begins or ends with them. Raises InputError for a character that is not in the vocabulary of a
        character tokenizer without an unknown token.
        """
        self._refuse_lost(text)
        try:
            encoding = self.backend.encode(text, add_special_tokens=special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise not_text([text]) from error
        return encoding.ids[once(encoding)] if special_tokens else encoding.ids

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """The ids of several texts, encoded in parallel; equal to `encode` of each."""
        texts = list(texts)
        for text in texts:
            self._refuse_lost(text)
        encode = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)
        try:
            encodings = encode(texts, add_special_tokens=special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise not_text(texts) from error
        return [encoding.ids[once(encoding)] if special_tokens else encoding.ids for encoding in encodings]

    def encode_pair(self, text: str, other: str, *, special_tokens: bool = True) -> EncodedPair:
        """Two texts as one input, joined by the post-processor: [CLS] text [SEP] other [SEP] for BERT.

        A tokenizer without separator, such as GPT-2's, concatenates them. Raises InputError as `encode` does.
        """
        for each in (text, other):
            self._refuse_lost(each)
        try:
            encoding = self.backend.encode(text, other, add_special_tokens=special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise not_text((text, other)) from error
        part = once(encoding) if special_tokens else slice(None)
        return EncodedPair(
            encoding.ids[part], encoding.type_ids[part], encoding.sequence_ids[part], encoding.offsets[part]
        )

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and for each its span [start, end) of characters in `text`."""
        self._refuse_lost(text)
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise not_text([text]) from error
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that do not form a character become U+FFFD.

        With `clean_up_tokenization_spaces` in the configuration, spaces before punctuation and English contractions are
        removed as in transformers (for BPE only if a second key insists on it).
        """
        text = self.backend.decode([int(each) for each in ids], skip_special_tokens=skip_special_tokens)
        return cleaned_up(text) if self._cleans_up else text

    def settled(self, ids: Sequence[int]) -> str:
        """The prefix of the text of `ids` that further ids cannot change: a prefix of `decode(ids + more)`.

        With a byte-level tokenizer, an incomplete character at the end is included as U+FFFD.
        """
        end, silent = len(ids), self.byte_ids | self.special_ids
        while end and (ids[end - 1] in silent or self.backend.id_to_token(int(ids[end - 1])) is None):
            end -= 1
        text = self.backend.decode([int(each) for each in ids[:end]])
        return cleaned_beginning(text) if self._cleans_up else text

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids of byte-fallback tokens, which only form characters in sequence; empty for byte-level BPE."""
        if "ByteFallback" not in str(self._description["decoder"]):
            return frozenset()
        return frozenset(i for token, i in self.backend.get_vocab().items() if is_byte_token(token))

    @property
    def _cleans_up(self) -> bool:
        """Whether `decode` removes spaces before punctuation."""
        if not self.config.get("clean_up_tokenization_spaces"):
            return False
        return not isinstance(self.backend.model, models.BPE) or bool(self.config.get(_INSISTS))

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None if it is not in the vocabulary."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id (byte-level tokens in GPT-2's printable alphabet), None if there is none."""
        return self.backend.id_to_token(int(token_id))

    def token_text(self, token_id: int) -> str:
        """The text of a single token for display; SentencePiece tokens keep their leading space."""
        token = self.backend.id_to_token(int(token_id)) or ""
        if (self.kind == "bpe" and "▁" not in token) or token_id in self.special_ids:
            return self.decode([token_id], skip_special_tokens=False)
        return token.replace("▁", " ")

    def special_token(self, role: str) -> str | None:
        """The special token of a role: bos, eos, pad, unk, cls, sep or mask."""
        return content_of(self.config.get(f"{role}_token"))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> token, as chat templates receive them: {"eos_token": "<|endoftext|>", …}."""
        named = {f"{role}_token": self.special_token(role) for role in ROLES}
        named |= {name: content_of(value) for name, value in own_names(self.config).items()}
        return {name: token for name, token in named.items() if token is not None}

    def _role_id(self, *roles: str) -> int | None:
        for role in roles:
            token = self.special_token(role)
            if token is not None and (token_id := self.backend.token_to_id(token)) is not None:
                return token_id
        return None

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text: BOS, or [CLS] without BOS."""
        return self._role_id("bos", "cls")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text and separates documents: EOS, or [SEP] without EOS."""
        return self._role_id("eos", "sep")

    @property
    def pad_id(self) -> int | None:
        """The padding id."""
        return self._role_id("pad")

    @property
    def unk_id(self) -> int | None:
        """The id of the unknown token; None for byte-level tokenizers, which encode everything."""
        return self._role_id("unk")

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token for masked language modelling."""
        return self._role_id("mask")

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids after which generation stops: EOS and the known end-of-turn tokens in the vocabulary."""
        ids = (self.eos_id, *(self.backend.token_to_id(token) for token in END_OF_TURN_TOKENS))
        return frozenset(token_id for token_id in ids if token_id is not None)

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one: the number of embedding rows that the tokenizer needs."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return max(vocabulary.values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens, which `decode` skips."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @property
    def max_length(self) -> int | None:
        """The model's maximum input length in tokens; None if unknown."""
        length = self.config.get("model_max_length", self.config.get("max_len"))
        return int(length) if isinstance(length, int | float) and length < 1e15 else None

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        self.config["model_max_length"] = length or NO_LIMIT

    @cached_property
    def kind(self) -> str:
        """The algorithm: bpe, wordpiece, unigram, word or char."""
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
        """The characters of a character tokenizer without unknown token; None for all others."""
        model = self._description["model"]
        if self.kind != "char" or model.get("unk_token") or model.get("byte_fallback"):
            return None
        if self._description["pre_tokenizer"] or self._description["normalizer"]:
            return None
        return frozenset(model["vocab"])

    def _refuse_lost(self, text: str) -> None:
        """Raise InputError if encoding would drop a character."""
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
