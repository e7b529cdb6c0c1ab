"""Diverse beams and forced words: as their papers define them, step by step and by exhaustion.

transformers 5 has removed both, so the references are written here, after the papers, without a cache or tensors.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.forced_words import ForcedWords, Progress, allocate
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.tokenizer import Tokenizer

NEW = 6


@pytest.fixture(scope="module")
def model():
    return random_model(llama(vocab_size=12), seed=4, scale=0.5)


def logprobs_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]))[0][0, -1].log_softmax(-1).tolist()


# ---- diverse beam search ---------------------------------------------------------------------------------------------


def diverse(model, prompt, *, groups, beams, penalty, length_penalty, ends, new=NEW):
    """Vijayakumar et al. 2016, algorithm 1, with Hamming diversity; hypotheses end as in transformers' beam search."""
    size = beams // groups
    live = [[(0.0, [])] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    is_open = [True] * groups
    for step in range(1, new + 1):
        taken = [0] * len(logprobs_of(model, prompt))
        for group in range(groups):
            if not is_open[group]:
                continue
            candidates = [
                (score + logprob - penalty * taken[token], [*ids, token])
                for score, ids in live[group]
                for token, logprob in enumerate(logprobs_of(model, prompt + ids))
            ]
            candidates.sort(key=lambda pair: -pair[0])
            for score, ids in candidates[:size]:
                if ids[-1] in ends or step == new:
                    finished[group].append((score / step**length_penalty, ids))
            finished[group] = sorted(finished[group], key=lambda pair: -pair[0])[:size]
            live[group] = [pair for pair in candidates if pair[1][-1] not in ends][:size]
            if step < new:
                for _, ids in live[group]:
                    taken[ids[-1]] += 1
            full = len(finished[group]) == size
            if full and live[group][0][0] / step**length_penalty <= finished[group][-1][0]:
                is_open[group] = False
    return sorted(itertools.chain(*finished), key=lambda pair: -pair[0])


@pytest.mark.parametrize("ends", [(), (3,), (3, 7)])
@pytest.mark.parametrize(("groups", "beams", "penalty"), [(2, 4, 0.5), (3, 3, 1.5), (2, 6, 20.0), (4, 8, 0.2)])
def test_diverse_beams_are_those_of_the_paper(model, ends, groups, beams, penalty):
    engine = Engine(model, end_ids=ends)
    prompts = [[5, 6], [1, 2, 8, 4], [9]]
    options = {"num_beams": beams, "num_beam_groups": groups, "diversity_penalty": penalty}
    params = SamplingParams(NEW, **options, num_return_sequences=beams, length_penalty=0.8)
    for prompt, best in zip(prompts, engine.generate(prompts, params), strict=True):
        expected = diverse(
            model, prompt, groups=groups, beams=beams, penalty=penalty, length_penalty=0.8, ends=ends
        )[:beams]  # fmt: skip
        hypotheses = [best, *best.alternatives]
        assert [each.ids for each in hypotheses] == [ids for _, ids in expected]
        assert [each.score for each in hypotheses] == pytest.approx([score for score, _ in expected], abs=1e-4)
        assert all(not each.alternatives for each in best.alternatives)
        (alone,) = engine.generate([prompt], params)
        assert [alone.ids, *(each.ids for each in alone.alternatives)] == [each.ids for each in hypotheses]


def test_groups_differ_and_one_that_is_cancelled_leaves_the_others(model):
    engine = Engine(model, end_ids=[])
    plain = engine.generate([[5, 6]], SamplingParams(NEW, num_beams=4, num_return_sequences=4))[0]
    params = SamplingParams(NEW, num_beams=4, num_beam_groups=4, diversity_penalty=50.0, num_return_sequences=4)
    (diverse_ones,) = engine.generate([[5, 6]], params)
    firsts = [{each.ids[0] for each in (best, *best.alternatives)} for best in (plain, diverse_ones)]
    assert len(firsts[0]) < len(firsts[1]) == 4
    requests = [engine.submit([5, 6], params), engine.submit([7], params)]
    engine.step()
    requests[0].cancel()
    assert requests[1].result().ids == engine.generate([[7]], params)[0].ids
    assert requests[0].result().finish_reason == "cancelled" and engine.scheduler.is_idle


# ---- forced words ----------------------------------------------------------------------------------------------------


def contains(ids, word):
    return any(ids[start : start + len(word)] == list(word) for start in range(len(ids)))


def has_all(ids, words):
    return all(any(contains(ids, each) for each in word) for word in words)


WORDS = st.lists(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=2), min_size=1, max_size=2
)


@given(words=WORDS, ids=st.lists(st.integers(0, 4), max_size=10))
@settings(deadline=None)
def test_progress_is_what_the_tokens_contain_and_can_always_be_finished(words, ids):
    forced, progress = ForcedWords(words), Progress()
    for place, token in enumerate(ids):
        progress = forced.step(progress, token)
        met = {number for number, word in enumerate(words) if has_all(ids[: place + 1], [word])}
        assert progress.met == met
    assert (forced.remaining(progress) == 0) == (len(progress.met) == len(words))
    needed, path = forced.remaining(progress), list(ids)
    assert needed <= forced.size
    while needed:
        token = forced.leading(progress, needed - 1)[0]
        path, progress = [*path, token], forced.step(progress, token)
        assert forced.remaining(progress) < needed
        needed = forced.remaining(progress)
    assert has_all(path, words)


def test_survivors_come_from_every_bank():
    assert allocate([-1.0, -2.0, -3.0, -9.0, -8.0], [0, 0, 0, 2, 1], 3) == [0, 4, 3]
    assert allocate([-1.0, -2.0, -3.0], [1, 1, 1], 2) == [0, 1]


@pytest.mark.parametrize("ends", [(), (4,)])
@pytest.mark.parametrize("words", [[(1, 2)], [(3,), (0, 1)], [((1,), (2, 3))], [(2, 2)]])
def test_with_enough_beams_the_best_completion_with_the_words_is_found(words, ends):
    """Against every completion there is, of a vocabulary of 5 and 4 tokens."""
    model = random_model(llama(vocab_size=5), seed=1, scale=0.5)
    alternatives = [word if isinstance(word[0], tuple) else (word,) for word in words]
    engine, prompt, new = Engine(model, end_ids=ends), [0, 3], 4
    params = SamplingParams(new, num_beams=400, force_words=words, length_penalty=1.0, early_stopping="never")
    completions = []
    for length in range(1, new + 1):
        for ids in itertools.product(range(5), repeat=length):
            whole = length == new or ids[-1] in ends
            if whole and not any(token in ends for token in ids[:-1]) and has_all(list(ids), alternatives):
                completions.append(list(ids))
    scores = []
    for ids in completions:
        steps = [logprobs_of(model, prompt + ids[:place])[token] for place, token in enumerate(ids)]
        scores.append(sum(steps) / len(ids))
    best = completions[max(range(len(scores)), key=lambda place: scores[place])]
    (found,) = engine.generate([prompt], params)
    assert found.ids == best and found.score == pytest.approx(max(scores), abs=1e-4)


@given(words=WORDS, beams=st.integers(2, 5), seed=st.integers(0, 3), ends=st.sampled_from([(), (11,), (5, 11)]))
@settings(deadline=None, max_examples=25)
def test_every_hypothesis_contains_the_words(words, beams, seed, ends):
    engine = Engine(random_model(llama(vocab_size=12), seed=seed, scale=0.5), end_ids=ends)
    new = sum(min(map(len, word)) for word in words) + seed
    params = SamplingParams(max(new, 1), num_beams=beams, num_return_sequences=beams, force_words=words)
    for best in engine.generate([[5, 6], [7, 1, 2]], params):
        for each in (best, *best.alternatives):
            assert has_all(each.ids, words), each.ids
            assert not any(token in ends for token in each.ids[:-1])


def test_forced_texts_are_in_the_text():
    tokenizer = Tokenizer.train(["the cat sat on the mat. the dog sat on the cat. "] * 10, vocab_size=300)
    engine = Engine(random_model(llama(vocab_size=tokenizer.vocab_size)), tokenizer, end_ids=[])
    params = SamplingParams(24, num_beams=4, num_return_sequences=4, force_words=["dog", ["mat", "cats"]])
    (best,) = engine.generate(["the cat"], params)
    for each in (best, *best.alternatives):
        assert "dog" in each.text and ("mat" in each.text or "cats" in each.text)
    for wrong, text in (
        (SamplingParams(1, num_beams=2, force_words=[[5, 6]]), "at least 2 tokens; max_new_tokens is 1"),
        (SamplingParams(5, num_beams=2, force_words=[[9999]]), "token 9999 is not in"),
    ):
        with pytest.raises(InputError, match=text):
            engine.generate(["the cat"], wrong)
    with pytest.raises(InputError, match="need at least 4 tokens, and there is room for 2"):
        engine.generate([[5] * 62], SamplingParams(9, num_beams=2, force_words=[[5, 6, 7, 8]]))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beam_groups"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "diversity_penalty"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": -1.0}, "diversity_penalty"),
        ({"force_words": [[5]]}, "force_words"),
        ({"num_beams": 2, "force_words": [[]]}, "force_words"),
        ({"num_beams": 2, "force_words": [""]}, "force_words"),
        ({"num_beams": 2, "force_words": [[[5], "x", 7]]}, "force_words"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "force_words": [[5]]}, "force_words"),
    ],
)
def test_impossible_searches_are_refused_by_name(values, name):
    with pytest.raises(InputError, match=f"{name}: "):
        SamplingParams(**values)


# ---- contrastive search ----------------------------------------------------------------------------------------------


def contrastive(model, prompt, *, alpha, k, new, ends, forbidden=()):
    """Su et al. 2022, equation 5, every step from the whole text."""
    ids = []
    with torch.no_grad():
        for _ in range(new):
            logits = model(torch.tensor([prompt + ids]))[0][0, -1].clone()
            logits[list(forbidden)] = float("-inf")
            probabilities = logits.softmax(-1)
            before = torch.nn.functional.normalize(model.hidden_states(torch.tensor([prompt + ids]))[0], dim=-1)
            scores = {}
            for token in probabilities.topk(k).indices.tolist():
                if probabilities[token] > 0:
                    state = model.hidden_states(torch.tensor([[*prompt, *ids, token]]))[0, -1]
                    penalty = float((before @ torch.nn.functional.normalize(state, dim=-1)).max())
                    scores[token] = (1 - alpha) * float(probabilities[token]) - alpha * penalty
            ids.append(max(scores, key=lambda token: scores[token]))
            if ids[-1] in ends:
                break
    return ids


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.3, 8), (1.0, 3), (0.05, 2)])
def test_contrastive_search_is_that_of_the_paper(model, alpha, k):
    engine = Engine(model, end_ids=[3])
    prompts = [[5, 6], [1, 2, 8, 4], [9], [7, 7, 7]]
    params = SamplingParams(10, penalty_alpha=alpha, top_k=k, logprobs=2)
    together = engine.generate(prompts, params)
    for prompt, completion in zip(prompts, together, strict=True):
        assert completion.ids == contrastive(model, prompt, alpha=alpha, k=k, new=10, ends=[3])
        expected = [
            logprobs_of(model, prompt + completion.ids[:place])[token] for place, token in enumerate(completion.ids)
        ]
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        assert len(completion.top_logprobs) == len(completion.ids)
        assert engine.generate([prompt], params)[0].ids == completion.ids
    greedy = engine.generate(prompts, SamplingParams(10))
    assert alpha < 0.1 or any(one.ids != other.ids for one, other in zip(together, greedy, strict=True))


def test_contrastive_search_under_constraints_streams_and_stops(model):
    tokenizer = Tokenizer.train(["the cat sat on the mat. the dog sat on the cat. "] * 10, vocab_size=300)
    words = Engine(random_model(llama(vocab_size=tokenizer.vocab_size)), tokenizer, end_ids=[])
    params = SamplingParams(12, penalty_alpha=0.6, top_k=4)
    pieces = list(words.stream("the cat", params))
    (whole,) = words.generate(["the cat"], params)
    assert "".join(pieces) == whole.text and len(pieces) > 3
    stop = whole.text[3:6]
    (stopped,) = words.generate(["the cat"], SamplingParams(12, penalty_alpha=0.6, top_k=4, stop=(stop,)))
    assert stopped.text == whole.text[: whole.text.index(stop)] and stopped.finish_reason == "stop"
    (answer,) = words.generate(
        ["the cat"], SamplingParams(12, penalty_alpha=0.6, top_k=6, regex="(mat|cat|dog)( sat){1,3}")
    )
    assert answer.text.startswith(("mat sat", "cat sat", "dog sat"))
    few = [token for token in range(12) if token not in (1, 2)]
    engine, prompt = Engine(model, end_ids=[]), [5, 6]
    limited = SamplingParams(6, penalty_alpha=0.9, top_k=5, bad_words=[[token] for token in few])
    expected = contrastive(model, prompt, alpha=0.9, k=5, new=6, ends=[], forbidden=few)
    assert engine.generate([prompt], limited)[0].ids == expected, "a token that is ruled out is no candidate"
    # One sequence without a token fails alone, in the middle of its text.
    requests = [
        words.submit([5], SamplingParams(6, penalty_alpha=0.6, top_k=2, logits_processors=[fails_late(7)])),
        words.submit([6], SamplingParams(6, penalty_alpha=0.6, top_k=2)),
    ]
    assert len(requests[1].result().ids) == 6
    with pytest.raises(InputError, match="too long"):
        requests[0].result()


def fails_late(length):
    def process(ids, logits):
        if len(ids) >= length - 3 and ids[0] == 5:
            raise ValueError("too long")
        return logits

    return process


# ---- classifier-free guidance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("negative", [None, (4, 4, 9)])
def test_guidance_is_that_of_transformers(tmp_path, scale, negative):
    from transformers import LlamaForCausalLM

    from quatrain.models.io import model_folder

    ours = random_model(llama(vocab_size=40), seed=2, scale=0.4)
    model_folder.save(ours, tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path)
    engine, prompts = Engine(ours, end_ids=[]), [[5, 6], [1, 2, 8, 4], [9]]
    params = SamplingParams(8, guidance_scale=scale, negative_prompt=negative, repetition_penalty=1.2)
    together = engine.generate(prompts, params)
    for prompt, completion in zip(prompts, together, strict=True):
        more = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative])}
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, guidance_scale=scale, repetition_penalty=1.2,
            eos_token_id=None, pad_token_id=0, **more,
        )  # fmt: skip
        assert completion.ids == expected[0, len(prompt) :].tolist()
        raw = [logprobs_of(ours, prompt + completion.ids[:place])[token] for place, token in enumerate(completion.ids)]
        assert completion.logprobs == pytest.approx(raw, abs=1e-3), "raw: without guidance"
        assert engine.generate([prompt], params)[0].ids == completion.ids


def test_guidance_samples_streams_and_counts_the_negative_prompt(model):
    engine = Engine(model, end_ids=[3])
    params = SamplingParams(12, guidance_scale=2.0, temperature=5.0, seed=0, num_return_sequences=3)
    (best,) = engine.generate([[5, 6]], params)
    assert len({tuple(each.ids) for each in (best, *best.alternatives)}) == 3
    assert all(3 not in each.ids[:-1] for each in (best, *best.alternatives))
    long = SamplingParams(12, guidance_scale=2.0, negative_prompt=[5] * 60, ignore_eos=True)
    assert len(engine.generate([[5, 6]], long)[0].ids) == 4, "the context holds 64 tokens of the second row"
    with pytest.raises(InputError, match="negative_prompt: 64 tokens; the model reads 64 and needs one"):
        engine.submit([5, 6], SamplingParams(12, guidance_scale=2.0, negative_prompt=[5] * 64))
    for values, name in (
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": 2.0, "num_beams": 2}, "guidance_scale"),
        ({"negative_prompt": "x"}, "negative_prompt"),
        ({"negative_prompt": [], "guidance_scale": 2.0}, "negative_prompt"),
        ({"penalty_alpha": 0.5}, "penalty_alpha"),
        ({"penalty_alpha": 0.5, "top_k": 4, "temperature": 1.0}, "penalty_alpha"),
        ({"penalty_alpha": 2, "top_k": 4}, "penalty_alpha"),
    ):
        with pytest.raises(InputError, match=f"{name}: "):
            SamplingParams(**values)


# ---- encoder-decoders ------------------------------------------------------------------------------------------------


def test_searches_of_an_encoder_decoder():
    """Batched as alone, within what is asked; the decoder's own states count, and guidance has nothing to leave out."""
    config = ModelConfig(
        family="t5", vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_encoder_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, architecture="encoder-decoder",
        head="seq2seq", position="relative", decoder_start_token_id=0,
    )  # fmt: skip
    model = random_model(config, scale=0.4)
    engine, prompts = Engine(model, end_ids=[3]), [[5, 6], [1, 2, 8, 4, 9], [9]]
    searches = {
        "contrastive": SamplingParams(8, penalty_alpha=0.5, top_k=4),
        "diverse": SamplingParams(8, num_beams=4, num_beam_groups=2, diversity_penalty=2.0, num_return_sequences=4),
        "forced": SamplingParams(8, num_beams=4, num_return_sequences=2, force_words=[[7, 7], [[4], [6, 5]]]),
        "penalties": SamplingParams(8, frequency_penalty=1.5, bad_words=[[4]], logprobs=2),
    }
    for name, params in searches.items():
        for prompt, completion in zip(prompts, engine.generate(prompts, params), strict=True):
            (alone,) = engine.generate([prompt], params)
            assert [each.ids for each in (completion, *completion.alternatives)] == [
                each.ids for each in (alone, *alone.alternatives)
            ], name
            if name == "forced":
                assert all(has_all(each.ids, [[[7, 7]], [[4], [6, 5]]]) for each in (alone, *alone.alternatives))
    (first,) = engine.generate(prompts[:1], searches["contrastive"])
    ids = []
    with torch.no_grad():
        for token in first.ids:
            read = torch.tensor([[0, *ids]])
            hidden = model.hidden_states(torch.tensor(prompts[:1]), decoder_input_ids=read)[0]
            before = torch.nn.functional.normalize(hidden, dim=-1)
            probabilities = model.lm_logits(hidden[-1]).softmax(-1)
            scores = {}
            for candidate in probabilities.topk(4).indices.tolist():
                longer = torch.tensor([[0, *ids, candidate]])
                state = model.hidden_states(torch.tensor(prompts[:1]), decoder_input_ids=longer)[0, -1]
                similar = float((before @ torch.nn.functional.normalize(state, dim=-1)).max())
                scores[candidate] = 0.5 * float(probabilities[candidate]) - 0.5 * similar
            assert token == max(scores, key=lambda each: scores[each])
            ids.append(token)
    with pytest.raises(InputError, match="guidance_scale: an encoder-decoder always reads its prompt"):
        engine.generate(prompts, SamplingParams(8, guidance_scale=2.0))


def test_searches_that_are_cancelled_leave_the_others(model):
    """Contrastive and guided sequences of one search: some are cancelled between steps, before and after the first."""
    engine = Engine(model, end_ids=[])
    for params in (SamplingParams(9, penalty_alpha=0.6, top_k=4), SamplingParams(9, guidance_scale=2.0)):
        prompts = [[5, 6], [1, 2, 8], [9], [7, 7, 7]]
        alone = [engine.generate([prompt], params)[0].ids for prompt in prompts]
        requests = [engine.submit(prompt, params) for prompt in prompts]
        requests[3].cancel()
        engine.step()
        engine.step()
        requests[1].cancel()
        assert requests[0].result().ids == alone[0] and requests[2].result().ids == alone[2]
        for cancelled, most in ((requests[1], 2), (requests[3], 0)):
            result = cancelled.result()
            assert result.finish_reason == "cancelled" and len(result.ids) <= most
        assert engine.scheduler.is_idle and not engine.scheduler.searches


def test_banned_texts_hold_in_beams():
    tokenizer = Tokenizer.train(["the cat sat on the mat. the dog sat on the cat. "] * 10, vocab_size=300)
    engine = Engine(random_model(llama(vocab_size=tokenizer.vocab_size)), tokenizer, end_ids=[])
    params = SamplingParams(16, num_beams=4, num_return_sequences=4)
    (free,) = engine.generate(["the cat"], params)
    words = sorted({each.text[place] for each in (free, *free.alternatives) for place in (1, 4)} - {"\ufffd"})
    banned = SamplingParams(16, num_beams=4, num_return_sequences=4, bad_words=words)
    (held,) = engine.generate(["the cat"], banned)
    assert words and not any(word in each.text for each in (held, *held.alternatives) for word in words)
