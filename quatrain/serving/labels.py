"""The page's side of `quatrain label`: one labelling session, asked and answered over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from quatrain.alignment.labelling import Session
from quatrain.data.messages import content_text
from quatrain.generation.engine import Engine
from quatrain.serving.errors import ApiError


class Labelling:
    """A session that `create` makes with the engine when it is first asked; one request at a time works on it.

    `typed`: whether the person may type prompts.
    """

    def __init__(self, create: Callable[[Engine], Session], *, typed: bool = False):
        self.typed = typed
        self.session: Session | None = None
        self._create, self._lock = create, threading.Lock()

    def state(self, engine: Engine, change: Callable[[Session], object] = lambda session: None) -> dict[str, Any]:
        """What the page shows after a change: the pair to judge, None if there is none, and the counts.

        The model answers the prompt first, which takes as long as two completions.
        """
        with self._lock:
            if self.session is None:
                self.session = self._create(engine)
            session = self.session
            change(session)
            pair = session.next()
            return {
                "pair": None if pair is None else {
                    "id": pair.id,
                    "prompt": [{"role": each["role"], "text": content_text(each)} for each in pair.prompt],
                    "answers": list(pair.answers),
                },
                "place": len(session.prompts) - session.remaining + (pair is not None), "total": len(session.prompts),
                "done": session.done, "identical": session.identical, "typed": self.typed, "rater": session.rater,
                "file": str(session.path), "agreement": [asdict(each) for each in session.agreements()],
            }  # fmt: skip


def chosen(identifier: str, choice: str) -> Callable[[Session], object]:
    """The change that records a choice. It raises ApiError if another pair is shown by now."""

    def change(session: Session) -> None:
        pair = session.next()
        if pair is None or pair.id != identifier:
            raise ApiError(409, "Another window has judged this pair already; the next one is shown.", param="id")
        session.choose(choice)

    return change
