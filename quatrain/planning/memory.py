"""The peak memory of a training run, from counts: what is held at each moment of a step, and which moment holds most.

A step has four: the end of the forward pass, when all activations are there; the end of the backward pass, when all
gradients are; the optimizer's update; and, now and then, the writing of a checkpoint. No sum of all parts is ever held
at once, so the peak is that of the largest moment (the counting follows Rajbhandari et al. 2020, ZeRO, arXiv
1910.02054, section 3, moment by moment).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quatrain.planning.counts import BYTES


@dataclass(frozen=True)
class Activations:
    """Bytes that a micro-batch keeps for its backward pass, and what that pass needs besides for a moment.

    `body` is kept by the blocks, `logits` by the head; `head` comes on top while the head's backward pass runs, `block`
    while one block's does; `first` is what a single block keeps.
    """

    body: int = 0
    logits: int = 0
    head: int = 0
    block: int = 0
    first: int = 0

    def times(self, factor: float) -> Activations:
        """The same for another number of rows."""
        return Activations(*(round(value * factor) for value in vars(self).values()))


@dataclass(frozen=True)
class TrainingShape:
    """What the memory of a training run follows from. Counts are elements, `update` and `files` bytes.

    `weights` are all of the model, `trained` those with a gradient, `states` the optimizer's. `update` is what the
    optimizer's step needs for a moment, `files` what a checkpoint's writing copies, `head` the weights of the head whose
    gradient comes first, while all activations are there. `precision` is the working one; any but float32 keeps float32
    originals of all weights. With `accumulation`, gradients of earlier micro-batches wait.
    """

    weights: int
    trained: int
    states: int
    precision: str = "float32"
    accumulation: int = 1
    update: int = 0
    files: int = 0
    head: int = 0
    activations: Activations = field(default_factory=Activations)


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the peak, by part, and the moment of the peak: forward, backward, update or checkpoint."""

    moment: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def peak_memory_of(shape: TrainingShape, rest: int = 0) -> PeakMemory:
    """The peak of a training run by part; `rest` is what the process holds besides: libraries, data."""
    found = [PeakMemory(moment, parts | {"rest": rest}) for moment, parts in moments(shape).items()]
    return max(found, key=lambda peak: peak.total)


def moments(shape: TrainingShape) -> dict[str, dict[str, int]]:
    """Bytes by part at each moment of a step, from the second step on."""
    size = BYTES[shape.precision]
    narrow = shape.precision != "float32"
    kept = shape.activations
    held = {
        "weights": size * shape.weights,
        "masters": BYTES["float32"] * shape.weights if narrow else 0,
        "optimizer": BYTES["float32"] * shape.states,
    }
    full = BYTES["float32"] * shape.trained
    waiting = full if shape.accumulation > 1 else 0
    # With masters a gradient exists twice at the end of the last backward pass: as it came, and as far as it is summed.
    arriving = waiting + size * shape.trained if narrow else full
    return {
        "forward": held
        | {
            "gradients": waiting + size * shape.head,
            "activations": kept.body,
            "logits": kept.logits,
            "temporary": kept.head,
        },
        "backward": held
        | {"gradients": arriving, "activations": kept.first, "logits": 0, "temporary": kept.block},
        "update": held | {"gradients": full, "activations": 0, "logits": 0, "temporary": shape.update},
        "checkpoint": held | {"gradients": full, "activations": 0, "logits": 0, "temporary": shape.files},
    }
