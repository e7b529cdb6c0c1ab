"""Implementation of the contacts stage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from quatrain.data.proteins import RESIDUES, SEPARATION, Family, generate, mutual_information, precision
from quatrain.models.protein.evoformer import Evoformer, EvoformerConfig
from quatrain.runs.plain_training import train_examples
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.contacts import ContactsStage
from quatrain.training import checkpoints
from quatrain.training.objectives.contacts import ContactPrediction

HELD_OUT_SEED = 1_000_003
"""Added to the recipe's seed for the families held out."""
SHARES = {"precision_L": 1.0, "precision_L_2": 0.5, "precision_L_5": 0.2}
"""Precision among the best L, L / 2 and L / 5 pairs."""
SET = "families held out"
BATCH = 4
"""Families that are evaluated together."""


def run(settings: ContactsStage, context: StageContext) -> StageResult:
    """Trains the EvoFormer, writes `model/`, and measures it on other families beside mutual information."""
    learned, held_out = families_of(settings, context)
    model, objective = make(settings, context), ContactPrediction()
    size = settings.depth * settings.length
    result = train_examples(model, objective, learned, settings.train, context, size=size)
    shutil.rmtree(context.model_folder, ignore_errors=True)
    model.save(context.model_folder)
    scores = predicted(model, objective, held_out)
    classic = [mutual_information(family.alignment) for family in held_out]
    chance = float(np.mean([precision(np.zeros_like(each), family.contacts, len(family)) for each, family in
                            zip(classic, held_out, strict=True)]))  # fmt: skip
    result.scores = {SET: measured(scores, held_out) | {"count": float(len(held_out))}}
    result.baselines = {SET: {"name": "mutual information with APC"} | measured(classic, held_out)}
    result.extra |= {"chance": chance, "figures": drawn(scores, classic, held_out)}
    result.notes.append(f"{chance:.1%} of all pairs are contacts: the precision of guessing.")
    context.reporter.score(SET, result.scores[SET], result.baselines[SET])
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: ContactsStage, context: StageContext) -> str:
    """What `quatrain check` says."""
    parameters = make(settings, context).num_parameters()
    return f"{settings.families:,} families will be generated; {parameters:,} parameters; steps not measured"


def families_of(settings: ContactsStage, context: StageContext) -> tuple[list[Family], list[Family]]:
    """The families to learn from, and others that are held out."""
    sizes: dict[str, Any] = {"length": settings.length, "depth": settings.depth}
    learned = generate(settings.families, seed=context.seed, **sizes)
    return learned, generate(settings.held_out, seed=context.seed + HELD_OUT_SEED, **sizes)


def make(settings: ContactsStage, context: StageContext) -> Evoformer:
    """A fresh model."""
    config = EvoformerConfig(
        **settings.evoformer.model_dump(),
        vocab_size=len(RESIDUES),
        max_length=settings.length,
        dropout=settings.train.dropout,
    )
    return Evoformer(config).initialize(context.seed)


def predicted(model: Evoformer, objective: ContactPrediction, families: Sequence[Family]) -> list[np.ndarray]:
    """The score (L, L) of each pair of each family."""
    model.eval()
    found: list[np.ndarray] = []
    for start in range(0, len(families), BATCH):
        batch = objective.collate(families[start : start + BATCH]).to(model.device)
        found += objective.predict(model, batch)
    return found


def measured(scores: Sequence[np.ndarray], families: Sequence[Family]) -> dict[str, float]:
    """The mean precision among the best pairs of each family."""
    pairs = list(zip(scores, families, strict=True))
    return {
        name: float(np.mean([precision(each, family.contacts, share) for each, family in pairs]))
        for name, share in SHARES.items()
    }


def drawn(
    scores: Sequence[np.ndarray], classic: Sequence[np.ndarray], families: Sequence[Family]
) -> list[dict[str, Any]]:
    """Maps of the first family: what was predicted above the diagonal, the contacts below it."""
    family = families[0]
    letters = [f"{letter}{place}" for place, letter in enumerate(family.sequences[0], 1)]
    below = np.tril(family.contacts)
    maps = {
        "EvoFormer": torch.from_numpy(scores[0]).sigmoid().numpy(),
        "Mutual information with APC": np.clip(classic[0], 0, None) / max(float(classic[0].max()), 1e-9),
    }
    far = np.triu(np.ones_like(below), SEPARATION)
    note = "Above the diagonal what was predicted, below it the contacts that were planted."
    return [
        {
            "kind": "heat",
            "title": f"{name}: contacts of a family held out",
            "note": note,
            "rows": letters,
            "columns": letters,
            "values": np.round(np.where(below, 1.0, values * far), 4).tolist(),
        }
        for name, values in maps.items()
    ]
