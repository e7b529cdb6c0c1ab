"""Preference data in every shape: pairs, judged, ranked and scored answers, thumbs; their summary in the check."""

import json
import os
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.data.checking import check
from quatrain.data.documents import detect, read_preferences, read_ratings

DATA = Path(os.environ.get("QUATRAIN_DATA", "no data")) / "preference"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the data folder")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def short(records):
    """Pairs as (prompt, chosen, rejected, margin), rated answers as (prompt, answer, label), by their last texts."""
    result = []
    for record in records:
        texts = [messages[-1]["content"] for messages in list(vars(record).values())[:-1]]
        result.append((*texts, list(vars(record).values())[-1]))
    return result


RANKED = [
    ({"prompt": "p", "answers": ["x", "y", "z"], "ranks": [2, 1, 2]}, [("p", "y", "x", None), ("p", "y", "z", None)]),
    (
        {"prompt": "p", "answers": ["x", "y", "z"], "ranking": [2, 0, 1]},
        [("p", "z", "x", None), ("p", "z", "y", None), ("p", "x", "y", None)],
    ),
    ({"prompt": "p", "responses": ["x", "y"], "scores": [0.5, 2]}, [("p", "y", "x", 1.5)]),
    ({"prompt": "p", "responses": ["x", "y"], "scores": [2, 2]}, []),
    (
        {"instruction": "p", "completions": [{"response": "x", "overall_score": 3},
                                             {"response": "y", "overall_score": 8},
                                             {"response": "z", "overall_score": None}]},
        [("p", "y", "x", 5.0)],
    ),
    ({"prompt": "p", "answers": ["x", "y"], "choice": "b"}, [("p", "y", "x", None)]),
    ({"prompt": "p", "answers": ["x", "y"], "choice": "tie"}, []),
    ({"history": "p", "human_ref_A": "x", "human_ref_B": "y", "labels": 0, "score_A": 3, "score_B": 7},
     [("p", "y", "x", 4.0)]),
    ({"prompt": "p", "chosen": [user("p"), assistant("x")], "rejected": [user("p"), assistant("y")],
      "score_chosen": 8.5, "score_rejected": 6}, [("p", "x", "y", 2.5)]),
    ({"prompt": "p", "chosen": "x", "rejected": "y", "margin": 2}, [("p", "x", "y", 2.0)]),
    ({"instruction": "p", "output_1": "x", "output_2": "y", "preference": 1.5}, []),
]  # fmt: skip


@pytest.mark.parametrize(("row", "pairs"), RANKED)
def test_answers_become_pairs(tmp_path, row, pairs):
    always = {"prompt": "q", "chosen": "1", "rejected": "2"}
    path = write(tmp_path, row, always)
    assert short(read_preferences(path)) == [*pairs, ("q", "1", "2", None)]
    assert detect(write(tmp_path, row)) == "preference"


RATED = [
    ({"prompt": "p", "completion": "x", "label": True}, [("p", "x", True)]),
    ({"prompt": [user("p")], "completion": [assistant("x")], "label": 0}, [("p", "x", False)]),
    ({"prompt": "p", "completion": "x", "label": "👎"}, [("p", "x", False)]),
    ({"completion": "\n\nHuman: p\n\nAssistant: x", "label": "up"}, [("p", "x", True)]),
    ({"messages": [user("p"), assistant("x")], "label": 1.0}, [("p", "x", True)]),
    ({"prompt": "p", "chosen": "x", "rejected": "y"}, [("p", "x", True), ("p", "y", False)]),
    ({"prompt": "p", "answers": ["x", "y"], "choice": "b"}, [("p", "y", True), ("p", "x", False)]),
    ({"prompt": "p", "answers": ["x", "y"], "choice": "both_bad"}, [("p", "x", False), ("p", "y", False)]),
    ({"prompt": "p", "answers": ["x", "y"], "choice": "skip"}, []),
]


@pytest.mark.parametrize(("row", "ratings"), RATED)
def test_answers_become_rated(tmp_path, row, ratings):
    always = {"prompt": "q", "completion": "1", "label": True}
    assert short(read_ratings(write(tmp_path, row, always))) == [*ratings, ("q", "1", True)]


def test_rated_answers_are_detected(tmp_path):
    assert detect(write(tmp_path, {"prompt": "p", "completion": "x", "label": True})) == "rated"
    assert detect(write(tmp_path, {"prompt": "p", "completion": "x"})) == "chat"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "answers": ["x", "y"], "choice": "c"}, "allowed are a, b, tie, both_bad, skip"),
        ({"prompt": "p", "answers": ["x"], "choice": "a"}, "must be the two answers"),
        ({"prompt": "p", "answers": ["x", "y"], "scores": [1]}, "must be a list of 2 numbers"),
        ({"prompt": "p", "answers": ["x", "y"], "scores": [1, "good"]}, '"good" is not a number'),
        ({"prompt": "p", "answers": ["x", "y"], "ranking": [1, 1]}, "must hold each place of 'answers', 0 to 1"),
        ({"prompt": "p", "answers": ["x", "y"]}, "the answers have no order"),
        ({"prompt": "p", "answers": [{"model": "m"}], "ranks": [1]}, "'answers[0]': no text"),
        ({"answers": ["x", "y"], "ranks": [1, 2]}, "no prompt"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "margin": "wide"}, "field 'margin'"),
        ({"history": "p", "human_ref_A": "x", "human_ref_B": "y", "labels": 2}, "allowed are 1 (A) and 0 (B)"),
    ],
)
def test_faults_are_named(tmp_path, row, words):
    with pytest.raises(InputError) as caught:
        list(read_preferences(write(tmp_path, row)))
    assert words in caught.value.problems[0] and "rows.jsonl:1" in caught.value.problems[0]


def test_faults_of_ratings(tmp_path):
    for row, words in (
        ({"prompt": "p", "completion": "x", "label": 3}, "allowed are true or false, 1 or 0, up or down"),
        ({"prompt": "p", "completion": "x"}, "no rated answer; write"),
    ):
        with pytest.raises(InputError) as caught:
            list(read_ratings(write(tmp_path, row)))
        assert words in caught.value.problems[0]


def test_the_check_describes_pairs(tmp_path, capsys):
    rows = [
        {"prompt": "p", "chosen": "xx", "rejected": "y", "margin": 1},
        {"prompt": "p", "chosen": "y", "rejected": "xx", "margin": 2},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "r", "answers": ["a", "b"], "choice": "tie"},
        {"chosen": [user("s"), assistant("1"), user("t"), assistant("2")], "rejected": [user("s"), assistant("3")]},
    ]
    report = check(write(tmp_path, *rows))
    assert report.preferences == {
        "pairs": 5, "ties": 1, "identical": 1, "prompts": 3, "contradictions": 1, "shorter_wins": 0.375,
        "mean_margin": 1.5,
    }  # fmt: skip
    assert report.fault_count == 1 and "chosen and rejected are the same" in report.faults[0].text
    assert any("their prompts are not the same" in each.text for each in report.warnings)
    from quatrain.cli import main

    assert main(["data", "check", str(tmp_path / "rows.jsonl")]) == 2
    shown = capsys.readouterr().out
    assert "5 pairs of 3 prompts, 1 ties, 1 with identical answers, 1 that contradict another" in shown
    assert "the shorter answer wins in 37.5%" in shown


def test_the_check_describes_thumbs(tmp_path, capsys):
    rows = [{"prompt": "p", "completion": text, "label": text < "c"} for text in "abcd"]
    assert check(write(tmp_path, *rows)).preferences == {"up": 2, "down": 2, "prompts": 1}
    from quatrain.cli import main

    assert main(["data", "check", str(tmp_path / "rows.jsonl")]) == 0
    assert "2 up and 2 down (50.0% up), 1 prompts" in capsys.readouterr().out


@needs_data
def test_real_preferences():
    counts = check(DATA / "hh_rlhf_harmless_1700.jsonl.gz").preferences
    assert (counts["pairs"], counts["prompts"], counts["identical"]) == (1700, 1698, 0)
    assert counts["shorter_wins"] == pytest.approx(0.552, abs=1e-3)
    judged = list(read_preferences(DATA / "alpaca_eval_gpt4_judgements.jsonl.gz"))
    assert len(judged) == 1592 and len(list(read_ratings(DATA / "alpaca_eval_gpt4_judgements.jsonl.gz"))) == 2 * 1592
