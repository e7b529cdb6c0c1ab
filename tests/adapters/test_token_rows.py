"""Single embedding rows that learn: only those move, they are saved as PEFT saves them, and PEFT reads them."""

import pytest
import torch
from tiny_models import gpt2, llama, random_model

from quatrain.adapters import peft_files
from quatrain.adapters.apply import apply_adapter, count_trainable_parameters, merge_adapters
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import merge_token_rows, token_rows, train_tokens
from quatrain.core.errors import InputError
from quatrain.data.batches import TokenExample, pad
from quatrain.models.io import model_folder
from quatrain.training.chunked_loss import chunking
from quatrain.training.objectives import Causal
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import ExampleStream
from quatrain.training.trainer import Trainer

IDS = (3, 17)


def base_of(family="llama", tied=True):
    return random_model({"llama": llama, "gpt2": gpt2}[family](tie_word_embeddings=tied))


def trained(model, precision="float32"):
    apply_adapter(model, AdapterSettings(rank=4, alpha=8.0), seed=0)
    train_tokens(model, IDS)
    examples = [TokenExample([i % 30, *IDS, (i + 5) % 30, 3], [True] * 5) for i in range(24)]
    settings = TrainSettings(
        steps=3, batch_tokens=64, learning_rate=1e-2, warmup_steps=0, precision=precision, weight_decay=0.3
    )
    Trainer(model, Causal(), ExampleStream(examples, batch_tokens=64, seed=0), settings, steps=3).train()
    return model


def moved(model, before, part):
    old, new = (getattr(each, part).weight.detach() for each in (before, model))
    return [row for row in range(60) if not torch.equal(old[row], new[row])]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_the_chosen_rows_move(precision, tied):
    before, model = base_of(tied=tied), trained(base_of(tied=tied), precision)
    assert set(token_rows(model).tables()) == ({"embed_tokens"} if tied else {"embed_tokens", "lm_head"})
    for part in ("embed_tokens", "lm_head"):
        assert moved(model, before, part) == []
    ids = torch.tensor([[1, 3, 17, 5, 3]])
    with torch.no_grad():
        as_rows, _ = model(ids)
        merge_token_rows(model)
        as_matrix, _ = model(ids)
    torch.testing.assert_close(as_rows, as_matrix, atol=1e-6, rtol=0)
    for part in ("embed_tokens", "lm_head"):
        assert moved(model, before, part) == list(IDS)


@pytest.mark.parametrize("chunks", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_row_learns_as_it_would_in_a_matrix_that_learns_whole(tied, chunks):
    """The gradients are those of the rows of the whole matrices, and nothing else has one."""
    whole, model = base_of(tied=tied), base_of(tied=tied)
    model.requires_grad_(False)
    train_tokens(model, IDS)
    ids = torch.tensor([[1, 3, 17, 5, 3], [3, 3, 29, 17, 2]])
    batch = pad([TokenExample(row, [True] * 5) for row in ids.tolist()], 0)
    for each in (whole, model):
        with chunking(chunks):
            Causal().loss(each, batch)[0].backward()
    for part, table in token_rows(model).tables().items():
        wanted = getattr(whole, part).weight.grad[list(IDS)]
        torch.testing.assert_close(table.grad, wanted, atol=1e-5, rtol=1e-5)
    assert {name for name, each in model.named_parameters() if each.grad is not None} == {
        f"trainable_tokens.{part}" for part in token_rows(model).tables()
    }


def test_what_learns_whole_is_left_to_it():
    model = base_of(tied=False)
    apply_adapter(model, AdapterSettings(rank=4, modules_to_save=("lm_head",)), seed=0)
    train_tokens(model, IDS)
    assert set(token_rows(model).tables()) == {"embed_tokens"}
    model(torch.tensor([[1, 2]]), torch.tensor([[2, 4]]))[1].sum().backward()
    assert model.lm_head.weight.grad[4].abs().sum() > 0


def test_the_report_counts_the_rows_alone():
    model = base_of()
    apply_adapter(model, AdapterSettings(rank=4, alpha=8.0), seed=0)
    without, *_ = count_trainable_parameters(model)
    train_tokens(model, IDS)
    assert count_trainable_parameters(model)[0] == without + len(IDS) * 32


def test_merging_ends_it():
    model = trained(base_of())
    merge_adapters(model)
    assert token_rows(model) is None
    model(torch.tensor([[1, 2]]), torch.tensor([[2, 4]]))[1].sum().backward()
    assert model.embed_tokens.weight.grad[4].abs().sum() > 0


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_saved_and_loaded_bit_for_bit_and_by_peft(tmp_path, family, tied):
    peft = pytest.importorskip("peft", reason="the reference is not installed")
    transformers = pytest.importorskip("transformers", reason="the reference is not installed")
    base = base_of(family, tied)
    model_folder.save(base, tmp_path / "base")
    model = trained(base_of(family, tied)).eval()
    peft_files.save_adapter(model, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    ids = torch.tensor([[1, 3, 17, 5, 3]])
    with torch.no_grad():
        expected, _ = model(ids)
        fresh = model_folder.load(tmp_path / "base")
        peft_files.load_adapter(fresh, tmp_path / "adapter")
        again, _ = fresh.eval()(ids)
        reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()(ids).logits
    assert torch.equal(again, expected)
    torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=0)


def test_ids_past_the_embedding_are_refused():
    with pytest.raises(InputError, match="0 to 59"):
        train_tokens(base_of(), [60])
