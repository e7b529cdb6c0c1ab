"""Optimizers: AdamW (also with 8-bit states), Muon for the matrices of the blocks with AdamW for the rest, and SGD.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalizes the momentum of a weight matrix
with a polynomial iteration. Its update is scaled by 0.2 sqrt(max(rows, columns)), which matches the size of AdamW's
update, so that one learning rate serves both (Liu et al. 2025, arXiv 2502.16982).

With `mup_base_width` the rates follow the maximal update parametrization (Yang et al. 2022, arXiv 2203.03466, table 8):
AdamW's rate of a matrix that reads hidden states falls with the width, that of embeddings, norms and biases stays.
Muon's update has the spectral norm sqrt(width), so its rate falls with the root of the width. The initial weights of
fresh models already have μP's scales: 1 / sqrt(inputs) in the blocks, a head of zeros, embeddings of one deviation.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.training.adamw8bit import AdamW8bit
from quatrain.training.paged import Paged, PagedAdamW, PagedAdamW8bit
from quatrain.training.settings import TrainSettings

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
"""Optimal coefficients of each step of the iteration (Amsel et al. 2025, arXiv 2505.16932)."""


for _name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
    # torch hides the bookkeeping of optimizers from its compiler, and imports the compiler with SymPy for that: 100 MB
    # and seconds of each run. Blocks are compiled here, optimizers never are, so there is nothing to hide.
    _plain = getattr(getattr(torch.optim.Optimizer, _name), "__wrapped__", None)
    if _plain is not None and not hasattr(_plain, "__dynamo_disable"):
        setattr(_plain, "__dynamo_disable", _plain)


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximate U V^T for each matrix U S V^T of (N, rows, columns): all singular values become about 1."""
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


_ADAM_STEP = inspect.unwrap(torch.optim.Adam.step)


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose step imports torch's compiler only to tell it where to stop."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all parameters."""
        return _ADAM_STEP(self, closure)


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum; matrices of the same shape are processed as one batch."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._update(parameters, shape, group)

    def _update(self, parameters: list[Tensor], shape: torch.Size, group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        updates = self._orthogonalized(list(nesterov))
        scale = 0.2 * max(shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)

    def _orthogonalized(self, matrices: list[Tensor]) -> list[Tensor]:
        """Orthogonalize the matrices. Sharded matrices are gathered, and every process computes the whole."""
        if not is_sharded(matrices[0]):
            return list(orthogonalize(torch.stack(matrices), dtype=self.dtype).unbind())
        whole = torch.stack([matrix.full_tensor() for matrix in matrices])  # type: ignore[attr-defined]
        updates = orthogonalize(whole, dtype=self.dtype).unbind()
        return [sharded_like(update, matrix) for update, matrix in zip(updates, matrices, strict=True)]


class SGD(torch.optim.Optimizer):
    """Plain gradient descent. Of a table with a sparse gradient only the rows change that the batch has read."""

    def __init__(self, parameters: Iterable[Any], *, learning_rate: float):
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["weight_decay"] and not parameter.grad.is_sparse:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(parameter.grad, alpha=-group["lr"])


def dense_part(gradient: Any) -> Tensor:
    """The elements of a gradient as a dense tensor; of a coalesced sparse one, those of the rows that it has."""
    part: Tensor = gradient._values() if gradient.is_sparse else gradient
    return part


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, tested without the slow import of its module."""
    return hasattr(tensor, "device_mesh")


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that every process holds in full in the same way as `like`."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, like.placements)  # type: ignore[attr-defined]


def make_optimizers(
    trainable: dict[str, nn.Parameter], settings: TrainSettings, *, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Build the optimizers of the trainable parameters (by name) for `settings.optimizer`.

    With "muon", matrices inside the blocks go to Muon; the rest, including low-rank adapters, goes to AdamW. Weight
    decay applies to matrices only. `dtype` is the dtype of Muon's iteration. With `settings.paged_optimizer`, AdamW's
    states of GPU parameters stay in host memory.
    """
    muon = {
        name
        for name, parameter in trainable.items()
        if settings.optimizer == "muon"
        and parameter.dim() == 2
        and re.match(r"(?:encoder\.)?layers\.\d+\..*(?<!_[AB])\.weight$", name)
    }
    ratio = _width_ratio(trainable, settings)
    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        optimizers.append(
            Muon(
                [trainable[name] for name in trainable if name in muon],
                dtype=dtype,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
            )
        )
        optimizers[0].param_groups[0][FACTOR] = ratio**0.5
    rest = {name: parameter for name, parameter in trainable.items() if name not in muon}
    decayed = {name for name, parameter in rest.items() if parameter.dim() >= 2}
    hidden = {name for name in decayed if ratio != 1 and "embed" not in name}
    groups: list[dict[str, Any]] = [
        {"params": [rest[name] for name in rest if name in decayed - hidden], "weight_decay": settings.weight_decay},
        {"params": [rest[name] for name in rest if name not in decayed], "weight_decay": 0.0},
        {
            "params": [rest[name] for name in rest if name in hidden],
            "weight_decay": settings.weight_decay,
            FACTOR: ratio,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        paged = settings.paged_optimizer and any(parameter.device.type != "cpu" for parameter in rest.values())
        options: dict[str, Any] = {"lr": settings.learning_rate, "betas": (settings.beta1, settings.beta2)}
        if settings.optimizer == "sgd":
            optimizers.append(SGD(groups, learning_rate=settings.learning_rate))
        elif settings.optimizer == "adamw8bit":
            optimizers.append((PagedAdamW8bit if paged else AdamW8bit)(groups, **options))
        else:
            optimizers.append((PagedAdamW if paged else AdamW)(groups, **options, fused=True))
    return optimizers


FACTOR = "learning_rate_factor"
"""The key of a group of parameters whose rate is a multiple of the setting."""


def _width_ratio(trainable: dict[str, nn.Parameter], settings: TrainSettings) -> float:
    """The base width over the model's, 1 without `mup_base_width`.

    Raises InputError for models without an embedding and a head of their own, which have different rates.
    """
    if not settings.mup_base_width:
        return 1.0
    missing = [name for name in ("embed_tokens.weight", "lm_head.weight") if name not in trainable]
    if missing:
        raise InputError(
            f"train.mup_base_width: {settings.mup_base_width}; {' and '.join(missing)} must be trained, as weights of "
            "their own: set model.tie_word_embeddings = false, and train all weights of a language model"
        )
    return settings.mup_base_width / trainable["embed_tokens.weight"].shape[1]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """Set the learning rate of every parameter group, times the group's own factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get(FACTOR, 1.0)


def optimizer_tensors(trainable: dict[str, nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All optimizer state tensors, named `parameter name:state name`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in trainable.items()}
    return {
        f"{names[parameter]}:{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    trainable: dict[str, nn.Parameter], optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned."""
    owners = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition(":")
        parameter = trainable[parameter_name]
        owner = owners[parameter]
        # PyTorch's fused AdamW counts steps on the device, AdamW8bit on the CPU.
        if isinstance(owner, AdamW8bit) and key == "step":
            value = value.cpu()
        elif isinstance(owner, Paged) and key != "step":
            value = value.cpu().pin_memory() if parameter.is_cuda else value.cpu()
        else:
            value = value.to(parameter.device)
        if key != "step" and not is_sharded(value):
            value = sharded_like(value, parameter)
        owner.state[parameter][key] = value
