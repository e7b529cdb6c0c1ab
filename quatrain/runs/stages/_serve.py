"""Implementation of the serve stage: a server in a thread, its clients, and the engine's own answers beside theirs."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.generation.runner import context_limit
from quatrain.runs.material import model_of, opened_task, tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.serve import ServeStage
from quatrain.serving.models import entries_of
from quatrain.serving.server import Server
from quatrain.serving.settings import ServerSettings
from quatrain.tasks.prompting.texts import usable

START_SECONDS = 120.0


def run(settings: ServeStage, context: StageContext) -> StageResult:
    """Serves, asks and measures; writes no model."""
    folder = context.previous_model or Path(context.recipe.model.folder or "")
    model, tokenizer = model_of(context), tokenizer_of(context)
    engine = Engine(model, tokenizer)
    requests, ids, too_long = readable(asked(settings, context), engine)
    params = SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=0.0)
    expected = [completion.text for completion in engine.generate(ids, params)]
    del model, engine
    seconds: list[float] = []
    with running(folder) as address, ThreadPoolExecutor(settings.clients) as clients:
        common = {"max_tokens": settings.max_new_tokens, "temperature": 0.0}

        def answer(number: int) -> tuple[int, str]:
            began = time.perf_counter()
            place = number % len(requests)
            path, asking = requests[place]
            choice = post(f"{address}{path}", common | asking)["choices"][0]
            seconds.append(time.perf_counter() - began)
            return place, choice["text"] if "text" in choice else choice["message"]["content"] or ""

        answer(0)  # the first request loads and warms up
        seconds.clear()
        began = time.perf_counter()
        answers = list(clients.map(answer, range(settings.requests)))
        elapsed = time.perf_counter() - began
    equal = sum(text == expected[place] for place, text in answers) / len(answers)
    result = StageResult()
    result.extra = {
        "equal_share": equal,
        "answers_per_second": len(answers) / elapsed,
        "p50_seconds": float(np.quantile(seconds, 0.5)),
        "p95_seconds": float(np.quantile(seconds, 0.95)),
        "requests": len(answers),
    }
    if too_long:
        result.notes.append(f"{too_long} questions are longer than the model's context and were not asked")
    result.notes.append(
        f"served {len(answers)} answers to {settings.clients} clients: {equal:.0%} equal to the engine's, "
        f"{len(answers) / elapsed:.1f} a second, half of them within {result.extra['p50_seconds']:.2f} s, "
        f"95 % within {result.extra['p95_seconds']:.2f} s"
    )
    for note in result.notes:
        context.reporter.info(note)
    return result


Request = tuple[str, dict[str, Any]]
"""The path of a request, and what is asked: a prompt or messages."""


def asked(settings: ServeStage, context: StageContext) -> list[Request]:
    """What the clients ask. Raises InputError where there is nothing to ask."""
    texts = settings.prompts or context.recipe.evaluate.prompts
    data = context.recipe.data
    if not settings.prompts and (data.generates or data.test is not None):
        with opened_task(settings, context) as task:
            shown = [name for name in task.held_out if name not in task.hidden]
            examples = [each for name in shown for each in usable(task, task.held_out[name])]
            chats = [task.prompt(each) for each in examples[: settings.requests]]
        if chats:
            return [("/v1/chat/completions", {"messages": chat}) for chat in chats]
    if not texts:
        raise InputError(f"{context.name}: prompts: missing; there are neither questions held out nor evaluate.prompts")
    return [("/v1/completions", {"prompt": text}) for text in texts]


def readable(requests: list[Request], engine: Engine) -> tuple[list[Request], list[list[int]], int]:
    """The requests that fit into the model's context, their ids, and how many do not: a server refuses these.

    Raises InputError if none fits.
    """
    encoded = [
        engine.render(body["messages"]) if "messages" in body else engine.encode(body["prompt"]) for _, body in requests
    ]
    limit = context_limit(engine.model)
    kept = [place for place, ids in enumerate(encoded) if limit is None or len(ids) < limit]
    if not kept:
        raise InputError(f"All {len(requests)} questions have more tokens than the model's context of {limit}.")
    return [requests[place] for place in kept], [encoded[place] for place in kept], len(requests) - len(kept)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of a server with one model, until the end of the context."""
    server = Server(entries_of([str(folder)], None), ServerSettings(port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + START_SECONDS
        while not server.started:
            if time.monotonic() > end or not thread.is_alive():
                raise QuatrainError(f"{folder}: the server did not start")
            time.sleep(0.02)
        yield server.address
    finally:
        server.stop()
        thread.join(30)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer of a request. Raises QuatrainError for an error of the server."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            answer: dict[str, Any] = json.loads(response.read())
            return answer
    except urllib.error.HTTPError as error:
        raise QuatrainError(f"{url}: {error.code}: {error.read()[:300].decode('utf-8', 'replace')}") from error
