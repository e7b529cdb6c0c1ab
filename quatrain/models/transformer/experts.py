"""Mixture of experts: a router sends each token to a few of many feed-forward networks.

Shazeer et al. 2017 (arXiv 1701.06538), Fedus et al. 2021 (Switch, arXiv 2101.03961), Jiang et al. 2024 (Mixtral, arXiv
2401.04088), Liu et al. 2024 (DeepSeek-V3, arXiv 2412.19437). Tokens are sorted by expert, so that a step reads the
weights of the experts that it uses, each once. Every expert is a `FeedForward` of its own: adapters and quantized
layers replace its projections as they replace those of a dense model, and an idle expert gets no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.kernels.grouped import are_plain, grouped_linear
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig
from quatrain.models.transformer.context import ForwardContext, Routing
from quatrain.models.transformer.feed_forward import FeedForward
from quatrain.models.transformer.norms import BareRMSNorm, make_norm
from quatrain.planning.limits import is_estimating


class Router(nn.Module):
    """Chooses the experts of each token. Its weight (E, hidden_size) is no `nn.Linear`: it is never quantized."""

    fixed_dtype = ("e_score_correction_bias",)

    def __init__(self, hidden_size: int, config: ExpertsConfig, eps: float = 1e-6):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = nn.Parameter(torch.zeros(config.num_experts)) if config.bias else None
        balancing = torch.zeros(config.num_experts) if config.router == "sigmoid" else None
        self.register_buffer("e_score_correction_bias", balancing)
        self.scale: nn.Parameter | None = None
        self.expert_scale: nn.Parameter | None = None
        if config.beside_dense:
            self.scale = nn.Parameter(torch.ones(hidden_size))
            self.expert_scale = nn.Parameter(torch.ones(config.num_experts))
        self.norm = BareRMSNorm(eps) if config.beside_dense else None
        self.register_buffer("load", None if balancing is None else torch.zeros_like(balancing), persistent=False)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Routing:
        """Routes tokens (N, hidden_size); `text` (N) is False at padding, which no expert computes."""
        if self.norm is not None and self.scale is not None:
            x = self.norm(x) * self.scale * x.shape[-1] ** -0.5
        if self.config.router == "sigmoid":
            logits = F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
            weights, experts = self._sigmoid(logits)
        else:
            logits = F.linear(x, self.weight, self.bias)
            weights, experts = self._softmax(logits)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[experts]
        if text is not None:
            experts = experts.masked_fill(~text[:, None], self.config.num_experts)
        if self.training and self.config.capacity_factor is not None:
            experts = self._within_capacity(experts, text)
        if self.training and isinstance(self.load, Tensor) and torch.is_grad_enabled():
            self.load += expert_counts(experts, self.config.num_experts)
        return Routing(logits.float(), experts, weights.to(x.dtype), text)

    def _softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        count = self.config.experts_per_token
        if self.config.router == "softmax_of_chosen":
            chosen, experts = logits.topk(count, dim=-1)
            return chosen.softmax(-1, dtype=torch.float32), experts
        weights, experts = logits.softmax(-1, dtype=torch.float32).topk(count, dim=-1)
        if self.config.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * self.config.scale if self.config.scale != 1.0 else weights, experts

    def _sigmoid(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """DeepSeek-V3's router: the bias and the limit to groups decide which experts, the scores how much of each."""
        config, scores = self.config, logits.sigmoid()
        choice = scores.detach()
        if isinstance(self.e_score_correction_bias, Tensor):
            choice = choice + self.e_score_correction_bias
        if config.groups > 1:
            in_groups = choice.unflatten(-1, (config.groups, -1))
            best = in_groups.topk(2, dim=-1).values.sum(-1).topk(config.groups_per_token, dim=-1, sorted=False).indices
            allowed = torch.zeros_like(in_groups[..., 0], dtype=torch.bool).scatter_(1, best, True)
            choice = in_groups.masked_fill(~allowed[..., None], float("-inf")).flatten(1)
        experts = choice.topk(config.experts_per_token, dim=-1, sorted=False).indices
        weights = scores.gather(1, experts)
        if config.renormalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * config.scale, experts

    def _within_capacity(self, experts: Tensor, text: Tensor | None) -> Tensor:
        """Drops what exceeds each expert's capacity: first choices have precedence, then earlier tokens."""
        config, tokens = self.config, len(experts) if text is None or is_estimating() else int(text.sum())
        mean = tokens * config.experts_per_token / config.num_experts
        capacity = math.ceil((config.capacity_factor or 1.0) * mean)
        by_choice = experts.t().flatten()
        order = by_choice.argsort(stable=True)
        counts = expert_counts(by_choice, config.num_experts).long()
        starts = F.pad(counts.cumsum(0), (1, 0))
        place = torch.arange(len(order), device=order.device) - starts[by_choice[order]]
        places = torch.empty_like(place).scatter_(0, order, place)
        return torch.where(places < capacity, by_choice, config.num_experts).view(experts.shape[::-1]).t()

    @torch.no_grad()
    def after_optimizer_step(self, over_processes: Callable[[list[Tensor]], list[float]]) -> None:
        """Moves the balancing bias towards an equal load: up for experts below the mean load, down for those above it.

        The trainer calls it with a function that sums numbers over its processes. The load counts the assignments since
        the last call.
        """
        if not isinstance(self.load, Tensor) or not isinstance(self.e_score_correction_bias, Tensor):
            return
        if self.config.bias_rate:
            load = torch.tensor(over_processes(list(self.load)), device=self.load.device)
            self.e_score_correction_bias += self.config.bias_rate * (load.mean() - load).sign()
        self.load.zero_()


class Experts(nn.ModuleList):
    """The experts of one layer; computes each on the tokens that chose it."""

    def __init__(self, config: ModelConfig, mixture: ExpertsConfig):
        super().__init__(
            FeedForward(config, mixture.intermediate_size, bias=mixture.bias, clamp=mixture.clamp)
            for _ in range(mixture.num_experts)
        )

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum (N, hidden_size) of the chosen experts (N, K), with weights (N, K), of tokens x (N, …).

        An expert number outside the list adds nothing.
        """
        if torch.compiler.is_exporting():
            return self._of_all(x, experts, weights)
        if len(x) == 1 and not torch.is_grad_enabled() and not is_estimating():
            return self._of_one_token(x, experts[0].tolist(), weights[0].tolist())
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        counts = self._counts(chosen)
        tokens = (order // experts.shape[1])[: sum(counts)]
        if not len(tokens):
            return torch.zeros_like(x)
        output = self._computed(x[tokens], counts) * weights.flatten()[order[: len(tokens)], None]
        return torch.zeros_like(x).index_add_(0, tokens, output.to(x.dtype))

    def _of_one_token(self, x: Tensor, experts: list[int], weights: list[float]) -> Tensor:
        """The same for one token (1, hidden_size), as in decoding: there is nothing to sort."""
        output = torch.zeros_like(x)
        for expert, weight in zip(experts, weights, strict=True):
            if expert < len(self):
                output.add_(self[expert](x), alpha=weight)
        return output

    def _of_all(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The same with every expert on every token, which a graph without control flow (ONNX) can express."""
        shares = weights.new_zeros(x.shape[0], len(self) + 1).scatter_add(1, experts, weights)
        outputs = [shares[:, number, None] * expert(x) for number, expert in enumerate(self)]
        return torch.stack(outputs).sum(0).to(x.dtype)

    def _computed(self, x: Tensor, counts: list[int]) -> Tensor:
        """The outputs of rows x (M, hidden_size) that are sorted by expert, `counts` of them for each."""
        used = [(cast(FeedForward, expert), count) for expert, count in zip(self, counts, strict=True) if count]
        experts, sizes = [expert for expert, _ in used], [count for _, count in used]
        layers = [list(projections) for projections in zip(*(expert.projections() for expert in experts), strict=True)]
        if all(are_plain(each, x) for each in layers):
            gates, ups, downs = layers
            gate, up = grouped_linear(x, sizes, gates), grouped_linear(x, sizes, ups)
            return grouped_linear(experts[0].gated(gate, up), sizes, downs)
        return torch.cat([expert(rows) for expert, rows in zip(experts, x.split(sizes), strict=True)])

    def _counts(self, chosen: Tensor) -> list[int]:
        """How many of the assignments (N K) each expert has; an estimate of memory assumes an even load."""
        if is_estimating():
            return [len(chosen) // len(self) + (expert < len(chosen) % len(self)) for expert in range(len(self))]
        counts: list[int] = expert_counts(chosen, len(self)).long().tolist()
        return counts


class MixtureOfExperts(nn.Module):
    """Router, experts and shared expert in place of a feed-forward network: (B, T, hidden_size) to the same."""

    has_norms = False

    def __init__(self, config: ModelConfig, mixture: ExpertsConfig):
        super().__init__()
        self.gate = Router(config.hidden_size, mixture, config.norm_eps)
        self.experts = Experts(config, mixture)
        shared = mixture.shared_intermediate_size
        self.shared_expert = FeedForward(config, shared) if shared else None
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False) if mixture.shared_gate else None

    def forward(self, x: Tensor, context: ForwardContext | None = None, *, routed: Tensor | None = None) -> Tensor:
        """x (B, T, hidden_size) to the same shape; records the routing where the context asks for it.

        The router reads `routed`, if it is given, in place of x.
        """
        flat = x.reshape(-1, x.shape[-1])
        text = None if context is None or context.text is None else context.text.reshape(-1)
        routing = self.gate(flat if routed is None else routed.reshape(flat.shape), text)
        if context is not None and context.routing is not None:
            context.routing.append(routing)
        output = self.experts(flat, routing.experts, routing.weights)
        if self.shared_expert is not None:
            shared = self.shared_expert(flat)
            if self.shared_expert_gate is not None:
                shared = self.shared_expert_gate(flat).sigmoid() * shared
            output = output + shared
        return output.view(x.shape)


class DenseAndExperts(nn.Module):
    """A plain feed-forward network and a mixture of experts side by side: (B, T, hidden_size) to the same.

    Each has a norm before and after it; the router reads the residual stream itself (Gemma 4).
    """

    has_norms = True

    def __init__(self, config: ModelConfig, mixture: ExpertsConfig, width: int | None = None):
        super().__init__()
        self.dense, self.mixture = FeedForward(config, width), MixtureOfExperts(config, mixture)
        self.dense_layernorm, self.dense_output_layernorm = make_norm(config), make_norm(config)
        self.mixture_layernorm, self.mixture_output_layernorm = make_norm(config), make_norm(config)

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        """The sum of both networks' outputs for the residual stream x (B, T, hidden_size)."""
        dense: Tensor = self.dense_output_layernorm(self.dense(self.dense_layernorm(x)))
        chosen: Tensor = self.mixture(self.mixture_layernorm(x), context, routed=x)
        return dense + self.mixture_output_layernorm(chosen)


def make_feed_forward(config: ModelConfig, layer: int) -> FeedForward | MixtureOfExperts | DenseAndExperts:
    """The feed-forward network of a layer: a mixture of experts where the configuration has one."""
    width = config.shared_kv_intermediate_size if config.kv_source(layer) != layer else 0
    if config.experts is None or layer in config.experts.dense_layers:
        return FeedForward(config, width or None)
    if config.experts.beside_dense:
        return DenseAndExperts(config, config.experts, width or None)
    return MixtureOfExperts(config, config.experts)


def expert_counts(experts: Tensor, num_experts: int) -> Tensor:
    """How many assignments (N, K) each expert has: float32 (E)."""
    chosen = experts.flatten()
    counts = torch.zeros(num_experts + 1, device=chosen.device)
    return counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=counts.dtype))[:num_experts]


def load_balancing_loss(routings: list[Routing]) -> Tensor:
    """E times the sum over experts of their share of the assignments and their mean probability, over all layers.

    Equal to `load_balancing_loss_func` of transformers, padding left out: K where the load is even. A dropped
    assignment counts: the router chose it.
    """
    counts = probabilities = routings[0].logits.new_zeros(routings[0].logits.shape[1])
    tokens = counts.new_zeros(())
    for routing in routings:
        text = _text(routing)
        scores = routing.logits.softmax(-1)
        chosen = scores.topk(routing.experts.shape[1], dim=-1).indices
        hits = torch.zeros_like(scores).scatter_(1, chosen, 1.0)
        counts = counts + (hits * text).sum(0)
        probabilities = probabilities + (scores * text).sum(0)
        tokens = tokens + text.sum()
    return (counts * probabilities).sum() * len(counts) / tokens**2


def router_z_loss(routings: list[Routing]) -> Tensor:
    """The mean squared log-sum-exp of the router's logits, over all layers and tokens that are text."""
    squares = [(routing.logits.logsumexp(-1).square() * _text(routing)[:, 0]).sum() for routing in routings]
    return torch.stack(squares).sum() / torch.stack([_text(routing).sum() for routing in routings]).sum()


def _text(routing: Routing) -> Tensor:
    """1.0 for text and 0.0 for padding, (N, 1)."""
    if routing.text is None:
        return torch.ones_like(routing.logits[:, :1])
    return routing.text[:, None].to(routing.logits.dtype)
