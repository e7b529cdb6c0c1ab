"""FlexAttention gives what the plain pass gives; on the CPU uncompiled and forwards alone, on CUDA as it is used."""

import pytest
import torch
from quick_set import some

from quatrain.models.kernels import flex


def plain(query, key, value, scale, softcap, bias, mask, causal):
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.mT * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    if mask is None and causal:
        mask = torch.ones(1, query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None].to(scores.device), float("-inf"))
    return scores.softmax(-1) @ value


def window(length, slots, reach, rows=1):
    distance = torch.arange(slots)[None] - torch.arange(slots - length, slots)[:, None]
    return ((distance <= 0) & (distance > -reach)).expand(rows, -1, -1).clone()


CASES = {
    "soft cap, causal": {"softcap": 5.0, "causal": True},
    "soft cap, window": {"softcap": 5.0, "mask": window(150, 150, 9), "causal": True},
    "window": {"mask": window(150, 150, 9), "causal": True},
    "mask of each row": {"mask": window(150, 150, 40, 2) & (torch.arange(300).view(2, 1, 150) % 7 > 0)
                         | torch.eye(150, dtype=torch.bool), "causal": True},
    "all": {"softcap": 3.0, "causal": False},
    "positions": {"bias": torch.randn(1, 4, 150, 150), "causal": True},
    "fewer queries": {"softcap": 5.0, "causal": True, "length": 130},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("heads", some([4, 2], [2]))
def test_equal_to_the_plain_pass(name, heads):
    torch.manual_seed(0)
    case = {"softcap": None, "bias": None, "mask": None, "length": 150} | CASES[name]
    query = torch.randn(2, 4, case.pop("length"), 16)
    key, value = torch.randn(2, 2, heads, 150, 16)
    with torch.no_grad():
        ours = flex.attention(query, key, value, scale=0.3, **case)
        torch.testing.assert_close(ours, plain(query, key, value, 0.3, **case), atol=1e-5, rtol=1e-5)


def test_only_where_it_pays():
    query = torch.randn(1, 2, 512, 8)
    assert not flex.supports(query, 5.0, None, 512)  # not on a CPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["soft cap, causal", "window"])
def test_values_and_gradients_on_cuda(name):
    torch.manual_seed(0)
    case = {"softcap": None, "bias": None, "mask": None} | CASES[name]
    case["mask"] = None if case["mask"] is None else window(512, 512, 9).cuda()
    tensors = [torch.randn(2, 4, 512, 64, device="cuda", requires_grad=True) for _ in range(3)]
    ours, theirs = flex.attention(*tensors, scale=0.3, **case), plain(*tensors, 0.3, **case)
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), tensors), torch.autograd.grad(theirs.sum(), tensors), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
