"""Settings of training: the loop that every objective shares, and the tasks that a model is finetuned for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem, Settings
from quatrain.core.wording import format_value
from quatrain.training.schedules import learning_rate_ratio


class TrainSettings(Settings):
    """Settings of one training. Exactly one of `steps` and `epochs` sets its length.

    `batch_tokens` counts the tokens of one optimizer step, all its `accumulation` micro-batches together.
    The learning rate rises for `warmup_steps` and then follows `schedule`. `min_learning_rate_ratio` is the final
    learning rate as a fraction of the peak; `decay_ratio` is the fraction of steps in which WSD decays.

    A step is bad if its loss or gradient is NaN or infinite, or its loss exceeds `loss_spike_factor` times the running
    median. `on_bad_step` stops the run or skips the update; the batch is saved for inspection. `metric` is the
    validation metric that `patience` and `keep` use. `metric_direction` = "auto" treats losses, perplexities and errors
    as lower-is-better and everything else as higher-is-better. `keep` = "best" restores the best validated weights.

    To save memory: `chunked_loss` never holds all logits at once; `activation_checkpointing` stores only each block's
    input and recomputes the rest, for about a third more time; `optimizer` = "adamw8bit" stores AdamW's moments in 8
    bits; `paged_optimizer` keeps optimizer states in host memory. `compile` compiles the blocks with torch.compile.
    `optimizer` = "sgd" is plain gradient descent without states, for word vectors.
    `quantize_aware` trains under the rounding of a later quantize stage (quantization-aware training); with a LoRA, the
    merged weight is rounded. The written weights are the float ones, from which that stage gives the trained model.

    `mup_base_width` is the `hidden_size` at which `learning_rate` was chosen: at another width the rates of matrices
    follow the maximal update parametrization, so that the best rate stays where it was. 0: one rate for all.

    With several processes (torchrun), `parallel` is the strategy: `ddp` replicates the model; `zero1`, `zero2` and
    `zero3` shard the optimizer states, then also gradients, then also weights; `hybrid` shards within a machine and
    replicates between machines. `device` = "auto" takes a GPU if there is one.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "clip": "max_grad_norm",
        "warmup": "warmup_steps",
        "min_learning_rate": "min_learning_rate_ratio",
        "decay": "decay_ratio",
        "spike": "loss_spike_factor",
        "better": "metric_direction",
        "paged": "paged_optimizer",
    }

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_tokens: int = Field(default=16_384, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0, le=10)
    mup_base_width: int = Field(default=0, ge=0, description="the width at which learning_rate was chosen; 0 for none")
    optimizer: Literal["adamw", "adamw8bit", "muon", "sgd"] = "adamw"
    paged_optimizer: bool = Field(default=False, description="the optimizer's states in host memory, beside a GPU's")
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_steps: int = Field(default=20, ge=0, description="steps in which the learning rate rises")
    min_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    decay_ratio: float = Field(default=0.4, gt=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, ge=0, description="largest norm of the gradient; 0 for none")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    packing: bool = Field(default=False, description="several examples a row, none seen by another (chats, documents)")
    pad_to_multiple_of: int = Field(default=8, ge=1, le=65_536, description="row lengths are multiples of this")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    log_every: int = Field(default=10, ge=1)
    evaluate_every: int = Field(default=0, ge=0, description="steps between two validations; 0 for the end only")
    sample_every: int = Field(
        default=0, ge=0, description="steps between two samples of the model's output; 0 for none"
    )
    checkpoint_every: int = Field(default=0, ge=0, description="steps between two checkpoints; 0 lets time decide")
    patience: int = Field(default=0, ge=0, description="validations without gain after which to stop; 0 for never")
    keep: Literal["last", "best"] = "last"
    metric: str = Field(default="validation_loss", description="what patience and keep go by")
    metric_direction: Literal["auto", "lower", "higher"] = "auto"
    on_bad_step: Literal["stop", "skip"] = "stop"
    loss_spike_factor: float = Field(
        default=0.0, ge=0, description="a loss this many times the running median is bad; 0 for none"
    )
    chunked_loss: Literal["auto", True, False] = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    quantize_aware: Literal["int8", "int4", "w8a8"] | None = Field(
        default=None,
        description="round the weights in each forward pass, for a later quantize stage of this method",
    )
    quantize_group: Literal[32, 64, 128] | None = Field(default=None, description="weights that share a scale (int4)")
    parallel: Literal["auto", "ddp", "zero1", "zero2", "zero3", "hybrid"] = "auto"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"

    def rates(self, steps: int) -> list[float]:
        """Shares of the peak learning rate at the first two of so many steps: both are 0 where every rate is."""
        return [
            learning_rate_ratio(
                step,
                steps=steps,
                schedule=self.schedule,
                warmup_steps=self.warmup_steps,
                min_ratio=self.min_learning_rate_ratio,
                decay_ratio=self.decay_ratio,
            )
            for step in range(min(2, steps))
        ]

    def conflicts(self) -> Iterator[Problem]:
        if self.quantize_group is not None and self.quantize_aware != "int4":
            text = f'{self.quantize_group}; only quantize_aware = "int4" reads it: leave it out'
            yield Problem(("quantize_group",), text, (("quantize_aware",),))
        both = (("steps",), ("epochs",))
        if self.steps is not None and self.epochs is not None:
            have = f"steps = {self.steps} and epochs = {self.epochs}"
            yield Problem((), f"{have}; must have exactly one of steps and epochs: remove one", both)
        if self.steps is None and self.epochs is None:
            yield Problem((), "has neither steps nor epochs; must have exactly one, such as steps = 500", both)
        if self.steps is not None and self.warmup_steps > self.steps:
            text = f"{self.warmup_steps}; must be at most steps = {self.steps}"
            yield Problem(("warmup_steps",), text, (("steps",),))
        if self.steps is not None and not any(self.rates(self.steps)):
            text = f"{format_value(self.schedule)}; its only step has the rate 0, and nothing would be learned: use "
            text += '"constant", min_learning_rate_ratio above 0, or more steps'
            yield Problem(("schedule",), text, (("steps",), ("warmup_steps",), ("min_learning_rate_ratio",)))
        if self.loss_spike_factor and self.loss_spike_factor <= 1:
            yield Problem(
                ("loss_spike_factor",), f"{self.loss_spike_factor}; must be above 1 (3 is usual), or 0 for none"
            )
        if self.mup_base_width and self.optimizer == "sgd":
            text = f'{self.mup_base_width}; its rates are those of "adamw", "adamw8bit" and "muon": leave it out'
            yield Problem(("mup_base_width",), text, (("optimizer",),))
        if self.paged_optimizer and self.optimizer in ("muon", "sgd"):
            why = "updates matrices of equal shape together" if self.optimizer == "muon" else "has no states"
            text = f'true; "{self.optimizer}" {why}: use optimizer = "adamw" or "adamw8bit"'
            yield Problem(("paged_optimizer",), text, (("optimizer",),))
        if self.parallel not in ("auto", "ddp"):
            parts = f'parallel = "{self.parallel}" shards the optimizer states'
            if self.optimizer == "adamw8bit":
                text = f'"adamw8bit"; {parts}, and would split its blocks: use optimizer = "adamw" or parallel = "ddp"'
                yield Problem(("optimizer",), text, (("parallel",),))
            if self.paged_optimizer:
                text = f'true; {parts} on the GPUs: remove it, or use parallel = "ddp"'
                yield Problem(("paged_optimizer",), text, (("parallel",),))
        if (self.patience or self.keep == "best") and not self.evaluate_every:
            wish = f"patience = {self.patience}" if self.patience else 'keep = "best"'
            text = f"0; must be at least 1 for {wish}: there is nothing to compare without validations"
            yield Problem(("evaluate_every",), text, (("patience",), ("keep",)))


class TaskSettings(Settings):
    """What a model is finetuned for.

    `objective`: chats, with loss on the assistant's tokens only (`chat`); the class of a text (`classify`) or numbers
    (`regress`); a tag for each word (`tag`); the span that answers a question (`answer`); the best of several choices
    (`choice`); a target text for a source text (`seq2seq`); sentence embeddings (`embed`). `labels` fixes the names and
    the order of classes and tags, which otherwise come from the data.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"prefix": "source_prefix"}

    objective: Literal["chat", "classify", "regress", "tag", "answer", "choice", "seq2seq", "embed"] = "chat"
    labels: Listing[str] = ()
    stride: int | None = Field(default=None, ge=0, description="tokens that windows of a long text share (tag, answer)")
    source_prefix: str = Field(default="", description='put before each source, such as "summarize: " (seq2seq)')
    max_target_length: int | None = Field(default=None, ge=4, description="longest target in tokens (seq2seq)")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share that all tokens get alike (seq2seq)")
    temperature: float = Field(default=0.05, gt=0, le=100, description="what cosines are divided by (embed)")
    pooling: Literal["family", "mean"] = Field(
        default="family", description="states that a class is read from: the family's, or the mean (classify, regress)"
    )
