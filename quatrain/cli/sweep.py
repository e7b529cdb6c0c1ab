"""`quatrain sweep`: trains a grid of small models, fits a law to their losses, and tests it on a larger run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import RECIPE

if TYPE_CHECKING:
    from quatrain.planning.scaling import Fit
    from quatrain.runs.sweep import Prediction, Sweep


def sweep(
    recipe: Annotated[str, RECIPE],
    *overrides: str,
    over: tuple[str, ...] = (),
    name: str | None = None,
    minutes: float | None = None,
    processes: int = 1,
    predict: tuple[str, ...] = (),
    best: str | None = None,
    runs_dir: Path = Path("runs"),
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Run a recipe at every combination of some settings and fit scaling laws to the losses. The same command resumes.

    Parameters
    ----------
    recipe
        The name of a shipped recipe, or the path of a recipe in TOML.
    overrides
        Settings that are the same for all points, such as stage.pretrain.train.batch_tokens=4096.
    over
        A setting and its values, such as --over model.hidden_size=64,96,128; may be given several times. Instead of a
        setting, tokens=500k,1m or flops=1e12,3e12 lets every point train as long as that.
    name
        The folder of the sweep under --runs-dir; by default sweep- and the recipe's name.
    minutes
        A budget: points that would not finish in it are left out and named.
    processes
        Points that run side by side.
    predict
        The settings of a larger run, such as --predict model.hidden_size=192. The law predicts its loss, then it runs.
    best
        A setting, such as stage.pretrain.train.learning_rate: show its best value for each of the other settings.
    runs_dir
        The folder of all runs.
    json_lines
        Write JSON lines, for programs.
    """
    from quatrain.cli.output import show, show_json
    from quatrain.core.progress import create_reporter
    from quatrain.runs.recipe import load
    from quatrain.runs.sweep import Axis, SweepPlan, predict_and_run, run_sweep
    from quatrain.runs.sweep_page import write_page

    reporter = create_reporter(json_lines=json_lines)
    name = name or f"sweep-{load(recipe, overrides).name}"
    axes = tuple(Axis.parse(text) for text in over)
    plan = SweepPlan(name, recipe, overrides, axes, runs_dir / name, minutes, processes, tuple(predict), best)
    result = run_sweep(plan, reporter)
    law = result.law()
    prediction = predict_and_run(plan, law, reporter) if predict else None
    page = write_page(plan, result, law, prediction)
    if json_lines:
        show_json(_figures(result, law, prediction, best) | {"page": str(page)})
    else:
        _show(result, law, prediction, best)
        show(f"\nwrote {page}")
    return 1 if result.failed else 0


def _figures(sweep: Sweep, law: Fit | None, prediction: Prediction | None, best: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    figures = sweep.as_dict() | {"iso_flops": [asdict(each) for each in sweep.iso_flops()]}
    growth = sweep.growth()
    figures["growth"] = None if growth is None else asdict(growth)
    figures["law"] = None if law is None else law.law.as_dict() | {"errors": law.errors, "objective": law.objective}
    if best is not None:
        figures["best"] = {
            group: {"value": value, "loss": loss} for group, (value, loss) in sweep.optimum(best).items()
        }
        figures["transfer"] = sweep.transfer(best)
    if prediction is not None:
        figures["prediction"] = asdict(prediction) | {"error": prediction.error}
    return figures


def _show(sweep: Sweep, law: Fit | None, prediction: Prediction | None, best: str | None) -> None:
    from quatrain.cli.output import show, show_table

    keys = [axis.key for axis in sweep.axes]
    rows = [
        [*map(point.settings.get, keys), f"{point.parameters:,.0f}", f"{point.tokens:,.0f}", f"{point.loss:.4f}",
         f"{point.seconds:,.0f}"]
        for point in sorted(sweep.points, key=lambda point: point.loss)
    ]  # fmt: skip
    show_table([*(key.rpartition(".")[2] for key in keys), "parameters", "tokens", "loss", "seconds"], rows)
    for settings in sweep.left_out:
        show("left out, no time: " + ", ".join(f"{key}={value}" for key, value in settings.items()))
    if law is not None:
        terms = law.law
        show(f"\nloss = {terms.E:.3f} + {terms.A:.4g} / N^{terms.alpha:.3f} + {terms.B:.4g} / D^{terms.beta:.3f}")
        errors = ", ".join(f"{name} ±{1.96 * law.errors[name]:.3g}" for name in ("E", "alpha", "beta"))
        show(f"95 % intervals by bootstrap: {errors}")
    elif best is None:
        show("\nNo law is fitted: it needs at least 6 points of two sizes and two numbers of tokens.")
    for each in sweep.iso_flops():
        place = "" if each.inside else ", at the edge of the sizes: add larger or smaller ones"
        show(
            f"at {each.flops:.2e} FLOPs the best size is {each.parameters:,.0f} parameters, loss {each.loss:.4f}{place}"
        )
    if (growth := sweep.growth()) is not None:
        show(
            f"the best size grows with FLOPs^{growth.exponent:.2f} ({growth.low:.2f} to {growth.high:.2f} by bootstrap)"
        )
    if best is not None:
        for group, (value, loss) in sweep.optimum(best).items():
            show(f"best {best.rpartition('.')[2]} ({group}): {value:.4g}, loss {loss:.4f}")
        for part, factor in sweep.transfer(best).items():
            show(f"it moves by a factor of {factor:.2f}" + ("" if part == "all" else f" with {part}"))
    if prediction is not None:
        point = prediction.point
        show(
            f"\npredicted {prediction.predicted:.4f} for {point.parameters:,.0f} parameters and {point.tokens:,.0f} "
            f"tokens; the run has {point.loss:.4f}: {prediction.error:+.2%}"
        )
