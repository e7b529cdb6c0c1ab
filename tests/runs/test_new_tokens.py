"""Tokens that a recipe adds to a model of somebody else: rows that learn, are saved, and are read by PEFT."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_set import some
from tiny_models import llama

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.merging import merge
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.vocabulary import resize_vocabulary
from quatrain.runs.recipe import loads
from quatrain.runs.runner import Run
from quatrain.tokenizers.tokenizer import Tokenizer

WORDS = ("film", "house", "river", "stone", "bread", "green")
RECIPE = """
name = "mine"
[data]
source = "{chats}"
[tokenizer]
chat_template = "llama-3"
special_tokens = ["<sql>"]
[model]
folder = "{base}"
[[stage]]
kind = "finetune"
evaluate = false
{adapter}
train = {{ steps = {steps}, batch_tokens = 256, learning_rate = 0.02, warmup_steps = 0 }}
"""


def base_of(folder: Path, *, tied: bool, rows: int | None = None) -> Path:
    """A model of somebody else, whose tokenizer knows no chat; with `rows`, some to spare."""
    tokenizer = Tokenizer.train([f"say {word} please <sql>" for word in WORDS] * 3, vocab_size=300, kind="bpe")
    config = llama(vocab_size=rows or tokenizer.vocab_size, tie_word_embeddings=tied)
    model_folder.save(Model(config).initialize(seed=0), folder)
    tokenizer.save(folder)
    return folder


def run_on(base: Path, tmp_path: Path, adapter: str, steps: int = 60) -> Run:
    chats = tmp_path / "chats.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": f"<sql>{word}"}]}
            for word in WORDS * 10]  # fmt: skip
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = RECIPE.format(chats=chats, base=base, adapter=adapter and f"adapter = {{ {adapter} }}", steps=steps)
    return quatrain.run(loads(text), runs_dir=tmp_path / "runs", reporter=SilentReporter())


@pytest.mark.parametrize(
    ("tokens", "tied"), some(itertools.product(("special", "none"), (True, False)), [("special", True)])
)
def test_new_tokens_learn_beside_an_adapter(tied: bool, tokens: str, tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tied=tied)
    before, known = model_folder.load(base), Tokenizer.load(base)
    run = run_on(base, tmp_path, f'method = "lora", rank = 4, trainable_tokens = "{tokens}"')
    adapter = run.folder / "stages" / "01-finetune" / "adapter"
    merged, tokenizer = load_model(run.model)
    new = [tokenizer.token_to_id(token) for token in ("<sql>", "<|start_header_id|>", "<|eot_id|>")]
    assert all(number is not None and number >= known.vocab_size for number in new)
    learning = set(new) | ({*known.special_ids} if tokens == "special" else set())
    learning.add(tokenizer.token_to_id("<|end_header_id|>"))
    for name in ("embed_tokens.weight", "lm_head.weight"):
        old = dict(before.named_parameters(remove_duplicate=False))[name]
        now = dict(merged.named_parameters(remove_duplicate=False))[name]
        assert now.shape[0] == tokenizer.vocab_size
        extended = torch.cat((old, old.mean(0, keepdim=True).expand(len(now) - len(old), -1)))
        moved = {row for row in range(len(now)) if not torch.equal(now[row], extended[row])}
        # A special token that no chat has, such as padding, has no gradient at the embedding; at a head it has.
        assert moved <= learning and {*new} <= moved
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert set(config["trainable_token_indices"]) == ({"embed_tokens"} if tied else {"embed_tokens", "lm_head"})

    adapted, again = load_model(adapter)
    ids = torch.tensor([tokenizer.encode("<|start_header_id|>user say film<sql>")])
    assert again.chat_template == tokenizer.chat_template and again.fingerprint == tokenizer.fingerprint
    with torch.no_grad():
        said = adapted(ids)[0]
        torch.testing.assert_close(merged(ids)[0], said, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merge([adapter])(ids)[0], said, atol=1e-5, rtol=1e-5)
        theirs = pytest.importorskip("peft").AutoPeftModelForCausalLM.from_pretrained(adapter)
        torch.testing.assert_close(theirs(ids).logits, said, atol=1e-5, rtol=1e-5)
    answer = Engine(merged, tokenizer).chat(
        [[{"role": "user", "content": "say film"}]], SamplingParams(temperature=0.0, max_new_tokens=12)
    )
    assert answer[0].ids[0] == new[0]


def test_a_model_with_rows_to_spare_keeps_them(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tied=True, rows=400)
    run = run_on(base, tmp_path, 'method = "ia3", trainable_tokens = "none"', steps=3)
    merged, tokenizer = load_model(run.model)
    assert merged.config.vocab_size == 400
    before = model_folder.load(base).embed_tokens.weight
    moved = {row for row in range(400) if not torch.equal(merged.embed_tokens.weight[row], before[row])}
    assert moved == {tokenizer.token_to_id(token)
                     for token in ("<sql>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")}  # fmt: skip


def test_new_tokens_learn_with_every_weight(tmp_path: Path) -> None:
    run = run_on(base_of(tmp_path / "base", tied=True), tmp_path, "", steps=3)
    model, tokenizer = load_model(run.model)
    assert model.config.vocab_size == tokenizer.vocab_size and tokenizer.token_to_id("<sql>") is not None


@pytest.mark.parametrize("tied", [True, False])
def test_tasks_teach_new_tokens_each_by_rows_of_its_own(tied: bool, tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tied=tied)
    names = {"one": "film", "other": "river"}
    for name, word in names.items():
        chat = {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(chat) + "\n")
    source = tmp_path / "one.jsonl"
    text = RECIPE.format(chats=source, base=base, adapter='adapter = { method = "lora" }', steps=6)
    sets = [f'{name} = {{ source = "{tmp_path}/{name}.jsonl", validation = 0.0 }}\n' for name in names]
    text += "".join(["[stage.mixture]\n", *sets])
    run = quatrain.run(loads(text), runs_dir=tmp_path / "runs", reporter=SilentReporter())
    model, tokenizer = load_model(run.model)
    assert tokenizer.token_to_id("<sql>") is not None
    rows = [model.adapter_set.members[name].rows for name in names]
    assert set(tokenizer.special_ids) <= set(rows[0].ids)
    assert set(rows[0].tables()) == ({"embed_tokens"} if tied else {"embed_tokens", "lm_head"})
    for one, other in zip(*(each.tables().values() for each in rows), strict=True):
        assert not torch.equal(one, other)
    saved = model_folder.load(run.model / "base").embed_tokens.weight
    before = model_folder.load(base).embed_tokens.weight
    assert torch.equal(saved[: len(before)], before)


def test_a_prompt_cannot_teach_new_tokens(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"new tokens .*<sql>.* could never learn"):
        run_on(base_of(tmp_path / "base", tied=True), tmp_path, 'method = "prompt"')


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_of_another_size(tied: bool, tmp_path: Path) -> None:
    model = model_folder.load(base_of(tmp_path / "base", tied=tied))
    size, ids = model.config.vocab_size, torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        before = model(ids)[0]
        assert resize_vocabulary(model, size + 3) == [size, size + 1, size + 2]
        after: Any = model(ids)[0]
    assert torch.allclose(after[..., :size], before, atol=1e-6) and after.shape[-1] == size + 3
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied  # type: ignore[union-attr]
    model_folder.save(model, tmp_path / "larger")
    with torch.no_grad():
        assert torch.equal(model_folder.load(tmp_path / "larger")(ids)[0], after)
        assert resize_vocabulary(model, size) == []
        assert torch.allclose(model(ids)[0], before, atol=1e-6)
    with pytest.raises(InputError, match="at least 1"):
        resize_vocabulary(model, 0)
