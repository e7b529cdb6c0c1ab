"""Stages whose objective is not the next token: from fresh weights and from a model that has read, to folders that
transformers loads.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from quick_set import slow, some

import quatrain
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.runs.recipe import loads
from quatrain.runs.runner import Run
from quatrain.tokenizers.tokenizer import Tokenizer

HEAD = """
name = "tiny"
[data]
{data}
[tokenizer]
kind = "{tokenizer}"
vocab_size = {vocab}
[model]
family = "{family}"
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 48
[evaluate]
examples = 20
max_new_tokens = 6
"""
TRAIN = (
    "train = {{ steps = {steps}, batch_tokens = 256, learning_rate = 1e-2, warmup_steps = 2, log_every = 1{more} }}\n"
)
GOOD, BAD = "fine lovely great superb".split(), "dull awful poor dreadful".split()
THINGS = "film story actor ending music scene".split()


def stage(kind: str, steps: int = 0, more: str = "", **keys: str) -> str:
    lines = [f'[[stage]]\nkind = "{kind}"', *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines) + "\n" + (TRAIN.format(steps=steps, more=more) if steps else "")


def go(folder: Path, *stages: str, **head: Any) -> Run:
    head = {"tokenizer": "wordpiece", "vocab": 120, "family": "bert"} | head
    return quatrain.run(loads(HEAD.format(**head) + "".join(stages)), runs_dir=folder, reporter=SilentReporter())


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One small file for each task, each easy to learn."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    files: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("classify", "regress", "tag", "answer", "choice", "seq2seq", "embed", "text")
    }
    for number in range(120):
        good = number % 2
        thing, word = draw.choice(THINGS), draw.choice(GOOD if good else BAD)
        text = f"the {thing} was {word}"
        files["text"].append({"text": f"{text}. It was a {word} {thing}. Nobody saw it."})
        files["classify"].append({"text": text, "label": "good" if good else "bad"})
        files["regress"].append({"sentence1": text, "sentence2": thing, "score": float(good)})
        files["tag"].append({"tokens": text.split(), "ner_tags": ["O", "B-THING", "O", "B-GOOD" if good else "O"]})
        start = text.index(thing)
        files["answer"].append({"id": str(number), "context": text, "question": f"what was {word}",
                                "answers": {"text": [thing], "answer_start": [start]}})  # fmt: skip
        files["choice"].append({"question": text, "choices": ["great", "poor"], "answer": 0 if good else 1})
        files["seq2seq"].append({"source": text, "target": f"{word} {thing}"})
        files["embed"].append({"source": text, "target": f"a {word} {thing}"})
    return {name: write(folder / f"{name}.jsonl", rows) for name, rows in files.items()}


CLASSES = {
    "classify": "BertForSequenceClassification",
    "regress": "BertForSequenceClassification",
    "tag": "BertForTokenClassification",
    "answer": "BertForQuestionAnswering",
    "choice": "BertForMultipleChoice",
    "embed": "BertModel",
}
LEARNED = {"classify": ("accuracy", 0.95), "tag": ("f1", 0.9), "answer": ("f1", 80.0), "choice": ("accuracy", 0.9),
           "regress": ("pearson", 0.9)}  # fmt: skip


@pytest.mark.parametrize("objective", some(CLASSES, ["classify", "tag"]))
def test_a_task_is_learned_from_fresh_weights(objective: str, data: dict[str, str], tmp_path: Path) -> None:
    more = ', optimizer = "muon", evaluate_every = 40, sample_every = 50'
    run = go(
        tmp_path,
        stage("tokenizer"),
        stage("finetune", 120 if objective in LEARNED else 6, more, objective=f'"{objective}"'),
        data=f"source = '{data[objective]}'\nvalidation = 0.2",
    )
    result = run.results[-1]
    ((name, scores),) = result["scores"].items()
    assert name == "held out" and scores["count"] == 20
    assert result["validation_loss"] > 0 and result["metrics"]["validation_loss"] == result["validation_loss"]
    if objective in LEARNED:
        metric, least = LEARNED[objective]
        assert scores[metric] >= least
        assert next(iter(scores)) == metric, "what people quote stands first"
        samples = result["samples"]
        assert len(samples) >= 10 and all(sample["prompt"] and sample["output"] for sample in samples)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    looks = {line["step"]: line["samples"] for line in lines if "samples" in line}
    assert sorted(looks) == ([50, 100] if objective in LEARNED else []), "the last step is measured anyway"
    assert all(len(look) == 3 and all(one["prompt"] for one in look) for look in looks.values())
    if objective in ("classify", "tag"):
        counts = result["confusion"]["counts"]
        held = 20 if objective == "classify" else 20 * 4
        assert sum(map(sum, counts)) == held
        right = sum(row[place] for place, row in enumerate(counts))
        assert right / held == pytest.approx(scores["accuracy"])
        assert {row["label"] for row in result["by_label"]} == ({"good", "bad"} if objective == "classify" else
                                                                {"GOOD", "THING"})  # fmt: skip
        page = (run.folder / "report.html").read_text(encoding="utf-8")
        assert "Confusion matrix" in page and "Samples during training" in page
    config = json.loads((run.model / "config.json").read_text())
    assert config["architectures"] == [CLASSES[objective]]
    model, report = getattr(transformers, CLASSES[objective]).from_pretrained(run.model, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    if objective == "classify":
        assert model.config.id2label == {0: "bad", 1: "good"}
        pipeline = transformers.pipeline("text-classification", model=model,
                                         tokenizer=transformers.AutoTokenizer.from_pretrained(run.model))  # fmt: skip
        assert pipeline("the film was superb")[0]["label"] == "good"
        assert pipeline("the film was dreadful")[0]["label"] == "bad"


@pytest.mark.parametrize(
    ("family", "objective", "tokenizer", "more"),
    [
        ("bert", "masked", "wordpiece", {"whole_word_masking": "true"}),
        ("bert", "masked", "wordpiece", {"next_sentence_prediction": "true"}),
        slow(("roberta", "masked", "bpe", {"rows": '"documents"'})),
        ("t5", "span", "unigram", {}),
        slow(("t5", "span", "bpe", {"rows": '"documents"', "mean_span_length": "2.0"})),
        ("bart", "denoise", "bpe", {"mask_ratio": "0.2"}),
    ],
)
def test_text_is_learned_by_hiding_it(
    family: str, objective: str, tokenizer: str, more: dict[str, str], data: dict[str, str], tmp_path: Path
) -> None:
    run = go(
        tmp_path,
        stage("tokenizer"),
        stage("pretrain", 30, ', optimizer = "muon", evaluate_every = 15', objective=f'"{objective}"', **more),
        data=f"source = '{data['text']}'\nvalidation = 0.2",
        family=family,
        tokenizer=tokenizer,
        vocab=480,
    )
    result = run.results[-1]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert result["validation_loss"] == losses[1]
    if objective == "masked":
        assert 0 < result["metrics"]["validation_accuracy"] <= 1
    kind = "pretraining" if "next_sentence_prediction" in more else objective
    auto = {"masked": transformers.AutoModelForMaskedLM, "pretraining": transformers.AutoModelForPreTraining}
    _, report = auto.get(kind, transformers.AutoModelForSeq2SeqLM).from_pretrained(run.model, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    first = Tokenizer.load(run.folder / "stages/01-tokenizer/tokenizer")
    assert Tokenizer.load(run.model).fingerprint == first.fingerprint


def test_a_model_that_has_read_gets_the_head_of_its_task(data: dict[str, str], tmp_path: Path) -> None:
    text = f"{{ source = '{data['text']}', validation = 0.0 }}"
    run = go(
        tmp_path,
        stage("tokenizer", data=text),
        stage("pretrain", 5, objective='"masked"', data=text),
        stage("finetune", 5, objective='"classify"'),
        data=f"source = '{data['classify']}'\ntest = '{data['classify']}'",
    )
    before = quatrain.load(run.folder / "stages/02-pretrain/model")
    assert list(run.results[-1]["scores"]) == ["test"]
    assert before.config.head == "masked"
    # Started from the weights that had read, not from fresh ones: five steps of 0.01 move no weight by more.
    after = quatrain.load(run.model)
    assert after.config.head == "sequence_classification" and after.config.labels == ("bad", "good")
    change = (after.embed_tokens.weight - before.embed_tokens.weight).abs().max()
    assert 0 < change < 0.2


@pytest.mark.slow
def test_texts_are_said_and_compared_with_what_people_wrote(data: dict[str, str], tmp_path: Path) -> None:
    run = go(
        tmp_path,
        stage("tokenizer"),
        stage(
            "finetune",
            150,
            ', optimizer = "muon"',
            objective='"seq2seq"',
            source_prefix='"say: "',
            label_smoothing="0.1",
        ),
        data=f"source = '{data['seq2seq']}'\nvalidation = 0.2",
        family="t5",
        tokenizer="bpe",
        vocab=400,
    )
    scores = run.results[-1]["scores"]["held out"]
    assert scores["perplexity"] < 5 and scores["loss"] > 0
    sample = run.results[-1]["samples"][0]
    assert sample["prompt"].startswith("the ") and sample["reference"].split()[0] in GOOD + BAD
    assert len({sample["output"] for sample in run.results[-1]["samples"]}) > 1
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model)
    ids = tokenizer("say: " + sample["prompt"], return_tensors="pt", add_special_tokens=False).input_ids
    said = theirs.generate(ids, max_new_tokens=6, do_sample=False)
    assert tokenizer.decode(said[0], skip_special_tokens=True).strip() == sample["output"]


def test_training_goes_on_and_says_what_it_brought(data: dict[str, str], tmp_path: Path) -> None:
    text = f"source = '{data['text']}'\nvalidation = 0.2"
    first = go(tmp_path / "a", stage("tokenizer"), stage("pretrain", 6), data=text, family="llama", tokenizer="bpe",
               vocab=400)  # fmt: skip
    head = f"name = 'on'\n[data]\n{text}\n[model]\nfolder = '{first.model}'\n"
    run = quatrain.run(loads(head + stage("pretrain", 30)), runs_dir=tmp_path, reporter=SilentReporter())
    result = run.results[0]
    assert result["validation_loss_before"] == pytest.approx(first.results[-1]["validation_loss"], rel=1e-5)
    assert result["validation_loss"] < result["validation_loss_before"]
    assert any("before" in note and "after" in note for note in result["notes"])


WRONG = [
    ("llama", "masked", 'stage[1].objective: "masked"; no model of family = "llama" does it, only bert'),
    ("bert", "span", 'stage[1].objective: "span"; no model of family = "bert" does it, only t5'),
    ("bart", "causal", 'stage[1].objective: "causal"; no model of family = "bart" does it, only llama'),
]


@pytest.mark.parametrize(("family", "objective", "message"), WRONG)
def test_a_family_that_cannot_do_it_is_refused_at_once(family: str, objective: str, message: str) -> None:
    text = HEAD.format(data='source = "x.txt"', family=family, tokenizer="bpe", vocab=300)
    with pytest.raises(InputError) as caught:
        loads(text + stage("tokenizer") + stage("pretrain", 5, objective=f'"{objective}"'))
    assert any(problem.startswith(message) for problem in caught.value.problems)


def test_settings_that_say_nothing_are_refused_all_at_once() -> None:
    text = HEAD.format(data='source = "x.txt"', family="bert", tokenizer="bpe", vocab=300)
    with pytest.raises(InputError) as caught:
        loads(
            text
            + stage("tokenizer")
            + stage("pretrain", 5, objective='"masked"', copy_steps="3", mean_span_length="2.0")
            + stage("finetune", 5, objective='"answer"', labels='["a"]', source_prefix='"x"')
        )
    places = {problem.partition(":")[0] for problem in caught.value.problems}
    assert places == {"stage[1].copy_steps", "stage[1].mean_span_length", "stage[2].labels", "stage[2].source_prefix"}


def test_data_of_another_kind_is_refused_with_its_place(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labelled texts"):
        go(tmp_path, stage("tokenizer"), stage("finetune", 5, objective='"classify"'),
           data=f"source = '{data['tag']}'")  # fmt: skip


def test_a_label_that_the_recipe_does_not_know_is_named_with_its_line(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        go(tmp_path, stage("tokenizer"), stage("finetune", 5, objective='"classify"', labels='["good", "other"]'),
           data=f"source = '{data['classify']}'")  # fmt: skip
    assert f"{data['classify']}:1" in caught.value.problems[0] and "bad" in caught.value.problems[0]


def test_a_killed_task_goes_on_bit_for_bit(data: dict[str, str], tmp_path: Path) -> None:
    """Stopped by a fault after a checkpoint, started again: the weights are those of the run that was not stopped."""
    stages = (
        stage("tokenizer"),
        stage("finetune", 8, ", checkpoint_every = 3, dropout = 0.1", objective='"tag"'),
    )
    text = f"source = '{data['tag']}'\nvalidation = 0.2"
    whole = go(tmp_path / "whole", *stages, data=text)
    from quatrain.training.trainer import Trainer

    real = Trainer.step

    def dying(self: Trainer) -> None:
        if self.steps_done == 5:
            raise KeyboardInterrupt
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(BaseException):
            go(tmp_path / "cut", *stages, data=text)
    again = go(tmp_path / "cut", *stages, data=text)
    ours, other = quatrain.load(whole.model).state_dict(), quatrain.load(again.model).state_dict()
    assert all(torch.equal(ours[name], other[name]) for name in ours)


def test_examples_are_prepared_once_for_equal_data_tokenizer_and_settings(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quatrain.training.objectives import TextObjective

    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "cache"))
    prepared: list[int] = []
    real = TextObjective.prepare

    def counted(self: Any, records: Any) -> Any:
        prepared.append(len(records))
        return real(self, records)

    monkeypatch.setattr(TextObjective, "prepare", counted)

    def run(name: str, rate: str = "1e-2", **keys: str) -> Run:
        stages = stage("tokenizer"), stage("finetune", 4, objective='"tag"', **keys).replace("1e-2", rate)
        return go(tmp_path / name, *stages, data=f"source = '{data['tag']}'\nvalidation = 0.2")

    def learned(run: Run) -> dict[str, Any]:
        return quatrain.load(run.model).state_dict()

    first = run("first")
    assert len([count for count in prepared if count > 20]) >= 2
    prepared.clear()
    again = run("again")
    assert all(count <= 24 for count in prepared), "only what is scored is prepared"
    assert all(torch.equal(learned(first)[name], learned(again)[name]) for name in learned(first))
    run("another rate", rate="2e-2")
    assert 96 not in prepared
    run("another length", context="20")
    assert 96 in prepared


@pytest.mark.parametrize(
    "objective", some(["classify", "regress", "tag", "answer", "seq2seq"], ["classify", "seq2seq"])
)
def test_a_model_is_measured_again_by_the_stage_and_by_the_verb(
    objective: str, data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = go(
        tmp_path,
        stage("tokenizer"),
        stage("finetune", 40, objective=f'"{objective}"'),
        stage("evaluate"),
        data=f"source = '{data[objective]}'\ntest = '{data[objective]}'",
        family="bart" if objective == "seq2seq" else "bert",
    )
    _, taught, measured = run.results
    timing = "texts_per_second"

    def plain(scores: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in scores.items() if name != timing}

    assert plain(measured["scores"]["test"]) == plain(taught["scores"]["test"])
    assert [one["output"] for one in measured["samples"]] == [one["output"] for one in taught["samples"]]
    assert measured.get("confusion") == taught.get("confusion")
    arguments = ["evaluate", str(run.model), data[objective], "--examples", "20", "--max-new-tokens", "6"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert plain(told["scores"]) == pytest.approx(plain(taught["scores"]["test"]))
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "measure" in shown and "→" in shown
    if objective in ("classify", "tag"):
        assert "precision" in shown
    assert main(["evaluate", str(run.model), data["text"]]) == 2
    assert "Traceback" not in capsys.readouterr().err


ADAPTERS = [
    '{ method = "lora", rank = 4, alpha = 8 }',
    '{ method = "dora", rank = 4, alpha = 8, use_rslora = true, dropout = 0.1 }',
    '{ method = "loha", rank = 4, alpha = 8 }',
    '{ method = "lokr", rank = 4, alpha = 8 }',
    '{ method = "ia3" }',
    '{ method = "bitfit", modules_to_save = ["layers.1.mlp.up_proj"] }',
    '{ method = "last-layers" }',
    *(f'{{ rank = 4, alpha = 8, quantize_base = "{base}", method = "lora" }}' for base in ("nf4", "int8", "int4")),
]


@pytest.mark.parametrize("adapter", some(ADAPTERS, [ADAPTERS[0], ADAPTERS[-1]]), ids=lambda text: text.split('"')[1])
def test_a_task_is_learned_by_an_adapter(adapter: str, data: dict[str, str], tmp_path: Path) -> None:
    """Over a model that has read; the merged model and the adapter over its base say the same."""
    run = go(
        tmp_path,
        stage("tokenizer", data=f"{{ source = '{data['text']}' }}"),
        stage("pretrain", 4, objective='"masked"', data=f"{{ source = '{data['text']}' }}"),
        stage("finetune", 60, ", dropout = 0.0, evaluate_every = 20", objective='"classify"', adapter=adapter),
        data=f"source = '{data['classify']}'\nvalidation = 0.2",
    )
    result = run.results[-1]
    assert 0 < result["trainable_parameters"] < result["parameters"] or result["trainable_parameters"] > 0
    folder = run.folder / "stages" / "03-finetune"
    base = adapter.split('"')[1] if "base" in adapter else None  # as it was held while it learned
    merged, (adapted, tokenizer) = quatrain.load(run.model), load_model(folder / "adapter", quantize=base)
    assert adapted.config.labels == ("bad", "good") and tokenizer is not None
    ids = torch.tensor([tokenizer.encode("the film was superb", special_tokens=True)])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids)[0], merged(ids)[0], atol=1e-4, rtol=1e-4)
        base = model_folder.load(run.folder / "stages" / "02-pretrain" / "model", head="sequence_classification",
                        labels=("bad", "good"))  # fmt: skip
        assert not torch.allclose(base(ids)[0], merged(ids)[0], atol=1e-3)
    scores = result["scores"]["held out"]
    if "bitfit" not in adapter and "ia3" not in adapter:
        assert scores["accuracy"] > 0.8


@pytest.mark.parametrize("method", ["int8", "int4", "nf4"])
def test_a_stage_quantizes(method: str, data: dict[str, str], tmp_path: Path) -> None:
    more = {"group": "32"} if method == "int4" else {}
    run = go(
        tmp_path,
        stage("tokenizer", data=f"{{ source = '{data['text']}' }}"),
        stage("pretrain", 4, objective='"masked"', data=f"{{ source = '{data['text']}' }}"),
        stage("quantize", method=f'"{method}"', **more),
        data=f"source = '{data['text']}'\nvalidation = 0.2",
    )
    assert any(f"linear layers in {method}" in note for note in run.results[-1]["notes"])
    names = {module.method for module in quatrain.load(run.model).modules() if hasattr(module, "dequantize")}
    assert names == {method}
    head = f"name = 'on'\n[data]\nsource = '{data['text']}'\n[model]\nfolder = '{run.model}'\n"
    again = loads(head + stage("pretrain", 4, objective='"masked"'))
    with pytest.raises(InputError, match=r"a quantized model.*start from the float model"):
        quatrain.run(again, runs_dir=tmp_path, reporter=SilentReporter())
    with pytest.raises(InputError) as caught:
        go(tmp_path, stage("tokenizer"), stage("quantize", method='"int8"', group="64"), data="source = 'x'")
    assert any("group: 64; only method" in problem for problem in caught.value.problems)


def test_a_model_in_few_bits_is_not_taught_whole(data: dict[str, str], tmp_path: Path) -> None:
    """Its linear layers could not learn: most of it would stay as it is, and nobody would know."""
    run = go(
        tmp_path / "first",
        stage("tokenizer", data=f"{{ source = '{data['text']}' }}"),
        stage("pretrain", 4, data=f"{{ source = '{data['text']}' }}"),
        stage("quantize", method='"int8"'),
        data=f"source = '{data['text']}'\nvalidation = 0.2", family="llama", tokenizer="bpe", vocab=400,
    )  # fmt: skip
    source = f"source = '{data['classify']}'\nvalidation = 0.2\n[model]\nfolder = '{run.model}'\n"
    recipe = f"name = 'on'\n[data]\n{source}" + stage("finetune", 4, objective='"classify"')
    with pytest.raises(InputError, match=r"held in int8.*\(\d+ %\) could, .*Give the stage an adapter"):
        quatrain.run(loads(recipe), runs_dir=tmp_path, reporter=SilentReporter())


def test_an_adapter_over_fresh_weights_is_refused(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model that has learned"):
        go(tmp_path, stage("tokenizer"), stage("finetune", 4, objective='"classify"', adapter='{ method = "ia3" }'),
           data=f"source = '{data['classify']}'")  # fmt: skip


def test_an_adapter_of_a_task_can_be_looked_into_and_measured(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = go(
        tmp_path,
        stage("tokenizer", data=f"{{ source = '{data['text']}' }}"),
        stage("pretrain", 2, objective='"masked"', data=f"{{ source = '{data['text']}' }}"),
        stage("finetune", 6, objective='"classify"', adapter='{ method = "lora", rank = 2 }'),
        data=f"source = '{data['classify']}'",
    )
    folder = str(run.folder / "stages" / "03-finetune" / "adapter")
    assert main(["inspect", folder]) == 0
    assert "lora" in capsys.readouterr().out.lower()
    assert main(["evaluate", folder, data["classify"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "classify"


@pytest.mark.parametrize("method", some(["prompt", "prefix", "bottleneck"], ["prompt"]))
def test_a_chat_is_learned_beside_a_frozen_model(method: str, data: dict[str, str], tmp_path: Path) -> None:
    """The model's folder is one of an adapter, with its base in it, and can be moved."""
    chats = write(tmp_path / "chats.jsonl", [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        for word in THINGS * 10
    ])  # fmt: skip
    more = ', bottleneck_dim = 3, trainable_tokens = "none"' if method == "bottleneck" else ", num_virtual_tokens = 4"
    adapter = f'{{ method = "{method}"{more} }}'
    run = go(
        tmp_path / "runs",
        stage("tokenizer", data=f"{{ source = '{data['text']}' }}"),
        stage("pretrain", 30, data=f"{{ source = '{data['text']}' }}"),
        stage("finetune", 30, adapter=adapter, data=f"{{ source = '{chats}' }}"),
        data=f"source = '{chats}'",
        family="llama",
        tokenizer="bpe",
        vocab=300,
    )
    taught = run.results[-1]
    counts = {"prompt": 4 * 16, "prefix": 4 * 16 * 4, "bottleneck": 4 * (3 * 16 + 3 + 16 * 3 + 16)}
    assert taught["trainable_parameters"] == counts[method]
    model, tokenizer = load_model(run.model)
    assert (model.soft_prompt is None) == (method == "bottleneck") and tokenizer.chat_template
    before = model_folder.load(run.folder / "stages" / "02-pretrain" / "model")
    for name, parameter in before.named_parameters():
        own = name if name in dict(model.named_parameters()) else name.replace("_proj.", "_proj.base.")
        assert torch.equal(parameter, dict(model.named_parameters())[own]), name
    peft = pytest.importorskip("peft")
    theirs = None if method == "bottleneck" else peft.AutoPeftModelForCausalLM.from_pretrained(run.model)
    ids = torch.tensor([tokenizer.encode("say film")])
    moved = run.folder.rename(tmp_path / "moved")
    with torch.no_grad():
        assert torch.equal(load_model(moved / "model")[0](ids)[0], model(ids)[0])
        if theirs is not None:
            torch.testing.assert_close(model(ids)[0], theirs(ids).logits[:, -ids.shape[1] :], atol=1e-4, rtol=1e-4)


def test_a_chat_model_stops_by_itself(data: dict[str, str], tmp_path: Path) -> None:
    """The end of a turn is learned: of 100 answers that are drawn, at least 95 end before they must."""
    words = [*THINGS, *GOOD, *BAD]
    chats = write(tmp_path / "chats.jsonl", [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        for word in words * 12
    ])  # fmt: skip
    run = go(
        tmp_path / "runs",
        stage("tokenizer", data=f"{{ source = '{data['text']}' }}"),
        stage("pretrain", 40, data=f"{{ source = '{data['text']}' }}"),
        stage("finetune", 200, ', optimizer = "muon"', data=f"{{ source = '{chats}' }}"),
        data=f"source = '{chats}'",
        family="llama",
        tokenizer="bpe",
        vocab=300,
    )
    model, tokenizer = load_model(run.model)
    engine = Engine(model, tokenizer)
    asked = [[{"role": "user", "content": f"say {word}"}] for word in (words * 8)[:100]]
    answers = engine.chat(asked, SamplingParams(max_new_tokens=24, temperature=0.7, seed=0))
    assert sum(answer.finish_reason == "stop" for answer in answers) >= 95


def test_a_soft_prompt_takes_room_of_the_text(data: dict[str, str], tmp_path: Path) -> None:
    """Texts as long as the model reads are cut by as many tokens as there are slots, and too many slots are refused."""
    long = write(tmp_path / "long.jsonl", [
        {"text": " ".join(["film"] * 90), "label": name} for name in ("good", "bad") * 10
    ])  # fmt: skip
    for slots in (8, 10_000):
        adapter = f'{{ method = "prompt", num_virtual_tokens = {slots} }}'
        stages = (
            stage("tokenizer", data=f"{{ source = '{data['text']}' }}"),
            stage("pretrain", 2, objective='"masked"', data=f"{{ source = '{data['text']}' }}"),
            stage("finetune", 2, objective='"classify"', adapter=adapter),
        )
        if slots == 8:
            run = go(tmp_path / "runs", *stages, data=f"source = '{long}'")
            assert any("tokens" in note and "cut" in note for note in run.results[-1]["notes"])
        else:
            with pytest.raises(InputError, match="10000 slots; the model reads"):
                go(tmp_path / "more", *stages, data=f"source = '{long}'")
