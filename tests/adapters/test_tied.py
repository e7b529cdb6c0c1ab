"""Tied embeddings and weights that learn whole: read and written as PEFT does, resized ones among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_set import some
from tiny_models import gpt2, llama, random_model, save_random

from quatrain.adapters import peft_files
from quatrain.adapters.adapter_set import AdapterSet
from quatrain.adapters.apply import apply_adapter, fully_trained_parameters, merge_adapters
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

peft = pytest.importorskip("peft", reason="the reference is not installed")
transformers = pytest.importorskip("transformers", reason="the reference is not installed")

IDS = torch.tensor([[5, 6, 7, 1, 2, 8]])
SIZE = 60


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(llama(tie_word_embeddings=True), tmp_path_factory.mktemp("tied"))


def theirs(base: Path, size: int = SIZE) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if size != SIZE:
        model.resize_token_embeddings(size, mean_resizing=False)
    return model.eval()


def made_by_peft(base: Path, folder: Path, size: int = SIZE, **options: Any) -> Any:
    torch.manual_seed(0)
    wanted = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False} | options
    model = peft.get_peft_model(theirs(base, size), peft.LoraConfig(task_type="CAUSAL_LM", **wanted)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "tokens_delta" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def close(mine: Model, reference: Any) -> None:
    torch.testing.assert_close(mine.eval()(IDS)[0], reference(IDS).logits, atol=1e-5, rtol=1e-5)


ROWS = {"embed_tokens": [1, 2]}, {"lm_head": [1, 2]}, {"embed_tokens": [1, 2], "lm_head": [1, 2]}
CASES: list[dict[str, Any]] = [
    *({"modules_to_save": parts, "ensure_weight_tying": ensured, "size": size}
      for parts in (["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"])
      for ensured in (False, True) for size in (SIZE, SIZE + 6)),
    {"size": SIZE + 6},
    *({"trainable_token_indices": rows} for rows in ROWS),
    {"trainable_token_indices": [1, 2, SIZE + 1], "size": SIZE + 6},
    {"modules_to_save": ["embed_tokens"], "trainable_token_indices": ROWS[1]},
    {"target_modules": ["q_proj", "lm_head"]},
]  # fmt: skip


@pytest.mark.parametrize("case", some(CASES, CASES[::3]), ids=str)
def test_what_peft_writes_is_read_written_again_and_merged(case: dict[str, Any], tied: Path, tmp_path: Path) -> None:
    case = dict(case)
    size = case.pop("size", SIZE)
    reference = made_by_peft(tied, tmp_path / "adapter", size, **case)
    model, _ = load_model(tmp_path / "adapter")
    close(model, reference)
    peft_files.save_adapter(model, tmp_path / "again", base_model=str(tied))
    close(load_model(tmp_path / "again")[0], reference)
    close(model, peft.PeftModel.from_pretrained(theirs(tied, size), tmp_path / "again").eval())
    folders = {"one": tmp_path / "adapter", "plain": plain(tied, tmp_path / "plain")}
    adapter_set = AdapterSet.load(model_folder.load(tied), folders)
    for name, place in (("one", "adapter"), ("plain", "plain"), ("one", "adapter")):
        adapter_set.activate(name)
        with torch.no_grad():
            alone, _ = load_model(tmp_path / place)
            said = adapter_set.model(IDS)[0][..., : alone.config.vocab_size]
            torch.testing.assert_close(said, alone(IDS)[0], atol=1e-5, rtol=1e-5)
    merge_adapters(model)
    close(model, reference)
    model_folder.save(model, tmp_path / "merged")
    close(model_folder.load(tmp_path / "merged"), reference)
    close(model, theirs(tmp_path / "merged"))


def plain(base: Path, folder: Path) -> Path:
    made_by_peft(base, folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rows", [(), (1, 2)])
@pytest.mark.parametrize("parts", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
def test_what_learns_here_is_read_by_peft(family: str, rows: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    """The named part learns, the other one stays as it was."""
    base = random_model({"llama": llama, "gpt2": gpt2}[family](tie_word_embeddings=True))
    model_folder.save(base, tmp_path / "base")
    model = model_folder.load(tmp_path / "base")
    apply_adapter(model, AdapterSettings(rank=4, target_modules=("q_proj",), modules_to_save=parts))
    train_tokens(model, rows)
    learning = {name for name in fully_trained_parameters(model)}
    assert learning == {f"{part}.weight" for part in parts}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    for part in {"embed_tokens", "lm_head"} - set(parts):
        assert torch.equal(model.get_submodule(part).weight, base.embed_tokens.weight)  # type: ignore[arg-type]
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    close(model, peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "adapter").eval())
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "adapter")[0](IDS)[0], model(IDS)[0], atol=1e-6, rtol=0)


def test_gradients_reach_the_named_part_alone(tied: Path) -> None:
    for part, other in (("embed_tokens", "lm_head"), ("lm_head", "embed_tokens")):
        model = model_folder.load(tied)
        apply_adapter(model, AdapterSettings(rank=4, modules_to_save=(part,)))
        model(IDS, IDS)[1].sum().backward()
        assert model.get_submodule(part).weight.grad is not None  # type: ignore[union-attr]
        assert model.get_submodule(other).weight.grad is None  # type: ignore[union-attr]


@pytest.mark.parametrize("part", ["embed_tokens", "lm_head"])
def test_a_family_that_is_always_tied_says_so(part: str, tmp_path: Path) -> None:
    config = transformers.BartConfig(
        vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path)
    model = model_folder.load(tmp_path)
    with pytest.raises(InputError, match="cannot be applied") as caught:
        apply_adapter(model, AdapterSettings(rank=4, modules_to_save=(part,)))
    assert "always tie the head to the embedding" in caught.value.problems[0]


def test_tied_weights_that_differ_are_refused(tied: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made_by_peft(tied, tmp_path, SIZE + 6)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in tensors if "lm_head" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert "differ" in caught.value.problems[0]


def test_other_tokens_for_embedding_and_head_are_refused_by_name(tied: Path, tmp_path: Path) -> None:
    made_by_peft(tied, tmp_path, trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [3]})
    with pytest.raises(InputError, match="trainable_token_indices") as caught:
        load_model(tmp_path)
    assert "name different tokens" in caught.value.problems[0]


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from(["embed_tokens", "lm_head", "norm"]), unique=True), st.booleans(),
    st.sampled_from([SIZE, SIZE + 3]), st.sampled_from([["q_proj"], ["q_proj", "down_proj"], "all-linear"]),
)  # fmt: skip
def test_any_parts_are_read_as_peft_has_them(
    tied: Path, tmp_path_factory: pytest.TempPathFactory, parts: list[str], ensured: bool, size: int, targets: Any
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    options = {"modules_to_save": parts or None, "ensure_weight_tying": ensured, "target_modules": targets}
    reference = made_by_peft(tied, folder, size, **options)
    model, _ = load_model(folder)
    close(model, reference)
    assert list(adapter_layers(model))


@pytest.mark.parametrize(
    "learned", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}], ids=str
)
def test_a_head_under_two_names_is_written_under_both(learned: dict[str, Any], tmp_path: Path) -> None:
    """GPT-NeoX's head is `embed_out` or `lm_head`, by the release of transformers."""
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "base")
    model = model_folder.load(tmp_path / "base")
    apply_adapter(model, AdapterSettings(**{"rank": 4, "target_modules": ["q_proj"], **learned}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    peft_files.save_adapter(model.eval(), tmp_path / "ours", base_model=str(tmp_path / "base"))
    base = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path / "base")
    reference = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(reference(ids).logits, model(ids)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(load_model(tmp_path / "ours")[0](ids)[0], model(ids)[0], atol=1e-5, rtol=1e-5)
