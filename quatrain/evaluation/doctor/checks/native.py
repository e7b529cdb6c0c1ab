"""Decoding by native code and by PyTorch. Compiling the code takes longer than all other checks."""

from __future__ import annotations

from quatrain.evaluation.doctor.check import Check, DoesNotApply, Finding
from quatrain.evaluation.doctor.subject import ModelUnderTest
from quatrain.generation.engine import Engine


def _native(subject: ModelUnderTest) -> Finding:
    native, plain = (Engine(subject.engine.model, native=native) for native in (True, False))
    rows = subject.rows
    found = subject.greedy_ids(native, rows)
    if native.statistics.decoder == "torch":
        raise DoesNotApply(f"steps run in PyTorch alone: {native.statistics.decoder_reason}")
    wrong, note = subject.different(rows, found, subject.greedy_ids(plain, rows))
    detail = f"{len(rows)} texts, decoded by {native.statistics.decoder} code and by PyTorch"
    return Finding(wrong, "; ".join(filter(None, [detail, note])))


CHECKS = (
    Check(
        "native",
        "decoded by native code and by PyTorch: greedy ids",
        "texts",
        0,
        "Generate with Engine(…, native=False), which decodes in PyTorch, and report the model's config.json.",
        _native,
    ),
)
