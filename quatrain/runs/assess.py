"""Evaluates the model after a stage: scores of the held-out sets, samples of free text, generation speed.

Every stage is evaluated in the same way, so that the report can compare them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from quatrain.agents.tool_engine import engine_with
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.settings import Settings
from quatrain.core.wording import format_value
from quatrain.evaluation.evaluate import complete, evaluate
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.models.transformer.stack import Model
from quatrain.runs import answers as answering
from quatrain.runs.material import generated_task, tools_of
from quatrain.runs.stage import PREVIEW_SAMPLES, StageContext, StageResult
from quatrain.runs.stages import spec_of
from quatrain.tasks.task import Task
from quatrain.tokenizers.tokenizer import Tokenizer

MASK = "[MASK]"
"""The placeholder of a hidden word in a recipe's prompts, whatever the tokenizer's own mask token is."""

OPENING = 20
"""Characters of the text's beginning that replace prompts which the model cannot read."""


def assess(settings: Settings, context: StageContext, model: Model, tokenizer: Tokenizer, result: StageResult) -> None:
    """Adds scores, samples and generation speed to a stage's result."""
    if not getattr(settings, "evaluate", True):
        return
    if model.config.head in ("masked", "pretraining"):
        result.samples = _mask_predictions(context, model, tokenizer)
    elif model.config.head in ("causal", "seq2seq"):
        engine = _engine(settings, context, model, tokenizer)
        task = generated_task(context, settings)
        if task is not None:
            _held_out_sets(settings, context, engine, task, result)
        elif answering.takes_turns(settings, context):
            answering.measure(settings, context, engine, result)
        else:
            _samples(settings, context, engine, result)


def _engine(settings: Settings, context: StageContext, model: Model, tokenizer: Tokenizer) -> Engine:
    """The engine that is measured: with the recipe's tools, once the model can read chats that call them."""
    asked = context.recipe.evaluate
    template = getattr(tokenizer, "chat_template", None)
    tools = tools_of(asked.tools, settings, context) if template else ()
    return engine_with(tools, asked.max_calls, model, tokenizer)


def preview(settings: Settings, context: StageContext, model: Model, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """A few samples during training, of the kind that `assess` takes at the end."""
    if model.config.head in ("masked", "pretraining"):
        return _mask_predictions(context, model, tokenizer)
    if model.config.head not in ("causal", "seq2seq"):
        return []
    engine = _engine(settings, context, model, tokenizer)
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens, seed=context.seed)
    task = generated_task(context, settings)
    if task is not None:
        shown = {name: examples for name, examples in task.held_out.items() if name not in task.hidden}
        pairs = [(name, example) for name, examples in shown.items() for example in examples[:PREVIEW_SAMPLES]]
        examples = [example for _, example in pairs]
        completions, _ = complete(engine, task, examples, params, as_text=_continues_text(settings))
        return [
            {"set": name, "prompt": task.question(example), "reference": task.reference(example), "output": answer.text}
            for (name, example), answer in zip(pairs, completions, strict=True)
        ]
    if answering.takes_turns(settings, context):
        return answering.preview(settings, context, engine)
    prompts, _ = _readable_prompts(settings, context, engine)
    if not prompts:
        return []
    params = replace(params, temperature=next(iter(context.recipe.evaluate.temperatures), 0.0))
    completions = engine.generate(prompts[:PREVIEW_SAMPLES], params)
    return [
        {"set": f"temperature {params.temperature}", "prompt": prompt, "output": completion.text}
        for prompt, completion in zip(prompts, completions, strict=False)
    ]


def _held_out_sets(
    settings: Settings, context: StageContext, engine: Engine, task: Task[Any], result: StageResult
) -> None:
    """Scores the greedy completions of every held-out set of a generated task."""
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens)
    result.scores, result.samples = {}, []
    tokens = seconds = 0.0
    with task:
        for name, examples in task.held_out.items():
            if not examples:
                result.notes.append(f"{name}: the data gives no example for this set")
                continue
            evaluation = evaluate(engine, task, name, examples, params=params, as_text=_continues_text(settings))
            tokens, seconds = tokens + evaluation.tokens, seconds + evaluation.seconds
            result.add(name, evaluation, context.reporter)
    result.generation_tokens_per_second = tokens / seconds if seconds else None


def _continues_text(settings: Any) -> bool:
    """Whether the model has only been pre-trained: it continues a text and takes no turns in a chat."""
    return spec_of(settings).teaches(settings) == "text"


@torch.no_grad()
def _mask_predictions(context: StageContext, model: Model, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The five likeliest tokens for each [MASK] in the recipe's prompts, with their probabilities."""
    mask = tokenizer.mask_id
    mask_token = tokenizer.id_to_token(mask) if mask is not None else None
    samples = []
    for prompt in context.recipe.evaluate.prompts:
        if mask_token is None or MASK not in prompt:
            continue
        ids = tokenizer.encode(prompt.replace(MASK, mask_token), special_tokens=True)
        if len(ids) > model.config.context_length:
            continue
        hidden = model.hidden_states(torch.tensor([ids], device=model.device))[0]
        positions = [position for position, token in enumerate(ids) if token == mask]
        probabilities, best = model.lm_logits(hidden[positions]).float().softmax(-1).topk(5)
        words = [
            ", ".join(
                f"{tokenizer.decode([token]).strip() or tokenizer.id_to_token(token)} {probability:.0%}"
                for token, probability in zip(*row, strict=True)
            )
            for row in zip(best.tolist(), probabilities.tolist(), strict=True)
        ]
        samples.append({"set": "hidden words", "prompt": prompt, "output": " | ".join(words)})
    return samples


def _samples(settings: Settings, context: StageContext, engine: Engine, result: StageResult) -> None:
    """Samples of each of the recipe's prompts at each of its temperatures."""
    limits = context.recipe.evaluate
    prompts, notes = _readable_prompts(settings, context, engine)
    for note in notes:
        context.reporter.warn(note)
    result.notes += notes
    result.samples = []
    tokens = seconds = 0.0
    for temperature in limits.temperatures:
        if not prompts:
            break
        params = SamplingParams(max_new_tokens=limits.max_new_tokens, temperature=temperature, seed=context.seed)
        started = time.perf_counter()
        answers = engine.generate(prompts, params)
        seconds += time.perf_counter() - started
        tokens += sum(len(answer.ids) for answer in answers)
        result.samples += [
            {"set": f"temperature {temperature}", "prompt": prompt, "output": answer.text, "temperature": temperature}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    result.generation_tokens_per_second = tokens / seconds if seconds else None


def _readable_prompts(settings: Settings, context: StageContext, engine: Engine) -> tuple[list[str], list[str]]:
    """The recipe's prompts that the model can read, and a note on each that it cannot.

    A recipe's prompts fit its own text. The tokenizer of another text may lack their characters, or its model may have
    a shorter context. Where no prompt is left, the beginning of the text replaces them.
    """
    prompts, notes = [], []
    for prompt in context.recipe.evaluate.prompts:
        fault = _fault(engine, prompt)
        if fault is None:
            prompts.append(prompt)
        else:
            notes.append(f"evaluate.prompts: {format_value(prompt)} left out: {fault}")
    if not notes or prompts:
        return prompts, notes
    opening = _opening(settings, context)
    if opening and _fault(engine, opening) is None:
        return [opening], [*notes, f"the text's own beginning is the prompt instead: {format_value(opening)}"]
    return [], notes


def _fault(engine: Engine, prompt: str) -> str | None:
    """Why the model cannot continue a prompt; None where it can."""
    try:
        count = len(engine.encode(prompt))
    except InputError as error:
        return error.message
    limit = engine.model.config.max_position_embeddings
    return None if count < limit else f"it has {count} tokens, and the model reads {limit}"


def _opening(settings: Settings, context: StageContext) -> str:
    """The first words of the text that a stage learned, at most 20 characters; "" where they cannot be read."""
    from quatrain.data.documents import read_chunks

    source = context.recipe.data_of(settings).source
    try:
        text = next((piece.text for piece in read_chunks(source) if piece.text.strip()), "") if source else ""
    except QuatrainError:
        return ""
    line = text.strip().splitlines()[0][:OPENING] if text.strip() else ""
    return line if len(line) < OPENING else line.rpartition(" ")[0] or line
