"""LangChain's ChatOpenAI against our server: answers, streams, tools, structured output and log-probabilities."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel
from serving_setup import ASKED, TOOLS

from quatrain.generation.engine import Engine, SamplingParams
from quatrain.serving.server import Server

pytest.importorskip("langchain_openai", reason="LangChain is not installed: pip install langchain-openai")


class Trip(BaseModel):
    """A trip."""

    city: Literal["Oslo", "Rome"]
    by_train: bool


def chat_of(server: Server, model: str = "tiny", **options: Any) -> Any:
    """LangChain's model."""
    from langchain_openai import ChatOpenAI

    own: dict[str, Any] = {"max_tokens": 200, "temperature": 0, "max_retries": 0} | options
    return ChatOpenAI(model=model, base_url=f"{server.address}/v1", api_key="none", **own)


def joined(stream: Any) -> Any:
    """The message that the chunks of a stream make together."""
    whole = None
    for chunk in stream:
        whole = chunk if whole is None else whole + chunk
    return whole


@pytest.mark.parametrize("responses", [False, True], ids=["chat completions", "responses"])
def test_answers_and_streams(server: Server, engine: Engine, responses: bool) -> None:
    more = {"use_responses_api": True} if responses else {"stream_usage": True}
    chat = chat_of(server, max_tokens=12, **more)
    messages = [("system", "Be brief"), ("human", "Hello")]
    conversation = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
    (expected,) = engine.chat([conversation], SamplingParams(max_new_tokens=12))
    answer, streamed = chat.invoke(messages), joined(chat.stream(messages))
    assert answer.text == streamed.text == expected.text
    for each in (answer, streamed):
        assert each.usage_metadata["output_tokens"] == 12
        assert each.usage_metadata["input_tokens"] == len(engine.render(conversation))


def test_several_prompts_at_once(server: Server, engine: Engine) -> None:
    texts = ["Hello", "Who are you?", "x"]
    answers = chat_of(server, max_tokens=8).batch(texts)
    chats = [[{"role": "user", "content": text}] for text in texts]
    assert [each.text for each in answers] == [e.text for e in engine.chat(chats, SamplingParams(max_new_tokens=8))]


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_calls_a_tool_and_reads_its_result(caller: Server, stream: bool) -> None:
    chat = chat_of(caller, "caller").bind_tools(TOOLS)
    answer = joined(chat.stream(ASKED)) if stream else chat.invoke(ASKED)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"], answer.text) == ("weather", {"city": "Oslo"}, "I look.")
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    assert chat.invoke([*ASKED, answer, result]).response_metadata["finish_reason"] in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("choice", ["weather", "any", True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_tool_is_called(server: Server, choice: Any, stream: bool) -> None:
    chat = chat_of(server).bind_tools(TOOLS[:1], tool_choice=choice)
    answer = joined(chat.stream(ASKED)) if stream else chat.invoke(ASKED)
    (call,) = answer.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Oslo", "Rome") and not answer.invalid_tool_calls


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output(server: Server, method: str) -> None:
    trip = chat_of(server).with_structured_output(Trip, method=method).invoke("Where to?")
    assert isinstance(trip, Trip)


def test_log_probabilities(server: Server, engine: Engine) -> None:
    answer = chat_of(server, max_tokens=5).bind(logprobs=True, top_logprobs=2).invoke(ASKED)
    expected = engine.chat([ASKED], SamplingParams(max_new_tokens=5))[0].logprobs
    got = [token["logprob"] for token in answer.response_metadata["logprobs"]["content"]]
    assert got == pytest.approx(expected, abs=1e-4)
