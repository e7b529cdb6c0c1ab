"""Sweeps: grids of runs that resume, budgets, laws of their losses, and a larger run beside its prediction."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing.resource_tracker
import multiprocessing.spawn
import time
from pathlib import Path

import numpy as np
import pytest

from quatrain.cli import main
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.progress import SilentReporter
from quatrain.planning.scaling import ParametricLaw
from quatrain.runs import sweep
from quatrain.runs.sweep import Axis, Point, Prediction, Sweep, SweepPlan, predict_and_run, run_sweep
from quatrain.runs.sweep_page import write_page

RECIPE = """
name = "tiny"
[data]
source = "{source}"
validation = 0.2
[tokenizer]
kind = "char"
[model]
family = "llama"
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 32
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = {{ steps = 2, batch_tokens = 128, warmup_steps = 1, precision = "float32" }}
[evaluate]
max_new_tokens = 2
"""
STEPS = "stage.pretrain.train.steps"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question. " * 60, encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(source=text), encoding="utf-8")
    return str(path)


def test_a_process_that_was_killed_is_no_bug(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    multiprocessing.resource_tracker.ensure_running()
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    plan = SweepPlan("tiny", recipe, (), (Axis.parse(f"{STEPS}=1,2"),), tmp_path / "sweep")
    with pytest.raises(QuatrainError, match=r"was ended from outside.*same command continues"):
        list(sweep._outcomes(plan, [{STEPS: "1"}], [1.0], None, None))


def made(law: ParametricLaw, sizes: list[float], lengths: list[float]) -> Sweep:
    points = [
        Point({"model.hidden_size": f"{n:g}", STEPS: f"{d:g}"}, n, d, 6 * n * d, law.loss(n, d), 1.0, "x")
        for n in sizes
        for d in lengths
    ]
    return Sweep("made", (Axis.parse("model.hidden_size=1,2"), Axis.parse(f"{STEPS}=1,2")), points)


@pytest.mark.slow
def test_a_sweep_runs_resumes_and_predicts(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = (Axis.parse("model.hidden_size=8,16"), Axis.parse(f"{STEPS}=1,2,3"))
    plan = SweepPlan("tiny", recipe, (), axes, tmp_path / "sweep")
    ran: list[dict[str, str]] = []

    def counted(plan, settings, tokenizer, threads):
        ran.append(settings)
        return original(plan, settings, tokenizer, threads)

    original = sweep._run_point
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(sweep, "_run_point", counted)
    result = run_sweep(plan, SilentReporter())
    assert len(result.points) == 6 and len(ran) == 6 and not result.failed and not result.left_out
    assert len({point.parameters for point in result.points}) == 2
    assert sorted({point.tokens for point in result.points}) == [128, 256, 384]
    assert json.loads((plan.folder / "sweep.json").read_text())["points"][0]["loss"] == result.points[0].loss
    again = run_sweep(plan, SilentReporter())
    assert len(ran) == 6 and {point.loss for point in again.points} == {point.loss for point in result.points}
    larger = dataclasses.replace(plan, predict=("model.hidden_size=24",))
    prediction = predict_and_run(larger, again.law(bootstrap=0), SilentReporter())
    assert len(ran) == 7 and prediction.point.parameters > max(point.parameters for point in again.points)
    assert abs(prediction.error) < 0.5
    html = write_page(plan, again, again.law(bootstrap=0), prediction).read_text(encoding="utf-8")
    assert "the larger run" in html and html.count("<tr>") == 7


class InProcess:
    """An executor that runs each call at once, in this process."""

    def __init__(self, *arguments, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future: Future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.mark.slow
def test_the_verb_in_processes_of_its_own(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate, folder = "stage.pretrain.train.learning_rate", str(tmp_path / "runs")
    assert main(["sweep", recipe, "--over", f"{rate}=0.001,0.01", "--runs-dir", folder, "--best", rate, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["points"]) == 2 and found["law"] is None and found["best"]["all"]["value"] in (0.001, 0.01)
    assert Path(found["page"]).is_file()


def test_a_budget_leaves_points_out_and_names_them(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", InProcess)
    point = Point({}, 1.0, 1.0, 1.0, 1.0, 1e9, "x")
    monkeypatch.setattr(sweep, "_run_point", lambda plan, settings, tokenizer, threads: point)
    monkeypatch.setattr(sweep, "_tokenizer", lambda plan, first: None)
    plan = SweepPlan("tiny", recipe, (), (Axis.parse(f"{STEPS}=1,2,3"),), tmp_path / "sweep", minutes=1.0)
    result = run_sweep(plan, SilentReporter())
    assert len(result.points) == 1 and result.left_out == [{STEPS: "2"}, {STEPS: "3"}]


def test_a_point_that_fails_is_named(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(sweep, "_run_point", lambda plan, settings, tokenizer, threads: "the disk is full")
    monkeypatch.setattr(sweep, "_tokenizer", lambda plan, first: None)
    result = run_sweep(SweepPlan("tiny", recipe, (), (Axis.parse(f"{STEPS}=1,2"),), tmp_path / "s"), SilentReporter())
    assert result.failed == {f"{STEPS}=1": "the disk is full", f"{STEPS}=2": "the disk is full"}


def test_the_law_of_a_sweep() -> None:
    law = ParametricLaw(1.5, 60.0, 300.0, 0.3, 0.35)
    sweep = made(law, [1e5, 3e5, 1e6], [1e6, 4e6, 1.6e7])
    fitted = sweep.law(bootstrap=0)
    assert fitted is not None and fitted.law.loss(4e6, 6e7) == pytest.approx(law.loss(4e6, 6e7), rel=0.01)
    assert made(law, [1e5], [1e6, 2e6, 3e6, 4e6, 5e6, 6e6]).law() is None  # one size
    assert made(law, [1e5, 2e5], [1e6, 2e6]).law() is None  # too few


def test_the_best_size_of_a_budget() -> None:
    law = ParametricLaw(1.5, 400.0, 400.0, 0.34, 0.3)
    budget = 1e15
    best = law.optimal(budget)[0]
    sizes = [best * 2.0**step for step in (-2, -1, 0, 1, 2)]
    points = [
        Point({"n": f"{n:g}"}, n, budget / (6 * n), budget, law.loss(n, budget / (6 * n)), 1.0, "x") for n in sizes
    ]
    (found,) = Sweep("x", (Axis("n", ("1", "2")),), points).iso_flops()
    assert found.inside and found.parameters == pytest.approx(best, rel=0.2)


def budgets_of(law: ParametricLaw) -> Sweep:
    points = []
    for budget in (1e14, 1e15, 1e16):
        best = law.optimal(budget)[0]
        for n in (best * 2.0**step for step in (-2, -1, 0, 1, 2)):
            points.append(Point({"n": f"{n:g}"}, n, budget / (6 * n), budget, law.loss(n, budget / (6 * n)), 1.0, "x"))
    return Sweep("x", (Axis("n", ("1", "2")),), points)


def test_the_best_size_grows_with_compute_as_the_law_says(tmp_path: Path) -> None:
    law = ParametricLaw(1.5, 400.0, 400.0, 0.34, 0.3)
    sweep = budgets_of(law)
    growth = sweep.growth(draws=50)
    assert growth.exponent == pytest.approx(law.beta / (law.alpha + law.beta), abs=0.02)
    assert growth.low <= growth.exponent <= growth.high
    assert Sweep("x", sweep.axes, sweep.points[:5]).growth() is None  # one budget
    page = write_page(SweepPlan("x", "r", (), sweep.axes, tmp_path), sweep, None, None).read_text("utf-8")
    assert "Loss by size at equal compute" in page and "the best size" in page


def test_points_of_equal_tokens_and_of_equal_flops(recipe: str, tmp_path: Path) -> None:
    """The steps follow from the batch, and from the size."""
    from quatrain.planning.counts import flops_per_token
    from quatrain.runs.costs import stage_costs

    batch = Axis.parse("stage.pretrain.train.batch_tokens=128,256")
    plan = SweepPlan("x", recipe, (), (batch, Axis.parse("tokens=2k")), tmp_path)
    assert [plan.recipe_of(each).stage[-1].train.steps for each in plan.grid()] == [16, 8]
    width = Axis.parse("model.hidden_size=8,16,32")
    plan = SweepPlan("x", recipe, (), (width, Axis.parse("flops=1e10")), tmp_path)
    for settings in plan.grid():
        made = plan.recipe_of(settings)
        (cost,) = stage_costs(made, memory=False)
        token = flops_per_token(made.model.config(made.tokenizer.vocab_size), 32)
        assert abs(cost.flops - 1e10) <= 128 * token / 2
    with pytest.raises(InputError, match="must be a positive number"):
        SweepPlan("x", recipe, (), (Axis.parse("tokens=many"),), tmp_path).recipe_of({"tokens": "many"})


def test_how_far_the_best_rate_moves_between_widths(tmp_path: Path) -> None:
    """Standard: the best rate halves from width to width; with μP it stays."""
    mup = "stage.pretrain.train.mup_base_width"
    axes = (Axis.parse("lr=0.001,0.01,0.1"), Axis.parse("width=8,16"), Axis.parse(f"{mup}=0,8"))
    points = [
        Point({"lr": lr, "width": width, mup: base}, 1.0, 1.0, 1.0,
              2 + (np.log10(float(lr)) - (-1.8 if base == "8" or width == "8" else -2.1)) ** 2, 1.0, "x")
        for lr in ("0.001", "0.01", "0.1") for width in ("8", "16") for base in ("0", "8")
    ]  # fmt: skip
    sweep = Sweep("x", axes, points)
    found = sweep.transfer("lr")
    assert found["mup_base_width=0"] == pytest.approx(10**0.3, rel=1e-3)
    assert found["mup_base_width=8"] == pytest.approx(1.0)
    page = write_page(SweepPlan("x", "r", (), axes, tmp_path, best="lr"), sweep, None, None).read_text("utf-8")
    assert "Loss by lr, mup_base_width=0" in page and "Loss by lr, mup_base_width=8" in page


def test_the_best_learning_rate() -> None:
    rates = (0.001, 0.003, 0.01, 0.03)
    points = [
        Point({"lr": f"{rate:g}", "width": width}, 1.0, 1.0, 1.0, 2 + (np.log10(rate) - center) ** 2, 1.0, "x")
        for width, center in (("8", -2.2), ("16", -2.6))
        for rate in rates
    ]
    found = Sweep("x", (Axis("lr", tuple(map(str, rates))), Axis("width", ("8", "16"))), points).optimum("lr")
    assert found["width=8"][0] == pytest.approx(10**-2.2, rel=1e-3) and found["width=16"][0] == pytest.approx(
        10**-2.6, rel=1e-3
    )
    with pytest.raises(InputError, match="not a number"):
        points[0].settings["lr"] = "fast"
        Sweep("x", (Axis("lr", ("a", "b")),), points).optimum("lr")


def test_the_page_escapes_and_draws(tmp_path: Path) -> None:
    law = ParametricLaw(1.5, 60.0, 300.0, 0.3, 0.35)
    sweep = made(law, [1e5, 3e5, 1e6], [1e6, 4e6])
    plan = SweepPlan("<b>x", "r", (), sweep.axes, tmp_path, best=STEPS)
    path = write_page(plan, sweep, sweep.law(bootstrap=0), Prediction(sweep.points[-1], 2.0))
    page = path.read_text(encoding="utf-8")
    assert "<b>x" not in page and page.count("Loss by") >= 2 and "the law at its optimum" in page


@pytest.mark.parametrize(
    ("over", "words"),
    [((), "--over: missing"), (("a=1",), "two values or more"), (("a=1,1",), "given twice"), (("=1,2",), "two values"),
     (("a=1,2", "a=3,4"), "--over a: given twice"), (("model.hiden_size=8,16",), "did you mean hidden_size")],
)  # fmt: skip
def test_wrong_axes_are_refused(recipe: str, over: tuple[str, ...], words: str, tmp_path, capsys) -> None:
    arguments = [word for each in over for word in ("--over", each)]
    assert main(["sweep", recipe, *arguments, "--runs-dir", str(tmp_path / "runs")]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs" / "sweep-tiny" / "points").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--best", "seed"], "--best seed: must be a setting of --over (data.validation)"),
     (["--best", "data.validation"], "--best data.validation: '0.0' is no number above 0"),
     (["--predict", "seed=2"], "--predict: 2 points; a law needs 6"),
     (["--over", "tokens=1k,2k,3k", "--predict", "seed"], "--predict 'seed': must be a setting and its value"),
     (["--over", "tokens=1k,2k,3k", "--predict", "sead=2"], "did you mean seed")],
)  # fmt: skip
def test_what_cannot_be_said_of_a_sweep_is_refused_before_it(
    recipe: str, options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    assert main(["sweep", recipe, "--over", "data.validation=0.0,0.2", "--runs-dir", str(folder), *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()


def test_limits_of_a_plan() -> None:
    with pytest.raises(InputError) as caught:
        SweepPlan("x", "r", (), (), Path("x"), minutes=0, processes=0)
    assert len(caught.value.problems) == 3


def test_a_stopped_sweep_stops_its_processes() -> None:
    from quatrain.runs.sweep import _stopping_children

    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    with pytest.raises(KeyboardInterrupt), _stopping_children():
        raise KeyboardInterrupt
    child.join(60)
    assert child.exitcode not in (None, 0)
