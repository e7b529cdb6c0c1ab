"""Pictures and sound beside transformers: ViT, DeiT, CLIP and Whisper with the same weights and inputs, float32.

Both sides are in one process and take turns. A turn is a forward pass, a forward and backward pass with the loss, or,
of Whisper, a greedy completion of a fixed number of tokens with its encoder. transformers runs as it comes: PyTorch's
attention. Losses and tokens are compared. Times are of the processor, so that other work on the machine does not
count. The ratio is transformers' time over ours, the geometric mean over all.

    python benchmarks/modalities.py [--models vit deit clip whisper] [--repeat 5]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import finish, geometric_mean, in_turns, parser, require, spread

TOWER = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
PICTURE = {"image_size": 224, "patch_size": 16}
TINY_TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_PICTURE = {"image_size": 16, "patch_size": 8}
TEXT = {"vocab_size": 8192, "max_position_embeddings": 77, "eos_token_id": 3, "bos_token_id": 1, "pad_token_id": 0}
SPEECH = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
          "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "vocab_size": 8192,
          "max_source_positions": 1500, "max_target_positions": 448}  # fmt: skip
TINY_SPEECH = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
               "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 64,
               "max_source_positions": 20, "max_target_positions": 40}  # fmt: skip
SPECIAL = {"pad_token_id": 3, "bos_token_id": 3, "eos_token_id": 3, "decoder_start_token_id": 4,
           "begin_suppress_tokens": None, "suppress_tokens": None}  # fmt: skip
BATCH, LABELS, READ, WRITTEN = 8, 10, 64, 64
"""Pictures of a batch, classes, tokens that Whisper's decoder reads in training, and those it writes."""
TOLERANCE = 1e-4


def vision(name: str, quick: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What ViT or DeiT is timed at: ours and transformers'."""
    import torch

    transformers = require("transformers")
    sizes = (TINY_TOWER | TINY_PICTURE) if quick else (TOWER | PICTURE)
    prefix = {"vit": "ViT", "deit": "DeiT"}[name]
    config = getattr(transformers, f"{prefix}Config")(**sizes, num_labels=LABELS)
    reference, model = both(getattr(transformers, f"{prefix}ForImageClassification")(config))
    side = sizes["image_size"]
    x, labels = torch.randn(2 if quick else BATCH, 3, side, side), torch.arange(2 if quick else BATCH) % LABELS
    return passes(
        reference, model, lambda: model(labels=labels, features=x)[1].mean(),
        lambda: reference(pixel_values=x, labels=labels).loss,
    )  # fmt: skip


def clip(quick: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What CLIP is timed at."""
    import torch

    transformers = require("transformers")
    tower, picture = (TINY_TOWER, TINY_PICTURE) if quick else (TOWER, PICTURE)
    config = transformers.CLIPConfig(text_config=tower | TEXT, vision_config=tower | picture, projection_dim=64)
    reference, model = both(transformers.CLIPModel(config))
    rows, side = 2 if quick else BATCH, picture["image_size"]
    x, ids = torch.randn(rows, 3, side, side), torch.randint(5, 60, (rows, 16))
    ids[:, -1] = TEXT["eos_token_id"]
    mask = torch.ones_like(ids)
    pairs = torch.eye(rows)
    return passes(
        reference, model, lambda: model(ids, pairs, segments=mask, features=x)[1].mean(),
        lambda: reference(input_ids=ids, attention_mask=mask, pixel_values=x, return_loss=True).loss,
    )  # fmt: skip


def whisper(quick: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What Whisper is timed at: half a minute of sound; a decoder in training, and a greedy completion."""
    import torch
    from torch.nn.functional import cross_entropy

    from quatrain.generation.engine import Engine
    from quatrain.generation.params import SamplingParams

    transformers = require("transformers")
    config = transformers.WhisperConfig(**(TINY_SPEECH if quick else SPEECH), **SPECIAL)
    reference, model = both(transformers.WhisperForConditionalGeneration(config))
    frames, read, written = 2 * config.max_source_positions, 8 if quick else READ, 8 if quick else WRITTEN
    x, ids = torch.randn(2, config.num_mel_bins, frames), torch.randint(5, 60, (2, read))
    labels = ids.roll(-1, 1)
    given = {"input_features": x, "decoder_input_ids": ids, "use_cache": False}
    found = passes(
        reference, model, lambda: model(labels=labels, features=x, decoder_input_ids=ids)[1].mean(),
        lambda: cross_entropy(reference(**given).logits.flatten(0, 1), labels.flatten()),
    )  # fmt: skip
    engine = Engine(model)
    params = SamplingParams(max_new_tokens=written, min_new_tokens=written, temperature=0.0)
    sounds = {side: torch.Generator().manual_seed(1) for side in ("ours", "theirs")}

    def sound(side: str) -> Any:
        """Another sound each time: an encoder's output that is kept from the last call would not be a fair start."""
        return torch.randn(1, config.num_mel_bins, frames, generator=sounds[side])

    options = {"max_new_tokens": written, "min_new_tokens": written, "do_sample": False}
    reference.generation_config.update(**options)

    def peer() -> Any:
        return reference.generate(input_features=sound("theirs"), force_unique_generate_call=True, **options)

    def own() -> Any:
        return engine.generate_from(sound("ours"), params)[0].ids

    if (ids_of_ours := own()) != peer()[0, -written:].tolist():
        raise SystemExit(f"whisper: the tokens differ: {ids_of_ours[:8]}…")
    return found | {"decode": (own, peer)}


def both(reference: Any) -> tuple[Any, Any]:
    """A model of transformers with weights of a trained model's size, and ours of its files."""
    import torch

    from quatrain.models.io import model_folder

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.normal_(0, 0.05)
    with tempfile.TemporaryDirectory() as folder:
        reference.eval().save_pretrained(folder)
        return reference, model_folder.load(Path(folder)).eval()


def passes(
    reference: Any, model: Any, loss: Callable[[], Any], peer: Callable[[], Any]
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Forward alone, and with backward. Ends the benchmark where the losses differ."""
    import torch

    def forward(network: Any, of: Callable[[], Any]) -> Any:
        with torch.no_grad():
            return of()

    def backward(network: Any, of: Callable[[], Any]) -> Any:
        network.zero_grad(set_to_none=True)
        of().backward()

    with torch.no_grad():
        one, other = float(loss()), float(peer())
    if abs(one - other) > TOLERANCE * max(1.0, abs(other)):
        raise SystemExit(f"{model.config.family}: the losses differ: {one} and {other}")
    return {
        name: (lambda call=call: call(model, loss), lambda call=call: call(reference, peer))
        for name, call in (("forward", forward), ("forward + backward", backward))
    }  # type: ignore[misc]


def processor_seconds(call: Callable[[], Any]) -> float:
    """Seconds of the processor that a call takes."""
    start = time.process_time()
    call()
    return time.process_time() - start


MODELS: dict[str, Callable[[bool], dict[str, tuple[Callable[[], Any], Callable[[], Any]]]]] = {
    "vit": lambda quick: vision("vit", quick),
    "deit": lambda quick: vision("deit", quick),
    "clip": clip,
    "whisper": whisper,
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments.add_argument("--repeat", type=int, default=5)
    given = arguments.parse_args()
    repeat = 1 if given.quick else given.repeat
    rows: dict[str, Any] = {}
    for name in given.models:
        for what, (ours, theirs) in MODELS[name](given.quick).items():
            for call in (ours, theirs):
                call()  # what is built once is not counted
            times = in_turns(
                {
                    "quatrain": lambda o=ours: processor_seconds(o),
                    "transformers": lambda t=theirs: processor_seconds(t),
                },
                repeat,
            )
            sides = {side: spread(values) for side, values in times.items()}
            ratio = sides["transformers"]["median"] / sides["quatrain"]["median"]
            rows[f"{name} {what}"] = sides | {"ratio": ratio}
            print(f"{name:8} {what:19} {sides['quatrain']['median'] * 1e3:8.1f} ms, transformers "
                  f"{sides['transformers']['median'] * 1e3:8.1f} ms, ratio {ratio:.2f}")  # fmt: skip
    ratio = geometric_mean(row["ratio"] for row in rows.values())
    finish("modalities", ratio, "transformers' time over ours, geometric mean", quick=given.quick, rows=rows)


if __name__ == "__main__":
    main()
