"""What a model costs, as sections of lines with a formula each: the figures of `quatrain plan`.

`ModelSize` is a model with its shapes (a configuration) or a bare number of parameters, for which everything that
follows from N alone is still known. `inference_section` covers a model that runs, `training_sections` one that trains
on many devices, and `scaling_section` what the laws say about its size and data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.models.io.model_folder import config_of
from quatrain.models.transformer.config import CacheFormat, ModelConfig
from quatrain.models.transformer.recurrence import state_bytes
from quatrain.planning import counts, scaling
from quatrain.planning.bill import Cluster, Offer, bill, cheapest_clusters, pf_days, training_flops
from quatrain.planning.block_widths import BLOCKS, undivided
from quatrain.planning.facts import PublishedModel
from quatrain.planning.formulas import Sizes, sizes_of
from quatrain.planning.parallelism import (
    Layout,
    Step,
    device_memory,
    largest_micro_batch,
    largest_model,
    placed,
    state_memory,
)

INFERENCE_TYPES = ("float32", "bfloat16", "int8", "int4")
SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmbt]?)", re.IGNORECASE)


def parse_number(text: str) -> float | None:
    """A number with an optional suffix k, m, b (1e9) or t: "7b", "1.3B", "15.6t", "175e9"; None for other text."""
    match = _SIZE.fullmatch(text.strip().replace(",", "").replace("_", ""))
    return float(match[1]) * SUFFIXES[match[2].lower()] if match else None


@dataclass(frozen=True)
class ModelSize:
    """A model to plan. `active` are the parameters that one token passes through (fewer in a mixture of experts)."""

    name: str
    parameters: float
    config: ModelConfig | None = None
    active: float | None = None
    sizes: Sizes | None = None
    """Sizes of a model that is none of the package's transformers."""

    def __post_init__(self) -> None:
        if not 1 <= self.parameters < 2**58:
            raise InputError(f"parameters: {self.parameters:g}; must be from 1 to {2**58:,}")
        if self.active is not None and not 1 <= self.active <= self.parameters:
            raise InputError(
                f"active parameters: {self.active:g}; must be from 1 to all parameters, {self.parameters:g}"
            )

    @classmethod
    def of(cls, name: str, config: ModelConfig) -> ModelSize:
        """The size of a model with its shapes, counted exactly; with experts also what a token uses."""
        active = None if config.experts is None else counts.active_parameters(config)
        return cls(name, counts.parameters(config), config, active)

    @classmethod
    def counted(cls, name: str, sizes: Sizes) -> ModelSize:
        """The size of another model, by its formula."""
        active = sizes.active if sizes.active < sizes.parameters else None
        return cls(name, sizes.parameters, active=active, sizes=sizes)

    @classmethod
    def published(cls, name: str, model: PublishedModel) -> ModelSize:
        """The size of a published model: counted on the network of its family, or by the formula of its type."""
        config = dict(model.config)
        sizes = sizes_of(config)
        return cls.of(name, config_of(config)) if sizes is None else cls.counted(name, sizes)

    @property
    def used(self) -> float:
        """Parameters that one token passes through."""
        return self.parameters if self.active is None else self.active


@dataclass
class Section:
    """Lines of a table (what, how much, formula), and the same figures for programs."""

    title: str
    rows: list[list[str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    """The name of the figures in JSON."""

    def add(self, key: str, value: Any, name: str, text: str, formula: str = "") -> None:
        """One figure as a line and as a value."""
        self.figures[key] = value
        self.rows.append([name, text, formula])


def model_section(size: ModelSize) -> Section:
    """Parameters, by part where the shapes are known, and FLOPs of a token."""
    section = Section("model")
    section.add("parameters", int(size.parameters), "parameters", f"{int(size.parameters):,}", "N")
    if size.active is not None:
        section.add("active_parameters", int(size.active), "active for a token", f"{int(size.active):,}", "N_active")
    config = size.config
    if size.sizes is not None:
        return _with_sizes(section, size.sizes)
    if config is None:
        flops = 2 * size.used
        section.add("flops_per_token", flops, "FLOPs to read or write a token", _flops(flops), "2 N, without attention")
        flops *= 3
        section.add(
            "training_flops_per_token", flops, "FLOPs to learn from a token", _flops(flops), "6 N, without attention"
        )
        return section
    parts = counts.parameters_by_part(config)
    section.figures["by_part"] = parts
    total = sum(parts.values())
    section.rows += [[f"  {name}", f"{count:,}", f"{count / total:.1%}"] for name, count in parts.items()]
    longest = config.max_position_embeddings
    for key, training, name, formula in (
        ("flops_per_token", False, "FLOPs to read or write a token", "2 N_matmul + 4 L H D T"),
        ("training_flops_per_token", True, "FLOPs to learn from a token", "three times the forward pass"),
    ):
        flops = counts.flops_per_token(config, longest, training=training)
        section.add(key, flops, name, _flops(flops), f"{formula}, T = {longest:,}")
    return section


def _with_sizes(section: Section, sizes: Sizes) -> Section:
    """The parts and FLOPs of a model that is counted by formula."""
    section.figures["by_part"] = dict(sizes.parts)
    total = sizes.parameters
    section.rows += [[f"  {name}", f"{count:,}", f"{count / total:.1%}"] for name, count in sizes.parts.items()]
    flops = sizes.flops(sizes.context)
    place = f", T = {sizes.context:,}" if sizes.context and "T" in sizes.formula else ""
    section.add("flops_per_token", flops, f"FLOPs of one {sizes.unit}", _flops(flops), f"{sizes.formula}{place}")
    section.add(
        "training_flops_per_token", 3 * flops, f"FLOPs to learn from one {sizes.unit}", _flops(3 * flops),
        "three times the forward pass",
    )  # fmt: skip
    return section


def _add_blocks(section: Section, config: ModelConfig) -> None:
    """Whether the blocks of GGUF's formats divide the rows of the model."""
    for block, formats in BLOCKS.items():
        wrong = undivided(config, block)
        named = ", ".join(f"{name} {width}" for name, width in wrong.items())
        text = f"all rows fit {formats}" if not wrong else f"{named}: do not fit {formats}"
        section.add(f"rows_undivided_by_{block}", wrong, f"GGUF blocks of {block} weights", text, "width / block")


def inference_section(size: ModelSize) -> Section:
    """Bytes of the weights in each precision, and of the KV cache."""
    section = Section("inference")
    weights = {name: int(size.parameters) * counts.WEIGHT_BITS[name] // 8 for name in INFERENCE_TYPES}
    section.figures["weights"] = weights
    for name, count in weights.items():
        section.rows.append([f"weights in {name}", format_bytes(count), f"N x {counts.WEIGHT_BITS[name]} bits"])
    config = size.config
    if config is not None:
        _add_blocks(section, config)
    if size.sizes is not None and size.sizes.cache:
        cache = 2 * size.sizes.cache
        section.add(
            "cache_per_token", cache, "KV cache of a token, bfloat16", format_bytes(cache), "2 bytes an element"
        )
    if size.sizes is not None and size.sizes.state:
        section.add("state", size.sizes.state, "state of a text, float32", format_bytes(size.sizes.state), "any length")
    if config is None or not (config.is_causal or config.architecture == "encoder-decoder"):
        return section
    longest = config.max_position_embeddings
    if state := state_bytes(config):
        section.add("state", state, "state of a text, float32", format_bytes(state), "any length")
    if not config.attends:
        return section
    per_token = counts.kv_cache_bytes(config, 1, dtype="bfloat16") - state
    section.add(
        "cache_per_token", per_token, "KV cache of a token, bfloat16", format_bytes(per_token),
        "2 x layers x KV heads x head width x 2 bytes",
    )  # fmt: skip
    least = counts.kv_cache_bytes(config, longest, dtype="bfloat16", windows=1) - state
    naive = per_token * longest
    section.add(
        "cache_least", least, f"KV cache of {longest:,} tokens, bfloat16", format_bytes(least),
        "every layer its whole context" if least == naive else
        f"sliding layers: their window, {config.sliding_window:,} tokens; the rule of thumb says {format_bytes(naive)}",
    )  # fmt: skip
    cache = counts.kv_cache_bytes(config, longest)
    twice = ", twice the window of sliding layers" if "sliding" in config.layer_types else ""
    section.add(
        "cache", cache, f"cache of {longest:,} tokens in our engine, float32", format_bytes(cache), f"4 bytes{twice}"
    )
    for form in get_args(CacheFormat):
        rounded = counts.kv_cache_bytes(config, longest, dtype=form)
        section.add(f"cache_{form}", rounded, f"the same with --kv-cache {form}", format_bytes(rounded), "with scales")
    return section


@dataclass(frozen=True)
class TrainingRequest:
    """A training on devices: its tokens, its cluster and how the cluster shares it. `days` is a deadline."""

    cluster: Cluster
    tokens: float | None = None
    layout: Layout = field(default_factory=Layout)
    step: Step | None = None
    days: float | None = None


def training_sections(size: ModelSize, request: TrainingRequest, devices: Mapping[str, Any]) -> Iterator[Section]:
    """Memory of a device, what fits, the bill, and with a deadline the cheapest clusters.

    Raises InputError for splits and contexts that the model does not have.
    """
    step = request.step or Step()
    if size.config is not None and request.step is None:
        step = replace(step, context=min(step.context, size.config.max_position_embeddings))
    yield _memory_section(size, step, request)
    if request.tokens is not None:
        flops = _training_flops(size, request.tokens, step.context)
        charged = bill(flops, request.cluster)
        section = Section("bill", figures=charged.as_dict(), key="bill")
        section.rows = list(charged.rows(request.cluster))
        plain = training_flops(size.used, request.tokens)
        section.figures["flops_6nd"] = plain
        if size.config is not None:
            section.rows[0] = ["training FLOPs", f"{flops:.3g}", f"matrix products and attention; 6 N D is {plain:.3g}"]
        hardware = flops * (4 / 3 if step.checkpointing == "full" else 1)
        if hardware != flops:
            section.add(
                "hardware_flops", hardware, "FLOPs that the hardware does", f"{hardware:.3g}", "8 N D: checkpointing"
            )
        yield section
        if request.days is not None:
            states = sum(state_memory(size.parameters, step, Layout()))
            yield _offers_section(
                cheapest_clusters(flops, request.days, devices, state_bytes=1.2 * states,
                                  utilization=request.cluster.utilization, precision=request.cluster.precision),
                request.days,
            )  # fmt: skip


def _training_flops(size: ModelSize, tokens: float, context: int) -> float:
    """Exact from the shapes, 6 N D from a bare size."""
    if size.config is None:
        return training_flops(size.used, tokens)
    return counts.flops_per_token(size.config, context) * tokens


def _memory_section(size: ModelSize, step: Step, request: TrainingRequest) -> Section:
    layout, device = request.layout, request.cluster.device
    capacity = device.memory * 1e9
    if size.config is not None:
        memory = device_memory(size.config, step, layout)
    else:
        memory = placed(step, *state_memory(size.parameters, step, layout))
    section = Section(
        f"training memory of one {device.name} of {layout.devices:,}", figures=memory.as_dict(), key="device_memory"
    )
    section.rows = list(memory.rows(step, layout))
    if size.config is None:
        section.rows = [row for row in section.rows if row[0] != "activations"]
        section.rows[-1][2] = "the sum, without activations: they need the model's shapes"
    section.add("fits", memory.total <= capacity, "fits", f"{memory.total / capacity:.0%} of {device.memory:g} GB")
    if size.config is not None:
        batch = largest_micro_batch(size.config, step, layout, capacity)
        section.add("largest_micro_batch", batch, "largest micro-batch", f"{batch:,} x {step.context:,} tokens")
    largest = largest_model(capacity, step, layout)
    section.add(
        "largest_model", largest, "largest model so", f"{largest / 1e9:,.3g} B parameters", "80 % of the memory"
    )
    return section


def _offers_section(offers: list[Offer], days: float) -> Section:
    section = Section(
        f"cheapest clusters for {days:g} days", figures={"offers": [asdict(offer) for offer in offers]}, key="clusters"
    )
    for offer in offers[:5]:
        section.rows.append([f"{offer.count:,} x {offer.key}", f"{offer.price:,.0f} USD", f"{offer.days:.1f} days"])
    return section


def scaling_section(size: ModelSize, tokens: float | None) -> Section:
    """What the laws say: optimal tokens of this size, and the loss and the optimum of a training of `tokens`."""
    section = Section("scaling laws", key="scaling")
    optimal = {name: law.optimal_tokens(size.parameters) for name, law in scaling.OPTIMA.items()}
    section.figures["optimal_tokens"] = optimal
    for name, count in optimal.items():
        source = scaling.OPTIMA[name].source
        section.rows.append(
            [f"optimal tokens, {name}", f"{count:.3g} ({count / size.parameters:.1f} a parameter)", source]
        )
    if tokens is None:
        return section
    flops = training_flops(size.parameters, tokens)
    section.figures["loss"] = {name: law.loss(size.parameters, tokens) for name, law in scaling.PARAMETRIC.items()}
    for name, loss in section.figures["loss"].items():
        law = scaling.PARAMETRIC[name]
        section.rows.append(
            [f"predicted loss, {name}", f"{loss:.3f} nats a token", f"E + A/N^{law.alpha:g} + B/D^{law.beta:g}"]
        )
    section.figures["optimum"] = {name: law.optimal(flops) for name, law in scaling.OPTIMA.items()}
    for name, (best, data) in section.figures["optimum"].items():
        text = f"{best / 1e9:,.3g} B parameters, {data / 1e9:,.4g} B tokens"
        section.rows.append([f"optimum of this compute, {name}", text, f"{pf_days(flops):,.3g} PF-days"])
    return section


def _flops(count: float) -> str:
    for name, unit in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f} FLOP"
