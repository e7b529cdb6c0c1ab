"""`quatrain prompt`: previews, comparisons and searches on a tiny model, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import make_folder

from quatrain.cli import main
from quatrain.tasks.prompting.prompt import load_prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("models") / "tiny", context=300))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A file to draw shots from, and one to ask about; the second has a review of the first."""
    place = tmp_path_factory.mktemp("data")
    rows = [
        {"text": f"film {number} is {'good' if number % 2 else 'bad'}", "label": number % 2} for number in range(30)
    ]
    for name, chosen in (("pool.jsonl", rows[:25]), ("asked.jsonl", rows[24:])):
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return str(place / "pool.jsonl"), str(place / "asked.jsonl")


def test_a_preview_shows_what_is_read(model, capsys):
    words = ["prompt", "preview", model, "arithmetic", "--templates", "arithmetic", "--template", "question-answer"]
    assert main([*words, "--shots", "2"]) == 0
    shown = capsys.readouterr().out
    assert "<|im_start|>assistant" in shown and "shot 1" in shown and "of 300" in shown
    assert main([*words, "--shots", "2", "--shots", "40", "--style", "text", "--json"]) == 0
    small, large = map(json.loads, capsys.readouterr().out.splitlines())
    assert small["dropped"] == 0 and large["dropped"] > 0 and large["fits"] and large["tokens"] + 64 <= 300
    assert sum(large["parts"].values()) == large["tokens"] == len(large["ids"])


@pytest.mark.slow
def test_a_question_to_a_database_is_a_generated_one_and_leaves_no_file(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prompt", "preview", model, "shop", "--templates", "sql", "--shots", "1", "--template", "plain",
                 "--json"]) == 0  # fmt: skip
    assert "SELECT" in json.loads(capsys.readouterr().out)["text"]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_comparison_of_the_users_file(model, reviews, tmp_path, capsys):
    pool, asked = reviews
    words = ["prompt", "compare", model, asked, "--pool", pool, "--templates", "sentiment", "--template", "plain"]
    words += [
        "--shots",
        "0",
        "--shots",
        "2",
        "--selection",
        "balanced",
        "--max-new-tokens",
        "4",
        "--out",
        str(tmp_path),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "baseline: the most frequent class" in shown and "plain, 2 shots balanced" in shown
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sets"]["test"]
    assert [result["shots"] for result in found["results"]] == [0, 2] and found["results"][0]["scores"]["count"] == 6
    kept = [load_prompt(path) for path in sorted(tmp_path.glob("*.toml"))]
    assert len(kept) == 2 and all(len(file.score) == 2 and file.score[0].model == model for file in kept)
    assert (
        main(["prompt", "compare", model, asked, "--pool", pool, "--prompt", str(next(tmp_path.glob("*.toml")))]) == 0
    )


def test_a_search_scores_the_best_prompt_once(model, reviews, capsys):
    pool, asked = reviews
    words = ["prompt", "search", model, asked, "--pool", pool, "--templates", "sentiment", "--decide", "likelihood"]
    assert main([*words, "--shots", "0", "--shots", "2", "--template", "plain", "--template", "it-was", "--json"]) == 0
    sets = json.loads(capsys.readouterr().out)["sets"]
    assert list(sets) == ["development", "test (the best prompt)"]
    best = max(result["scores"]["accuracy"] for result in sets["development"]["results"])
    (chosen,) = sets["test (the best prompt)"]["results"]
    found = next(each for each in sets["development"]["results"] if each["prompt"] == chosen["prompt"])
    assert found["scores"]["accuracy"] == best and len(sets["development"]["results"]) == 4


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["compare", "arithmetic", "--template", "nothing"], "unknown"),
        (["compare", "arithmetic", "--shots", "-1"], "shots"),
        (["compare", "arithmetic", "--votes", "3"], "samples at temperature 0 are equal"),
        (["compare", "arithmetic", "--selection", "similar", "--shots", "1"], "needs embedder"),
        (["compare", "nothing-here"], "nothing-here"),
        (["compare", "arithmetic", "--prompt", "none.toml"], "no such file"),
        (["search", "arithmetic", "--temperature", "-1"], "temperature"),
        (["preview", "arithmetic", "--number", "0"], "--number 0"),
    ],
)
def test_wrong_input_is_told(model, words, part, capsys):
    verb, data, *more = words
    assert main(["prompt", verb, model, data, *more]) == 2
    told = capsys.readouterr().err
    assert part in told and "Traceback" not in told


def test_wrong_data_is_told(model, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main(["prompt", "compare", model, str(empty)]) == 2
    text = Path(tmp_path / "story.txt")
    text.write_text("Once upon a time.")
    assert main(["prompt", "compare", model, str(text)]) == 2
    assert "have no answer to prompt for" in capsys.readouterr().err


def test_an_endpoint_that_is_not_there_is_told(monkeypatch, capsys):
    monkeypatch.setattr("quatrain.generation.endpoint.time.sleep", lambda seconds: None)
    assert main(["prompt", "compare", "http://127.0.0.1:9/v1#a", "arithmetic", "--examples", "2"]) == 1
    assert "Is the server running?" in capsys.readouterr().err
