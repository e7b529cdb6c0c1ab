"""Recurrent models in the engine: a state is reused whole, read anew otherwise, and never taken back."""

import pytest
import torch
from tiny_models import llama, mamba2, qwen3_5, random_model, xlstm

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.speculative import DraftModel, PromptLookup

CONFIGS = {"mamba2": mamba2(), "xlstm": xlstm(), "qwen3_5": qwen3_5()}
EACH = pytest.mark.parametrize("name", CONFIGS)
GREEDY = SamplingParams(8)


def text_of(length, seed=0):
    return torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(model, ids, count=8):
    """Greedy ids without a cache."""
    text = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            text.append(int(model(torch.tensor([text]))[0][0, -1].argmax()))
    return text[len(ids) :]


@EACH
def test_a_prompt_that_continues_a_text_reuses_its_state(name):
    model = random_model(CONFIGS[name])
    engine, prompt = Engine(model, end_ids=[]), text_of(30)
    first = engine.generate([prompt], GREEDY)[0].ids
    longer = [*prompt, *first, *text_of(5, seed=1)]
    assert engine.generate([longer], GREEDY)[0].ids == alone(model, longer)
    assert engine.statistics.reused_tokens == len(prompt) + len(first) - 1  # The last token was never read.


@EACH
def test_a_prompt_that_shares_a_part_is_read_anew(name):
    model = random_model(CONFIGS[name])
    engine, prompt = Engine(model, end_ids=[]), text_of(30)
    engine.generate([prompt], GREEDY)
    other = [*prompt[:25], *text_of(9, seed=1)]
    assert engine.generate([other], GREEDY)[0].ids == alone(model, other)
    assert engine.statistics.reused_tokens == 0


@EACH
def test_prompts_in_parts_and_texts_that_come_and_go(name):
    model = random_model(CONFIGS[name])
    engine = Engine(model, end_ids=[], max_rows=3)
    engine.scheduler.chunk = engine.scheduler.busy_chunk = 7
    texts = [text_of(length, seed=length) for length in (40, 3, 1, 17, 90, 5)]
    found = engine.generate(texts, GREEDY, batch_size=6)
    assert [each.ids for each in found] == [alone(model, text) for text in texts]


@EACH
def test_guesses_are_refused_since_a_state_does_not_go_back(name):
    with pytest.raises(InputError, match="cannot go back"):
        Engine(random_model(CONFIGS[name]), end_ids=[], speculation=PromptLookup())


@EACH
def test_a_recurrent_model_drafts_for_another(name):
    model, draft = random_model(llama()), random_model(CONFIGS[name])
    texts = [text_of(20), text_of(4, seed=3)]
    plain = Engine(model, end_ids=[]).generate(texts, GREEDY)
    guessed = Engine(model, end_ids=[], speculation=DraftModel(draft)).generate(texts, GREEDY)
    assert [each.ids for each in guessed] == [each.ids for each in plain]
