"""The page of a plan: its script gives the figures of the Python formulas, at every setting."""

from __future__ import annotations

import pytest
from browsers import ARGUMENTS, CHROMIUM

from quatrain.models.io.model_folder import config_of
from quatrain.planning import counts, scaling
from quatrain.planning.bill import Cluster, bill
from quatrain.planning.facts import load_facts
from quatrain.planning.overview import ModelSize, Section, inference_section, model_section
from quatrain.planning.page import plan_page
from quatrain.planning.parallelism import Layout, Step, device_memory, state_memory

FACTS = load_facts()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


def opened(browser, tmp_path, size: ModelSize):
    path = tmp_path / "plan.html"
    path.write_text(plan_page(size, [model_section(size), inference_section(size)]), encoding="utf-8")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    return page, errors


def set_control(page, name: str, value: object) -> None:
    page.eval_on_selector(
        f"#{name}",
        "(element, value) => { element.value = value; element.dispatchEvent(new Event('input')); }",
        str(value),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-1b"])
def test_a_model_with_its_shapes(browser, tmp_path, name: str) -> None:
    config = config_of(dict(FACTS.models[name].config))
    page, errors = opened(browser, tmp_path, ModelSize.of(name, config))
    for zero, checkpointing, precision in ((3, "none", "bfloat16"), (0, "full", "bfloat16"), (2, "none", "float32")):
        for control, value in {
            "tokens": 11, "count": 5, "device": "a100", "zero": zero, "checkpointing": checkpointing, "batch": 2,
            "precision": precision, "context": 12, "grid": "france", "utilization": 0.5, "price": 2,
        }.items():  # fmt: skip
            set_control(page, control, value)
        shown = page.evaluate("figures()")
        step = Step(4, 4096, precision, checkpointing=checkpointing)
        memory = device_memory(config, step, Layout(32, zero=zero))
        assert shown["total"] == pytest.approx(memory.total, rel=1e-9)
        flops = counts.flops_per_token(config, 4096) * 1e11
        cluster = Cluster(FACTS.devices["a100"], 32, 0.5, precision, 2.0, FACTS.grids["france"])
        charged = bill(flops, cluster)
        for key in ("flops", "seconds", "price"):
            assert shown[key] == pytest.approx(getattr(charged, key), rel=1e-9), key
        assert shown["co2"] == pytest.approx(charged.co2_kg)
    assert "2.00" in page.inner_text("#out-price") and "does not fit" not in page.inner_text("h1")
    assert not errors
    page.close()


@pytest.mark.slow
def test_a_bare_size(browser, tmp_path) -> None:
    page, errors = opened(browser, tmp_path, ModelSize("7.5b", 7.5e9))
    set_control(page, "parameters", 9)
    set_control(page, "tokens", 10)
    shown = page.evaluate("figures()")
    assert shown["flops"] == pytest.approx(6e19)
    set_control(page, "zero", 2)
    shown = page.evaluate("figures()")
    assert shown["total"] == pytest.approx(sum(state_memory(1e9, Step(), Layout(8, zero=2))))
    law = page.inner_text("#law")
    assert f"{scaling.EPOCH.loss(1e9, 1e10):.3f}" in law
    for width in (390, 820, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not errors
    page.close()


def test_names_are_escaped() -> None:
    size = ModelSize("</script><b>x", 1e6)
    html = plan_page(size, [Section("<i>", [["<u>", "1", "2"]])])
    assert "</script><b>" not in html and "<i>" not in html and "<u>" not in html
    assert "default-src 'none'" in html and "src=" not in html and "href=" not in html
