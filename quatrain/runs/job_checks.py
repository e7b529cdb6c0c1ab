"""Checks of a `TrainingJob` before it trains: data that cannot be learned, memory that cannot suffice."""

from __future__ import annotations

from collections.abc import Iterator

from quatrain.core.errors import InputError
from quatrain.planning.counts import state_bytes
from quatrain.planning.limits import check_training
from quatrain.planning.machine import choose_device, relative_speed
from quatrain.runs.job import TrainingJob
from quatrain.runs.stage import StageContext
from quatrain.training.memory import tensor_bytes
from quatrain.training.preflight import DataReport, preview_data

SLOW = 0.5
"""Speed of a precision, as a share of float32's, below which its choice is questioned."""


def check_job(job: TrainingJob, context: StageContext) -> None:
    """The short form of `quatrain check`, before a stage trains. Raises InputError for what cannot work."""
    if job.adapter is None and (problem := memory_problem(job)):
        raise InputError(f"{context.name}: {problem}")
    for warning in doubtful_settings(job):
        context.reporter.warn(warning)
    if job.examples is None:
        return
    findings = inspect_examples(job)
    for warning in findings.warnings:
        context.reporter.warn(warning)
    if findings.problems:
        message = f"{context.name} cannot learn from this data; `quatrain check` shows more:"
        raise InputError(message, findings.problems)


def inspect_examples(job: TrainingJob) -> DataReport:
    """The samples and counts of a job's examples."""
    return preview_data(
        job.objective,
        job.tokenizer,
        job.model.config,
        examples=job.examples,
        stream=job.stream if job.examples is None else None,
        chats=job.chats,
    )


def memory_problem(job: TrainingJob) -> str | None:
    """Why a job cannot fit in memory, computed before it allocates anything; None where no reason is known."""
    model, settings = job.model, job.settings
    if not model.is_planned:
        return None
    device = choose_device(settings.device)
    tokens = settings.batch_tokens // settings.accumulation
    if job.examples is not None:
        tokens = min(tokens, sum(map(len, job.examples)))
    try:
        check_training(
            model.config,
            weights=tensor_bytes([*model.parameters(), *model.buffers()]),
            trained=sum(each.numel() for each in model.parameters() if each.requires_grad),
            states=0 if settings.paged_optimizer and device.type == "cuda" else optimizer_bytes(job),
            tokens=tokens,
            device=device,
        )
    except InputError as error:
        return error.message
    return None


def doubtful_settings(job: TrainingJob) -> Iterator[str]:
    """Settings that cannot be meant: without an effect, or slower than the default on this device."""
    settings = job.settings
    if job.validate is None and (settings.keep == "best" or settings.patience):
        setting = 'keep = "best"' if settings.keep == "best" else f"patience = {settings.patience}"
        yield (
            f"train: {setting} goes by validations, and no data is held out for them (data.validation, data.dev): the "
            "last weights are kept."
        )
    if settings.warmup_steps >= job.steps > 1:
        yield (
            f"train.warmup_steps: {settings.warmup_steps:,} of {job.steps:,} steps; "
            f"the learning rate never reaches {settings.learning_rate:g}. Lower it, or train for longer."
        )
    if settings.precision in ("bfloat16", "float16"):
        device = choose_device(settings.device).type
        speed = relative_speed(settings.precision, device)
        if 0 < speed < SLOW:
            place = "CPU" if device == "cpu" else "device"
            yield (
                f"train.precision: {settings.precision}; its matrix products take {1 / speed:,.0f} times as long as "
                f"those of float32 on this {place}. Take auto, which measures both."
            )


def optimizer_bytes(job: TrainingJob) -> int:
    """Bytes of the optimizer's states; Muon's count as AdamW's, which is an upper bound."""
    kind = job.settings.optimizer if job.settings.optimizer in ("adamw8bit", "sgd") else "adamw"
    return sum(state_bytes(each.numel(), kind) for each in job.model.parameters() if each.requires_grad)
