"""Recurrent networks: PyTorch's own results, states that carry on, attention that sums to 1, no look ahead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.evaluation.perplexity import text_loss
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.models import classic
from quatrain.models.classic.elmo import Elmo, ElmoConfig
from quatrain.models.classic.recurrent import RecurrentLM, RecurrentLMConfig
from quatrain.models.classic.recurrent_encoder import RecurrentEncoder, RecurrentEncoderConfig
from quatrain.models.classic.recurrent_seq2seq import RecurrentSeq2Seq, RecurrentSeq2SeqConfig
from quatrain.models.classic.text_cnn import TextCNN, TextCNNConfig
from quatrain.models.classic.window_lm import WindowLM, WindowLMConfig
from quatrain.models.io import model_folder
from quatrain.models.transformer.settings import CLASSIC, CLASSIC_HEADS, ModelSettings

CELLS = ("rnn", "lstm", "gru")
ATTENTIONS = ("none", "bahdanau", "luong")


def language_model(cell="lstm", **more):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "embedding_size": 12}
    return RecurrentLM(RecurrentLMConfig(cell=cell, **(sizes | more))).initialize(1).eval()


def translator(attention="luong", cell="gru", **more):
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
    }
    config = RecurrentSeq2SeqConfig(cell=cell, attention=attention, **(sizes | more))
    return RecurrentSeq2Seq(config).initialize(1).eval()


def ids_of(rows=3, length=11, size=40):
    return torch.randint(2, size, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cell", CELLS)
def test_the_layers_are_those_of_pytorch(cell):
    model = language_model(cell, embedding_size=16)
    reference = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](16, 16, 2, batch_first=True)
    for number, layer in enumerate(model.stack.layers):
        for name, weight in layer.cell.named_parameters():
            getattr(reference, name[:-1] + str(number)).data.copy_(weight)
    expected = reference(model.embed_tokens(ids_of()))[0]
    torch.testing.assert_close(model.hidden_states(ids_of()), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=10, deadline=None)
@given(cut=st.integers(1, 10))
def test_a_carried_state_equals_one_long_pass(cell, cut):
    model, ids = language_model(cell), ids_of()
    whole = model.hidden_states(ids)
    first, state = model.carried(ids[:, :cut])
    second, _ = model.carried(ids[:, cut:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, atol=1e-6, rtol=0)
    ahead, states = model.advance(model.start(3), ids[:, :cut].tolist())
    rest, _ = model.advance(states, ids[:, cut:].tolist())
    torch.testing.assert_close(torch.cat((ahead, rest), 1), whole, atol=1e-6, rtol=0)


def test_a_long_text_is_measured_in_one_pass():
    model, tokens = language_model(), ids_of(1, 200)[0].numpy()
    loss = model(torch.from_numpy(tokens[None, :-1]), torch.from_numpy(tokens[None, 1:]))[1]
    assert text_loss(model, tokens, context=16).loss == pytest.approx(float(loss.detach().mean()), abs=1e-5)


def test_weights_from_state_to_state_are_dropped_in_training_alone():
    plain, dropped = language_model(), language_model(weight_drop=0.5)
    ids = ids_of()
    torch.testing.assert_close(dropped(ids)[0], plain(ids)[0])
    torch.manual_seed(0)
    first, second = (dropped.train()(ids)[0] for _ in range(2))
    assert not torch.equal(first, second)
    plain.train()
    torch.testing.assert_close(plain(ids)[0], plain.eval()(ids)[0])


def test_dropout_has_one_mask_for_a_whole_text():
    model = language_model(dropout=0.5).train()
    torch.manual_seed(0)
    dropped = model.drop(torch.ones(2, 7, 50))
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 7, -1))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_gradients_of_a_plain_network_vanish_faster_than_those_of_an_lstm():
    texts = ids_of(8, 33)
    reach = {}
    for cell in ("rnn", "lstm"):
        norms = language_model(cell, hidden_size=32, num_hidden_layers=1, embedding_size=32).gradient_norms(texts)
        assert len(norms) == 32 and all(math.isfinite(norm) for norm in norms)
        reach[cell] = norms[0] / norms[-1]
    assert reach["rnn"] < 0.01 and reach["rnn"] < reach["lstm"]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_an_encoder_decoder_reads_on_as_it_reads_at_once(attention, cell):
    model, source, target = translator(attention, cell), ids_of(3, 9), ids_of(3, 7)
    segments = torch.ones_like(source)
    segments[1, 6:] = 0
    logits, loss = model(source, target, segments=segments)
    assert logits.shape == (3, 7, 40) and loss.shape == (3, 7)
    decoder = torch.cat((torch.zeros(3, 1, dtype=torch.long), target[:, :-1]), 1)
    whole = model.hidden_states(source, segments=segments, decoder_input_ids=decoder)
    sources = [source[0].tolist(), source[1, :6].tolist(), source[2].tolist()]
    first, states = model.advance(model.start(3, sources), decoder[:, :3].tolist())
    second, _ = model.advance(states, decoder[:, 3:].tolist())
    torch.testing.assert_close(torch.cat((first, second), 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ("bahdanau", "luong"))
def test_attention_sums_to_one_and_reads_no_padding(attention):
    model, source, target = translator(attention), ids_of(3, 9), ids_of(3, 7)
    segments = torch.ones_like(source)
    segments[1, 6:] = 0
    model.recorded = []
    model(source, target, segments=segments)
    (weights,) = model.recorded
    assert weights.shape == (3, 7, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 7), atol=1e-6, rtol=0)
    assert (weights[1, :, 6:] == 0).all()
    assert model.attention_weights(source[0].tolist(), target[0].tolist()).shape == (7, 9)
    assert translator("none").attention_weights([3, 4], [5]) is None


def test_without_attention_the_decoder_reads_the_last_state_alone():
    """Two sources with the same last states would give the same: the decoder's first state is all that it gets."""
    model = translator("none")
    memory, start = model.encode(ids_of(1, 9))
    decoder = ids_of(1, 4)
    changed = type(memory)(memory.states + 1, memory.inside, None)
    torch.testing.assert_close(model.decode(decoder, memory, start)[0], model.decode(decoder, changed, start)[0])


def test_the_engine_generates_with_a_state():
    model = language_model()
    engine = Engine(model)
    prompt = ids_of(1, 6)[0].tolist()
    found = engine.generate([prompt, prompt[:3]], SamplingParams(max_new_tokens=8))
    text = list(prompt)
    for _ in range(8):
        text.append(int(model(torch.tensor([text]))[0][0, -1].argmax()))
    assert found[0].ids == text[6:]
    again = engine.generate([prompt + found[0].ids[:4]], SamplingParams(max_new_tokens=4))
    assert again[0].ids == text[10:]
    scores = engine.score([prompt], [found[0].ids])
    assert scores[0].logprobs == pytest.approx(found[0].logprobs, abs=1e-4)
    sampled = [
        engine.generate([prompt], SamplingParams(max_new_tokens=8, temperature=1.0, seed=3))[0].ids for _ in "ab"
    ]
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_beam_search_finds_what_the_model_thinks_likeliest(attention):
    model = translator(attention)
    source = ids_of(1, 6)[0].tolist()
    wide = Engine(model).generate([source], SamplingParams(max_new_tokens=5, num_beams=4, ignore_eos=True))[0]
    greedy = Engine(model).generate([source], SamplingParams(max_new_tokens=5, ignore_eos=True))[0]
    assert sum(wide.logprobs) >= sum(greedy.logprobs) - 1e-5
    labels = torch.tensor([wide.ids])
    total = -model(torch.tensor([source]), labels)[1].sum()
    assert float(total) == pytest.approx(sum(wide.logprobs), abs=1e-4)


MODELS = {
    "recurrent": lambda: language_model(),
    "recurrent untied": lambda: language_model(tie_word_embeddings=False),
    "recurrent-seq2seq": lambda: translator(),
    "window-lm": lambda: WindowLM(WindowLMConfig(vocab_size=40, hidden_size=16, window=4)).initialize(0).eval(),
    "text-cnn": lambda: TextCNN(TextCNNConfig(vocab_size=40, hidden_size=8, labels=["a", "b"])).initialize(0).eval(),
    "recurrent-encoder": lambda: tagger(crf=True),
    "elmo": lambda: bidirectional(),
}


def tagger(**more):
    own = {"vocab_size": 40, "hidden_size": 16, "labels": ["x", "y", "z"]}
    return RecurrentEncoder(RecurrentEncoderConfig(**(own | more))).initialize(0).eval()


def bidirectional(**more):
    # Recipes ask for tied weights by default: a model that predicts words has none to share with characters.
    own = {
        "tie_word_embeddings": True,
        "vocab_size": 40,
        "hidden_size": 10,
        "word_vocab_size": 12,
        "boundary_token_ids": [2],
        "num_filters": 6,
    }
    return Elmo(ElmoConfig(**(own | more))).initialize(0).eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_the_model_back_bit_for_bit(name, tmp_path):
    model = MODELS[name]()
    model_folder.save(model, tmp_path)
    again = model_folder.load(tmp_path)
    assert again.config == model.config and type(again) is type(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert not again.newly_initialized
    assert model.config.flops_per_token(training=True) > 0


def test_a_damaged_folder_names_its_tensors(tmp_path):
    model_folder.save(language_model(), tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"hidden_size": 16', '"hidden_size": 17')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match="do not fit") as caught:
        model_folder.load(tmp_path)
    assert any("weight_hh_l0: shape (64, 16)" in problem for problem in caught.value.problems)
    assert not any("lm_head" in problem for problem in caught.value.problems)


def test_the_table_of_heads_is_that_of_the_models():
    for name in CLASSIC:
        kind = classic.find(name)
        heads = set(kind.Config.heads)
        assert heads == {head for head, families in CLASSIC_HEADS.items() if name in families}, name


def test_choices_that_a_network_has_not_are_refused():
    chosen = ModelSettings(family="window-lm", classic={"crf": True, "window": 3})
    with pytest.raises(InputError, match="crf; a window-lm model has no such part"):
        chosen.config(10)
    assert ModelSettings(family="window-lm", classic={"window": 3}).config(10).window == 3


@pytest.mark.parametrize("combine", ("concatenate", "mean"))
def test_a_window_model_sees_its_window_alone(combine):
    model = WindowLM(WindowLMConfig(vocab_size=40, hidden_size=16, window=4, combine=combine)).initialize(0).eval()
    ids = ids_of(1, 12)
    changed = ids.clone()
    changed[0, 3] = 39 if ids[0, 3] != 39 else 38
    same = torch.isclose(model(ids)[0], model(changed)[0], atol=1e-6).all(-1)[0]
    assert same.tolist() == [number < 3 or number > 6 for number in range(12)]
    first, states = model.advance(model.start(1), [ids[0, :5].tolist()])
    second, _ = model.advance(states, [ids[0, 5:].tolist()])
    torch.testing.assert_close(torch.cat((first, second), 1), model.hidden_states(ids), atol=1e-6, rtol=0)


def test_a_bag_forgets_the_order_and_a_window_does_not():
    texts = torch.tensor([[5, 6, 7, 8], [7, 5, 6, 8]])
    for combine, alike in (("mean", True), ("concatenate", False)):
        model = WindowLM(WindowLMConfig(vocab_size=40, hidden_size=16, window=4, combine=combine)).initialize(0).eval()
        last = model(texts)[0][:, -1]
        assert torch.allclose(last[0], last[1], atol=1e-6) == alike


def test_a_text_cnn_reads_no_padding():
    model = MODELS["text-cnn"]()
    ids = ids_of(2, 9)
    segments = torch.ones_like(ids)
    segments[0, 5:] = 0
    alone = model(ids[:1, :5])[0]
    torch.testing.assert_close(model(ids, segments=segments)[0][:1], alone, atol=1e-6, rtol=0)


def test_a_bidirectional_tagger_reads_no_padding():
    model = tagger()
    ids = ids_of(2, 9)
    segments = torch.ones_like(ids)
    segments[0, 5:] = 0
    alone = model(ids[:1, :5])[0]
    torch.testing.assert_close(model(ids, segments=segments)[0][:1, :5], alone, atol=1e-6, rtol=0)


SENTENCE = [3, 4, 2, 5, 2, 6, 7, 8, 2, 9, 10, 2, 11]
"""Five words between the boundary 2."""


def test_a_bidirectional_model_never_sees_the_word_that_it_predicts():
    model = bidirectional()
    ids = torch.tensor([SENTENCE])
    layers, spans = model.layers(ids)
    assert int(spans.lengths[0]) == 5
    starts = [0, 3, 5, 9, 12]
    for word, place in enumerate(starts):
        changed = ids.clone()
        changed[0, place] = 30
        other, _ = model.layers(changed)
        for before, after in zip(layers[1:], other[1:], strict=True):
            left, right = before.chunk(2, -1)
            new_left, new_right = after.chunk(2, -1)
            # The left state behind word t - 1 predicts word t, and must not know it; the right one alike.
            assert torch.equal(left[0, :word], new_left[0, :word])
            assert not torch.allclose(left[0, word:], new_left[0, word:])
            torch.testing.assert_close(right[0, word + 1 :], new_right[0, word + 1 :], atol=0, rtol=0)
            assert not torch.allclose(right[0, : word + 1], new_right[0, : word + 1])


def test_one_word_has_different_vectors_in_different_sentences():
    model = bidirectional()
    pair = torch.tensor([[3, 4, 2, 20, 21, 2, 6], [9, 9, 2, 20, 21, 2, 7]])
    layers, _ = model.layers(pair)
    torch.testing.assert_close(layers[0][0, 1], layers[0][1, 1])
    for layer in layers[1:]:
        assert not torch.allclose(layer[0, 1], layer[1, 1], atol=1e-4)


def test_a_tagger_over_a_language_model_learns_its_mix_alone(tmp_path):
    model = bidirectional()
    model.learn_words([SENTENCE * 2])
    model_folder.save(model, tmp_path)
    top = model_folder.load(tmp_path, head="token_classification", labels=["x", "y"], seed=3)
    assert all(name.startswith(("mix.", "tagger.", "score.")) for name in top.newly_initialized)
    ids = torch.tensor([SENTENCE])
    labels = torch.full_like(ids, -100)
    labels[0, 0] = 1
    top.train()(ids, labels)[1].sum().backward()
    learned = {name for name, parameter in top.named_parameters() if parameter.grad is not None}
    assert learned and all(name.startswith(("mix.", "tagger.", "score.")) for name in learned)
    assert torch.equal(top.projection.weight, model.projection.weight)
    assert torch.equal(top.reader.table.hashes, model.reader.table.hashes)


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.lists(st.integers(3, 39), min_size=1, max_size=30), min_size=1, max_size=6))
def test_words_are_found_and_composed_alike_wherever_they_stand(words):
    reader = tagger(words=True, boundary_token_ids=[2], word_vocab_size=4).reader
    text = [token for word in words for token in (*word, 2)]
    spans = reader.spans(torch.tensor([text]), None)
    assert int(spans.lengths[0]) == len(words)
    for number, word in enumerate(words):
        kept = spans.tokens[0, number][spans.inside[0, number]].tolist()
        assert kept == word[:24]
        alone = reader.spans(torch.tensor([word]), None)
        assert spans.hashes[0, number] == alone.hashes[0, 0]
        torch.testing.assert_close(reader.compose(spans)[0, number], reader.compose(alone)[0, 0], atol=1e-6, rtol=0)


def test_frequent_words_get_an_embedding_of_their_own():
    reader = tagger(words=True, boundary_token_ids=[2], word_vocab_size=2).reader
    often, twice, once = [5, 6], [7], [8, 9]
    reader.learn_words([[*often, 2, *often, 2, *often, 2, *twice, 2, *twice, 2, *once]])
    numbers = reader.table.indices(reader.spans(torch.tensor([[*often, 2, *twice, 2, *once]]), None).hashes)[0]
    assert sorted(numbers.tolist()) == [0, 1, 2] and numbers[2] == 0
    reader.learn_words([[*once, 2, *once]])
    assert torch.equal(
        numbers, reader.table.indices(reader.spans(torch.tensor([[*often, 2, *twice, 2, *once]]), None).hashes)[0]
    )


def test_a_tagger_reads_the_mean_of_elmos_layers_or_taglms_two_side_by_side(tmp_path):
    ids = torch.tensor([[5, 6, 2, 7, 8, 2, 9]])
    for combine, width in (("mean", 20), ("concatenate", 40)):
        model = bidirectional(head="token_classification", labels=["x", "y"], combine=combine, dropout=0.0)
        layers, _ = model.layers(ids)
        read = model.mix(layers)
        assert read.shape == (1, 3, width)
        expected = torch.cat((layers[0], layers[-1]), -1) if combine == "concatenate" else torch.stack(layers).mean(0)
        torch.testing.assert_close(read, expected)
        model(ids, torch.tensor([[0, 0, -100, 1, 1, -100, 0]]))[1].sum().backward()
        assert model.projection.weight.grad is None and model.tagger.layers[0].cell.weight_ih_l0.grad is not None
        model_folder.save(model, tmp_path / combine)
        assert torch.equal(model_folder.load(tmp_path / combine)(ids)[0], model.eval()(ids)[0])


def test_word_vectors_fill_the_rows_of_their_words():
    vectors = torch.arange(24, dtype=torch.float32).view(3, 8)
    model = MODELS["text-cnn"]()
    encode = {"one": [5], "two": [6, 7], "three": [9]}.__getitem__
    before = model.embed_tokens.weight[6].clone()
    assert model.start_from_vectors(["one", "two", "three"], vectors, encode) == 2
    scaled = vectors * (model.embedding_std / vectors.std())
    torch.testing.assert_close(model.embed_tokens.weight[[5, 9]], scaled[[0, 2]])
    assert torch.equal(model.embed_tokens.weight[6], before)
    narrow = vectors[:1, :7] * (model.embedding_std / vectors[:1, :7].std())
    rest = model.embed_tokens.weight[5, 7].clone()
    assert model.start_from_vectors(["one"], vectors[:1, :7], encode) == 1
    torch.testing.assert_close(model.embed_tokens.weight[5], torch.cat((narrow[0], rest[None])))
    with pytest.raises(InputError, match="9 wide, and the embedding has 8; set model"):
        model.start_from_vectors(["one"], torch.zeros(1, 9), encode)
    fixed = TextCNN(TextCNNConfig(vocab_size=40, hidden_size=8, labels=["a", "b"], vectors="static"))
    assert not fixed.embed_tokens.weight.requires_grad

    words = tagger(words=True, boundary_token_ids=[2], word_vocab_size=3, word_size=8)
    words.learn_words([[6, 7, 2, 6, 7, 2, 5, 2, 5]])
    assert words.start_from_vectors(["one", "two", "three"], vectors, encode) == 2
    spans = words.reader.spans(torch.tensor([[6, 7, 2, 5, 2, 9]]), None)
    rows = words.reader.embed_words(words.reader.table.indices(spans.hashes))[0]
    torch.testing.assert_close(rows[:2], vectors[[1, 0]] * (words.embedding_std / vectors.std()))


@pytest.mark.parametrize("tied", [True, False])
def test_fresh_embeddings_have_their_deviation_even_where_a_head_shares_them(tied):
    model = language_model(vocab_size=2000, tie_word_embeddings=tied)
    assert float(model.embed_tokens.weight.std()) == pytest.approx(model.embedding_std, rel=0.05)
    assert torch.equal(model.embed_tokens.weight, model.lm_head.weight) == tied


def test_wrong_ids_and_heads_are_refused():
    with pytest.raises(InputError, match="vocabulary of 40"):
        language_model()(torch.tensor([[40]]))
    with pytest.raises(InputError, match="must be one of causal"):
        RecurrentLM(RecurrentLMConfig(vocab_size=4, head="masked"))
    with pytest.raises(InputError, match="labels: none"):
        TextCNN(TextCNNConfig(vocab_size=4))
    assert np.isfinite(float(language_model()(ids_of())[0].sum()))
