"""Scaling laws: how the loss falls with parameters, tokens and compute, and what is optimal for a budget.

- Kaplan et al. 2020 (arXiv 2001.08361): power laws in N (without embeddings), D and C.
- Hoffmann et al. 2022 (Chinchilla, arXiv 2203.15556): three approaches; the third is L = E + A / N^alpha + B / D^beta.
- Besiroglu et al. 2024 (Epoch AI, arXiv 2404.10102): the third approach fitted again to the data of the paper's figure.

`fit` estimates the parametric law from runs as these papers do: the Huber loss of log L, minimized by L-BFGS from a
grid of starting points, with intervals by bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError

FLOPS_PER_TOKEN = 6
"""C = 6 N D."""


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token; N parameters, D tokens of training."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str = ""

    def loss(self, parameters: float, tokens: float) -> float:
        """The predicted loss, nats a token."""
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def optimal(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens of the lowest loss with 6 N D = `flops` (equation 4 of Hoffmann et al.)."""
        total = self.alpha + self.beta
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        budget = flops / FLOPS_PER_TOKEN
        return scale * budget ** (self.beta / total), budget ** (self.alpha / total) / scale

    def optimal_tokens(self, parameters: float) -> float:
        """The tokens for which a model of this size is the optimal one."""
        total = self.alpha + self.beta
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        budget = (parameters / scale) ** (total / self.beta)
        return budget / parameters

    def tokens_for(self, parameters: float, loss: float) -> float:
        """The tokens with which a model of this size reaches a loss; inf if no number of tokens does."""
        rest = loss - self.E - self.A / parameters**self.alpha
        return float("inf") if rest <= 0 else float((self.B / rest) ** (1 / self.beta))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


HOFFMANN = ParametricLaw(1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022, approach 3")
EPOCH = ParametricLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, refit of approach 3")
PARAMETRIC = {"hoffmann": HOFFMANN, "epoch": EPOCH}


@dataclass(frozen=True)
class PowerOptimum:
    """Optimal parameters as a power of compute: N = scale * C^exponent, D = C / (6 N)."""

    scale: float
    exponent: float
    source: str

    def optimal(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens for a budget of FLOPs."""
        parameters = self.scale * flops**self.exponent
        return parameters, flops / (FLOPS_PER_TOKEN * parameters)

    def optimal_tokens(self, parameters: float) -> float:
        """The tokens for which a model of this size is the optimal one."""
        return float((parameters / self.scale) ** (1 / self.exponent)) / (FLOPS_PER_TOKEN * parameters)


def power_through(points: Sequence[tuple[float, float]], source: str) -> PowerOptimum:
    """The power law through published pairs (FLOPs, parameters), by least squares of the logarithms."""
    x, y = np.log(np.asarray(points, dtype=float)).T
    exponent, constant = np.polyfit(x, y, 1)
    return PowerOptimum(float(np.exp(constant)), float(exponent), source)


APPROACH_1 = power_through(
    [(1.92e19, 4e8), (1.21e20, 1e9), (1.23e22, 1e10), (5.76e23, 6.7e10), (3.85e24, 1.75e11), (9.90e24, 2.80e11),
     (3.43e25, 5.20e11), (1.27e26, 1e12), (1.30e28, 1e13)],
    "Hoffmann et al. 2022, approach 1 (table 3)",
)  # fmt: skip
APPROACH_2 = power_through(
    [(1.84e19, 4e8), (1.20e20, 1e9), (1.32e22, 1e10), (6.88e23, 6.7e10), (4.54e24, 1.75e11), (1.18e25, 2.80e11),
     (4.19e25, 5.20e11), (1.59e26, 1e12), (1.75e28, 1e13)],
    "Hoffmann et al. 2022, approach 2 (table A3)",
)  # fmt: skip
OPTIMA: dict[str, ParametricLaw | PowerOptimum] = {
    "approach 1": APPROACH_1, "approach 2": APPROACH_2, "approach 3": HOFFMANN, "epoch": EPOCH,
}  # fmt: skip


@dataclass(frozen=True)
class Kaplan:
    """The laws of Kaplan et al. 2020: N without embeddings, D in tokens, C in PF-days, losses in nats a token."""

    alpha_n: float = 0.076
    n_c: float = 8.8e13
    alpha_d: float = 0.095
    d_c: float = 5.4e13
    alpha_c: float = 0.050
    c_c: float = 3.1e8

    def of_parameters(self, parameters: float) -> float:
        """Equation 1.1: enough data, trained to convergence."""
        return float((self.n_c / parameters) ** self.alpha_n)

    def of_tokens(self, tokens: float) -> float:
        """Equation 1.2: a large model, stopped early."""
        return float((self.d_c / tokens) ** self.alpha_d)

    def of_compute(self, days: float) -> float:
        """Equation 1.3: the optimal model for a compute of PF-days."""
        return float((self.c_c / days) ** self.alpha_c)

    def loss(self, parameters: float, tokens: float) -> float:
        """Equation 1.5 with the constants of table 2."""
        alpha_n, alpha_d, n_c, d_c = 0.076, 0.103, 6.4e13, 1.8e13
        return float(((n_c / parameters) ** (alpha_n / alpha_d) + d_c / tokens) ** alpha_d)

    def optimal(self, flops: float) -> tuple[float, float]:
        """Table 6: N = 1.3e9 C^0.73 with C in PF-days; D = C / (6 N)."""
        parameters = 1.3e9 * (flops / (1e15 * 86_400)) ** 0.73
        return parameters, flops / (FLOPS_PER_TOKEN * parameters)


KAPLAN = Kaplan()

MODELS_OF_2022 = {
    "GPT-3": (175e9, 300e9), "Gopher": (280e9, 300e9), "Chinchilla": (70e9, 1.4e12), "OPT": (175e9, 180e9),
    "BLOOM": (176e9, 366e9), "LLaMA-65B": (65e9, 1.4e12), "Llama 3.1 405B": (405e9, 15.6e12),
    "Llama 3.1 8B": (8e9, 15e12),
}  # fmt: skip
"""Parameters and tokens of published trainings."""


@dataclass(frozen=True)
class Comparison:
    """A published training beside the optimum for its compute: > 1 tokens per optimal token is over-training."""

    name: str
    parameters: float
    tokens: float
    flops: float
    optimal_parameters: float
    optimal_tokens: float

    @property
    def over_training(self) -> float:
        """Tokens of the training over the optimal tokens of a model of its size and compute."""
        return self.tokens / self.optimal_tokens


def compare_with_optimum(law: ParametricLaw | PowerOptimum = HOFFMANN) -> Iterator[Comparison]:
    """Each of `MODELS_OF_2022` beside the optimum of its own compute."""
    for name, (parameters, tokens) in MODELS_OF_2022.items():
        flops = FLOPS_PER_TOKEN * parameters * tokens
        yield Comparison(name, parameters, tokens, flops, *law.optimal(flops))


@dataclass(frozen=True)
class Fit:
    """A fitted law, its objective (sum of Huber losses of log L) and standard errors by bootstrap (0: not computed)."""

    law: ParametricLaw
    objective: float
    errors: dict[str, float]
    points: int

    def interval(self, name: str) -> tuple[float, float]:
        """The value plus and minus 1.96 standard errors."""
        value = getattr(self.law, name)
        return value - 1.96 * self.errors[name], value + 1.96 * self.errors[name]


STARTS = 6
"""Starting points of a fit, the most promising of the grid."""

LOWEST = torch.tensor([-20.0, -100.0, -100.0, math.log(1e-3), math.log(1e-3)], dtype=torch.float64)
HIGHEST = torch.tensor([5.0, 100.0, 100.0, math.log(4.0), math.log(4.0)], dtype=torch.float64)
"""Bounds on the logarithms of E, A, B, alpha and beta: noisy losses would otherwise be fitted by exponents of 1e165."""

DELTA = 1e-3
"""Threshold of the Huber loss of log L, as in both papers."""


def fit(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], *,
    bootstrap: int = 0, seed: int = 0, source: str = "fit",
) -> Fit:  # fmt: skip
    """Fits L = E + A / N^alpha + B / D^beta to runs.

    Minimizes the sum of Huber losses of log L (threshold 1e-3) over the logarithms of the five constants by L-BFGS in
    float64 from the most promising of a grid of starting points; the exponents stay between 0.001 and 4. `bootstrap`:
    draws with replacement, each fitted from the best point, for standard errors. Raises InputError for fewer than 6
    runs, and for values that are not positive.
    """
    data = np.asarray([parameters, tokens, losses], dtype=float)
    if data.shape[1] < 6:
        raise InputError(f"{data.shape[1]} runs; a fit of five constants needs at least 6")
    if not (np.isfinite(data).all() and (data > 0).all()):
        raise InputError("parameters, tokens and losses must be positive numbers")
    logs = torch.from_numpy(np.log(data))
    exponents = tuple(math.log(each) for each in (0.1, 0.4, 0.8))
    grid = product((-1.0, 0.0, 0.5, 1.0), (0.0, 5.0, 10.0, 15.0), (0.0, 5.0, 10.0, 15.0), exponents, exponents)
    starts = torch.tensor(list(grid), dtype=torch.float64)
    promising = starts[_objective(starts, logs).argsort()[:STARTS]]
    best, objective = _minimized(promising, logs)
    errors = dict.fromkeys(("E", "A", "B", "alpha", "beta"), 0.0)
    if bootstrap:
        generator = np.random.default_rng(seed)
        draws = []
        for _ in range(bootstrap):
            rows = torch.from_numpy(generator.integers(0, logs.shape[1], logs.shape[1]))
            draws.append(_constants(_minimized(best[None], logs[:, rows])[0]))
        errors = {name: float(np.std([draw[name] for draw in draws], ddof=1)) for name in errors}
    return Fit(ParametricLaw(**_constants(best), source=source), float(objective), errors, logs.shape[1])


def _constants(point: Tensor) -> dict[str, float]:
    e, a, b, alpha, beta = point.clamp(LOWEST, HIGHEST).tolist()
    return {name: math.exp(each) for name, each in zip("E A B alpha beta".split(), (e, a, b, alpha, beta), strict=True)}


def _objective(points: Tensor, logs: Tensor) -> Tensor:
    """The sum of Huber losses of each of (K, 5) points, (K,). A point has the logarithms of E, A, B, alpha and beta."""
    n, d, loss = logs
    e, a, b, alpha, beta = points.clamp(LOWEST, HIGHEST).T[:, :, None]
    falls = torch.stack([a - alpha.exp() * n, b - beta.exp() * d, e.expand(-1, n.numel())])
    predicted = torch.logsumexp(falls, 0)
    return torch.nn.functional.huber_loss(predicted, loss.expand_as(predicted), delta=DELTA, reduction="none").sum(1)


def _minimized(points: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """The best point and objective after L-BFGS from each of (K, 5) points."""
    best: tuple[Tensor, Tensor] | None = None
    for point in points:
        value = point.clone().requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [value],
            max_iter=400,
            tolerance_grad=1e-10,
            tolerance_change=1e-14,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(value: Tensor = value, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = 1e3 * _objective(value[None], logs).sum()  # scaled: the tolerances are absolute
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            objective = _objective(value[None], logs)[0]
        if torch.isfinite(objective) and (best is None or objective < best[1]):
            best = value.detach(), objective
    if best is None:
        raise InputError("The law cannot be fitted to these runs: no starting point gives a finite loss.")
    return best


@dataclass(frozen=True)
class IsoFlop:
    """The minimum of one budget, of a parabola of the loss in log N.

    `inside`: it lies between the smallest and the largest N.
    """

    flops: float
    parameters: float
    loss: float
    inside: bool


def iso_flop_minimum(flops: float, parameters: Sequence[float], losses: Sequence[float]) -> IsoFlop:
    """The optimal model of one budget (approach 2). Raises InputError for fewer than 3 sizes."""
    if len(set(parameters)) < 3:
        raise InputError(f"{len(set(parameters))} model sizes; a parabola needs at least 3")
    x = np.log(np.asarray(parameters, dtype=float))
    square, slope, constant = np.polyfit(x, np.asarray(losses, dtype=float), 2)
    if square <= 0:
        lowest = int(np.argmin(losses))
        return IsoFlop(flops, float(parameters[lowest]), float(losses[lowest]), False)
    center = -slope / (2 * square)
    value = constant - slope**2 / (4 * square)
    return IsoFlop(flops, float(np.exp(center)), float(value), bool(x.min() <= center <= x.max()))


def bootstrapped(
    statistic: Callable[[np.ndarray], float], count: int, *, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of row indices, each draw of `count` rows with replacement.

    Draws for which the statistic is NaN (too few different rows) are left out; NaN if all are.
    """
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(0, count, count)) for _ in range(draws)])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
