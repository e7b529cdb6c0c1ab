"""`quatrain plan`: estimates parameters, memory and operations of a model before it is created or loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.planning.overview import ModelSize, Section
    from quatrain.planning.training_plan import TrainingPlan
    from quatrain.runs.recipe import Recipe


@Parameter(name="*")
@dataclass(frozen=True)
class MethodOptions:
    """A training on this machine, estimated by running the training code without data."""

    method: str | None = None
    """The training method: full, lora, qlora (4-bit base weights), dora, loha, lokr, ia3, bitfit, last-layers, prompt,
    p-tuning or prefix."""
    rank: int | None = None
    """The rank of a low-rank adapter, 16 by default."""
    target_modules: tuple[str, ...] = ()
    """The layers with adapters, such as --target-modules q_proj --target-modules v_proj; by default all linear ones."""
    trainable_tokens: str | None = None
    """special (the default): train the embedding rows of special tokens in addition to an adapter, so that the
    embedding has a gradient. none: do not."""
    batch_tokens: int | None = None
    """Tokens per step, 16,384 by default."""
    accumulation: int | None = None
    """The number of micro-batches per step."""
    optimizer: str | None = None
    """adamw, adamw8bit or muon."""
    precision: str | None = None
    """float32, bfloat16 or float16; by default the faster of the first two on this machine, bfloat16 on --device."""
    paged_optimizer: bool = False
    """Keep optimizer states in host memory."""
    context: int | None = None
    """Tokens per row; by default the model's context, at most 2,048."""

    def plan(self, model: str, config: ModelConfig, stored: str) -> TrainingPlan | None:
        """The estimate, or None without --method. Raises InputError for options that need --method."""
        from quatrain.core.errors import InputError
        from quatrain.planning.training_plan import plan_method

        train = _given(
            batch_tokens=self.batch_tokens, accumulation=self.accumulation, optimizer=self.optimizer,
            precision=self.precision, paged_optimizer=self.paged_optimizer or None,
        )  # fmt: skip
        adapter = _given(
            rank=self.rank, target_modules=self.target_modules or None, trainable_tokens=self.trainable_tokens
        )
        if self.method is not None:
            return plan_method(
                config, self.method, train=train, adapter=adapter, context=self.context, special=_special(model),
                stored=stored,
            )  # fmt: skip
        names = [*train, *adapter, *_given(context=self.context)]
        if names:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
            raise InputError(f"{flags}: only with --method, such as --method lora.")
        return None


@Parameter(name="*")
@dataclass(frozen=True)
class ClusterOptions:
    """A training on devices that are not here, by published formulas."""

    device: str | None = None
    """The device to plan for, such as h100, a100, rtx-4090 or laptop-cpu; an unknown name lists them all."""
    devices: int = 1
    """The number of devices."""
    tokens: str | None = None
    """Tokens of the training, such as 15.6t, 300b or 2e9; shows the bill and the scaling laws."""
    days: float | None = None
    """A deadline: shows the cheapest clusters that meet it."""
    utilization: float = 0.4
    """Share of the device's peak that the model's FLOPs reach (MFU)."""
    price: float | None = None
    """USD per device and hour; by default an example price of the device."""
    grid: str = "world"
    """The electricity grid, such as france, us or world, or its grams of CO2 per kWh."""
    pue: float = 1.0
    """Power usage effectiveness of the data centre."""
    zero: Literal[0, 1, 2, 3] = 0
    """Shard over the data-parallel devices: 1 optimizer states, 2 also gradients, 3 also weights (FSDP)."""
    shard_group: int | None = None
    """Shard within groups of so many devices, with copies between them (hybrid FSDP)."""
    tensor: int = 1
    """Tensor parallelism: devices that share every layer."""
    pipeline: int = 1
    """Pipeline parallelism: groups of layers on different devices."""
    micro_batch: int = 1
    """Texts that a device computes at a time."""
    length: int | None = None
    """Tokens of a text in the training; by default the model's context, at most 2,048."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: those of attention (selective) or of whole layers (full)."""
    no_flash: bool = False
    """Attention that stores its scores."""
    offload: bool = False
    """Optimizer states in host memory."""
    state_optimizer: str = "adamw"
    """The optimizer of the cluster's training: adamw, adamw8bit, muon or sgd."""
    cluster_precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Weights, gradients and matrix products of the cluster's training; 16 bits keep a float32 master copy."""
    active: str | None = None
    """Parameters that one token passes through, for a bare size of a mixture of experts, such as 37b."""
    facts: str | None = None
    """Your own devices, prices and grids: a TOML file in the form of the shipped one (or QUATRAIN_FACTS)."""

    def sections(self, size: ModelSize) -> Iterator[Section]:
        """The sections of the table. Raises InputError, with all problems of a group at once."""
        from quatrain.core.errors import InputError
        from quatrain.planning.bill import Cluster
        from quatrain.planning.facts import load_facts
        from quatrain.planning.overview import TrainingRequest, parse_number, scaling_section, training_sections
        from quatrain.planning.parallelism import Layout, Step

        facts = load_facts(self.facts)
        tokens = None
        if self.tokens is not None:
            tokens = parse_number(self.tokens)
            if not tokens:
                raise InputError(f"--tokens {self.tokens!r}: must be a positive number such as 15.6t, 300b or 2e9")
        if self.device is None:
            if tokens is not None:
                yield scaling_section(size, tokens)
            return
        cluster = Cluster(
            facts.device(self.device), self.devices, self.utilization, self.cluster_precision, self.price,
            facts.grid(self.grid), self.pue,
        )  # fmt: skip
        split = self.tensor * self.pipeline
        if split < 1 or self.devices % split:
            raise InputError(f"--devices {self.devices}: must be a multiple of --tensor x --pipeline, {split}")
        layout = Layout(self.devices // split, self.tensor, self.pipeline, self.zero, self.shard_group)
        longest = size.config.max_position_embeddings if size.config is not None else 2048
        step = Step(
            self.micro_batch, self.length or min(longest, 2048), self.cluster_precision, self.state_optimizer,
            self.checkpointing, not self.no_flash, offload=self.offload,
        )  # fmt: skip
        yield from training_sections(size, TrainingRequest(cluster, tokens, layout, step, self.days), facts.devices)
        yield scaling_section(size, tokens)


def plan(
    model: str,
    *overrides: str,
    training: MethodOptions | None = None,
    cluster: ClusterOptions | None = None,
    verify: bool = False,
    page: Path | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Estimate parameters, memory, FLOPs, time, price, energy and CO2 of a model, without reading weights.

    --method estimates a training on this machine, --device one on devices that are not here. Every line shows its
    formula.

    Parameters
    ----------
    model
        A model folder, a run's folder, an id of the Hugging Face hub, the name of a shipped recipe, the path of a
        recipe, a published model (gpt2, llama-3.1-405b, …) or a bare size such as 7b.
    overrides
        Settings of a recipe to change, such as model.hidden_size=512.
    verify
        Build a small model of the same family and compare the formulas with what it holds and computes.
    page
        Write a page with sliders to this file.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show, show_json, show_table
    from quatrain.planning.overview import Section, inference_section, model_section

    training, cluster = training or MethodOptions(), cluster or ClusterOptions()
    size, recipe, stored = _size(model, overrides, cluster.active)
    sections = [model_section(size), inference_section(size), *cluster.sections(size)]
    figures: dict[str, Any] = {name: value for section in sections[:2] for name, value in section.figures.items()}
    figures |= {section.key: section.figures for section in sections[2:]}
    sections += _stages(recipe, figures)
    if size.config is not None:
        method_plan = training.plan(model, size.config, stored)
        if method_plan is not None:
            figures["method"] = method_plan.as_dict()
            rows = [[*map(str, row), ""] for row in method_plan.rows_for_table()]
            sections.append(Section(f"training by {method_plan.method} on this machine", rows))
    if verify:
        from quatrain.planning.verify import verify_section

        sections.append(verify_section(size))
        figures["verify"] = sections[-1].figures
    if page is not None:
        from quatrain.planning.page import write_page

        write_page(page, size, sections, cluster.facts)
    if json_lines:
        show_json(figures)
        return 0
    for number, section in enumerate(sections):
        show(("\n" if number else "") + section.title)
        show_table(["what", "how much", "formula"], section.rows)
    if page is not None:
        show(f"\nwrote {page}")
    return 0


def _given(**options: Any) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def _size(model: str, overrides: tuple[str, ...], active: str | None) -> tuple[ModelSize, Recipe | None, str]:
    """What is planned; its recipe, if any; dtype of the initial weights."""
    from quatrain.core.errors import InputError
    from quatrain.planning.counts import is_planned
    from quatrain.planning.facts import load_facts
    from quatrain.planning.formulas import Sizes, classic_sizes
    from quatrain.planning.overview import ModelSize, parse_number
    from quatrain.runs.recipe import recipe_names

    exists = Path(model).exists() or model in recipe_names()
    bare = None if exists else parse_number(model)
    published = None if exists else load_facts().models.get(model)
    if bare is not None or published is not None:
        if overrides:
            raise InputError(f"{overrides[0]}: only a recipe's settings can be changed, and {model} is a size")
        if published is not None:
            return ModelSize.published(model, published), None, "float32"
        used = None if active is None else parse_number(active)
        if active is not None and used is None:
            raise InputError(f"--active {active!r}: must be a number of parameters such as 37b")
        return ModelSize(model, bare or 0, active=used), None, "float32"
    if active is not None:
        raise InputError("--active: only for a bare size such as 671b; the parameters of a model are counted.")
    config, recipe, stored = _config(model, overrides)
    if isinstance(config, Sizes):
        return ModelSize.counted(model, config), recipe, stored
    if not is_planned(config):
        return ModelSize.counted(model, classic_sizes(config)), recipe, stored
    return ModelSize.of(model, config), recipe, stored


def _config(model: str, overrides: tuple[str, ...]) -> tuple[Any, Recipe | None, str]:
    """The configuration of a model folder, hub model or recipe; its recipe, if any; dtype of the initial weights.

    Models that have a formula and no family of the package have their sizes instead.
    """
    from quatrain.core.errors import InputError
    from quatrain.core.progress import create_reporter
    from quatrain.core.reading import read_json
    from quatrain.models.hub import CONFIG, resolve
    from quatrain.models.io.model_folder import checkpoint_dtype, load_config
    from quatrain.models.run_folder import run_folder
    from quatrain.planning.formulas import sizes_of
    from quatrain.runs.costs import starting_config
    from quatrain.runs.recipe import load, recipe_names

    of_run = model not in recipe_names() and run_folder(model) is not None
    of_hub = model.count("/") == 1 and not model.endswith(".toml") and not Path(model).exists()
    if of_run or of_hub or Path(model).is_dir():
        if overrides:
            raise InputError(f"{overrides[0]}: only a recipe's settings can be changed, and {model} is a model")
        folder = resolve(model, files=CONFIG)
        by_formula = sizes_of(read_json(folder / "config.json"))
        return by_formula or load_config(folder), None, checkpoint_dtype(folder)
    recipe = load(model, overrides, say=create_reporter(stream=sys.stderr).info)
    config, stored = starting_config(recipe)
    return config, recipe, stored


def _special(model: str) -> list[int]:
    """The special tokens of a model folder, if it has a tokenizer."""
    from quatrain.models.run_folder import model_of_run
    from quatrain.tokenizers.tokenizer import Tokenizer

    folder = model_of_run(model) or Path(model)
    tokenizer = Tokenizer.find(folder) if folder.is_dir() else None
    return sorted(tokenizer.special_ids) if tokenizer is not None else []


def _stages(recipe: Recipe | None, figures: dict[str, Any]) -> list[Section]:
    """Peak memory and FLOPs of each training stage of a recipe; also put into `figures`."""
    from quatrain.core.wording import format_bytes
    from quatrain.planning.overview import Section
    from quatrain.runs.costs import stage_costs

    if recipe is None:
        return []
    section = Section("training on this machine")
    peaks = {}
    for stage in stage_costs(recipe):
        if stage.memory is not None:
            peaks[stage.kind] = stage.memory
            text = format_bytes(stage.memory)
            section.rows.append([f"memory of {stage.kind} at its peak, about", text, "simulated steps"])
        section.rows.append([f"FLOPs of {stage.kind}", f"{stage.flops:.3g}", "FLOPs of a token x tokens"])
    if peaks:
        figures["training"] = peaks
    return [section] if section.rows else []
