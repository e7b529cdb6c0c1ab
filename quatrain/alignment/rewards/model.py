"""A model as a reward: a reward model's score of an answer, or how sure a classifier is of a label.

reward = ModelReward("runs/reward/model")
reward([[{"role": "user", "content": "Hello"}]], ["Good morning!"])     # one score

reward = ModelReward("runs/sentiment/model", label="positive", output="log_probability")
reward(["The film was"], [" wonderful."])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings, field_of
from quatrain.core.errors import InputError
from quatrain.core.settings import Problem
from quatrain.core.wording import format_names, format_value
from quatrain.data.messages import content_text

if TYPE_CHECKING:
    from torch import Tensor

    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer
    from quatrain.training.objectives.texts import EncodedText

Output = Literal["logit", "log_probability", "probability"]
Reads = Literal["chat", "text", "completion"]

BATCH_TOKENS = 16_384
"""Tokens of one batch, padding included."""


class ModelRewardSettings(RewardSettings):
    """A reward model, or a classifier with the `label` that is rewarded, by its folder, run or hub id.

    `stage` = "reward" names the reward model of an earlier stage of the recipe instead of a `folder`.
    `label_field` names the field of an example that holds its own label, such as a control word; one that asks for
    `undecided` is rewarded for even odds, by the negative distance from them. `output` is the
    log-odds of the label, its log-probability or its probability; a reward model has one score, which is unbounded.
    The model reads the conversation (`chat`), the prompt's text with the completion after it (`text`), or the
    `completion` alone; by default a reward model reads the conversation and a classifier the text.
    """

    kind: Literal["model"] = "model"
    folder: str | None = Field(default=None, min_length=1, description="a model folder, a run or a hub id")
    stage: str | None = Field(default=None, min_length=1, description="the kind of an earlier stage, with its model")
    label: str | int | None = Field(default=None, description="the rewarded label of a classifier: a name, or a number")
    label_field: str | None = Field(default=None, description="the field of an example with its label")
    undecided: str | None = Field(default=None, description="what an example asks for that wants no label")
    output: Output = "logit"
    flip: bool = Field(default=False, description="reward the opposite: the score with the other sign")
    reads: Reads | None = None

    def conflicts(self) -> Iterator[Problem]:
        if (self.folder is None) == (self.stage is None):
            yield Problem((), "must have exactly one of folder and stage", (("folder",), ("stage",)))
        if self.label is not None and self.label_field is not None:
            text = f"{format_value(self.label)}; an example has its own label in its label_field: leave one out"
            yield Problem(("label",), text, (("label_field",),))
        if self.undecided is not None and (self.label_field is None or self.output != "logit"):
            text = f'{format_value(self.undecided)}; needs label_field, and output = "logit"'
            yield Problem(("undecided",), text, (("label_field",), ("output",)))

    def build(self, context: RewardContext) -> Reward:
        field, tokenizer = self.label_field, None
        model: Any = self.folder
        if self.stage is not None:
            if self.stage not in context.judges:
                raise InputError(
                    f"rewards: stage = {format_value(self.stage)}; must be an earlier stage whose model judges: "
                    f"{format_names(context.judges) or 'there is none before this one'}"
                )
            model, tokenizer = context.judges[self.stage]()
        return ModelReward(
            model,
            tokenizer,
            label=self.label if field is None else lambda example: str(field_of(example, field)),
            undecided=self.undecided,
            output=self.output,
            flip=self.flip,
            reads=self.reads,
            context=context,
        )


class ModelReward:
    """Scores completions with a model that has the head `sequence_classification`, read by its own tokenizer.

    `label` is the rewarded label of a classifier: its name, its number, or a function that gives it for an example; a
    model of two labels rewards the second by default, and a reward model has no labels. A `label` function may return
    `undecided`: the score is then the negative distance of the log-odds from 0. `output`: "logit" (a reward
    model's score; the log-odds of the label), "log_probability" or "probability". `flip` changes the sign. `reads` as
    for `ModelRewardSettings`. `context` holds the task, whose prompts the model reads; without a task an example is
    itself a prompt: a text, a list of messages, or a mapping with `prompt` or `messages`.

    Texts longer than the model's context lose their beginning. Raises InputError for a model with another head, without
    a tokenizer, or without this label.
    """

    def __init__(
        self,
        folder: str | Model,
        tokenizer: Tokenizer | None = None,
        *,
        label: str | int | Callable[[Any], str | int] | None = None,
        undecided: str | None = None,
        output: Output = "logit",
        flip: bool = False,
        reads: Reads | None = None,
        context: RewardContext | None = None,
        batch_tokens: int = BATCH_TOKENS,
        device: str = "auto",
    ):
        from quatrain.loading.model import load_model
        from quatrain.models.transformer.stack import Model
        from quatrain.planning.machine import choose_device
        from quatrain.tasks.answer_reader import AnswerReader

        if not isinstance(folder, Model):
            folder, own = load_model(folder, device=choose_device(device))
            tokenizer = tokenizer or own
        self.model = folder.eval()
        config = self.model.config
        if config.head != "sequence_classification":
            raise InputError(
                f"The model has the head {config.head}; a reward needs sequence_classification, as the stages reward "
                'and finetune with objective = "classify" leave it.'
            )
        if tokenizer is None:
            raise InputError("The reward's model has no tokenizer: a text cannot be read without its tokens.")
        self.tokenizer = tokenizer
        self.reader = AnswerReader(tokenizer, config.context_length)
        self.undecided = undecided
        self.output, self.flip, self.batch_tokens = output, flip, batch_tokens
        self.context = context or RewardContext()
        usual: Reads = "chat" if config.num_labels == 1 else "text"
        self.reads: Reads = reads or ("chat" if self.reader.answer_only else usual)
        self.label = self._checked(label)

    def _checked(self, label: Any) -> Callable[[Any], int]:
        """The function that gives the number of an example's label."""
        labels = self.model.config.labels
        if callable(label):
            return lambda example: self._number(label(example))
        if label is None and len(labels) > 2:
            raise InputError(f"label: missing; the reward's model has {format_names(labels)}: name the rewarded one.")
        number = len(labels) - 1 if label is None else self._number(label)
        return lambda example: number

    def _number(self, label: str | int) -> int:
        labels = self.model.config.labels
        if label is not None and label == self.undecided:
            return -1
        if label in labels:
            return labels.index(str(label))
        if isinstance(label, int) and 0 <= label < len(labels):
            return label
        raise InputError(f"label: {format_value(label)}; the reward's model has {format_names(labels)}.")

    def __call__(self, examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
        """One score for each completion; batches hold texts of similar lengths."""
        import torch

        from quatrain.alignment.reward_model import score_rows

        pairs = list(zip(examples, completions, strict=True))
        rows = [self.row(example, completion) for example, completion in pairs]
        logits = score_rows(self.model, rows, self.tokenizer.pad_id or 0, self.batch_tokens)
        numbers = torch.tensor([self.label(example) for example in examples], dtype=torch.long)
        scores = self._output(logits, numbers.clamp(min=0))
        scores = torch.where(numbers < 0, -scores.abs(), scores)
        return (-scores if self.flip else scores).tolist()

    def _output(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """The scores (N,) of logits (N, L) for the label numbers (N,)."""
        from torch.nn import functional as F

        chosen = logits.gather(1, numbers[:, None])[:, 0]
        if self.model.config.problem_type == "single_label" and logits.shape[1] > 1:
            chosen = logits.log_softmax(1).gather(1, numbers[:, None])[:, 0]
            others = logits.log_softmax(1).scatter(1, numbers[:, None], float("-inf")).logsumexp(1)
            chosen = chosen - others
        if self.output == "logit":
            return chosen
        return F.logsigmoid(chosen) if self.output == "log_probability" else chosen.sigmoid()

    def row(self, example: Any, completion: str) -> EncodedText:
        """What the model reads of an example and a completion."""
        if self.reads == "chat":
            answer = [{"role": "assistant", "content": completion}]
            return self.reader.read(self._messages(example), [answer])[0]
        return self.reader.text(completion if self.reads == "completion" else self._text(example) + completion)

    def _messages(self, example: Any) -> Sequence[Mapping[str, Any]]:
        if self.context.task is not None:
            return self.context.task.prompt(example)
        prompt = _own_prompt(example)
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt

    def _text(self, example: Any) -> str:
        if self.context.task is not None:
            return self.context.task.text_prompt(example)
        prompt = _own_prompt(example)
        return prompt if isinstance(prompt, str) else "\n".join(content_text(message) for message in prompt)


def _own_prompt(example: Any) -> str | Sequence[Mapping[str, Any]]:
    """The prompt of an example that belongs to no task."""
    if isinstance(example, str) or (isinstance(example, Sequence) and all(isinstance(m, Mapping) for m in example)):
        return example
    if isinstance(example, Mapping) and "messages" in example:
        prompt: Sequence[Mapping[str, Any]] = example["messages"]
        return prompt
    own: str | Sequence[Mapping[str, Any]] = field_of(example, "prompt")
    return own


SETTINGS = ModelRewardSettings
