"""Learned prompts are PEFT's, and are there wherever a model reads: in training, in a cache, in padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import bloom, gpt2, llama, random_model, save_random
from torch import nn

from quatrain.adapters import peft_files, state
from quatrain.adapters.apply import apply_adapter, count_trainable_parameters
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

CONFIGS = {"llama": llama(), "gpt2": gpt2(max_position_embeddings=40)}
IDS = torch.randint(1, 60, (2, 11), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(1))
METHODS: dict[str, dict[str, Any]] = {
    "prompt": {}, "p-tuning": {"bottleneck_dim": 24}, "prefix": {},
    "prefix-network": {"method": "prefix", "bottleneck_dim": 24},
}  # fmt: skip


def base_of(family: str, folder: Path) -> Path:
    return save_random(CONFIGS[family], folder)


def prompted(base: Path, name: str = "prompt", **more: Any) -> Model:
    model = model_folder.load(base)
    apply_adapter(model, AdapterSettings(**{"method": name, "num_virtual_tokens": 5} | METHODS[name] | more), seed=1)
    return model


def reference_of(base: Path, folder: Path) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder)


def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", METHODS)
def test_our_folder_is_read_by_peft_and_again_by_us(family: str, name: str, tmp_path: Path) -> None:
    base = base_of(family, tmp_path / "base")
    model = prompted(base, name)
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    reference = reference_of(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        mine = model(IDS)[0]
        assert mine.shape == (2, 11, 60)
        close(mine, reference(IDS).logits[:, -11:])  # soft prompts have logits there, prefixes have none
        again, _ = load_model(tmp_path / "adapter")
        close(again(IDS)[0], mine)
        assert not torch.allclose(model_folder.load(base)(IDS)[0], mine, atol=1e-2)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_a_step_is_that_of_peft(family: str, name: str, tmp_path: Path) -> None:
    base = base_of(family, tmp_path / "base")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind = peft.PromptTuningConfig if name == "prompt" else peft.PrefixTuningConfig
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    reference = peft.get_peft_model(theirs, kind(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    model = prompted(base, name)
    (rows,) = [parameter for parameter in reference.parameters() if parameter.requires_grad]
    with torch.no_grad():
        rows.copy_(model.soft_prompt.rows)
    model.eval()(IDS, LABELS)[1].mean().backward()
    logits = reference(IDS).logits[:, -11:]
    nn.functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten()).backward()
    assert rows.grad.abs().max() > 1e-4
    close(model.soft_prompt.rows.grad, rows.grad)


@pytest.mark.parametrize("kind", ["prompt", "p-tuning", "prefix", "prefix-network"])
def test_pefts_folder_is_read_by_us(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    base = base_of("llama", tmp_path / "base")
    config = {
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "p-tuning": lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prefix-network": lambda: peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16),
    }[kind]()  # fmt: skip
    torch.manual_seed(0)
    reference = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config).eval()
    reference.peft_config["default"].base_model_name_or_path = "../base"
    reference.save_pretrained(str(tmp_path / "theirs"))
    model, _ = load_model(tmp_path / "theirs")
    with torch.no_grad():
        close(model(IDS)[0], reference(IDS).logits[:, -11:])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", METHODS)
def test_padded_batches_and_caches_read_it_too(family: str, name: str, tmp_path: Path) -> None:
    model = prompted(base_of(family, tmp_path / "base"), name)
    rows = [[3, 7, 9, 4, 8, 2], [5, 6]]
    padded = torch.tensor([rows[0], [*rows[1], 0, 0, 0, 0]])
    segments = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        together = model(padded, segments=segments)[0]
        for row, ids in enumerate(rows):
            close(together[row, : len(ids)], model(torch.tensor([ids]))[0][0])
    params = SamplingParams(max_new_tokens=6, temperature=0.0)
    batch = Engine(model).generate(rows, params)
    for ids, answer in zip(rows, batch, strict=True):
        said = list(ids)
        for token in answer.ids:
            with torch.no_grad():
                logits = model(torch.tensor([said]))[0][0, -1]
            assert logits[token] >= logits.max() - 1e-4
            said.append(token)
    with pytest.raises(InputError, match="one text per row"):
        model(padded, segments=torch.tensor([[1, 1, 1, 2, 2, 2], [1] * 6]))


def test_its_slots_count_to_the_context(tmp_path: Path) -> None:
    model = prompted(base_of("gpt2", tmp_path / "base"))
    engine = Engine(model)
    engine.generate([list(range(1, 34))], SamplingParams(max_new_tokens=2))
    with pytest.raises(InputError, match="the model reads 35"):
        engine.generate([list(range(1, 37))], SamplingParams(max_new_tokens=2))
    (answer,) = engine.generate([[1] * 30], SamplingParams(max_new_tokens=50))
    assert len(answer.ids) <= 5


@pytest.mark.parametrize("name", METHODS)
def test_only_the_prompt_learns_and_comes_back(name: str, tmp_path: Path) -> None:
    base = base_of("llama", tmp_path / "base")
    model = prompted(base, name)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(30):
        loss = model.train()(IDS, LABELS)[1].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) != key.startswith("soft_prompt."), key
    trained, total, _ = count_trainable_parameters(model)
    assert trained == sum(parameter.numel() for parameter in model.soft_prompt.parameters())
    assert total == trained + sum(parameter.numel() for parameter in model_folder.load(base).parameters())
    state.save(model, tmp_path / "state")
    again = prompted(base, name)
    state.load(again, tmp_path / "state")
    with torch.no_grad():
        assert torch.equal(again.eval()(IDS)[0], model.eval()(IDS)[0])


def test_it_begins_as_the_tokens_of_a_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat"], kind="char", vocab_size=60)
    model = model_folder.load(base_of("llama", tmp_path / "base"))
    settings = AdapterSettings(method="prompt", num_virtual_tokens=5, init_text="cat")
    apply_adapter(model, settings, tokenizer=tokenizer)
    ids = tokenizer.encode("cat")
    assert torch.equal(model.soft_prompt.rows, model.embed_tokens.weight[[*ids, *ids][:5]])
    with pytest.raises(InputError, match="needs a tokenizer"):
        apply_adapter(model_folder.load(tmp_path / "base"), settings)
    with pytest.raises(InputError, match="has a soft prompt already"):
        apply_adapter(model, settings, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_slots_stand_next_to_the_text_where_distance_counts(name: str) -> None:
    """ALiBi counts slots between tokens, so that padding must not lie between a prompt and its text."""
    model = random_model(bloom())
    apply_adapter(model, AdapterSettings(method=name, num_virtual_tokens=5), seed=1)  # type: ignore[arg-type]
    rows = [[3, 7, 9, 4, 8, 2], [5, 6]]
    params = SamplingParams(max_new_tokens=4, temperature=0.0)
    together = Engine(model).generate(rows, params)
    for ids, answer in zip(rows, together, strict=True):
        alone = Engine(model).generate([ids], params)[0]
        assert answer.ids == alone.ids
        torch.testing.assert_close(torch.tensor(answer.logprobs), torch.tensor(alone.logprobs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "p-tuning"])
def test_an_encoder_reads_a_prompt_as_pefts_does(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0))  # fmt: skip
    theirs.save_pretrained(tmp_path / "base")
    model = model_folder.load(tmp_path / "base")
    width = 24 if kind == "p-tuning" else 0
    apply_adapter(model, AdapterSettings(method=kind, num_virtual_tokens=5, bottleneck_dim=width), seed=1)  # type: ignore[arg-type]
    peft_files.save_adapter(model, tmp_path / "ours", base_model="../base")
    base = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base")
    reference = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    mask = torch.tensor([[1] * 11, [1] * 7 + [0] * 4])
    with torch.no_grad():
        mine = model.eval()(IDS, decoder_input_ids=LABELS, segments=mask)[0]
        close(mine, reference(input_ids=IDS, attention_mask=mask, decoder_input_ids=LABELS).logits)
        plain = model_folder.load(tmp_path / "base")(IDS, decoder_input_ids=LABELS)[0]
        assert not torch.allclose(plain, mine, atol=1e-2)
        again, _ = load_model(tmp_path / "ours")
        close(again(IDS, decoder_input_ids=LABELS, segments=mask)[0], mine)
    config = {"prompt": peft.PromptTuningConfig, "p-tuning": peft.PromptEncoderConfig}[kind](
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4
    )
    other = peft.get_peft_model(transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base"), config)
    other.peft_config["default"].base_model_name_or_path = "../base"
    other.save_pretrained(str(tmp_path / "theirs"))
    with torch.no_grad():
        close(load_model(tmp_path / "theirs")[0](IDS, decoder_input_ids=LABELS)[0],
              other.eval()(input_ids=IDS, decoder_input_ids=LABELS).logits)  # fmt: skip
    rows = [[3, 7, 9, 4, 8, 2], [5, 6]]
    params = SamplingParams(max_new_tokens=4, temperature=0.0)
    for ids, answer in zip(rows, Engine(model).generate(rows, params), strict=True):
        assert answer.ids == Engine(model).generate([ids], params)[0].ids
    with pytest.raises(InputError, match="prefix; t5 has an encoder"):
        apply_adapter(model_folder.load(tmp_path / "base"), AdapterSettings(method="prefix"))
