"""Checks of a `TrainingJob` before it trains: data that cannot be learned, memory that cannot suffice."""

from __future__ import annotations

from collections.abc import Iterator

from quatrain.core.errors import InputError
from quatrain.planning.counts import state_bytes
from quatrain.planning.machine import available_memory, choose_device
from quatrain.planning.room import check_step
from quatrain.runs.job import TrainingJob
from quatrain.runs.stage import StageContext
from quatrain.training.memory import tensor_bytes
from quatrain.training.preflight import DataReport, look


def check_job(job: TrainingJob, context: StageContext) -> None:
    """The short form of `quatrain check`, before a stage trains. Raises InputError for what cannot work."""
    if job.adapter is None and (problem := memory_problem(job)):
        raise InputError(f"{context.name}: {problem}")
    for warning in ineffective_settings(job):
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
    return look(
        job.objective,
        job.tokenizer,
        job.model.config,
        examples=job.examples,
        stream=job.stream if job.examples is None else None,
        chats=job.chats,
    )


def memory_problem(job: TrainingJob) -> str | None:
    """Why a job cannot fit in memory, computed before it allocates anything; None where no reason is known."""
    trained = sum(each.numel() for each in job.model.parameters() if each.requires_grad)
    needed = tensor_bytes([*job.model.parameters(), *job.model.buffers()]) + 4 * trained
    device = choose_device(job.settings.device)
    if not (job.settings.paged_optimizer and device.type == "cuda"):
        needed += optimizer_bytes(job)
    free = available_memory(device)
    if free is not None and needed > free:
        return (
            f"weights, gradients and the optimizer's state take {needed:,} bytes, and {free:,} are free; make the "
            "model smaller, or train an adapter"
        )
    tokens = job.settings.batch_tokens // job.settings.accumulation
    if job.examples is not None:
        tokens = min(tokens, sum(map(len, job.examples)))
    try:
        check_step(job.model.config, tokens, device)
    except InputError as error:
        return error.message
    return None


def ineffective_settings(job: TrainingJob) -> Iterator[str]:
    """Settings that have no effect: a warm-up longer than the training, choices by validations that do not happen."""
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


def optimizer_bytes(job: TrainingJob) -> int:
    """Bytes of the optimizer's states; Muon's count as AdamW's, which is an upper bound."""
    kind = "adamw8bit" if job.settings.optimizer == "adamw8bit" else "adamw"
    return sum(state_bytes(each.numel(), kind) for each in job.model.parameters() if each.requires_grad)
