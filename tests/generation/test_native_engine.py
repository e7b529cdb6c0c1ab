"""The engine decodes natively what it decodes in PyTorch: the same ids, whatever runs together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import llama, random_model

from quatrain.compression import methods
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.kernels import code_cache

pytest.importorskip("numba")
pytestmark = pytest.mark.xdist_group("native")

PROMPTS = [[number % 50 + 1 for number in range(start, start + length)]
           for start, length in ((0, 3), (7, 11), (20, 1), (31, 6), (0, 5))]  # fmt: skip


def engines(config=None, method: str | None = None) -> list[Engine]:
    """One that decodes natively, and one that does not."""
    made = []
    for native in (True, False):
        model = random_model(config or llama(num_attention_heads=2, num_key_value_heads=2))
        if method is not None:
            methods.quantize(model, method)
        made.append(Engine(model, native=native))
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_same_ids_as_torch(temperature: float) -> None:
    native, plain = engines()
    params = SamplingParams(max_new_tokens=20, temperature=temperature, ignore_eos=True, seed=3)
    found, expected = native.generate(PROMPTS, params), plain.generate(PROMPTS, params)
    assert [each.ids for each in found] == [each.ids for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4)
    statistics = native.statistics
    assert statistics.decoder == "native" and not statistics.decoder_reason
    assert statistics.weight_bandwidth > 0 and statistics.memory_bandwidth > 0
    assert plain.statistics.decoder == "torch" and plain.statistics.decoder_reason == "switched off"


def test_greedy_rows_beside_others() -> None:
    """Native code chooses for plain greedy rows alone; each row is what it is by itself, with its log-probabilities."""
    native, plain = engines()
    choices = [
        SamplingParams(max_new_tokens=9),
        SamplingParams(max_new_tokens=9, temperature=1.0, seed=1),
        SamplingParams(max_new_tokens=9, logprobs=2),
        SamplingParams(max_new_tokens=9, repetition_penalty=1.5),
        SamplingParams(max_new_tokens=9, logprobs_mode="processed"),
    ]
    requests = [native.submit(prompt, params) for prompt, params in zip(PROMPTS, choices, strict=True)]
    for prompt, params, request in zip(PROMPTS, choices, requests, strict=True):
        found, (expected,) = request.result(), plain.generate([prompt], params)
        assert found.ids == expected.ids
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert len(found.top_logprobs) == len(expected.top_logprobs)


def test_sliding_windows_move() -> None:
    native, plain = engines(llama(sliding_window=5, layer_types=("sliding", "full")))
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    found, expected = native.generate(PROMPTS, params), plain.generate(PROMPTS, params)
    assert [each.ids for each in found] == [each.ids for each in expected]


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_one_by_one_and_together(method: str) -> None:
    config = llama(hidden_size=64, intermediate_size=128, num_key_value_heads=4, tie_word_embeddings=True)
    native, _ = engines(config, method)
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    alone = [native.generate([prompt], params)[0].ids for prompt in PROMPTS]
    assert [each.ids for each in native.generate(PROMPTS, params)] == alone


def test_small_models_stay_in_torch_unless_asked() -> None:
    engine = Engine(random_model(llama()))
    engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=2))
    assert engine.statistics.decoder == "torch" and "not worth" in engine.statistics.decoder_reason


def test_compiled_code_decodes_small_models_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_new_tokens=2)
    monkeypatch.setattr("quatrain.models.kernels.decode.is_compiled", lambda: True)
    engine = Engine(random_model(llama()), native="compiled")
    engine.generate(PROMPTS[:1], params)
    assert engine.statistics.decoder == "native"

    monkeypatch.setattr("quatrain.models.kernels.decode.is_compiled", lambda: False)
    engine = Engine(random_model(llama()), native="compiled")
    engine.generate(PROMPTS[:1], params)
    assert engine.statistics.decoder == "torch" and "not compiled yet" in engine.statistics.decoder_reason


def test_whether_code_is_compiled_is_read_from_the_cache(tmp_path: Path) -> None:
    """In processes of their own: one with an empty cache, one with the code of a file of another content."""
    Engine(random_model(llama()), native=True).generate(PROMPTS[:1], SamplingParams(max_new_tokens=2))
    program = "from quatrain.models.kernels.code_cache import is_compiled; print(is_compiled())"

    def said(**more: str) -> str:
        environment = {**os.environ, **more}
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True).stdout

    if "NUMBA_CACHE_DIR" not in os.environ:
        assert said() == "True\n"
    assert said(NUMBA_CACHE_DIR=str(tmp_path)) == "False\n"
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "decode_step.take_part_0123456789abcdef-911.py311.nbi").touch()
    assert said(NUMBA_CACHE_DIR=str(tmp_path)) == "False\n"


@pytest.mark.parametrize("version, problem", [("0.61.2", "installed is 0.61.2"), ("0.66.0", None), ("1.0rc1", None)])
def test_a_numba_whose_llvm_cannot_compile_is_not_imported(
    version: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    found = code_cache.numba_problem.__wrapped__()
    assert found is None if problem is None else problem in found and "install -U" in found


def test_measured_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quatrain.models.kernels.decode.MIN_BYTES", 0)
    engine = Engine(random_model(llama()))
    engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=2))
    native = engine.scheduler.runner.native
    assert set(native.measured) == {"native", "torch"}
    faster = native.measured["native"] < native.measured["torch"]
    assert engine.statistics.decoder == ("native" if faster else "torch")


def test_changed_weights_are_noticed() -> None:
    native, _ = engines()
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    before = native.generate(PROMPTS, params)
    with torch.no_grad():
        native.model.lm_head.weight.neg_()
    after = native.generate(PROMPTS, params)
    expected = Engine(native.model, native=False).generate(PROMPTS, params)
    assert [each.ids for each in after] == [each.ids for each in expected] != [each.ids for each in before]


def test_searches_decode_natively() -> None:
    native, plain = engines()
    for more in ({"num_beams": 3}, {"guidance_scale": 1.5}):
        params = SamplingParams(max_new_tokens=15, **more)
        found, expected = native.generate(PROMPTS, params), plain.generate(PROMPTS, params)
        assert [each.ids for each in found] == [each.ids for each in expected]
    requests = [native.submit(prompt, SamplingParams(max_new_tokens=4, num_beams=2)) for prompt in PROMPTS]
    native.step()
    native.step()
    assert all(search.model.runner.native.steps > 0 for search in native.scheduler.searches)
    assert all(len(request.result().ids) == 4 for request in requests)
