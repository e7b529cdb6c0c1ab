"""Exposure of secrets: how much likelier does a model find a planted secret than other secrets of its form?

Carlini et al. 2019, "The secret sharer" (arXiv 1802.08232). A canary is a text with random characters, planted in the
training data. Its exposure is log2 of the number of possible secrets less log2 of its rank among them: a model that has
not seen it has about 1.44 bits on average, one that knows it has all bits of the secret.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quatrain.core.errors import InputError

MOST_RANKED = 20_000
"""Spaces up to this size are ranked completely; of larger ones, so many secrets are drawn."""
SPACES = {"digits": "0123456789", "letters": "abcdefghijklmnopqrstuvwxyz", "hex": "0123456789abcdef"}
_FIELD = re.compile(r"\{(digits|letters|hex):([1-9][0-9]?)\}")
UNSEEN = 1 / math.log(2)
"""The expected exposure of a secret that a model has not seen, in bits: its rank is uniform."""


@dataclass(frozen=True)
class Canary:
    """A form with one field, such as "my code is {digits:4}", and the secret that was planted in it."""

    form: str
    secret: str

    def __post_init__(self) -> None:
        fields = _FIELD.findall(self.form)
        problems = []
        if len(fields) != 1:
            problems.append(
                f"form: {self.form!r}; must have exactly one field such as {{digits:4}}, of {', '.join(SPACES)}"
            )
        elif len(self.secret) != int(fields[0][1]) or set(self.secret) - set(SPACES[fields[0][0]]):
            problems.append(f"secret: {self.secret!r}; must be {fields[0][1]} {fields[0][0]}")
        if problems:
            raise InputError("The canary is not valid:", problems)

    @classmethod
    def random(cls, form: str, seed: int) -> Canary:
        """A canary whose secret follows from the seed."""
        kind, length = _field(form)
        generator = random.Random(f"{form}:{seed}")
        return cls(form, "".join(generator.choice(SPACES[kind]) for _ in range(length)))

    @property
    def text(self) -> str:
        """The text to plant."""
        return self.with_secret(self.secret)

    @property
    def space(self) -> int:
        """The number of possible secrets."""
        kind, length = _field(self.form)
        return int(len(SPACES[kind]) ** length)

    def with_secret(self, secret: str) -> str:
        """The text with another secret."""
        return _FIELD.sub(lambda _: secret, self.form)

    def others(self, seed: int = 0) -> Iterator[str]:
        """All other secrets, or 20,000 drawn ones of a larger space."""
        kind, length = _field(self.form)
        letters = SPACES[kind]
        if self.space <= MOST_RANKED:
            for number in range(self.space):
                secret = "".join(letters[number // len(letters) ** place % len(letters)] for place in range(length))
                if secret != self.secret:
                    yield secret
            return
        generator = random.Random(seed)
        drawn = 0
        while drawn < MOST_RANKED:
            secret = "".join(generator.choice(letters) for _ in range(length))
            if secret != self.secret:
                drawn += 1
                yield secret


def _field(form: str) -> tuple[str, int]:
    fields = _FIELD.findall(form)
    if len(fields) != 1:
        raise InputError(f"form: {form!r}; must have exactly one field such as {{digits:4}}, of {', '.join(SPACES)}")
    return fields[0][0], int(fields[0][1])


@dataclass(frozen=True)
class Exposure:
    """The exposure of a canary in bits, its estimated rank, the possible secrets, and whether all were ranked.

    Where only some were drawn, a secret before all of them has an exposure of at least log2 of their number.
    """

    bits: float
    rank: int
    space: int
    exact: bool


def exposure(canary: Canary, scores: Callable[[Sequence[str]], Sequence[float]], *, seed: int = 0) -> Exposure:
    """The exposure of a canary under `scores`, which gives the log-likelihoods of texts."""
    texts = [canary.with_secret(secret) for secret in canary.others(seed)]
    own, *others = scores([canary.text, *texts])
    # Equal scores count half: a model that has no preference has the middle rank.
    ahead = sum(other > own for other in others) + sum(other == own for other in others) / 2
    exact = canary.space - 1 == len(others)
    share = ahead / len(others)
    rank = 1 + (ahead if exact else share * (canary.space - 1))
    bits = math.log2(canary.space) - math.log2(rank)
    if not exact and ahead < 1:
        bits = math.log2(len(others) + 1)
        rank = max(1.0, canary.space / (len(others) + 1))
    return Exposure(bits, round(rank), canary.space, exact)
