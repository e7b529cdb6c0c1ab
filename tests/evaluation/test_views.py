"""Logit lens, rollout, attribution, embedding maps, induction heads: against references and by hand; the page."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from browsers import ARGUMENTS, CHROMIUM
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bloom, gpt2, llama, make_folder, random_model

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.evaluation.inspection import (
    AttentionMaps,
    attention_maps,
    attention_rollout,
    attribute,
    embedding_map,
    induction_scores,
    logit_lens,
    text_vectors,
    token_map,
    views_page,
    vocabulary_tokens,
)
from quatrain.evaluation.inspection.embedding_map import pca, token_kind
from quatrain.evaluation.inspection.logit_lens import lens_logits
from quatrain.models.families.fresh import fresh_config
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
IDS = [7, 3, 9, 3, 11, 20, 7, 3]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["The game is afoot, </script> 3 + 4. <b>&amp;\u2028" * 9], kind="bpe", vocab_size=280)


def test_the_last_row_of_the_lens_is_the_model(tokenizer):
    for config in (llama(vocab_size=280), gpt2(vocab_size=280), bloom(vocab_size=280)):
        model = random_model(config)
        lens = logit_lens(model, tokenizer, IDS, top=280)
        expected = model(torch.tensor([IDS]))[0][0].detach().softmax(-1)
        assert len(lens.readings) == config.num_hidden_layers + 1
        for position, reading in enumerate(lens.readings[-1]):
            found = {each.token.id: each.probability for each in reading.candidates}
            for token, probability in enumerate(expected[position].tolist()):
                assert found[token] == pytest.approx(probability, abs=1e-6)
        wanted = IDS[1:]
        assert [each.id for each in lens.right[:-1]] == wanted and lens.right[-1] is None
        for position, token in enumerate(wanted):
            reading = lens.readings[-1][position]
            assert reading.probability == pytest.approx(float(expected[position, token]), abs=1e-6)
            assert reading.rank == 1 + int((expected[position] > expected[position, token]).sum())
        assert lens.mean_probability(0) > 0 and lens.readings[-1][-1].probability is None


def test_the_rows_between_pass_the_final_norm_and_the_head(tokenizer):
    model = random_model(llama(vocab_size=280))
    trace = Trace()
    model.hidden_states(torch.tensor([IDS]), trace=trace)
    state = trace.hidden_states[1]
    expected = model.lm_head(model.norm(state)).detach()
    assert torch.equal(lens_logits(model, state, last=False), expected)
    reading = logit_lens(model, tokenizer, IDS).readings[1][4]
    assert reading.candidates[0].token.id == int(expected[0, 4].argmax())
    assert reading.entropy == pytest.approx(
        float(torch.special.entr(expected[0, 4].softmax(-1)).sum()) / math.log(2), abs=1e-5
    )


@pytest.mark.parametrize(("family", "head"), [("bert", "masked"), ("t5", "seq2seq"), ("opt", "causal")])
def test_the_lens_of_other_architectures(family, head, tokenizer):
    model = random_model(fresh_config(family, SIZES | {"vocab_size": 280}, head=head))
    if family == "t5":
        lens = logit_lens(model, tokenizer, IDS, answer=[5, 6])
        start = model.config.decoder_start_token_id
        expected = model(torch.tensor([IDS]), decoder_input_ids=torch.tensor([[start, 5, 6]]))[0][0]
        assert [each.id for each in lens.read] == [start, 5, 6]
    else:
        lens, expected = logit_lens(model, tokenizer, IDS), model(torch.tensor([IDS]))[0][0]
    likeliest = [each.candidates[0].token.id for each in lens.readings[-1]]
    assert likeliest == expected.argmax(-1).tolist()
    assert (lens.right[0].id == IDS[0]) == (head == "masked")


def test_what_the_lens_refuses(tokenizer):
    with pytest.raises(InputError, match="head"):
        logit_lens(random_model(llama(head="none", vocab_size=280)), tokenizer, IDS)
    with pytest.raises(InputError, match="readings"):
        logit_lens(random_model(llama(vocab_size=280)), tokenizer, IDS * 4000)


# Rollout.


@settings(max_examples=15, deadline=None)
@given(layers=st.integers(1, 4), heads=st.integers(1, 3), length=st.integers(1, 9), residual=st.floats(0, 0.9))
def test_rollout_is_a_product_whose_rows_sum_to_one(layers, heads, length, residual):
    generator = torch.Generator().manual_seed(layers * 100 + length)
    weights = torch.rand(layers, heads, length, length, generator=generator).tril().softmax(-1)
    found = attention_rollout(AttentionMaps("decoder", (), (), weights), residual=residual)
    assert found.shape == (layers, length, length)
    torch.testing.assert_close(found.sum(-1), torch.ones(layers, length, dtype=torch.float64))
    expected = np.eye(length)
    for layer in range(layers):
        mean = sum(weights[layer, head].double().numpy() for head in range(heads)) / heads
        expected = (residual * np.eye(length) + (1 - residual) * mean) @ expected
        expected /= expected.sum(-1, keepdims=True)
        np.testing.assert_allclose(found[layer], expected, atol=1e-6)


def test_rollout_of_a_causal_model_sees_nothing_later(tokenizer):
    maps = attention_maps(random_model(llama(vocab_size=280)), tokenizer, IDS)[0]
    assert float(attention_rollout(maps).triu(1).abs().max()) == 0
    with pytest.raises(InputError, match="self-attention"):
        attention_rollout(AttentionMaps("cross", (), (), maps.weights))


# Attribution.


@pytest.mark.parametrize("config", [llama(vocab_size=280), gpt2(vocab_size=280)])
def test_integrated_gradients_sum_to_the_difference(config, tokenizer):
    model = random_model(config)
    result = attribute(model, tokenizer, IDS)
    assert abs(result.gap) <= 0.01 * abs(result.output - result.baseline) + 1e-4
    logs = model(torch.tensor([IDS]))[0][0, -1].detach().log_softmax(-1)
    assert result.target_id == int(logs.argmax()) and result.output == pytest.approx(float(logs.max()), abs=1e-5)
    assert sum(result.scores) == pytest.approx(result.output - result.baseline, abs=0.02)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_attribution_equals_gradients_of_transformers(tokenizer, tmp_path):
    """Input × gradient, and the same path integral by a plain trapezoid over inputs_embeds."""
    from transformers import GPT2LMHeadModel

    model = random_model(gpt2(vocab_size=280))
    model_folder.save(model, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    embedding = theirs.transformer.wte.weight.detach()
    given, start = embedding[IDS], embedding.mean(0).expand(len(IDS), -1)

    def slope(point):
        point = point[None].clone().requires_grad_(True)
        value = theirs(inputs_embeds=point).logits[0, 5].log_softmax(-1)[42]
        return torch.autograd.grad(value, point)[0][0]

    found = attribute(model, tokenizer, IDS, target=42, position=5, method="input_x_gradient")
    expected = (given * slope(given)).sum(-1)
    torch.testing.assert_close(torch.tensor(found.scores, dtype=torch.float32), expected, atol=1e-4, rtol=1e-3)
    assert found.gap is None and found.scores[6] == found.scores[7] == 0
    places = torch.linspace(0, 1, 129)
    slopes = torch.stack([slope(start + place * (given - start)) for place in places])
    expected = ((given - start) * torch.trapezoid(slopes, places, dim=0)).sum(-1)
    found = attribute(model, tokenizer, IDS, target=42, position=5)
    torch.testing.assert_close(torch.tensor(found.scores, dtype=torch.float32), expected, atol=2e-3, rtol=2e-2)


def test_attribution_of_other_heads(tokenizer):
    labels = {"labels": ("bad", "good"), "vocab_size": 280, "pad_token_id": 0}
    classifier = random_model(llama(head="sequence_classification", **labels))
    result = attribute(classifier, tokenizer, IDS, target=1)
    assert result.target == "good" and abs(result.gap) < 0.05
    writer = random_model(fresh_config("t5", SIZES | {"vocab_size": 280}, head="seq2seq"))
    assert abs(attribute(writer, tokenizer, IDS).gap) < 0.1
    for wrong in ({"target": 7}, {"method": "guess"}, {"steps": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            attribute(classifier, tokenizer, IDS, **wrong)
    with pytest.raises(InputError, match="position"):
        attribute(random_model(llama(vocab_size=280)), tokenizer, IDS, position=8)
    with pytest.raises(InputError, match="head"):
        attribute(random_model(llama(vocab_size=280, head="none")), tokenizer, IDS)


# Maps.


@settings(max_examples=20, deadline=None)
@given(count=st.integers(3, 30), size=st.integers(2, 12), seed=st.integers(0, 99))
def test_pca_equals_scikit_learn(count, size, seed):
    from sklearn.decomposition import PCA

    vectors = np.random.default_rng(seed).normal(size=(count, size)) * np.arange(1, size + 1)
    reference = PCA(n_components=2, svd_solver="full").fit(vectors)
    points, shares = pca(torch.from_numpy(vectors))
    np.testing.assert_allclose(points, reference.transform(vectors), atol=1e-9)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, atol=1e-9)


def test_maps(tokenizer, monkeypatch):
    model = random_model(llama(vocab_size=280))
    chosen = vocabulary_tokens(tokenizer, 40)
    assert len(chosen) == 40 and not any(each.special for each in chosen)
    found = token_map(model, chosen)
    assert found.points.shape == (40, 2) and 0 < found.explained[1] <= found.explained[0] < 1
    clusters = torch.cat([torch.randn(20, 8) * 0.1 + 9 * number for number in range(2)])
    tsne = embedding_map(clusters, [str(n) for n in range(40)], method="tsne")
    gap = (tsne.points[:20].mean(0) - tsne.points[20:].mean(0)).norm()
    assert gap > tsne.points[:20].std(0).max()
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    monkeypatch.setitem(sys.modules, "umap", None)
    for method, library in (("tsne", "scikit-learn"), ("umap", "umap-learn")):
        with pytest.raises(InputError, match=library):
            embedding_map(clusters, [""] * 40, method=method)
    flat = embedding_map(torch.ones(3, 1), ["a", "b", "c"])
    assert flat.points.tolist() == [[0, 0]] * 3
    for vectors in (torch.ones(2, 4), torch.full((3, 4), math.nan)):
        with pytest.raises(InputError):
            embedding_map(vectors, [""] * len(vectors))


def test_texts_and_kinds(tokenizer):
    model = random_model(llama(vocab_size=280))
    vectors = text_vectors(model, tokenizer, ["The game", "is afoot"])
    ids = torch.tensor([tokenizer.encode("The game", special_tokens=True)])
    torch.testing.assert_close(vectors[0], model.hidden_states(ids)[0].mean(0).detach())
    with pytest.raises(InputError, match="text 2"):
        text_vectors(model, tokenizer, ["The", ""])
    kinds = {" the": "word", "ing": "part of a word", " 42": "number", "!?": "mark", " дом": "other letters"}
    assert {text: token_kind(text) for text in kinds} == kinds


# Induction heads.


def induction_model(size=24, context=64, sharp=60.0):
    """Two layers of one head, by hand: the first copies the token before, the second looks for it.

    A state has three parts: the token (`size`), the position (`context`), and the token before (`size`).
    """
    width = 2 * size + context
    config = ModelConfig(
        family="gpt2", vocab_size=size, hidden_size=width, intermediate_size=8, num_hidden_layers=2, head_dim=context,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=context, position="learned",
        norm="rms", feed_forward="plain", tie_word_embeddings=True,
    )  # fmt: skip
    model = Model(config).eval()
    token, place, before = slice(0, size), slice(size, size + context), slice(size + context, width)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.embed_tokens.weight[:, token] = torch.eye(size)
        model.embed_positions.weight[:, place] = torch.eye(context)
        first, second = (layer.self_attn for layer in model.layers)
        # A position's query is the key of the one before; the value is the token, written to the third part.
        first.q_proj.weight[:, place] = sharp * torch.eye(context).roll(-1, 0)
        first.k_proj.weight[:, place] = torch.eye(context)
        first.v_proj.weight[:size, token] = torch.eye(size)
        first.o_proj.weight[before, :size] = torch.eye(size)
        # A token's query is the key of a place whose token before is the same; the value is the token there.
        second.q_proj.weight[:size, token] = sharp * torch.eye(size)
        second.k_proj.weight[:size, before] = torch.eye(size)
        second.v_proj.weight[:size, token] = torch.eye(size)
        second.o_proj.weight[token, :size] = 5 * torch.eye(size)
    return model


def test_a_hand_built_induction_head_scores_one():
    # Tokens of a sequence may repeat by chance, which divides the attention; few tokens of many do.
    scores = induction_scores(induction_model(size=60), length=8, sequences=8)
    assert scores.prefix_matching[1, 0] > 0.9 and scores.prefix_matching[0, 0] < 0.2
    assert scores.previous_token[0, 0] > 0.9 and scores.copying[1, 0] == pytest.approx(1, abs=1e-6)
    assert scores.loss_second < scores.loss_first - 1
    assert scores.strongest(1) == [(1, 0)]


def test_copying_is_the_spectrum_of_the_whole_circuit():
    """The eigenvalues of head_dim × head_dim equal the nonzero ones of vocabulary × vocabulary."""
    model = random_model(llama(num_hidden_layers=1, tie_word_embeddings=False))
    attention = model.layers[0].self_attn
    embedding, head = (layer.weight.double() for layer in (model.embed_tokens, model.lm_head))
    expected = []
    for number in range(4):
        value = attention.v_proj.weight.double().view(2, 8, 32)[number // 2]
        output = attention.o_proj.weight.double().view(32, 4, 8)[:, number]
        into, final = model.layers[0].input_layernorm.weight.double(), model.norm.weight.double()
        whole = (embedding * into) @ value.T @ output.T @ (head * final).T
        spectrum = torch.linalg.eigvals(whole)
        expected.append(float(spectrum.real.sum() / spectrum.abs().sum()))
    found = induction_scores(model).copying[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(InputError, match="causal decoder"):
        induction_scores(random_model(fresh_config("bert", SIZES, head="masked")))


# The page and the verb.


@pytest.fixture(scope="module")
def page(tokenizer):
    model = random_model(llama(vocab_size=280))
    text = "</script> <b>&amp;\u2028 3"
    ids = tokenizer.encode(text)
    maps = attention_maps(model, tokenizer, ids)[0]
    return views_page(
        "a <b>bold</b> model", lens=logit_lens(model, tokenizer, ids), attribution=attribute(model, tokenizer, ids),
        rollout=(maps.keys, attention_rollout(maps)), embedding=token_map(model, vocabulary_tokens(tokenizer, 60)),
        induction=induction_scores(model),
    )  # fmt: skip


def test_a_page_is_self_contained_and_escapes_tokens(page):
    assert page.count("</script>") == 2 and "<b>bold" not in page and "\u2028" not in page
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page) and "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    assert set(data) == {"lens", "attribution", "rollout", "map", "induction"}
    assert len(data["map"]["points"]) == 60 and len(page) < 400_000
    with pytest.raises(InputError, match="no view"):
        views_page("empty")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_page_draws_without_errors_and_fits(page, tmp_path):
    from playwright.sync_api import sync_playwright

    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for width, scheme in ((390, "light"), (1280, "dark")):
            tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            errors = []
            tab.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            tab.goto((tmp_path / "page.html").as_uri())
            assert errors == []
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator("#lens .cell").count() > 10 and tab.locator("#lens .chosen").count() == 1
            tab.locator("#lens .cell").nth(3).click()
            assert "After layer" in tab.locator("#lens .detail").inner_text()
            tab.locator("#rollout button").first.click()
            assert "is made of" in tab.locator("#rollout .detail").inner_text()
            assert tab.evaluate(
                "(() => { const c = document.querySelector('canvas'); const d = c.getContext('2d')"
                ".getImageData(0, 0, c.width, c.height).data; return d.some((v) => v > 0); })()"
            )
        browser.close()


def test_the_verb_shows_views_and_writes_the_page(tmp_path, capsys):
    folder = make_folder(tmp_path / "tiny")
    out = tmp_path / "page.html"
    flags = ["--lens", "--attribution", "--target", "e", "--rollout", "--induction", "--map", "pca", "--page", str(out)]
    assert main(["inspect", str(folder), "--text", "The game", *flags]) == 0
    shown = capsys.readouterr().out
    for words in ("logit lens", "What changes the output e", "attention rollout", "prefix matching", "first axis"):
        assert words in shown
    assert "data-view" in out.read_text(encoding="utf-8")
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
    assert main(["inspect", str(folder), "--map", "pca", "--texts", str(tmp_path / "lines.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["name"] for point in found["embedding"]["points"]] == ["one", "two", "three"]


def test_flags_that_do_not_fit(tmp_path, capsys):
    folder = make_folder(tmp_path / "tiny")
    wrong = ["--lens", "--target", "e", "--texts", "lines.txt", "--page", "page.pdf", "--points", "1"]
    assert main(["inspect", str(folder), *wrong]) == 2
    error = capsys.readouterr().err
    for words in (
        "--lens: needs a text",
        "--target: is for --attribution",
        "--texts: is for --map",
        "must end in .html",
    ):
        assert words in error
