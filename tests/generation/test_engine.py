"""The same completion however it is batched, padded, cached or streamed, and equal to that of transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bloom, gpt2, llama, random_model, save_random

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.text import safe_length
from quatrain.models.transformer.stack import Model

LLAMA, GPT2 = llama(vocab_size=120), gpt2(vocab_size=120)


class Bytes:
    """A tokenizer of bytes: ids 0-3 are special, 4 + b is byte b modulo the small vocabulary's printable part."""

    bos_id, eos_id = 1, 2
    special_ids = frozenset({0, 1, 2, 3})
    stop_ids = frozenset({2})
    table = [bytes([byte]) for byte in range(256)]

    def encode(self, text, *, special_tokens=False):
        ids = [4 + byte for byte in text.encode()]
        return [self.bos_id, *ids] if special_tokens else ids

    def decode(self, ids, *, skip_special_tokens=True):
        return bytes(i - 4 for i in ids if i >= 4).decode("utf-8", errors="replace")

    def token_to_id(self, token):
        return {"<|end|>": 3}.get(token)


def prompts(count, seed=0, low=1, high=20, vocabulary=120):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in lengths]


class Scripted(Model):
    """A model that says a fixed sequence of ids, whatever it reads: position p is followed by script[p]."""

    def __init__(self, script, vocabulary=260):
        super().__init__(LLAMA.replace(vocab_size=vocabulary, max_position_embeddings=max(len(script) + 2, 4)))
        self.initialize(0)
        self.script = torch.tensor(script)

    def hidden_states(self, input_ids, *, positions=None, segments=None, cache=None):
        past = torch.tensor(cache.rows().lengths)[:, None]
        super().hidden_states(input_ids, positions=positions, segments=segments, cache=cache)
        at = positions if positions is not None else past + torch.arange(input_ids.shape[1])
        return self.script[at.clamp(max=len(self.script) - 1)]

    @property
    def lm_head(self):
        return lambda hidden: torch.nn.functional.one_hot(hidden, self.config.vocab_size).float() * 50

    @lm_head.setter
    def lm_head(self, value):
        pass


def say(text, **params):
    ids = [4 + byte for byte in text.encode()] if isinstance(text, str) else text
    engine = Engine(Scripted([*ids, 2, 2]), Bytes())
    return engine, SamplingParams(max_new_tokens=len(ids) + 1, **params)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batched_equals_single(config, temperature):
    engine = Engine(random_model(config), end_ids=list(range(5, 30)))
    params = SamplingParams(max_new_tokens=24, temperature=temperature, seed=3)
    texts = prompts(17)
    together = engine.generate(texts, params, batch_size=8)
    alone = [engine.generate([text], params)[0] for text in texts]
    assert [each.ids for each in together] == [each.ids for each in alone]
    assert len({len(each.ids) for each in together}) > 3, "rows end at different times"
    for batched, single in zip(together, alone, strict=True):
        assert batched.logprobs == pytest.approx(single.logprobs, abs=1e-4)
    reversed_order = engine.generate(texts[::-1], params, batch_size=5)[::-1]
    assert [each.ids for each in together] == [each.ids for each in reversed_order]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_cached_equals_uncached_and_logprobs_are_the_models_own(config):
    network = random_model(config)
    engine = Engine(network, end_ids=[])
    for temperature in (0.0, 0.7):
        for prompt, completion in zip(
            prompts(5), engine.generate(prompts(5), SamplingParams(12, temperature, top_k=10, seed=1)), strict=True
        ):
            whole = torch.tensor([prompt + completion.ids])
            with torch.no_grad():
                logits = network(whole)[0][0, len(prompt) - 1 : -1]
            if temperature == 0:
                assert logits.argmax(-1).tolist() == completion.ids
            expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_greedy_equals_transformers_generate(config, tmp_path):
    from transformers import AutoModelForCausalLM

    from quatrain.models.io import model_folder

    save_random(config, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = Engine(model_folder.load(tmp_path), end_ids=[9, 10])
    for prompt in prompts(6, seed=4):
        expected = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=[9, 10],
            pad_token_id=0,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )
        assert ours.generate([prompt], SamplingParams(20))[0].ids == expected[0, len(prompt) :].tolist()


def test_sampling_follows_the_models_distribution():
    network = random_model(LLAMA)
    prompt = prompts(1)[0]
    drawn = Engine(network, end_ids=[]).generate(
        [prompt] * 4000, SamplingParams(1, temperature=1.3, top_k=6, seed=0), batch_size=1000
    )
    shares = torch.bincount(torch.tensor([each.ids[0] for each in drawn]), minlength=120) / 4000
    with torch.no_grad():
        logits = network(torch.tensor([prompt]))[0][0, -1] / 1.3
    expected = logits.masked_fill(logits < logits.topk(6).values[-1], float("-inf")).softmax(-1)
    assert (shares - expected).abs().max() < 0.03
    assert int((shares > 0).sum()) == 6


def test_seeds():
    engine = Engine(random_model(LLAMA), end_ids=[])
    text = prompts(1)[0]
    first, again = (engine.generate([text] * 3, SamplingParams(16, 1.0, seed=5)) for _ in range(2))
    assert [each.ids for each in first] == [each.ids for each in again]
    assert len({tuple(each.ids) for each in first}) == 3, "the same prompt three times gives three samples"
    other = engine.generate([text], SamplingParams(16, 1.0, seed=6))[0]
    assert other.ids != first[0].ids
    unseeded = [engine.generate([text], SamplingParams(16, 1.0))[0].ids for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    longer = engine.generate([text], SamplingParams(24, 1.0, seed=5))[0]
    assert longer.ids[:16] == first[0].ids
    before = torch.get_rng_state()
    engine.generate([text], SamplingParams(4, 1.0, seed=5))
    assert torch.equal(before, torch.get_rng_state()), "the process's own generator is left alone"


def test_end_tokens():
    engine, params = say("yes")
    (done,) = engine.generate([[1]], params)
    assert (done.text, done.ids[-1], done.finish_reason) == ("yes", 2, "stop")
    assert len(done.logprobs) == len(done.ids) == 4
    (cut,) = engine.generate([[1]], SamplingParams(2))
    assert (cut.text, cut.finish_reason) == ("ye", "length")
    (on,) = engine.generate([[1]], SamplingParams(5, ignore_eos=True))
    assert len(on.ids) == 5 and on.finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "text"), [(("lo wo",), "hel"), (("world", "o"), "hell"), (("xyz",), "hello world"), (("h",), "")]
)
def test_stop_strings_cross_tokens_and_stay_out_of_the_text(stop, text):
    engine, params = say("hello world", stop=stop)
    (done,) = engine.generate([[1]], params)
    assert (done.text, done.finish_reason) == (text, "stop")
    assert "".join(engine.stream([1], params)) == text


def test_a_special_token_can_be_a_stop_string():
    engine, params = say([70, 71, 3, 72], stop=("<|end|>", "!"))
    (done,) = engine.generate([[1]], params)
    assert (done.ids, done.finish_reason) == ([70, 71, 3], "stop")


def test_stop_strings_in_a_batch_end_their_own_row_only():
    network = random_model(LLAMA)
    engine = Engine(network, Bytes())
    params = SamplingParams(20, stop=("a", "e", "i"), temperature=1.0, seed=0)
    texts = prompts(12)
    together = engine.generate(texts, params, batch_size=12)
    assert [each.text for each in together] == [engine.generate([text], params)[0].text for text in texts]
    assert not any(letter in each.text for each in together for letter in "aei")


@given(text=st.text(max_size=40), stop=st.lists(st.text(min_size=1, max_size=4), max_size=2))
@settings(max_examples=60, deadline=None)
def test_streamed_pieces_join_to_the_whole(text, stop):
    engine, params = say(text, stop=tuple(stop))
    whole = engine.generate([[1]], params)[0]
    pieces = list(engine.stream([1], params))
    assert "".join(pieces) == whole.text
    for piece in pieces[:-1]:
        assert piece and "\ufffd" not in piece.replace("\ufffd", "", text.count("\ufffd"))
        assert piece.completion is None
    assert pieces[-1].completion == whole


def test_streaming_does_not_wait_for_the_end():
    engine, params = say("abc")
    assert next(engine.stream([1], params)) == "a"


@given(
    text=st.text(alphabet="ab\ufffd", max_size=8),
    stop=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    rest=st.text(alphabet="ab", max_size=5),
)
def test_held_back_text_is_all_that_could_change(text, stop, rest):
    if any(string in text for string in stop):
        return
    shown = text[: safe_length(text, stop)]
    whole = text + rest
    for string in stop:
        if string in whole:
            assert whole.index(string) >= len(shown)


def test_context_overflow_names_the_counts():
    engine = Engine(random_model(LLAMA), end_ids=[])
    with pytest.raises(InputError) as caught:
        engine.generate([[5] * 64, [5], [5] * 70], SamplingParams(1))
    assert caught.value.problems == [
        "prompt 1: 64 tokens; the model reads 64 and needs one for its answer",
        "prompt 3: 70 tokens; the model reads 64 and needs one for its answer",
    ]
    filled = engine.generate([[5] * 60, [7] * 3], SamplingParams(30))
    assert [len(each.ids) for each in filled] == [4, 30]
    assert filled[0].finish_reason == "length"


def test_problems_of_prompts_and_parameters_are_told_together():
    engine, params = Engine(random_model(LLAMA), end_ids=[]), SamplingParams(1, bad_words=["x"], stop_token_ids=[500])
    with pytest.raises(InputError) as caught:
        engine.generate([[5] * 64, [120]], params)
    names = [problem.partition(": ")[0] for problem in caught.value.problems]
    assert names == ["prompt 1", "prompt 2", "stop_token_ids", "bad_words"]
    with pytest.raises(InputError, match="prompt is empty"):
        engine.check([[]], SamplingParams(1))


def test_foreign_ids_are_refused():
    with pytest.raises(InputError, match="120 is not in the model's vocabulary of 120"):
        Engine(random_model(LLAMA)).generate([[120]], SamplingParams(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_told(value, temperature):
    network = random_model(LLAMA)
    with torch.no_grad():
        network.norm.weight[3] = value
    with pytest.raises(QuatrainError, match="not finite"):
        Engine(network).generate([[5]], SamplingParams(4, temperature))


def test_no_prompts_and_empty_prompts():
    engine = Engine(random_model(LLAMA), Bytes())
    assert engine.generate([], SamplingParams(2)) == []
    assert engine.encode("") == [Bytes.bos_id]
    with pytest.raises(InputError, match="prompt is empty"):
        Engine(random_model(LLAMA)).encode([])
    with pytest.raises(InputError, match="tokenizer"):
        Engine(random_model(LLAMA)).generate(["hi"])
    with pytest.raises(InputError, match="Stop strings"):
        Engine(random_model(LLAMA)).generate([[5]], SamplingParams(2, stop=("x",)))


def test_prompts_that_are_too_long_are_cut_where_asked():
    limit = LLAMA.max_position_embeddings
    engine = Engine(random_model(LLAMA), None, end_ids=[])
    params = SamplingParams(max_new_tokens=5)
    prompt = [1, *(3 + i % 7 for i in range(2 * limit))]
    with pytest.raises(InputError, match=str(limit)):
        engine.generate([prompt], params)
    kept = engine.truncate(prompt, params)
    begins = LLAMA.bos_token_id == prompt[0]
    assert len(kept) == limit - 5 and kept[1:] == prompt[len(prompt) - limit + 6 :]
    assert kept[0] == (prompt[0] if begins else prompt[len(prompt) - limit + 5])
    (cut,) = engine.generate([prompt], params, truncate=True)
    assert cut.ids == engine.generate([kept], params)[0].ids and len(cut.ids) == 5
    assert engine.truncate([4, 5, 6], params) == [4, 5, 6]
    assert list(engine.stream(prompt, params, truncate=True))[-1].completion.ids == cut.ids


@pytest.mark.parametrize("head", ["masked", "embedding", "value"])
def test_a_model_that_does_not_say_the_next_token_is_refused(head):
    from quatrain.models.families.fresh import fresh_config

    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 4, "max_position_embeddings": 24}  # fmt: skip
    family = "llama" if head == "value" else "bert"
    with pytest.raises(InputError, match=f"head {head}, which does not predict the next token"):
        Engine(Model(fresh_config(family, sizes, head=head)))


def test_stop_strings_of_the_model_end_a_completion():
    script = [4 + byte for byte in b"?abc STOP def"]
    model = Scripted([*script, 2])
    model.generation_config = {"stop_strings": ["STOP"]}
    engine = Engine(model, Bytes())
    (done,) = engine.generate([script[:1]], SamplingParams(20))
    assert (done.text, done.finish_reason) == ("?abc ", "stop") and done.ids == script[:9]
    assert engine.generate([script[:1]], SamplingParams(20, stop="c"))[0].text == "?ab", "the caller's go before"
    assert engine.generate([script[:1]], SamplingParams(13, ignore_eos=True))[0].text == "?abc STOP def"
    assert "".join(engine.stream(script[:1], SamplingParams(20))) == "?abc "
    with pytest.raises(InputError, match="stop_strings"):
        Engine(model).generate([script[:1]])


class Unflagged(Bytes):
    """A tokenizer that shows every token, the end token too."""

    special_ids = frozenset()

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(f"<{i}>" for i in ids)


@pytest.mark.parametrize("beams", [1, 2])
def test_an_end_token_that_is_not_flagged_special_is_no_text(beams):
    model = random_model(LLAMA)
    (free,) = Engine(model, Unflagged(), end_ids=[]).generate([[5]], SamplingParams(4, num_beams=beams))
    engine = Engine(model, Unflagged(), end_ids=free.ids[3:])
    params = SamplingParams(4, num_beams=beams)
    (done,) = engine.generate([[5]], params)
    assert done.finish_reason == "stop" and done.ids[-1] in engine.end_ids
    assert done.text == "".join(engine.stream([5], params)) == Unflagged().decode(done.ids[:-1])


def test_a_vocabulary_that_is_all_banned_is_refused():
    model = Scripted([5] * 9)
    model.generation_config = {"suppress_tokens": list(range(260))}
    engine = Engine(model, Bytes())
    for params in (SamplingParams(3), SamplingParams(3, temperature=1.0), SamplingParams(3, num_beams=2)):
        with pytest.raises(InputError, match="Every token of the vocabulary is ruled out"):
            engine.generate([[5]], params)


@pytest.mark.parametrize("params", [{"num_beams": 10**9}, {"num_beams": 10**30}, {"max_new_tokens": 10**12}])
def test_sizes_that_no_machine_holds_are_refused_at_once(params):
    engine = Engine(Model(bloom(vocab_size=120)).initialize(0), Bytes())
    for run in (lambda p: engine.generate([[5]], p), lambda p: engine.stream([5], p)):
        with pytest.raises(InputError, match="lower max_new_tokens, num_beams"):
            run(SamplingParams(**params))


def test_prompts_whose_biases_no_machine_holds_are_refused():
    """Where positions are biases, a prompt takes the square of its length."""
    engine = Engine(random_model(bloom(max_position_embeddings=10_000_000)))
    with pytest.raises(InputError, match="shorten the prompt"):
        engine.generate([[1] * 1_000_000], SamplingParams(max_new_tokens=1))


def test_a_context_bounds_new_tokens():
    engine = Engine(Model(LLAMA).initialize(0), Bytes())
    (done,) = engine.generate([[5] * 60], SamplingParams(10**30, ignore_eos=True))
    assert len(done.ids) == engine.remaining_tokens([5] * 60) == 4


@pytest.mark.parametrize("prompt", [None, 5, [1.5], [None], ["a"], {"a": 1}, [[5]]])
def test_prompts_of_wrong_types(prompt):
    with pytest.raises(InputError, match="must be a text or a list of token ids"):
        Engine(Scripted([5] * 3), Bytes()).generate([prompt])
