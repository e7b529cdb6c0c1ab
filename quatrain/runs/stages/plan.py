"""The plan stage: what the training stages of the recipe will cost, before the first of them runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageContext, StageResult, StageSpec


class PlanStage(StageSettings):
    """Estimates parameters, FLOPs, time, memory and energy of all training of the recipe.

    Its gates are the budget: `planned_parameters`, `planned_flops`, `planned_seconds`, `planned_memory_bytes`,
    `planned_kwh`. `utilization` is the share of this machine's measured rate that small models reach.
    """

    kind: Literal["plan"] = "plan"
    utilization: float = Field(default=0.3, gt=0, le=1)


def run(settings: PlanStage, context: StageContext) -> StageResult:
    """Plans; writes no model."""
    import torch

    from quatrain.core.wording import format_bytes, format_duration
    from quatrain.planning import counts
    from quatrain.planning.energy import JOULES_PER_KWH, EnergyMeter, format_energy
    from quatrain.planning.formulas import classic_sizes
    from quatrain.planning.machine import choose_device, fastest_precision, matmul_flops_per_second
    from quatrain.runs.costs import stage_costs, starting_config

    config, _ = starting_config(context.recipe)
    planned = counts.is_planned(config)
    parameters = counts.parameters(config) if planned else classic_sizes(config).parameters
    costs = stage_costs(context.recipe)
    flops = sum(stage.flops for stage in costs)
    device = choose_device()
    dtype: torch.dtype = getattr(torch, fastest_precision(device.type))
    seconds = flops / (matmul_flops_per_second(dtype, device) * settings.utilization)
    watts = EnergyMeter(context.recipe.energy).core_watts * torch.get_num_threads()
    result = StageResult()
    result.extra = {
        "planned_parameters": parameters,
        "planned_flops": flops,
        "planned_seconds": seconds,
        "planned_kwh": watts * seconds / JOULES_PER_KWH,
        "planned_memory_bytes": max((stage.memory or 0 for stage in costs), default=0),
    }
    rows = [
        [stage.name, f"{stage.flops:.3g}", format_duration(seconds * stage.flops / flops if flops else 0.0),
         "" if stage.memory is None else format_bytes(stage.memory)]
        for stage in costs
    ]  # fmt: skip
    context.reporter.table("Planned training", ["stage", "FLOPs", "time, about", "memory, about"], rows)
    result.notes.append(
        f"planned: {parameters:,} parameters, {flops:.3g} FLOPs of training, about {format_duration(seconds)} and "
        f"{format_energy(result.extra['planned_kwh'])} on the processor, without evaluation and generation"
    )
    return result


SPEC = StageSpec(PlanStage, run=run, tables=("tokenizer", "model", "stage"), measured=False)
