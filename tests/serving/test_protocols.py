"""Completions, constrained output, tool calls, reasoning, Anthropic's messages, Responses, embeddings and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import torch
from serving_setup import ASKED, TOOLS, TURN, WEATHER, running

from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.turns import turn_grammar
from quatrain.models.io import model_folder
from quatrain.serving import conversation
from quatrain.serving.server import Server
from quatrain.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def claude(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0)


def test_a_completion_is_what_the_engine_gives(client: openai.OpenAI, engine: Engine) -> None:
    options: dict[str, Any] = {"max_tokens": 9, "n": 2, "temperature": 1.0, "seed": 3}
    answer = client.completions.create(model="tiny", prompt=["Once", "ab"], **options)
    params = SamplingParams(max_new_tokens=9, temperature=1.0, seed=3, num_return_sequences=2)
    expected = []
    for prompt in ("Once", "ab"):
        (completion,) = engine.generate([prompt], params)
        expected += [completion.text, completion.alternatives[0].text]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None and answer.usage.prompt_tokens == 6
    ids = client.completions.create(model="tiny", prompt=[engine.encode("Once"), engine.encode("ab")], **options)
    assert [choice.text for choice in ids.choices] == expected


def test_a_streamed_completion_is_the_whole_one(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": ["Once", "Twice"], "max_tokens": 9, "logprobs": 2}
    whole = client.completions.create(**options)
    texts, tokens = ["", ""], [[], []]  # type: ignore[var-annotated]
    for chunk in client.completions.create(stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs is not None else []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices if choice.logprobs is not None]


def test_an_echo_scores_the_prompt_as_evaluation_suites_ask(client: openai.OpenAI, engine: Engine) -> None:
    ids = engine.encode("Hello there")
    for most in (0, 1):
        answer = client.completions.create(
            model="tiny", prompt=ids, max_tokens=most, logprobs=1, echo=True, temperature=0
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.token_logprobs is not None
        assert logprobs.token_logprobs[0] is None and len(logprobs.token_logprobs) == len(ids) + most
        (score,) = engine.score([ids[:1]], [ids[1:]])
        assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(score.logprobs, abs=1e-4)
        assert answer.choices[0].text.startswith(engine.tokenizer.decode(ids))  # type: ignore[union-attr]


@pytest.mark.parametrize("most", [0, 1])
def test_an_echo_of_several_prompts_is_that_of_each(raw: httpx.Client, engine: Engine, most: int) -> None:
    prompts = [engine.encode(text) for text in ("Hello there", "ab", "A longer prompt. " * 12, "a")]
    body: dict[str, Any] = {"max_tokens": most, "logprobs": 1, "echo": True, "temperature": 0}
    # The next token of the first prompt ends its text: it still has its place behind the echo.
    body["stop_token_ids"] = [engine.generate([prompts[0]], SamplingParams(max_new_tokens=1))[0].ids[0]]
    answer = raw.post("/v1/completions", json=body | {"prompt": prompts}).json()
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert {len(values) for values in logprobs.values()} == {len(prompt) + most}
        assert logprobs["token_logprobs"][0] is None
        if len(prompt) > 1:
            (score,) = engine.score([prompt[:1]], [prompt[1:]])
            assert logprobs["token_logprobs"][1 : len(prompt)] == pytest.approx(score.logprobs, abs=1e-4)
    assert answer["choices"][0]["finish_reason"] == ("stop" if most else "length")
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts)) and answer["created"] > 10**9


def test_stop_strings_end_and_are_left_out(client: openai.OpenAI, engine: Engine) -> None:
    text = client.completions.create(model="tiny", prompt="Once", max_tokens=30).choices[0].text
    stop = text[10:12]
    choice = client.completions.create(model="tiny", prompt="Once", max_tokens=30, stop=[stop]).choices[0]
    assert choice.text == text[: text.index(stop)] and choice.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_fits_a_schema(client: openai.OpenAI, stream: bool) -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    options: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 200, "response_format": format}
    if stream:
        text = "".join(
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(stream=True, **options)
        )
    else:
        answer = client.chat.completions.create(**options).choices[0]
        text = answer.message.content or ""
        assert answer.finish_reason == "stop"
    assert json.loads(text)["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_a_call(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    tools = TOOLS[:1]
    options: dict[str, Any] = {
        "model": "tiny",
        "messages": ASKED,
        "max_tokens": 300,
        "tools": tools,
        "tool_choice": choice,
    }
    name, arguments, finish = read_call(client, options, stream)
    assert name == "weather" and json.loads(arguments)["city"] in ("Oslo", "Rome") and finish == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_strict_tools_constrain_the_calls_that_a_model_chooses(
    client: openai.OpenAI, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wiring: which grammar is asked for, that the answer keeps to it, and that its calls are read."""
    asked = []

    def grammar(tools: Any, form: str, token_id: Any) -> str:
        asked.append(form)
        assert "weather" in turn_grammar(tools, form, token_id)
        call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        return f"start: {json.dumps(call)}"

    monkeypatch.setattr(conversation, "turn_grammar", grammar)
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]
    options: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 300}
    assert read_call(client, options | {"tools": strict}, stream) == ("weather", '{"city": "Oslo"}', "tool_calls")
    client.chat.completions.create(**options | {"tools": TOOLS[:1], "max_tokens": 2})
    assert len(asked) == 1


def read_call(client: openai.OpenAI, options: dict[str, Any], stream: bool) -> tuple[str, str, str]:
    """The name and the arguments of the one call of an answer, and why it ended."""
    if not stream:
        answer = client.chat.completions.create(**options).choices[0]
        (call,) = answer.message.tool_calls or []
        return call.function.name, call.function.arguments, answer.finish_reason
    name, arguments, finish = "", "", ""
    for number, chunk in enumerate(client.chat.completions.create(stream=True, **options)):
        choice = chunk.choices[0]
        assert (choice.delta.role == "assistant") == (number == 0)
        for call in choice.delta.tool_calls or []:
            assert call.index == 0 and call.function is not None
            if not name:
                assert call.id and call.type == "function" and call.function.arguments == ""
                name = call.function.name or ""
            else:
                assert call.id is None and call.function.name is None
                arguments += call.function.arguments or ""
        finish = choice.finish_reason or finish
    return name, arguments, finish


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_reasons_and_calls_a_tool(caller: Server, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{caller.address}/v1", api_key="none")
    options: dict[str, Any] = {"model": "caller", "messages": ASKED, "tools": TOOLS, "max_tokens": 200}
    name, arguments, finish = read_call(client, options, stream)
    assert (name, json.loads(arguments), finish) == ("weather", {"city": "Oslo"}, "tool_calls")
    message = client.chat.completions.create(**options).choices[0].message
    assert message.content == "I look." and message.reasoning_content == "a call"  # type: ignore[attr-defined]


def test_without_tools_a_call_is_text(caller: Server) -> None:
    client = openai.OpenAI(base_url=f"{caller.address}/v1", api_key="none")
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = client.chat.completions.create(model="caller", messages=ASKED, max_tokens=200, **more)  # type: ignore[call-overload]
        assert answer.choices[0].message.content == TURN.partition("</think>")[2]
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
def test_results_of_tools_are_read(raw: httpx.Client, engine: Engine, arguments: Any) -> None:
    call = {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [
        *ASKED, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": [{"type": "text", "text": "sunny"}]},
    ]  # fmt: skip
    got = raw.post("/tokenize", json={"messages": messages, "tools": TOOLS}).json()["tokens"]
    text = engine.tokenizer.decode(got, skip_special_tokens=False)  # type: ignore[union-attr]
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in text and "sunny" in text


def test_the_developer_is_the_system_where_a_template_knows_none(raw: httpx.Client) -> None:
    one, other = (
        raw.post("/tokenize", json={"messages": [{"role": role, "content": "x"}, *ASKED]}).json()["tokens"]
        for role in ("developer", "system")
    )
    assert one == other


def test_an_answer_can_be_continued(raw: httpx.Client, engine: Engine) -> None:
    whole = raw.post("/v1/chat/completions", json={"messages": ASKED, "max_tokens": 20}).json()
    text = whole["choices"][0]["message"]["content"]
    messages = [*ASKED, {"role": "assistant", "content": text[:8]}]
    body = {"messages": messages, "max_tokens": 12, "continue_final_message": True}
    rest = raw.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert text[:8] + rest == text


def test_messages_of_anthropic(claude: anthropic.Anthropic, engine: Engine) -> None:
    conversation = [{"role": "system", "content": "Be brief"}, *ASKED]
    (expected,) = engine.chat([conversation], SamplingParams(max_new_tokens=12))
    options: dict[str, Any] = {"model": "tiny", "system": "Be brief", "messages": ASKED, "max_tokens": 12}
    answer = claude.messages.create(**options)
    assert [block.text for block in answer.content if block.type == "text"] == [expected.text]
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 12
    with claude.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == expected.text
        final = stream.get_final_message()
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 12
    counted = claude.messages.count_tokens(model="tiny", system="Be brief", messages=ASKED)
    assert counted.input_tokens == len(engine.render(conversation))
    stopped = claude.messages.create(**options | {"stop_sequences": [expected.text[5:7]]})
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == expected.text[5:7]


def test_anthropic_gets_calls_reasoning_and_errors(caller: Server, claude: anthropic.Anthropic) -> None:
    client = anthropic.Anthropic(base_url=caller.address, api_key="none", max_retries=0)
    functions = [dict(each["function"]) for each in TOOLS]
    tools: Any = [{**function, "input_schema": function.pop("parameters")} for function in functions]
    for tool in tools:
        tool.pop("parameters", None)
    with client.messages.stream(model="caller", messages=ASKED, max_tokens=250, tools=tools) as stream:
        final = stream.get_final_message()
    whole = client.messages.create(model="caller", messages=ASKED, max_tokens=250, tools=tools)
    for answer in (final, whole):
        assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
        assert answer.content[2].input == {"city": "Oslo"} and answer.stop_reason == "tool_use"  # type: ignore[union-attr]
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="nobody", messages=ASKED, max_tokens=3)
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index,call-overload]
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="tiny", messages=ASKED, max_tokens=5000)


def test_responses(client: openai.OpenAI, caller: Server, engine: Engine) -> None:
    (expected,) = engine.chat([[{"role": "system", "content": "Be brief"}, *ASKED]], SamplingParams(max_new_tokens=12))
    answer = client.responses.create(model="tiny", instructions="Be brief", input="Hello", max_output_tokens=12)
    assert answer.output_text == expected.text and answer.status == "incomplete"
    with client.responses.stream(model="tiny", instructions="Be brief", input="Hello", max_output_tokens=12) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected.text
    assert [event.sequence_number for event in events][:3] == [0, 1, 2] and events[-1].type == "response.incomplete"
    calling = openai.OpenAI(base_url=f"{caller.address}/v1", api_key="none")
    tools: Any = [{"type": "function", **each["function"]} for each in TOOLS]
    called = calling.responses.create(model="caller", input=ASKED, tools=tools, max_output_tokens=250)
    assert [item.type for item in called.output] == ["reasoning", "message", "function_call"]
    assert called.output[2].arguments == '{"city": "Oslo"}'  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="stores nothing"):
        client.responses.create(model="tiny", input="x", previous_response_id="resp_1")


def test_tokens_there_and_back(raw: httpx.Client, engine: Engine) -> None:
    there = raw.post("/tokenize", json={"prompt": "Hello é", "return_token_strs": True}).json()
    assert there["tokens"] == engine.tokenizer.encode("Hello é", special_tokens=True)  # type: ignore[union-attr]
    assert there["count"] == len(there["tokens"]) and there["max_model_len"] == 1024
    back = raw.post("/detokenize", json={"tokens": there["tokens"]}).json()
    assert back["prompt"].endswith("Hello é")
    assert raw.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert raw.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert raw.post("/tokenize", json={}).status_code == 400
    about = raw.get("/tokenizer_info", params={"model": "tiny"}).json()
    assert about["eos_token"] == "<|endoftext|>" and about["chat_template"] == engine.tokenizer.chat_template  # type: ignore[union-attr]
    ends = raw.post("/tokenize", json={"prompt": about["eos_token"], "add_special_tokens": False}).json()["tokens"]
    assert ends == [engine.tokenizer.eos_id]  # type: ignore[union-attr]
    assert raw.get("/tokenizer_info", params={"model": "nobody"}).status_code == 404


def test_models_are_listed(client: openai.OpenAI, raw: httpx.Client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tinny")
    assert "Did you mean tiny?" in raw.get("/v1/models/tinny").json()["error"]["message"]


def test_embeddings(client: openai.OpenAI, tmp_path: Path) -> None:
    from tiny_models import llama, random_model

    from quatrain.models.io.sentence_transformers import embed

    tokenizer = Tokenizer.train(["a few words of text about cats and dogs"] * 3, kind="char")
    config = llama(vocab_size=tokenizer.vocab_size, head="embedding", pooling="mean")
    model = random_model(config)
    place = tmp_path / "embedder"
    tokenizer.save(place)
    model_folder.save(model, place)
    with running([str(place)]) as server:
        embedding = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
        answer = embedding.embeddings.create(model="embedder", input=["cats", "a dog"])
        floats = embedding.embeddings.create(model="embedder", input=["cats", "a dog"], encoding_format="float")
        loaded = server.service.registry.entries["embedder"].loaded
        expected = embed(loaded.model, loaded.tokenizer, ["cats", "a dog"])
        for each in (answer, floats):
            assert torch.allclose(torch.tensor([row.embedding for row in each.data]), expected, atol=1e-5)
        with pytest.raises(openai.BadRequestError, match="does not generate text"):
            embedding.chat.completions.create(model="embedder", messages=ASKED)
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client.embeddings.create(model="tiny", input="x")
