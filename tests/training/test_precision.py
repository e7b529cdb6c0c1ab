"""Weights in bfloat16 while they train: masters of those that learn, and frozen ones that are held once or twice."""

from __future__ import annotations

import pytest
import torch
from tiny_models import llama
from torch import Tensor

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.planning.training_memory import training_memory
from quatrain.training.objectives import Causal
from quatrain.training.precision import Precision
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import WindowStream
from quatrain.training.trainer import Trainer

CONFIG: ModelConfig = llama(hidden_size=32, intermediate_size=64)
ADAPTER = AdapterSettings.model_validate({"rank": 4, "trainable_tokens": "none"})
TOKENS = torch.randint(0, CONFIG.vocab_size, (4000,), generator=torch.Generator().manual_seed(1)).numpy()


def adapted(*, rounded: bool) -> Model:
    """A float32 model under LoRA, its weights read from bfloat16 or not."""
    model = Model(CONFIG).initialize(0)
    if rounded:
        model = model.bfloat16().float()
    apply_adapter(model, ADAPTER, seed=0)
    return model


def frozen(model: Model) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}


@pytest.mark.parametrize("rounded", [True, False])
def test_frozen_weights_are_held_once_where_the_narrow_dtype_has_them(rounded: bool) -> None:
    model = adapted(rounded=rounded)
    before = frozen(model)
    weights = Precision(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    wide = {id(parameter) for parameter, _ in weights._kept}
    # Norms begin at one, and some matrices at zero, which bfloat16 has either way.
    matrices = [each for name, each in model.named_parameters() if name in before and each.dim() == 2 and each.any()]
    assert all((id(each) in wide) == (not rounded) for each in matrices)
    assert all(id(each) in wide for name, each in model.named_parameters() if name not in before)
    with weights.full():
        assert all(torch.equal(each, before[name]) for name, each in frozen(model).items())
        with weights.full():
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    weights.close()
    assert all(torch.equal(each, before[name]) for name, each in frozen(model).items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_holding_them_once_changes_no_bit_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings.model_validate(
        {"steps": 4, "batch_tokens": 64, "learning_rate": 0.01, "precision": "bfloat16", "warmup_steps": 0}
    )

    def trained(model: Model) -> dict[str, Tensor]:
        Trainer(model, Causal(), WindowStream(TOKENS, length=16, rows=4, seed=0), settings, steps=4).train()
        return dict(model.state_dict())

    once = trained(adapted(rounded=True))
    monkeypatch.setattr("quatrain.training.precision._is_exact", lambda *given: False)
    twice = trained(adapted(rounded=True))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_infinities_and_what_is_no_number_are_kept_as_they_are() -> None:
    model = adapted(rounded=True)
    weight = next(each for name, each in model.named_parameters() if not each.requires_grad and each.dim() == 2)
    with torch.no_grad():
        weight[0, 0], weight[0, 1] = float("nan"), float("inf")
    before = weight.detach().clone()
    weights = Precision(model, torch.bfloat16)
    weights.close()
    assert torch.equal(weight.nan_to_num(7.0), before.nan_to_num(7.0))


def test_a_plan_knows_what_the_files_hold() -> None:
    settings = TrainSettings.model_validate({"steps": 1, "batch_tokens": 32, "warmup_steps": 0, "device": "cpu"})

    def said(stored: str, precision: str = "bfloat16") -> dict[str, int]:
        found = training_memory(
            CONFIG, settings, rows=2, length=16, precision=precision, adapter=ADAPTER, stored=stored
        )
        return found.parts | {"peak": found.peak}

    numbers = sum(each.numel() for each in frozen(adapted(rounded=True)).values())
    wide, narrow = said("float32"), said("bfloat16")
    assert wide["weights"] - narrow["weights"] == 4 * numbers
    assert said("bfloat16", "float32") == said("float32", "float32")
    assert narrow["peak"] >= 4 * numbers, "reading them takes that much"


def test_an_engine_notices_every_step():
    """The cache of an engine that is kept during training is that of the present weights."""
    from tiny_models import llama, random_model

    from quatrain.generation.engine import Engine, SamplingParams

    model, prompt, params = random_model(llama()), list(range(5, 40)), SamplingParams(8, ignore_eos=True)
    precision = Precision(model, torch.bfloat16)
    engine = Engine(model)
    for _ in range(3):
        with torch.no_grad():
            for master in precision.masters.values():
                master.mul_(-0.8)
        precision.publish()
        (found,) = engine.generate([prompt], params)
        assert found.ids == Engine(model).generate([prompt], params)[0].ids
        with precision.full():
            (found,) = engine.generate([prompt], params)
            assert found.ids == Engine(model).generate([prompt], params)[0].ids
            assert found.logprobs == pytest.approx(Engine(model).generate([prompt], params)[0].logprobs, abs=1e-5)
    assert engine.statistics.reused_tokens == 0
