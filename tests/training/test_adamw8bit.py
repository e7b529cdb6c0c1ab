"""AdamW with moments of eight bits against its definition, bitsandbytes and AdamW; and optimizers that are paged."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from quick_set import some
from tiny_training import CONFIG, settings, windows

from quatrain.compression.blockwise import dequantize, dynamic_code, quantize
from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model
from quatrain.planning.counts import state_bytes
from quatrain.training import adamw8bit, memory
from quatrain.training.adamw8bit import AdamW8bit
from quatrain.training.objectives import Causal
from quatrain.training.optimizers import load_optimizer_tensors, make_optimizers, optimizer_tensors
from quatrain.training.paged import PagedAdamW, PagedAdamW8bit
from quatrain.training.trainer import Hooks, Trainer

WIDE = CONFIG.replace(hidden_size=64, intermediate_size=192)
"""Wide enough that most of its weights are in matrices of 4,096 elements and more."""


def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.mark.parametrize("signed", [True, False])
def test_the_tables_are_those_of_bitsandbytes(signed):
    theirs = bitsandbytes().functional.create_dynamic_map(signed)
    assert torch.equal(dynamic_code(signed), theirs)
    assert dynamic_code(signed).eq(0).sum() == 1


@given(st.integers(1, 1200), st.integers(0, 10_000), st.sampled_from([1e-20, 1e-3, 1.0, 1e8]), st.booleans())
@examples(max_examples=60, deadline=None)
def test_rounding_is_within_half_a_step_of_the_table(count, seed, size, signed):
    generator = torch.Generator().manual_seed(seed)
    values = size * torch.randn(count, generator=generator) * torch.rand(count, generator=generator) ** 6
    values = values if signed else values.abs()
    code = dynamic_code(signed)
    numbers, scales = quantize(values, 256, code)
    assert numbers.dtype == torch.uint8 and scales.shape == (-(-count // 256),)
    found = dequantize(numbers, scales, 256, code)
    spread = scales.repeat_interleave(256)[:count]
    places = numbers.long()
    above = (code[(places + 1).clamp(max=255)] - code[places]).clamp(min=0)
    below = code[places] - code[(places - 1).clamp(min=0)]
    # The table begins at -0.993: what is left of it is as far away as that at most.
    half = torch.maximum(above, below) / 2 + (places == 0) * (1 + float(code[0])) * signed
    assert ((found - values).abs() <= spread * (half + 1e-6)).all()
    if not signed:
        assert torch.equal(found.view(-1)[values.argmax()], values.max())


def reference(weight, gradients, *, lr, decay, betas, eps=1e-8):
    """The steps written out for a tensor of whole blocks, its states rounded to the nearest of the table by search."""

    def rounded(values, code):
        blocks = values.view(-1, 256)
        scales = blocks.abs().amax(1, keepdim=True)
        places = (blocks[..., None] / scales[..., None] - code).abs().argmin(-1)
        return (code[places] * scales).view(values.shape)

    weight, mean, square = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for number, gradient in enumerate(gradients, 1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        weight *= 1 - lr * decay
        mean_now, square_now = mean / (1 - betas[0] ** number), square / (1 - betas[1] ** number)
        weight -= lr * mean_now / (square_now.sqrt() + eps)
        mean, square = rounded(mean, dynamic_code(True)), rounded(square, dynamic_code(False))
    return weight


@pytest.mark.parametrize("slice_", [256, 1 << 18])
def test_the_steps_are_those_written_out(monkeypatch, slice_):
    monkeypatch.setitem(adamw8bit.SLICE, "cpu", slice_)
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(64, 96))
    gradients = [torch.randn(64, 96) * 10 ** torch.randn(64, 1) for _ in range(6)]
    expected = reference(parameter.detach(), gradients, lr=0.01, decay=0.1, betas=(0.9, 0.95))
    optimizer = AdamW8bit([parameter], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 96), (70, 77), (5000,), (63, 65), (50, 50)])
def test_every_step_is_that_of_bitsandbytes_from_the_same_states(shape):
    """Its kernel for processors looks up the numbers of small values in a coarser table, so states are taken over."""
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    usual = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    optimizer, library = AdamW8bit([ours], **usual), bitsandbytes().optim.AdamW8bit([theirs], **usual)
    whole = ours.numel() < 4096
    for _ in range(5):
        gradient = torch.randn(shape) * 10 ** torch.randn(shape[0]).view(-1, *[1] * (len(shape) - 1))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        library.step()
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
        state, known = optimizer.state[ours], library.state[theirs]
        assert int(state["step"]) == known["step"]
        for name, number in (("exp_avg", 1), ("exp_avg_sq", 2)):
            assert state[name].dtype == known[f"state{number}"].dtype == (torch.float32 if whole else torch.uint8)
            if whole:
                torch.testing.assert_close(state[name], known[f"state{number}"], atol=1e-6, rtol=1e-5)
                continue
            torch.testing.assert_close(state[f"{name}_scales"], known[f"absmax{number}"], atol=0, rtol=1e-5)
            code, scales = known[f"qmap{number}"], known[f"absmax{number}"]
            values = [dequantize(each.view(-1), scales, 256, code) for each in (state[name], known[f"state{number}"])]
            apart = (values[0] - values[1]).abs() / scales.repeat_interleave(256)[: len(values[0])]
            assert apart.max() < 1.5e-2  # one step of the table
            state[name].copy_(known[f"state{number}"])
            state[f"{name}_scales"].copy_(scales)
        with torch.no_grad():
            ours.copy_(theirs)


def test_a_weight_that_is_a_view_of_turned_memory_learns_too():
    torch.manual_seed(0)
    start = torch.randn(80, 64)
    plain, turned = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.t().contiguous().t())
    assert not turned.is_contiguous()
    for parameter in (plain, turned):
        optimizer = AdamW8bit([parameter], lr=0.1)
        parameter.grad = start.sin()
        optimizer.step()
    assert torch.equal(plain, turned) and not torch.equal(plain, start)


def last_loss(optimizer, **more):
    model, losses = Model(WIDE).initialize(0), []
    wanted = settings(steps=60, optimizer=optimizer, **more)
    hooks = Hooks(log=lambda entry: losses.append(entry["loss"]))
    result = Trainer(model, Causal(), windows(), wanted, steps=60, hooks=hooks).train()
    return sum(losses[-5:]) / 5, losses[0], result.memory


@pytest.mark.parametrize("precision", some(["float32", "bfloat16", "float16"], ["float32"]))
def test_a_training_ends_where_adamw_does(precision):
    whole, first, held = last_loss("adamw", precision=precision)
    eight, same, less = last_loss("adamw8bit", precision=precision)
    assert first == same and whole < 0.8 * first
    assert abs(eight - whole) < 0.02 * (first - whole)
    assert less["optimizer"] < 0.4 * held["optimizer"]


def test_the_states_are_counted_before_there_are_any():
    model = Model(WIDE).initialize(0)
    trainable = dict(model.named_parameters())
    wanted = settings(optimizer="adamw8bit")
    (optimizer,) = make_optimizers(trainable, wanted, dtype=torch.float32)
    said = memory.expected(model, trainable, [optimizer], {})["optimizer"]
    for parameter in trainable.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = memory.held(model, trainable, [optimizer])["optimizer"]
    steps = 4 * len(trainable)
    assert held - steps == said == sum(state_bytes(parameter.numel(), "adamw8bit") for parameter in trainable.values())


@pytest.mark.parametrize(
    ("paged", "plain"),
    [(PagedAdamW, lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True)),
     (PagedAdamW8bit, lambda groups: AdamW8bit(groups, lr=0.01))],
)  # fmt: skip
def test_paged_states_give_the_same_bits_and_stay_where_they_are(paged, plain):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((80, 64), (7,), (3, 5))]
    theirs = copy.deepcopy(ours)
    more = {} if paged is PagedAdamW8bit else {"fused": True}

    def groups(of):
        return [{"params": of[:1], "weight_decay": 0.1}, {"params": of[1:], "weight_decay": 0.0}]

    one, other = paged(groups(ours), lr=0.01, **more), plain(groups(theirs))
    places = None
    for step in range(4):
        for number, (mine, their) in enumerate(zip(ours, theirs, strict=True)):
            mine.grad = None if step == 1 and number == 1 else torch.randn(mine.shape)
            their.grad = None if mine.grad is None else mine.grad.clone()
        one.step()
        other.step()
        assert all(torch.equal(mine, their) for mine, their in zip(ours, theirs, strict=True))
        held = {(n, name): value.data_ptr() for n, p in enumerate(ours) for name, value in one.state[p].items()}
        assert places is None or held == places
        places = held
        assert len(one.param_groups) == 2 and [len(group["params"]) for group in one.param_groups] == [1, 2]
    names = {str(number): parameter for number, parameter in enumerate(ours)}
    saved = {name: value.clone() for name, value in optimizer_tensors(names, [one]).items()}
    again = paged(groups(ours), lr=0.01, **more)
    load_optimizer_tensors(names, [again], saved)
    assert optimizer_tensors(names, [again]).keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in optimizer_tensors(names, [again]).items())


def test_on_a_cpu_paged_changes_nothing_and_says_so():
    said = []
    model = Model(CONFIG).initialize(0)
    trainer = Trainer(
        model, Causal(), windows(), settings(steps=2, paged_optimizer=True), steps=2, hooks=Hooks(warn=said.append)
    )
    trainer.train()
    assert isinstance(trainer.optimizers[0], torch.optim.AdamW)
    assert [text for text in said if "train.paged_optimizer" in text and "changes nothing" in text]


def test_what_does_not_go_together_is_refused_all_at_once():
    from quatrain.runs.recipe import loads

    with pytest.raises(InputError) as raised:
        loads(
            'name = "x"\n[data]\nsource = "y.txt"\n[[stage]]\nkind = "pretrain"\n'
            'train = { steps = 1, warmup_steps = 0, optimizer = "muon", paged_optimizer = true, parallel = "zero2" }\n'
            '[[stage]]\nkind = "pretrain"\n'
            'train = { steps = 1, warmup_steps = 0, optimizer = "adamw8bit", parallel = "zero3" }'
        )
    text = str(raised.value)
    for words in ("updates matrices of equal shape together", "on the GPUs", "would split its blocks"):
        assert words in text
