"""Chat templates for Ollama, which writes conversations with Go's `text/template` instead of Jinja.

The texts around the messages are found by rendering conversations with marked contents. A Go template of that form is
then rendered here again and compared with the Jinja template, so that a template that does more (tools, dates) is
recognized and refused rather than approximated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quatrain.core.errors import QuatrainError
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
TRIALS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Why?"),),
    (("system", "Be brief."), ("user", "Why?")),
    (("user", "Hi"), ("assistant", "Hello."), ("user", "Who?")),
    (("system", "S"), ("user", "a b"), ("assistant", "c"), ("user", "d\ne"), ("assistant", "f"), ("user", "g")),
)
"""Conversations on which the Go template must equal the Jinja template."""


@dataclass(frozen=True)
class TurnTemplate:
    """The text around the content of each role's messages, before the first message, and before an answer."""

    around: Mapping[str, tuple[str, str]]
    start: str
    answer: str

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """A conversation, up to the beginning of the next answer."""
        turns = (f"{self.around[role][0]}{content}{self.around[role][1]}" for role, content in messages)
        return f"{self.start}{''.join(turns)}{self.answer}"

    def source(self) -> str:
        """The same in Go's template language, with the variables of Ollama."""
        branches = []
        for number, role in enumerate(ROLES):
            before, after = self.around[role]
            keyword = "if" if number == 0 else "else if"
            branches.append(f'{{{{ {keyword} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}')
        return (
            f"{_go(self.start)}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_go(self.answer)}"
        )


def _go(text: str) -> str:
    """Text in a Go template; braces that would open an action are written as a string."""
    return text.replace("{{", '{{ "{{" }}')


def turn_template(tokenizer: Tokenizer) -> TurnTemplate | None:
    """The `TurnTemplate` that equals the tokenizer's chat template on all trials; None if there is none.

    BOS at the beginning is left out if the tokenizer adds it, because Ollama adds it then.
    """
    if tokenizer.chat_template is None:
        return None
    found = _probed(tokenizer)
    if found is None:
        return None
    whole = [_jinja(tokenizer, trial) for trial in TRIALS]
    if any(found.render(trial) != text for trial, text in zip(TRIALS, whole, strict=True)):
        return None
    bos = tokenizer.special_token("bos")
    adds = bool(bos) and tokenizer.encode("a", special_tokens=True)[:1] == [tokenizer.token_to_id(str(bos))]
    start = found.start.removeprefix(str(bos)) if adds else found.start
    return TurnTemplate(found.around, start, found.answer)


def _jinja(tokenizer: Tokenizer, messages: Sequence[tuple[str, str]], answer: bool = True) -> str | None:
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        return render(tokenizer, turns, add_generation_prompt=answer, mask=False).text
    except QuatrainError:
        return None


def _probed(tokenizer: Tokenizer) -> TurnTemplate | None:
    """The texts around the messages of one conversation, with marks as contents."""
    marks = {role: f"«{role} content»" for role in ROLES}
    trial = [("system", marks["system"]), ("user", marks["user"]), ("assistant", marks["assistant"]),
             ("user", marks["user"])]  # fmt: skip
    whole, open_end = _jinja(tokenizer, trial), _jinja(tokenizer, trial, answer=False)
    one = _jinja(tokenizer, [("user", marks["user"])], answer=False)
    if whole is None or open_end is None or one is None or not whole.startswith(open_end):
        return None
    pieces = []
    rest = open_end
    for _, content in trial:
        before, found, rest = rest.partition(content)
        if not found:
            return None
        pieces.append(before)
    # A piece between two messages is the end of one and the beginning of the next; users come twice, which tells both.
    end_user = rest
    if not pieces[2].startswith(end_user) or not one.endswith(end_user):
        return None
    before_user = one.partition(marks["user"])[0]
    between = pieces[3]
    shared = len(_common_suffix([pieces[1], between, before_user]))
    for cut in range(shared, -1, -1):
        user = before_user[len(before_user) - cut :]
        start = before_user[: len(before_user) - cut]
        if not pieces[0].startswith(start):
            continue
        around = {
            "system": (pieces[0][len(start) :], pieces[1][: len(pieces[1]) - cut]),
            "user": (user, end_user),
            "assistant": (pieces[2][len(end_user) :], between[: len(between) - cut]),
        }
        return TurnTemplate(around, start, whole[len(open_end) :])
    return None


def _common_suffix(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    for length in range(len(shortest), 0, -1):
        if all(text.endswith(shortest[-length:]) for text in texts):
            return shortest[-length:]
    return ""
