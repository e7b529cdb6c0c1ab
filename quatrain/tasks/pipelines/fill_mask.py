"""The likeliest tokens for masks in a text."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field as Key
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings
from quatrain.core.wording import format_value
from quatrain.tasks.pipelines.base import Pipeline, Prediction
from quatrain.training.objectives.base import inputs_of
from quatrain.training.objectives.texts import EncodedText


class MaskOptions(Settings):
    """Which tokens are returned."""

    top_k: int = Key(5, ge=1)
    """The number of tokens for each mask."""
    targets: str | Listing[str] | None = None
    """Score these tokens alone; of a text of several tokens the first one."""


class FillMask(Pipeline):
    """The likeliest tokens for a mask, as {"score", "token", "token_str", "sequence"}; several masks: a list of each.

    As in transformers, a call with a list of one text returns the output of this text.
    """

    task = "fill-mask"
    heads = ("masked",)
    default_for = ("masked", "pretraining")
    loads = {"pretraining": "masked"}
    recipes = ("bert-pretrain",)
    Options = MaskOptions

    def several(self, values: list[Any]) -> Any:
        return values[0] if len(values) == 1 else values

    @property
    def mask_id(self) -> int:
        """The id of the mask token. Raises InputError for a tokenizer without one."""
        if self.tokenizer.mask_id is None:
            raise InputError("The tokenizer has no mask token, so there is nothing to fill.")
        return self.tokenizer.mask_id

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: MaskOptions) -> list[Prediction]:
        mask = self.mask_id
        rows = [self.reader.read(each["text"]) for each in inputs]
        for each, row in zip(inputs, rows, strict=True):
            if mask not in row.ids:
                name, beyond = self.tokenizer.id_to_token(mask), ""
                if row.cut and name and name in each["text"]:
                    beyond = f"; the model reads {self.limit} tokens, and it stands beyond them"
                raise InputError(f"{each['text'][:60]!r}: write {name} where a token is to be filled in{beyond}")
        targets = None if options.targets is None else self._targets(options.targets)
        return [
            Prediction(self._filled(row.ids, logits, options.top_k, targets), row.cut)
            for row, logits in zip(rows, self._mask_logits(rows), strict=True)
        ]

    def _mask_logits(self, rows: Sequence[EncodedText]) -> list[Tensor]:
        """The logits (M, V) of the masks of each text: the vocabulary is only computed where there is a mask."""
        batch = self.reader.batch(rows, None).to(self.model.device)
        states = self.model.hidden_states(**inputs_of(self.model, batch))
        masks = batch.input_ids == self.mask_id
        logits = self.model.lm_logits(states[masks]).float().cpu()
        return list(logits.split(masks.sum(1).tolist()))

    def _filled(self, ids: Sequence[int], logits: Tensor, top_k: int, targets: Tensor | None) -> Any:
        places = [place for place, token in enumerate(ids) if token == self.mask_id]
        filled = []
        for place, own in zip(places, logits, strict=True):
            scores = own.softmax(-1)
            if targets is not None:
                scores = scores[targets]
            best = scores.topk(min(top_k, len(scores)))
            tokens = (best.indices if targets is None else targets[best.indices]).tolist()
            filled.append(
                [
                    self._proposal(ids, place, token, score, len(places) == 1)
                    for token, score in zip(tokens, best.values.tolist(), strict=True)
                ]
            )
        return filled[0] if len(filled) == 1 else filled

    def _proposal(self, ids: Sequence[int], place: int, token: int, score: float, single: bool) -> dict[str, Any]:
        text = [*ids[:place], token, *ids[place + 1 :]]
        text = [each for each in text if each != self.tokenizer.pad_id]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token], skip_special_tokens=False),
            # With several masks the others must stay visible.
            "sequence": self.tokenizer.decode(text, skip_special_tokens=single),
        }

    def _targets(self, given: str | Sequence[str]) -> Tensor:
        """The ids of target words. Raises InputError where none has a token."""
        found: dict[int, None] = {}
        for word in [given] if isinstance(given, str) else given:
            token = self.tokenizer.token_to_id(word)
            if token is None:
                ids = self.tokenizer.encode(word)
                shown = "nothing" if not ids else format_value(self.tokenizer.token_text(ids[0]))
                warnings.warn(
                    f"target {format_value(word)} is no token of the vocabulary; {shown} takes its place", stacklevel=2
                )
                if not ids:
                    continue
                token = ids[0]
            found[token] = None
        if not found:
            raise InputError("targets: no word has a token in the model's vocabulary; give at least one that has")
        return torch.tensor(sorted(found))

    def record(self, value: Any) -> dict[str, Any]:
        """The likeliest tokens of each mask."""
        masks = [value] if isinstance(value[0], Mapping) else value
        return {
            "masks": [
                [{"token": each["token_str"], "id": each["token"], "score": each["score"]} for each in mask]
                for mask in masks
            ]
        }

    def line(self, text: str, value: Any) -> str:
        return "\n".join(
            ", ".join(f"{each['token'].strip()} {each['score']:.4f}" for each in mask)
            for mask in self.record(value)["masks"]
        )
