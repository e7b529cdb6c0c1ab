"""`TokenChooser`: from the logits of a batch to the next token of each row, every row by its own parameters.

Rows of one batch may differ in parameters, length, end tokens and progress. Rows with equal parameters are processed
together, by functions that treat each row alone, and a row is drawn with its own noise: the tokens of a row do not
depend on the rest of the batch.

The order is transformers': first the constraints, which depend on the tokens so far (`constraints`), then the filters
of sampling (`filters`), then the draw; greedy decoding takes the likeliest token that the constraints leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.wording import format_value
from quatrain.generation import fused
from quatrain.generation.constraints import PADDING, Constraint, DecodingState, GenerationRules, constraints, padded
from quatrain.generation.filters import BROKEN, NO_TOKEN_LEFT, Processor, draw, processors
from quatrain.generation.forced_words import ForcedWords
from quatrain.generation.grammar import Grammar, GrammarCompiler, grammar_constraint
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import SequenceState
from quatrain.generation.text import TokenizerLike
from quatrain.generation.vocabulary import Vocabulary

SPARE = 64
"""Columns by which the tensor of a batch's tokens grows at least; a long one grows by half."""


@dataclass
class Choice:
    """The next token of each row of a batch."""

    tokens: list[int]
    logprobs: list[float]
    """Log-probability of each token in nats, by the row's `logprobs_mode`: by default under the model itself."""
    top: list[list[tuple[int, float]] | None]
    """For rows with `logprobs`: the likeliest tokens and their log-probabilities, likeliest first; None for others."""
    complete: list[bool]
    """Whether a row's text, with its token, is a whole match of its grammar that nothing can continue."""
    problems: list[QuatrainError | None]
    """Why no token could be chosen for a row, whose other values then mean nothing; None for the other rows."""

    def append_to(self, rows: Sequence[SequenceState]) -> None:
        """Adds the tokens to the rows that they were chosen for. Raises the first problem."""
        for problem in self.problems:
            if problem is not None:
                raise problem
        values = zip(rows, self.tokens, self.logprobs, self.top, self.complete, strict=True)
        for row, token, logprob, top, complete in values:
            row.append(token, logprob, top, complete=complete)


class Candidates(NamedTuple):
    """The likeliest tokens of each row of a batch."""

    tokens: Tensor
    """(B, K), likeliest first."""
    probabilities: Tensor
    """(B, K), of the processed distribution; 0 for tokens that are ruled out."""
    processed: Tensor
    """(B, V): the logits after every constraint and filter."""


class TokenChooser:
    """Chooses the next tokens of sequences of one model.

    `rules` are the model's own, from its generation_config.json; each row's parameters override parts of them.
    `tokenizer` decodes completions; constraints on their text need it.
    """

    def __init__(
        self,
        rules: GenerationRules | None = None,
        *,
        encoder_decoder: bool = False,
        tokenizer: TokenizerLike | None = None,
    ):
        self.rules, self.encoder_decoder, self.tokenizer = rules or GenerationRules(), encoder_decoder, tokenizer
        self.fuse: bool | None = None
        """Whether plain rows are chosen by `fused`, without waiting for the device; None: on CUDA."""
        self._plans: WeakValueDictionary[tuple[object, ...], _Plan] = WeakValueDictionary()

    def check(self, params: SamplingParams, vocab_size: int) -> None:
        """Raises InputError, all problems at once, for parameters that this model and tokenizer cannot follow."""
        problems = list(params.check_vocabulary(vocab_size))
        if params.guidance_scale != 1 and self.encoder_decoder:
            problems.append("guidance_scale: an encoder-decoder always reads its prompt; leave guidance_scale out")
        if any(isinstance(word, str) for word in params.bad_words):
            if self.tokenizer is None:
                problems.append("bad_words: texts need a tokenizer, and this engine has none; give token ids")
            else:
                try:
                    self.vocabulary  # noqa: B018
                except InputError as error:
                    problems.append(f"bad_words: {error}")
        try:
            self._grammar(params)
        except InputError as error:
            problems.append(error.message if ":" in error.message else f"constrained output: {error}")
        try:
            self.forced_words(params)
        except InputError as error:
            problems.append(error.message)
        if problems:
            raise InputError("These sampling parameters cannot be used with this model:", problems)

    def forced_words(self, params: SamplingParams) -> ForcedWords | None:
        """The words that a completion must contain, as tokens: a text counts with and without a space before it."""
        if not params.force_words:
            return None
        words = []
        for alternatives in params.forced_words:
            tokens: list[tuple[int, ...]] = []
            for each in alternatives:
                if not isinstance(each, str):
                    tokens.append(each)
                elif self.tokenizer is None:
                    raise InputError("force_words: texts need a tokenizer, and this engine has none; give token ids")
                else:
                    tokens += [tuple(self.tokenizer.encode(text)) for text in (each, f" {each}")]
            tokens = [each for each in dict.fromkeys(tokens) if each]
            if not tokens:
                raise InputError(f"force_words: {format_value(alternatives[0])} has no tokens")
            words.append(tokens)
        forced = ForcedWords(words)
        if forced.size > params.max_new_tokens:
            raise InputError(
                f"force_words: need at least {forced.size} tokens; max_new_tokens is {params.max_new_tokens}"
            )
        return forced

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        return self._compiler.compile(params) if params.constrained else None

    @cached_property
    def _compiler(self) -> GrammarCompiler:
        return GrammarCompiler(self.vocabulary)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The text of the tokenizer's tokens. Raises InputError without a tokenizer or where they have none."""
        if self.tokenizer is None:
            raise InputError("Constraints on text need a tokenizer, and this engine has none.")
        return Vocabulary(self.tokenizer)

    @torch.inference_mode()
    def choose(
        self,
        logits: Tensor,
        rows: Sequence[SequenceState],
        revise: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        adjusted: Tensor | None = None,
        likeliest: Tensor | None = None,
    ) -> Choice:
        """The next token of each row: logits (B, V) of any floating type, one row of them per sequence.

        With `adjusted` (B, V), tokens are chosen from these instead; raw log-probabilities are still those of `logits`.
        `revise` may replace tokens: it gets the processed logits (B, V) and the tokens (B,) that were drawn.
        `likeliest` (4, B) is what greedy decoding chooses of each row, in the form of `fused.choose`, if it is known.
        The sequences are not changed. A row whose logits are not finite (QuatrainError) or whose constraints forbid
        every token (InputError) gets its problem in the result.
        """
        if not rows:
            return Choice([], [], [], [], [])
        logits = logits.float()
        if likeliest is not None:
            greedy = [self._plan(row, logits.device).is_greedy for row in rows]
            if all(greedy):
                return self._choice(likeliest, rows)
            if any(greedy):
                return self._choose_apart(logits, rows, greedy, likeliest)
        if revise is None and adjusted is None and self._fuses(logits.device, rows):
            chosen = fused.choose(logits, fused.settings_of(rows, logits.shape[-1], logits.device))
            return self._choice(chosen, rows)
        processed, failures = self._process(logits if adjusted is None else adjusted, rows)
        tokens = self._draw(processed, rows)
        if revise is not None:
            tokens = revise(processed, tokens)
        return self.record(logits, processed, tokens, rows, failures)

    def _choose_apart(
        self, logits: Tensor, rows: Sequence[SequenceState], greedy: Sequence[bool], likeliest: Tensor
    ) -> Choice:
        """The choice where the likeliest token is all that some of the rows, those of `greedy`, ask for."""
        result = self._choice(likeliest, rows)
        others = [index for index, only in enumerate(greedy) if not only]
        rest = self.choose(logits[others], [rows[index] for index in others])
        for place, index in enumerate(others):
            for name in ("tokens", "logprobs", "top", "complete", "problems"):
                getattr(result, name)[index] = getattr(rest, name)[place]
        return result

    @torch.inference_mode()
    def likeliest(
        self, logits: Tensor, rows: Sequence[SequenceState], count: int
    ) -> tuple[Candidates, list[QuatrainError | None]]:
        """The likeliest tokens of each row after its constraints, and the problem of each row that has none."""
        logits = logits.float()
        processed, failures = self._process(logits, rows)
        probabilities, tokens = processed.softmax(dim=-1).topk(min(count, logits.shape[-1]), dim=-1)
        problems = self.record(logits, processed, tokens[:, 0], rows, failures).problems
        return Candidates(tokens, probabilities, processed), problems

    def record(
        self,
        logits: Tensor,
        processed: Tensor,
        tokens: Tensor,
        rows: Sequence[SequenceState],
        failures: dict[int, QuatrainError] | None = None,
    ) -> Choice:
        """The choice of given tokens (B,): their log-probabilities, and problems of the logits and processed logits."""
        places, total = tokens[:, None], logits.logsumexp(dim=-1)
        raw = logits.gather(-1, places)[:, 0]
        own = raw if processed is logits else processed.gather(-1, places)[:, 0]
        choice = self._choice(torch.stack([tokens.float(), raw - total, total, own]), rows)
        for index, failure in (failures or {}).items():
            choice.problems[index] = failure
        self._advance_grammars(choice, rows)
        self._add_logprobs(choice, logits, processed, rows)
        return choice

    @staticmethod
    def _choice(chosen: Tensor, rows: Sequence[SequenceState]) -> Choice:
        """The choice of what `fused.choose` describes: (4, B)."""
        # One transfer; a float32 holds the ids of any vocabulary exactly.
        numbers, logprobs, totals, processed_values = chosen.tolist()
        problems = [_problem(*values) for values in zip(logprobs, totals, processed_values, strict=True)]
        count = len(rows)
        return Choice([int(number) for number in numbers], logprobs, [None] * count, [False] * count, problems)

    def _fuses(self, device: torch.device, rows: Sequence[SequenceState]) -> bool:
        """Whether the tokens of these rows are chosen on the device: nothing but what `fused` does is asked for."""
        if not (device.type == "cuda" if self.fuse is None else self.fuse):
            return False
        return all(fused.is_fusable(row.params) for row in rows) and not any(
            plan.constraints or plan.grammar is not None for plan in (self._plan(row, device) for row in rows)
        )

    @torch.inference_mode()
    def process(self, logits: Tensor, rows: Sequence[SequenceState]) -> Tensor:
        """The logits (B, V) in float32 after every constraint and filter; a token that is ruled out has -inf.

        Raises the problem of the first row that has one: a caller's function that failed.
        """
        processed, failures = self._process(logits.float(), rows)
        for failure in failures.values():
            raise failure
        return processed

    def _process(self, logits: Tensor, rows: Sequence[SequenceState]) -> tuple[Tensor, dict[int, QuatrainError]]:
        """The processed logits, and the problem of each row, by its place, whose constraints failed."""
        plans = [self._plan(row, logits.device) for row in rows]
        if all(plan is plans[0] for plan in plans):
            return plans[0].process(logits, rows)
        groups: dict[_Plan, list[int]] = {}
        for index, plan in enumerate(plans):
            if plan.constraints or plan.filters or plan.grammar is not None:
                groups.setdefault(plan, []).append(index)
        result = logits.clone() if groups else logits
        failures: dict[int, QuatrainError] = {}
        for plan, indices in groups.items():
            chosen = torch.tensor(indices, device=logits.device)
            result[chosen], failed = plan.process(logits[chosen], [rows[index] for index in indices])
            failures |= {indices[place]: problem for place, problem in failed.items()}
        return result, failures

    def constraints(self, params: SamplingParams, end_ids: Sequence[int], device: torch.device) -> list[Constraint]:
        """The constraints of sequences with these parameters and end tokens."""
        ends = torch.tensor(list(end_ids), dtype=torch.long, device=device)
        texts = any(isinstance(word, str) for word in params.bad_words)
        chain = constraints(
            self.rules,
            params,
            ends,
            encoder_decoder=self.encoder_decoder,
            vocabulary=self.vocabulary if texts else None,
        )
        # Last, so that nothing brings a token back. Without beams each row carries its own state.
        grammar = self._grammar(params) if params.num_beams > 1 else None
        return chain if grammar is None else [*chain, grammar_constraint(grammar, end_ids, self._forced_tokens)]

    @property
    def _forced_tokens(self) -> int:
        """How many tokens at the beginning are the model's own, not part of the text that a grammar describes."""
        return int(self.encoder_decoder and self.rules.forced_bos_token_id is not None)

    @staticmethod
    def _advance_grammars(choice: Choice, rows: Sequence[SequenceState]) -> None:
        """Follows the chosen tokens in the rows' grammars, to know which texts are complete."""
        for index, row in enumerate(rows):
            if row.grammar is None or choice.problems[index] is not None or choice.tokens[index] in row.end_ids:
                continue
            try:
                row.grammar.follow([*row.ids, choice.tokens[index]])
            except InputError as error:
                choice.problems[index] = error
            else:
                choice.complete[index] = row.grammar.complete

    @staticmethod
    def _draw(processed: Tensor, rows: Sequence[SequenceState]) -> Tensor:
        """The tokens (B,): drawn for rows that sample, the likeliest for the others."""
        sampled = [index for index, row in enumerate(rows) if row.params.temperature]
        if not sampled:
            return processed.argmax(dim=-1)
        noise = torch.tensor([rows[index].noise(len(rows[index].ids)) for index in sampled], dtype=torch.float64)
        chosen = torch.tensor(sampled, device=processed.device)
        own = processed if len(sampled) == len(rows) else processed[chosen]
        usable = own.amax(dim=-1).isfinite()
        if bool(usable.all()):
            tokens = draw(own, noise.to(processed.device))
        else:
            # The maximum of a row without a distribution is NaN or infinite, which `record` reports.
            drawn = draw(own.where(usable[:, None], 0.0), noise.to(processed.device))
            tokens = drawn.where(usable, own.argmax(dim=-1))
        if len(sampled) == len(rows):
            return tokens
        return processed.argmax(dim=-1).index_copy(0, chosen, tokens)

    def _add_logprobs(self, choice: Choice, logits: Tensor, processed: Tensor, rows: Sequence[SequenceState]) -> None:
        """Adds the log-probabilities of the likeliest tokens, and those of a mode other than "raw", if asked."""
        for mode, values in (("raw", logits), ("temperature", logits), ("processed", processed)):
            wanted = [
                index
                for index, row in enumerate(rows)
                if row.params.logprobs_mode == mode and (mode != "raw" or row.params.logprobs is not None)
            ]
            if not wanted:
                continue
            own = values[torch.tensor(wanted, device=values.device)]
            if mode == "temperature":
                # Greedy decoding has no distribution; its log-probabilities are the model's own.
                temperatures = [rows[index].params.temperature or 1.0 for index in wanted]
                own = own / torch.tensor(temperatures, device=own.device)[:, None]
            logprobs = own.log_softmax(dim=-1)
            counts = [min(rows[index].params.logprobs or 0, values.shape[-1]) for index in wanted]
            best, tokens = logprobs.topk(max(counts), dim=-1)
            if mode != "raw":
                chosen = torch.tensor([choice.tokens[index] for index in wanted], device=logprobs.device)
                for index, value in zip(wanted, logprobs.gather(-1, chosen[:, None])[:, 0].tolist(), strict=True):
                    choice.logprobs[index] = value
            for place, (index, count) in enumerate(zip(wanted, counts, strict=True)):
                if rows[index].params.logprobs is not None:
                    pairs = zip(tokens[place, :count].tolist(), best[place, :count].tolist(), strict=True)
                    choice.top[index] = [(token, value) for token, value in pairs if value > float("-inf")]

    def _plan(self, row: SequenceState, device: torch.device) -> _Plan:
        plan = row.plan
        if not isinstance(plan, _Plan) or plan.place != (self, device):
            key: tuple[object, ...] = (row.params, row.end_ids, device)
            try:
                plan = self._plans.get(key)
            except TypeError:  # a caller's processor that cannot be hashed
                key, plan = (id(row), row.end_ids, device), None
            if plan is None:
                chain = self.constraints(row.params, row.end_ids, device)
                grammar = self._grammar(row.params) if row.params.num_beams == 1 else None
                plan = self._plans[key] = _Plan(chain, processors(row.params), grammar, (self, device))
                plan.is_greedy = not (row.params.temperature or chain or grammar) and fused.is_fusable(row.params)
            row.plan = plan
            row.grammar = None if plan.grammar is None else plan.grammar.start(self._forced_tokens)
        return plan


class _Plan:
    """What happens to the logits of sequences with equal parameters."""

    def __init__(
        self,
        chain: list[Constraint],
        filters: list[Processor],
        grammar: Grammar | None,
        place: tuple[TokenChooser, torch.device],
    ):
        self.constraints, self.filters, self.grammar, self.place = chain, filters, grammar, place
        self.history = _History()
        self.is_greedy = False
        """Whether the likeliest token under the model, and its log-probability, are all that is asked for."""

    def process(self, logits: Tensor, rows: Sequence[SequenceState]) -> tuple[Tensor, dict[int, QuatrainError]]:
        """The logits after all constraints and filters, and the problem of each row whose constraints failed."""
        failures: dict[int, QuatrainError] = {}
        if self.constraints:
            state = self.history.state(rows, logits.device)
            for constrain in self.constraints:
                try:
                    logits = constrain(logits, state)
                except InputError:
                    logits = self._one_by_one(constrain, logits, state, failures)
        if self.grammar is not None:
            logits = self._matching(logits, rows, failures)
        if not self.filters:
            return logits, failures
        usable = logits.amax(dim=-1, keepdim=True).isfinite()
        # A row without a distribution stays as it is, for `choose` to report; filters would raise for the whole batch.
        safe = whole = logits if bool(usable.all()) else logits.where(usable, 0.0)
        for process in self.filters:
            safe = process(safe)
        return (safe if whole is logits else safe.where(usable, logits)), failures

    @staticmethod
    def _matching(logits: Tensor, rows: Sequence[SequenceState], failures: dict[int, QuatrainError]) -> Tensor:
        """The logits of the tokens that each row's grammar allows."""
        masks = torch.zeros(logits.shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            if row.grammar is not None:
                try:
                    row.grammar.follow(row.ids)
                    masks[index] = row.grammar.mask(row.end_ids, logits.shape[-1])
                except InputError as error:
                    failures.setdefault(index, error)
        return logits.masked_fill(~masks.to(logits.device), float("-inf"))

    @staticmethod
    def _one_by_one(
        constrain: Constraint, logits: Tensor, state: DecodingState, failures: dict[int, QuatrainError]
    ) -> Tensor:
        """The rows after a constraint that raises for some of them, whose errors are added to `failures`."""
        result = []
        for index, row in enumerate(logits.split(1)):
            try:
                result.append(constrain(row, state.row(index)))
            except InputError as error:
                failures.setdefault(index, error)
                result.append(row)
        return torch.cat(result)


class _History:
    """The tokens of a group of rows as one tensor, PADDING on the left.

    While the same rows grow by one token at a time, a step costs one column; any other change writes it anew.
    """

    def __init__(self) -> None:
        self.rows: list[SequenceState] = []
        self.lengths: list[tuple[int, int]] = []
        self.width = 0
        self.tokens = self.start = self.limits = self.new = self.source = torch.empty(0)

    def state(self, rows: Sequence[SequenceState], device: torch.device) -> DecodingState:
        """The state of these rows, whose next tokens are to be chosen."""
        lengths = [(len(row.ids), row.edits) for row in rows]
        same = len(rows) == len(self.rows) and all(a is b for a, b in zip(rows, self.rows, strict=True))
        grown = [(length + 1, edits) for length, edits in self.lengths]
        if same and lengths == grown and self.width < self.tokens.shape[1]:
            self.tokens[:, self.width] = torch.tensor([row.ids[-1] for row in rows], device=device)
            self.new = self.new + 1
            self.width += 1
        elif not same or lengths != self.lengths:
            self._write(rows, device)
        self.lengths = lengths
        return DecodingState(self.tokens[:, : self.width], self.start, self.limits, self.new, self.source)

    def _write(self, rows: Sequence[SequenceState], device: torch.device) -> None:
        listed = [[*row.prefix, *row.ids] for row in rows]
        self.rows, self.width = list(rows), max(map(len, listed))
        spare = [PADDING] * max(SPARE, self.width // 2)
        wide = [[PADDING] * (self.width - len(ids)) + ids + spare for ids in listed]
        self.tokens = torch.tensor(wide, device=device)
        self.source = padded([row.prompt for row in rows], device)
        columns = [[len(row.prefix), row.limit, len(row.ids)] for row in rows]
        self.start, self.limits, self.new = torch.tensor(columns, device=device).split(1, dim=1)


def _problem(logprob: float, total: float, chosen: float) -> QuatrainError | None:
    """Why a row has no token: its log-probability, the sum of its logits (log), and its processed logit."""
    finite = abs(total) < float("inf")
    if finite and chosen == float("-inf"):
        return InputError(NO_TOKEN_LEFT)
    if not finite or not abs(chosen) < float("inf") or not abs(logprob) < float("inf"):
        return QuatrainError(BROKEN)
    return None
