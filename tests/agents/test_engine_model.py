"""Our engine as the model: whatever its weights, a call is JSON that fits the schema of a tool."""

import pytest
from tiny_models import llama, random_model

from quatrain.agents.loop import Agent, AgentSettings
from quatrain.agents.model import EngineModel, Form
from quatrain.agents.recorder import Budget
from quatrain.agents.tool import tool
from quatrain.agents.tools.calculator import calculator
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = 'Hello <tool_call> {"name": "calculator", "arguments": {"expression": "1+2", "stops": ["a"]}} </tool_call>'
QUESTION = [{"role": "user", "content": "Hi"}]


@tool
def route(start: str, stops: list[int], fast: bool = False) -> str:
    """Plan a route."""
    return f"{start}{stops}{fast}"


TOOLS = {"calculator": calculator, "route": route}


@pytest.fixture(scope="module")
def engine():
    tokenizer = Tokenizer.train([TEXT] * 9, kind="bpe", vocab_size=330, chat_template="chatml")
    return Engine(random_model(llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=2048)), tokenizer)


def calls_first(tokenizer):
    """A logits processor: the model begins a call, and likes to close what is open."""
    start = tokenizer.encode("<tool_call>")
    closing, prompt = [tokenizer.token_to_id(mark) for mark in ('"', "}", "]", "<|im_end|>")], []

    def process(ids, scores):
        prompt.append(len(ids))
        scores, new = scores.clone(), len(ids) - prompt[0]
        if new < len(start):
            scores[start[new]] += 1000.0
        else:
            scores[closing] += 4.0
        return scores

    return process


def test_an_untrained_model_cannot_write_a_broken_call(engine):
    whole = dict.fromkeys(TOOLS, 0)
    for seed in range(8):
        known = list(TOOLS.values())[seed % 2]
        likes = (calls_first(engine.tokenizer),)
        params = SamplingParams(max_new_tokens=160, temperature=1.0, seed=seed, logits_processors=likes)
        turn = EngineModel(engine, params).turn(QUESTION, Form(tools=[known.schema]))
        assert turn.calls and (turn.cut or not turn.content)
        for call in turn.calls if not turn.cut else turn.calls[:-1]:
            assert call.name == known.name and known.read(call.arguments)
            whole[call.name] += 1
    assert all(whole.values())


def test_a_call_that_is_cut_is_told_and_never_runs(engine):
    params = SamplingParams(max_new_tokens=14, logits_processors=(calls_first(engine.tokenizer),))
    outcome = Agent(EngineModel(engine, params), list(TOOLS.values()), AgentSettings(budget=Budget(steps=2))).run("Hi")
    decided = {event["decision"] for event in outcome.events if event["event"] == "call"}
    assert outcome.stop in ("steps", "no_answer") and decided <= {"invalid", "unknown"}


def test_an_agent_needs_a_chat_template():
    tokenizer = Tokenizer.train([TEXT] * 9, kind="char")
    model = random_model(llama(vocab_size=tokenizer.vocab_size))
    with pytest.raises(InputError, match="chat template"):
        EngineModel(Engine(model, tokenizer))
