"""The stack and transformers agree: logits and gradients, weights going either way, for both families."""

import math
import warnings

import pytest
import torch
from tiny_models import llama

from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(1))

LLAMAS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one key": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 22},
    "odd sizes": {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 37},
    "theta": {"rope_theta": 500000.0, "rms_norm_eps": 1e-3},
    "gelu": {"hidden_act": "gelu"},
}
GPT2S = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "odd sizes": {"n_embd": 42, "n_head": 3, "n_inner": 37},
    "relu": {"activation_function": "relu"},
    "exact gelu": {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
}
CASES = [("llama", changes) for changes in LLAMAS.values()] + [("gpt2", changes) for changes in GPT2S.values()]
NAMES = [f"llama {name}" for name in LLAMAS] + [f"gpt2 {name}" for name in GPT2S]
EVERY = pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)


def reference(family, changes):
    """A random model of transformers, its weights large enough for every part to matter."""
    torch.manual_seed(0)
    if family == "llama":
        sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 40}  # fmt: skip
        config = transformers.LlamaConfig(**sizes | changes, attn_implementation="eager")
        model = transformers.LlamaForCausalLM(config)
    else:
        sizes = {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40}
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**sizes | changes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                    bos_token_id=1, eos_token_id=2))  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "bias" in name else 0.2))
    return model.eval()


@EVERY
def test_theirs_to_ours_and_back(family, changes, tmp_path):
    theirs = reference(family, changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_folder.load(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(ours(IDS)[0], expected, atol=1e-5, rtol=1e-5)
    model_folder.save(ours, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), f"transformers found something amiss: {info}"
    weights, returned = theirs.state_dict(), back.state_dict()
    assert set(weights) == set(returned)
    assert all(torch.equal(weights[name], returned[name]) for name in weights)
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(IDS).logits, expected, atol=5e-6, rtol=1e-5)


@EVERY
def test_gradients(family, changes, tmp_path):
    theirs = reference(family, changes)
    theirs.save_pretrained(tmp_path)
    ours = model_folder.load(tmp_path)
    logits = theirs(IDS).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten()).backward()
    ours(IDS, LABELS)[1].mean().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    from quatrain.models.families import get_family as find

    compared = set()
    for operation in find(family).weights(ours.config):
        if all(name in gradients for name in operation.targets) and operation.sources[0] in expected:
            for name, tensor in operation.read(expected.__getitem__):
                torch.testing.assert_close(
                    gradients[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
                )
                compared.add(name)
    assert compared == set(gradients)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_the_folder(family, dtype, tmp_path):
    theirs = reference(family, {}).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = model_folder.load(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    model_folder.save(ours, tmp_path / "again")
    assert model_folder.read_config(tmp_path / "again")["dtype"] == str(dtype).removeprefix("torch.")
    again = model_folder.load(tmp_path / "again", dtype=dtype).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.state_dict().items())


def test_loss_is_per_token_and_ignores_what_is_not_learned():
    model = Model(llama(vocab_size=97)).initialize(0)
    labels = LABELS.clone()
    labels[0, 3:7] = -100
    logits, loss = model(IDS, labels)
    assert loss.shape == labels.shape
    assert (loss[labels == -100] == 0).all() and (loss[labels != -100] > 0).all()
    expected = -logits.log_softmax(-1).gather(-1, LABELS[..., None])[..., 0]
    learned = labels != -100
    torch.testing.assert_close(loss[learned], expected[learned])


@pytest.mark.parametrize("tied", [False, True])
def test_initial_loss_is_that_of_a_uniform_guess_and_seeds_decide(tied):
    config = llama(vocab_size=97, hidden_size=64, tie_word_embeddings=tied)
    first, same, other = (Model(config).initialize(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)
    with torch.no_grad():
        loss = first(IDS, LABELS)[1].mean()
    # A tied head begins with the embedding's own small weights, one of its own at zero.
    assert float(loss) == pytest.approx(math.log(97), abs=0.4 if tied else 1e-5)
