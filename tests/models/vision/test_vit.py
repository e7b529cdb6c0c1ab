"""ViT, DeiT and I-JEPA are the models that transformers has: logits, hidden states, attentions, files both ways."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.stack import Model
from quatrain.models.vision.patches import Patches
from quatrain.planning.counts import parameters
from quatrain.planning.facts import load_facts

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 12,
         "patch_size": 4, "num_labels": 3, "hidden_dropout_prob": 0.0}  # fmt: skip
CASES = {
    "vit": ("ViTForImageClassification", "ViTConfig", {}),
    "vit body": ("ViTModel", "ViTConfig", {}),
    "vit oblong": ("ViTForImageClassification", "ViTConfig", {"image_size": [8, 12], "patch_size": [4, 6]}),
    "vit grey": ("ViTForImageClassification", "ViTConfig", {"num_channels": 1, "hidden_act": "relu"}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {}),
    "deit with teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {}),
    "deit body": ("DeiTModel", "DeiTConfig", {}),
    "ijepa": ("IJepaForImageClassification", "IJepaConfig", {}),
    "ijepa body": ("IJepaModel", "IJepaConfig", {}),
}
EVERY = pytest.mark.parametrize("name", CASES)


def theirs(name: str) -> Any:
    kind, config, changes = CASES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**SIZES | changes, attn_implementation="eager"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


def pictures(model: Any, size: tuple[int, int] | None = None) -> torch.Tensor:
    sides = model.config.image_size
    shape = size or (sides if isinstance(sides, list | tuple) else (sides, sides))
    return torch.randn(2, model.config.num_channels, *shape, generator=torch.Generator().manual_seed(1))


@EVERY
def test_outputs_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = theirs(name)
    reference.save_pretrained(tmp_path)
    model = model_folder.load(tmp_path)
    x, trace = pictures(reference), Trace()
    expected = reference(pixel_values=x, output_hidden_states=True, output_attentions=True)
    hidden = model.hidden_states(features=x, trace=trace)
    final = expected.last_hidden_state if "body" in name else None
    if final is None:
        torch.testing.assert_close(model(features=x)[0], expected.logits, **TOLERANCE)
    else:
        torch.testing.assert_close(hidden, final, **TOLERANCE)
    for ours, other in zip(trace.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours, other, **TOLERANCE)
    # transformers records the last state before the final norm.
    for ours, other in zip(trace.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours, other, **TOLERANCE)


@EVERY
def test_a_folder_that_is_read_and_written_is_the_same(name: str, tmp_path: Path) -> None:
    theirs(name).save_pretrained(tmp_path / "theirs")
    model_folder.save(model_folder.load(tmp_path / "theirs"), tmp_path / "ours")
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind = getattr(transformers, CASES[name][0])
        reread, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    x = pictures(reread)
    mine = model_folder.load(tmp_path / "ours").hidden_states(features=x)
    body = reread if "body" in name else getattr(reread, reread.base_model_prefix)
    torch.testing.assert_close(mine, body(pixel_values=x).last_hidden_state, **TOLERANCE)


@pytest.mark.parametrize("name", ["vit", "deit", "ijepa"])
def test_a_picture_of_another_size_has_interpolated_positions(name: str, tmp_path: Path) -> None:
    reference = theirs(name)
    reference.save_pretrained(tmp_path)
    x = pictures(reference, (20, 28))
    expected = reference(pixel_values=x, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model_folder.load(tmp_path)(features=x)[0], expected, **TOLERANCE)


def small(**changes: Any) -> Model:
    raw = {"model_type": "vit", **SIZES} | changes
    raw.pop("num_labels")
    return Model(get_family("vit").from_hf(raw, head="image_classification")).initialize(0).eval()


def test_fourteen_rows_become_sixty_one() -> None:
    frontend = small(image_size=14, patch_size=1).frontend
    positions = frontend.positions((61, 61))
    assert positions.shape == (1 + 61 * 61, 32)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_positions_have_the_size_of_the_grid(rows: int, columns: int, more_rows: int, more_columns: int) -> None:
    module = Patches((rows, columns), (1, 1), distillation_token=True).build(small().config)
    assert len(module.positions((more_rows, more_columns))) == 2 + more_rows * more_columns


def test_counts() -> None:
    labels = {str(number): str(number) for number in range(1000)}
    config = get_family("vit").from_hf({"model_type": "vit", "id2label": labels}, head="image_classification")
    assert parameters(config) == 86_567_656  # ViT-B/16 with ImageNet's 1,000 classes
    published = load_facts().models["vit-l-16"]
    large = transformers.ViTConfig(
        **{key: value for key, value in published.config.items() if key != "model_type"},
        num_attention_heads=16, num_labels=1000,
    )  # fmt: skip
    with torch.device("meta"):
        reference = transformers.ViTForImageClassification(large)
    ours = get_family("vit").from_hf(large.to_dict(), head="image_classification")
    assert parameters(ours) == reference.num_parameters() == published.parameters
    small_config = {"model_type": "deit", "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    config = get_family("deit").from_hf(small_config | {"id2label": labels}, head="distilled_classification")
    assert parameters(config) == 5_910_800  # DeiT-Ti distilled


def test_the_teachers_label_is_that_of_the_distillation_token() -> None:
    raw = {"model_type": "deit", **SIZES}
    model = Model(get_family("deit").from_hf(raw, head="distilled_classification")).initialize(0)
    x = torch.randn(4, 3, 12, 12)
    labels = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 0]])
    _, loss = model(features=x, labels=labels)
    assert loss.shape == (4,)
    loss.sum().backward()
    assert model.distillation_score.weight.grad.abs().sum() > 0
    hidden = model.hidden_states(features=x)
    parts = [
        torch.nn.functional.cross_entropy(head(hidden[:, place]), labels[:, place], reduction="none")
        for place, head in enumerate((model.score, model.distillation_score))
    ]
    torch.testing.assert_close(loss, (parts[0] + parts[1]) / 2)


def test_wrong_pictures_are_refused() -> None:
    model = small()
    with pytest.raises(InputError, match=r"must be pictures \(B, 3"):
        model(features=torch.zeros(1, 1, 12, 12))
    with pytest.raises(InputError, match="at least one patch, 4x4"):
        model(features=torch.zeros(1, 3, 3, 12))
    with pytest.raises(InputError, match="needs features"):
        model()
    with pytest.raises(InputError, match="no vocabulary"):
        model(torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 16}, "patch_size: 16x16; must be at most image_size"),
        ({"image_size": [1, 2, 3]}, "image_size"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"pooler_act": "relu"}, "pooler_act"),
        ({"pooler_output_size": 5}, "pooler_output_size"),
        ({"mystery": 3}, "mystery"),
    ],
)
def test_options_that_the_stack_does_not_have_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_family("vit").from_hf({"model_type": "vit", **SIZES} | changes, head="none")


def test_a_text_model_reads_no_pictures(tmp_path: Path) -> None:
    raw = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
           "intermediate_size": 8}  # fmt: skip
    model = Model(get_family("bert").from_hf(raw, head="none"))
    with pytest.raises(InputError, match="reads tokens alone"):
        model(torch.zeros(1, 3, dtype=torch.long), features=torch.zeros(1, 3, 4, 4))


def test_another_number_of_classes_gets_a_new_head(tmp_path: Path) -> None:
    theirs("vit").save_pretrained(tmp_path)
    model = model_folder.load(tmp_path, head="image_classification", labels=["cat", "dog"])
    assert model.newly_initialized == ["score.bias", "score.weight"]
    model_folder.save(model, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
