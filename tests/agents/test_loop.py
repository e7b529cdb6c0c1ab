"""The loop: calls run, faults are told, repetition and budgets end a run, and everything is recorded."""

import json
from contextlib import ExitStack

import pytest
from scripted_model import Scripted

from quatrain.agents.loop import Agent, AgentSettings
from quatrain.agents.permission import Permission
from quatrain.agents.recorder import Budget, Recorder, read_record
from quatrain.agents.replay import ReplayError, replay
from quatrain.agents.tool import tool
from quatrain.agents.toolbox import open_tools
from quatrain.agents.tools.calculator import calculator
from quatrain.core.errors import InputError


def test_a_call_runs_and_its_result_is_read():
    model = Scripted([("calculator", '{"expression": "17 * 23"}')], "It is 391.")
    outcome = Agent(model, [calculator]).run("What is 17 * 23?")
    assert (outcome.answer, outcome.stop) == ("It is 391.", "answer")
    assert model.prompts[1][-1] == {"role": "tool", "tool_call_id": "call_0", "name": "calculator", "content": "391"}
    assert [event["event"] for event in outcome.events] == ["start", "turn", "call", "turn", "end"]
    assert (outcome.usage.steps, outcome.usage.calls, outcome.usage.tokens) == (2, 1, 30)


def test_an_empty_turn_is_no_answer():
    outcome = Agent(Scripted(" \n", "It is 391."), [calculator]).run("What is 17 * 23?")
    assert (outcome.answer, outcome.stop) == ("It is 391.", "answer")
    outcome = Agent(Scripted(*[""] * 9), [calculator]).run("What is 17 * 23?")
    assert outcome.stop == "no_answer"


def test_a_call_that_is_repeated_six_times_is_stopped_at_the_third():
    ran = []

    @tool
    def look(where: str, deep: bool = False) -> str:
        """Look somewhere."""
        ran.append(where)
        return "nothing"

    same = ['{"where": "a", "deep": true}', '{"deep":true,  "where":"a"}'] * 3
    outcome = Agent(Scripted(*([("look", each)] for each in same)), [look]).run("Look.")
    assert (outcome.stop, outcome.answer, ran) == ("repeated_call", None, ["a", "a"])
    assert outcome.events[-2]["decision"] == "repeated"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("calculator", '{"expression": 3'), "are not JSON"),
        (("calculator", "[1]"), "must be one object"),
        (("calculator", "{}"), "expression: Field required"),
        (("calculator", '{"expression": "1", "more": 2}'), "more: Extra inputs"),
        (("calculator", '{"expression": "1/0"}'), "division by zero"),
        (("calculater", "{}"), "there is no tool 'calculater'; there are: calculator, broken"),
        (("broken", "{}"), "Error: RuntimeError: the disk is on fire"),
    ],
)
def test_faults_are_shown_to_the_model_and_recorded(call, said):
    @tool
    def broken() -> str:
        """Always fails."""
        raise RuntimeError("the disk is on fire")

    model = Scripted([call], "I cannot.")
    outcome = Agent(model, [calculator, broken]).run("Try.")
    assert said in model.prompts[1][-1]["content"] and outcome.answer == "I cannot."
    event = next(event for event in outcome.events if event["event"] == "call")
    assert event["failed"] and said in event["result"]


@pytest.mark.parametrize(
    ("budget", "stop", "steps"),
    [
        (Budget(steps=4), "steps", 4),
        (Budget(steps=9, tokens=40), "tokens", 3),
        (Budget(steps=9, seconds=1.0), "seconds", 2),
        (Budget(steps=9, money=0.00003, prices=(1.0, 2.0)), "money", 2),
    ],
)
def test_a_budget_ends_the_run(budget, stop, steps):
    count = iter(range(100))
    model = Scripted(lambda messages: [("calculator", json.dumps({"expression": f"{next(count)} + 1"}))])
    outcome = Agent(model, [calculator], AgentSettings(budget=budget)).run("Count.")
    assert (outcome.stop, outcome.usage.steps) == (stop, steps)


def test_a_budget_of_nothing_is_refused_with_all_problems():
    with pytest.raises(InputError) as error:
        Budget(steps=0, tokens=-1, money=1.0)
    assert all(name in str(error.value) for name in ("steps: 0", "tokens: -1", "money: needs prices"))


def test_the_record_is_written_while_the_run_goes_on(tmp_path):
    path = tmp_path / "run.jsonl"
    model = Scripted([("calculator", '{"expression": "2 + 2"}')], lambda messages: path.read_text() and "4")
    recorder = Recorder(path)
    outcome = Agent(model, [calculator]).run("2 + 2?", recorder=recorder)
    recorder.close()
    record = read_record(path)
    assert list(record.events) == outcome.events and not record.cut
    path.write_text(path.read_text()[:-30])
    assert read_record(path).cut and read_record(path).end is None
    with pytest.raises(InputError, match="exists"):
        Recorder(path)


def test_a_conversation_goes_on():
    model = Scripted("Hello Ada.", lambda messages: f"You said {len(messages)} things.")
    agent = Agent(model, [], AgentSettings(system="Be kind."))
    first = agent.run("I am Ada.")
    second = agent.run("Who am I?", conversation=first.conversation)
    assert [message["role"] for message in second.conversation.messages] == ["system", *["user", "assistant"] * 2]
    assert len(first.conversation.messages) == 3


def test_react_reads_actions_and_answers():
    model = Scripted(
        'Thought: compute\nAction: calculator\nAction Input: {"expression": "6*7"} and so on',
        "hm",
        "Thought: done\nFinal Answer: 42",
    )
    model.calls_tools = False
    outcome = Agent(model, [calculator]).run("6*7?")
    assert outcome.answer == "42" and outcome.usage.steps == 3
    assert model.prompts[1][-1] == {"role": "user", "content": "Observation: 42"}
    assert "Action Input" in model.prompts[0][0]["content"]


def test_settings_that_cannot_work_are_refused():
    model = Scripted("x")
    with pytest.raises(InputError, match="calculater is no tool here; did you mean calculator"):
        Agent(model, [calculator], permission=Permission(allow=["calculater"]))
    with pytest.raises(InputError, match="Two tools are named calculator"):
        Agent(model, [calculator, calculator])
    with pytest.raises(InputError, match="style tools: this model's chat template shows no tools"):
        model.calls_tools = False
        Agent(model, [calculator], AgentSettings(style="tools"))


def test_a_run_is_replayed_to_the_letter(tmp_path):
    """With refusals, faults, old results that were shortened, and a repeated call at the end."""

    @tool(untrusted=True)
    def page(number: int) -> str:
        """A page."""
        return f"page {number} " * 200

    model = Scripted(
        [("page", '{"number": 1}'), ("page", '{"number": "x"}')],
        [("page", '{"number": 2}')],
        [("calculator", '{"expression": "1"}')],
        *[[("page", '{"number": 3}')]] * 3,
    )
    model.context = 1200
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path)
    permission = Permission(allow=["page"])
    outcome = Agent(model, [page, calculator], permission=permission).run("Read.", recorder=recorder)
    recorder.close()
    record = read_record(path)
    assert outcome.stop == "repeated_call" and any(event["event"] == "forgot" for event in record.events)
    again = replay(record)
    assert [event["event"] for event in again] == [event["event"] for event in record.events]
    changed = read_record(path)
    next(changed.of("call"))["result"] = "another page"
    with pytest.raises(ReplayError, match="the prompt differs"):
        replay(changed)


def test_an_agent_plans_and_hands_over_to_a_person():
    with ExitStack() as stack:
        tools = open_tools(["plan", "person"], stack)
    steps = '{"steps": ["find the town", "answer"], "finished": 0}'
    model = Scripted([("plan", steps)], [("ask_person", '{"question": "Which town?"}')], "Oslo has rain.")
    agent = Agent(model, tools)
    first = agent.run("How is the weather?")
    assert (first.stop, first.answer) == ("handed_over", "Which town?")
    assert model.prompts[1][-1]["content"] == "[ ] 1. find the town\n[ ] 2. answer\nNext: find the town"
    second = agent.run("Oslo", conversation=first.conversation)
    assert second.answer == "Oslo has rain." and second.conversation.messages[-2]["content"] == "Oslo"


def test_a_record_with_a_part_that_is_missing_or_of_another_type_is_refused(tmp_path):
    """Every field that is read, one at a time: taken out, and replaced by what it cannot be."""
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path)
    Agent(Scripted([("calculator", '{"expression": "2 + 2"}')], "4"), [calculator]).run("2 + 2?", recorder=recorder)
    recorder.close()
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    unread = {"event", "quatrain", "time", "version"}
    for number, event in enumerate(whole):
        for name in event.keys() - unread:
            for change in ({}, {name: [[]]}, {name: float("inf")}):
                others = {key: value for key, value in event.items() if key != name}
                lines = [*whole[:number], others | change, *whole[number + 1 :]]
                path.write_text("".join(json.dumps(line) + "\n" for line in lines))
                if name == "answer" and not change:  # a call that answers nothing has none
                    continue
                with pytest.raises(InputError, match=rf":{number + 1}: the event {event['event']}[^$]*{name}"):
                    read_record(path)
