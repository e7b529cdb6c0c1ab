"""llama.cpp as a runtime for proofs, through llama-cpp-python where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import QuatrainError


def is_installed() -> bool:
    """Whether llama-cpp-python can be imported."""
    return importlib.util.find_spec("llama_cpp") is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that llama.cpp writes to standard error, file descriptor 2."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class LlamaCpp:
    """A GGUF file in llama.cpp. Raises QuatrainError if llama.cpp cannot load it."""

    name = "llama.cpp"
    slack = 0.005  # Its GELU is a table in half precision.

    embeds = False

    def __init__(self, path: Path, context: int, *, lora: Path | None = None):
        """`lora` is the GGUF file of an adapter over the model."""
        import llama_cpp

        self._library: Any = llama_cpp
        options: dict[str, Any] = {"n_ctx": context, "logits_all": True, "verbose": False, "n_threads": 1, "seed": 0}
        options |= {} if lora is None else {"lora_path": str(lora)}
        kind = llama_cpp.GGML_TYPE_F32
        try:
            with _quiet():
                self._model: Any = llama_cpp.Llama(
                    str(path), embedding=self.embeds, type_k=kind, type_v=kind, **options
                )
        except (ValueError, AssertionError) as error:
            raise QuatrainError(f"llama.cpp cannot load {path}: {error}") from error

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text; special tokens in it become their ids."""
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def outputs(self, ids: Sequence[int]) -> Tensor | None:
        """Logits (T, V)."""
        with _quiet():
            self._model.reset()
            self._model.eval(list(ids))
        return torch.from_numpy(np.array(self._model.scores[: len(ids)], dtype=np.float32))

    def greedy(self, ids: Sequence[int], count: int) -> list[int] | None:
        """The likeliest ids."""
        found: list[int] = []
        with _quiet():
            self._model.reset()
            self._model.eval(list(ids))
            for _ in range(count):
                found.append(int(np.argmax(self._model.scores[len(ids) + len(found) - 1])))
                if len(found) < count:
                    self._model.eval(found[-1:])
        return found

    def stop_ids(self) -> frozenset[int] | None:
        """The ids that llama.cpp takes for the end of a generation."""
        vocabulary = self._library.llama_model_get_vocab(self._model.model)
        return frozenset(
            number for number in range(self._model.n_vocab()) if self._library.llama_vocab_is_eog(vocabulary, number)
        )

    def _decode(self, ids: Sequence[int], place: int) -> Tensor:
        """Logits (T, V) of further tokens, from position `place` on."""
        batch, context = self._model._batch, self._model._ctx.ctx
        batch.set_batch(list(ids), place, True)
        if code := self._library.llama_decode(context, batch.batch):
            raise QuatrainError(f"llama.cpp cannot compute this model: llama_decode returns {code}.")
        count = len(ids) * self._model.n_vocab()
        flat = np.ctypeslib.as_array(self._library.llama_get_logits(context), shape=(count,))
        return torch.from_numpy(flat.reshape(len(ids), -1).copy())

    def answer(self, messages: Sequence[dict[str, str]], count: int) -> str:
        """The greedy answer to a conversation, by the chat template of the file."""
        with _quiet():
            reply = self._model.create_chat_completion(list(messages), max_tokens=count, temperature=0.0)
        return str(reply["choices"][0]["message"]["content"])


class LlamaCppEmbedding(LlamaCpp):
    """A GGUF file of an encoder of texts in llama.cpp."""

    embeds = True

    def outputs(self, ids: Sequence[int]) -> Tensor | None:
        """The vector of a text, of length 1."""
        batch, context = self._model._batch, self._model._ctx.ctx
        with _quiet():
            batch.set_batch(list(ids), 0, True)
            if code := self._library.llama_decode(context, batch.batch):
                raise QuatrainError(f"llama.cpp cannot compute this model: llama_decode returns {code}.")
        vector = self._library.llama_get_embeddings_seq(context, 0)
        return torch.nn.functional.normalize(torch.tensor(vector[: self._model.n_embd()]), dim=0)


class LlamaCppSeq2seq(LlamaCpp):
    """A GGUF file of an encoder-decoder in llama.cpp."""

    def _encode(self, ids: Sequence[int]) -> int:
        """Reads the encoder's text; returns the token with which the decoder starts."""
        batch, context = self._model._batch, self._model._ctx.ctx
        self._model._ctx.kv_cache_clear()
        batch.set_batch(list(ids), 0, True)
        if code := self._library.llama_encode(context, batch.batch):
            raise QuatrainError(f"llama.cpp cannot compute this model: llama_encode returns {code}.")
        return max(0, int(self._library.llama_model_decoder_start_token(self._model.model)))

    def outputs(self, ids: Sequence[int]) -> Tensor | None:
        """Logits (T, V) of the decoder, which reads the first half of the text again."""
        with _quiet():
            start = self._encode(ids)
            return self._decode([start, *ids[: len(ids) // 2]], 0)

    def greedy(self, ids: Sequence[int], count: int) -> list[int] | None:
        """The likeliest ids of the decoder."""
        found: list[int] = []
        with _quiet():
            last = self._encode(ids)
            for place in range(count):
                last = int(self._decode([last], place)[-1].argmax())
                found.append(last)
        return found
