"""What a suite asks of a model: how likely a text is, a text of its own, its predictions.

`Subject` is the contract; `LocalSubject` is a model of this machine on the engine. A subject that cannot answer a kind
of question says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.core.reading import sha256_of
from quatrain.evaluation.metrics.objectives import predictions_of
from quatrain.generation.endpoint import Endpoint, is_endpoint
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.loading.model import ResolvedModel, load_model
from quatrain.tasks.task import Task

Prompt = str | Sequence[Mapping[str, Any]]
"""A text that the model continues, or a chat that it answers."""
LENGTH_NAMED = 3
"""Prompts that do not fit that an error names."""


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of a text in nats, its number of tokens, and whether greedy decoding would write it."""

    total: float
    tokens: int
    is_greedy: bool = False


@dataclass(frozen=True)
class Writing:
    """A text that the model wrote, and its number of tokens. `finished`: it ended before the limit."""

    text: str
    tokens: int
    finished: bool = True


class Subject(Protocol):
    """A model that is evaluated."""

    name: str

    @property
    def has_chat(self) -> bool:
        """Whether the model has a chat template."""

    @property
    def head_task(self) -> str | None:
        """The task of records that the model has a head for, by its name in recipes; None for a model of text."""

    @property
    def reads_sources(self) -> bool:
        """Whether the model was trained on sources alone (an encoder-decoder), so that a prompt has no instruction."""

    def description(self) -> dict[str, Any]:
        """What identifies the model in a passport: folder or address, hashes, data types."""

    def likelihoods(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Likelihood]:
        """How likely each completion is after its prompt."""

    def read(self, texts: Sequence[str], context: int | None = None) -> list[Likelihood]:
        """How likely each text is from its beginning, in windows of `context` tokens."""

    def write(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[Writing]:
        """A completion of each prompt."""

    def predict(self, task: str, rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The predictions of a model with a task's head, and the references as it reads them."""

    def complete(
        self, task: Task[Any], examples: Sequence[Any], params: SamplingParams, *, as_text: bool = False
    ) -> list[Writing]:
        """A completion of each example of a task, chosen as the task does; `as_text` continues its text prompt."""

    def embed(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        """A vector of each text (N, D)."""

    def check(self, prompts: Sequence[Prompt], completions: Sequence[str], new_tokens: int) -> None:
        """Raises InputError, before anything is computed, for prompts that do not fit with what follows them."""

    def size(self) -> dict[str, float]:
        """What the model takes: parameters, bytes of weights in memory and in files; empty where that is unknown."""


class LocalSubject:
    """A model folder, run or hub id on the engine, or a model and tokenizer that are loaded already."""

    def __init__(
        self,
        model: str | Path | Engine,
        *,
        quantize: str | None = None,
        batch_size: int = 64,
        name: str | None = None,
    ):
        self.batch_size, self.quantize = batch_size, quantize
        self.resolved: ResolvedModel | None = None
        if isinstance(model, Engine):
            self.network, self.name = model.model, name or "model"
            self.tokenizer: Any = model.tokenizer
            self.engine = model
            return
        self.resolved = ResolvedModel.of(model)
        self.name = name or (str(model) + (f" ({quantize})" if quantize else ""))
        self.network, self.tokenizer = load_model(self.resolved, quantize=quantize)
        if self.tokenizer is None:
            raise InputError(f"{model} has no tokenizer: a text cannot be measured without its tokens")

    @cached_property
    def engine(self) -> Engine:
        """The engine. Raises InputError for a head that does not predict tokens."""
        if self.network.config.head not in ("causal", "seq2seq"):
            raise InputError(
                f"{self.name} has the head {self.network.config.head}, which writes no text. Suites for it are those "
                "of records: classification, tagging, qa."
            )
        if self.resolved is None:
            return Engine(self.network, self.tokenizer)
        return Engine.of(self.network, self.tokenizer, self.resolved)

    @property
    def head_task(self) -> str | None:
        from quatrain.tasks.kinds import OF_HEAD

        head = self.network.config.head
        return OF_HEAD[head].name if head in OF_HEAD and head != "seq2seq" else None

    @property
    def reads_sources(self) -> bool:
        return bool(self.network.config.architecture == "encoder-decoder")

    @property
    def has_chat(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_templates", None))

    def description(self) -> dict[str, Any]:
        config = self.network.config
        known: dict[str, Any] = {"model": self.name, "family": config.family, "head": config.head}
        # A model of counts has no parameters, only tables.
        tensors = (*self.network.parameters(), *self.network.buffers())
        dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
        known |= {"dtype": str(dtype).removeprefix("torch."), "device": str(self.network.device.type)}
        if self.quantize:
            known["quantize"] = self.quantize
        if (tokens := getattr(self.tokenizer, "fingerprint", None)) is not None:
            known["tokenizer_sha256"] = tokens
        if self.resolved is not None:
            known["folder"] = str(self.resolved.folder)
            known["files_sha256"] = weight_hashes(self.resolved)
        return known

    def size(self) -> dict[str, float]:
        tensors = {tensor.data_ptr(): tensor for tensor in (*self.network.parameters(), *self.network.buffers())}
        own = {parameter.data_ptr(): parameter.numel() for parameter in self.network.parameters()}
        found: dict[str, float] = {"parameters": sum(own.values())}
        found["bytes"] = sum(tensor.nbytes for tensor in tensors.values())
        if self.resolved is not None:
            folders = dict.fromkeys((self.resolved.base, self.resolved.folder))
            weights = [path for folder in folders for path in folder.glob("*.safetensors")]
            found["file_bytes"] = sum(path.stat().st_size for path in weights)
        return found

    def _ids(self, prompt: Prompt) -> list[int]:
        # A chat template writes the beginning token itself; a text gets it from the tokenizer. Neither gets it twice.
        return self.engine.encode(prompt) if isinstance(prompt, str) else self.engine.render(prompt)

    def _pair(self, prompt: Prompt, completion: str) -> tuple[str | list[int], str | list[int]]:
        if isinstance(prompt, str):
            return prompt, completion
        return self.engine.render(prompt), self.engine.target_tokenizer.encode(completion)  # type: ignore[union-attr]

    def likelihoods(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Likelihood]:
        pairs = [self._pair(*pair) for pair in zip(prompts, completions, strict=True)]
        scores = self.engine.score(
            [prompt for prompt, _ in pairs], [text for _, text in pairs], batch_size=self.batch_size
        )
        return [Likelihood(score.total, len(score.ids), score.is_greedy) for score in scores]

    def read(self, texts: Sequence[str], context: int | None = None) -> list[Likelihood]:
        tokenizer: Any = self.tokenizer
        limit = context or self.network.config.context_length
        begin = next((token for token in (tokenizer.bos_id, tokenizer.eos_id) if token is not None), None)
        prompts: list[list[int]] = []
        parts: list[list[int]] = []
        owners: list[int] = []
        skipped = [0] * len(texts)
        for number, text in enumerate(texts):
            ids = tokenizer.encode(text)
            if begin is None:  # The first token has nothing before it and is not predicted.
                begin_ids, ids = ids[:1], ids[1:]
                skipped[number] = 1
            else:
                begin_ids = [begin]
            for prompt, part in text_windows(begin_ids, ids, limit):
                prompts.append(prompt)
                parts.append(part)
                owners.append(number)
        totals, counts = [0.0] * len(texts), [0] * len(texts)
        for owner, score in zip(owners, self.engine.score(prompts, parts, batch_size=self.batch_size), strict=True):
            totals[owner] += score.total
            counts[owner] += len(score.ids)
        return [Likelihood(*pair) for pair in zip(totals, counts, strict=True)]

    def write(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[Writing]:
        completions = self.engine.generate(
            [self._ids(prompt) for prompt in prompts], params, batch_size=self.batch_size
        )
        return [Writing(each.text, len(each.ids), each.finish_reason != "length") for each in completions]

    def complete(
        self, task: Task[Any], examples: Sequence[Any], params: SamplingParams, *, as_text: bool = False
    ) -> list[Writing]:
        from quatrain.evaluation.evaluate import complete

        completions, notes = complete(self.engine, task, examples, params, as_text=as_text)
        if notes:
            raise InputError(f"{self.name}: {notes[0]}")
        return [Writing(each.text, len(each.ids), each.finish_reason != "length") for each in completions]

    def embed(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        from quatrain.models.io.sentence_transformers import embed

        vectors: np.ndarray = (
            embed(self.network, self.tokenizer, texts, batch_size=self.batch_size).float().cpu().numpy()
        )
        return vectors

    def predict(self, task: str, rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        from quatrain.tasks.kinds import RECORD_TASKS, task_of_model

        settings = task_of_model(self.network.config)
        if settings.objective != task:
            raise InputError(f"{self.name} has the head {self.network.config.head}, which is for {settings.objective}, "
                             f"not for {task}.")  # fmt: skip
        kind = RECORD_TASKS[task]
        labels = kind.model_labels(self.network.config.labels)
        objective = kind.make_objective(
            settings, self.tokenizer, str(kind.format), labels, self.network.config.context_length
        )
        predicted, true = predictions_of(objective, self.network, rows)
        if labels and predicted and isinstance(predicted[0], int):
            return [labels[number] for number in predicted], [labels[number] for number in true]
        return predicted, true

    def check(self, prompts: Sequence[Prompt], completions: Sequence[str], new_tokens: int) -> None:
        limit = self.network.config.context_length if self.network.config.has_position_limit else None
        if limit is None:
            return
        tokenizer: Any = self.tokenizer
        long, room = [], 0 if self.engine.has_encoder else new_tokens
        for number, prompt in enumerate(prompts, 1):
            ids = len(self._ids(prompt))
            if completions:
                ids += len(tokenizer.encode(completions[number - 1])) - 1
            if ids + room > limit:
                long.append((number, ids + room))
        _refuse_long(long, len(prompts), limit)


class EndpointSubject:
    """A model behind an OpenAI-compatible address: what it writes, and likelihoods where the address gives them."""

    head_task = None
    reads_sources = False

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.name = endpoint, f"{endpoint.url}#{endpoint.model_name}"

    @property
    def has_chat(self) -> bool:
        return True

    def description(self) -> dict[str, Any]:
        return {"model": self.name, "endpoint": self.endpoint.url}

    def size(self) -> dict[str, float]:
        return {}

    def likelihoods(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Likelihood]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            raise InputError(f"{self.name}: an endpoint gives no likelihoods of answers in a chat; leave out --chat")
        scores = self.endpoint.score(texts, list(completions))
        return [Likelihood(score.total, len(score.logprobs), score.is_greedy) for score in scores]

    def read(self, texts: Sequence[str], context: int | None = None) -> list[Likelihood]:
        raise InputError(f"{self.name}: an endpoint does not give the likelihood of a text's first tokens, which bits "
                         "per byte need; evaluate the model's folder")  # fmt: skip

    def write(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[Writing]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) == len(prompts):
            completions = self.endpoint.generate(texts, params)
        else:
            completions = self.endpoint.chat([chat for chat in prompts if not isinstance(chat, str)], params)
        return [Writing(each.text, len(each.logprobs), each.finish_reason != "length") for each in completions]

    def complete(
        self, task: Task[Any], examples: Sequence[Any], params: SamplingParams, *, as_text: bool = False
    ) -> list[Writing]:
        from quatrain.evaluation.evaluate import complete

        completions, notes = complete(self.endpoint, task, examples, params, as_text=as_text)
        if notes:
            raise InputError(f"{self.name}: {notes[0]}")
        return [Writing(each.text, len(each.logprobs), each.finish_reason != "length") for each in completions]

    def embed(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        raise InputError(f"{self.name}: vectors of an endpoint are not read; evaluate the model's folder")

    def predict(self, task: str, rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        raise InputError(f"{self.name}: an endpoint has no head for {task}; evaluate the model's folder")

    def check(self, prompts: Sequence[Prompt], completions: Sequence[str], new_tokens: int) -> None:
        limit = self.endpoint.context_length
        if limit is None:
            return
        long = []
        for number, prompt in enumerate(prompts, 1):
            text = prompt + (completions[number - 1] if completions else "") if isinstance(prompt, str) else prompt
            count = self.endpoint.count_tokens(text)
            if count is not None and count + new_tokens > limit:
                long.append((number, count + new_tokens))
        _refuse_long(long, len(prompts), limit)


def _refuse_long(long: Sequence[tuple[int, int]], count: int, limit: int) -> None:
    """Raises InputError if there are prompts (number, tokens) that do not fit."""
    if not long:
        return
    most = max(length for _, length in long)
    named = [f"prompt {number}: {length:,} tokens" for number, length in long[:LENGTH_NAMED]]
    raise InputError(
        f"{len(long):,} of {count:,} prompts do not fit into the model's context of {limit:,} tokens with what follows "
        f"them (the longest: {most:,}), and a truncated prompt would be another question. Give fewer examples "
        "(--shots), fewer new tokens (--max-new-tokens), or a model with a longer context:",
        named,
    )


def subject_of(model: str, **options: Any) -> Subject:
    """The model of a folder, run or hub id, or of an OpenAI-compatible address. `options` as for `LocalSubject`."""
    if is_endpoint(model):
        return EndpointSubject(Endpoint.of(model))  # which batches by itself
    return LocalSubject(model, **options)


def text_windows(begin: list[int], ids: list[int], context: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of (what is read before, what is predicted), so that each token of `ids` is predicted exactly once.

    Windows do not overlap, except that the last one reads as much before its tokens as the context holds (as lm-eval's
    rolling log-likelihood does). `context` counts the tokens that the model reads at once.
    """
    pairs = []
    whole = begin + ids
    first = len(begin)
    for start in range(first, len(whole), context):
        end = min(start + context, len(whole))
        before = max(0, end - 1 - context) if start > first else 0
        pairs.append((whole[before:start], whole[start:end]))
    return pairs


def weight_hashes(resolved: ResolvedModel) -> dict[str, str]:
    """The SHA-256 of each file that determines the model's answers: configuration, weights, tokenizer."""
    hashes = {}
    for folder in dict.fromkeys((resolved.base, resolved.folder, *resolved.adapters)):
        for path in sorted(folder.iterdir()):
            if path.suffix in (".safetensors", ".json", ".jinja", ".model") and path.is_file():
                name = path.name if folder == resolved.base else f"{folder.name}/{path.name}"
                hashes[name] = sha256_of(path)
    return hashes
