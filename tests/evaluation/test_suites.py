"""Suites: their baselines on the shared data, their questions and counting, storing, resuming and reproducing."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from tiny_models import make_folder

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.data.records import Row
from quatrain.evaluation.subject import Likelihood, LocalSubject, text_windows
from quatrain.evaluation.suite import ChoiceSuite, calibration_error, suite_class, suite_names
from quatrain.evaluation.suite_run import result_of, run_suite
from quatrain.evaluation.suites.gsm8k import last_number, strict_number

DATA = os.environ.get("QUATRAIN_DATA")
shared = pytest.mark.skipif(not DATA or not (Path(DATA) / "eval").is_dir(), reason="QUATRAIN_DATA has no eval/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads 2,048 characters."""
    return make_folder(tmp_path_factory.mktemp("models") / "tiny", context=2048)


def questions(place: Path, count: int = 12) -> Path:
    rows = [{"question": f"How many is {number}?", "choices": ["one", "two and more", "three"], "answer": number % 3}
            for number in range(count)]  # fmt: skip
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_every_file_is_a_suite():
    for name in suite_names():
        kind = suite_class(name)
        assert kind.name == name and kind.title and (kind.data or kind.columns)
    with pytest.raises(InputError, match="gsm8k"):
        suite_class("gsm8")


# Baselines: computed from the data, and equal to what was measured independently.


def baselines(name: str, source: str | None = None, **options) -> dict[str, dict[str, float]]:
    suite = suite_class(name)(source, **options)
    rows = suite.read()
    scored = {}
    for baseline in suite.baselines(rows):
        measures = baseline.measures or suite.measures(rows, baseline.outputs)
        scored[baseline.name] = {measure.name: round(100 * measure.value, 1) for measure in measures}
    return scored


@shared
@pytest.mark.parametrize(("source", "longest"), [("mmlu-validation", 25.8), ("mmlu-test-part", 28.4)])
def test_the_longest_answer_on_mmlu(source, longest):
    found = baselines("mmlu", source)
    assert found["longest answer"]["acc"] == longest
    assert found["chance"]["acc"] == 25.0
    assert found[next(name for name in found if name.startswith("always"))]["acc"] > 25.0


@shared
def test_always_five_on_gsm8k():
    found = baselines("gsm8k")
    assert found["always 5, the most frequent answer"] == {"flexible": 3.5, "strict": 3.5, "strict_text": 3.5}


# Counting


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$29.00.", 29),
        ("so 1,234 apples", 1234),
        ("-7", -7),
        ("#### 5\nQ", 5),
        (".5", 0.5),
        ("3.", 3),
        ("1,000.50.", 1000.5),
    ],
)
def test_numbers_are_compared_by_value(text, value):
    assert float(last_number(text)) == value


def test_strict_and_flexible_differ():
    suite = suite_class("gsm8k")("unused", shots=0)
    row = Row("1", {"question": "q", "answer": "2+2=<<2+2=4>>4\n#### 4"})
    texts = ["The answer is $4.00.", "#### 4", "#### 4.00", "#### 5, not 4", "", "no number"]
    scores = {m.name: m.values.tolist() for m in suite.measures([row] * 6, [{"text": text} for text in texts])}
    assert scores["flexible"] == [1, 1, 1, 1, 0, 0]
    assert scores["strict"] == [0, 1, 1, 0, 0, 0]
    assert scores["strict_text"] == [0, 1, 0, 0, 0, 0]
    assert strict_number("#### $29.00.") == 29


def test_normalized_accuracy_divides_by_bytes():
    class Fixed(LocalSubject):
        """Says log-probabilities that favour the short answer, and per byte the long one."""

        def __init__(self) -> None:
            self.name = "fixed"

        def likelihoods(self, prompts, completions):
            return [Likelihood(-0.5 * len(text.encode()) - (2 if len(text) < 5 else 0), 3) for text in completions]

    suite = suite_class("choice")("unused")
    row = type(
        "R", (), {"place": "1", "value": suite.parse({"question": "q", "choices": ["no", "longer one"], "answer": 1})}
    )()
    output = suite.ask(Fixed(), [row])
    scores = {measure.name: measure.value for measure in suite.measures([row], output)}
    assert scores["acc"] == 0 and scores["acc_norm"] == 1


def test_calibration_error_is_the_distance_of_bins():
    measure = calibration_error([0.95, 0.95, 0.55, 0.55], [1, 0, 1, 1])
    assert measure.value == pytest.approx((2 * abs(0.95 - 0.5) + 2 * abs(0.55 - 1.0)) / 4)
    assert calibration_error([1.0, 1.0], [1, 1]).value == 0


def test_unequal_counts_are_refused():
    suite = suite_class("gsm8k")("unused", shots=0)
    with pytest.raises(InputError, match="2 answers for 1 examples"):
        result_of(suite, [None], [{"text": "1"}, {"text": "2"}])


# Asking


def test_each_token_of_a_text_is_predicted_once():
    for length in range(1, 40):
        ids = list(range(100, 100 + length))
        pairs = text_windows([1], ids, 8)
        assert [token for _, part in pairs for token in part] == ids
        assert all(0 < len(before) + len(part) - 1 <= 8 for before, part in pairs)
        whole = [1, *ids]
        assert all(whole[: whole.index(part[0])][-len(before) :] == before for before, part in pairs)


def test_bits_per_byte_counts_every_byte(folder, tmp_path):
    subject = LocalSubject(str(folder))
    text = "A text of some length. " * 20
    (tmp_path / "text.txt").write_text(text)
    suite = suite_class("perplexity")(str(tmp_path / "text.txt"))
    (row,) = suite.read()
    scores = {m.name: m.value for m in suite.measures([row], suite.ask(subject, [row]))}
    ids = [subject.tokenizer.bos_id or subject.tokenizer.eos_id, *subject.tokenizer.encode(text)]
    logits = subject.network(torch.tensor([ids]))[0][0].detach().log_softmax(-1)
    nats = -sum(float(logits[place - 1, ids[place]]) for place in range(1, len(ids)))
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert scores["token_perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    assert scores["byte_perplexity"] == pytest.approx(2 ** scores["bits_per_byte"])


def test_a_prompt_that_does_not_fit_is_an_error(tmp_path):
    subject = LocalSubject(str(make_folder(tmp_path / "short", context=40)))
    suite = suite_class("choice")(str(questions(tmp_path / "q.jsonl")))
    with pytest.raises(InputError, match=r"12 of 12 prompts do not fit into the model's context of 40 tokens"):
        run_suite(subject, suite)


def test_examples_that_do_not_fit_are_left_out_on_request(tmp_path):
    place = questions(tmp_path / "q.jsonl", 3)
    long = {"question": "How many? " * 30, "choices": ["one", "two"], "answer": 0}
    place.write_text(place.read_text() + json.dumps(long) + "\n")
    subject = LocalSubject(str(make_folder(tmp_path / "short", context=100)))
    result = run_suite(subject, suite_class("choice")(str(place), fitting=True))
    assert result["count"] == 3 and result["passport"]["suite"]["fitting"]
    assert "1 of 4 examples do not fit" in result["notes"][0]
    with pytest.raises(InputError, match="1 of 4"):
        run_suite(subject, suite_class("choice")(str(place)))


@pytest.mark.parametrize("chat", [False, True])
def test_the_beginning_token_is_read_once(chat, tmp_path):
    """A tokenizer that adds its beginning token, and a template that writes it: the model reads one."""
    from quatrain.tokenizers.tokenizer import Tokenizer

    place = make_folder(tmp_path / "bos")
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    end = next(token for token in tokenizer["added_tokens"] if token["content"] == "<|endoftext|>")
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": end["content"], "type_id": 0}},
                                                             {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {end["content"]: {"id": end["content"], "ids": [end["id"]], "tokens": [end["content"]]}},
    }  # fmt: skip
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((place / "tokenizer_config.json").read_text())
    config |= {
        "bos_token": end["content"],
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    (place / "chat_template.jinja").unlink(missing_ok=True)
    assert Tokenizer.load(place).encode("a", special_tokens=True)[0] == end["id"]
    subject = LocalSubject(str(place))
    seen: list[list[int]] = []
    original = subject.engine.score
    subject.engine.score = lambda prompts, completions, **rest: (  # type: ignore[method-assign]
        seen.extend(subject.engine._pair(p, c, None)[0] for p, c in zip(prompts, completions, strict=True)),
        original(prompts, completions, **rest),
    )[1]
    suite = suite_class("choice")(str(questions(tmp_path / "q.jsonl", 2)), chat=chat)
    suite.ask(subject, suite.read())
    assert seen and all(ids.count(end["id"]) == 1 and ids[0] == end["id"] for ids in seen)


# Storing, resuming, reproducing


def test_a_stopped_suite_resumes_with_equal_results(folder, tmp_path, monkeypatch):
    subject = LocalSubject(str(folder))
    suite = suite_class("choice")(str(questions(tmp_path / "q.jsonl")))
    suite.chunk = 5
    whole = run_suite(subject, suite, folder=tmp_path / "whole")
    asked: list[int] = []
    ask = ChoiceSuite.ask

    def stopping(self, subject, rows):
        asked.append(len(rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(self, subject, rows)

    monkeypatch.setattr(ChoiceSuite, "ask", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_suite(subject, suite, folder=tmp_path / "part")
    (answers,) = (tmp_path / "part").glob("*.answers.jsonl")
    answers.write_text(answers.read_text() + '{"place": "cut')  # as a kill leaves it
    again = run_suite(subject, suite, folder=tmp_path / "part")
    assert asked[2:] == [5, 2] and again["scores"] == whole["scores"]
    assert run_suite(subject, suite, folder=tmp_path / "part")["scores"] == whole["scores"]
    assert asked[4:] == []  # a finished suite asks nothing


def test_other_questions_and_other_weights_are_not_mistaken_for_these(folder, tmp_path):
    place = questions(tmp_path / "q.jsonl")
    suite = suite_class("choice")(str(place))
    run_suite(LocalSubject(str(folder)), suite, folder=tmp_path)
    run_suite(LocalSubject(str(make_folder(tmp_path / "other", context=2048, seed=1))), suite, folder=tmp_path)
    questions(place, 11)
    run_suite(LocalSubject(str(folder)), suite, folder=tmp_path)
    assert len(list(tmp_path.glob("choice-*.answers.jsonl"))) == 3


def test_a_score_is_reproduced_from_its_passport(folder, tmp_path, capsys):
    place = questions(tmp_path / "q.jsonl")
    assert main(["evaluate", str(folder), f"choice:{place}", "--output", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    passport = result["passport"]
    assert passport["prompts_sha256"] and passport["model"]["files_sha256"]["model.safetensors"]
    assert main(["evaluate", "--passport", result["file"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"equal": True, "differences": [], "changes": []}
    stored = json.loads(Path(result["file"]).read_text())
    stored["scores"][0]["value"] += 0.1
    Path(result["file"]).write_text(json.dumps(stored))
    assert main(["evaluate", "--passport", result["file"]]) == 1
    assert "acc" in capsys.readouterr().out


def test_a_score_below_its_baseline_is_said(folder, tmp_path, capsys):
    rows = [{"question": "Which?", "choices": ["x", "a much longer answer", "y"], "answer": 1}] * 6
    place = tmp_path / "q.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", str(folder), f"choice:{place}", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "acc is below: longest answer" in shown and "95 % interval" in shown


def test_bad_input_is_refused_before_anything_runs(folder, tmp_path, capsys):
    place = tmp_path / "q.jsonl"
    place.write_text('{"question": "a", "choices": ["x"], "answer": 4}\n{"question": "b"}\n[]\nnot json\n')
    assert main(["evaluate", str(folder), f"choice:{place}"]) == 2
    error = capsys.readouterr().err
    assert "q.jsonl:1: answer 4" in error and "q.jsonl:2: the column 'choices' is missing" in error
    for words in (["choice"], ["mmlu", "some.txt"], ["mmlu", "--shots", "-1"], ["choice:", "--limit", "0"], []):
        assert main(["evaluate", str(folder), *words]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert main(["evaluate"]) == 2 and "gsm8k" in capsys.readouterr().err


# Other models


def test_an_endpoint_scores_as_the_engine_behind_it(folder, tmp_path):
    pytest.importorskip("fastapi")
    from serving_setup import running

    from quatrain.evaluation.subject import subject_of

    chosen = suite_class("choice")(str(questions(tmp_path / "q.jsonl", 4)))
    (tmp_path / "sums.jsonl").write_text('{"question": "2 and 2?", "answer": "#### 4"}\n' * 3)
    written = suite_class("gsm8k")(str(tmp_path / "sums.jsonl"), shots=0, chat=False, max_new_tokens=8)
    local = LocalSubject(str(folder))
    with running([str(folder)]) as server:
        remote = subject_of(f"{server.address}/v1")
        for suite in (chosen, written):
            rows = suite.read()
            here, there = suite.ask(local, rows), suite.ask(remote, rows)
            if suite is chosen:
                for one, other in zip(here, there, strict=True):
                    assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-3)
            else:
                assert [each["text"] for each in here] == [each["text"] for each in there]
            result = run_suite(remote, suite)
            assert result["passport"]["model"]["endpoint"] == f"{server.address}/v1"
        with pytest.raises(InputError, match="first tokens"):
            suite_class("perplexity")(str(tmp_path / "sums.jsonl")).ask(remote, [Row("1", "a text")])


def test_a_model_of_counts_is_measured_too(tmp_path):
    """An n-gram model of characters: bits per byte by its own probabilities, beside n-grams of the training text."""
    from quatrain.models.classic.ngram import NgramModel
    from quatrain.models.io import model_folder
    from quatrain.tokenizers.tokenizer import Tokenizer

    text = "the cat sat on the mat. the dog sat on the cat. " * 20
    tokenizer = Tokenizer.train([text], kind="char", eos="<|e|>")
    ids = tokenizer.encode(text)
    model = NgramModel.fit(ids, tokenizer.vocab_size, 3, eos_token_id=tokenizer.eos_id)
    tokenizer.save(tmp_path / "ngram")
    model_folder.save(model, tmp_path / "ngram")
    (tmp_path / "t.txt").write_text(text)
    suite = suite_class("perplexity")(str(tmp_path / "t.txt"), train=str(tmp_path / "t.txt"))
    result = run_suite(LocalSubject(str(tmp_path / "ngram")), suite)
    expected = -float(model.token_log_probs([tokenizer.eos_id, *ids], 1).sum()) / math.log(2) / len(text)
    assert result["scores"][0]["value"] == pytest.approx(expected, rel=1e-4)
    assert result["baselines"][2]["name"].startswith("n-grams of 6 bytes")
    assert result["baselines"][2]["scores"][0]["value"] < result["baselines"][0]["scores"][0]["value"]


# Reports and cards


def test_the_report_and_the_card_of_a_run_show_its_suites(tmp_path, capsys):
    """Scores below a baseline are red; the section is written anew, and the rest of the card stays."""
    run = tmp_path / "run"
    make_folder(run / "model", context=512)
    (run / "run.json").write_text("{}")
    (run / "recipe.toml").write_text('name = "mine"\n')
    (run / "model" / "README.md").write_text("# mine\n\nText before.\n")
    rows = [{"question": "Which?", "choices": ["x", "a much longer answer", "y"], "answer": 1}] * 5
    place = tmp_path / "q.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        assert main(["evaluate", str(run), f"choice:{place}"]) == 0
    capsys.readouterr()
    card = (run / "model" / "README.md").read_text()
    assert card.startswith("# mine\n\nText before.") and card.count("## Suites") == 1
    assert "| acc | 🔴 0.0 % (below a baseline)" in card
    page = (run / "report.html").read_text()
    assert "<h2>Suites</h2>" in page and 'class="n beaten">0.0 %' in page and "longest answer" in page
    (next((run / "evaluations").glob("choice-*.json"))).write_text('{"passport": {}, "scores": [1]}')
    assert main(["evaluate", str(run), f"choice:{place}", "--limit", "4"]) == 0
    assert "Unreadable" in (run / "report.html").read_text()


def test_a_stage_below_its_dumb_baseline_is_marked():
    from quatrain.runs.summary import below_baseline

    scores = {"a": {"accuracy": 0.4, "count": 9}, "b": {"loss": 1.0}, "c": {"loss": 3.0}}
    baselines = {"a": {"name": "x", "accuracy": 0.5}, "b": {"loss": 2.0}, "c": {"loss": 2.0}}
    lines = below_baseline([{"scores": scores, "baselines": baselines}])
    assert len(lines) == 2 and lines[0].startswith("a: accuracy 40.0%") and lines[1].startswith("c: loss 3.000")
