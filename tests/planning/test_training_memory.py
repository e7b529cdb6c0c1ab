"""What a plan says a training holds, beside what one holds; nothing of the weights is there when it is said."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from quick_set import some
from tiny_training import CONFIG, settings

from quatrain.adapters.apply import apply_adapter, count_trainable_parameters
from quatrain.adapters.settings import AdapterSettings
from quatrain.compression import methods
from quatrain.core.errors import InputError
from quatrain.data.batches import TokenBatch
from quatrain.models.families.fresh import fresh_config
from quatrain.models.transformer.stack import Model
from quatrain.planning import training_memory as module
from quatrain.planning.training_memory import Heap, training_memory
from quatrain.training.objectives import Causal
from quatrain.training.trainer import Trainer

SHAPE = CONFIG.replace(hidden_size=128, intermediate_size=256, vocab_size=500, max_position_embeddings=128)
ADAPTERS = [
    None, *({"method": each} for each in ("lora", "dora", "ia3", "prefix")), {"method": "lora", "quantize_base": "nf4"}
]  # fmt: skip


class Same:
    """One batch for ever."""

    def __init__(self):
        self.batch = TokenBatch.of(torch.arange(128).view(2, 64), torch.arange(1, 129).view(2, 64))

    def next(self):
        return self.batch

    def state(self):
        return {}

    def load_state(self, state):
        pass


@pytest.mark.parametrize("precision", some(["float32", "bfloat16"], ["float32"]))
@pytest.mark.parametrize("given_", ADAPTERS, ids=str)
@pytest.mark.parametrize("optimizer", some(["adamw", "adamw8bit", "muon"], ["adamw"]))
def test_the_parts_are_those_that_a_training_measures(given_, precision, optimizer):
    if given_ is not None and optimizer == "muon":
        pytest.skip("thin matrices go to AdamW")
    adapter = None if given_ is None else AdapterSettings(**given_, trainable_tokens="none")
    wanted = settings(optimizer=optimizer, precision=precision, steps=3)
    said = training_memory(SHAPE, wanted, rows=2, length=64, precision=precision, adapter=adapter)
    model = Model(SHAPE).initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():  # fresh ones are zero in places, over which DoRA divides
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    if adapter is not None:
        if adapter.quantize_base == "nf4":
            methods.quantize(model, "nf4")
        apply_adapter(model, adapter)
    assert (said.trainable, said.total) == count_trainable_parameters(model)[:2]
    found = Trainer(model, Causal(), Same(), wanted, steps=3).train().memory
    for part in ("gradients", "logits"):
        assert said.parts[part] == found[part], part
    steps = 4 * sum(parameter.requires_grad for parameter in model.parameters())
    assert said.parts["optimizer"] == pytest.approx(found["optimizer"], abs=steps)
    assert said.parts["activations"] == pytest.approx(found["activations"], rel=0.02)
    if precision == "float32":
        assert said.parts["weights"] + said.parts["adapter"] == pytest.approx(found["weights"], rel=0.01)
    assert said.peak > said.parts["weights"] + said.parts["adapter"] + said.parts["optimizer"]


def test_all_of_a_quantized_model_is_counted():
    model = Model(SHAPE).initialize(0)
    whole = model.num_parameters()
    methods.quantize(model, "nf4")
    assert count_trainable_parameters(model.requires_grad_(False))[:2] == (0, whole)


@pytest.mark.slow
def test_less_is_held_of_what_is_said_to_save_memory():
    def peak(adapter=None, **changes):
        wanted = settings(**changes)
        deep = SHAPE.replace(num_hidden_layers=3)
        return training_memory(deep, wanted, rows=4, length=64, precision="float32", adapter=adapter)

    plain = peak()
    assert peak(activation_checkpointing=True).peak < plain.peak
    assert peak(optimizer="adamw8bit").parts["optimizer"] < 0.3 * plain.parts["optimizer"]
    adapter = peak(adapter=AdapterSettings()).peak
    assert peak(adapter=AdapterSettings(quantize_base="nf4")).peak < adapter < plain.peak


def test_nothing_is_left_behind_and_nothing_is_drawn():
    state = torch.get_rng_state()
    adapter = AdapterSettings(quantize_base="nf4")
    training_memory(SHAPE, settings(), rows=1, length=8, precision="float32", adapter=adapter)
    assert torch.equal(torch.get_rng_state(), state)
    model = Model(SHAPE).initialize(0)
    methods.quantize(model, "nf4")
    ids = torch.arange(8)[None]
    assert type(model(ids)[0]) is torch.Tensor and torch.isfinite(model(ids)[0]).all()


SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("family", "head"), [("gpt2", None), ("bert", "masked"), ("t5", "seq2seq"), ("bart", "seq2seq"), ("gemma2", None)]
)
def test_every_family_can_be_planned(family, head):
    config = fresh_config(family, SIZES, head=head)
    said = training_memory(config, settings(), rows=2, length=16, precision="bfloat16")
    assert said.trainable == said.total == Model(config).num_parameters() and said.parts["activations"] > 0


def test_a_large_model_is_planned_without_its_weights():
    config = fresh_config("llama", {**SIZES, "hidden_size": 8192, "num_attention_heads": 64, "num_hidden_layers": 4})
    adapter = AdapterSettings(quantize_base="nf4")
    said = training_memory(config, settings(), rows=1, length=64, precision="bfloat16", adapter=adapter)
    assert said.total > 1e9 and said.parts["weights"] < 0.7e9


def test_targets_that_are_not_there_are_named():
    with pytest.raises(InputError, match="did you mean q_proj"):
        adapter = AdapterSettings(target_modules=("q_prj",))
        training_memory(CONFIG, settings(), rows=1, length=8, precision="float32", adapter=adapter)


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=60))
@examples(max_examples=80, deadline=None)
def test_the_heap_never_gives_one_place_twice(events):
    heap, live = Heap(), {}
    for size, frees in events:
        place = heap.take(size)
        assert all(place + size <= other or other + length <= place for other, length in live.items())
        live[place] = size
        assert heap.top >= sum(live.values())
        if frees:
            heap.give(next(iter(live)))
            del live[next(iter(live))]
    top = heap.top
    for place in list(live):
        heap.give(place)
    assert heap.top == top and len(heap._free) <= len(events) + 1


def test_the_states_in_host_memory_are_outside_the_peak(monkeypatch):
    wanted = settings(paged_optimizer=True)
    monkeypatch.setattr(module, "make_optimizers", lambda *a, **k: [forecasts_paged(a[0])])
    said = training_memory(SHAPE, wanted, rows=1, length=8, precision="float32")
    plain = 8 * said.trainable
    assert said.host == plain and said.parts["optimizer"] == 8 * max(
        parameter.numel() for parameter in Model(SHAPE).parameters()
    )


def forecasts_paged(trainable):
    from quatrain.training.paged import PagedAdamW

    return PagedAdamW(list(trainable.values()), lr=1e-3, fused=True)
