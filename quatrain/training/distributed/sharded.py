"""Sharded training: each process holds a shard of weights, gradients and optimizer states (PyTorch's FSDP2).

The modes are the stages of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054). `zero3` gathers the weights of a block
only for its passes; `zero2` keeps them from the forward to the backward pass; both hold shards of gradients. `zero1`
keeps whole weights and gradients for all micro-batches of a step and shards only the optimizer states. `hybrid` is
`zero3` within a machine, replicated between machines. Weights are stored in float32 and cast to the working precision;
gradients are summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from quatrain.core.errors import InputError
from quatrain.core.processes import environment_number
from quatrain.training.acceleration import blocks
from quatrain.training.distributed.base import Losses
from quatrain.training.distributed.replicated import MultiProcess


class Sharded(MultiProcess):
    """FSDP2 in one of the modes of this module."""

    shards = True

    def __init__(self, device: torch.device, mode: str):
        super().__init__(device)
        self.mode = mode
        self.gradient_factor = float(self.size)
        self.mesh = _mesh(device.type, self.size, mode)
        self._modules: list[Any] = []

    def shard(self, losses: Losses, dtype: torch.dtype) -> torch.dtype:
        """Shard the weights; each process stores its shard in float32 and computes in `dtype`."""
        narrow = dtype != torch.float32
        policy = MixedPrecisionPolicy(param_dtype=dtype if narrow else None, reduce_dtype=torch.float32)
        keep_gathered = self.mode in ("zero1", "zero2")
        losses.model.float()
        losses.model.to(self.device)
        for module in [*blocks(losses.model), losses]:
            fully_shard(module, mesh=self.mesh, reshard_after_forward=not keep_gathered, mp_policy=policy)
        self._modules = [module for module in losses.modules() if isinstance(module, FSDPModule)]
        self._losses: Any = losses
        return torch.float32

    def wrap(self, losses: Losses) -> nn.Module:
        """The module itself; FSDP2 has changed it in place."""
        return losses

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """`zero1` exchanges gradients only at the last micro-batch; the other modes at each one."""
        if self.mode != "zero1":
            yield
            return
        self._losses.set_requires_gradient_sync(False)
        self._losses.set_reshard_after_backward(False)
        try:
            yield
        finally:
            self._losses.set_requires_gradient_sync(True)
            self._losses.set_reshard_after_backward(True)

    def synchronize(self, gradients: Sequence[Tensor]) -> None:
        """Does nothing: FSDP2 has exchanged all gradients."""

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The joint Euclidean norm of all gradients, over all shards."""
        if not gradients:
            return 0.0
        total = torch.nn.utils.get_total_norm(list(gradients))
        return float(total.full_tensor() if isinstance(total, DTensor) else total)

    @contextmanager
    def full_weights(self, model: nn.Module) -> Iterator[None]:
        """Gather every weight in full precision. FSDP's hooks are removed meanwhile; they would shard again."""
        shards = _install(model, {parameter: full(parameter) for parameter in dict.fromkeys(model.parameters())})
        hooks = [(module, dict(module._forward_pre_hooks), dict(module._forward_hooks)) for module in self._modules]
        for module, _, _ in hooks:
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
        try:
            yield
        finally:
            for module, before, after in hooks:
                module._forward_pre_hooks.update(before)
                module._forward_hooks.update(after)
            _install(model, shards)

    def close(self, model: nn.Module) -> None:
        """Turn the model back into plain modules with whole weights, in every process."""
        with torch.no_grad():
            whole = {parameter: full(parameter) for parameter in dict.fromkeys(model.parameters())}
        _install(model, whole)
        for module in self._modules:
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
            module.__class__ = type(module).__bases__[1]
        self._modules = []


def full(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter gathered from all its shards, in every process."""
    if not isinstance(parameter, DTensor):
        return parameter
    return nn.Parameter(parameter.detach().full_tensor(), parameter.requires_grad)  # type: ignore[attr-defined]


def _install(model: nn.Module, replacements: dict[nn.Parameter, nn.Parameter]) -> dict[nn.Parameter, nn.Parameter]:
    """Replace parameters, shared ones everywhere. Returns the inverse replacements."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = replacements[parameter]
    return {new: old for old, new in replacements.items()}


def _mesh(device: str, size: int, mode: str) -> DeviceMesh:
    if mode != "hybrid":
        return init_device_mesh(device, (size,))
    local = environment_number("LOCAL_WORLD_SIZE", size)
    if size % local:
        raise InputError(
            f"parallel: hybrid; every machine must have equally many processes; {local} of {size} are on this one."
        )
    return init_device_mesh(device, (size // local, local), mesh_dim_names=("machines", "processes"))
