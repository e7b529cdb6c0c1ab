"""Alarms: simulated curves of each failure raise theirs, flat and noisy ones none, and restarts change nothing."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.alignment.watch import SIGNIFICANT, WINDOW, Watch, normal_quantile, shift
from quatrain.core.progress import MetricsLog, SilentReporter, read_metrics
from quatrain.core.tracking import Trackers
from quatrain.runs.learning import log_to

NORMAL = {
    "reward": (0.4, 0.1),
    "reward_std": (0.5, 0.05),
    "true/accuracy": (0.7, 0.05),
    "kl": (0.0, 0.02),
    "entropy": (3.0, 0.3),
    "completion_length": (20, 2),
    "repetition": (0.1, 0.03),
    "distinct": (0.8, 0.05),
    "ended_fraction": (0.7, 0.1),
    "clip_fraction": (0.1, 0.05),
    "groups_without_spread": (0.3, 0.1),
    "unscorable": (0.05, 0.03),
    "logps/chosen": (-60, 6),
    "logps/rejected": (-60, 6),
}
"""Mean and standard deviation of each metric in a run that does not move."""


def noise(draw: random.Random, count: int, correlation: float) -> list[float]:
    value, values = draw.gauss(0, 1), []
    for _ in range(count):
        value = correlation * value + math.sqrt(1 - correlation**2) * draw.gauss(0, 1)
        values.append(value)
    return values


def simulate(seed: int, steps: int = 120, correlation: float = 0.0, repeat: int = 1, **trends) -> Watch:
    """A run of noise around `NORMAL`, with trends: a function of the share of the run that is done, per metric.

    A trend replaces a metric's mean; None leaves the metric out. Slashes in names are written as two underscores.
    """
    draw, watch = random.Random(seed), Watch()
    trends = {name.replace("__", "/"): trend for name, trend in trends.items()}
    curves = {name: noise(draw, steps, correlation) for name in NORMAL}
    for step in range(steps):
        entry = {"step": step + 1}
        for name, (mean, deviation) in NORMAL.items():
            place = step if name.startswith("logps") else step // repeat
            trend = trends.get(name, lambda done, mean=mean: mean)
            if trend is not None:
                entry[name] = trend(place * repeat / steps) + deviation * curves[name][place]
        watch.update(entry)
    return watch


def kinds(watch: Watch) -> set[str]:
    return {alarm.kind for alarm in watch.alarms}


def up(done: float) -> float:
    return 0.4 + 1.5 * done


def down(done: float) -> float:
    return 0.7 - 0.4 * done


@pytest.mark.parametrize("correlation, repeat", [(0.0, 1), (0.5, 1), (0.8, 1), (0.0, 4)])
@pytest.mark.parametrize("rises", [False, True])
def test_a_flat_run_raises_no_alarm(correlation, repeat, rises):
    """20 runs of 120 logged steps: white noise, autocorrelated noise, and rollouts learned in four steps each.

    With a correlation of 0.8 one may; docs/alignment.md states the rates of a larger simulation.
    """
    trends = {"reward": up} if rises else {}
    alarms = Counter(
        kind for seed in range(20) for kind in kinds(simulate(seed, correlation=correlation, repeat=repeat, **trends))
    )
    assert sum(alarms.values()) <= (1 if correlation == 0.8 else 0), alarms


@settings(deadline=None, max_examples=60)
@given(
    value=st.floats(-1e6, 1e6),
    deviation=st.floats(0, 1e3),
    seed=st.integers(0, 2**32),
    names=st.sets(st.sampled_from(sorted(NORMAL)), min_size=1),
)
def test_metrics_that_do_not_move_raise_no_alarm(value, deviation, seed, names):
    """Whatever their level and noise, and whichever are logged; a share stays a share, a KL is not negative."""
    draw, watch = random.Random(seed), Watch()
    shares = {"clip_fraction", "groups_without_spread", "unscorable", "ended_fraction", "repetition", "distinct"}
    for step in range(60):
        entry = {"step": step + 1}
        for name in names:
            sample = draw.gauss(value, deviation)
            entry[name] = min(0.4, max(0.0, sample)) if name in shares else max(0.0, sample) if name == "kl" else sample
        if "reward_std" in names:
            entry["reward_std"] = 0.1 + abs(entry["reward_std"])
        watch.update(entry)
    assert watch.alarms == []


@pytest.mark.parametrize(
    "kind, metric, trends",
    [
        ("reward_hacking", "true/accuracy", {"reward": up, "true__accuracy": down}),
        # Goodhart: the true metric rises first, and falls below its best only later, though not below its start.
        ("reward_hacking", "true/accuracy",
         {"reward": up, "true__accuracy": lambda done: 0.7 + 0.3 * math.sin(1.4 * math.pi * done)}),
        ("completion_length_drift", "completion_length",
         {"reward": up, "completion_length": lambda done: 20 + 30 * done, "true__accuracy": None}),
        ("completion_length_drift", "completion_length",
         {"reward": up, "completion_length": lambda done: 20 - 14 * done}),
        ("repetition_drift", "repetition", {"reward": up, "repetition": lambda done: 0.1 + 0.5 * done}),
        ("ended_fraction_drift", "ended_fraction", {"reward": up, "ended_fraction": lambda done: 0.9 - 0.8 * done}),
        ("mode_collapse", "distinct",
         {"reward": up, "distinct": lambda done: 0.9 - 0.6 * done, "true__accuracy": lambda done: 0.5 + 0.4 * done}),
        ("negative_kl", "kl", {"kl": lambda done: -0.5 * done}),
        ("entropy_collapse", "entropy", {"entropy": lambda done: 3 * math.exp(-6 * done)}),
        ("chosen_logps", "logps/chosen", {"logps__chosen": lambda done: -60 - 40 * done}),
        ("groups_without_spread", "groups_without_spread", {"groups_without_spread": lambda done: 1.0}),
        ("unscorable", "unscorable", {"unscorable": lambda done: 0.05 + 0.5 * done}),
        ("clip_fraction", "clip_fraction", {"clip_fraction": lambda done: 0.7}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_each_failure_raises_its_alarm_once(kind, metric, trends, seed, monkeypatch):
    monkeypatch.setitem(NORMAL, "entropy", (3.0, 0.05))
    monkeypatch.setitem(NORMAL, "groups_without_spread", (0.3, 0.0))
    watch = simulate(seed, **trends)
    assert kinds(watch) == {kind}
    (alarm,) = watch.alarms
    assert metric in alarm.metrics and 2 * 3 <= alarm.step <= 120
    # A sentence that names the numbers and what to do.
    assert any(letter.isdigit() for letter in alarm.text) and alarm.text.endswith(".") and len(alarm.text) > 80


def test_a_gain_that_the_true_metric_confirms_is_no_hacking():
    """Answers may become longer because they become better."""
    longer = {"reward": up, "completion_length": lambda done: 20 + 60 * done}
    assert kinds(simulate(0, **longer)) == {"completion_length_drift"}
    assert kinds(simulate(0, **longer, true__accuracy=lambda done: 0.5 + 0.4 * done)) == set()


def test_completions_of_a_few_words_raise_an_alarm_whatever_the_true_metric_says():
    better = {"reward": up, "true__accuracy": lambda done: 0.5 + 0.4 * done}
    watch = simulate(0, **better, completion_length=lambda done: 20 - 16 * done)
    assert kinds(watch) == {"completion_length_drift"}
    assert "short completions: from" in watch.alarms[0].text
    assert kinds(simulate(0, **better, completion_length=lambda done: 20 - 8 * done)) == set()


def test_a_solved_task_raises_no_alarm(monkeypatch):
    """At the end every completion is right: no spread, no entropy, a constant reward. That is success."""
    for name in NORMAL:
        monkeypatch.setitem(NORMAL, name, (NORMAL[name][0], 0.0))
    done = simulate(
        0,
        reward=lambda done: min(1.0, 0.2 + 1.2 * done),
        reward_std=lambda done: max(0.0, 0.4 - 0.6 * done),
        entropy=lambda done: 3 * math.exp(-8 * done),
        groups_without_spread=lambda done: min(1.0, 0.2 + 1.2 * done),
        true__accuracy=None,
    )
    assert done.series["reward_std"].values[-1] == 0 and done.series["entropy"].values[-1] < 0.01
    assert done.alarms == []


def test_a_constant_reward_is_named_with_its_part_and_its_value():
    watch = Watch()
    for step in range(1, 9):
        entry = {"step": step, "reward": 0.25 + 0.1 * (step % 2), "reward_std": 0.3, "completion_length": step}
        alarms = watch.update(entry | {"reward/format": 0.25, "constant/format": 1.0, "constant/match": 0.0})
        assert [alarm.kind for alarm in alarms] == (["constant_reward"] if step == 5 else [])
    (alarm,) = watch.alarms
    assert alarm.metrics == ("reward/format",) and "0.25" in alarm.text
    whole = Watch()
    for step in range(1, 9):
        whole.update({"step": step, "reward": 0.0, "reward_std": 0.0, "completion_length": 16.0})
    assert [alarm.metrics for alarm in whole.alarms] == [("reward",)]
    # A reward that became constant at its worst is stuck too, unlike one that became constant at its best.
    lost = Watch()
    for step in range(1, 30):
        lost.update({"step": step, "reward": 1.0 - min(1, step / 10), "reward_std": float(step < 10)})
    assert "constant_reward" in kinds(lost)


def test_a_flat_reward_with_spread_is_not_constant():
    watch = Watch()
    for step in range(1, 60):
        watch.update({"step": step, "reward": 0.5, "reward_std": 0.5, "kl": 0.0, "entropy": 2.0})
    assert watch.alarms == []


def test_a_replayed_log_goes_on_as_if_it_had_not_been_interrupted():
    draw = random.Random(0)
    log = [
        {"step": step, "reward": step / 50 + draw.gauss(0, 0.1), "completion_length": 20 + step, "note": "x"}
        for step in range(1, 81)
    ]  # fmt: skip
    whole, first, second = Watch(), Watch(), Watch()
    for entry in log:
        whole.update(entry)
    assert len(whole.alarms) == 1
    for cut in (whole.alarms[0].step - 1, whole.alarms[0].step):
        first, second = Watch(), Watch()
        seen = [alarm for entry in log[:cut] for alarm in first.update(entry)]
        second.replay(log[:cut])
        seen += [alarm for entry in log[cut:] for alarm in second.update(entry)]
        assert seen == whole.alarms == second.alarms


def test_values_that_are_not_finite_are_left_out():
    watch = Watch()
    for step in range(1, 40):
        watch.update({"step": step, "reward": math.nan if step % 2 else 0.5, "kl": -math.inf, "entropy": None})
    assert watch.alarms == [] and len(watch.series["reward"].values) == 19 and "kl" not in watch.series


@given(st.floats(0, 50), st.integers(2, 200))
@settings(deadline=None)
def test_the_normal_quantile_of_t_has_the_same_tail(t, freedom):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.norm.isf(stats.t.sf(t, freedom))
    assert normal_quantile(t, freedom) == pytest.approx(expected, abs=0.02 + 0.07 * expected)
    assert normal_quantile(-t, freedom) == -normal_quantile(t, freedom)


def test_shift_is_welchs_statistic():
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(3)
    before, after = [draw.gauss(0, 1) for _ in range(WINDOW)], [draw.gauss(4, 3) for _ in range(WINDOW)]
    test = stats.ttest_ind(after, before, equal_var=False)
    assert shift(before, after).z == pytest.approx(normal_quantile(test.statistic, test.df))
    assert shift(before, after, correlation=0.6).z == pytest.approx(normal_quantile(test.statistic / 2, test.df))
    assert shift([1, 1, 1], [1, 1, 1]).z == 0 and shift([1, 1, 1], [2, 2, 2]).z == math.inf > SIGNIFICANT


def test_an_alarm_is_shown_and_logged_with_its_step(tmp_path):
    class Shown(SilentReporter):
        warnings: list[str] = []

        def warn(self, text):
            self.warnings.append(text)

    trackers = Trackers((), tmp_path, run="r", stage="02-ppo", config={}, resume_step=0, warn=print)
    with MetricsLog(tmp_path / "metrics.jsonl", "02-ppo") as log:
        write = log_to(log, trackers, Shown(), Watch())
        for step in range(1, 9):
            write({"step": step, "reward": 0.0, "reward_std": 0.0})
    logged = [entry.get("alarms", []) for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert [len(alarms) for alarms in logged] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert logged[4][0]["kind"] == "constant_reward" and logged[4][0]["step"] == 5
    assert Shown.warnings == [f"step 5: {logged[4][0]['text']}"]
