"""Encoder-decoders of two models, and decoders with cross-attention alone, against transformers."""

import logging
import warnings

import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.io.two_models import join_folders
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.planning import counts

transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40}  # fmt: skip
CROSS = {"is_decoder": True, "add_cross_attention": True}


def bert(**more):
    return transformers.BertConfig(**SIZES | TOKENS | more)


def roberta(**more):
    return transformers.RobertaConfig(**SIZES | TOKENS | {"vocab_size": 70} | more)


def gpt2(**more):
    return transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=40, **TOKENS | more)


PAIRS = {"bert2bert": (bert, bert), "bert2gpt2": (bert, gpt2), "roberta2bert": (roberta, bert)}


def randomized(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module", params=sorted(PAIRS))
def pair(request, tmp_path_factory):
    encoder, decoder = PAIRS[request.param]
    whole = transformers.EncoderDecoderConfig(
        encoder=encoder().to_dict(), decoder=decoder(**CROSS).to_dict(), decoder_start_token_id=1, **TOKENS
    )
    theirs, folder = randomized(transformers.EncoderDecoderModel(whole)), tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, model_folder.load(folder), folder


def ids(rows, length, seed=0):
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(side):
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, slice(5, 9) if side == "right" else slice(0, 4)] = 0
    return ids(3, 9).masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_with_padding_and_step_by_step(pair, side):
    theirs, ours, _ = pair
    (text, mask), answer = padded(side), ids(3, 6, seed=1)
    more = {}
    if side == "left" and theirs.config.encoder.model_type == "bert":  # their BERT counts padding
        text, mask = text.flip(1), mask.flip(1)
    with torch.no_grad():
        expected = theirs(input_ids=text, attention_mask=mask, decoder_input_ids=answer, **more).logits
        torch.testing.assert_close(ours(text, segments=mask, decoder_input_ids=answer)[0], expected, **CLOSE)
        cache, steps = KVCache(ours.config, 3, 6), []
        for place in range(6):
            source = {"input_ids": text, "segments": mask} if place == 0 else {}
            steps.append(ours(**source, decoder_input_ids=answer[:, [place]], cache=cache)[0])
        torch.testing.assert_close(torch.cat(steps, 1), expected, **CLOSE)


def test_losses_and_gradients_of_the_seq2seq_objective(pair):
    theirs, ours, _ = pair
    (text, mask), labels = padded("right"), ids(3, 6, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(input_ids=text, attention_mask=mask, labels=labels).loss
    theirs.zero_grad()
    expected.backward()
    loss = ours(text, labels, segments=mask)[1].mean()
    loss.backward()
    torch.testing.assert_close(loss, expected, **CLOSE)
    found = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
    named = dict(ours.named_parameters())
    compared = set()
    for operation in get_family("encoder-decoder").weights(ours.config):
        if set(operation.sources) <= set(found) and set(operation.targets) <= set(named):
            for name, tensor in operation.read(found.__getitem__):
                torch.testing.assert_close(named[name].grad, tensor, atol=1e-5, rtol=1e-4)
                compared.add(name)
    assert {name for name, each in named.items() if each.grad is not None} - compared <= {"lm_head.weight"}
    ours.zero_grad()


@pytest.mark.parametrize("beams", [1, 3])
def test_ids_of_transformers(pair, beams):
    theirs, ours, _ = pair
    texts = [row.tolist() for row in ids(2, 7)]
    options = {"num_beams": beams, "length_penalty": 1.0}
    rows = theirs.generate(torch.tensor(texts), do_sample=False, max_new_tokens=8, **options)[:, 1:].tolist()
    found = Engine(ours).generate(texts, SamplingParams(8, **options))
    assert all(each.ids == row[: len(each.ids)] and len(each.ids) > 1 for each, row in zip(found, rows, strict=True))


def test_files_return_bit_for_bit(pair, tmp_path, caplog):
    theirs, ours, _ = pair
    model_folder.save(ours, tmp_path)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="transformers"):
        warnings.simplefilter("error")
        back, told = transformers.EncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()) and not caplog.records, (told, caplog.records)
    returned = back.state_dict()
    assert all(torch.equal(tensor, returned[name]) for name, tensor in theirs.state_dict().items())
    assert model_folder.load(tmp_path).config == ours.config
    pooler = sum(each.numel() for name, each in theirs.named_parameters() if name.startswith("encoder.pooler."))
    assert counts.parameters(ours.config) == ours.num_parameters() == theirs.num_parameters() - pooler


def test_two_models_that_do_not_fit_are_refused_at_once():
    raw = {"model_type": "encoder-decoder", "encoder": bert(is_decoder=True).to_dict(), "decoder": gpt2().to_dict()}
    with pytest.raises(InputError) as caught:
        get_family("encoder-decoder").from_hf(raw)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "encoder.is_decoder", "decoder.add_cross_attention"
    ]  # fmt: skip
    with pytest.raises(InputError, match="encoder: model_type"):
        get_family("encoder-decoder").from_hf(raw | {"encoder": {"model_type": "t5"}})


@pytest.mark.parametrize(("settings", "name"), [(gpt2, "GPT2LMHeadModel"), (bert, "BertLMHeadModel")])
def test_a_decoder_with_cross_attention_reads_what_it_is_given(settings, name, tmp_path):
    """With the output of an encoder it attends to it, from the cache as well; without it the layers leave it out."""
    theirs = randomized(getattr(transformers, name)(settings(**CROSS)))
    theirs.save_pretrained(tmp_path)
    ours = model_folder.load(tmp_path, head="causal")
    width = theirs.config.hidden_size
    encoded, mask = torch.randn(3, 9, width, generator=torch.Generator().manual_seed(2)), padded("right")[1]
    text = ids(3, 6, seed=1)
    seen = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
    with torch.no_grad():
        torch.testing.assert_close(ours(text)[0], theirs(text).logits, **CLOSE)
        expected = theirs(text, **seen).logits
        given = {"encoded": encoded, "encoded_segments": mask}
        torch.testing.assert_close(ours(text, **given)[0], expected, **CLOSE)
        cache = KVCache(ours.config, 3, 6)
        steps = [ours(text[:, :4], cache=cache, **given)[0], ours(text[:, 4:], cache=cache)[0]]
        torch.testing.assert_close(torch.cat(steps, 1), expected, **CLOSE)
    model_folder.save(ours, tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, back[key]) for key, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("decoder", ["gpt2", "bert"])
def test_two_folders_become_one_model_that_learns(decoder, tmp_path):
    """Its decoder says at first what it said alone; transformers reads the files, and both compute the same."""
    randomized(transformers.BertModel(bert())).save_pretrained(tmp_path / "encoder")
    kinds = {"gpt2": (transformers.GPT2LMHeadModel, gpt2()), "bert": (transformers.BertForMaskedLM, bert())}
    kind, config = kinds[decoder]
    randomized(kind(config)).save_pretrained(tmp_path / "decoder")
    model = join_folders(tmp_path / "encoder", tmp_path / "decoder")
    text, labels = ids(3, 7), ids(3, 6, seed=1)
    assert all("cross_attn" in name or name.startswith("encoder_projection") for name in model.newly_initialized)
    if decoder == "gpt2":
        alone = model_folder.load(tmp_path / "decoder")
        with torch.no_grad():
            said = model(text, decoder_input_ids=labels)[0]
            torch.testing.assert_close(said, alone(labels)[0], **CLOSE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        losses.append(model(text, labels)[1].mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2
    model_folder.save(model, tmp_path / "both")
    theirs, told = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "both", output_loading_info=True)
    assert not any(told.values())
    with torch.no_grad():
        expected = theirs(input_ids=text, decoder_input_ids=labels).logits
        torch.testing.assert_close(model(text, decoder_input_ids=labels)[0], expected, **CLOSE)
