"""Two models on the same questions: paired differences, what they answer apart, pages and leaderboards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import make_folder

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.evaluation.compare import Contestant, compare, leaderboard, verdict
from quatrain.evaluation.report.model_comparison import label_of, write_comparison


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of random weights and thirty questions."""
    folder = tmp_path_factory.mktemp("compare")
    rows = [
        {"question": f"What is {number} <b>?", "choices": ["one", "two or more", f"{number}!"], "answer": number % 3}
        for number in range(30)
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "a": make_folder(folder / "a", context=256),
        "b": make_folder(folder / "b", context=256, seed=1),
        "questions": folder / "q.jsonl",
    }


def test_models_are_compared_on_the_same_questions(places, tmp_path):
    names = [str(places["a"]), str(places["b"]), f"{places['a']}@quantize=int8"]
    found = compare(names, f"choice:{places['questions']}", folder=tmp_path)
    assert [model["name"] for model in found["models"]] == names and len(found["pairs"]) == 3
    one, other = found["models"][:2]
    pair = found["pairs"][0]
    for mine, theirs, apart in zip(one["scores"], other["scores"], pair["scores"], strict=True):
        assert apart["value"] == pytest.approx(mine["value"] - theirs["value"])
        assert apart["interval"][0] <= apart["value"] <= apart["interval"][1]
    test = pair["mcnemar"]
    assert test["only_first"] - test["only_second"] == pytest.approx(30 * pair["scores"][0]["value"])
    assert found["differing"]["of"] == 30
    assert all(len(set(each["correct"])) > 1 for each in found["differing"]["examples"])
    assert one["size"]["parameters"] and one["size"]["file_bytes"] and one["speed"]["examples_per_second"]
    assert found["models"][2]["size"]["bytes"] < one["size"]["bytes"]
    again = compare(names, f"choice:{places['questions']}", folder=tmp_path)
    assert again == found  # nothing is asked again, and the resamples are the same


def test_the_page_is_self_contained(places, tmp_path):
    found = compare([str(places["a"]), str(places["b"])], f"choice:{places['questions']}", folder=tmp_path)
    page = write_comparison(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert not any(each in page for each in ("<script", "src=", "href=", "url(", "@import"))
    assert "&lt;b&gt;?" in page and "<b>?" not in page and "McNemar" in page and "within noise" in page
    board = write_comparison(leaderboard(tmp_path), tmp_path / "board.html").read_text(encoding="utf-8")
    assert "longest answer" in board and str(places["b"]) in board


def test_the_leaderboard_ranks_all_results(places, tmp_path):
    for name in ("a", "b"):
        words = [
            "evaluate",
            str(places[name]),
            f"choice:{places['questions']}",
            "--output",
            str(tmp_path / name),
            "--json",
        ]
        assert main(words) == 0
    (tmp_path / "broken-0123456789ab.json").write_text("{")
    found = leaderboard(tmp_path)
    (board,) = found["suites"]
    values = [row["value"] for row in board["rows"]]
    assert len(values) == 2 and values == sorted(values, reverse=True)
    assert found["damaged"] == [str(tmp_path / "broken-0123456789ab.json")]


def test_the_verb_shows_what_the_api_finds(places, tmp_path, capsys):
    words = ["compare", str(places["a"]), str(places["b"]), "--suite", f"choice:{places['questions']}"]
    words += ["--output", str(tmp_path), "--page", str(tmp_path / "page.html"), "--limit", "10"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 10 and (tmp_path / "page.html").is_file()
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "McNemar's exact test" in shown and "They differ on" in shown
    assert main(["compare", str(tmp_path)]) == 0
    assert "longest answer" in capsys.readouterr().out


def test_settings_are_read_and_wrong_ones_refused():
    found = Contestant.of("owner/name@quantize=int8,shots=2,chat=no")
    assert (found.model, found.quantize, dict(found.options)) == ("owner/name", "int8", {"shots": 2, "chat": False})
    assert Contestant.of("user@host/model").model == "user@host/model"
    with pytest.raises(InputError) as caught:
        Contestant.of("m@shots=x,colour=red")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b"], ["a", "--suite", "choice"], ["a", "a", "--suite", "gsm8k"]])
def test_wrong_comparisons_are_refused(words, capsys):
    assert main(["compare", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_verdicts_and_labels():
    entry = {"value": 0.1, "is_clear": True, "higher_is_better": True}
    assert verdict(entry) == "better" and verdict(entry | {"higher_is_better": False}) == "worse"
    assert verdict(entry | {"is_clear": False}) == "within noise"
    assert label_of("runs/sql/model@quantize=int8") == "sql@int8"


def test_the_leaderboard_has_the_scores_of_runs(tmp_path):
    for name, share in (("good", 0.9), ("bad", 0.1)):
        stage = tmp_path / name / "stages" / "01-finetune"
        stage.mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
        result = {"kind": "finetune", "scores": {"new": {"accuracy": share, "count": 50}},
                  "baselines": {"new": {"name": "guess", "accuracy": 0.5}}}  # fmt: skip
        (stage / "result.json").write_text(json.dumps(result))
    (board,) = leaderboard(tmp_path)["suites"]
    assert [row["value"] for row in board["rows"]] == [0.9, 0.1]
    assert [row["below"] for row in board["rows"]] == [[], ["guess"]]
    assert board["rows"][0]["interval"][0] < 0.9 < board["rows"][0]["interval"][1]
