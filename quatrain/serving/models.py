"""The models of a server by name: loaded when they are asked for, within a memory budget, and unloaded when idle.

A name is looked up in a table that is made at the start; a request's text never becomes a path.
"""

from __future__ import annotations

import asyncio
import ctypes
import difflib
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quatrain.compression.settings import BITS
from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes, format_value
from quatrain.generation.engine import Engine
from quatrain.generation.speculative import DraftModel, PromptLookup, Proposer
from quatrain.loading.model import ResolvedModel, load_model
from quatrain.models.io.model_folder import load_config
from quatrain.models.transformer.config import CacheFormat
from quatrain.models.transformer.stack import Model
from quatrain.planning.machine import available_memory
from quatrain.serving.binding import bind_adapters
from quatrain.serving.errors import ApiError, busy
from quatrain.serving.metrics import Metrics
from quatrain.serving.settings import ServerSettings
from quatrain.serving.worker import Worker
from quatrain.tasks.pipelines import Pipeline, Subject, head_of, pipeline

logger = logging.getLogger("quatrain.serving")

PLACEHOLDER = "dummy"
"""The model that huggingface_hub's InferenceClient names where it is given an address alone."""


@dataclass(frozen=True)
class LoadOptions:
    """How models are loaded, as for `Engine.load`."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    quantize: str | None = None
    kv_cache: CacheFormat | None = None
    prompt_lookup: int | None = None
    """Guess so many tokens from repetitions in the text (`generation.speculative`), for models without a draft."""

    @property
    def bits(self) -> float:
        """Bits of a weight."""
        return BITS[self.quantize] if self.quantize else 8.0 * self.dtype.itemsize


@dataclass
class Loaded:
    """A model in memory: with a worker if it generates."""

    model: Model
    tokenizer: Any
    worker: Worker | None
    bytes: int
    subject: Subject
    """The same model for pipelines."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a pipeline runs the model."""
    pipelines: dict[str, Pipeline] = field(default_factory=dict)

    def pipeline(self, task: str) -> Pipeline:
        """The pipeline of a task. Raises InputError for an unknown task, and for a model of another head."""
        if task not in self.pipelines:
            self.pipelines[task] = pipeline(task, self.subject)
        return self.pipelines[task]

    @property
    def engine(self) -> Engine:
        """The engine. Raises ApiError for a model that does not generate."""
        return self.generator.engine

    @property
    def generator(self) -> Worker:
        """The worker. Raises ApiError for a model that does not generate."""
        if self.worker is None:
            raise ApiError(
                400,
                f"This model has the head {self.model.config.head}, which does not generate text; use /v1/embeddings "
                "or /pipeline/TASK.",
                param="model",
            )
        return self.worker


@dataclass(eq=False)
class ModelEntry:
    """A model that the server may load."""

    name: str
    path: str | Path | ResolvedModel
    adapters: dict[str, str | Path] = field(default_factory=dict)
    draft: str | Path | None = None
    """A smaller model of the same vocabulary that guesses tokens."""
    created: int = field(default_factory=lambda: int(time.time()))
    loaded: Loaded | None = None
    loading: asyncio.Task[Loaded] | None = None
    users: int = 0
    used: float = 0.0
    """When the model was last used, by `time.monotonic`."""

    @property
    def resolved(self) -> ResolvedModel:
        """The folders of the model."""
        return ResolvedModel.of(self.path)

    def weight_bytes(self, options: LoadOptions) -> int:
        """About how many bytes the weights take once they are loaded: as many as their files, at other bits."""
        folders = [self.resolved.base, *([ResolvedModel.of(self.draft).base] if self.draft is not None else [])]
        return sum(_weight_bytes(folder, options) for folder in folders)


def _weight_bytes(folder: Path, options: LoadOptions) -> int:
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    stored = _stored_bits(folder)
    return int(files * options.bits / stored) if stored else files


def _stored_bits(folder: Path) -> float | None:
    from quatrain.core.reading import read_json

    with suppress(InputError):
        config = read_json(folder / "config.json")
        if config.get("quantization_config"):
            return None
        name = config.get("dtype") or config.get("torch_dtype") or "float32"
        dtype = getattr(torch, str(name), None)
        return 8.0 * dtype.itemsize if isinstance(dtype, torch.dtype) else None
    return None


class ModelRegistry:
    """The models of a server; `use` lends one to a request."""

    def __init__(self, entries: Sequence[ModelEntry], settings: ServerSettings, metrics: Metrics, options: LoadOptions):
        """Raises InputError for a name that two models or adapters have."""
        self.settings, self.metrics, self.options = settings, metrics, options
        self.entries = {entry.name: entry for entry in entries}
        self.names: dict[str, tuple[ModelEntry, str | None]] = {entry.name: (entry, None) for entry in entries}
        problems = [] if entries or settings.without_models else ["no model: give at least one"]
        if len(self.entries) < len(entries):
            problems.append("two models have one name; rename a folder, or give a name with NAME=MODEL")
        for entry in entries:
            resolved = entry.resolved
            for name in [*entry.adapters, *(place.name for place in resolved.adapters)]:
                if name in self.names:
                    problems.append(f"adapter {name}: this name is taken by another model or adapter")
                self.names[name] = (entry, name)
        if problems:
            raise InputError("These models cannot be served:", problems)
        self.error: BaseException | None = None
        """Why the first model could not be loaded."""
        self._lock = asyncio.Lock()

    @property
    def default(self) -> str:
        """The model of requests that name none. Raises ApiError where there is no model."""
        if not self.entries:
            raise ApiError(404, "This server has no model, only an index; ask it at /ask.", code="model_not_found")
        return next(iter(self.entries))

    @property
    def is_ready(self) -> bool:
        """Whether the server can answer: the first model was loaded once."""
        return not self.entries or self.entries[self.default].used > 0

    def names_of_generators(self) -> list[str]:
        """The models and adapters that write text, as far as their files tell."""
        found = []
        for name, (entry, _) in self.names.items():
            with suppress(InputError):
                if head_of(entry.resolved) in ("causal", "seq2seq"):
                    found.append(name)
        return found

    def find(self, name: str | None) -> tuple[ModelEntry, str | None]:
        """The model of a name and its adapter. Raises ApiError with near names."""
        if name == PLACEHOLDER and name not in self.names:
            name = None
        found = self.names.get(name or self.default)
        if found is None:
            near = difflib.get_close_matches((name or "")[:200], self.names, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            known = f"; they are {', '.join(self.names)}" if len(self.names) <= 20 else ""
            raise ApiError(
                404,
                f"The model {format_value(name, 100)} does not exist{known}.{hint}",
                param="model",
                code="model_not_found",
            )
        return found

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[tuple[Loaded, str | None]]:
        """A loaded model and the adapter of the name; the model stays loaded until the end of the context."""
        entry, adapter = self.find(name)
        entry.users += 1
        try:
            loaded = entry.loaded or await self._load(entry)
            entry.used = time.monotonic()
            yield loaded, adapter
        finally:
            entry.users -= 1
            entry.used = time.monotonic()

    async def _load(self, entry: ModelEntry) -> Loaded:
        """The model, loaded by the first request that asks for it; a client that leaves does not stop the loading."""
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load_alone(entry))
        task = entry.loading
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and entry.loading is task:
                entry.loading = None

    async def _load_alone(self, entry: ModelEntry) -> Loaded:
        async with self._lock:  # One at a time: each must know what the others take.
            if entry.loaded is None:
                needed = await asyncio.to_thread(entry.weight_bytes, self.options)
                await self._make_room(needed, entry)
                try:
                    entry.loaded = await asyncio.to_thread(self._read, entry)
                except InputError as error:
                    logger.error("%s cannot be loaded: %s", entry.name, error)
                    raise ApiError(
                        503, f"The model {entry.name} cannot be loaded; the server's log says why."
                    ) from error
                logger.info("loaded %s, %s", entry.name, format_bytes(entry.loaded.bytes))
            return entry.loaded

    def _read(self, entry: ModelEntry) -> Loaded:
        resolved, options = entry.resolved, self.options
        loading: dict[str, Any] = {"dtype": options.dtype, "device": options.device, "quantize": options.quantize}
        network, tokenizer = load_model(resolved, **loading)
        if network.config.head not in ("causal", "seq2seq"):
            subject = Subject.of(resolved, network, tokenizer)
            return Loaded(network, tokenizer, None, _bytes_of(network), subject)
        proposer: Proposer | None = None
        size = _bytes_of(network)
        if entry.draft is not None:
            draft, drafted = load_model(entry.draft, **loading)
            proposer, size = DraftModel(draft, drafted), size + _bytes_of(draft)
        elif options.prompt_lookup is not None:
            proposer = PromptLookup(options.prompt_lookup)
        engine = Engine.of(
            network,
            tokenizer,
            resolved,
            adapters=entry.adapters or None,
            speculation=proposer,
            native="compiled",
            kv_cache=options.kv_cache,
        )
        worker = Worker(engine, entry.name, self.metrics, max_queue=self.settings.max_queue)
        return Loaded(network, tokenizer, worker, size, Subject.of(resolved, network, tokenizer, engine))

    async def _make_room(self, needed: int, entry: ModelEntry) -> None:
        """Unloads the models that were idle for longest until `needed` bytes fit. Raises ApiError if they cannot."""
        while not self._fits(needed):
            idle = [each for each in self.entries.values() if each.loaded is not None and not each.users]
            if not idle:
                if not any(each.loaded for each in self.entries.values()) and self.settings.memory is None:
                    return  # Nothing can be unloaded; loading itself refuses what does not fit.
                raise busy(
                    f"The model {entry.name} needs {format_bytes(needed)}, which other models in use take; try again.",
                    seconds=5,
                    status=503,
                )
            await self.unload(min(idle, key=lambda each: each.used))

    def _fits(self, needed: int) -> bool:
        taken = sum(entry.loaded.bytes for entry in self.entries.values() if entry.loaded is not None)
        if self.settings.memory is not None:
            return taken + needed <= self.settings.memory
        free = available_memory(self.options.device)
        return free is None or needed <= free

    async def unload(self, entry: ModelEntry) -> None:
        """Takes a model out of memory."""
        loaded, entry.loaded = entry.loaded, None
        if loaded is not None:
            if loaded.worker is not None:
                await asyncio.to_thread(loaded.worker.stop)
                loaded.worker.observe_queue()
            logger.info("unloaded %s", entry.name)
            del loaded
            await asyncio.to_thread(_collect_memory)

    async def unload_idle(self) -> None:
        """Unloads models that were not used for `idle_seconds`, every now and then, until it is cancelled."""
        seconds = self.settings.idle_seconds
        while seconds is not None:
            await asyncio.sleep(min(seconds / 4, 30.0))
            async with self._lock:
                for entry in self.entries.values():
                    if entry.loaded is not None and not entry.users and time.monotonic() - entry.used > seconds:
                        await self.unload(entry)

    async def load_first(self) -> None:
        """Loads the first model, before the first request."""
        if not self.entries:
            return
        try:
            async with self.use(None):
                pass
        except Exception as error:
            self.error = error
            logger.error("the first model cannot be loaded: %s", error)

    def cancel_all(self) -> None:
        """Ends all completions before the next step."""
        for entry in self.entries.values():
            if entry.loaded is not None and entry.loaded.worker is not None:
                entry.loaded.worker.cancel_all()

    async def close(self) -> None:
        """Unloads all models."""
        for entry in self.entries.values():
            await self.unload(entry)

    def listing(self) -> list[dict[str, Any]]:
        """The models and adapters in OpenAI's form."""
        return [self.describe(name) for name in self.names]

    def describe(self, name: str) -> dict[str, Any]:
        """One model in OpenAI's form. Raises ApiError for an unknown one."""
        entry, adapter = self.find(name)
        about = {"id": name, "object": "model", "created": entry.created, "owned_by": "quatrain"}
        about |= {"root": entry.name, "parent": entry.name if adapter is not None else None}
        if entry.loaded is not None and entry.loaded.model.config.has_position_limit:
            about["max_model_len"] = entry.loaded.model.config.context_length
        return about


def entries_of(
    models: Sequence[str], adapters: Mapping[str, str | Path] | None = None, *, draft: str | Path | None = None
) -> list[ModelEntry]:
    """The entries of models, each MODEL or NAME=MODEL, with their adapters (`bind_adapters`); `draft` guesses for the
    first model.

    The name of a folder is its last part, that of a hub id the whole id. Raises InputError.
    """
    entries = []
    for text in models:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = "", text
        resolved = ResolvedModel.of(path)
        entries.append(ModelEntry(name or (Path(path).resolve().name if Path(path).exists() else path), resolved))
    if adapters:
        bound = bind_adapters({entry.name: entry.resolved for entry in entries}, adapters)
        for entry in entries:
            entry.adapters = bound[entry.name]
    if draft is not None and entries:
        entries[0].draft = ResolvedModel.of(draft).folder
        sizes = [load_config(ResolvedModel.of(each).base).vocab_size for each in (draft, entries[0].path)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"draft {draft}: has a vocabulary of {sizes[0]:,}, {entries[0].name} one of {sizes[1]:,}; take a draft "
                "model of the same family"
            )
    return entries


def _bytes_of(network: Model) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())


def _collect_memory() -> None:
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # Give freed weights back to the system at once.
