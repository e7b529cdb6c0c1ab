"""Continuous batching: what a request gives does not depend on what else runs, and nothing is left behind."""

import gc
import random
import threading
import weakref

import battery
import pytest
import torch
from running import CONFIGS, SPEAKERS, alone, assert_nothing_is_left, assert_same, engine_of, prompts
from tiny_models import llama, random_model

from quatrain.adapters.adapter_set import AdapterSet, Member
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.runner import ModelRunner
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.planning.limits import check_generation


@pytest.mark.parametrize("case", SPEAKERS, ids=str)
def test_every_family_in_any_company(case):
    """Together, in parts, from the cache, and as they were alone."""
    model = battery.loaded(case)
    params, ends = SamplingParams(9), [5, 6, 7]
    texts = prompts(3, stem=range(30, 36), high=9) + prompts(3, seed=1)
    expected = [alone(model, text, params, ends) for text in texts]
    engine = engine_of(model, end_ids=ends, max_rows=4)
    for _ in range(2):  # the second time from the cache
        requests = []
        for text in texts:
            requests.append(engine.submit(text, params))
            engine.step()
        for request, wanted in zip(requests, expected, strict=True):
            assert_same(request.result(), wanted)
    assert_nothing_is_left(engine)
    runner = engine.scheduler.runner
    if not case.seq2seq and runner.original_length is None and runner.cache.window is None:
        reused = engine.statistics.reused_tokens
        # A recurrent state cannot go back: only a text that continues a whole one is read from the cache.
        assert reused == 0 if model.config.recurs else reused > 6


@pytest.mark.parametrize("name", CONFIGS)
def test_random_schedules(name):
    """Requests that arrive, leave and are cancelled at random give their own results and leave nothing behind."""
    model, generator = random_model(CONFIGS[name]), random.Random(name)
    engine = engine_of(model, max_rows=5)
    texts = prompts(12, high=14, stem=range(40, 45)) + prompts(12, seed=1, high=25)
    choices = [SamplingParams(n, temperature=t, seed=3) for n in (1, 6, 17) for t in (0.0, 1.0)]
    expected, running, counts = {}, [], dict.fromkeys(("stop", "length", "cancelled"), 0)
    for _ in range(170):
        for _ in range(generator.choice((0, 0, 1, 1, 4))):
            key = generator.randrange(len(texts)), generator.randrange(len(choices))
            running.append((key, engine.submit(texts[key[0]], choices[key[1]])))
        if running and generator.random() < 0.15:
            _, request = generator.choice(running)
            request.cancel()
            engine.step()
            assert request.done, "cancelled within one step"
        engine.step()
        for key, request in [pair for pair in running if pair[1].done]:
            running.remove((key, request))
            found = request.result()
            counts[found.finish_reason] += 1
            if key not in expected:
                expected[key] = alone(model, texts[key[0]], choices[key[1]], engine.end_ids)
            if found.finish_reason == "cancelled":
                assert found.ids == expected[key].ids[: len(found.ids)]
            else:
                assert_same(found, expected[key])
    for _, request in running:
        request.cancel()
    while engine.step():
        pass
    assert min(counts.values()) > 3 and sum(counts.values()) > 100
    assert_nothing_is_left(engine)


def test_a_thousand_requests():
    model = random_model(CONFIGS["llama"])
    engine, generator = engine_of(model, max_rows=9), random.Random(0)
    texts = prompts(20, high=9)
    expected = [alone(model, text, SamplingParams(8), engine.end_ids).ids for text in texts]
    requests = []
    while len(requests) < 1000 or engine.step():
        if len(requests) < 1000:
            index = generator.randrange(20)
            requests.append((index, engine.submit(texts[index], SamplingParams(8))))
            if generator.random() < 0.1:
                generator.choice(requests)[1].cancel()
            if generator.random() < 0.4:
                engine.step()
    for index, request in requests:
        found = request.result()
        assert found.ids == expected[index][: len(found.ids)]
        assert found.finish_reason == "cancelled" or len(found.ids) == len(expected[index])
    assert_nothing_is_left(engine)
    numbers = engine.statistics
    assert numbers.finished + numbers.cancelled == 1000 and numbers.failed == 0
    assert numbers.running == numbers.waiting == 0 and numbers.started >= numbers.finished


@pytest.mark.parametrize("name", ["llama", "sliding", "longrope", "bloom"])
def test_chunks_batches_and_reused_texts_give_the_logits_of_one_pass(name):
    model = random_model(CONFIGS[name])
    text = prompts(1, seed=4, low=30, high=31)[0]
    with torch.inference_mode():
        expected = model(torch.tensor([text]))[0][0, -1]
        for parts in ([30], [7, 7, 7, 7, 2], [1] * 30):
            runner = ModelRunner(model, 2)
            start = 0
            for count in parts:
                piece = text[start : start + count]
                found = runner.read(1, [piece], adapters=[None], text_lengths=[len(text)])
                start += count
            torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
        ragged = ModelRunner(model, 3)
        found = ragged.read(0, [text, text[:3], text[:11]], adapters=[None] * 3)
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
        every = ModelRunner(model, 2).read(0, [text[:5], text[:9]], adapters=[None] * 2, every=True)
        for row, length in enumerate((5, 9)):
            own = model(torch.tensor([text[:length]]))[0][0]
            torch.testing.assert_close(every[row, :length], own, atol=1e-5, rtol=1e-5)


def test_a_long_prompt_does_not_stall_the_others():
    engine = engine_of(random_model(CONFIGS["llama"]), end_ids=[])
    first = engine.submit([30, 31], SamplingParams(40))
    engine.step()
    long = engine.submit(prompts(1, low=50, high=51)[0], SamplingParams(3))
    for step in range(1, 6):
        engine.step()
        assert len(first.sequences[0].ids) == 1 + step, "a token each step"
        assert not long.sequences[0].ids and engine.scheduler.reading == 1
    assert len(long.result().ids) == 3 and not first.done
    assert len(first.result().ids) == 40


def test_several_samples_of_one_prompt_are_read_once():
    engine = engine_of(random_model(CONFIGS["llama"]), chunk=512, min_reuse=16, end_ids=[])
    text = prompts(1, low=40, high=41)[0]
    params = SamplingParams(6, temperature=1.0, seed=1, num_return_sequences=5)
    (found,) = engine.generate([text], params)
    assert len({tuple(each.ids) for each in (found, *found.alternatives)}) == 5
    assert engine.statistics.reused_tokens == 4 * 39
    apart = Engine(engine.model, end_ids=[]).generate([text] * 5, SamplingParams(6, temperature=1.0, seed=1))
    assert [each.ids for each in apart] == [each.ids for each in (found, *found.alternatives)]


def test_the_encoder_reads_a_prompt_once_for_all_its_samples(monkeypatch):
    case = next(case for case in SPEAKERS if case.seq2seq)
    model, calls = battery.loaded(case), []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda ids, **more: calls.append(ids.shape) or encode(ids, **more))
    engine, text = engine_of(model, end_ids=[]), prompts(1, low=12, high=13)[0]
    first = engine.generate([text], SamplingParams(5))[0]
    again = engine.generate([text], SamplingParams(5))[0]
    assert len(calls) == 1
    assert_same(again, first)


def test_a_conversation_continues_where_it_was():
    engine = engine_of(random_model(CONFIGS["gpt2"]), chunk=512, end_ids=[])
    text = prompts(1, low=20, high=21)[0]
    for _ in range(3):
        answer = engine.generate([text], SamplingParams(4))[0]
        assert_same(answer, alone(engine.model, text, SamplingParams(4), []))
        text = [*text, *answer.ids, 33, 34]
    assert engine.statistics.reused_tokens == (20 + 3) + (20 + 6 + 3)


def test_changed_weights_are_not_answered_from_the_cache():
    model = random_model(CONFIGS["llama"])
    engine, text = engine_of(model), prompts(1, low=20, high=21)[0]
    before = engine.generate([text], SamplingParams(6))[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    after = engine.generate([text], SamplingParams(6))[0]
    assert_same(after, alone(model, text, SamplingParams(6), engine.end_ids))
    assert after.ids != before.ids and engine.statistics.reused_tokens == 0


def adapted(settings, names=("a", "b"), **more):
    model = random_model(llama(vocab_size=120))
    adapters = AdapterSet.create(model, names, settings, **more)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for member in adapters.members.values():
            for layer in member.layers.values():
                for parameter in layer.adapter_parameters().values():
                    parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        AdapterSettings(method="lora", rank=2),
        AdapterSettings(method="prompt", num_virtual_tokens=4),
        AdapterSettings(method="prefix", num_virtual_tokens=3),
    ],
    ids=["lora", "prompt", "prefix"],
)
def test_the_cache_of_one_adapter_is_not_that_of_another(settings):
    model = adapted(settings)
    texts, params = prompts(4, low=10, high=20), SamplingParams(6)
    cold = {
        (number, name): alone(model, text, params, [], name)
        for number, text in enumerate(texts)
        for name in (None, "a", "b")
    }
    assert len({tuple(each.ids) for key, each in cold.items() if key[0] == 0}) == 3
    engine = engine_of(model, end_ids=[], max_rows=5, idle_slots=12)
    for _ in range(2):
        requests = [(key, engine.submit(texts[key[0]], params, adapter=key[1])) for key in cold]
        for key, request in requests:
            assert_same(request.result(), cold[key])
    assert engine.statistics.reused_tokens > 0
    assert_nothing_is_left(engine)


def test_adapters_with_weights_of_the_model_take_turns():
    model = random_model(llama(vocab_size=120))
    generator = torch.Generator().manual_seed(0)
    changed = {name: {"norm.weight": 1 + torch.randn(32, generator=generator)} for name in ("a", "b")}
    AdapterSet(model, {name: Member({}, None, 120, weights=whole) for name, whole in changed.items()})
    texts, params = prompts(3, low=5), SamplingParams(5)
    cold = {
        (number, name): alone(model, texts[number], params, [], name)
        for number in range(3)
        for name in (None, *changed)
    }
    assert len({tuple(each.ids) for key, each in cold.items() if key[0] == 0}) == 3
    engine = engine_of(model, end_ids=[])
    requests = [(key, engine.submit(texts[key[0]], params, adapter=key[1])) for key in cold]
    while engine.step():
        assert len({slot.sequence.adapter for slot in engine.scheduler.slots if slot.sequence is not None}) <= 1
    for key, request in requests:
        assert_same(request.result(), cold[key])
    assert_nothing_is_left(engine)


def test_a_request_that_fails_does_so_alone():
    model = random_model(CONFIGS["llama"])
    engine = engine_of(model, end_ids=[])
    text = prompts(1)[0]
    broken, whole = [7, 8], [9, 10, 11]
    with torch.no_grad():
        model.embed_tokens.weight[7] = float("nan")
    expected = alone(model, text, SamplingParams(9), [])
    for wrong in (broken, broken):
        requests = [engine.submit(each, SamplingParams(9)) for each in (text, wrong, whole)]
        assert_same(requests[0].result(), expected)
        with pytest.raises(QuatrainError, match="not finite"):
            requests[1].result()
        with pytest.raises(QuatrainError, match="not finite"):
            list(requests[1])
        assert len(requests[2].result().ids) == 9
    assert engine.statistics.failed == 2
    assert_nothing_is_left(engine)


def _once(function, argument, failures):
    """The function's result, after one failure."""
    if failures:
        raise failures.pop()
    return function(argument)


def test_an_error_in_a_step_fails_what_runs_and_nothing_else(monkeypatch):
    engine = engine_of(random_model(CONFIGS["llama"]), end_ids=[], max_rows=2, chunk=512)
    requests = [engine.submit(text, SamplingParams(5)) for text in prompts(3)]
    engine.step()
    with monkeypatch.context() as patched:
        patched.setattr(engine.model, "lm_logits", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    for request in requests[:2]:
        with pytest.raises(ZeroDivisionError):
            request.result()
    assert len(requests[2].result().ids) == 5
    first, second = (engine.submit(text, SamplingParams(5)) for text in prompts(2))
    monkeypatch.setattr(
        engine.model, "lm_logits", lambda hidden, own=engine.model.lm_logits: _once(own, hidden, failures)
    )
    engine.scheduler.max_rows = 1
    failures = [ZeroDivisionError()]
    assert len(second.result().ids) == 5, "whoever waits for another request goes on"
    with pytest.raises(ZeroDivisionError):
        first.result()
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("params", [SamplingParams(5), SamplingParams(5, num_beams=2)], ids=["plain", "beams"])
def test_a_request_that_cannot_start_is_not_lost(monkeypatch, params):
    engine = engine_of(random_model(CONFIGS["llama"]), end_ids=[])
    requests = [engine.submit(text, params) for text in prompts(2)]
    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "_empty", lambda *sizes: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    with pytest.raises(ZeroDivisionError):
        requests[0].result()
    for request in requests[1:] if params.num_beams == 1 else []:
        assert len(request.result().ids) == 5
    assert_nothing_is_left(engine)


def test_searches_run_beside_other_requests():
    model = random_model(CONFIGS["llama"])
    engine = engine_of(model, max_rows=9)
    texts, beams, plain = prompts(6), SamplingParams(9, num_beams=3, num_return_sequences=2), SamplingParams(9)
    expected = [alone(model, text, params, engine.end_ids) for text in texts for params in (beams, plain)]
    requests = [engine.submit(text, params) for text in texts for params in (beams, plain)]
    requests[4].cancel()
    found = [request.result() for request in requests]
    assert found[4].finish_reason == "cancelled"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if number != 4:
            assert (one.ids, [each.ids for each in one.alternatives]) == (
                other.ids,
                [each.ids for each in other.alternatives],
            )
    assert_nothing_is_left(engine)


def test_threads_submit_and_cancel_while_another_steps():
    model = random_model(CONFIGS["llama"])
    engine = engine_of(model, max_rows=6)
    texts = prompts(10)
    expected = [alone(model, text, SamplingParams(12), engine.end_ids) for text in texts]
    stop, failures = threading.Event(), []

    def work():
        while not stop.is_set():
            if engine.wait(timeout=0.01):
                engine.step()

    def ask(number):
        try:
            generator = random.Random(number)
            for _ in range(12):
                index = generator.randrange(len(texts))
                request = engine.submit(texts[index], SamplingParams(12))
                if generator.random() < 0.2:
                    request.cancel()
                found = request.result() if generator.random() < 0.5 else list(request)[-1].completion
                assert found.ids == expected[index].ids[: len(found.ids)]
                assert found.finish_reason == "cancelled" or found.ids == expected[index].ids
        except BaseException as error:
            failures.append(error)

    worker, askers = threading.Thread(target=work), [threading.Thread(target=ask, args=(n,)) for n in range(5)]
    for thread in (worker, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    stop.set()
    worker.join()
    assert not failures
    assert_nothing_is_left(engine)


def test_an_abandoned_stream_is_cancelled():
    engine = engine_of(random_model(CONFIGS["llama"]), end_ids=[])
    unread = engine.stream([30, 31], SamplingParams(50))
    pieces = engine.stream([30, 32], SamplingParams(50))
    engine.step()
    assert engine.statistics.running == 2
    del unread, pieces
    gc.collect()
    engine.step()
    assert engine.scheduler.is_idle and engine.statistics.cancelled == 2


def test_a_dropped_engine_frees_its_memory_at_once():
    engine = engine_of(random_model(CONFIGS["llama"]), end_ids=[])
    engine.generate(prompts(3), SamplingParams(3, num_beams=2))
    engine.submit([30], SamplingParams(3)).result()
    cache, model = (weakref.ref(each) for each in (engine.scheduler.runner.cache, engine.model))
    gc.disable()
    try:
        del engine
        assert cache() is None and model() is None
    finally:
        gc.enable()


def test_idle_slots_are_few_and_the_oldest_goes_first():
    engine = engine_of(random_model(CONFIGS["llama"]), end_ids=[], idle_slots=2, chunk=512)
    texts = prompts(6, low=20, high=21)
    for text in texts:
        engine.generate([text], SamplingParams(2))
    assert len(engine.scheduler.slots) <= 3
    before = engine.statistics.reused_tokens
    engine.generate([texts[-1]], SamplingParams(2))
    assert engine.statistics.reused_tokens == before + 19
    engine.generate([texts[0]], SamplingParams(2))
    assert engine.statistics.reused_tokens == before + 19


def test_idle_slots_give_their_memory_back(monkeypatch):
    from quatrain.generation import scheduler

    engine = engine_of(random_model(CONFIGS["llama"]), end_ids=[])
    texts = prompts(8, low=20, high=21)
    engine.generate(texts, SamplingParams(2))
    whole = engine.statistics
    monkeypatch.setattr(scheduler, "IDLE_BYTES", whole.cache_bytes // 4)
    monkeypatch.setattr(scheduler, "available_memory", lambda device: whole.cache_bytes)
    engine.generate([texts[-1]], SamplingParams(2))
    assert engine.statistics.cache_bytes <= whole.cache_bytes // 4 and engine.statistics.slots < whole.slots
    assert_same(engine.generate([texts[2]], SamplingParams(2))[0], alone(engine.model, texts[2], SamplingParams(2), []))


def test_the_cache_takes_no_more_than_was_estimated():
    model = random_model(CONFIGS["llama"])
    engine = Engine(model, end_ids=[])
    texts, most = prompts(8, low=5, high=30), 0
    requests = [engine.submit(text, SamplingParams(30)) for text in texts]
    while engine.step():
        most = max(most, engine.statistics.cache_bytes)
    assert all(request.done for request in requests)
    width = max(map(len, texts)) + 30
    item = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim * 4
    assert most <= len(texts) * width * item
    check_generation(model.config, prompts=8, beams=1, prompt_tokens=width - 30, new_tokens=30)


def test_requests_wait_for_memory(monkeypatch):
    from quatrain.planning import limits

    model = random_model(CONFIGS["llama"])
    item = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim * 4
    engine = engine_of(model, end_ids=[])
    monkeypatch.setattr(limits, "UNCHECKED_GENERATION", 0)
    monkeypatch.setattr(limits, "available_memory", lambda device: 3 * 60 * item - engine.statistics.cache_bytes)
    requests = [engine.submit(text, SamplingParams(30)) for text in prompts(8, low=10, high=30)]
    most = 0
    while engine.step():
        most = max(most, engine.statistics.running)
        assert engine.statistics.cache_bytes <= 3 * 60 * item
    assert 1 < most <= 3
    assert all(len(request.result().ids) == 30 for request in requests)


def test_what_cannot_run_is_refused_when_it_is_submitted():
    engine = engine_of(random_model(CONFIGS["llama"]))
    for prompt in ([5] * 64, [120], [-1], [None]):
        with pytest.raises(InputError):
            engine.submit(prompt, SamplingParams(3))
    with pytest.raises(InputError, match="adapters"):
        engine.submit([5], SamplingParams(3), adapter="x")
    assert_nothing_is_left(engine)
