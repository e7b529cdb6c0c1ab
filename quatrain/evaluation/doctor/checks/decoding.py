"""One model, computed in different ways: with a cache, in batches, padded, streamed, with guessed tokens."""

from __future__ import annotations

from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.evaluation.doctor.check import LOGITS, Check, DoesNotApply, Finding, differences
from quatrain.evaluation.doctor.subject import ModelUnderTest, guarded
from quatrain.generation.engine import Engine
from quatrain.generation.runner import virtual_tokens
from quatrain.generation.speculative import PromptLookup
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.positions import depends_on_length

REMEDY = (
    "The same text gets different answers by how it is computed. Update Quatrain and PyTorch; on a GPU, switch TF32 "
    "off. If the row still fails, report the model's config.json."
)


@torch.inference_mode()
def _cached(subject: ModelUnderTest) -> Finding:
    model, config = subject.model, subject.config
    if config.head not in ("causal", "seq2seq"):
        raise DoesNotApply(f"the head {config.head} needs no cache")
    if depends_on_length(config.rope_scaling):
        raise DoesNotApply("the rotary frequencies depend on the length of the text, and cached keys keep theirs")
    rows = subject.rows
    pairs = []
    for row in rows:
        read = subject.decoder_ids([row])[0].tolist() if subject.has_encoder else row
        source = torch.tensor([row], device=model.device)
        cache = KVCache(config, 1, len(read) + virtual_tokens(model, None), device=model.device)
        ends = sorted({max(1, len(read) // 2), *range(len(read) // 2, len(read) + 1)} - {0})
        parts, start = [], 0
        for end in ends:
            piece = torch.tensor([read[start:end]], device=model.device)
            if subject.has_encoder:
                parts.append(model(source if not start else None, decoder_input_ids=piece, cache=cache)[0])
            else:
                parts.append(model(piece, cache=cache)[0])
            start = end
        pairs.append((torch.cat(parts, dim=1)[0], subject.outputs(model, [row])[0]))
    detail = f"{len(rows)} texts, the second half token by token"
    return Finding(differences(pairs), detail, subject.logit_limit)


def _batched(subject: ModelUnderTest) -> Finding:
    subject.check_output()
    rows = subject.rows
    together = subject.outputs(subject.model, rows)
    alone = subject.outputs(subject.model, rows, single=True)
    return Finding(differences(zip(together, alone, strict=True)), f"{len(rows)} texts", subject.logit_limit)


def _padded(subject: ModelUnderTest) -> Finding:
    subject.check_output()
    rows = subject.rows
    left, right = (subject.outputs(subject.model, rows, padding=side) for side in ("left", "right"))
    return Finding(differences(zip(left, right, strict=True)), f"{len(rows)} texts", subject.logit_limit)


def _batching(subject: ModelUnderTest) -> Finding:
    engine, rows = subject.engine, subject.rows
    alone = [subject.greedy_ids(engine, [row])[0] for row in rows]
    together = subject.greedy_ids(engine, rows)
    waiting = list(reversed(rows))
    requests = []
    while waiting or not engine.scheduler.is_idle:  # A new text joins those that run, every second step.
        if waiting:
            requests.append(engine.submit(waiting.pop(), subject.greedy))
        engine.step()
        engine.step()
    joined = [request.result().ids for request in requests]
    wrong, note = subject.different([*rows, *rows], [*together, *joined], [*alone, *alone])
    detail = f"{len(rows)} texts alone, together, and joining one by one"
    return Finding(wrong, "; ".join(filter(None, [detail, note])))


def _streamed(subject: ModelUnderTest) -> Finding:
    engine = subject.engine
    if engine.target_tokenizer is None:
        raise DoesNotApply("without a tokenizer there is no text to stream")
    wrong = 0
    for row, whole in zip(subject.rows, engine.generate(subject.rows, subject.greedy), strict=True):
        chunks = list(engine.stream(row, subject.greedy))
        last = chunks[-1].completion
        same_ids = last is not None and not subject.different([row], [last.ids], [whole.ids])[0]
        wrong += not same_ids or (last is not None and "".join(chunks) != last.text)
    return Finding(wrong, f"{len(subject.rows)} texts")


def _speculative(subject: ModelUnderTest) -> Finding:
    engine = subject.engine
    rows = [[*row, *row][: subject.room] for row in subject.rows]  # Repeated, so that the lookup finds something.
    settings: dict[str, Any] = {"speculation": PromptLookup(4)}
    guessing = guarded(lambda: Engine(engine.model, engine.tokenizer, **settings), "cannot guess")
    try:
        found = subject.greedy_ids(guessing, rows)
    except InputError as error:
        raise DoesNotApply(error.message) from error
    wrong, note = subject.different(rows, found, subject.greedy_ids(engine, rows))
    statistics = guessing.statistics
    detail = f"{len(rows)} texts, {statistics.accepted_tokens} of {statistics.proposed_tokens} guesses accepted"
    return Finding(wrong, "; ".join(filter(None, [detail, note])))


CHECKS = (
    Check("cache", "with and without a KV cache: logits", "logits", LOGITS, REMEDY, _cached),
    Check("batch", "in a batch and alone: logits", "logits", LOGITS, REMEDY, _batched),
    Check("padding", "padded on the left and on the right: logits", "logits", LOGITS, REMEDY, _padded),
    Check("batching", "continuous and static batching, and alone: greedy ids", "texts", 0, REMEDY, _batching),
    Check("stream", "streamed and whole completions: ids and text", "texts", 0, REMEDY, _streamed),
    Check(
        "speculative",
        "greedy with and without guessed tokens: ids",
        "texts",
        0,
        "Guessed tokens change what is said. Generate without speculation, and report the model's config.json.",
        _speculative,
    ),
)
