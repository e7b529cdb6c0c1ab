"""Model folders: read and written again bit for bit, whole and unchanged since they were written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from quatrain.core.errors import QuatrainError
from quatrain.core.wording import format_bytes
from quatrain.evaluation.doctor.check import Check, DoesNotApply, Finding
from quatrain.evaluation.doctor.subject import ModelUnderTest
from quatrain.models.families import family_of
from quatrain.models.io.model_folder import file_state_dict, read_config, save
from quatrain.models.io.safetensors_reader import SafetensorsReader
from quatrain.models.io.weights import TensorNames
from quatrain.planning.machine import free_disk
from quatrain.training import checkpoints

MOST_WRITTEN = 2 << 30
"""Larger models are converted to the names and shapes of their files in memory, without writing these."""


def _whole(subject: ModelUnderTest) -> Finding:
    folder = subject.original.folder
    if not (folder / checkpoints.MANIFEST).is_file():
        raise DoesNotApply(f"{folder.name} has no {checkpoints.MANIFEST}, which only checkpoints have")
    try:
        checkpoints.check(folder)
    except QuatrainError as error:
        return Finding(1, "; ".join([error.message, *error.problems]))
    return Finding(0, "every file has the SHA-256 of the manifest")


def _round_trip(subject: ModelUnderTest) -> Finding:
    if subject.resolved.adapters:
        raise DoesNotApply("several adapters over one base have no folder of one model")
    if subject.resolved.is_adapter:
        return _adapter_round_trip(subject)
    model, folder = subject.model, subject.resolved.folder
    written = file_state_dict(model)
    size = sum(tensor.nbytes for tensor in written.values())
    on_disk = size <= MOST_WRITTEN and size < (free_disk(subject.folder("written")) or 0) // 2
    if on_disk:
        save(model, subject.folder("written"))
        with SafetensorsReader(subject.folder("written")) as reader:
            written = {name: reader.read(name) for name in reader.names}
    wrong, count = [], 0
    for name, stored, ours in _pairs(folder, written):
        count += 1
        if stored.shape != ours.shape or not torch.equal(ours.cpu().to(stored.dtype), stored):
            wrong.append(name)
    how = f"{count} tensors" if on_disk else f"{count} tensors ({format_bytes(size)}), in memory without writing files"
    return Finding(len(wrong), f"{how}; different: {', '.join(wrong[:4])}" if wrong else how)


def _pairs(folder: Path, written: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each tensor that was written, beside the one of the folder."""
    raw = read_config(folder)
    family = family_of(raw)
    with SafetensorsReader(folder) as reader:
        names = TensorNames(family, family.heads[family.head_of(raw)], reader, strict=False)
        for name, ours in written.items():
            stored = name if name in reader else names.find(name)
            if stored is not None:
                yield stored, reader.view(stored), ours


def _adapter_round_trip(subject: ModelUnderTest) -> Finding:
    from safetensors.torch import load_file

    from quatrain.adapters.peft_files import WEIGHTS, save_adapter

    save_adapter(subject.model, subject.folder("adapter"), base_model=str(subject.resolved.base))
    stored = load_file(subject.resolved.folder / WEIGHTS)
    written = load_file(subject.folder("adapter") / WEIGHTS)
    names = sorted(stored.keys() | written.keys())
    wrong = [
        name
        for name in names
        if name not in stored
        or name not in written
        or not torch.equal(written[name].to(stored[name].dtype), stored[name])
    ]
    return Finding(len(wrong), f"{len(names)} tensors" + (f"; different: {', '.join(wrong[:4])}" if wrong else ""))


CHECKS = (
    Check(
        "manifest",
        "the files of a checkpoint and its manifest",
        "files",
        0,
        "The folder changed after it was written, or its disk is broken. Take another checkpoint, or copy it again.",
        _whole,
    ),
    Check(
        "round-trip",
        "a model folder read and written again, bit for bit",
        "tensors",
        0,
        "The file changed while this ran, or has tensors that this family does not read. Compare its tensors with the "
        "original's; report the model's config.json if they are equal.",
        _round_trip,
    ),
)
