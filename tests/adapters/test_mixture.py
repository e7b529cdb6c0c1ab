"""Several adapters in one batch: every row says what it says through its own adapter alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick_set import some
from tiny_models import bloom, gpt2, llama, save_random
from torch import Tensor

from quatrain.adapters import peft_files
from quatrain.adapters.adapter_set import AdapterSet
from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.settings import PROMPT_METHODS, AdapterSettings
from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.vocabulary import resize_vocabulary
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.chunked_loss import chunking, summed_language_loss

CONFIGS = {"llama": llama(), "gpt2": gpt2(), "bloom": bloom()}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3}, "dora": {"rank": 2}, "ia3": {}, "bottleneck": {"bottleneck_dim": 5},
    "prompt": {"num_virtual_tokens": 5}, "prompt.short": {"method": "prompt", "num_virtual_tokens": 2},
    "prefix": {"num_virtual_tokens": 3},
    "rows": {"method": "lora", "rank": 2}, "new": {"method": "lora", "rank": 2},
}  # fmt: skip
"""By name; "rows" and "new" let single rows of the embedding learn, the latter of tokens that the base has not."""
WHOLE = {"bitfit": {"method": "bitfit"}, "saved": {"method": "lora", "rank": 2, "modules_to_save": ("norm",)}}
NAMES = [None, *METHODS]


@pytest.fixture(scope="module", params=some(CONFIGS, ["llama"]))
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and one adapter of each kind beside it."""
    folder, generator = tmp_path_factory.mktemp(request.param), torch.Generator().manual_seed(0)
    save_random(CONFIGS[request.param], folder / "base")
    for name, how in (METHODS | WHOLE).items():
        if name == "bitfit" and request.param == "llama":
            continue
        model = model_folder.load(folder / "base")
        if name == "new":
            resize_vocabulary(model, 62)
        apply_adapter(model, AdapterSettings(**{"method": name} | how), seed=1)
        train_tokens(model, {"rows": [3, 9], "new": [60, 61, 4]}.get(name, []))
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                rows = slice(None)
                if parameter.requires_grad and key in ("embed_tokens.weight", "lm_head.weight"):
                    rows = [3, 9] if name == "rows" else [60, 61, 4]
                if parameter.requires_grad:
                    parameter[rows] += 0.3 * torch.randn(parameter[rows].shape, generator=generator)
        peft_files.save_adapter(model, folder / name, base_model="../base")
    return folder


def alone(folders: Path, name: str | None, ids: Sequence[int]) -> Tensor:
    model, _ = load_model(folders / (name or "base"))
    with torch.no_grad():
        logits: Tensor = model.double()(torch.tensor([list(ids)]))[0]
    return logits[0]


def mixed(folders: Path, names: Sequence[str] = tuple(METHODS)) -> AdapterSet:
    return AdapterSet.load(model_folder.load(folders / "base").eval(), {name: folders / name for name in names})


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-10 if mine.dtype == torch.float64 else 2e-5, rtol=1e-5)


def rows_of(count: int, *, ragged: bool = False) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist() if ragged else [7] * count
    return [torch.randint(1, 60, (length,), generator=generator).tolist() for length in lengths]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=6), ragged=st.booleans())
def test_every_row_goes_through_its_own(folders: Path, names: list[str | None], ragged: bool) -> None:
    adapter_set, rows = mixed(folders), rows_of(len(names), ragged=ragged)
    adapter_set.model.double()  # a norm makes much of float32's last digits
    width = max(map(len, rows))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    segments = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    adapter_set.activate(names)
    with torch.no_grad():
        together = adapter_set.model(padded, segments=segments if ragged else None)[0]
    for row, name, found in zip(rows, names, together, strict=True):
        expected = alone(folders, name, row)
        known = expected.shape[-1]
        close(found[: len(row), :known], expected)
        assert (found[: len(row), known:] < -1e30).all() or name is None


def test_a_batch_is_answered_as_each_alone(folders: Path) -> None:
    """Prompts of several lengths, padded on the left, in a cache, rows leaving as they finish."""
    names = [None, "lora", "prompt", "prefix", "prompt.short", "rows", "lora", "bottleneck", "ia3", "dora"]
    rows = rows_of(len(names), ragged=True)
    engine = Engine.load(folders / "base", adapters={name: folders / name for name in METHODS if name != "new"})
    for params in (
        SamplingParams(max_new_tokens=6, temperature=0.0),
        SamplingParams(max_new_tokens=5, temperature=0.0, num_beams=2),
    ):
        together = engine.generate(rows, params, adapters=names)
        for row, name, answer in zip(rows, names, together, strict=True):
            model, _ = load_model(folders / (name or "base"))
            expected = Engine(model).generate([row], params)[0]
            assert answer.ids == expected.ids
            close(torch.tensor(answer.logprobs), torch.tensor(expected.logprobs))


def test_switching_and_taking_off(folders: Path) -> None:
    ids = rows_of(1)[0]
    names = [name for name in (*METHODS, *WHOLE) if (folders / name).exists()]
    model = model_folder.load(folders / "base").eval().double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter_set = AdapterSet.load(model, {name: folders / name for name in names})
    batch = torch.tensor([ids, ids, ids])
    model.double()
    for name in [*names, None, *reversed(names)]:
        adapter_set.activate(name)
        expected = alone(folders, name, ids)
        with torch.no_grad():
            for found in model(batch)[0]:
                close(found[:, : expected.shape[-1]], expected)
    assert adapter_set.unload() is model and model.soft_prompt is None and model.adapter_set is None
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name][: len(tensor)], tensor) for name, tensor in state.items())


def test_what_cannot_be_mixed_is_said(folders: Path) -> None:
    adapter_set = mixed(folders, ("lora", "saved"))
    with pytest.raises(InputError) as caught:
        adapter_set.activate(["lora", "saved", "lra"])
    assert "'lra': no adapter of this model; they are lora, saved" in caught.value.problems[0]
    with pytest.raises(InputError) as caught:
        adapter_set.activate(["lora", "saved"])
    assert "saved: it has trained weights of the model itself (norm.weight" in caught.value.problems[0]
    adapter_set.activate(["saved", "saved"])
    with pytest.raises(InputError, match="active for 2 rows; the batch has 3"):
        adapter_set.model(torch.ones(3, 4, dtype=torch.long))
    with pytest.raises(InputError, match="has adapters already"):
        AdapterSet.load(adapter_set.model, {"lora": folders / "lora"})
    with pytest.raises(InputError, match="at least one"):
        AdapterSet.load(model_folder.load(folders / "base"), {})
    with pytest.raises(InputError, match="none to choose from"):
        Engine.load(folders / "base").generate([[1, 2]], adapters="lora")
    with pytest.raises(InputError, match="2 for 1 prompts"):
        Engine(adapter_set.model).generate([[1, 2]], adapters=["lora", "lora"])


def test_tokenizers_must_agree(tmp_path: Path) -> None:
    model = Model(CONFIGS["llama"]).initialize(0)
    model_folder.save(model, tmp_path / "base")
    known = Tokenizer.train(["a text"] * 3, vocab_size=300)
    for name, token in (("one", "<sql>"), ("other", "<tool>")):
        adapted = model_folder.load(tmp_path / "base")
        apply_adapter(adapted, AdapterSettings(rank=2))
        peft_files.save_adapter(adapted, tmp_path / name, base_model="../base")
        known.extended([token]).save(tmp_path / name)
    with pytest.raises(InputError, match="added other tokens") as caught:
        AdapterSet.load(model, {name: tmp_path / name for name in ("one", "other")})
    assert "'<sql>' for one and '<tool>' for other" in caught.value.problems[0]


@pytest.mark.parametrize("chunks", [True, False])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "bottleneck", "prompt", "p-tuning", "prefix"])
def test_gradients_of_a_mixed_batch_are_those_of_each_alone(method: str, chunks: bool, folders: Path) -> None:
    how = AdapterSettings(**{"method": method} | ({"num_virtual_tokens": 4} if method in PROMPT_METHODS else {}))  # type: ignore[arg-type]
    model = model_folder.load(folders / "base")
    ids = () if method in PROMPT_METHODS else (3, 9, 11)
    adapter_set = AdapterSet.create(model, ("one", "other"), how, seed=3, ids=ids)
    rows, names = torch.tensor(rows_of(4)), ["one", "other", None, "one"]
    labels = torch.tensor(rows_of(5)[:4])
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning and all(("prompt" in name) == (method in PROMPT_METHODS) for name in learning)

    def learn(rows: Any, labels: Any, names: Any) -> None:
        with chunking(chunks):
            summed_language_loss(model, model.hidden_states(rows, adapters=names), labels).backward()

    learn(rows, labels, names)
    for name in ("one", "other"):
        with adapter_set.only(name):
            own = {key: each for key, each in model.named_parameters() if each.requires_grad}
        kept = [None if each.grad is None else each.grad.clone() for each in own.values()]
        assert any(each is not None and each.abs().max() > 0 for each in kept)
        for parameter in own.values():
            parameter.grad = None
        chosen = [number for number, each in enumerate(names) if each == name]
        with adapter_set.only(name):
            learn(rows[chosen], labels[chosen], None)
        for before, parameter in zip(kept, own.values(), strict=True):
            assert (before is None) == (parameter.grad is None)
            if before is not None and parameter.grad is not None:
                close(before, parameter.grad)
