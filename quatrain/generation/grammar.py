"""Constrained output: completions that match a JSON schema, a regular expression, a grammar or one of some texts.

At every step llguidance (Microsoft, github.com/guidance-ai/llguidance; the idea is that of Willard and Louf 2023, arXiv
2307.09702) computes which tokens can continue the text to a match; all others are forbidden. An end token is allowed
exactly where the text is a whole match, and a text that cannot continue ends by itself. A completion that is cut by its
limit is the beginning of a match. The extra `constrain` installs llguidance.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.generation.constraints import OUT, PADDING, Constraint, DecodingState
from quatrain.generation.params import SamplingParams
from quatrain.generation.vocabulary import Vocabulary

STACK = 256 * 2**20
"""Bytes of stack for the compiler, which recurses once per rule that leads to the next one (about 3 kB each); enough
for `params.MAX_GRAMMAR` characters of the shortest rules."""
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""White space between the parts of JSON: bounded, so that a model cannot fill its limit with it."""
CACHED = 64
"""Compiled grammars that are kept."""
DEAD_END = "NoExtensionBias"
"""What llguidance says where no token continues the text."""
SEARCHED, NARROW = 200, 32
"""Texts that are tried when a whole match is looked for; where more tokens than NARROW may follow, there is one."""

_stack_size = threading.Lock()


class Grammar:
    """A compiled constraint, for any number of completions."""

    def __init__(self, matcher: Any, compiler: GrammarCompiler):
        self._matcher, self.compiler = matcher, compiler

    def start(self, skip: int = 0) -> GrammarState:
        """The state of a completion without tokens, whose first `skip` ones are forced and not part of the text."""
        return GrammarState(self._matcher.deep_copy(), self.compiler, skip)


class GrammarState:
    """How far one completion has come in its grammar."""

    def __init__(self, matcher: Any, compiler: GrammarCompiler, skip: int):
        self._matcher, self._compiler, self._skip = matcher, compiler, skip
        self._forced = skip > 0
        """Whether the next token is forced."""
        self._ids: list[int] = []

    def follow(self, ids: Sequence[int]) -> None:
        """Moves to the completion `ids`, from whatever was followed before.

        Raises InputError for ids that the grammar does not allow, and where it is too complex to go further.
        """
        self._forced, ids = len(ids) < self._skip, ids[self._skip :]
        shared = 0
        while shared < min(len(ids), len(self._ids)) and ids[shared] == self._ids[shared]:
            shared += 1
        if shared < len(self._ids) and not self._matcher.rollback(len(self._ids) - shared):
            shared = 0
            self._matcher.reset()
        del self._ids[shared:]
        for token in ids[shared:]:
            read = self._as_read(token)
            if read < 0 or not self._matcher.consume_token(read):
                raise self._failure()
            self._ids.append(token)

    def mask(self, ends: Sequence[int], size: int) -> Tensor:
        """Which tokens may come next (size,): those that continue the text, and `ends` where it is a whole match."""
        if self._forced:
            return torch.ones(size, dtype=torch.bool)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise self._failure()
        known = len(self._compiler.vocabulary.pieces)
        allowed = np.unpackbits(bits, bitorder="little")[:known].astype(bool)
        if allowed.sum() == 1 and not self._matcher.validate_tokens([int(allowed.argmax())]):
            # What llguidance offers where the vocabulary lacks the bytes that must come next.
            allowed = np.zeros(known, dtype=bool)
        if self._at_start():
            same = self._compiler.same_at_start
            allowed = np.where(same >= 0, allowed[same], False)
        mask = np.zeros(size, dtype=bool)
        mask[: min(known, size)] = allowed[:size]
        mask[[end for end in ends if end < size]] = bool(self._matcher.is_accepting())
        return torch.from_numpy(mask)

    @property
    def complete(self) -> bool:
        """Whether the text is a whole match that nothing can continue."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error() and self._matcher.is_accepting())

    @property
    def size(self) -> int:
        """Tokens of the vocabulary."""
        return len(self._compiler.vocabulary.pieces)

    @property
    def accepts(self) -> bool:
        """Whether the text is a whole match."""
        return bool(self._matcher.is_accepting())

    def _at_start(self) -> bool:
        pieces = self._compiler.vocabulary.pieces
        return self._compiler.first_differs and not any(pieces[token] for token in self._ids)

    def _as_read(self, token: int) -> int:
        return int(self._compiler.same_at_start[token]) if self._at_start() else token

    def _failure(self) -> InputError:
        reason = str(self._matcher.get_error()).strip().partition("\n")[0]
        return InputError(f"The grammar or schema cannot be followed further: {reason or 'the text left it'}")


class GrammarCompiler:
    """Compiles constraints for one tokenizer.

    Raises InputError without llguidance.
    """

    def __init__(self, vocabulary: Vocabulary):
        with require("constrained output", "llguidance", "constrain"):
            import llguidance
        self.vocabulary, self._library = vocabulary, llguidance
        self._tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(vocabulary)))
        self._compiled: OrderedDict[object, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        first, pieces = vocabulary.first_pieces, vocabulary.pieces
        self.first_differs = first != pieces
        ids = vocabulary.ids if self.first_differs else {}
        self.same_at_start = np.array(
            [token if first[token] == piece else ids.get(first[token], -1) for token, piece in enumerate(pieces)]
        )
        """For each token, the one that adds the text which this one has at the beginning; -1 without one."""

    def compile(self, params: SamplingParams) -> Grammar | None:
        """The grammar that the parameters ask for; None without one. Raises InputError for one that is wrong."""
        key = (params.json_schema, params.regex, params.grammar, params.choice)
        if not any(part is not None and part != () for part in key):
            return None
        with self._lock:  # Requests are checked by the threads that submit them.
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
        name, matcher = _with_stack(lambda: self._matcher(params))
        grammar = Grammar(matcher, self)
        first = _following(grammar.start(), [])
        if first is not None and not first and not matcher.is_accepting():
            raise InputError(f"{name}: no token of this model can begin such a text")
        if not _can_be_written(grammar):
            raise InputError(f"{name}: the tokens of this model cannot write any such text to its end")
        with self._lock:
            self._compiled[key] = grammar
            while len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
        return grammar

    def _matcher(self, params: SamplingParams) -> tuple[str, Any]:
        """The parameter that constrains the text, and its matcher."""
        library = self._library.LLMatcher
        if params.json_schema is not None:
            name, source = "json_schema", self._json_grammar(json.loads(params.json_schema))
        elif params.regex is not None:
            name, source = "regex", library.grammar_from_regex(params.regex)
        elif params.grammar is not None:
            name, source = "grammar", library.grammar_from_lark(params.grammar)
        else:
            texts = " | ".join(json.dumps(text) for text in dict.fromkeys(params.choice))
            name, source = "choice", library.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
        matcher = library(self._tokens, source, log_level=0)
        if matcher.is_error():
            raise InputError(f"{name}: {_one_line(matcher.get_error())}")
        return name, matcher

    def _json_grammar(self, schema: Any) -> str:
        if schema is False:
            raise InputError("json_schema: false accepts nothing")
        options: Any = {"whitespace_pattern": WHITE_SPACE}
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(
                {} if schema is True else schema, overrides=options
            )
        except ValueError as error:
            raise InputError(f"json_schema: {_one_line(str(error))}") from error
        return str(grammar)


def _can_be_written(grammar: Grammar) -> bool:
    """Whether the vocabulary has the tokens of a whole match; False only if every way ends before one.

    A character of the match may be missing in a vocabulary: every way then ends before it, sooner or later.
    """
    state, pieces = grammar.start(), grammar.compiler.vocabulary.pieces
    texts: list[list[int]] = [[]]
    for _ in range(SEARCHED):
        if not texts:
            return False
        ids = texts.pop()
        following = _following(state, ids)
        if following is None or len(following) > NARROW or state.accepts:
            return True
        # The longest token is tried first: it leads to the end in the fewest steps.
        texts += [[*ids, token] for token in sorted(following, key=lambda token: len(pieces[token]))]
    return True


def _following(state: GrammarState, ids: list[int]) -> list[int] | None:
    """The tokens that may follow a completion; None where the grammar is too complex to tell."""
    try:
        state.follow(ids)
        return [] if state.accepts else state.mask((), state.size).nonzero()[:, 0].tolist()
    except InputError as error:
        return [] if DEAD_END in error.message else None


def grammar_constraint(grammar: Grammar, ends: Sequence[int], skip: int = 0) -> Constraint:
    """A grammar for rows in any order, such as the beams of a search: each row's tokens are followed anew."""
    states: list[GrammarState] = []

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        rows = state.ids.tolist()
        while len(states) < len(rows):
            states.append(grammar.start(skip))
        masks = []
        for ids, count, own in zip(rows, state.new[:, 0].tolist(), states, strict=False):
            new = ids[len(ids) - count :]
            if any(token in ends or token == PADDING for token in new):
                # A hypothesis that has ended stays among the beams only to fill them.
                masks.append(torch.ones(scores.shape[-1], dtype=torch.bool))
                continue
            own.follow(new)
            masks.append(own.mask(ends, scores.shape[-1]))
        return scores.masked_fill(~torch.stack(masks).to(scores.device), OUT)

    return process


class _Tokens:
    """The vocabulary as llguidance reads it, with one more token for the end, which is never offered."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary):
        tokenizer = self._tokenizer = vocabulary.tokenizer
        written = getattr(tokenizer, "id_to_token", lambda token: None)
        silent = [token for token, piece in enumerate(vocabulary.pieces) if not piece]
        self.eos_token_id = len(vocabulary.pieces)
        self.tokens = [*vocabulary.pieces, b"<the end of the text>"]
        for token in silent:
            self.tokens[token] = (written(token) or f"<no token {token}>").encode()
        self.special_token_ids = [*silent, self.eos_token_id]

    def __call__(self, text: str | bytes) -> list[int]:
        """The usual ids of a text that is forced; none where the tokenizer cannot write it, and masks alone decide."""
        try:
            return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
        except InputError:
            return []


def _with_stack(work: Callable[[], Any]) -> Any:
    """The result of work that recurses deeply in a library, done on a thread with a large stack."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((work(), None))
        except BaseException as error:
            results.append((None, error))

    with _stack_size:
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=run, name="grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    result, error = results[0]
    if error is not None:
        raise error
    return result


def _one_line(message: str) -> str:
    """The first line of a compiler's message that says what is wrong."""
    if "panic" in message:
        return "too complex"
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:")] or lines
    text = told[0] if told else "cannot be used"
    return text if len(text) <= 300 else text[:299] + "…"
