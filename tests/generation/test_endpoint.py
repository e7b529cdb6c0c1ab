"""A model behind an OpenAI-compatible address gives what the engine gives, and its faults are told in words."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_folder

from quatrain.core.errors import InputError, OfflineError, QuatrainError
from quatrain.generation.endpoint import Endpoint, PromptTooLong, fields_of, is_endpoint, open_model
from quatrain.generation.engine import Engine, SamplingParams

PROMPTS = ["Once upon a time", "abc", "é, ß and more"]
CHATS: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS]
SHORT = SamplingParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny", context=128)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    pytest.importorskip("fastapi")
    from serving_setup import running

    with running([str(folder)]) as server:
        yield f"{server.address}/v1"


@contextmanager
def answering(*answers: tuple[int, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of an endpoint that gives these answers in turn, the last one again and again; and its requests."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append({"path": self.path, "form": json.loads(body or b"{}"), "key": self.headers["Authorization"]})
            status, answer = answers[min(len(seen), len(answers)) - 1]
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/v1")
            if status == 429:
                self.send_header("Retry-After", "7")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}


def test_the_endpoint_gives_what_the_engine_gives(address, engine):
    endpoint = open_model(f"{address}#tiny")
    assert isinstance(endpoint, Endpoint) and endpoint.model_name == "tiny" and endpoint.context_length == 128
    penalized, beams = replace(SHORT, repetition_penalty=1.3), SamplingParams(max_new_tokens=8, num_beams=3)
    for params in (SHORT, beams, penalized):
        pairs = [
            *zip(engine.generate(PROMPTS, params), endpoint.generate(PROMPTS, params), strict=True),
            *zip(engine.chat(CHATS, params), endpoint.chat(CHATS, params), strict=True),
        ]
        for own, remote in pairs:
            assert remote.text == own.text and remote.finish_reason == own.finish_reason
            if params.num_beams == 1:
                visible = len(own.logprobs) - (own.finish_reason == "stop")
                assert remote.logprobs[:visible] == pytest.approx(own.logprobs[:visible], abs=1e-5)
    assert endpoint.usage.requests >= 18 and endpoint.usage.completion_tokens > 0


def test_ids_as_prompts_and_seeded_samples(address, engine):
    endpoint = Endpoint.of(address)  # the only model needs no name
    params = SamplingParams(max_new_tokens=12, temperature=1.0, seed=5, top_k=10)
    ids = [engine.encode(prompt) for prompt in PROMPTS]
    assert [each.text for each in endpoint.generate(ids, params)] == [
        each.text for each in engine.generate(ids, params)
    ]


def test_scores_equal_the_engines(address, engine):
    endpoint = Endpoint.of(address)
    (greedy,) = engine.generate(["Once upon"], SHORT)
    prompts = ["Once upon", "Once upon", "Once upon", "a b"]
    completions = [" a time", "xyz", greedy.text, " c"]
    pairs = zip(endpoint.score(prompts, completions), engine.score(prompts, completions), strict=True)
    for remote, own in pairs:
        assert remote.logprobs == pytest.approx(own.logprobs, abs=1e-5) and remote.is_greedy == own.is_greedy
    with pytest.raises(InputError, match=r"prompt 2: .*texts that are not empty"):
        endpoint.score(["a", ""], ["b", "c"])


def test_counted_tokens_are_those_that_the_model_reads(address, engine):
    endpoint = Endpoint.of(address)
    assert endpoint.count_tokens(PROMPTS[0]) == len(engine.encode(PROMPTS[0]))
    assert endpoint.count_tokens(CHATS[0]) == len(engine.render(CHATS[0]))


def test_a_full_context_is_told_with_the_counts(address):
    with pytest.raises(PromptTooLong, match="context has 128 tokens"):
        Endpoint.of(address).generate(["x" * 300], SHORT)
    long, short = Endpoint.of(address).generate(["x" * 300, "x"], SHORT, skip_long=True)
    assert (long.text, long.finish_reason) == ("", "length") and short.text


def test_an_unknown_name_is_told(address):
    with pytest.raises(InputError, match="other"):
        Endpoint.of(f"{address}#other").chat(CHATS[:1], SHORT)


def test_a_busy_endpoint_is_tried_again_after_the_pause_that_it_asks_for():
    pauses: list[float] = []
    with answering((429, {"error": {"message": "slow down"}}), (503, b""), (200, said("hello"))) as (url, seen):
        (completion,) = Endpoint(url, "m", pause=pauses.append).chat(CHATS[:1], SHORT)
    assert completion.text == "hello" and len(seen) == 3
    assert pauses[0] == 7 and 0.7 < pauses[1] < 1.3


def test_an_endpoint_that_keeps_failing_and_one_that_is_not_there():
    with (
        answering((500, {"error": {"message": "out of order"}})) as (url, seen),
        pytest.raises(QuatrainError, match=r"keeps failing \(tried 3 times\): status 500: out of order"),
    ):
        Endpoint(url, "m", tries=3, pause=lambda seconds: None).chat(CHATS[:1], SHORT)
    assert len(seen) == 3
    with pytest.raises(OfflineError, match="Is the server running"):
        Endpoint(url, "m", tries=2, pause=lambda seconds: None).chat(CHATS[:1], SHORT)


def test_an_endpoint_without_log_probabilities_is_asked_without_them():
    refused = {"error": {"message": "logprobs is not supported by this model"}}
    newer = {"error": {"message": "Unsupported parameter: use max_completion_tokens"}}
    with answering((400, refused), (400, newer), (200, said("yes"))) as (url, seen):
        endpoint = Endpoint(url, "m")
        first = endpoint.chat(CHATS[:1], SHORT)[0]
        endpoint.chat(CHATS[:1], SHORT)
    assert first.text == "yes" and first.logprobs == []
    assert "logprobs" in seen[0]["form"] and "logprobs" not in seen[1]["form"]
    assert seen[2]["form"]["max_completion_tokens"] == 12 and "max_tokens" not in seen[2]["form"]
    assert len(seen) == 4, "what the endpoint refused once is not asked for again"


def test_the_key_comes_from_the_environment_and_follows_no_redirect(monkeypatch):
    monkeypatch.setenv("QUATRAIN_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.delenv("QUATRAIN_OFFLINE", raising=False)
    with answering((302, b""), (401, {"error": {"message": "wrong key"}})) as (url, seen):
        endpoint = Endpoint(url, "m")
        with pytest.raises(InputError, match="points elsewhere"):
            endpoint.chat(CHATS[:1], SHORT)
        with pytest.raises(InputError, match=r"set QUATRAIN_API_KEY\. It says: wrong key") as told:
            endpoint.chat(CHATS[:1], SHORT)
    assert [each["key"] for each in seen] == ["Bearer secret"] * 2
    assert "secret" not in repr(endpoint) and "secret" not in str(told.value)
    monkeypatch.delenv("QUATRAIN_API_KEY")
    assert Endpoint("https://example.com/v1", "m").key is None, "OpenAI's key is for OpenAI alone"
    assert Endpoint("https://api.openai.com/v1", "m").key == "other"


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", {"choices": []}, {"choices": [3]}, {"choices": [{"text": 4}]}])
def test_answers_that_are_no_completions(answer):
    with answering((200, answer)) as (url, _), pytest.raises(InputError, match="does not answer with"):
        Endpoint(url, "m").generate(["a"], SHORT)


def test_answers_keep_their_order_and_errors_come_out():
    with answering((200, said("x"))) as (url, seen):
        endpoint = Endpoint(url, "m", concurrency=4)
        assert len(endpoint.chat(CHATS * 5, SHORT)) == 15 and len(seen) == 15
        assert endpoint.chat([], SHORT) == []


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "http://", "http://user:word@host/v1", "http://host/v1?key=1", "", "host/v1"]
)
def test_addresses_that_cannot_be_used(url):
    with pytest.raises(InputError, match="give"):
        Endpoint(url, "m")


def test_several_models_need_a_name():
    listed = {"data": [{"id": "a"}, {"id": "b"}]}
    with answering((200, listed)) as (url, _), pytest.raises(InputError, match="has a, b; name one as"):
        Endpoint(url).chat(CHATS[:1], SHORT)


def test_what_only_an_engine_can_do_is_named():
    params = SamplingParams(logits_processors=(lambda ids, logits: logits,), bad_words=((1, 2),))
    beams = SamplingParams(num_beams=3, num_return_sequences=2)
    with pytest.raises(InputError, match="num_return_sequences"):
        fields_of(beams)
    with pytest.raises(InputError) as told:
        fields_of(params)
    assert len(told.value.problems) == 2
    assert fields_of(SamplingParams(json_schema={"type": "object"}, logit_bias={3: 1.0})) == {
        "max_tokens": 128, "temperature": 0.0, "logit_bias": {"3": 1.0},
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}
        },
    }  # fmt: skip


def test_names_of_models(folder, monkeypatch):
    assert is_endpoint("https://host/v1#a") and not is_endpoint("runs/a") and not is_endpoint(folder)
    assert isinstance(open_model(folder), Engine)
    with pytest.raises(InputError, match="leave out quantize"):
        open_model("http://localhost:1/v1#a", quantize="int8")
    assert Endpoint.of("http://localhost:1/v1/#a%20b").name == "a b"
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    with pytest.raises(OfflineError, match="QUATRAIN_OFFLINE"):
        Endpoint.of("https://example.com/v1#a")
    Endpoint.of("http://localhost:1/v1#a")


def test_a_task_scores_the_same_on_the_engine_and_behind_the_address(address, engine):
    from quatrain.evaluation.evaluate import evaluate
    from quatrain.tasks.arithmetic.task import Arithmetic

    task = Arithmetic(held_out=12)
    own = evaluate(engine, task, "sums", params=SHORT)
    remote = evaluate(Endpoint.of(address), task, "sums", params=SHORT)
    assert remote.scores == own.scores and remote.samples == own.samples and remote.baseline == own.baseline
    assert remote.tokens > 0
    as_text = evaluate(Endpoint.of(address), task, "sums", params=SHORT, as_text=True)
    assert as_text.scores["count"] == 12 and as_text.samples != own.samples
