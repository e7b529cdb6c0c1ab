"""The report: everything a run left is there, nothing hostile comes through, and no part has to exist."""

from __future__ import annotations

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.evaluation.report import write_report
from quatrain.evaluation.report.reading import read_run
from quatrain.evaluation.report.wording import amount, duration, interval, metric, shown, sql_markup

RECIPE = """
name = "shop"
description = "Questions about a shop"
seed = 3
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
[[stage]]
kind = "finetune"
[[stage]]
kind = "quantize"
"""
QUERY = "SELECT name FROM customers WHERE city = 'Lyon'"


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, text; and whether every element is closed."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data + " "


def stage(folder: Path, name: str, **values) -> None:
    path = folder / "stages" / name
    path.mkdir(parents=True)
    result = {"kind": name[3:], "name": name, "fingerprint": "f", "finished": True} | values
    (path / "result.json").write_text(json.dumps(result), encoding="utf-8")


def sample(output: str, correct: bool | None = None, prompt: str = "Who lives in Lyon?", **more) -> dict:
    return {"set": "new values", "prompt": prompt, "reference": QUERY, "output": output, "correct": correct} | more


def lines(folder: Path, *entries: dict) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def alignment(**more) -> dict:
    """What a stage of reinforcement learning leaves: outcomes of three prompts before and after."""
    before = {"rewards": [-1.0, 0.0, 1.0], "parts": {"tone": [-1.0, 0.0, 1.0], "length": [0, 0, 0]},
              "true": {"words": [0.2, 0.1, 0.3]}, "lengths": [9, 11, 10], "repetition": 0.05, "ended_fraction": 1.0,
              "perplexity": 40.0, "texts": ["dull", "it is <b>long</b>", "so so"]}  # fmt: skip
    after = before | {"rewards": [2.0, 2.5, 3.0], "perplexity": 60.0, "texts": ["a joy", "a treat", "a delight"]}
    compared = {"prompts": ["the film is", "a story", "it 's"], "controls": [], "gain": 3.06}
    return compared | {"before": before, "after": after} | more


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with every part."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    lines(
        folder,
        *(
            {"stage": "02-pretrain", "step": i, "loss": 7 / i, "learning_rate": 3e-3, "tokens": 9 * i}
            for i in range(1, 200)
        ),
        {"stage": "02-pretrain", "step": 199, "validation_loss": 1.5},
        *({"stage": "03-finetune", "step": i, "loss": 0.5, "reward_margin": i / 9} for i in range(1, 9)),
    )
    stage(folder, "01-tokenizer", seconds=2.0, notes=["1,024 tokens"])
    costs = {"peak_memory_bytes": 1.5e9, "flops": 4e14, "tokens": 6_000_000, "training_seconds": 60.0}
    sizes = {"parameters": 3_210_000, "trainable_parameters": 3_210_000, "model_bytes": 12_900_000}
    stage(
        folder,
        "02-pretrain",
        seconds=100.0,
        **costs,
        **sizes,
        perplexity=4.48,
        validation_loss=1.5,
        scores={"new values": {"execution_accuracy": 0.125, "exact_match": 0.1, "count": 200}},
        samples=[sample("SELECT 1", False)],
    )
    stage(
        folder,
        "03-finetune",
        seconds=70.0,
        **costs,
        **sizes,
        generation_tokens_per_second=5000.0,
        scores={"new values": {"execution_accuracy": 0.955, "exact_match": 0.9, "count": 200}},
        samples=[sample(QUERY, True)],
    )
    stage(
        folder,
        "04-quantize",
        compressed=True,
        seconds=3.0,
        **(sizes | {"model_bytes": 3_600_000}),
        generation_tokens_per_second=6000.0,
        scores={"new values": {"execution_accuracy": 0.95, "exact_match": 0.9, "count": 200}},
        baselines={"new values": {"name": "the commonest", "execution_accuracy": 0.02}},
        kinds={"new values": {"join2": {"right": 3, "count": 8}, "count": {"right": 1_000, "count": 1_000}}},
        samples=[sample(QUERY, True)],
    )
    return folder


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_everything_is_there(run):
    text = re.sub(r"\s+", " ", page(run).text)
    for wanted in (
        "Questions about a shop",
        "A model of 3.21 M parameters, trained in 2 min 55 s",
        "95.0 % new values execution accuracy, from 12.5 % after pretrain; baseline 2.0 %",
        "Right answers by kind of question",
        "new values join2 3 of 8 new values count 1,000 of 1,000",
        "loss 7.000 → 0.035 · validation loss 1.500",
        "3.58 times smaller; 1.20 times the speed; new values: 95.5 % → 95.0 %",
        "pretrain 1 min 40 s 1.5 GB 6.00 M 100,000 400 TFLOP",
        "the whole run 2 min 55 s 1.5 GB 12.0 M 800 TFLOP",
        "quantize 3.21 M 3.21 M 3.6 MB 6,000 – –",
        "reward margin",
        "tokenizer : 1,024 tokens",
        "seed 3",
        'kind = "quantize"',
        "Wrong before, right after 1 of 1",
        "after quantize ✓ right the same as after finetune",
    ):
        assert wanted in text, wanted
    assert "not finished" not in text and "None" not in text and "nan" not in text


def test_it_asks_nothing_of_anyone(run):
    html = write_report(run).read_text(encoding="utf-8")
    found = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(found.tags)
    assert not [
        (key, value) for key, value in found.attributes if key in ("src", "href", "action") or key.startswith("on")
    ]
    assert "url(" not in html and "@import" not in html
    assert set(re.findall(r"https?://[^\"<\s]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html


def test_writing_it_again_changes_nothing(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_hostile_output_is_shown_and_does_nothing(run):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;\x00\x1b[31m\u202egnp\ud800"
    samples = [sample(evil, False, prompt=evil, set=evil, detail=evil)]
    stage(run, f"05-{'x' * 30}", kind=evil, notes=[evil], samples=samples, scores={evil: {evil: 0.5, "count": 3}})
    (run / "recipe.toml").write_text(
        f"name = '''{'<script>x</script>'}'''\ndescription = '<b onclick=1>'\n", encoding="utf-8"
    )
    lines(run, *({"stage": evil, "step": i, "loss": 1.0, evil: 2.0} for i in range(3)))
    found = page(run)
    assert not {"script", "img"} & set(found.tags)
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in found.text and "<b onclick=1>" in found.text
    assert "\x00" not in found.text and "\u202e" not in found.text and "\N{SYMBOL FOR NULL}" in found.text


def test_hostile_sql_is_escaped_piece_by_piece():
    markup = str(sql_markup("select '<script>' from <b> where x = 1"))
    assert markup.split("\n") == [
        '<span class="keyword">select</span> <span class="literal">&#39;&lt;script&gt;&#39;</span>',
        '<span class="keyword">from</span> &lt;b&gt;',
        '<span class="keyword">where</span> x = <span class="literal">1</span>',
    ]


def test_clauses_inside_strings_and_subqueries_stay_in_their_line():
    plain = re.sub(
        r"<[^>]+>", "", str(sql_markup("SELECT a FROM t LEFT JOIN u WHERE b IN (SELECT c FROM v) AND d = ' FROM '"))
    )
    assert plain.split("\n") == [
        "SELECT a",
        "FROM t",
        "LEFT JOIN u",
        "WHERE b IN (SELECT c FROM v) AND d = &#39; FROM &#39;",
    ]


def test_a_run_that_is_going_on(run):
    for name in ("03-finetune", "04-quantize"):
        (run / "stages" / name / "result.json").unlink()
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"stage": "03-finetune", "step": 9, "lo')
    text = page(run).text
    assert "This run is not finished. 2 stages are done of 4." in text
    assert "Unreadable" not in text


@pytest.mark.parametrize("left", ["recipe.toml", "metrics.jsonl", "stages"])
def test_one_part_alone_is_enough(run, tmp_path, left):
    folder = tmp_path / "part"
    folder.mkdir()
    (run / left).rename(folder / left)
    text = page(folder).text
    assert {"recipe.toml": "Questions about a shop", "metrics.jsonl": "Training curves", "stages": "95.5 %"}[
        left
    ] in text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(run):
    (run / "recipe.toml").write_bytes(b"\xff\xfe = [")
    (run / "stages" / "02-pretrain" / "result.json").write_text("{", encoding="utf-8")
    (run / "metrics.jsonl").write_text("[]\nnot json\n{}\n", encoding="utf-8")
    text = page(run).text
    assert "recipe.toml, stages/02-pretrain/result.json, metrics.jsonl (3 lines)" in text


@pytest.mark.parametrize("recipe", ["x = " + "[" * 5000, "a = 1" + "0" * 5000, "\0"])
def test_recipes_that_no_parser_likes(run, recipe):
    (run / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert "omitted: recipe.toml" in page(run).text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_pipes_are_not_waited_for(run):
    for name in ("recipe.toml", "metrics.jsonl", "stages/02-pretrain/result.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    assert "omitted: recipe.toml, stages/02-pretrain/result.json, metrics.jsonl" in page(run).text


def test_losses_that_are_not_finite(run):
    values = [3.0, math.nan, None, math.inf, 1e300, 2.0, 1.0]
    lines(run, *({"stage": "02-pretrain", "step": i, "loss": value} for i, value in enumerate(values)))
    assert "4 values are not finite" in page(run).text


def test_a_step_written_twice_counts_as_last_written(run):
    lines(
        run,
        *(
            {"stage": "02-pretrain", "step": s, "loss": x}
            for s, x in [(1, 5.0), (2, 4.0), (3, 9.0), (2, 3.5), (3, 3.0)]
        ),
    )
    curve = next(stage for stage in read_run(run).stages if stage.name == "02-pretrain").curves["loss"]
    assert (curve.steps, curve.values) == ([1, 2, 3], [5.0, 3.5, 3.0])


def test_a_long_run_gives_a_small_page(run):
    lines(run, *({"stage": "02-pretrain", "step": i, "loss": 1 + 1 / (1 + i)} for i in range(100_000)))
    assert write_report(run).stat().st_size < 400_000


def test_samples_are_told_apart_by_how_they_went(run):
    before = [sample("x", ok, prompt=f"question {i}") for i, ok in enumerate([False, True, False, True])]
    after = [sample("y", ok, prompt=f"question {i}") for i, ok in enumerate([True, False, False, True])]
    for name, samples in (("02-pretrain", before), ("03-finetune", after), ("04-quantize", [])):
        path = run / "stages" / name / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"samples": samples}), encoding="utf-8")
    html = write_report(run).read_text(encoding="utf-8")
    groups = re.split(r'<div class="group (\w+)">', html)[1:]
    found = {key: re.findall(r"question \d", body) for key, body in zip(groups[::2], groups[1::2], strict=True)}
    assert found == {
        "learned": ["question 0"],
        "lost": ["question 1"],
        "wrong": ["question 2"],
        "right": ["question 3"],
    }


def test_free_text_has_no_verdict(run):
    path = run / "stages" / "02-pretrain" / "result.json"
    free = [{"set": "temperature 0.8", "prompt": "It was", "output": "dark\n and late", "temperature": 0.8}]
    path.write_text(json.dumps({"kind": "pretrain", "finished": True, "samples": free}), encoding="utf-8")
    for name in ("03-finetune", "04-quantize"):
        (run / "stages" / name / "result.json").unlink()
    found = page(run)
    assert "dark\n and late" in found.text and "after pretrain, temperature 0.8" in found.text
    assert not re.search("✓|✗|expected|SELECT", found.text)


def test_an_alignment_shows_its_alarms_its_rewards_and_its_completions(run):
    alarm = {"kind": "reward_hacking", "step": 30, "text": "reward hacking: read <them>.", "metrics": ["reward"]}
    entries = [
        {"stage": "05-ppo", "step": step, "reward": step / 9, "reward/tone": 1.0, "kl": 0.1, "true/words": -step}
        for step in range(1, 41)
    ]
    entries[29]["alarms"] = [alarm]
    lines(run, *entries)
    stage(run, "05-ppo", alignment=alignment(), seconds=3.0)
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    for text in (
        "Step 30 : reward hacking: read <them>.",
        "+3.06 standard deviations of the rewards before",
        "perplexity under the model before 40 60 1.50 times",
        "reward: tone",
        "mean 0 before, 2.5 after",
        "reward (learned from)",
        "true/words (held out, not learned from)",
        "it is <b>long</b>",
        "a treat",
        "reward 2.50 · words 0.10",
    ):
        assert text in " ".join(page.text.split()), text
    assert html.count('class="alarm"') == 2  # a line and its flag, in the chart of the reward alone
    assert "The watched metrics raised no alarm." not in page.text
    lines(run, *({key: value for key, value in entry.items() if key != "alarms"} for entry in entries))
    assert "The watched metrics raised no alarm." in Page(write_report(run).read_text(encoding="utf-8")).text


def test_rewards_are_drawn_for_each_control(run):
    stage(run, "05-ppo", alignment=alignment(controls=["negative", "neutral", "negative"]))
    text = " ".join(Page(write_report(run).read_text(encoding="utf-8")).text.split())
    assert "asked for: negative mean 0 before, 2.5 after" in text  # of the first and the third
    assert "asked for: neutral mean 0 before, 2.5 after" in text and "asked for: positive" not in text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "kind finished seconds peak_memory_bytes flops tokens training_seconds parameters trainable_parameters model_bytes "
    "generation_tokens_per_second perplexity validation_loss scores samples notes"
).split()
odd_outcomes = json_values | st.fixed_dictionaries({}, optional={key: json_values for key in alignment()["before"]})
odd_alignment = st.fixed_dictionaries(
    {"before": odd_outcomes, "after": odd_outcomes},
    optional={key: json_values for key in ("prompts", "controls", "gain")},
)
odd_results = (
    st.fixed_dictionaries({}, optional={key: json_values for key in KEYS} | {"alignment": odd_alignment}) | json_values
)
odd_samples = st.lists(st.fixed_dictionaries({}, optional={key: json_values for key in sample("")}), max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    result=odd_results,
    samples=odd_samples,
    entries=st.lists(
        json_values
        | st.fixed_dictionaries(
            {"stage": st.just("02-pretrain")}
            | {key: json_values for key in ("step", "loss", "validation_loss", "reward", "true/words", "alarms")}
        ),
        max_size=4,
    ),
)
def test_no_content_breaks_it(run, result, samples, entries):
    if isinstance(result, dict):
        result.setdefault("samples", samples)
    for name in ("02-pretrain", "04-quantize"):
        (run / "stages" / name / "result.json").write_text(json.dumps(result), encoding="utf-8")
    lines(run, *entries)
    assert "shop" in page(run).text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.424, "0.42 s"), (12.34, "12.3 s"), (59.97, "1 min 0 s"), (252, "4 min 12 s"), (7500, "2 h 5 min"), (None, "–")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3_210_000, "3.21 M"), (850, "850"), (999_600, "1.00 M"), (45e12, "45.0 T"), (0, "0")]
)
def test_amounts(value, text):
    assert amount(value) == text


def test_metrics_are_shares_only_where_their_name_says_so():
    assert metric("execution_accuracy", 0.955) == "95.5 %"
    assert metric("bleu", 0.955) == "0.955"
    assert metric("accuracy", 12.5) == "12.5"


def test_the_interval_is_wilsons():
    low, high = interval(0.9, 100)
    assert (low, high) == (pytest.approx(0.8256, abs=1e-3), pytest.approx(0.9448, abs=1e-3))
    assert interval(1.0, 10)[1] == pytest.approx(1.0) and interval(0.5, 0) is None


def test_marks_that_hide_or_turn_text_are_made_visible():
    assert shown("a\x07b\u2066c\n\td\x85") == "a\u2407b\N{REPLACEMENT CHARACTER}c\n\td\N{REPLACEMENT CHARACTER}"


def test_temperatures_stand_side_by_side(run):
    path = run / "stages" / "02-pretrain" / "result.json"
    asked = [(prompt, warmth) for warmth in (0.5, 0.8, 1.1) for prompt in ("It was", "She said")]
    free = [{"set": f"temperature {t}", "prompt": p, "output": f"{p} {t}", "temperature": t} for p, t in asked]
    path.write_text(json.dumps({"kind": "pretrain", "finished": True, "samples": free}), encoding="utf-8")
    for name in ("03-finetune", "04-quantize"):
        (run / "stages" / name / "result.json").unlink()
    html = write_report(run).read_text(encoding="utf-8")
    articles = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert len(articles) == 2
    assert re.findall(r"temperature (\S+?)</p>", articles[0]) == ["0.5", "0.8", "1.1"]
    assert "<h2>Samples</h2>" in html


def test_what_is_still_to_come_is_said(run):
    for name in ("03-finetune", "04-quantize"):
        (run / "stages" / name / "result.json").unlink()
        (run / "stages" / name).rmdir()
    (run / "metrics.jsonl").unlink()
    html = write_report(run).read_text(encoding="utf-8")
    steps = re.findall(r"<b>([\w-]+)</b> <span>(.*?)</span></li>", html)
    assert steps == [
        ("tokenizer", "2.0 s"),
        ("pretrain", "1 min 40 s"),
        ("finetune", "to come"),
        ("quantize", "to come"),
    ]


def test_labels_taken_for_each_other_and_memory_are_drawn(run):
    path = run / "stages" / "03-finetune" / "result.json"
    known = json.loads(path.read_text())
    known["confusion"] = {"labels": ["good", "<bad>"], "counts": [[90, 10], [4, 16]]}
    known["by_label"] = [{"label": "<bad>", "precision": 16 / 26, "recall": 0.8, "f1": 0.7, "count": 20}]
    known["memory"] = {"weights": 4e6, "gradients": 4e6, "optimizer": 8e6, "activations": 2e7, "logits": 0, "peak": 3e8}
    path.write_text(json.dumps(known), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "&lt;bad&gt;, predicted as good: 4 of 20" in page and "<bad>" not in page
    assert "10 × good predicted as &lt;bad&gt; · 4 × &lt;bad&gt; predicted as good" in page
    assert "80.0 %" in page and "300 MB at the peak" in page and "activations 20.0 MB" in page
    known["confusion"]["counts"] = [[1, 2]]  # no table
    path.write_text(json.dumps(known | {"by_label": "odd", "memory": []}), encoding="utf-8")
    assert "Confusion matrix" not in write_report(run).read_text(encoding="utf-8")


def test_what_a_model_says_is_shown_step_by_step(run):
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        for step in range(10, 130, 10):
            said = [{"prompt": "To <be>", "output": f"or {step}"}, "odd"]
            file.write(json.dumps({"stage": "02-pretrain", "step": step, "samples": said}) + "\n")
    page = write_report(run).read_text(encoding="utf-8")
    part = page.split("Samples during training")[1].split("</section>")[0]
    assert "To &lt;be&gt;" in part
    found = re.findall(r"<th scope=\"row\">step (\d+)</th><td><pre>or (\d+)</pre>", part)
    assert all(step == said for step, said in found)
    assert [int(step) for step, _ in found][:1] == [10] and int(found[-1][0]) == 120 and len(found) == 8
