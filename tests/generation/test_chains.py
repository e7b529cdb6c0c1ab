"""All settings together: the processors of transformers' generate, in its order, on the same logits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model

from quatrain.generation.choosing import TokenChooser
from quatrain.generation.config import read_generation_config
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import SequenceState
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

VOCABULARY, LIMIT, ENDS = 24, 8, (2, 5)
CONFIG = llama(vocab_size=VOCABULARY, hidden_size=8)
OURS = Model(CONFIG)
OPTIONS = {
    "sequence_bias": [[[[3], 1.5], [[4, 7], -2.0], [[1, 1, 6], 9.0]]],
    "encoder_repetition_penalty": [1.4, 0.8],
    "repetition_penalty": [1.3, 0.7],
    "no_repeat_ngram_size": [1, 2, 3],
    "encoder_no_repeat_ngram_size": [2, 3],
    "bad_words_ids": [[[3], [4, 7], [1, 1, 6]]],
    "min_length": [4],
    "min_new_tokens": [1, 5],
    "forced_eos_token_id": [[2, 5]],
    "exponential_decay_length_penalty": [[2, 1.4]],
    "suppress_tokens": [[1, 9]],
    "begin_suppress_tokens": [[8, 10]],
    "temperature": [0.5, 1.7],
    "top_k": [3, 12],
    "top_p": [0.4, 0.9],
    "min_p": [0.05],
    "typical_p": [0.7],
    "epsilon_cutoff": [0.02],
    "eta_cutoff": [0.05],
    "top_h": [0.6],
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    model_folder.save(random_model(CONFIG), folder)
    return LlamaForCausalLM.from_pretrained(folder)


@given(
    asked=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in OPTIONS.items()}),
    sampled=st.booleans(),
    prompt=st.lists(st.integers(0, 9), min_size=2, max_size=7),
    new=st.lists(st.integers(0, 9), max_size=LIMIT - 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_whole_chain_equals_that_of_transformers(theirs, asked, sampled, prompt, new, seed):
    from transformers import GenerationConfig

    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    values = {"top_k": 0, "top_p": 1.0, **asked, "do_sample": sampled, "eos_token_id": list(ENDS)}
    config = GenerationConfig(**values, max_length=len(prompt) + LIMIT)
    theirs._prepare_special_tokens(config, kwargs_has_attention_mask=True, device="cpu")
    chain = theirs._get_logits_processor(
        config,
        input_ids_seq_length=len(prompt),
        encoder_input_ids=torch.tensor([prompt]),
        device="cpu",
        model_kwargs={},
    )
    expected = chain(torch.tensor([prompt + new]), logits.clone())

    OURS.generation_config = values
    read = read_generation_config(OURS)
    params = read.recommended
    if not sampled:
        assert params.temperature == 0
    state = SequenceState(prompt, params, LIMIT, 0, ENDS)
    for token in new:
        state.append(token, 0.0)
    found = TokenChooser(read.rules).process(logits, [state])
    if expected.isfinite().any() and not expected.isnan().any():
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    else:
        assert not found.isfinite().any(), "nothing is left in either"


TOKENIZER = Tokenizer.train(["the cat sat on the mat. the dog sat on the cat. "] * 10, vocab_size=280)
SIZE = TOKENIZER.vocab_size
EVERYTHING = [
    SamplingParams(),
    SamplingParams(temperature=0.8, top_p=0.9, frequency_penalty=0.7, presence_penalty=-0.3),
    SamplingParams(logit_bias={7: 4.0, 9: -100}, bad_words=["at", [11, 12]], logprobs=3),
    SamplingParams(temperature=1.2, min_p=0.02, repetition_penalty=1.3, logprobs=2, logprobs_mode="processed"),
    SamplingParams(temperature=1.0, regex="(cat|dog| the){2,6}"),
    SamplingParams(json_schema={"type": "array", "items": {"type": "integer"}, "maxItems": 4}),
    SamplingParams(temperature=1.0, choice=["the cat", "the dog", "the"]),
    SamplingParams(logits_processors=[lambda ids, logits: logits - 0.5 * (torch.arange(len(logits)) == ids[-1])]),
]


@given(
    asked=st.lists(st.tuples(st.sampled_from(EVERYTHING), st.integers(0, 99)), min_size=2, max_size=6),
    delays=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    leaves=st.integers(2, 9),
)
@settings(deadline=None, max_examples=40)
def test_a_row_does_not_depend_on_the_batch_whatever_is_asked(asked, delays, leaves):
    table = torch.randn(97, SIZE + 1, generator=torch.Generator().manual_seed(0)) * 2

    def logits(states):
        tails = [[0, *state.prefix, *state.ids][-2:] for state in states]
        return torch.stack([table[(7 * before + last) % 97] for before, last in tails])

    def begin():
        return [SequenceState([3, seed % 9], params, 10, seed, (SIZE,)) for params, seed in asked]

    alone = begin()
    for state in alone:
        chooser = TokenChooser(tokenizer=TOKENIZER)
        while state.finished is None:
            chooser.choose(logits([state]), [state]).append_to([state])
    chooser, together = TokenChooser(tokenizer=TOKENIZER), begin()
    for step in range(20):
        # Rows come at different times, in changing order, and one of them is cancelled on the way.
        active = [
            state
            for place, (state, delay) in enumerate(zip(together, delays))
            if delay <= step and state.finished is None and not (place == 0 and step >= leaves)
        ]
        active = active[:: -1 if step % 3 == 0 else 1]
        if active:
            chooser.choose(logits(active), active).append_to(active)
    for one, other in list(zip(alone, together, strict=True))[1:]:
        assert (one.ids, one.finished) == (other.ids, other.finished)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert [[token for token, _ in top] for top in one.top_logprobs] == [
            [token for token, _ in top] for top in other.top_logprobs
        ]


def test_speculation_changes_nothing_whatever_is_asked():
    from quatrain.generation.engine import Engine
    from quatrain.generation.speculative import DraftModel, PromptLookup

    wide = llama(vocab_size=SIZE + 1, max_position_embeddings=128)
    model, texts = random_model(wide), ["the cat the cat the cat sat", "on the mat on the mat on the", "dog"]
    searches = [
        SamplingParams(penalty_alpha=0.6, top_k=4),
        SamplingParams(guidance_scale=1.5),
        SamplingParams(num_beams=3, force_words=["dog"]),
    ]
    for params in [replace(each, max_new_tokens=20, seed=1) for each in (*EVERYTHING, *searches)]:
        plain = Engine(model, TOKENIZER, end_ids=[SIZE]).generate(texts, params)
        for speculation in (PromptLookup(min_ngram=1), DraftModel(random_model(wide))):
            if params.temperature and isinstance(speculation, DraftModel):
                continue  # Equal in distribution, not in ids.
            engine = Engine(model, TOKENIZER, end_ids=[SIZE], speculation=speculation)
            for one, other in zip(plain, engine.generate(texts, params), strict=True):
                assert (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason)
                assert len(one.top_logprobs) == len(other.top_logprobs)
