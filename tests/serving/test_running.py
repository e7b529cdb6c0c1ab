"""A server at work: clients that leave, full queues, silent streams, shutdown, metrics, several models and adapters."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from serving_setup import running, until
from tiny_models import llama, make_folder, save_random

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.peft_files import save_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.loading.model import load_model
from quatrain.serving.models import LoadOptions, entries_of
from quatrain.serving.server import Server
from quatrain.tokenizers.tokenizer import Tokenizer

ASKED: list[Any] = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 900, "ignore_eos": True}


def worker_of(server: Server) -> Any:
    """The worker of the server's first model."""
    registry = server.service.registry
    return registry.entries[registry.default].loaded.worker


@contextlib.contextmanager
def slowed(server: Server, seconds: float = 0.02) -> Iterator[None]:
    """Every step of the engine takes longer, so that a tiny model is as slow as a real one."""
    engine = worker_of(server).engine
    real = engine.step

    def step() -> bool:
        time.sleep(seconds)
        return bool(real())

    engine.step = step
    try:
        yield
    finally:
        del engine.step


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(server: Server, stream: bool) -> None:
    worker = worker_of(server)
    scheduler = worker.engine.scheduler
    with slowed(server):
        body = json.dumps(LONG | {"stream": stream}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(server._socket.getsockname()) as connection:
            connection.sendall(head + body)
            until(lambda: scheduler.rows == 1)
            steps = worker.engine.statistics.decode_steps
            until(lambda: worker.engine.statistics.decode_steps > steps + 3)
        left = worker.engine.statistics.decode_steps
        until(lambda: scheduler.rows == 0 and worker.count == 0, 5)
        assert worker.engine.statistics.decode_steps - left < 20  # 0.4 s, not the 900 steps of the rest
    assert worker.engine.statistics.cancelled >= 1


def test_a_client_that_leaves_while_it_waits_runs_never(server: Server) -> None:
    worker = worker_of(server)
    generated = worker.engine.statistics.generated_tokens
    worker.engine._stepping.acquire()  # Nothing can start.
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.address}{CHAT}", json=LONG, timeout=0.5)
        until(lambda: all(each.request.sequences[0].cancelled for each in worker._running))
    finally:
        worker.engine._stepping.release()
    until(lambda: worker.count == 0)
    assert worker.engine.statistics.generated_tokens <= generated + 1


def test_a_full_queue_answers_429(folder: Path) -> None:
    with running([str(folder)], max_queue=2) as server, slowed(server):
        threads = [
            threading.Thread(target=httpx.post, args=(f"{server.address}{CHAT}",), kwargs={"json": LONG, "timeout": 60})
        ]
        threads[0].start()
        until(lambda: worker_of(server).count == 1)
        response = httpx.post(f"{server.address}{CHAT}", json=LONG | {"n": 2, "temperature": 1})
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "rate_limit_error"
        stream = httpx.post(f"{server.address}{CHAT}", json=LONG | {"n": 2, "temperature": 1, "stream": True})
        assert stream.status_code == 429  # Before the stream starts, an error has a status of its own.
        worker_of(server).cancel_all()
        threads[0].join(10)
        assert httpx.post(f"{server.address}{CHAT}", json=LONG | {"max_tokens": 2}).status_code == 200


def test_a_silent_stream_gets_comments(folder: Path) -> None:
    with running([str(folder)], ping_seconds=0.1) as server, slowed(server, 0.5):
        body = LONG | {"max_tokens": 2, "stream": True}
        text = httpx.post(f"{server.address}{CHAT}", json=body, timeout=30).text
        assert ": ping\n\n" in text and text.endswith("data: [DONE]\n\n")
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
        chunks = list(client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=2, stream=True))
        assert chunks[-1].choices[0].finish_reason == "length"


def test_a_request_that_takes_too_long_ends_with_an_error(folder: Path) -> None:
    with running([str(folder)], request_seconds=0.5) as server, slowed(server, 0.1):
        response = httpx.post(f"{server.address}{CHAT}", json=LONG, timeout=30)
        assert response.status_code == 504 and "0.5 s" in response.json()["error"]["message"]
        text = httpx.post(f"{server.address}{CHAT}", json=LONG | {"stream": True}, timeout=30).text
        last = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")][-1]
        assert last["error"]["type"] == "timeout_error" and text.endswith("data: [DONE]\n\n")
        until(lambda: worker_of(server).count == 0)


def test_shutdown_ends_streams_properly(folder: Path) -> None:
    texts: list[str] = []
    with running([str(folder)], shutdown_seconds=0.5) as server, contextlib.ExitStack() as stack:
        stack.enter_context(slowed(server, 0.05))

        def read() -> None:
            texts.append(httpx.post(f"{server.address}{CHAT}", json=LONG | {"stream": True}, timeout=60).text)

        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: worker_of(server).engine.scheduler.rows == 1)
        stack.pop_all()
        server.stop()
        thread.join(20)
    assert texts and texts[0].endswith("data: [DONE]\n\n") and '"server_error"' in texts[0]


def test_an_answer_that_ends_in_time_survives_shutdown(folder: Path) -> None:
    answers: list[Any] = []
    with running([str(folder)], shutdown_seconds=20) as server, contextlib.ExitStack() as stack:
        stack.enter_context(slowed(server, 0.02))
        body = LONG | {"max_tokens": 40}
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.address}{CHAT}", json=body, timeout=60).json())
        )
        thread.start()
        until(lambda: worker_of(server).engine.scheduler.rows == 1)
        stack.pop_all()
        server.stop()
        thread.join(20)
    assert answers[0]["choices"][0]["finish_reason"] == "length" and answers[0]["usage"]["completion_tokens"] == 40


def test_a_slow_reader_delays_nobody(folder: Path) -> None:
    with running([str(folder)], write_seconds=1.0, max_tokens=900) as server:
        body = json.dumps(
            LONG | {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 8, "temperature": 1}
        ).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(server._socket.getsockname())
            connection.sendall(head + body)
            until(lambda: worker_of(server).engine.scheduler.rows > 0)
            start = time.monotonic()
            assert httpx.post(f"{server.address}{CHAT}", json=LONG | {"max_tokens": 3}, timeout=20).status_code == 200
            assert time.monotonic() - start < 10
            # It reads nothing, and is dropped after `write_seconds`.
            until(lambda: len(server.server_state.tasks) == 0 and worker_of(server).count == 0, 30)
        assert httpx.get(f"{server.address}/health").status_code == 200


def test_metrics_have_the_names_of_vllm(server: Server, raw: httpx.Client) -> None:
    raw.post(CHAT, json=LONG | {"max_tokens": 5})
    text = raw.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total",
        "request_success_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket", "prefix_cache_hits_total",
    ):  # fmt: skip
        assert f"vllm:{name}{{" in text and 'model_name="tiny"' in text, name
    line = next(line for line in text.splitlines() if line.startswith("vllm:num_requests_running{"))
    assert float(line.split()[-1]) == 0


def test_cached_tokens_are_told(raw: httpx.Client) -> None:
    asked = [{"role": "user", "content": "a text that no other test has asked about before, long enough to be kept"}]
    body = {"model": "tiny", "messages": asked, "max_tokens": 2}
    first, second = (raw.post(CHAT, json=body).json()["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens_details"]["cached_tokens"]
    assert second["prompt_tokens_details"]["cached_tokens"] == second["prompt_tokens"] - 1


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of random weights over the tiny model."""
    places = {}
    for seed, name in enumerate(("pirate", "poet")):
        network, _ = load_model(folder)
        torch.manual_seed(seed)
        apply_adapter(network, AdapterSettings(method="lora", rank=4))
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.5)
        places[name] = tmp_path_factory.mktemp("adapters") / name
        save_adapter(network, places[name], base_model=str(folder))
    return places


def adapter_of(model: Path, place: Path, *, base: str | None = None) -> Path:
    """An adapter of random weights over a model; `base` is what its configuration says."""
    network, _ = load_model(model)
    torch.manual_seed(5)
    apply_adapter(network, AdapterSettings(method="lora", rank=4))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    save_adapter(network, place, base_model=base or str(model))
    return place


@pytest.fixture(scope="module")
def wide(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another shape with the tokenizer of the tiny one."""
    tokenizer = Tokenizer.load(folder)
    place = tmp_path_factory.mktemp("wide") / "wide"
    config = llama(
        vocab_size=tokenizer.vocab_size, hidden_size=48, max_position_embeddings=1024, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    tokenizer.save(place)
    return save_random(config, place)


def test_each_adapter_belongs_to_the_model_of_its_base(
    folder: Path, wide: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    sailor = adapter_of(wide, tmp_path / "sailor")
    moved = adapter_of(wide, tmp_path / "moved", base="somebody/gone")
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    engine = Engine.load(wide, adapters={"sailor": sailor})
    expected = [engine.chat([ASKED], params, adapters=name)[0].text for name in (None, "sailor")]
    named = {"pirate": adapters["pirate"], "sailor": sailor, "moved": moved}
    with running([str(folder), str(wide)], named) as server:
        parents = {each["id"]: each["parent"] for each in httpx.get(f"{server.address}/v1/models").json()["data"]}
        assert parents == {"tiny": None, "wide": None, "pirate": "tiny", "sailor": "wide", "moved": "wide"}
        assert server.service.registry.entries["wide"].loaded is None  # It is loaded by its adapter's first request.
        got = []
        for name in ("wide", "sailor"):
            body = {"model": name, "messages": ASKED, "max_tokens": 12, "ignore_eos": True}
            answer = httpx.post(f"{server.address}{CHAT}", json=body, timeout=60).json()
            got.append(answer["choices"][0]["message"]["content"])
    assert got == expected and got[0] != got[1]


def test_an_adapter_of_several_models_or_of_none_is_refused(folder: Path, wide: Path, tmp_path: Path) -> None:
    twin = make_folder(tmp_path / "twin", seed=3)
    moved = adapter_of(twin, tmp_path / "moved", base="somebody/gone")
    models = [str(folder), str(twin)]
    with pytest.raises(InputError) as caught:
        entries_of(models, {"poet": moved, "lost": wide, "far@nobody": moved})
    ambiguous, lost, far = caught.value.problems
    assert "tiny, twin" in ambiguous and f"--adapter poet@tiny={moved}" in ambiguous
    assert "not an adapter folder" in lost and 'no model is named "nobody"' in far
    assert [each.adapters for each in entries_of(models, {"poet@twin": moved})] == [{}, {"poet": moved}]
    with pytest.raises(InputError, match="fits the shapes of none"):
        entries_of([str(wide)], {"poet": moved})


@pytest.mark.parametrize("guesses", ["draft", "prompt look-up"])
def test_guesses_do_not_change_answers(folder: Path, engine: Engine, wide: Path, guesses: str) -> None:
    more: dict[str, Any] = {"draft": wide} if guesses == "draft" else {"options": LoadOptions(prompt_lookup=4)}
    (expected,) = engine.chat([ASKED], SamplingParams(max_new_tokens=60, ignore_eos=True))
    with running([str(folder)], **more) as server:
        body = LONG | {"max_tokens": 60}
        answer = httpx.post(f"{server.address}{CHAT}", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert worker_of(server).engine.statistics.proposed_tokens > 0
        loaded = server.service.registry.entries["tiny"].loaded
        own = sum(parameter.numel() * 4 for parameter in loaded.model.parameters())
        assert (loaded.bytes > own) == (guesses == "draft")
    other = make_folder(folder.parent / f"other-{guesses.split()[0]}", characters="abc .Helo")
    with pytest.raises(InputError, match="has a vocabulary of"):
        entries_of([str(folder)], draft=other)


def test_adapters_are_models_mixed_in_one_batch(folder: Path, adapters: dict[str, Path]) -> None:
    engine = Engine.load(folder, adapters=adapters)
    names = [None, "pirate", "poet"] * 4
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    expected = [each.text for each in engine.chat([ASKED] * 12, params, adapters=names)]
    assert len(set(expected[:3])) == 3
    results: list[str] = [""] * 12
    with running([str(folder)], adapters) as server:
        listed = httpx.get(f"{server.address}/v1/models").json()["data"]
        assert {each["id"]: each["parent"] for each in listed} == {"tiny": None, "pirate": "tiny", "poet": "tiny"}

        def ask(place: int) -> None:
            body = {"model": names[place] or "tiny", "messages": ASKED, "max_tokens": 30, "ignore_eos": True}
            answer = httpx.post(f"{server.address}{CHAT}", json=body, timeout=60).json()
            results[place] = answer["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == expected


def test_several_models_share_a_memory_budget(folder: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", seed=7)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with running([str(folder), f"second={other}"], memory=int(1.5 * size), idle_seconds=60.0) as server:
        entries = server.service.registry.entries
        assert entries["tiny"].loaded is not None and entries["second"].loaded is None

        def ask(name: str) -> httpx.Response:
            body = {"model": name, "messages": ASKED, "max_tokens": 6}
            return httpx.post(f"{server.address}{CHAT}", json=body, timeout=60)

        first, second = ask("tiny"), ask("second")
        assert entries["tiny"].loaded is None and entries["second"].loaded is not None
        contents = [each.json()["choices"][0]["message"]["content"] for each in (first, second, ask("tiny"))]
        assert contents[0] == contents[2] != contents[1] and entries["second"].loaded is None
        with slowed(server):
            thread = threading.Thread(
                target=httpx.post,
                args=(f"{server.address}{CHAT}",),
                kwargs={"json": LONG | {"max_tokens": 100}, "timeout": 60},
            )
            thread.start()
            until(lambda: worker_of(server).count == 1)
            busy = ask("second")  # The first model is in use and cannot be unloaded.
            assert busy.status_code == 503 and busy.headers["retry-after"]
            thread.join()
        assert ask("second").status_code == 200


def test_an_idle_model_is_unloaded_and_comes_back(folder: Path) -> None:
    with running([str(folder)], idle_seconds=0.4) as server:
        entry = server.service.registry.entries["tiny"]
        threads = threading.active_count()
        until(lambda: entry.loaded is None, 10)
        assert threading.active_count() < threads + 1
        assert httpx.get(f"{server.address}/health").status_code == 200
        body = LONG | {"max_tokens": 3}
        assert httpx.post(f"{server.address}{CHAT}", json=body, timeout=30).status_code == 200


def test_health_is_503_until_the_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrain.serving import models

    gate, real = threading.Event(), models.load_model

    def load(*arguments: Any, **options: Any) -> Any:
        gate.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(models, "load_model", load)
    server = Server(entries_of([str(folder)]), _free_port())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        response = httpx.get(f"{server.address}/health")
        assert response.status_code == 503 and response.json() == {"status": "loading"}
        gate.set()
        until(lambda: httpx.get(f"{server.address}/health").status_code == 200)
    finally:
        gate.set()
        server.stop()
        thread.join(20)


def _free_port() -> Any:
    from quatrain.serving.settings import ServerSettings

    return ServerSettings(port=0)


def test_models_that_cannot_be_served_are_refused(folder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two models have one name"):
        Server(entries_of([str(folder), f"tiny={folder}"]), _free_port())
    with pytest.raises(InputError, match="adapter tiny: this name is taken"):
        Server(entries_of([str(folder)], {"tiny": adapters["poet"]}), _free_port())
    with pytest.raises(InputError, match="no such model"):
        entries_of([str(tmp_path / "nothing")])


def test_a_broken_model_does_not_end_the_server(folder: Path, tmp_path: Path) -> None:
    broken = make_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"garbage")
    with running([str(folder), str(broken)]) as server:
        body = {"model": "broken", "messages": ASKED, "max_tokens": 2}
        response = httpx.post(f"{server.address}{CHAT}", json=body)
        assert response.status_code == 503 and str(tmp_path) not in response.text
        assert httpx.post(f"{server.address}{CHAT}", json=LONG | {"max_tokens": 2}).status_code == 200
