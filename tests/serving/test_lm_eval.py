"""lm-eval's API models against our server: what they read equals what the engine scores and generates directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quatrain.generation.engine import Engine, SamplingParams
from quatrain.serving.server import Server

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lm-eval[api]'")
pytest.importorskip("tenacity", reason="lm-eval's API models need: pip install 'lm-eval[api]'")

ANSWERS = [" a red fox", " the moon", " nothing at all"]
QUESTIONS = [{"question": f"Question {number}: what runs?", "label": number % 3} for number in range(6)]


def completions_of(server: Server, **options: Any) -> Any:
    """lm-eval's model of `/v1/completions`; the tokenizer is the server's own."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    own: dict[str, Any] = {"batch_size": 4, "max_length": 512} | options
    return LocalCompletionsAPI(model="tiny", base_url=f"{server.address}/v1/completions", **own)


def chat_of(server: Server, **options: Any) -> Any:
    """lm-eval's model of `/v1/chat/completions`."""
    from lm_eval.models.openai_completions import LocalChatCompletion

    return LocalChatCompletion(model="tiny", base_url=f"{server.address}/v1/chat/completions", **options)


def instances(kind: Any, arguments: list[Any]) -> list[Any]:
    """Requests as lm-eval's tasks make them."""
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=index) for index, each in enumerate(arguments)]


@pytest.mark.parametrize("options", [{}, {"tokenized_requests": False}, {"num_concurrent": 3}], ids=str)
def test_log_likelihoods_are_those_of_the_engine(server: Server, engine: Engine, options: dict[str, Any]) -> None:
    lm = completions_of(server, **options)
    assert type(lm.tokenizer).__name__ == "RemoteTokenizer"
    greedy = engine.generate(["Hello"], SamplingParams(max_new_tokens=4))[0].text
    pairs = [("Hello", " there"), ("a b c", " d"), ("x", "yz" * 20), ("The end", "."), ("Hello", greedy)]
    got = lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    expected = engine.score([context for context, _ in pairs], [text for _, text in pairs])
    assert [value for value, _ in got] == pytest.approx([score.total for score in expected], abs=1e-3)
    assert [is_greedy for _, is_greedy in got] == [score.is_greedy for score in expected]
    assert [is_greedy for _, is_greedy in got] == [False] * 4 + [True]


def test_whole_texts_are_scored_in_windows(server: Server, engine: Engine) -> None:
    texts = ["A short text.", "A text that is longer than the context. " * 10]
    lm = completions_of(server, max_length=66)
    got = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True)
    tokenizer: Any = engine.tokenizer
    ids = tokenizer.encode(texts[0])
    assert got[0] == pytest.approx(engine.score([[tokenizer.eos_id]], [ids])[0].total, abs=1e-3)
    assert got[1] < 10 * got[0] < 0


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 3}], ids=str)
def test_generated_texts_are_those_of_the_engine(server: Server, engine: Engine, options: dict[str, Any]) -> None:
    prompts = ["Once upon a time", "Hello", "The end"]
    (first,) = engine.generate(prompts[:1], SamplingParams(max_new_tokens=24))
    stop = first.text[8:10]
    expected = [
        completion.text for completion in engine.generate(prompts, SamplingParams(max_new_tokens=24, stop=(stop,)))
    ]
    assert expected[0] == first.text[: first.text.index(stop)]
    arguments = [(prompt, {"until": [stop], "max_gen_toks": 24, "do_sample": False}) for prompt in prompts]
    lm = completions_of(server, **options)
    assert lm.generate_until(instances("generate_until", arguments), disable_tqdm=True) == expected


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 3}], ids=str)
def test_chats_are_those_of_the_engine(server: Server, engine: Engine, options: dict[str, Any]) -> None:
    lm = chat_of(server, **options)
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "Who are you?", "x")]
    expected = [each.text for each in engine.chat(chats, SamplingParams(max_new_tokens=16))]
    arguments = [(lm.apply_chat_template(chat), {"until": [], "max_gen_toks": 16}) for chat in chats]
    assert lm.generate_until(instances("generate_until", arguments), disable_tqdm=True) == expected


@pytest.mark.slow
def test_a_whole_task_has_the_same_score(server: Server, engine: Engine, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS), encoding="utf-8")
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
    choosing: Any = shared | {
        "task": "choosing", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "label",
        "doc_to_choice": [answer.strip() for answer in ANSWERS], "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    options: dict[str, Any] = {"bootstrap_iters": 0, "log_samples": True, "cache_requests": False}
    result = simple_evaluate(completions_of(server), tasks=[choosing], **options)
    pairs = [(each["question"], answer) for each in QUESTIONS for answer in ANSWERS]
    totals = [score.total for score in engine.score(*([pair[place] for pair in pairs] for place in (0, 1)))]
    right = [
        max(range(3), key=lambda choice: totals[3 * number + choice]) == each["label"]
        for number, each in enumerate(QUESTIONS)
    ]
    assert result["results"]["choosing"]["acc,none"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right)
