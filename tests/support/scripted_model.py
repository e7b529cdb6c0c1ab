"""A model that says what a test wrote: the loop, its tools and its record are the real ones."""

from quatrain.agents.model import Call, Turn


class Scripted:
    """Gives its turns in order; a turn is a text, a list of (name, arguments), or a function of the messages."""

    name, calls_tools, context = "scripted", True, None

    def __init__(self, *turns):
        self.turns, self.prompts = list(turns), []

    def turn(self, messages, form):
        self.prompts.append([dict(message) for message in messages])
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        said = turn(messages) if callable(turn) else turn
        if isinstance(said, str):
            return Turn(said, prompt_tokens=10, completion_tokens=5, seconds=0.5)
        calls = tuple(Call(f"call_{number}", *call) for number, call in enumerate(said))
        return Turn("", calls=calls, prompt_tokens=10, completion_tokens=5, seconds=0.5)

    def count(self, messages, tools):
        return None
