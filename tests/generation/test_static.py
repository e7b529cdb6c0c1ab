"""Steps of fixed shape give what plain ones give, and tokens chosen on the device are those that are chosen on the CPU.

Only the capture of a CUDA graph needs a GPU; all else runs here.
"""

import random

import pytest
import torch
from running import CONFIGS, alone, assert_nothing_is_left, assert_same, engine_of, prompts
from scipy.stats import chisquare
from tiny_models import llama, random_model

from quatrain.adapters.adapter_set import AdapterSet
from quatrain.adapters.settings import AdapterSettings
from quatrain.generation import fused
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import ModelRunner
from quatrain.generation.static import StaticDecoder, step_size
from quatrain.models.transformer.config import ExpertsConfig
from quatrain.models.transformer.kv_cache import KVCache

STATIC = [name for name in CONFIGS if name not in ("longrope", "dynamic")]


def static_engine(model, **settings) -> Engine:
    """An engine that decodes in uncaptured static steps and chooses tokens as a GPU does."""
    engine = engine_of(model, **settings)
    runner = engine.scheduler.runner
    runner.static = StaticDecoder(model, runner.cache, True)
    engine.chooser.fuse = True
    return engine


@pytest.mark.parametrize("name", STATIC)
def test_logits_of_texts_of_different_lengths(name):
    """Step by step over growing texts, with windows that move, rows that leave, and slots that are not in use."""
    model, texts = random_model(CONFIGS[name]), prompts(6, high=30)
    runners = [ModelRunner(model, 7), ModelRunner(model, 7)]
    runners[1].static = StaticDecoder(model, runners[1].cache, True)
    draw = random.Random(name)
    for runner in runners:
        runner.refresh()
        for slot, text in enumerate(texts):
            runner.read(slot, [text], adapters=[None])
    for step in range(20):
        count = 6 if step < 8 else draw.randrange(1, 6)
        tokens = [[draw.randrange(3, 97)] for _ in range(count)]
        plain, static = (runner.read(0, tokens, adapters=[None] * count, decoding=True) for runner in runners)
        torch.testing.assert_close(static, plain, atol=1e-5, rtol=1e-5)
        assert runners[0].cache.lengths == runners[1].cache.lengths
    assert runners[1].static.steps == 20 and runners[0].static.steps == 0


@pytest.mark.parametrize("name", STATIC)
def test_engine_gives_the_same(name):
    """Requests of all kinds, in any company, as the plain engine gives them alone."""
    model = random_model(CONFIGS[name])
    engine = static_engine(model, max_rows=5)
    texts = prompts(10, high=14, stem=range(40, 45)) + prompts(4, seed=1, high=25)
    choices = [
        SamplingParams(9), SamplingParams(9, temperature=0.8, seed=1),
        SamplingParams(9, temperature=1.2, top_k=5, seed=2),
        SamplingParams(9, temperature=1.0, top_p=0.7, seed=3), SamplingParams(9, temperature=1.0, min_p=0.1, seed=4),
        SamplingParams(9, temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, seed=5), SamplingParams(9, logprobs=2),
        SamplingParams(9, repetition_penalty=1.3), SamplingParams(9, num_beams=2),
    ]  # fmt: skip
    requests = []
    for number, text in enumerate(texts):
        params = choices[number % len(choices)]
        requests.append((text, params, engine.submit(text, params)))
        engine.step()
    for text, params, request in requests:
        assert_same(request.result(), alone(model, text, params, engine.end_ids))
    assert_nothing_is_left(engine)
    assert engine.statistics.decoder == "static" and engine.scheduler.runner.static.steps > 10


def test_what_cannot_be_static_says_why():
    for name, reason in (("longrope", "frequencies"), ("dynamic", "frequencies")):
        engine = static_engine(random_model(CONFIGS[name]))
        engine.generate(prompts(2), SamplingParams(3))
        assert reason in engine.scheduler.runner.static.reason and engine.scheduler.runner.static.steps == 0
    mixture = static_engine(random_model(llama(experts=ExpertsConfig(4, 2, 16))))
    mixture.generate([[3, 4]], SamplingParams(3))
    assert "which experts" in mixture.scheduler.runner.static.reason
    engine = static_engine(random_model(llama()))
    hook = engine.model.layers[0].register_forward_hook(lambda *_: None)
    engine.generate([[3, 4]], SamplingParams(3))
    assert engine.scheduler.runner.static.reason == "the model has a hook"
    hook.remove()
    engine.generate([[3, 4]], SamplingParams(3))
    assert engine.scheduler.runner.static.reason == "" and engine.scheduler.runner.static.steps == 2
    plain = Engine(random_model(llama()), native=False)
    plain.generate([[3, 4]], SamplingParams(3))
    assert plain.scheduler.runner.static.reason == "switched off"


def test_changed_weights_and_adapters():
    """Weights that change in place keep the steps; weights that move, and a cache that grows, make new ones."""
    model, params = random_model(llama()), SamplingParams(20, ignore_eos=True)
    engine = static_engine(model)
    static = engine.scheduler.runner.static
    first = engine.generate([[3, 4]], params)
    steps = dict(static._runs)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    second = engine.generate([[3, 4]], params)
    assert static._runs == steps
    model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight.detach())
    third = engine.generate([[3, 4]], params)
    assert static._runs.keys() == steps.keys() and static._runs != steps
    assert [each.ids for each in first] == [each.ids for each in third] != [each.ids for each in second]
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert second[0].ids == alone(model, [3, 4], params, engine.end_ids).ids


def test_adapters_take_turns():
    model = random_model(llama())
    AdapterSet.create(model, ["a", "b"], AdapterSettings(rank=2))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora" in name.lower():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    engine, params = static_engine(model), SamplingParams(6, ignore_eos=True)
    for adapter in ("a", "b", None, "a"):
        found = engine.generate([[30, 31, 32]], params, adapters=adapter)[0]
        assert_same(found, alone(model, [30, 31, 32], params, engine.end_ids, adapter))
    assert engine.scheduler.runner.static.steps == 4 * 5


def test_sizes_of_steps():
    cache = KVCache(llama(), 20, 1000)
    assert [step_size(count, 10, cache)[0] for count in (1, 2, 3, 5, 9, 16, 17, 20)] == [1, 2, 4, 8, 16, 16, 20, 20]
    assert [step_size(1, longest, cache)[1] for longest in (1, 256, 257, 600, 1000)] == [256, 256, 512, 1000, 1000]
    assert step_size(300, 10, KVCache(llama(), 400, 10)) == (300, 10)


def rows_of(params: SamplingParams, count: int) -> list[SequenceState]:
    return [SequenceState([1], params, 10, seed) for seed in range(count)]


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 6, "top_p": 0.9, "min_p": 0.05}], ids=str
)
def test_fused_samples_have_the_right_distribution(settings):
    """Against the distribution of transformers' processors, by chi-square with fixed seeds."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    makers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    chain = LogitsProcessorList([TemperatureLogitsWarper(0.7), *(makers[name](settings[name]) for name in settings)])
    expected = chain(torch.zeros(1, 1, dtype=torch.long), logits.clone())[0].softmax(-1).double()
    count = 5000
    rows = rows_of(SamplingParams(temperature=0.7, **settings), count)
    values = fused.settings_of(rows, 12, logits.device)
    found = fused.choose(logits.expand(count, -1), values)
    counts = torch.bincount(found[0].long(), minlength=12).double()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert chisquare(counts[kept].numpy(), (expected[kept] / expected[kept].sum() * count).numpy()).pvalue > 1e-3
    torch.testing.assert_close(found[1], logits.log_softmax(-1)[0, found[0].long()])


def test_fused_rows_are_their_own():
    """Rows of all parameters together are what each is alone; greedy ones are the likeliest; broken ones are seen."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 300, generator=generator) * 3
    draw = random.Random(0)
    rows = [
        SequenceState([1], SamplingParams(
            temperature=draw.choice((0.0, 0.5, 1e-30, 2.0)), top_k=draw.choice((None, 1, 7, 1000)),
            top_p=draw.choice((None, 0.3, 0.95)), min_p=draw.choice((None, 0.2)),
        ), 5, seed)
        for seed in range(40)
    ]  # fmt: skip
    together = fused.choose(logits, fused.settings_of(rows, 300, logits.device))
    for index, row in enumerate(rows):
        one = fused.choose(logits[index : index + 1], fused.settings_of([row], 300, logits.device))
        torch.testing.assert_close(one[:, 0], together[:, index])
        if row.params.temperature in (0.0, 1e-30) or row.params.top_k == 1:
            assert together[0, index] == logits[index].argmax()
    chooser = Engine(random_model(llama())).chooser
    chooser.fuse = True
    logits[3, 5], logits[7, 0] = float("nan"), float("inf")
    choice = chooser.choose(logits, rows)
    assert [index for index, problem in enumerate(choice.problems) if problem is not None] == [3, 7]


@pytest.mark.gpu
@pytest.mark.parametrize("name", STATIC)
def test_captured_on_cuda(name):
    """Captured steps give what plain PyTorch gives on the same device."""
    model, texts = random_model(CONFIGS[name]).cuda(), prompts(9, high=30)
    engine, plain = Engine(model, end_ids=[5]), Engine(model, end_ids=[5], native=False)
    for params in (SamplingParams(30), SamplingParams(30, temperature=1.0, top_p=0.9, seed=1)):
        found, expected = engine.generate(texts, params), plain.generate(texts, params)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    assert engine.statistics.decoder == "static" and engine.scheduler.runner.static.steps > 0
