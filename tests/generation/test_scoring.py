"""The score of a given completion is that of generating it: the same log-probabilities, however it is batched."""

import pytest
import torch
from tiny_models import gpt2, llama, random_model

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = "the cat sat on the mat. the dog sat on the cat. "
TOKENIZER = Tokenizer.train([TEXT] * 10, vocab_size=300)
T5 = ModelConfig(
    family="t5",
    vocab_size=TOKENIZER.vocab_size,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_encoder_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    architecture="encoder-decoder",
    head="seq2seq",
    position="relative",
    decoder_start_token_id=0,
)


@pytest.mark.parametrize("config", [llama(vocab_size=TOKENIZER.vocab_size), gpt2(vocab_size=TOKENIZER.vocab_size), T5])
def test_scores_are_those_of_generating(config):
    engine = Engine(random_model(config), TOKENIZER, end_ids=[5])
    prompts = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [7, 8]]
    generated = engine.generate(prompts, SamplingParams(9, logprobs=3))
    drawn = engine.generate(prompts, SamplingParams(6, temperature=2.0, seed=0, logprobs=3))
    for completions in (generated, drawn):
        scores = engine.score(prompts, [each.ids for each in completions], logprobs=3, batch_size=3)
        for score, completion in zip(scores, completions, strict=True):
            assert score.ids == completion.ids
            torch.testing.assert_close(score.logprobs, completion.logprobs, atol=1e-4, rtol=1e-4)
            assert [[token for token, _ in top] for top in score.top_logprobs] == [
                [token for token, _ in top] for top in completion.top_logprobs
            ]
            assert score.total == pytest.approx(sum(completion.logprobs), abs=1e-3)
    assert all(score.is_greedy for score in engine.score(prompts, [each.ids for each in generated]))
    assert not all(score.is_greedy for score in engine.score(prompts, [each.ids for each in drawn]))


def test_texts_are_read_as_one():
    engine = Engine(random_model(llama(vocab_size=TOKENIZER.vocab_size)), TOKENIZER)
    for prompt, completion in (("the cat", " sat on"), ("the ca", "t sat"), ("", "the mat"), ("the cat ", "sat")):
        (score,) = engine.score([prompt], [completion])
        read = engine.encode(prompt) if not prompt else []
        whole = [*read, *TOKENIZER.encode(prompt + completion)]
        assert whole[len(whole) - len(score.ids) :] == score.ids
        logits = engine.model(torch.tensor([whole]))[0][0].detach().log_softmax(-1)
        start = len(whole) - len(score.ids)
        expected = [float(logits[place - 1, whole[place]]) for place in range(start, len(whole))]
        assert score.logprobs == pytest.approx(expected, abs=1e-4)
        assert completion.strip() in TOKENIZER.decode(score.ids) or prompt == "the ca"


def test_what_cannot_be_scored_is_refused():
    engine = Engine(random_model(llama(vocab_size=TOKENIZER.vocab_size)), TOKENIZER)
    with pytest.raises(InputError) as caught:
        engine.score([[5], [5] * 60, [5]], [[], [6] * 10, [9999]])
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="1 for 2 prompts"):
        engine.score([[5], [6]], [[7]])


@pytest.mark.parametrize("family", [llama, gpt2])
def test_a_tree_of_prompts_gives_what_each_text_gives_alone(family):
    """Common beginnings are read once; every log-probability stays that of the whole text."""
    from random import Random

    engine = Engine(random_model(family(vocab_size=TOKENIZER.vocab_size, max_position_embeddings=128)), TOKENIZER)
    draw = Random(0)
    text = [[draw.randrange(6, 270) for _ in range(40)] for _ in range(3)]
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    for beginning in (text[0], text[1], text[0][:20], []):
        for _ in range(3):
            prompt = beginning + [draw.randrange(6, 270) for _ in range(draw.randrange(1, 9))]
            for _ in range(draw.choice((1, 2, 4))):
                prompts.append(prompt)
                completions.append([draw.randrange(6, 270) for _ in range(draw.choice((1, 1, 5)))])
    prompts.append(text[0])  # a prompt that is the beginning of others
    completions.append([7, 8])
    for batch_size in (64, 5):
        scores = engine.score(prompts, completions, batch_size=batch_size, logprobs=2)
        for prompt, completion, score in zip(prompts, completions, scores, strict=True):
            logits = engine.model(torch.tensor([prompt + completion]))[0][0].detach().log_softmax(-1)
            places = range(len(prompt), len(prompt) + len(completion))
            expected = [float(logits[place - 1, token]) for place, token in zip(places, completion, strict=True)]
            assert score.logprobs == pytest.approx(expected, abs=1e-4)
            assert [top[0][0] for top in score.top_logprobs] == [int(logits[place - 1].argmax()) for place in places]


def test_a_tree_reads_fewer_tokens(monkeypatch):
    engine = Engine(random_model(llama(vocab_size=TOKENIZER.vocab_size)), TOKENIZER)
    read, hidden_states = [], engine.model.hidden_states
    monkeypatch.setattr(
        engine.model, "hidden_states", lambda ids, **rest: read.append(ids.numel()) or hidden_states(ids, **rest)
    )
    beginning = list(range(10, 40))
    prompts = [[*beginning, 50 + question] for question in range(8) for _ in range(4)]
    engine.score(prompts, [[9], [8], [7], [6]] * 8)
    assert sum(read) == 30 + 8  # not 8 * 4 * 31
