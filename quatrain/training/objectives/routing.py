"""The auxiliary losses of mixtures of experts, which an objective adds to its own, and what they say of the load.

The load-balancing loss (Fedus et al. 2021, arXiv 2101.03961) and the router's z-loss (Zoph et al. 2022, arXiv
2202.08906), with the coefficients of the model's configuration. They apply in training only, so that a validation loss
is that of the texts alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quatrain.models.transformer.config import ExpertsConfig
from quatrain.models.transformer.context import Routing
from quatrain.models.transformer.experts import expert_counts, load_balancing_loss, router_z_loss


class RoutingLosses:
    """Collects the routing of one forward pass: give `arguments` to `hidden_states`, then ask for `added`."""

    def __init__(self, model: Any):
        network = getattr(model, "module", model)
        self.experts: ExpertsConfig | None = getattr(network.config, "experts", None) if network.training else None
        self.routings: list[Routing] = []

    @property
    def arguments(self) -> dict[str, Any]:
        """The argument of `hidden_states` that records the routing; none for a model without experts."""
        return {} if self.experts is None else {"routing": self.routings}

    def added(self, weight: int) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What to add to a summed loss of this weight, and the metrics, summed in the same way.

        `load_balance` and `router_z` are the losses without their coefficients; `busiest_expert` is the largest load of
        an expert over the mean load, and `idle_experts` the share without any token, both as means over the layers.
        """
        if self.experts is None or not self.routings:
            return 0.0, {}
        total: Tensor | float = 0.0
        metrics: dict[str, Tensor] = {}
        losses = {"load_balance": (self.experts.balance_loss, load_balancing_loss)}
        losses["router_z"] = (self.experts.z_loss, router_z_loss)
        for name, (coefficient, loss) in losses.items():
            if coefficient or name == "load_balance":
                with torch.set_grad_enabled(torch.is_grad_enabled() and bool(coefficient)):
                    value = loss(self.routings)
                total = total + coefficient * weight * value
                metrics[name] = weight * value.detach()
        counts = torch.stack([expert_counts(routing.experts, self.experts.num_experts) for routing in self.routings])
        metrics["busiest_expert"] = weight * (counts.amax(1) / counts.mean(1).clamp(min=1e-9)).mean()
        metrics["idle_experts"] = weight * (counts == 0).float().mean()
        return total, metrics
