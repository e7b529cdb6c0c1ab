"""Checks of support on statements whose truth is known: what words see, what they miss, and a model as the judge."""

import json

import pytest

from quatrain.core.errors import InputError
from quatrain.evaluation.faithfulness import Statement, altered_statements, labelled_statements, measure_support

pytest.importorskip("bm25s")
pytest.importorskip("nltk")

ROWS = [
    {"question": f"What is {name}?", "focus": name, "answer":
     f"{name.capitalize()} is a disease of the {part}, and it has {number} known causes. It can be treated by {cure}."}
    for name, part, number, cure in (("measles", "skin", 12, "rest"), ("gout", "joints", 31, "cherries"),
                                     ("asthma", "lungs", 47, "inhalers"))
]  # fmt: skip


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_words_see_numbers_and_topics_and_no_negation(source, tmp_path):
    statements = altered_statements(source, 3)
    kinds = {each.kind for each in statements}
    assert {"verbatim", "negated", "of another document"} <= kinds
    assert all(each.supported == (each.kind in ("verbatim", "shortened")) for each in statements)
    assert all(each.text in each.source for each in statements if each.kind == "verbatim")
    assert not any(each.text in each.source for each in statements if not each.supported)
    found = measure_support(
        statements, tmp_path, {"oracle": lambda one, two: [float(b in a) for a, b in zip(one, two, strict=True)]}
    )
    words, oracle = found["words"], found["oracle"]
    assert words["verbatim"] == words["kept"] == 1 and words["negated"] == 0 < words["of another document"]
    assert oracle["caught"] == 1 and oracle["accuracy"] > words["accuracy"] and 0.5 < words["separation"] <= 1


def test_the_measures_by_hand(tmp_path):
    rows = [("a fox runs", "a fox", True), ("a fox runs", "a dog", False), ("a dog sleeps", "a dog", True),
            ("a dog sleeps", "a cat", False)]  # fmt: skip
    statements = [Statement(*row, "entailment" if row[-1] else "neutral") for row in rows]
    (found,) = [measure_support(statements, tmp_path, {"fixed": lambda *_: [0.9, 0.7, 0.5, 0.1]})["fixed"]]
    assert found == {"accuracy": 0.5, "separation": 0.75, "caught": 0.5, "entailment": 0.5, "kept": 0.5, "neutral": 0.5}


def test_pairs_of_entailment_and_other_columns(tmp_path, source):
    path = tmp_path / "nli.jsonl"
    path.write_text(json.dumps({"premise": "a", "hypothesis": "b", "label": "entailment"}) + "\n")
    assert labelled_statements(str(path)) == [Statement("a", "b", True, "entailment")]
    with pytest.raises(InputError, match="premise, hypothesis and label"):
        labelled_statements(source)
