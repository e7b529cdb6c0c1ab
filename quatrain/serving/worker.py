"""The thread that drives one engine, and the way of its completions to the event loop.

The event loop submits prompts and waits for pieces; the thread steps the engine and hands over what is ready after each
step. Neither waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from quatrain.core.errors import QuatrainError
from quatrain.generation.engine import Completion, Engine, Request, SamplingParams, TextChunk
from quatrain.serving.errors import ApiError, busy
from quatrain.serving.metrics import Metrics

logger = logging.getLogger("quatrain.serving")

WAIT = 0.2
"""Seconds after which an idle thread looks whether it was stopped."""


class CompletionGroup:
    """The completions of one request, read by the event loop that created it."""

    def __init__(self, worker: Worker, requests: Sequence[Request]):
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._wake, self._ready = asyncio.Event(), list[tuple[int, TextChunk | BaseException]]()
        self._lock = threading.Lock()
        self.requests = list(requests)
        self.completions: dict[int, Completion] = {}

    @property
    def prompt_tokens(self) -> list[int]:
        """The number of tokens of each completion's prompt."""
        return [len(request.sequences[0].prompt) for request in self.requests]

    @property
    def cached_tokens(self) -> list[int]:
        """How many tokens of each prompt were still in the cache."""
        return [request.sequences[0].reused for request in self.requests]

    def put(self, ready: Sequence[tuple[int, TextChunk | BaseException]]) -> None:
        """Hands pieces over, from any thread."""
        with self._lock:
            self._ready += ready
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:
            self.cancel()  # The event loop is closed.

    async def next(self) -> list[tuple[int, TextChunk]]:
        """The pieces that are ready, with the number of their completion; waits for one. Empty after the last.

        Raises what a completion raises.
        """
        while True:
            self._wake.clear()
            with self._lock:
                ready, self._ready = self._ready, []
            pieces: list[tuple[int, TextChunk]] = []
            for index, piece in ready:
                if isinstance(piece, BaseException):
                    raise piece
                if piece.completion is not None:
                    self.completions[index] = piece.completion
                pieces.append((index, piece))
            if pieces or len(self.completions) == len(self.requests):
                return pieces
            await self._wake.wait()

    def cancel(self) -> None:
        """Ends what still runs before the engine's next step."""
        for request in self.requests:
            request.cancel()


class _Running:
    """One completion that the thread follows."""

    def __init__(self, group: CompletionGroup, index: int):
        self.group, self.index, self.request = group, index, group.requests[index]
        self.seen, self.first, self.last = 0, 0.0, 0.0


class Worker:
    """Drives an engine with a thread of its own, until `stop`."""

    def __init__(self, engine: Engine, name: str, metrics: Metrics, *, max_queue: int = 256):
        self.engine, self.name, self.metrics, self.max_queue = engine, name, metrics, max_queue
        # Looking a label up takes longer than counting a token.
        self._first_token, self._inter_token = metrics.first_token.labels(name), metrics.inter_token.labels(name)
        self._generated = metrics.generation_tokens.labels(name)
        self._running: list[_Running] = []
        self._reserved = 0
        self._lock, self._delivering = threading.Lock(), threading.Lock()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """How many completions run or wait."""
        return len(self._running) + self._reserved

    def reserve(self, count: int) -> None:
        """Takes places in the queue for completions that are about to be submitted. Raises ApiError if it is full."""
        with self._lock:
            if self._is_stopping:
                raise busy("The model is being unloaded; try again.", status=503)
            if self.count + count > self.max_queue:
                raise busy(f"The queue is full: {self.count} completions run or wait, {self.max_queue} may.")
            self._reserved += count

    def release(self, count: int) -> None:
        """Gives reserved places back."""
        with self._lock:
            self._reserved -= count

    def submit(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int, adapter: str | None
    ) -> list[Request]:
        """The requests of `n` completions of each prompt, prompt by prompt; blocks while grammars are compiled.

        Raises as `Engine.submit`, after cancelling the others.
        """
        requests: list[Request] = []
        try:
            for prompt in prompts:
                if n > 1 and params.temperature > 0:
                    several = self.engine.submit(prompt, replace(params, num_return_sequences=n), adapter=adapter)
                    requests += several.split()
                else:  # Greedy completions of a prompt are equal.
                    requests += [self.engine.submit(prompt, params, adapter=adapter) for _ in range(n)]
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return requests

    def follow(self, requests: Sequence[Request]) -> CompletionGroup:
        """The group of submitted requests, whose pieces go to the running event loop."""
        group = CompletionGroup(self, requests)
        with self._lock:
            self._running += [_Running(group, index) for index in range(len(group.requests))]
            stopped = self._is_stopping
        if stopped:
            group.cancel()
        self._deliver()
        return group

    def cancel_all(self) -> None:
        """Ends everything before the engine's next step."""
        with self._lock:
            running = list(self._running)
        for each in running:
            each.request.cancel()

    def stop(self, timeout: float = 30.0) -> None:
        """Cancels what runs and ends the thread."""
        with self._lock:
            self._is_stopping = True
        self.cancel_all()
        self._thread.join(timeout)
        self._deliver()

    def _run(self) -> None:
        while not (self._is_stopping and self.engine.scheduler.is_idle):
            try:
                if self.engine.wait(WAIT):
                    self.engine.step()
            except BaseException:
                # The scheduler has failed all that ran; each request carries the error.
                logger.exception("a step of %s failed", self.name)
            self._deliver()

    def _deliver(self) -> None:
        """Hands over what is ready of every completion."""
        with self._delivering:
            with self._lock:
                running = list(self._running)
            news: dict[CompletionGroup, list[tuple[int, TextChunk | BaseException]]] = {}
            finished = set()
            for each in running:
                pieces, done = self._collect(each)
                if pieces:
                    news.setdefault(each.group, []).extend((each.index, piece) for piece in pieces)
                if done:
                    finished.add(each)
            if finished:
                with self._lock:
                    self._running = [each for each in self._running if each not in finished]
            for group, ready in news.items():
                group.put(ready)

    def _collect(self, each: _Running) -> tuple[list[TextChunk | BaseException], bool]:
        """The new pieces of a completion, and whether they are the last."""
        sequence, done = each.request.sequences[0], each.request.done
        count = len(sequence.ids) if done else sequence.published
        if count > each.seen:
            self._observe_tokens(each, count)
        pieces: list[TextChunk | BaseException] = []
        try:
            while (piece := each.request.ready()) is not None:
                pieces.append(piece)
        except BaseException as error:
            if not isinstance(error, QuatrainError):
                logger.error("a completion of %s failed: %r", self.name, error)
                error = ApiError(500, "The model failed on this request; the server's log has the details.")
            self._observe_end(each, "error")
            return [*pieces, error], True
        last = pieces[-1].completion if pieces and isinstance(pieces[-1], TextChunk) else None
        if last is not None:
            self._observe_end(each, last.finish_reason)
        return pieces, last is not None

    def _observe_tokens(self, each: _Running, count: int) -> None:
        now, new = time.perf_counter(), count - each.seen
        if each.seen == 0:
            each.first = now
            self._first_token.observe(now - each.request.sequences[0].submitted)
            new -= 1
        for _ in range(new if each.last else 0):
            self._inter_token.observe((now - each.last) / new)
        self._generated.inc(count - each.seen)
        each.seen, each.last = count, now

    def _observe_end(self, each: _Running, reason: str) -> None:
        now, sequence, metrics = time.perf_counter(), each.request.sequences[0], self.metrics
        metrics.success.labels(self.name, "abort" if reason == "cancelled" else reason).inc()
        metrics.prompt_tokens.labels(self.name).inc(len(sequence.prompt))
        metrics.prefix_queries.labels(self.name).inc(len(sequence.prompt))
        metrics.prefix_hits.labels(self.name).inc(sequence.reused)
        metrics.request_prompt_tokens.labels(self.name).observe(len(sequence.prompt))
        metrics.request_tokens.labels(self.name).observe(each.seen)
        if reason in ("stop", "length"):
            metrics.end_to_end.labels(self.name).observe(now - sequence.submitted)
            if each.seen > 1:
                metrics.per_token.labels(self.name).observe((each.last - each.first) / (each.seen - 1))

    def observe_queue(self) -> None:
        """Sets the metrics of what runs and waits now; a stopped worker has nothing."""
        scheduler = self.engine.scheduler
        self.metrics.running.labels(self.name).set(scheduler.rows)
        self.metrics.waiting.labels(self.name).set(len(scheduler.waiting))
        self.metrics.cache_bytes.labels(self.name).set(scheduler.runner.cache.nbytes)
