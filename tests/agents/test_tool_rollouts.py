"""Completions with results of tools: they are read and never learned, and the recipe that learns by them runs."""

import json

import pytest
import torch
from tiny_models import llama, random_model

from quatrain.agents.tool_engine import ToolEngine
from quatrain.agents.tools.calculator import calculator
from quatrain.alignment.rollouts import Rollout, collate_rollouts
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.tasks.calculation.task import Calculations
from quatrain.tokenizers.tokenizer import Tokenizer

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>'
TALK = [{"role": "user", "content": "6*7?"}]


@pytest.fixture(scope="module")
def parts():
    tokenizer = Tokenizer.train(
        [CALL, "It is 42. <tool_response>"] * 9, kind="bpe", vocab_size=330, chat_template="chatml"
    )
    return random_model(llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)), tokenizer


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


def test_the_recipe_runs_and_its_rollouts_call_the_tool(tmp_path, capsys):
    small = ["data.examples=150", "stage.pretrain.train.steps=2", "stage.finetune.train.steps=10",
             "stage.finetune.train.batch_tokens=1024", "stage.grpo.train.steps=2", "stage.grpo.prompts=2",
             "stage.grpo.samples=2", "stage.grpo.held_out=4", "evaluate.examples=4"]  # fmt: skip
    assert main(["run", "calculator-grpo", "--runs-dir", str(tmp_path), *small, "--quiet"]) == 0
    stage = next((tmp_path / "calculator-grpo/stages").glob("*grpo"))
    lines = [json.loads(line) for line in (stage / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(len(line["scores"]) == 4 for line in lines)
