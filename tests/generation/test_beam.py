"""Beam search gives the ids and scores of transformers, and the likeliest completion where it sees them all."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.io import model_folder

VOCABULARY, CONTEXT, NEW = 40, 48, 14
PAD = VOCABULARY - 1


def reference(kind, seed):
    """A tiny transformers model whose weights are large enough that its logits vary and its end tokens come up."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    if kind == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(
            vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=CONTEXT, **sizes, **tokens
        )
        theirs = LlamaForCausalLM(config)
    else:
        theirs = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **tokens)
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.copy_(is_norm + 0.3 * torch.randn(parameter.shape, generator=generator))
    return theirs.eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Their model and ours by kind and seed, with the same weights."""
    made = {}

    def make(kind, seed=0):
        if (kind, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}{seed}")
            theirs = reference(kind, seed)
            theirs.save_pretrained(folder)
            made[kind, seed] = theirs, model_folder.load(folder)
        return made[kind, seed]

    return make


def prompts(count, seed, low=1, high=9):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [torch.randint(3, PAD, (n,), generator=generator).tolist() for n in lengths]


def expected(theirs, texts, ends, **options):
    """New ids of every hypothesis of transformers, PAD after its end, and its score; one left-padded batch."""
    width = max(map(len, texts))
    theirs.generation_config.eos_token_id = ends or None
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, **options}
    made = theirs.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **options)
    return made.sequences[:, width:].tolist(), getattr(made, "sequences_scores", torch.empty(0)).tolist()


def assert_equal(theirs, ours, texts, ends, beams, penalty=1.0, early=False, **more):
    """Every hypothesis of every text: ids and score."""
    options = {"length_penalty": penalty, "early_stopping": early} if beams > 1 else {}
    rows, scores = expected(theirs, texts, ends, num_beams=beams, num_return_sequences=beams, **options, **more)
    params = SamplingParams(NEW, num_beams=beams, num_return_sequences=beams, **options, **more)
    found = [[each, *each.alternatives] for each in Engine(ours, end_ids=ends).generate(texts, params)]
    assert [len(each) for each in found] == [beams] * len(texts)
    flat = list(itertools.chain.from_iterable(found))
    assert [each.ids + [PAD] * (len(row) - len(each.ids)) for each, row in zip(flat, rows, strict=True)] == rows
    assert all((each.ids[-1] in ends) == (each.finish_reason == "stop") for each in flat)
    assert all(each.finish_reason == "stop" or len(each.ids) == NEW for each in flat)
    if beams > 1:
        assert [each.score for each in flat] == pytest.approx(scores, rel=1e-5, abs=1e-4)
    return flat


def reachable(ours, texts, count):
    """End tokens that come up: the fourth, the eighth, ... of what is said without any."""
    said = Engine(ours, end_ids=[]).generate(texts, SamplingParams(NEW))
    return sorted({each.ids[3 + 4 * (number % 3)] for number, each in enumerate(said[:count])})


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("ends", [1, 3, 0], ids=["one end", "three ends", "no end"])
@pytest.mark.parametrize("beams", [1, 2, 3, 4, 5])
def test_ids_and_scores_of_transformers(pair, kind, ends, beams):
    theirs, ours = pair(kind)
    texts = prompts(6, seed=beams)
    tokens = reachable(ours, texts, ends)
    ways = itertools.product([0.0, 0.5, 1.0, 2.0, -1.0, -0.2] if beams > 1 else [1.0], [False, True, "never"])
    lengths = set()
    for penalty, early in ways:
        lengths |= {len(each.ids) for each in assert_equal(theirs, ours, texts, tokens, beams, penalty, early)}
    assert lengths == {NEW} if not ends else len(lengths) > 1, "hypotheses end at different lengths"


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-10.0, 10.0])
def test_the_strongest_penalties(pair, penalty, early):
    theirs, ours = pair("llama")
    texts = prompts(4, seed=8)
    assert_equal(theirs, ours, texts, reachable(ours, texts, 2), 3, penalty, early)


@given(
    kind=st.sampled_from(["llama", "gpt2"]),
    seed=st.integers(0, 3),
    texts=st.lists(st.lists(st.integers(3, PAD - 1), min_size=1, max_size=12), min_size=1, max_size=4),
    ends=st.lists(st.integers(2, PAD - 1), max_size=6, unique=True),
    beams=st.integers(2, 6),
    penalty=st.floats(-2, 3).map(lambda value: round(value, 2)),
    early=st.sampled_from([False, True, "never"]),
)
@settings(max_examples=40, deadline=None)
def test_any_settings_give_what_transformers_gives(pair, kind, seed, texts, ends, beams, penalty, early):
    theirs, ours = pair(kind, seed)
    assert_equal(theirs, ours, texts, ends, beams, penalty, early)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_constraints_act_on_beams_as_in_transformers(pair, kind, beams):
    theirs, ours = pair(kind)
    # Equal lengths: their padding would count as a repeated n-gram and in the shortest length.
    texts = prompts(4, seed=1, low=6, high=7)
    ends = reachable(ours, texts, 3)
    for more in ({"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.7}, {"min_new_tokens": 11}):
        tokens = ends if "min_new_tokens" in more else []
        plain = assert_equal(theirs, ours, texts, tokens, beams)
        changed = assert_equal(theirs, ours, texts, tokens, beams, **more)
        assert [each.ids for each in changed] != [each.ids for each in plain]


def test_every_beam_of_the_tree_finds_the_likeliest(pair):
    _, ours = pair("llama", 1)
    ours = hub_cut(ours, 6)
    (text,) = prompts(1, seed=2, low=4, high=5)
    text = [token % 6 for token in text]
    (best,) = Engine(ours, end_ids=[]).generate([text], SamplingParams(3, num_beams=36))
    with torch.no_grad():
        every = torch.tensor([[*text, *said] for said in itertools.product(range(6), repeat=3)])
        logprobs = ours(every)[0].log_softmax(-1)[:, len(text) - 1 : -1].gather(-1, every[:, len(text) :, None])
    sums = logprobs.sum(dim=(1, 2))
    assert best.ids == every[sums.argmax(), len(text) :].tolist()
    assert best.score == pytest.approx(float(sums.max()) / 3, abs=1e-5)
    greedy = Engine(ours, end_ids=[]).generate([text], SamplingParams(3))[0]
    assert sum(greedy.logprobs) <= sum(best.logprobs) + 1e-6


def hub_cut(model, vocabulary):
    """The model with its first tokens only."""
    from quatrain.models.transformer.stack import Model

    cut = Model(model.config.replace(vocab_size=vocabulary, eos_token_id=None, bos_token_id=None, pad_token_id=None))
    whole = model.state_dict()
    cut.load_state_dict({name: whole[name][: tensor.shape[0]] for name, tensor in cut.state_dict().items()})
    return cut.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_and_logprobs_are_the_models_own(pair, kind):
    _, ours = pair(kind)
    texts = prompts(6, seed=3)
    params = SamplingParams(NEW, num_beams=4, length_penalty=0.7, num_return_sequences=4, no_repeat_ngram_size=2)
    for text, best in zip(texts, Engine(ours, end_ids=[2, 3, 4]).generate(texts, params), strict=True):
        for each in [best, *best.alternatives]:
            with torch.no_grad():
                logits = ours(torch.tensor([text + each.ids]))[0][0, len(text) - 1 : -1]
            own = logits.log_softmax(-1).gather(1, torch.tensor(each.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(each.logprobs), own, atol=1e-4, rtol=1e-4)
            assert each.score == pytest.approx(float(own.sum()) / len(each.ids) ** 0.7, abs=1e-4)
            assert each.finish_reason == ("stop" if each.ids[-1] in (2, 3, 4) else "length")
        scores = [best.score, *(each.score for each in best.alternatives)]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("early", [False, True, "never"])
def test_batched_equals_single(pair, early):
    _, ours = pair("gpt2")
    engine = Engine(ours, end_ids=[2, 3])
    # The last prompts leave less room in the context than the others.
    texts = [*prompts(9, seed=5), [7] * 40, [8] * 46]
    params = SamplingParams(
        20, num_beams=3, early_stopping=early, length_penalty=1.4, no_repeat_ngram_size=3, min_new_tokens=2
    )
    together = engine.generate(texts, params, batch_size=3 * 6)
    alone = [engine.generate([text], params)[0] for text in texts]
    assert [each.ids for each in together] == [each.ids for each in alone]
    assert [each.score for each in together] == pytest.approx([each.score for each in alone], abs=1e-4)
    assert len(together[-1].ids) <= 2 and len({len(each.ids) for each in together}) > 2


class Letters:
    """A tokenizer whose every id from 3 on is one letter of the alphabet, larger ones two."""

    bos_id, eos_id, special_ids, stop_ids = 1, 2, frozenset({0, 1, 2}), frozenset({2})

    def encode(self, text, *, special_tokens=False):
        return [3 + ord(letter) - ord("a") for letter in text]

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(chr(ord("a") + i - 3) if i < 29 else "xy" for i in ids if i > 2)

    def token_to_id(self, token):
        return None


def test_stop_strings_end_hypotheses(pair):
    _, ours = pair("llama")
    texts = prompts(6, seed=6)
    engine = Engine(ours, Letters(), end_ids=[2])
    first = engine.generate(texts, SamplingParams(NEW, num_beams=3, stop=("b", "c")))
    same = Engine(ours, Letters(), end_ids=[2, 4, 5]).generate(texts, SamplingParams(NEW, num_beams=3))
    assert [each.ids for each in first] == [each.ids for each in same], "a stop string of one token is an end token"
    assert not any("b" in each.text or "c" in each.text for each in first)
    assert any(each.ids[-1] in (4, 5) and each.finish_reason == "stop" for each in first)
    unstopped = engine.generate(texts, SamplingParams(NEW, num_beams=3))
    stop = next(each.text[1:3] for each in unstopped if len(each.text) > 3)
    assert any(stop in each.text for each in unstopped)
    assert not any(stop in each.text for each in engine.generate(texts, SamplingParams(NEW, num_beams=3, stop=stop)))


def test_streaming_gives_the_whole_at_the_end(pair):
    _, ours = pair("llama")
    engine, params = Engine(ours, Letters(), end_ids=[2]), SamplingParams(NEW, num_beams=3)
    (piece,) = engine.stream([5, 6], params)
    assert piece.completion == engine.generate([[5, 6]], params)[0]
    assert piece == piece.completion.text != ""


def test_end_tokens_can_be_ignored(pair):
    _, ours = pair("llama")
    params = SamplingParams(NEW, num_beams=2, ignore_eos=True)
    assert len(Engine(ours, end_ids=list(range(30))).generate([[5]], params)[0].ids) == NEW


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(InputError) as caught:
        SamplingParams(num_beams=3, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    ]
    assert "beam search (num_beams: 3)" in caught.value.problems[0]
    wrong = {
        "num_beams": [0, -1, 2.5, True],
        "length_penalty": [float("nan"), float("inf"), "long", 11],
        "early_stopping": ["always", 1, None],
        "num_return_sequences": [0, 2, 1.5],
        "min_new_tokens": [-1, 129, 0.5],
        "no_repeat_ngram_size": [-2, 1.5],
        "repetition_penalty": [0, -1.0, float("inf"), "much"],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(InputError, match=f"{name}: "):
                SamplingParams(**{name: value})


def test_broken_weights_are_told(pair):

    _, ours = pair("llama", 2)
    with torch.no_grad():
        ours.norm.weight[3] = float("nan")
    with pytest.raises(QuatrainError, match="not finite"):
        Engine(ours).generate([[5]], SamplingParams(4, num_beams=2))
    with torch.no_grad():
        ours.norm.weight[3] = 1.0
