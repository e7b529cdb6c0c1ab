"""Every recipe that ships runs on the data that it names, at a tiny size and for a few steps; the pretraining ones on a
short story in place of 24 novels, and those of large sets on the held-out part of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from quick_set import some
from tiny_models import llama

import quatrain
from quatrain.core.errors import InputError, OfflineError
from quatrain.core.progress import SilentReporter
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.runs.recipe import load, recipe_names
from quatrain.runs.runner import Run
from quatrain.tokenizers.templates import TEMPLATE_TOKENS
from quatrain.tokenizers.tokenizer import Tokenizer

needs_data = pytest.mark.skipif(not os.environ.get("QUATRAIN_DATA"), reason="QUATRAIN_DATA is not set: no shared data")

SHORT = ["stage.pretrain.train.steps=2", "stage.pretrain.train.batch_tokens=512", "stage.pretrain.train.warmup_steps=1",
         "stage.pretrain.train.evaluate_every=2"]  # fmt: skip
STORY = ["data.source=the-verdict"]
READS = ["stage.tokenizer.data.source=the-verdict", "stage.pretrain.data.source=the-verdict"]
TUNED = ["stage.finetune.train.epochs=none", "stage.finetune.train.steps=2", "stage.finetune.train.warmup_steps=1",
         "stage.finetune.train.keep=last", "stage.finetune.train.evaluate_every=0", "evaluate.examples=6"]  # fmt: skip
TINY = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
        "model.intermediate_size=32", "evaluate.max_new_tokens=4"]  # fmt: skip
COPIES = ["stage.pretrain.copy_steps=1", "stage.pretrain.train.epochs=none"]
NARROW = ["model.hidden_size=16", "evaluate.max_new_tokens=4"]
CASES = {
    "lstm": [*NARROW, *STORY, *SHORT],
    "sentiment-cnn": [*NARROW, *TUNED, "tokenizer.vocab_size=512"],
    "pos-lstm": [*NARROW, *TUNED, "data.source=ud-ewt-dev"],
    "translate-rnn": [*NARROW, *TUNED, "tokenizer.vocab_size=1024", "data.source=multi30k-dev.{en,de}"],
    "elmo": [*NARROW, *READS, *SHORT, *TUNED, "data.source=ud-ewt-dev", "model.classic.tagger_size=16"],
    "tfidf": ["tokenizer.vocab_size=2000", "evaluate.examples=6"],
    "digits": [
        *TINY[:-1],
        "stage.vision.patch_size=16",
        *(f"stage.vision.train.{key}" for key in ("epochs=none", "steps=2", "warmup_steps=1", "evaluate_every=1")),
    ],
    "ngram": ["data.source=the-verdict", "evaluate.max_new_tokens=4"],
    "residues": [*TINY, *SHORT],
    "gpt-pretrain": [*TINY, *STORY, *SHORT, "tokenizer.vocab_size=512"],
    "distil": [
        "model.hidden_size=16",
        "model.num_hidden_layers=2",
        "model.num_attention_heads=2",
        "model.intermediate_size=32",
        "evaluate.max_new_tokens=4",
        *STORY,
        "tokenizer.vocab_size=512",
        *(
            f"stage.{number}.train.{key}"
            for number in (1, 3)
            for key in ("steps=2", "warmup_steps=1", "batch_tokens=512", "evaluate_every=0", "keep=last")
        ),
    ],
    "bert-pretrain": [*TINY, *STORY, *SHORT, "tokenizer.vocab_size=512"],
    "electra": [
        *TINY,
        *STORY,
        "tokenizer.vocab_size=512",
        *(f"stage.{number}.train.{key}" for number in (1, 2) for key in ("steps=2", "batch_tokens=512")),
        *(f"stage.{number}.train.evaluate_every=0" for number in (1, 2)),
    ],
    "gpt3-banded": [*TINY, *STORY, *SHORT, "tokenizer.vocab_size=512", "model.sliding_window=8"],
    "t5-pretrain": [*TINY, *STORY, *SHORT, "tokenizer.vocab_size=700"],
    "reviews": [
        *TINY,
        "tokenizer.vocab_size=512",
        "stage.0.data.source=the-verdict",
        "stage.1.data.source=the-verdict",
        "stage.2.train.epochs=none",
        *(f"stage.{number}.train.{key}" for number in (1, 2) for key in ("steps=2", "warmup_steps=1")),
        "stage.1.train.batch_tokens=512",
        "stage.2.train.evaluate_every=0",
        "stage.2.train.keep=last",
    ],
    "sentiment": [
        *TINY,
        *READS,
        *SHORT,
        "tokenizer.vocab_size=512",
        "stage.2.data.source=sst2-dev",
        *(f"stage.{number}.train.{key}" for number in (2, 3) for key in ("steps=2", "warmup_steps=1", "epochs=none")),
        "stage.3.train.keep=last",
        "stage.3.train.evaluate_every=0",
        "evaluate.examples=6",
    ],
    "sentiment-lora": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "nli": [*TINY, *TUNED, "tokenizer.vocab_size=512", "data.source=nli-captions-dev"],
    "spam": [*TINY, *TUNED, "tokenizer.vocab_size=512", "data.source=spam-test"],
    "topic": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "choice": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512", "data.source=novels-next-sentence-test"],
    "embed": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512", "data.source=tatoeba-paraphrases-train"],
    "pos": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "ner": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "qa": [*TINY, *SHORT, *TUNED, "tokenizer.vocab_size=1024", "data.source=squad-sample-dev"],
    "translate": [*TINY, *TUNED, "tokenizer.vocab_size=1024", "data.source=multi30k-dev.{en,de}"],
    "summarize": [*TINY, *SHORT, *TUNED, "tokenizer.vocab_size=1024", "data.source=dialogsum-dev"],
    "summarize-lora": [*TINY, *SHORT, *TUNED, "tokenizer.vocab_size=1024", "data.source=dialogsum-dev"],
    "sql-finetune": [
        *TINY,
        *SHORT,
        *TUNED,
        *COPIES,
        "tokenizer.vocab_size=1024",
        "stage.pretrain.data.examples=200",
        "data.source=geoquery-train",
    ],
    "soft-prompt": [
        *TINY,
        *READS,
        *SHORT,
        "tokenizer.vocab_size=512",
        "data.source=instructions",
        *(f"stage.{number}.train.{key}" for number in (2, 3) for key in ("steps=2", "warmup_steps=1")),
        "stage.2.train.epochs=none",
        "stage.3.train.evaluate_every=2",
        "evaluate.examples=6",
    ],
    "reward": [
        *TINY,
        *SHORT,
        "tokenizer.vocab_size=512",
        "stage.reward.train.epochs=none",
        "stage.reward.train.steps=2",
        "stage.reward.train.warmup_steps=1",
        "stage.reward.train.evaluate_every=2",
        "evaluate.examples=6",
    ],
    "dpo": [
        *TINY,
        *READS,
        *SHORT,
        *TUNED,
        *COPIES,
        "tokenizer.vocab_size=512",
        "stage.finetune.data.source=instructions",
        "stage.dpo.train.epochs=none",
        "stage.dpo.train.steps=2",
        "stage.dpo.train.warmup_steps=1",
        "stage.dpo.train.evaluate_every=2",
    ],
    "rlhf": [
        *TINY,
        *READS,
        *SHORT,
        *TUNED,
        *COPIES,
        "tokenizer.vocab_size=512",
        "stage.finetune.data.source=instructions",
        "stage.reward.train.epochs=none",
        "stage.reward.train.steps=2",
        "stage.reward.train.warmup_steps=1",
        "stage.ppo.prompts=4",
        "stage.ppo.max_new_tokens=6",
        "stage.ppo.held_out=3",
        "stage.ppo.train.steps=2",
        "stage.ppo.train.warmup_steps=1",
        "stage.ppo.train.evaluate_every=2",
    ],
    "instruct": [
        *TINY,
        *READS,
        *SHORT,
        *TUNED,
        *COPIES,
        "tokenizer.vocab_size=512",
        "data.source=instructions",
        "evaluate.temperatures=[0.0]",
    ],
}
SCORES = {"sentiment-cnn": "accuracy", "pos-lstm": "accuracy", "translate-rnn": "bleu", "elmo": "accuracy",
          "nli": "accuracy", "spam": "accuracy", "topic": "accuracy", "choice": "accuracy",
          "sentiment": "accuracy", "sentiment-lora": "accuracy", "pos": "accuracy", "ner": "f1", "qa": "f1",
          "translate": "bleu", "summarize": "bleu", "summarize-lora": "bleu", "sql-finetune": "execution_accuracy",
          "instruct": "loss", "soft-prompt": "loss", "rlhf": "loss", "reward": "accuracy",
          "tfidf": "accuracy"}  # fmt: skip
SETS = {"sql-finetune": ["spider-dev", "geoquery-new-questions", "geoquery-new-queries"],
        "soft-prompt": ["sentiment: sst2-test", "instructions: held out"]}  # fmt: skip
CLASSIC = {"ngram": "ngram", "tfidf": "bag-of-words"}
"""The model types of recipes that train no transformer."""
ASKED = {"instruct": 3, "rlhf": 3}
"""Prompts of a recipe, which are answered beside the records."""
QUICK = ["gpt-pretrain", "bert-pretrain", "t5-pretrain", "sentiment", "ner"]
"""The recipes of the quick set of tests: the others tokenize more data first."""
ELSEWHERE = {"agent", "tool-sft", "quickstart", "sherlock", "shakespeare-char", "arithmetic-grpo", "calculator-grpo",
             "sentiment-gpt2", "sentiment-ppo", "sentiment-control", "grpo-sql", "ladder", "activity", "word2vec",
             "dialogue-prompting", "soft-hard", "sql-agent-grpo", "rag", "curated", "project", "contacts",
             "spoken-digits", "images", "clip-shapes", "picture-qa"}  # fmt: skip
"""Recipes that the tests of the README, the quickstart, word vectors, agents, alignment, prompting, projects and
pictures, and of the stages grpo, ladder, series, contacts, speech, curate, retrieval and vision-language run."""


def test_every_recipe_is_run_somewhere() -> None:
    assert {*CASES, *ELSEWHERE, "domain"} == set(recipe_names())


def run(name: str, overrides: list[str], folder: Path) -> Run:
    stages = load(name).stage
    named = {*(stage.kind for stage in stages), *map(str, range(len(stages)))}
    chosen = [each for each in overrides if not each.startswith("stage.") or each.split(".")[1] in named]
    torch.set_num_threads(1)
    return quatrain.run(load(name, chosen), runs_dir=folder, reporter=SilentReporter())


@needs_data
@pytest.mark.parametrize("name", some(CASES, QUICK))
def test_a_recipe_runs_on_its_data(name: str, tmp_path: Path) -> None:
    done = run(name, CASES[name], tmp_path)
    model = quatrain.load(done.model)
    assert model.config.family == CLASSIC.get(name, load(name).model.family)
    last = done.results[-1]
    if name in SCORES:
        assert list(last["scores"]) == SETS.get(name, list(last["scores"])[:1])
        for scores in last["scores"].values():
            assert next(iter(scores)) == SCORES[name] and scores["count"] == 6
        assert len(last["samples"]) == 6 * len(last["scores"]) + ASKED.get(name, 0)
    else:
        assert last["validation_loss"] > 0
    report = done.report.read_text(encoding="utf-8")
    assert name in report and len(report) > 5_000


@needs_data
def test_a_model_goes_on_learning_from_another_text(tmp_path: Path) -> None:
    first = run("gpt-pretrain", CASES["gpt-pretrain"], tmp_path)
    more = ["data.source=the-verdict", "stage.pretrain.train.epochs=none", *SHORT, "evaluate.max_new_tokens=4"]
    done = run("domain", [f"model.folder={first.model}", *more], tmp_path)
    assert done.results[-1]["validation_loss_before"] == pytest.approx(first.results[-1]["validation_loss"], abs=0.2)


PUBLIC = """{{- bos_token }}{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
"""As those of public models: nothing in it marks what the assistant says."""


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model as Llama 3's are, with random weights."""
    folder = tmp_path_factory.mktemp("public")
    ends = ["<|begin_of_text|>", "<|end_of_text|>"]
    texts = ["Answer with one SQLite statement. select count(*) from city where state_name = 'texas'"] * 9
    special = [*TEMPLATE_TOKENS["llama-3"], *ends]
    tokenizer = Tokenizer.train(texts, kind="bpe", vocab_size=400, special_tokens=special, chat_template=PUBLIC)
    config = llama(
        vocab_size=tokenizer.vocab_size, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=2048,
    )  # fmt: skip
    model_folder.save(Model(config).initialize(seed=0), folder)
    tokenizer.save(folder)
    return folder


OVER = ["model=none", "stage.tokenizer=none", "stage.pretrain=none", "evaluate.max_new_tokens=4"]


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sql-finetune", ['stage.finetune.adapter={method = "lora", quantize_base = "nf4"}',
                          "stage.finetune.context=512", "data.source=geoquery-train",
                          "data.test=geoquery-new-queries"]),
        ("instruct", ['stage.finetune.adapter={method = "lora", rank = 4}', "data.source=instructions"]),
    ],
)  # fmt: skip
def test_a_recipe_of_answers_goes_over_a_public_model(name: str, more: list[str], public: Path, tmp_path: Path) -> None:
    """The overrides that the documents name: the stages that make a model left out, an adapter, four bits."""
    wanted = [f"model.folder={public}", *more, *[each for each in TUNED if "stage.finetune" in each or "eval" in each]]
    torch.set_num_threads(1)
    done = quatrain.run(load(name, [*OVER, *wanted]), runs_dir=tmp_path, reporter=SilentReporter())
    (last,) = done.results
    assert 0 < last["trainable_parameters"] < last["parameters"]
    ((scores),) = last["scores"].values()
    assert scores["count"] == 6
    adapter = json.loads((done.folder / "stages/01-finetune/adapter/adapter_config.json").read_text())
    assert adapter["peft_type"] == "LORA" and adapter["base_model_name_or_path"] == str(public)
    assert "generation" in str(Tokenizer.load(done.model).chat_template)


def test_a_model_of_the_hub_is_named_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no path that has to be there; where the network is forbidden and the cache lacks it, that is said."""
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recipe = load("instruct", [*OVER, "model.folder=some-org/Some-Model-8B", "data.source=instructions"])
    with pytest.raises(OfflineError, match="some-org/Some-Model-8B"):
        quatrain.run(recipe, runs_dir=tmp_path, reporter=SilentReporter())
    (tmp_path / "some-org").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        quatrain.run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter())
