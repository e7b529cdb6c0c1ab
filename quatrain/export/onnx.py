"""Exports to ONNX with a key-value cache, for ONNX Runtime and others, in float32 or with int8 weights.

A decoder is `model.onnx`: input_ids, attention_mask and past_key_values.N.key / .value to logits and present.N.key /
.value. An encoder is `model.onnx`: input_ids, attention_mask (and token_type_ids) to the outputs of its head. An
encoder-decoder is `encoder_model.onnx` and `decoder_model.onnx`. The names are those of Hugging Face's Optimum.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.export.exporter import Exporter, ExportSettings, Source, Written
from quatrain.export.onnx_graph import CrossDecoderGraph, DecoderGraph, EncoderGraph, SideGraph
from quatrain.export.proof import Runtime
from quatrain.models.families import get_family
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.tokenizer import Tokenizer

TOLERANCES = {"float32": 1e-4, "int8": 0.15}
OPSET = 18
EVERY_EXPERT = "the graph computes every expert for every token, and not only the chosen ones"
HEADS = (
    "causal", "seq2seq", "masked", "none", "embedding", "sequence_classification", "token_classification",
    "question_answering",
)  # fmt: skip


def problems(source: Source, settings: ExportSettings) -> Iterator[str]:
    """Why the model has no ONNX graph here."""
    config = source.model.config
    if config.head not in HEADS:
        yield f"head {config.head}: exported are {', '.join(HEADS)}"
    if config.architecture == "encoder-decoder" and config.head != "seq2seq":
        yield f"an encoder-decoder with the head {config.head}; exported is seq2seq"
    if config.frontend is not None:
        yield f"{config.family} reads pictures or sound, for which a graph has no input"
    if config.recurs:
        yield f"{config.family} has recurrent layers, whose state has no place in the graph"
    if config.encoder_config is not None or config.cross_attention:
        yield f"{config.family} has cross-attention between two models, which a graph has not"
    if config.layer_embedding_size or config.shared_kv_layers or config.full_head_dim:
        yield f"{config.family} has second embeddings, shared keys or heads of two widths, which a graph has not"
    if config.rope_scaling is not None and config.rope_scaling.kind in ("dynamic", "longrope"):
        yield f"rope_scaling {config.rope_scaling.kind}: its frequencies change with the length of a text"
    if config.pooling == "eos" and config.head not in ("causal", "seq2seq", "none"):
        yield "pooling eos: the graph would have to find the last end token"
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            yield f"{name} is not installed; install it with: pip install 'quatrain[export]'"


def write(source: Source, out: Path, settings: ExportSettings) -> Written:
    """Writes the graphs, config.json and the tokenizer."""
    model, config = source.model, source.model.config
    past = _past(config, batch=2, length=4)
    names = [f"{number}.{kind}" for number in range(config.num_hidden_layers) for kind in ("key", "value")]
    ids, mask, side = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 7, dtype=torch.long), torch.ones(2, 5).long()
    before, after = [f"past_key_values.{name}" for name in names], [f"present.{name}" for name in names]
    caches = [{0: "batch", 2: "past"}] * len(past)
    new, whole, encoded = {0: "batch", 1: "new"}, {0: "batch", 1: "whole"}, {0: "batch", 1: "encoded"}
    if config.head == "causal":
        _export(DecoderGraph(model), out / "model.onnx", (ids, mask, past), [new, whole, caches],
                ["input_ids", "attention_mask", *before], ["logits", *after])  # fmt: skip
        files = [out / "model.onnx"]
    elif config.architecture == "encoder-decoder":
        states = torch.zeros(2, 5, config.hidden_size)
        _export(SideGraph(model), out / "encoder_model.onnx", (side, side.clone()), [encoded, encoded],
                ["input_ids", "attention_mask"], ["last_hidden_state"])  # fmt: skip
        _export(CrossDecoderGraph(model), out / "decoder_model.onnx", (ids, mask, states, side, past),
                [new, whole, encoded, encoded, caches],
                ["input_ids", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", *before],
                ["logits", *after])  # fmt: skip
        files = [out / "encoder_model.onnx", out / "decoder_model.onnx"]
    else:
        inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if config.type_vocab_size > 1 else [])]
        # Never one tensor twice: the trace would take two inputs for one.
        arguments = (side, side.clone(), torch.zeros_like(side))[: len(inputs)]
        _export(EncoderGraph(model), out / "model.onnx", arguments, [encoded] * len(inputs), inputs, ["output"])
        files = [out / "model.onnx"]
    if settings.format == "int8":
        for file in files:
            _quantize(file)
    write_json(out / "config.json", get_family(config.family).to_hf(config) | {"dtype": "float32"})
    if source.tokenizer is not None:
        source.tokenizer.save(out)

    def runtimes() -> Iterator[Runtime]:
        yield OnnxRuntime(out, config)

    written = sorted(path for path in out.iterdir() if path.is_file())
    notes = [EVERY_EXPERT] if config.experts is not None else []
    return Written(written, notes, runtimes, tolerance=TOLERANCES[str(settings.format)],
                   exact=settings.format == "float32")  # fmt: skip


def _past(config: ModelConfig, batch: int, length: int) -> list[Tensor]:
    shapes = [config.cache_shape(layer) for layer in range(config.num_hidden_layers)]
    return [torch.zeros(batch, heads, length, width) for heads, *widths in shapes for width in widths]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress and the warnings of torch.onnx, which concern its authors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _export(
    graph: nn.Module,
    file: Path,
    arguments: tuple[Any, ...],
    sizes: Sequence[Any],
    inputs: list[str],
    outputs: list[str],
) -> None:
    """Traces a graph and writes it. `sizes` names the dimensions of each input that may vary."""

    def dynamic(each: Any) -> Any:
        if isinstance(each, list):
            return [dynamic(one) for one in each]
        return {axis: torch.export.Dim.AUTO for axis in each}

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(), arguments, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs,
            dynamic_shapes=tuple(dynamic(each) for each in sizes), optimize=True,
        )  # fmt: skip
        if program is None:
            raise InputError(f"{file.name}: torch.onnx wrote nothing")
        program.save(str(file))


def _quantize(file: Path) -> None:
    """Replaces the float32 weights of matrix products by 8 bits with a scale for each channel; activations are dynamic.

    The weights are unsigned: products of signed ones with unsigned activations overflow 16 bits on x86 processors
    without VNNI (ONNX Runtime's page on quantization, "Data type selection").
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_name(f"float-{file.name}")
    file.rename(whole)
    with _quiet():
        quantize_dynamic(str(whole), str(file), weight_type=QuantType.QUInt8, per_channel=True)
    for path in (whole, whole.with_name(f"{file.name}.data"), whole.with_name(f"{whole.name}.data")):
        path.unlink(missing_ok=True)


class OnnxRuntime:
    """The written graphs in ONNX Runtime, with the cache for generation."""

    name = "onnxruntime"
    slack = 0.0

    def __init__(self, folder: Path, config: ModelConfig):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.config = config
        self.tokenizer = Tokenizer.find(folder)
        self._sessions: dict[str, Any] = {
            path.stem: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in folder.glob("*.onnx")
        }

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text."""
        return None if self.tokenizer is None else self.tokenizer.encode(text)

    def stop_ids(self) -> frozenset[int] | None:
        """The runtime has none of its own: config.json beside the graphs names them."""
        return None

    def outputs(self, ids: Sequence[int]) -> Tensor | None:
        """The outputs of one text; for an encoder-decoder logits after the start and the first half of the text."""
        if "decoder_model" in self._sessions:
            start = [self.config.decoder_start_token_id or 0, *ids[: len(ids) // 2]]
            return torch.from_numpy(self._step(start, 0, self._empty(), self._encoded(ids))[0][0])
        if self.config.head == "causal":
            half = len(ids) // 2  # in two steps, so that the cache is proved too
            first, past = self._step(list(ids[:half]), 0, self._empty())
            second, _ = self._step(list(ids[half:]), half, past)
            return torch.from_numpy(np.concatenate([first[0], second[0]]))
        session = self._sessions["model"]
        feeds = {each.name: np.zeros((1, len(ids)), np.int64) for each in session.get_inputs()}
        feeds |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return torch.from_numpy(np.asarray(session.run(None, feeds)[0][0]))

    def greedy(self, ids: Sequence[int], count: int) -> list[int] | None:
        """The likeliest ids, one step each with the cache."""
        encoded = self._encoded(ids) if "decoder_model" in self._sessions else None
        if encoded is None and self.config.head != "causal":
            return None
        new = list(ids) if encoded is None else [self.config.decoder_start_token_id or 0]
        past, seen, found = self._empty(), 0, []
        for _ in range(count):
            logits, past = self._step(new, seen, past, encoded)
            seen += len(new)
            new = [int(logits[0, -1].argmax())]
            found += new
        return found

    def _empty(self) -> list[Any]:
        return [tensor.numpy() for tensor in _past(self.config, batch=1, length=0)]

    def _encoded(self, ids: Sequence[int]) -> dict[str, Any]:
        mask = np.ones((1, len(ids)), np.int64)
        feeds = {"input_ids": np.array([ids]), "attention_mask": mask}
        states = self._sessions["encoder_model"].run(None, feeds)[0]
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _step(
        self, ids: list[int], seen: int, past: list[Any], encoded: dict[str, Any] | None = None
    ) -> tuple[Any, list[Any]]:
        session = self._sessions["model" if encoded is None else "decoder_model"]
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, seen + len(ids)), np.int64)}
        names = [each.name for each in session.get_inputs() if each.name.startswith("past_key_values.")]
        feeds |= dict(zip(names, past, strict=True)) | (encoded or {})
        logits, *present = session.run(None, feeds)
        return logits, present


EXPORTER = Exporter("onnx", "graphs with a cache for ONNX Runtime", tuple(TOLERANCES), write, problems)
