"""The battery that every family and head passes: a tiny random transformers model against ours, in every way that
counts.
"""

from __future__ import annotations

import atexit
import importlib
import pkgutil
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cases
import torch
import transformers

from quatrain.models.families import families, get_family
from quatrain.models.families.nested import NestedFamily
from quatrain.models.io import model_folder
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
VOCABULARY = 97
END = 2
"""The end token of every case; texts have it once, where they end."""


@dataclass(frozen=True)
class Case:
    """One family, head and shape: a class of transformers and the settings of its configuration."""

    name: str
    model: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    head: str | None = None
    """Our head, where the files alone do not say it."""
    length: int = 19
    scale: float = 0.15
    """Deviation of the random matrices: large enough for every part to matter."""
    left_padding: bool = True
    """Whether transformers itself reads texts that are padded on the left as it reads them alone."""
    counts_tokens: bool = False
    """Whether transformers counts positions itself, by the tokens that are no padding."""
    first_hidden: bool = True
    """Whether the hidden states of transformers begin with the embedding; else they end with the last layer's, before
    and after the final norm."""
    attentions: bool = True
    """Whether transformers gives the attention weights (eager attention)."""

    def __str__(self) -> str:
        return self.name

    @property
    def seq2seq(self) -> bool:
        return "Conditional" in self.model or self.model.endswith(("MTModel", "T5Model", "BartModel", "MarianModel"))


def text_families() -> list[str]:
    """The families that read tokens alone; pictures, sound and models of two families have tests of their own."""
    return [name for name, family in families().items() if not family.features and not isinstance(family, NestedFamily)]


def all_cases() -> list[Case]:
    """The cases of every module in tests/support/cases."""
    found: list[Case] = []
    for module in pkgutil.iter_modules(cases.__path__):
        found += importlib.import_module(f"cases.{module.name}").CASES
    return found


@cache
def quick_cases() -> frozenset[str]:
    """The names of the first case of each family, which the quick set of tests runs; see tests/conftest.py."""
    first: dict[str, str] = {}
    for case in all_cases():
        first.setdefault(case.config, case.name)
    return frozenset(first.values())


@cache
def theirs(case: Case) -> Any:
    """The random model of transformers, which all checks of a process share."""
    return made_anew(case)


def made_anew(case: Case) -> Any:
    """The random model of transformers as it is before its first call: a dynamic base is kept from call to call."""
    torch.manual_seed(0)
    extra = {"attn_implementation": "eager"} if case.attentions else {}
    tokens = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
    config = getattr(transformers, case.config)(**{"vocab_size": VOCABULARY, **tokens, **extra, **case.settings})
    model = getattr(transformers, case.model)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # a table that is computed
            if parameter.dim() > 1:
                parameter.normal_(0, case.scale)
            else:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "bias" in name else 0.2))
        for name, buffer in model.named_buffers():
            if name.endswith(("final_logits_bias", "e_score_correction_bias")):
                buffer.normal_(0, 0.3)
            elif name.endswith("layer_scalar"):
                buffer.add_(torch.randn_like(buffer) * 0.2)
        named = dict(model.named_parameters(remove_duplicate=False))
        if case.counts_tokens and "CausalLM" in case.model:  # padding that is said would take no position there
            named["lm_head.bias"][config.pad_token_id] = -30.0
        for unused, used in UNUSED.items():
            if unused in named and used in named:
                named[unused].copy_(named[used])
    return model.eval()


UNUSED = {
    "cls.predictions.bias": "cls.predictions.decoder.bias",
    "lm_head.bias": "lm_head.decoder.bias",
    "predictions.bias": "predictions.decoder.bias",
    "model.shared.weight": "model.decoder.embed_tokens.weight",
}
"""Parameters that an untied model of transformers does not use, and those whose values we write for them."""

Case.__hash__ = lambda self: hash((self.name, self.model))  # type: ignore[method-assign]


def ours(case: Case, folder: Path) -> Model:
    """The same model, read by us from the folder that transformers wrote."""
    theirs(case).save_pretrained(folder)
    return model_folder.load(folder, head=case.head)


@cache
def _written(case: Case) -> Path:
    """A folder that transformers has written, once for all checks of a case."""
    folder = tempfile.mkdtemp(prefix="quatrain-battery-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    theirs(case).save_pretrained(folder)
    return Path(folder)


def loaded(case: Case) -> Model:
    """A model of its own, read from the files of the case, which nothing changes."""
    return model_folder.load(_written(case), head=case.head)


def batch(case: Case, padding: str = "none", rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, T), or (B, 2, T) for multiple choice; ragged with padding on one side."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, 2, case.length) if "MultipleChoice" in case.model else (rows, case.length)
    ids = torch.randint(3, VOCABULARY, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.long)
    ids[..., -1] = END
    if padding == "right":
        mask[1, ..., case.length - 5 :] = 0
        ids[1, ..., case.length - 6] = END
    elif padding == "left":
        mask[1, ..., :5] = 0
    return ids.masked_fill(mask == 0, theirs(case).config.pad_token_id or 0), mask


def decoder_ids(case: Case) -> torch.Tensor:
    """What an encoder-decoder's decoder reads (B, 7)."""
    return torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(2))


def their_output(case: Case, ids: torch.Tensor, mask: torch.Tensor, **more: Any) -> Any:
    """transformers' outputs, attentions and hidden states among them where asked."""
    if case.seq2seq and "labels" not in more:
        more["decoder_input_ids"] = decoder_ids(case)
    return theirs(case)(input_ids=ids, attention_mask=mask, **more)


def our_logits(case: Case, model: Model, ids: torch.Tensor, mask: torch.Tensor | None, **more: Any) -> Any:
    if case.seq2seq:
        more["decoder_input_ids"] = decoder_ids(case)
    return model(ids, segments=mask, **more)[0]


def their_logits(case: Case, output: Any) -> Any:
    """The output of transformers that is what our head gives."""
    if "QuestionAnswering" in case.model:
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    if case.model.endswith("PreTraining"):
        if "prediction_logits" not in output:  # ELECTRA's detector
            return output.logits
        return output.prediction_logits, output.sop_logits if "sop_logits" in output else output.seq_relationship_logits
    return output.logits if "logits" in output else output.last_hidden_state


def compare(case: Case, actual: Any, expected: Any, mask: torch.Tensor) -> None:
    """Equal where there is text."""
    if isinstance(expected, tuple):
        for one, other in zip(actual, expected, strict=True):
            compare(case, one, other, mask)
        return
    if actual.dim() >= 2 and actual.shape[:2] == mask.shape:
        actual, expected = actual[mask.bool()], expected[mask.bool()]
    assert actual.numel() and actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def check_logits(case: Case) -> None:
    """The same logits without padding and with padding on either side."""
    model = loaded(case)
    for padding in ("none", "right", "left") if case.left_padding else ("none", "right"):
        ids, mask = batch(case, padding)
        more = {}
        if padding == "left" and not case.seq2seq and not case.counts_tokens and _takes_positions(case):
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            expected = their_logits(case, their_output(case, ids, mask, **more))
            compare(case, our_logits(case, model, ids, mask), expected, mask)
            if padding == "none":
                compare(case, our_logits(case, model, ids, None), expected, mask)


def _takes_positions(case: Case) -> bool:
    import inspect

    return "position_ids" in inspect.signature(theirs(case).forward).parameters and "MultipleChoice" not in case.model


def check_loss_and_gradients(case: Case) -> None:
    """The same mean loss, and the same gradient of every parameter."""
    model = loaded(case)
    if case.head in ("embedding", "value") or (case.model.endswith("Model") and not case.model.endswith("MTModel")):
        return
    # transformers lets a span begin in padding, whose logits are no one's; ours cannot
    ids, mask = batch(case, "none" if "QuestionAnswering" in case.model else "right")
    reference, (labels, their_labels) = theirs(case), labels_of(case, ids, mask)
    reference.zero_grad()
    expected = reference(input_ids=ids, attention_mask=mask, **their_labels)
    expected.loss.backward()
    losses = model(ids, labels, segments=mask)[1]
    if isinstance(losses, tuple):
        loss = losses[0].sum() / (labels[0] != -100).sum() + losses[1].mean()
    elif losses.dim() == 2:
        loss = losses.sum() / (labels != -100).sum()
    elif "QuestionAnswering" in case.model:
        loss = losses[:2].mean()  # the third span is outside and counts nowhere
    else:
        loss = losses.mean()
    loss.backward()
    torch.testing.assert_close(loss, expected.loss, **TOLERANCE)
    found = dict(reference.named_parameters(remove_duplicate=False))
    aliases = get_family(model.config.family).aliases
    found |= {name: found[other] for other, name in aliases.items() if other in found and name not in found}
    found = {name: parameter.grad for name, parameter in found.items() if parameter.grad is not None}
    found |= _in_files(reference, found)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    compared = set()
    for operation in get_family(model.config.family).weights(model.config):
        if operation.sources[0] in found and any(name in gradients for name in operation.targets):
            for name, tensor in operation.read(found.__getitem__):
                ours_here = gradients.get(name, torch.zeros_like(tensor))  # an idle expert has none
                torch.testing.assert_close(ours_here, tensor, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
                compared.add(name)
    reference.zero_grad()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert compared | tied >= set(gradients), f"not compared: {set(gradients) - compared}"


def _in_files(reference: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a model of transformers under the names of its files, where fused experts are stored one by one."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(reference, tensors)


def labels_of(case: Case, ids: torch.Tensor, mask: torch.Tensor) -> tuple[Any, dict[str, Any]]:
    """Ragged labels: ours, and the same as transformers takes them."""
    generator, name = torch.Generator().manual_seed(3), case.model
    rows = ids.shape[0]
    if name == "ElectraForPreTraining":
        replaced = torch.randint(0, 2, ids.shape, generator=generator)
        return replaced.masked_fill(mask == 0, -100), {"labels": replaced}
    if name.endswith("PreTraining"):
        masked = _ragged(ids, mask, generator)
        follows = torch.tensor([0, 1, 0])
        order = "sentence_order_label" if name.startswith("Albert") else "next_sentence_label"
        return (masked, follows), {"labels": masked, order: follows}
    if "NextSentence" in name or "MultipleChoice" in name:
        return torch.tensor([0, 1, 0]), {"labels": torch.tensor([0, 1, 0])}
    if "SequenceClassification" in name:
        config = theirs(case).config
        if config.problem_type == "regression" or config.num_labels == 1:
            wanted = torch.randn(rows, config.num_labels, generator=generator)
            return wanted, {"labels": wanted.squeeze(-1)}
        if config.problem_type == "multi_label_classification":
            wanted = torch.rand(rows, config.num_labels, generator=generator).round()
            return wanted, {"labels": wanted}
        wanted = torch.tensor([0, 1, 0])
        return wanted, {"labels": wanted}
    if "QuestionAnswering" in name:
        spans = torch.tensor([[1, 3], [0, 2], [800, 900]])
        return spans, {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}
    if "TokenClassification" in name:
        wanted = torch.randint(0, 2, ids.shape, generator=generator).masked_fill(mask == 0, -100)
        return wanted, {"labels": wanted}
    if case.seq2seq:
        wanted = decoder_ids(case).clone()
        wanted[0, 5:] = -100
        return wanted, {"labels": wanted}
    wanted = _ragged(ids, mask, generator)
    if "Causal" in name or "LMHead" in name:
        # theirs are shifted inside: label t is said at t - 1
        shifted = torch.full_like(wanted, -100)
        shifted[:, 1:] = wanted[:, :-1]
        wanted = wanted.clone()
        wanted[:, -1] = -100
        return wanted, {"labels": shifted}
    return wanted, {"labels": wanted}


def _ragged(ids: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    labels = torch.randint(0, VOCABULARY, ids.shape, generator=generator)
    return labels.masked_fill((torch.rand(ids.shape, generator=generator) < 0.3) | (mask == 0), -100)


def check_trace(case: Case) -> None:
    """The same hidden states and attention weights, self and cross; the visible path gives what the fast one gives."""
    if "MultipleChoice" in case.model:
        return
    model = loaded(case)
    ids, mask = batch(case, "right")
    trace = Trace()
    with torch.no_grad():
        output = their_output(case, ids, mask, output_hidden_states=True, output_attentions=case.attentions)
        seen = our_logits(case, model, ids, mask, trace=trace)
        compare(case, seen, our_logits(case, model, ids, mask), mask)
    everywhere = torch.ones(3, 7) if case.seq2seq else mask
    if "decoder_hidden_states" in output:
        pairs = [
            (trace.hidden_states, output.decoder_hidden_states, everywhere, 1),
            (trace.attentions, output.decoder_attentions, everywhere, 2),
            (trace.cross_attentions, output.cross_attentions, everywhere, 2),
            (trace.encoder_hidden_states, output.encoder_hidden_states, mask, 1),
            (trace.encoder_attentions, output.encoder_attentions, mask, 2),
        ]
    else:
        ours_hidden, theirs_hidden = trace.hidden_states, output.hidden_states
        if not case.first_hidden:
            ours_hidden, theirs_hidden = ours_hidden[1:], [*theirs_hidden[:-2], theirs_hidden[-1]]
        pairs = [(ours_hidden, theirs_hidden, mask, 1)]
        pairs += [(trace.attentions, output.attentions, mask, 2)] if case.attentions else []
    for actual, expected, where, axis in pairs:
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            one, other = (tensor.movedim(axis, 1)[where.bool()] for tensor in (one, other))
            torch.testing.assert_close(one, other, **TOLERANCE)


def check_round_trip(case: Case, folder: Path) -> None:
    """Written by us, read by transformers without a warning: the same tensors bit for bit, and the same
    configuration.
    """
    model = loaded(case)
    model_folder.save(model, folder)
    reference = theirs(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back, info = type(reference).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), f"transformers found something amiss: {info}"
    assert {name: tensor.shape for name, tensor in reference.state_dict().items()} == {
        name: tensor.shape for name, tensor in back.state_dict().items()
    }
    returned = back.state_dict()
    assert all(torch.equal(tensor, returned[name]) for name, tensor in reference.state_dict().items())
    again = model_folder.load(folder, head=case.head)
    assert again.config == model.config
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    ids, mask = batch(case, "right")
    with torch.no_grad():
        expected = their_logits(case, their_output(case, ids, mask))
        more = {"decoder_input_ids": decoder_ids(case)} if case.seq2seq else {}
        compare(case, their_logits(case, back.eval()(input_ids=ids, attention_mask=mask, **more)), expected, mask)


def check_cache(case: Case) -> None:
    """Reading token by token, or in portions, with a cache gives the logits of reading at once, padded or not."""
    model = loaded(case)
    scaling = model.config.rope_scaling
    if model.config.head not in ("causal", "seq2seq") or (scaling is not None and scaling.kind == "dynamic"):
        # what is kept under a dynamic scaling has the frequencies of the shorter text: tests/models/test_rotary.py
        return
    ids, mask = batch(case, "left")
    read = decoder_ids(case) if case.seq2seq else ids
    for portions in ([1] * read.shape[1], [3, 1, read.shape[1] - 4], [read.shape[1] - 2, 1, 1]):
        kept = KVCache(model.config, 3, read.shape[1])
        parts, start = [], 0
        with torch.inference_mode():
            whole = our_logits(case, model, ids, mask)
            if scaling is not None and scaling.kind == "longrope":  # what is read at once, ever longer
                ends = [sum(portions[: number + 1]) for number in range(len(portions))]
                whole = torch.cat(
                    [
                        our_logits(case, model, ids[:, :end], mask[:, :end])[:, end - count :]
                        for end, count in zip(ends, portions, strict=True)
                    ],
                    dim=1,
                )
            for count in portions:
                piece = read[:, start : start + count]
                if case.seq2seq:
                    text = ids if start == 0 else None
                    out = model(text, segments=mask if start == 0 else None, decoder_input_ids=piece, cache=kept)[0]
                else:
                    out = model(piece, segments=mask[:, start : start + count], cache=kept)[0]
                parts.append(out)
                start += count
        where = torch.ones(read.shape) if case.seq2seq else mask
        compare(case, torch.cat(parts, 1), whole, where)
