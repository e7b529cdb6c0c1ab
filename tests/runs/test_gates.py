"""Gates: a number of a stage beside its limit, and what a gate says that is not passed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.core.settings import parse
from quatrain.runs.gates import Gate, GateFailed, check, outcomes

RESULT = {
    "name": "03-finetune", "validation_loss": 2.5, "parameters": 3_716_608, "finished": True,
    "scores": {"new values": {"accuracy": 0.61, "error": 0.2, "count": 100}},
    "baselines": {"new values": {"name": "the commonest", "accuracy": 0.5, "error": 0.5}},
    "energy": {"kwh": 0.002},
}  # fmt: skip


def outcome(**settings):
    (found,) = outcomes("03-finetune", [parse(Gate, settings, what="gate")], RESULT)
    return found


@pytest.mark.parametrize(
    ("settings", "passed"),
    [({"metric": "validation_loss", "at_most": 2.5}, True), ({"metric": "validation_loss", "at_most": 2.4}, False),
     ({"metric": "energy.kwh", "at_most": 0.01}, True), ({"metric": "parameters", "at_least": 4_000_000}, False),
     ({"set": "new values", "metric": "accuracy", "at_least": 0.6, "at_most": 0.7}, True),
     ({"set": "new values", "metric": "accuracy", "at_least": 0.5, "at_most": 0.6}, False),
     ({"set": "new values", "metric": "accuracy", "over_baseline": 0.1}, True),
     ({"set": "new values", "metric": "accuracy", "over_baseline": 0.2}, False),
     ({"set": "new values", "metric": "count", "over_baseline": 1}, False)],
)  # fmt: skip
def test_limits(settings: dict, passed: bool) -> None:
    assert outcome(**settings).passed is passed


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_limit_is_a_comparison(value: float, limit: float) -> None:
    gates = [Gate(metric="x", at_least=limit), Gate(metric="x", at_most=limit)]
    least, most = outcomes("s", gates, {"x": value})
    assert (least.passed, most.passed) == (value >= limit, value <= limit)


def test_what_is_said() -> None:
    gates = [Gate(metric="accuracy", set="new values", over_baseline=0.2), Gate(metric="validation_loss", at_most=2)]
    with pytest.raises(GateFailed) as caught:
        check(outcomes("03-finetune", gates, RESULT))
    first, second = caught.value.problems
    assert first == "new values: accuracy 61.0%, must be 20.0% better than the dumb baseline, 50.0%"
    assert second == "validation_loss 2.500, must be at most 2" and caught.value.exit_code == 1


def test_a_number_that_the_stage_does_not_have() -> None:
    assert (
        "did you mean accuracy?; it has: accuracy, error, count"
        in outcome(metric="acuracy", set="new values", at_least=0.5).text
    )
    assert (
        "no scores of 'old values', only of: new values"
        in outcome(metric="accuracy", set="old values", at_least=0.5).text
    )
    assert "validation_loss, parameters" in outcome(metric="finished", at_least=1).text


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"metric": "x"}, "has no limit"), ({"metric": "x", "over_baseline": 0.1}, "name the set"),
     ({"metric": "x", "at_least": 2, "at_most": 1}, "above at_most"),
     ({"metric": "x", "least": 2}, "did you mean at_least")],
)  # fmt: skip
def test_wrong_gates(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(Gate, settings, what="gate")
