"""Completions with results of tools: they are read and never learned, and the recipe that learns by them runs."""

import gc
import json

import pytest
import torch
from tiny_models import llama, random_model

from quatrain.agents.tool_engine import ToolEngine, engine_with
from quatrain.agents.tools.calculator import calculator
from quatrain.alignment.rollouts import Rollout, collate_rollouts
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.data.records import Messages
from quatrain.evaluation.tool_calls import measure_calls
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.loading.model import load_model
from quatrain.tasks.calculation.task import Calculations
from quatrain.tasks.text2sql.lookup import DatabaseAnswers
from quatrain.tokenizers.chat import render_text
from quatrain.tokenizers.tokenizer import Tokenizer

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>'
TALK = [{"role": "user", "content": "6*7?"}]


@pytest.fixture(scope="module")
def parts():
    tokenizer = Tokenizer.train(
        [CALL, "It is 42. <tool_response>"] * 9, kind="bpe", vocab_size=330, chat_template="chatml"
    )
    return random_model(llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=2048)), tokenizer


def says(tokenizer, *turns):
    """A logits processor: the model writes these turns, whatever stands between them."""
    end = tokenizer.token_to_id("<|im_end|>")
    scripts, lengths = [[*tokenizer.encode(text), end] for text in turns], []

    def process(ids, scores):
        if not lengths or len(ids) > lengths[-1][1] + 1:
            lengths.append([len(ids), len(ids)])
        lengths[-1][1] = len(ids)
        forced = torch.full_like(scores, -100.0)
        forced[scripts[len(lengths) - 1][len(ids) - lengths[-1][0]]] = 0.0
        return forced

    return (process,)


def test_a_completion_holds_the_result_and_marks_it(parts):
    model, tokenizer = parts
    engine = ToolEngine(model, tokenizer, tools=[calculator])
    params = SamplingParams(max_new_tokens=200, logits_processors=says(tokenizer, CALL, "It is 42."))
    (done,) = engine.generate([engine.render(TALK)], params)
    assert (done.text, done.finish_reason) == ("It is 42.", "stop")
    put_in = tokenizer.decode([token for token, given in zip(done.ids, done.given, strict=True) if given])
    assert put_in.split() == ["user", "<tool_response>", "42", "</tool_response>", "assistant"]
    assert len(done.logprobs) == len(done.ids) == len(done.given)
    whole = [*TALK, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "calculator",
             "arguments": {"expression": "6*7"}}}]}, {"role": "tool", "content": "42"}]  # fmt: skip
    written = engine.render(whole)
    assert [*engine.render(TALK), *done.ids][: len(written)] == written  # the template's own form, token for token


def test_results_have_no_labels(parts):
    generated = torch.tensor([1.0, 0.0, 1.0])
    rollout = Rollout([5, 6], [7, 8, 9], generated=generated, sampler_logprobs=torch.zeros(3))
    for everything in (False, True):
        batch = collate_rollouts([rollout], everything=everything)
        assert batch.labels[0, :4].tolist() == [IGNORE_INDEX, 7, IGNORE_INDEX, 9]
    assert Engine.generate is not ToolEngine.generate


def test_without_a_call_nothing_changes_and_limits_hold(parts):
    model, tokenizer = parts
    plain, tools = Engine(model, tokenizer), ToolEngine(model, tokenizer, tools=[calculator])
    prompt, params = plain.render(TALK), SamplingParams(max_new_tokens=12, temperature=1.0, seed=3)
    assert tools.generate([prompt], params)[0].ids == plain.generate([prompt], params)[0].ids
    short = SamplingParams(max_new_tokens=70, logits_processors=says(tokenizer, CALL, "It is 42."))
    (cut,) = tools.generate([prompt], short)
    assert len(cut.ids) <= 70
    plain_template = Tokenizer.train(["a b"] * 9, kind="char", chat_template="{{ messages[0].content }}")
    with pytest.raises(InputError, match="writes no calls"):
        ToolEngine(random_model(llama(vocab_size=plain_template.vocab_size)), plain_template, tools=[calculator])


def test_held_out_calculations_are_never_learned():
    task = Calculations(held_out=50, examples=300)
    held = {frozenset((each.left, each.right)) for each in task.held_out["calculations"]}
    learned = {frozenset((each.left, each.right)) for each in task.splits["practice"]}
    assert len(task.splits["train"]) == 300 and len(held) > 40
    same = [each for each in task.splits["practice"] if each in set(task.held_out["calculations"])]
    assert not same and learned
    example = task.held_out["calculations"][0]
    assert task.score(example, f" {example.answer}\n").main == 1 and task.score(example, "1").main == 0
    assert [turn["role"] for turn in task.messages(example)] == ["user", "assistant", "tool", "assistant"]


TINY = ["data.examples=150", "stage.pretrain.train.steps=2", "stage.finetune.train.steps=6",
        "stage.finetune.train.batch_tokens=1024", "evaluate.examples=4"]  # fmt: skip


def test_the_recipe_runs_and_its_rollouts_call_the_tool(tmp_path):
    small = ["stage.grpo.train.steps=2", "stage.grpo.prompts=2", "stage.grpo.samples=2", "stage.grpo.held_out=4"]
    assert main(["run", "calculator-grpo", "--runs-dir", str(tmp_path), *TINY, *small, "--quiet"]) == 0
    stage = next((tmp_path / "calculator-grpo/stages").glob("*grpo"))
    lines = [json.loads(line) for line in (stage / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(len(line["scores"]) == 4 for line in lines)


def test_the_sql_recipe_runs_and_its_tool_stays_open(tmp_path):
    """Questions to the shop: the references' results are those of the tool, and rollouts read rows, not errors."""
    small = ["data.examples=150", "stage.pretrain.train.steps=1", "stage.finetune.train.steps=1", "evaluate.examples=2",
             "stage.grpo.train.steps=1", "stage.grpo.prompts=2", "stage.grpo.samples=2", "stage.grpo.held_out=2",
             "tokenizer.vocab_size=400", "model.hidden_size=32", "model.num_hidden_layers=1",
             "stage.grpo.max_new_tokens=20", "evaluate.max_new_tokens=20"]  # fmt: skip
    assert main(["run", "sql-agent-grpo", "--runs-dir", str(tmp_path), *small, "--quiet"]) == 0
    database = tmp_path / "sql-agent-grpo/shop.sqlite"
    task = DatabaseAnswers(database, examples=60, held_out=30)
    assert len(task.splits["train"]) == 60 and all(task.held_out.values())
    held = {each.question for examples in task.held_out.values() for each in examples}
    assert not held & {each.question for name in ("train", "practice") for each in task.splits[name]}
    model, tokenizer = load_model(tmp_path / "sql-agent-grpo/model")
    for example in task.splits["train"][:5]:
        call = render_text(tokenizer.chat_template, task.messages(example)[:2], add_generation_prompt=False)[0]
        written = call.split("<|im_end|>")[2]
        engine = engine_with([f"sql={database}"], 1, model, tokenizer)
        gc.collect()
        script = says(tokenizer, written, example.answer)
        params = SamplingParams(max_new_tokens=250, logits_processors=script)
        (done,) = engine.generate([engine.render(task.prompt(example))], params)
        put_in = tokenizer.decode([token for token, given in zip(done.ids, done.given, strict=True) if given])
        assert put_in.replace("<|im_end|>", "") == example.result and task.score(example, done.text).main == 1
    assert task.score(example, "").main == 0 and task.baseline([example]) != [""]


def test_the_model_of_the_recipe_agent_is_an_agent(tmp_path, capsys):
    assert main(["run", "agent", "--runs-dir", str(tmp_path), *TINY, "--quiet"]) == 0
    capsys.readouterr()
    words = ["--tool", "calculator", "--record", str(tmp_path / "run.jsonl"), "--steps", "1", "--max-new-tokens", "8"]
    assert main(["agent", "run", str(tmp_path / "agent/model"), "417*286=", *words]) in (0, 1)
    start = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])
    assert start["style"] == "tools" and start["calls_tools"]


def test_dialogues_that_call_tools_are_learned(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The user asks, the assistant calls a tool and answers.\n" * 400)
    small = [f"stage.pretrain.data.source={text}", "tokenizer.vocab_size=600", "model.hidden_size=32",
             "model.intermediate_size=64", "model.num_hidden_layers=1", "stage.finetune.train.epochs=none",
             "stage.finetune.train.evaluate_every=2", "evaluate.examples=1", "evaluate.max_new_tokens=2",
             *(f"stage.{kind}.train.{item}" for kind in ("pretrain", "finetune")
               for item in ("steps=2", "warmup_steps=0", "schedule=constant", "batch_tokens=1024"))]  # fmt: skip
    assert main(["run", "tool-sft", "--runs-dir", str(tmp_path), *small, "--quiet"]) == 0


def test_calls_are_compared_with_the_reference(parts):
    model, tokenizer = parts
    function = {"name": "calculator", "arguments": {"expression": "6*7"}}
    talk = [*TALK, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": "42"}, {"role": "assistant", "content": "42."}]  # fmt: skip
    chat = Messages(talk, tools=[calculator.schema["function"]])
    other = CALL.replace("6*7", "7*6")
    expected = {"called": 1, "valid": 1, "name": 1, "calls": 1, "answers": 1}
    for call, right in ((CALL, 1), (other, 0)):
        params = SamplingParams(max_new_tokens=60, logits_processors=says(tokenizer, call, "42."))
        found = measure_calls(Engine(model, tokenizer), [chat], params)
        assert found == expected | {"arguments": right, "overcalled": 0}
    with pytest.raises(InputError, match="No dialogue calls a tool"):
        measure_calls(Engine(model, tokenizer), [Messages(TALK)])
