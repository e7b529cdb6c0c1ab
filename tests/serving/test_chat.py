"""`/v1/chat/completions` with OpenAI's client: whole and streamed answers, their forms, and what they equal."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from quatrain.generation.engine import Engine, SamplingParams

ASKED: list[Any] = [{"role": "user", "content": "Hello there"}]


def test_a_whole_answer_is_what_the_engine_gives(client: openai.OpenAI, engine: Engine) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12)
    (expected,) = engine.chat([ASKED], SamplingParams(max_new_tokens=12))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len(engine.render(ASKED)) and answer.id.startswith("chatcmpl-")


def test_a_stream_has_the_form_that_clients_expect(client: openai.OpenAI, engine: Engine) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=ASKED, max_completion_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == engine.chat([ASKED], SamplingParams(max_new_tokens=12))[0].text


def test_no_usage_chunk_unless_asked(raw: httpx.Client) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 3, "stream": True}
    lines = raw.post("/v1/chat/completions", json=body).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert lines[-2:] == ["data: [DONE]", ""] and all(chunk["choices"] for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_samples_have_their_indices(client: openai.OpenAI, engine: Engine, stream: bool) -> None:
    options: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 10}
    params = SamplingParams(max_new_tokens=10, temperature=1.0, seed=5, num_return_sequences=3)
    (expected,) = engine.chat([ASKED], params)
    texts = [expected.text, *(each.text for each in expected.alternatives)]
    if stream:
        parts = ["", "", ""]
        for chunk in client.chat.completions.create(model="tiny", messages=ASKED, stream=True, **options):
            for choice in chunk.choices:
                parts[choice.index] += choice.delta.content or ""
        assert parts == texts
    else:
        answer = client.chat.completions.create(model="tiny", messages=ASKED, **options)
        assert [choice.message.content for choice in answer.choices] == texts
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3


def test_log_probabilities_are_the_same_streamed(client: openai.OpenAI, engine: Engine) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(model="tiny", messages=ASKED, **options).choices[0].logprobs
    assert whole is not None and whole.content is not None
    streamed = []
    for chunk in client.chat.completions.create(model="tiny", messages=ASKED, stream=True, **options):
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs is not None else []
    expected = engine.chat([ASKED], SamplingParams(max_new_tokens=8, logprobs=2))[0]
    assert [each.logprob for each in whole.content] == pytest.approx(expected.logprobs, abs=1e-4)
    assert [(each.token, each.bytes) for each in streamed] == [(each.token, each.bytes) for each in whole.content]
    assert all(len(each.top_logprobs) == 2 for each in streamed)
    assert b"".join(bytes(each.bytes or []) for each in streamed).decode() == expected.text
