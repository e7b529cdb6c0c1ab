"""Attention rollout and patch maps: shares that add up to 1, on the grid of the picture, drawn over it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.images import read_image, to_png
from quatrain.evaluation.inspection.picture_attention import over_picture, patch_maps, side_by_side
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.stack import Model

pytest.importorskip("PIL", reason="needs Pillow (extra vision)")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
         "image_size": 12, "patch_size": 4}  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", ["vit", "deit", "ijepa"])
def test_rollout_is_the_product_of_the_layers(family: str) -> None:
    model = Model(get_family(family).from_hf({"model_type": family, **SIZES}, head="image_classification"))
    for parameter in model.initialize(0).parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    processor = ImageProcessor(size={"height": 12, "width": 20})
    pixels, rollout, layers = patch_maps(model, processor, PICTURE)
    assert pixels.shape == (12, 20, 3) and rollout.shape == (3, 5) and len(layers) == 2
    for weights in (rollout, *layers):
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-5)
    trace, eye = Trace(), np.eye(15 + model.frontend.patches.num_extra)
    model.hidden_states(features=torch.from_numpy(processor([PICTURE])), trace=trace)
    first, second = (each[0].mean(0).detach().numpy() for each in trace.attentions)
    flow = (second + eye) @ (first + eye) / 4
    row = (flow[0] if family != "ijepa" else flow.mean(0))[model.frontend.patches.num_extra :]
    np.testing.assert_allclose(rollout.ravel(), row / row.sum(), atol=1e-5)


def test_the_verb_draws_where_a_model_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.cli import main

    pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
    raw = {"model_type": "vit", **SIZES, "id2label": {"0": "cat", "1": "dog"}}
    model = Model(get_family("vit").from_hf(raw, head="image_classification")).initialize(0)
    folder, picture = str(tmp_path / "vit"), tmp_path / "picture.png"
    model_folder.save(model, folder)
    ImageProcessor.of(12).save(folder)
    picture.write_bytes(to_png(PICTURE))
    assert main(["inspect", folder, "--file", str(picture), "--attention", str(tmp_path / "maps.png")]) == 0
    out = capsys.readouterr().out
    assert "3 x 3 patches" in out and "The strongest: row " in out
    drawn = read_image(tmp_path / "maps.png")
    assert drawn.shape[1] > 3 * drawn.shape[0] > 300  # four panels in a row
    assert main(["inspect", folder, "--file", str(picture), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    _, rollout, layers = patch_maps(model, ImageProcessor.of(12), PICTURE)
    np.testing.assert_allclose(record["rollout"], rollout, atol=1e-6)
    assert len(record["layers"]) == len(layers) == 2
    assert main(["inspect", folder, "--file", str(picture), "--text", "x", "--lens", "--attention", "a.html"]) == 2
    err = capsys.readouterr().err
    assert all(flag in err for flag in ("--text", "--lens", "--attention"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert main(["inspect", str(tmp_path), "--file", str(picture)]) == 2
    assert "texts alone" in capsys.readouterr().err


def test_a_map_is_red_where_the_weight_is() -> None:
    weights = np.zeros((2, 2))
    weights[0, 1] = 1.0
    drawn = over_picture(np.full((8, 8, 3), 128, np.uint8), weights, side=40)
    assert drawn.shape == (40, 40, 3)
    assert drawn[2, -2, 0] > 150 and abs(int(drawn[-2, 2, 0]) - 128) < 10
    assert side_by_side([drawn, drawn]).shape == (40, 88, 3)
    flat = over_picture(np.zeros((4, 6, 3), np.uint8), np.ones((2, 3)), side=20)
    assert flat.shape == (20, 30, 3)


def test_a_model_of_texts_has_no_map() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text_model = Model(get_family("bert").from_hf({"model_type": "bert", "vocab_size": 9, **sizes}, head="none"))
    with pytest.raises(InputError, match="reads no pictures"):
        patch_maps(text_model, ImageProcessor.of(8), PICTURE)
