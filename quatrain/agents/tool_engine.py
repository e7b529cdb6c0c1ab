"""An engine that answers calls of tools while it generates: what a tool gave is put into the completion.

The model writes a call as its turn; the engine runs it, appends the result as the chat template writes it, and the
model goes on, up to `max_calls` times. A completion of several turns is one row of tokens, in which `Completion.given`
marks those that nobody generated: reinforcement learning learns from all others. The idea is that of Toolformer (Schick
et al. 2023, arXiv 2302.04761) in the form of chats.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from quatrain.adapters.adapter_set import AdapterChoice
from quatrain.agents.model import Call, turn_of
from quatrain.agents.permission import broken_marks
from quatrain.agents.tool import Tool, ToolError, check_tools
from quatrain.agents.toolbox import open_tools
from quatrain.core.errors import InputError
from quatrain.generation.engine import Completion, Engine, SamplingParams
from quatrain.generation.turns import call_format
from quatrain.tokenizers.chat import render_text


class ToolEngine(Engine):
    """An engine with tools; `generate` and `chat` give completions of several turns, whose text is the last turn's.

    Raises InputError for a chat template that writes no calls.
    """

    def __init__(self, *args: Any, tools: Sequence[Tool], max_calls: int = 1, **options: Any):
        super().__init__(*args, **options)
        self.resources: ExitStack | None = None
        """Holds what the tools keep open, as long as the engine lives."""
        self.tools, self.max_calls = check_tools(tools), max_calls
        tokenizer: Any = self.tokenizer
        self._template = getattr(tokenizer, "chat_template", None) or ""
        self._format = call_format(self._template)
        if self._format is None:
            raise InputError("tools: this model's chat template writes no calls; use one that does, such as chatml")
        self._before, self._after = self._around_result()

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        *,
        batch_size: int = 64,
        truncate: bool = False,
        adapters: AdapterChoice = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """As `Engine.generate`; the tokens of results count towards `max_new_tokens`."""
        params = params or self.recommended
        given = {"batch_size": batch_size, "adapters": adapters}
        whole = super().generate(prompts, params, truncate=truncate, seeds=seeds, **given)  # type: ignore[arg-type]
        starts = [self.encode(prompt) for prompt in prompts]
        open_rows = list(range(len(whole)))
        for number in range(self.max_calls):
            rows, longer, limits = [], [], []
            for row in open_rows:
                result = self._result(whole[row])
                room = params.max_new_tokens - len(whole[row].ids) - len(result or ())
                if result is None or room < 1:
                    continue
                own = whole[row]
                own.given = [*(own.given or [False] * len(own.ids)), *[True] * len(result)]
                own.ids, own.logprobs = [*own.ids, *result], [*own.logprobs, *[0.0] * len(result)]
                rows.append(row)
                longer.append([*starts[row], *own.ids])
                limits.append(room)
            if not rows:
                break
            own_seeds = None if seeds is None else [seeds[row] + number + 1 for row in rows]
            shorter = replace(params, max_new_tokens=max(limits))
            more = super().generate(longer, shorter, seeds=own_seeds, **given)  # type: ignore[arg-type]
            for row, limit, turn in zip(rows, limits, more, strict=True):
                _append(whole[row], turn, limit)
            open_rows = rows
        return whole

    def _result(self, completion: Completion) -> list[int] | None:
        """The tokens of a call's result, up to the start of the next turn; None where the turn calls nothing."""
        if completion.finish_reason != "stop" or self._format is None:
            return None
        calls = turn_of(completion.text, self._format, list(self.tools)).calls
        if not calls:
            return None
        tokenizer: Any = self.tokenizer
        return list(tokenizer.encode_with_offsets(f"{self._before}{self._answered(calls[0])}{self._after}")[0])

    def _answered(self, call: Call) -> str:
        tool = self.tools.get(call.name)
        if tool is None:
            return f"Error: there is no tool {call.name!r}"
        try:
            return broken_marks(tool.run(tool.read(call.arguments)).text)
        except ToolError as error:
            return f"Error: {error}"

    def _around_result(self) -> tuple[str, str]:
        """What the template writes between the end of a call's turn and a result, and from there to the next turn."""
        tokenizer: Any = self.tokenizer
        call = {"name": "f", "arguments": {"x": 1}}
        talk: list[dict[str, Any]] = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "name": "f", "content": "\ue000"},
        ]
        variables = tokenizer.special_tokens_map
        text, _ = render_text(self._template, talk, add_generation_prompt=True, variables=variables)
        before, mark, after = text.rpartition("\ue000")
        ends = [tokenizer.id_to_token(number) for number in self.end_ids]
        place, end = max((before.rfind(each), each) for each in ends) if ends else (-1, "")
        if not mark or place < 0:
            raise InputError("tools: the chat template shows no results of tools, or no end of the assistant's turn")
        return before[place + len(end) :], after


def _append(completion: Completion, turn: Completion, limit: int) -> None:
    """Continue a completion by a turn of at most so many tokens."""
    ids, logprobs = turn.ids[:limit], turn.logprobs[:limit]
    completion.given += [False] * len(ids)
    completion.ids, completion.logprobs = [*completion.ids, *ids], [*completion.logprobs, *logprobs]
    completion.text = turn.text
    completion.finish_reason = turn.finish_reason if len(turn.ids) <= limit else "length"


def engine_with(tools: Sequence[str], max_calls: int, *args: Any, **options: Any) -> Engine:
    """An engine with tools that are named as in `open_tools`; a plain one without any."""
    if not tools:
        return Engine(*args, **options)
    stack = ExitStack()
    engine = ToolEngine(*args, tools=open_tools(tools, stack), max_calls=max_calls, **options)
    engine.resources = stack  # What the tools keep open is closed with the engine.
    return engine
