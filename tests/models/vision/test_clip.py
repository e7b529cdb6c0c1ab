"""CLIP and its towers are the models that transformers has; files both ways."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.heads import contrastive_loss
from quatrain.models.transformer.stack import Model
from quatrain.planning.counts import parameters

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SIZES | {"vocab_size": 41, "max_position_embeddings": 12, "projection_dim": 20, "eos_token_id": 40,
                "bos_token_id": 1, "pad_token_id": 0}  # fmt: skip
IMAGE = SIZES | {"hidden_size": 24, "image_size": 12, "patch_size": 4, "projection_dim": 20}


def theirs(name: str) -> Any:
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager"}
    if name == "CLIPModel":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=16, **eager)
    elif "Text" in name:
        config = transformers.CLIPTextConfig(**TEXT, **eager)
    else:
        config = transformers.CLIPVisionConfig(**IMAGE, **eager)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():
                parameter.normal_(0, 0.2)
    return model.eval()


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, 39, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[:, -1] = 40
    ids[1, 5], ids[1, 6:], mask[1, 6:] = 40, 0, 0
    return ids, mask


def pictures(side: int = 12) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModel",
                                  "CLIPVisionModelWithProjection"])  # fmt: skip
def test_every_part_equals_that_of_transformers(name: str, tmp_path: Path) -> None:
    reference = theirs(name)
    reference.save_pretrained(tmp_path / "theirs")
    model = model_folder.load(tmp_path / "theirs")
    ids, mask = texts()
    x, trace = pictures(), Trace()
    record = {"output_hidden_states": True, "output_attentions": True}
    if name == "CLIPModel":
        expected = reference(input_ids=ids, pixel_values=x, attention_mask=mask)
        torch.testing.assert_close(model(ids, features=x, segments=mask)[0], expected.logits_per_text, **TOLERANCE)
        torch.testing.assert_close(model.text_vectors(ids, mask), expected.text_embeds, **TOLERANCE)
        torch.testing.assert_close(model.image_vectors(x), expected.image_embeds, **TOLERANCE)
    elif "Text" in name:
        expected = reference(input_ids=ids, attention_mask=mask, **record)
        hidden = model.hidden_states(ids, segments=mask, trace=trace)
        real = mask.bool()
        torch.testing.assert_close(hidden[real], expected.last_hidden_state[real], **TOLERANCE)
        if "Projection" in name:
            torch.testing.assert_close(model(ids, segments=mask)[0], expected.text_embeds, **TOLERANCE)
    else:
        expected = reference(pixel_values=x, **record)
        hidden = model.hidden_states(features=x, trace=trace)
        if "Projection" in name:
            torch.testing.assert_close(model(features=x)[0], expected.image_embeds, **TOLERANCE)
        else:
            torch.testing.assert_close(hidden[:, 0], expected.pooler_output, **TOLERANCE)
            for ours, other in zip(trace.attentions, expected.attentions, strict=True):
                torch.testing.assert_close(ours, other, **TOLERANCE)
            for ours, other in zip(trace.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
                torch.testing.assert_close(ours, other, **TOLERANCE)
    model_folder.save(model, tmp_path / "ours")
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("theirs", "ours"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    reference = theirs("CLIPModel")
    reference.save_pretrained(tmp_path)
    ids, mask = texts()
    x = pictures(20)
    expected = reference(input_ids=ids, attention_mask=mask, pixel_values=x, interpolate_pos_encoding=True)
    ours = model_folder.load(tmp_path)(ids, segments=mask, features=x)[0]
    torch.testing.assert_close(ours, expected.logits_per_text, **TOLERANCE)


def test_counts_and_the_published_configuration() -> None:
    config = get_family("clip").from_hf({"model_type": "clip", "text_config": {"eos_token_id": 2}, "vision_config": {}})
    assert parameters(config) == 151_277_313  # CLIP ViT-B/32
    assert config.eos_token_id == 49407  # Old files name token 2, which is not the end.


def test_the_loss_is_transformers_own_for_pairs(tmp_path: Path) -> None:
    reference = theirs("CLIPModel")
    reference.save_pretrained(tmp_path)
    model = model_folder.load(tmp_path)
    ids, mask = texts()
    x = pictures()
    expected = reference(input_ids=ids[:2], pixel_values=x, attention_mask=mask[:2], return_loss=True).loss
    _, loss = model(ids[:2], torch.eye(2), segments=mask[:2], features=x)
    torch.testing.assert_close(loss.mean(), expected, **TOLERANCE)


def test_texts_that_describe_several_pictures_share_the_probability() -> None:
    logits = torch.zeros(3, 3)
    matches = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(contrastive_loss(logits, matches), torch.full((3,), 3.0).log())
    with pytest.raises(InputError, match="belongs to none"):
        contrastive_loss(logits, torch.zeros(3, 3))


def test_the_model_learns_pairs() -> None:
    raw = {"model_type": "clip", "text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16}
    model = Model(get_family("clip").from_hf(raw)).initialize(0)
    assert model.log_scale.item() == pytest.approx(2.6592)
    ids, mask = texts()
    x = pictures()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        loss = model(ids[:2], torch.eye(2), segments=mask[:2], features=x)[1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.05


@pytest.mark.parametrize(("changes", "message"), [
    ({"text_config": 5}, "text_config"), ({"mystery": 5}, "mystery"),
    ({"vision_config": IMAGE | {"patch_size": 0}}, "vision_config: patch_size"),
    ({"text_config": TEXT | {"mystery": 1}}, "text_config: mystery"),
])  # fmt: skip
def test_wrong_configurations_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    raw = {"model_type": "clip", "text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16}
    with pytest.raises(InputError) as caught:
        get_family("clip").from_hf(raw | changes)
    assert message in str(caught.value)
