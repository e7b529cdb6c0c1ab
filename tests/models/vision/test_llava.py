"""LLaVA is the model that transformers has: logits, gradients, files both ways, image tokens and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from quatrain.core.errors import InputError
from quatrain.data.image_processor import ImageProcessor
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.pictures import PictureIds
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.planning.counts import parameters
from quatrain.tokenizers.tokenizer import Tokenizer

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
          "image_size": 12, "patch_size": 4}  # fmt: skip
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 32, "vocab_size": 60, "max_position_embeddings": 128, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
IMAGE = 59

CASES = {
    "clip": (transformers.CLIPVisionConfig(**VISION, projection_dim=8), {}),
    "clip-full-last": (
        transformers.CLIPVisionConfig(**VISION, projection_dim=8),
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    ),
    "vit": (transformers.ViTConfig(**VISION), {"vision_feature_layer": -1, "multimodal_projector_bias": False}),
    "linear": (transformers.CLIPVisionConfig(**VISION, projection_dim=8), {"projector_hidden_act": "linear"}),
}


def theirs(name: str) -> Any:
    tower, more = CASES[name]
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=transformers.LlamaConfig(**TEXT), image_token_index=IMAGE, **more
    )
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        projector = model.model.multi_modal_projector
        if name == "linear":
            projector.linear_2.weight.copy_(torch.eye(24))
            projector.linear_2.bias.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Each reference with its folder."""
    found = {}
    for name in CASES:
        folder = tmp_path_factory.mktemp(name)
        model = theirs(name)
        model.save_pretrained(folder)
        found[name] = model, folder
    return found


def inputs(vectors: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 58, (2, vectors + 7), generator=draw)
    ids[0, 2 : 2 + vectors] = IMAGE
    ids[1, 4 : 4 + vectors] = IMAGE
    return ids, torch.randn(2, 3, 12, 12, generator=draw)


def bare(name: str) -> str:
    """The name of a weight without the beginnings in which files and modules differ."""
    return name.replace("language_model.", "").replace("vision_model.", "").replace("model.", "")


@pytest.mark.parametrize("name", CASES)
def test_logits_gradients_and_files_are_those_of_transformers(
    name: str, folders: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    reference, folder = folders[name]
    model = model_folder.load(folder)
    assert parameters(model.config) == model.num_parameters()
    frontend: Any = model.config.frontend
    ids, pictures = inputs(frontend.num_vectors)
    expected = reference(input_ids=ids, pixel_values=pictures, labels=ids)
    logits, loss = model(ids[:, :-1], ids[:, 1:], features=pictures)
    torch.testing.assert_close(logits, expected.logits[:, :-1], **TOLERANCE)
    torch.testing.assert_close(loss.mean(), expected.loss, **TOLERANCE)

    model.zero_grad()
    reference.zero_grad()
    loss.mean().backward()
    expected.loss.backward()
    own = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    found: dict[str, torch.Tensor] = {}
    for operation in get_family("llava").weights(model.config):
        if operation.targets and all(target in own for target in operation.targets):
            found.update(operation.write(own.__getitem__))
    found = {bare(key): value for key, value in found.items()}
    wanted = {bare(key): value.grad for key, value in reference.named_parameters() if value.grad is not None}
    second = {f"multi_modal_projector.linear_2.{leaf}" for leaf in ("weight", "bias")}  # The identity, of "linear".
    if name == "vit":  # Its modules have other names than its files.
        norms = [sorted(float(value.norm()) for key, value in one.items() if "vision_tower" in key)
                 for one in (found, wanted)]  # fmt: skip
        torch.testing.assert_close(*map(torch.tensor, norms), **TOLERANCE)
        found, wanted = ({key: value for key, value in one.items() if "vision_tower" not in key}
                         for one in (found, wanted))  # fmt: skip
    assert set(wanted) - set(found) <= (second if name == "linear" else set())
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")

    model_folder.save(model, tmp_path)
    back, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    written, stored = reference.state_dict(), back.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in written.items())
    again = model_folder.load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_files_of_older_versions_are_read(folders: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    """Hub folders of LLaVA 1.5 name the decoder's defaults nowhere, and newer ones put `model.` before every name."""
    from safetensors.torch import save_file

    _, folder = folders["clip"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    newer = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        place = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head",
                                                                                      "lm_head")  # fmt: skip
        newer[place if place.startswith(("model.", "lm_head")) else f"model.{place}"] = tensor
    save_file(newer, tmp_path / "model.safetensors")
    ours = model_folder.load(folder).state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in model_folder.load(tmp_path).state_dict().items())
    raw = {"model_type": "llava", "image_token_index": 32000, "ignore_index": -100, "vocab_size": 32064,
           "text_config": {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5},
           "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                             "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
                             "patch_size": 14, "projection_dim": 768, "vocab_size": 32000}}  # fmt: skip
    config = get_family("llava").from_hf(raw)
    assert parameters(config) == 7_063_427_072
    assert config.frontend is not None and config.frontend.num_vectors == 576


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer: [-2, -5]; must be one whole number"),
        ({"vision_feature_layer": -9}, "must be one number from -4 to 3"),
        ({"vision_feature_select_strategy": "some"}, "must be one of default, full"),
        ({"image_token_index": 60}, "must be below the decoder's vocab_size"),
        ({"vision_config": {"model_type": "llama"}}, "must be a model that reads pictures alone"),
        ({"text_config": {"model_type": "whisper"}}, "must be a decoder of texts"),
        ({"anyres": True}, "anyres: true is an unknown option"),
    ],
)
def test_options_that_are_not_supported_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    raw = {"model_type": "llava", "image_token_index": IMAGE, "text_config": {"model_type": "llama", **TEXT},
           "vision_config": {"model_type": "vit", **VISION}}  # fmt: skip
    with pytest.raises(InputError, match=r".*") as error:
        get_family("llava").from_hf(raw | change)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["what colour is it? what shape is it? USER: ASSISTANT: red blue circle square"]
    return Tokenizer.train(texts, vocab_size=300, special_tokens=["<image>"], chat_template="llava")


def test_image_tokens_are_those_of_the_processor_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    images = ImageProcessor(**{**vars(ImageProcessor.of(12)), "kind": "CLIP"})
    for save in (tokenizer.save, images.save):
        save(tmp_path)
    raw = {"model_type": "llava", "image_token_index": tokenizer.token_to_id("<image>"),
           "text_config": {"model_type": "llama", **TEXT, "vocab_size": 300},
           "vision_config": {"model_type": "clip_vision_model", **VISION}}  # fmt: skip
    model = Model(get_family("llava").from_hf(raw)).initialize(0)
    engine = Engine(model, tokenizer)
    engine.processor = images
    picture = np.random.default_rng(0).integers(0, 255, (20, 14, 3), dtype=np.uint8)
    reference = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil.from_pretrained(tmp_path),
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path),
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    text = "USER: <image>\nwhat colour is it? ASSISTANT:"
    expected = reference(images=[picture], text=text, return_tensors="pt")
    found = engine.with_pictures(text, [picture])
    assert found == expected.input_ids[0].tolist() and found.count(tokenizer.token_to_id("<image>")) == 9
    torch.testing.assert_close(found.features, expected.pixel_values, **TOLERANCE)
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "what colour is it?"}]
    rendered = engine.render([{"role": "user", "content": parts}])
    assert isinstance(rendered, PictureIds) and rendered == found
    for wrong in ("no picture here", "<image> <image> <image>"):
        with pytest.raises(InputError, match="must have one for each picture"):
            engine.with_pictures(wrong, [picture])


def test_cached_decoding_of_several_pictures_equals_generate(folders: dict[str, tuple[Any, Path]]) -> None:
    reference, folder = folders["clip"]
    model = model_folder.load(folder)
    engine = Engine(model, end_ids=[2])
    draw = torch.Generator().manual_seed(5)
    pictures = torch.randn(3, 3, 12, 12, generator=draw)
    texts = [[5, 6, IMAGE, 9], [7, IMAGE, 8, 10, IMAGE, 4, 3], list(range(3, 40))]
    seen = [pictures[:1], pictures[1:], None]
    prompts = [text if own is None else engine.with_pictures(text, own) for text, own in zip(texts, seen, strict=True)]
    expected = []
    for prompt, own in zip(prompts, seen, strict=True):
        more = {} if own is None else {"pixel_values": own}
        ids = torch.tensor([list(prompt)])
        out = reference.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                                 **more)  # fmt: skip
        expected.append(out[0, len(prompt) :].tolist())
    greedy = SamplingParams(max_new_tokens=12)
    assert [each.ids for each in engine.generate(prompts, greedy)] == expected
    # Parts of prompts, and what an earlier request with the same or another picture has left in the cache.
    engine.scheduler.chunk = engine.scheduler.busy_chunk = 5
    engine.scheduler.min_reuse = 2
    other = engine.with_pictures(texts[0], pictures[2:])
    assert engine.generate([other], greedy)[0].logprobs != engine.generate([prompts[0]], greedy)[0].logprobs
    assert [each.ids for each in engine.generate(prompts, greedy)] == expected
    assert engine.generate([prompts[1]], greedy)[0].ids == expected[1]
    assert engine.statistics.reused_tokens > 20
    beams = engine.generate([prompts[1]], SamplingParams(max_new_tokens=6, num_beams=3, temperature=0.0))[0]
    ids = torch.tensor([list(prompts[1])])
    out = reference.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures[1:], num_beams=3,
                             max_new_tokens=6, do_sample=False)  # fmt: skip
    assert beams.ids == out[0, len(prompts[1]) :].tolist()


def test_a_model_of_texts_says_that_it_sees_nothing() -> None:
    config = get_family("llama").from_hf({"model_type": "llama", **TEXT})
    engine = Engine(Model(config).initialize(0))
    with pytest.raises(InputError, match="reads text alone, and cannot see a picture"):
        engine.with_pictures([IMAGE], [np.zeros((4, 4, 3), np.uint8)])


def test_a_model_in_bfloat16_reads_pictures_in_float32(folders: dict[str, tuple[Any, Path]]) -> None:
    exact, model = (model_folder.load(folders["clip"][1], dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    ids, pictures = inputs(9)
    vectors = model.vectors_of(pictures)
    assert vectors.dtype == torch.bfloat16
    torch.testing.assert_close(vectors.float(), exact.vectors_of(pictures), atol=0.3, rtol=0.1)
    assert torch.isfinite(model(ids, features=pictures)[0]).all()
