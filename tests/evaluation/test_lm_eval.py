"""lm-eval's tasks on our engine score what its Hugging Face backend scores on the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_folder

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.evaluation.subject import LocalSubject
from quatrain.evaluation.suite import suite_class
from quatrain.evaluation.suite_run import run_suite

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "Question: {{question}}\\nAnswer:"
        doc_to_choice: "{{choices}}"
        doc_to_target: answer
        metric_list: [{metric: acc, aggregation: mean, higher_is_better: true},
                      {metric: acc_norm, aggregation: mean, higher_is_better: true}]""",
    "rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{question}} {{long}}"
        metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false},
                      {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]""",
    "writing": """
        output_type: generate_until
        doc_to_text: "Q: {{question}}\\nA:"
        doc_to_target: "{{choices[answer]}}"
        generation_kwargs: {until: ["\\n", "e"], max_gen_toks: 12, do_sample: false}
        metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]""",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of random weights and a file for each task, with local data."""
    folder = tmp_path_factory.mktemp("lm-eval")
    rows = [
        {"question": f"What is {number} and {number}?", "choices": [str(2 * number), "many of them", f"{number}!"],
         "answer": number % 3, "long": "a word or two, " * (3 * number)}
        for number in range(10)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        lines = [line.strip() if "metric" not in line else line[8:] for line in text.strip("\n").splitlines()]
        head = f"task: tiny_{name}\ndataset_path: json\ntest_split: test\ntraining_split: test\n"
        data = f"dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}, cache_dir: {folder}/cache}}\n"
        (folder / f"{name}.yaml").write_text(head + data + "\n".join(lines) + "\n")
    make_folder(folder / "model", context=512)
    return {name: folder / f"{name}.yaml" for name in TASKS} | {"model": folder / "model"}


def of_hugging_face(places: dict[str, Path], name: str, shots: int) -> dict[str, Any]:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(places["model"]), device="cpu", batch_size=4, dtype="float32"),
        tasks=[f"tiny_{name}"],
        task_manager=TaskManager(include_path=str(places[name].parent), include_defaults=False),
        num_fewshot=shots,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
        bootstrap_iters=10,
        log_samples=True,
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shots"), [("choice", 0), ("choice", 2), ("rolling", 0), ("writing", 0)])
def test_scores_are_those_of_the_hugging_face_backend(places, name, shots):
    theirs = of_hugging_face(places, name, shots)
    suite = suite_class("lm-eval")(str(places[name]), shots=shots)
    ours = run_suite(LocalSubject(str(places["model"])), suite)
    values = theirs["results"][f"tiny_{name}"]
    found = {score["name"]: score["value"] for score in ours["scores"]}
    expected = {key.split(",")[0]: value for key, value in values.items()
                if "," in key and "stderr" not in key and isinstance(value, float)}  # fmt: skip
    assert found and found == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}
    answers = [str(sample["filtered_resps"]) for sample in theirs["samples"][f"tiny_{name}"]]
    if name == "writing":
        assert [sample["output"] for sample in ours["samples"]] == answers and len(set(answers)) > 1


@pytest.mark.slow
def test_our_suite_of_choices_counts_as_lm_eval(places):
    """The same prompt and answers: acc and acc_norm are lm-eval's."""
    theirs = of_hugging_face(places, "choice", 0)["results"]["tiny_choice"]
    ours = run_suite(
        LocalSubject(str(places["model"])), suite_class("choice")(str(places["model"].parent / "rows.jsonl"))
    )
    found = {score["name"]: score["value"] for score in ours["scores"]}
    assert (found["acc"], found["acc_norm"]) == pytest.approx((theirs["acc,none"], theirs["acc_norm,none"]))


def test_a_prompt_that_lm_eval_would_cut_is_an_error(places, tmp_path):
    suite = suite_class("lm-eval")(str(places["writing"]), shots=9)
    with pytest.raises(InputError, match="would cut them"):
        run_suite(LocalSubject(str(make_folder(tmp_path / "short", context=128))), suite)


def test_wrong_tasks_are_refused(places, tmp_path, capsys):
    model = str(places["model"])
    (tmp_path / "other.yaml").write_text("a: 1\n")
    for name, message in ((f"{tmp_path}/no.yaml", "is not a file"), (f"{tmp_path}/other.yaml", "key `task`")):
        assert main(["evaluate", model, f"lm-eval:{name}"]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", model, "lm-eval"]) == 2


def test_a_result_of_lm_eval_is_stored_and_reproduced(places, tmp_path, capsys):
    words = ["evaluate", str(places["model"]), f"lm-eval:{places['choice']}", "--output", str(tmp_path), "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {score["name"] for score in result["scores"]} == {"acc", "acc_norm"} and result["count"] == 10
    assert main(["evaluate", "--passport", result["file"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["equal"]
