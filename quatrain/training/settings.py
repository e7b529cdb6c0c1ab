"""Settings of training: the loop that every objective shares, and the stages that use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.adaptation.settings import AdapterSettings
from quatrain.settings import Problem, Settings
from quatrain.text.settings import DataSettings


class TrainSettings(Settings):
    """One run of the trainer. Exactly one of `steps` and `epochs` says how long it is.

    `batch_tokens` counts the tokens of one optimizer step, all its `accumulation` micro-batches together.
    `min_learning_rate` and `decay` are shares: of the peak learning rate, and of the steps (WSD only).

    A bad step has a loss or gradient that is no number, or, where `spike` says so, a loss far above the last ones: the
    run stops there, or leaves that step out; its batch is kept for a look. `metric` names what the validations measure;
    "auto" takes losses, perplexities and errors as better when lower, all else when higher. `keep` = "best" ends with
    the weights that were best at a validation.

    To save memory: `chunked_loss` never holds all logits at once, `activation_checkpointing` keeps the input of each
    block alone and computes the rest anew for a third more time. `compile` lets torch.compile fuse the blocks.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_tokens: int = Field(default=16_384, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0, le=10)
    optimizer: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup: int = Field(default=20, ge=0, description="steps in which the learning rate rises")
    min_learning_rate: float = Field(default=0.0, ge=0, le=1)
    decay: float = Field(default=0.4, gt=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0, description="largest norm of the gradient; 0 for none")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    log_every: int = Field(default=10, ge=1)
    evaluate_every: int = Field(default=0, ge=0, description="steps between two validations; 0 for the end only")
    checkpoint_every: int = Field(default=0, ge=0, description="steps between two checkpoints; 0 lets time decide")
    patience: int = Field(default=0, ge=0, description="validations without gain after which to stop; 0 for never")
    keep: Literal["last", "best"] = "last"
    metric: str = Field(default="validation_loss", description="what patience and keep go by")
    better: Literal["auto", "lower", "higher"] = "auto"
    on_bad_step: Literal["stop", "skip"] = "stop"
    spike: float = Field(default=0.0, ge=0, description="a loss this many times the running median is bad; 0 for none")
    chunked_loss: Literal["auto", True, False] = "auto"
    activation_checkpointing: bool = False
    compile: bool = False

    def conflicts(self) -> Iterator[Problem]:
        both = (("steps",), ("epochs",))
        if self.steps is not None and self.epochs is not None:
            have = f"steps = {self.steps} and epochs = {self.epochs}"
            yield Problem((), f"{have}; must have exactly one of steps and epochs: remove one", both)
        if self.steps is None and self.epochs is None:
            yield Problem((), "has neither steps nor epochs; must have exactly one, such as steps = 500", both)
        if self.steps is not None and self.warmup > self.steps:
            text = f"{self.warmup}; must be at most steps = {self.steps}"
            yield Problem(("warmup",), text, (("steps",),))
        if self.spike and self.spike <= 1:
            yield Problem(("spike",), f"{self.spike}; must be above 1 (3 is usual), or 0 for none")
        if (self.patience or self.keep == "best") and not self.evaluate_every:
            wish = f"patience = {self.patience}" if self.patience else 'keep = "best"'
            text = f"0; must be at least 1 for {wish}: there is nothing to compare without validations"
            yield Problem(("evaluate_every",), text, (("patience",), ("keep",)))


class PretrainStage(Settings):
    """Learns text from the start, or goes on from `model.folder`. `context` is the model's longest unless given.

    `rows` says what a row of a batch is: a window of the running text, or, for corpora of short documents, one
    document, so that none is cut or seen beside another; longer ones are cut at `context`.
    """

    kind: Literal["pretrain"] = "pretrain"
    objective: Literal["causal"] = "causal"
    rows: Literal["windows", "documents"] = "windows"
    copy_steps: int = Field(default=0, ge=0)
    copy_every: int = Field(default=0, ge=0, description="0 for never again")
    context: int | None = Field(default=None, ge=2)
    train: TrainSettings
    data: DataSettings | None = None
    evaluate: bool = True


class FinetuneStage(Settings):
    """Instruction tuning: chats, with loss on the assistant's tokens only. Without `adapter` every weight learns."""

    kind: Literal["finetune"] = "finetune"
    context: int | None = Field(default=None, ge=2)
    train: TrainSettings
    adapter: AdapterSettings | None = None
    data: DataSettings | None = None
    evaluate: bool = True
