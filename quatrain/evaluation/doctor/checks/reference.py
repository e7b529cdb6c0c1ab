"""Our model beside transformers' with the same weights: logits, and greedy and beam continuations."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.wording import printable, shorten
from quatrain.evaluation.doctor.check import LOGITS, Check, DoesNotApply, Finding, differences
from quatrain.evaluation.doctor.subject import ModelUnderTest
from quatrain.generation.params import SamplingParams
from quatrain.models.io.model_folder import read_config

BEAMS = 3
ROWS = 3
"""Samples that are continued by beam search."""
REMEDY = (
    "The folder is read in another way than transformers reads it, so a model that is exported from here would answer "
    "differently there. Do not use this model until the difference is found; report its config.json and this row."
)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and progress bars of transformers, and without the network."""
    import transformers

    verbosity, offline = transformers.logging.get_verbosity(), os.environ.get("HF_HUB_OFFLINE")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
        if offline is not None:
            os.environ["HF_HUB_OFFLINE"] = offline


def their_model(subject: ModelUnderTest) -> Any:
    """transformers' model of the same folder, in float32; of the `reference` folder if there is one.

    Raises NotRun without the library, DoesNotApply for a model that it cannot read.
    """
    subject.require_library("transformers", "hf")
    import transformers

    if subject.resolved.adapters:
        raise DoesNotApply("several adapters over one base have no counterpart in transformers")
    source = subject.reference or subject.resolved
    raw = read_config(source.base)
    if raw.get("quantization_config"):
        raise DoesNotApply("transformers reads this quantized format with other libraries, or not at all")
    names = raw.get("architectures") or [""]
    kind = getattr(transformers, str(names[0]), None)
    if kind is None:
        raise DoesNotApply(
            f"transformers {transformers.__version__} has no class {shorten(printable(str(names[0])), 60)}"
        )
    with quiet():
        try:
            model = kind.from_pretrained(source.base, local_files_only=True).float()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"transformers cannot read the folder: {shorten(printable(str(error)), 200)}") from error
        if source.is_adapter:
            subject.require_library("peft", "hf")
            import peft

            model = peft.PeftModel.from_pretrained(model, str(source.folder))
    return model.eval().to(subject.device)


@torch.no_grad()
def their_outputs(subject: ModelUnderTest, model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """What transformers' model gives for each text, one by one, in the shape of ours."""
    found = []
    for row in rows:
        ids = torch.tensor([row], device=subject.device)
        extra: dict[str, Any] = {}
        if subject.decoder_is_fed:
            extra["decoder_input_ids"] = subject.decoder_ids([row]).to(subject.device)
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
        if "start_logits" in output:
            found.append(torch.stack((output.start_logits, output.end_logits), dim=-1)[0])
        elif "prediction_logits" in output:
            found.append(torch.cat([output.prediction_logits.flatten(), output.seq_relationship_logits.flatten()]))
        else:
            found.append((output.logits if "logits" in output else output.last_hidden_state)[0])
    return found


@torch.no_grad()
def _logits(subject: ModelUnderTest) -> Finding:
    subject.check_output()
    theirs = their_model(subject)
    rows = subject.rows
    if subject.config.head == "embedding":  # Pooling is Sentence Transformers'; the states under it are compared.
        ours = [subject.model.hidden_states(torch.tensor([row], device=subject.device))[0] for row in rows]
    else:
        ours = subject.outputs(subject.model, rows, single=True)
    found = differences(zip(ours, their_outputs(subject, theirs, rows), strict=True))
    what = "hidden states" if subject.config.head in ("embedding", "none") else "logits"
    beside = f" beside {subject.reference.folder.name}" if subject.reference is not None else ""
    return Finding(found, f"{what} of {len(rows)} texts{beside}", subject.logit_limit)


def _continuations(subject: ModelUnderTest, count: int | None, beams: int) -> Finding:
    engine, theirs = subject.engine, their_model(subject)
    rows = subject.rows[:count]
    new = subject.new_tokens
    params = SamplingParams(temperature=0.0, num_beams=beams, max_new_tokens=new, min_new_tokens=new)
    ours = [completion.ids for completion in engine.generate(rows, params)]
    expected = []
    with quiet(), torch.no_grad():
        for row in rows:
            ids = torch.tensor([row], device=subject.device)
            said = theirs.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=beams,
                max_new_tokens=new, min_new_tokens=new, eos_token_id=engine.end_ids or None,
                pad_token_id=subject.config.pad_token_id or 0,
            )[0].tolist()  # fmt: skip
            expected.append(said[1:] if subject.has_encoder else said[len(row) :])
    wrong, note = subject.different(rows, ours, expected)
    detail = f"{len(rows)} texts, {new} tokens each" + (f", {beams} beams" if beams > 1 else "")
    return Finding(wrong, "; ".join(filter(None, [detail, note])))


def _greedy(subject: ModelUnderTest) -> Finding:
    return _continuations(subject, None, 1)


def _beams(subject: ModelUnderTest) -> Finding:
    return _continuations(subject, ROWS, BEAMS)


CHECKS = (
    Check("transformers-logits", "ours and transformers, same weights: logits", "logits", LOGITS, REMEDY, _logits),
    Check("transformers-greedy", "ours and transformers: greedy ids", "texts", 0, REMEDY, _greedy),
    Check("transformers-beams", "ours and transformers: beam-search ids", "texts", 0, REMEDY, _beams),
)
