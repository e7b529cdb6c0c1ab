"""A model of ours for EleutherAI's lm-eval: its tasks ask our engine through lm-eval's own library.

Log-probabilities are those of its Hugging Face backend on the same folder. Requests with a common beginning are read
as a tree (`generation.scoring`), which is what makes few-shot tasks fast. Where lm-eval would cut a prompt on the
left, this raises an error: a cut prompt is another question. A text's beginning token is read once, also where the
tokenizer adds it itself and the rolling windows put one before the text.

Gao et al. 2021, doi 10.5281/zenodo.5371628; Biderman et al. 2024 (arXiv 2405.14782).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from quatrain.core.errors import InputError
from quatrain.evaluation.subject import LocalSubject, text_windows
from quatrain.generation.params import SamplingParams

NEW_TOKENS = 256
"""The most tokens of an answer where a task names no number, as in lm-eval's Hugging Face backend."""


class EngineLM(TemplateLM):
    """lm-eval's model over a `LocalSubject`."""

    def __init__(self, subject: LocalSubject):
        super().__init__()
        self.subject, self.engine = subject, subject.engine
        self.tokenizer: Any = subject.tokenizer
        self.backend = "seq2seq" if self.engine.has_encoder else "causal"

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ends = self.engine.end_ids
        own = self.tokenizer.eos_id
        return int(own if own is not None else ends[0])

    @property
    def prefix_token_id(self) -> int:
        """The token that is read before a text without a prompt."""
        begin = self.tokenizer.bos_id
        return int(begin if begin is not None else self.eot_token_id)

    @property
    def max_length(self) -> int:
        """The model's context in tokens."""
        return int(self.engine.model.config.context_length)

    @property
    def max_gen_toks(self) -> int:
        """The most tokens of an answer where a task names no number."""
        return NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests are named by."""
        return str(self.tokenizer.fingerprint)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, with the tokenizer's special tokens unless the text begins with one already."""
        begin = self.tokenizer.special_token("bos_token")
        special = add_special_tokens is not False and not (begin and string.startswith(begin))
        ids: list[int] = self.tokenizer.encode(string, special_tokens=special)
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, by the model's template."""
        from quatrain.tokenizers.chat import render

        return render(self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt).text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self.engine.score(
            [request[1] for request in requests],
            [request[2] for request in requests],
            batch_size=self.subject.batch_size,
        )
        results = [(score.total, score.is_greedy) for score in scores]
        for request, result in zip(requests, results, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, each token predicted once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for before, part in text_windows([self.prefix_token_id], ids, self.max_length):
                windows.append((None, before, part))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers of prompts, up to their stop strings."""
        groups: dict[SamplingParams, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._params(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for params, numbers in groups.items():
            texts_ids = [self.tok_encode(requests[number].args[0]) for number in numbers]
            self._check(texts_ids, params.max_new_tokens)
            completions = self.engine.generate(texts_ids, params, batch_size=self.subject.batch_size)
            for number, completion in zip(numbers, completions, strict=True):
                texts[number] = completion.text
                self.cache_hook.add_partial("generate_until", requests[number].args, completion.text)
        return texts

    def _check(self, prompts: Sequence[list[int]], new_tokens: int) -> None:
        long = [len(ids) for ids in prompts if len(ids) + new_tokens > self.max_length]
        if long and not self.engine.has_encoder and self.engine.model.config.has_position_limit:
            raise InputError(
                f"{len(long):,} of {len(prompts):,} prompts of the lm-eval task do not fit into the model's context of "
                f"{self.max_length:,} tokens with {new_tokens:,} new ones (the longest: {max(long):,}); lm-eval would "
                "cut them. Give fewer examples (--shots), or a model with a longer context."
            )

    def _params(self, arguments: dict[str, Any]) -> SamplingParams:
        known: dict[str, Any] = dict(normalize_gen_kwargs(arguments, self.max_gen_toks))
        stop, new_tokens = known.pop("until", []), known.pop("max_gen_toks")
        sampled = bool(known.pop("do_sample", False))
        temperature = float(known.pop("temperature", 0.0) or 0.0)
        names = {"top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float, "num_beams": int}
        own = {name: kind(known[name]) for name, kind in names.items() if known.get(name) is not None}
        return SamplingParams(
            max_new_tokens=int(new_tokens),
            stop=tuple(text for text in stop if text),
            temperature=(temperature or 1.0) if sampled else 0.0,
            seed=0 if sampled else None,
            **own,
        )
