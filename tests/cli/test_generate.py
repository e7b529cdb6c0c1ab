"""`quatrain generate`: prompts from everywhere, files of prompts with resume, several samples, explanations."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from quatrain.cli import main
from quatrain.cli.chat import PlainTalk
from quatrain.cli.sampling import ModelOptions, SamplingOptions
from quatrain.generation.engine import Engine, SamplingParams

NO_OPTION = {
    "early_stopping": "rarely changed; in a recipe or generation_config.json",
    "num_return_sequences": "--samples",
    "ignore_eos": "measures speed",
    "epsilon_cutoff": "rarely used; in generation_config.json",
    "eta_cutoff": "rarely used; in generation_config.json",
    "top_h": "rarely used; in generation_config.json",
    "logprobs": "--explain",
    "logprobs_mode": "--explain shows the model's own",
    "logit_bias": "needs token ids",
    "stop_token_ids": "needs token ids",
    "logits_processors": "functions",
}
"""Parameters that have no option of their name, and why."""


def write_prompts(path: Path, count: int) -> Path:
    lines = [{"prompt": f"Line {number} of", "id": f"a{number}"} for number in range(count - 2)]
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    path.write_text("\n".join([*map(json.dumps, lines), "", json.dumps("just a text"), json.dumps(chat)]) + "\n")
    return path


def test_options_are_parameters() -> None:
    options = {field.name for field in fields(SamplingOptions)}
    parameters = {field.name for field in fields(SamplingParams)}
    assert options | set(NO_OPTION) == parameters
    assert not options & set(NO_OPTION)


def test_prompts_come_from_anywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "start.txt").write_text("The cat\nsat")
    settings = ["--max-new-tokens", "6", "--json"]
    assert main(["generate", str(folder), "The cat\nsat", *settings]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["generate", str(folder), "--file", str(tmp_path / "start.txt"), *settings]) == 0
    by_file = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\nsat"))
    assert main(["generate", str(folder), "-", *settings]) == 0
    by_pipe = json.loads(capsys.readouterr().out)
    assert by_file["ids"] == by_pipe["ids"] == expected["ids"]
    assert expected["tokens_per_second"] > 0


def test_options_that_do_not_fit_are_refused_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "x", "--file", "y", "--out", "z", "--samples", "0"]) == 2
    error = capsys.readouterr().err
    assert "a prompt and --file" in error and "--prompts and --out" in error and "--samples 0" in error
    assert main(["generate", str(folder)]) == 2
    assert "give one of a prompt, --file, --prompts; there is none" in capsys.readouterr().err
    assert main(["generate", str(folder), "x", "--device", "cuda:9"]) == 2
    assert "--device" in capsys.readouterr().err
    assert main(["generate", str(folder), "x", "--adapters", "mine"]) == 2
    assert "NAME=FOLDER" in capsys.readouterr().err


def test_a_file_of_prompts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = write_prompts(tmp_path / "prompts.jsonl", 7), tmp_path / "out.jsonl"
    words = ["generate", str(folder), "--prompts", str(prompts), "--out", str(out), "--max-new-tokens", "5"]
    assert main(words) == 0
    assert "7 completions" in capsys.readouterr().out
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["line"] for record in records] == [1, 2, 3, 4, 5, 7, 8]
    assert [record.get("id") for record in records] == ["a0", "a1", "a2", "a3", "a4", None, None]
    engine = Engine.load(folder)
    alone = engine.generate([record["prompt"] for record in records[:6]], SamplingParams(max_new_tokens=5))
    assert [record["completion"] for record in records[:6]] == [completion.text for completion in alone]
    (answer,) = engine.chat([records[6]["messages"]], SamplingParams(max_new_tokens=5))
    assert records[6]["completion"] == answer.text
    # a second call has nothing to do, and leaves the file as it is
    before = out.read_bytes()
    assert main(words) == 0 and out.read_bytes() == before


@pytest.mark.parametrize("sampled", [False, True])
def test_a_stopped_file_is_continued(
    sampled: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between two batches and within a line: the whole file is as if it had not been."""
    monkeypatch.setattr("quatrain.cli.prompts.BATCH", 4)
    prompts, whole, out = write_prompts(tmp_path / "prompts.jsonl", 11), tmp_path / "whole", tmp_path / "out"
    settings = ["--max-new-tokens", "4", *(["--temperature", "1", "--seed", "7", "--samples", "2"] if sampled else [])]
    words = ["generate", str(folder), "--prompts", str(prompts), *settings, "--out"]
    assert main([*words, str(whole)]) == 0
    content = whole.read_bytes()
    if sampled:
        assert all(len(json.loads(line)["samples"]) == 2 for line in content.splitlines())
    for cut in (0, 10, content.index(b"\n") + 1, len(content) // 2, len(content) - 1):
        out.write_bytes(content[:cut])
        assert main([*words, str(out)]) == 0
        assert out.read_bytes() == content
    capsys.readouterr()
    assert main([*words, str(out), "--min-new-tokens", "3"]) == 2
    assert "other settings" in capsys.readouterr().err and out.read_bytes() == content
    prompts.write_text(json.dumps("another"))
    assert main([*words, str(out)]) == 2
    assert "another prompt" in capsys.readouterr().err and out.read_bytes() == content
    out.write_text("my notes\n")
    assert main([*words, str(out)]) == 2 and out.read_text() == "my notes\n"


def test_all_wrong_prompts_are_named_before_a_token_is_made(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    words = ["generate", str(folder), "--prompts", str(path), "--out", str(out)]
    path.write_bytes(
        b'"fine"\n{"prompt": 3}\nnot json\n{"text": "x"}\n{"prompt": "a", "messages": []}\n\xff\xfe\xfd\n'
        b'{"prompt": "x", "adapter": 4}\n'
    )
    assert main(words) == 2
    error = capsys.readouterr().err
    assert all(f"line {number}" in error for number in range(2, 8)) and "line 1:" not in error and not out.exists()
    wrong = ["fine", "x" * 500, {"messages": [{"role": "user"}]}, {"prompt": "x", "adapter": "b"}]
    path.write_text("\n".join(map(json.dumps, wrong)))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "line 2: " in error and "500 tokens" in error and "line 3: " in error and "line 4: " in error
    assert not out.exists()
    path.write_text("\n\n")
    assert main(words) == 2 and "has no prompts" in capsys.readouterr().err


def test_answers_are_constrained(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "integer"}')
    grammar.write_text('start: ("a" | "b") "c"')
    words = ["generate", str(folder), "The ", "--json"]
    for options, pattern in (
        (["--json-schema", str(schema), "--max-new-tokens", "30"], r"-?[0-9]+(\.0+)?"),
        (["--regex", "[0-9]{2}_[a-c]"], r"[0-9]{2}_[a-c]"),
        (["--grammar", str(grammar)], "(a|b)c"),
        (["--choice", "yes", "--choice", "no"], "yes|no"),
    ):
        assert main([*words, *options]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["finish_reason"] == "length" or re.fullmatch(pattern, record["text"]), (options, record)
    schema.write_text("{")
    assert main([*words, "--json-schema", str(schema)]) == 2
    assert "schema.json" in capsys.readouterr().err


def test_guessed_tokens_change_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(folder), "The cat the cat the ", "--json", "--max-new-tokens", "20"]
    texts = []
    for options in ([], ["--prompt-lookup", "4"], ["--draft", str(folder)]):
        assert main([*words, *options]) == 0
        texts.append(json.loads(capsys.readouterr().out)["ids"])
    assert texts[0] == texts[1] == texts[2]
    assert main([*words, "--prompt-lookup", "4", "--draft", str(folder)]) == 2
    assert main([*words, "--prompt-lookup", "0"]) == 2
    assert main([*words, "--draft", "nowhere"]) != 0


def test_several_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(folder), "The", "--temperature", "1", "--seed", "1", "--samples", "3"]
    assert main([*words, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({record["text"] for record in records}) == 3 and [record["sample"] for record in records] == [0, 1, 2]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(record["text"] in out for record in records) and "sample 3 of 3" in out


def test_an_explanation_names_the_models_own_probabilities(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(folder), "The ", "--max-new-tokens", "4", "--explain"]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (completion,) = Engine.load(folder).generate(["The "], SamplingParams(max_new_tokens=4))
    assert [token["id"] for token in record["tokens"]] == completion.ids
    for token, logprob in zip(record["tokens"], completion.logprobs, strict=True):
        assert token["probability"] == pytest.approx(math.exp(logprob), rel=1e-5)
        shares = [other["probability"] for other in token["alternatives"]]
        assert len(shares) == 5 and shares == sorted(shares, reverse=True)
        assert token["probability"] == pytest.approx(shares[0])  # greedy
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "alternatives" in out and "\x1b" not in out


def in_terminal(words: list[str], typed: bytes = b"") -> str:
    """What a real terminal shows while the command line runs in it."""
    main_end, its_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "QUATRAIN_CACHE": os.devnull + "x"}
    process = subprocess.Popen(
        [sys.executable, "-m", "quatrain", *words], stdin=its_end, stdout=its_end, stderr=its_end, env=environment
    )
    os.close(its_end)
    if typed:
        os.write(main_end, typed)
    out = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(main_end, 65536):
            out += chunk
    os.close(main_end)
    assert process.wait(60) == 0, out
    return out.decode()


def test_a_terminal_shows_colours_and_speed(folder: Path) -> None:
    shown = in_terminal(["generate", str(folder), "The ", "--max-new-tokens", "4", "--explain"])
    assert "\x1b[31m" in shown and "Probability:" in shown and "tokens/s" in shown


def test_model_settings_hold_unless_an_option_says_otherwise(folder: Path) -> None:
    engine = Engine.load(folder)
    engine.recommended = SamplingParams(num_beams=3, max_new_tokens=9)
    assert SamplingOptions().params(engine, max_new_tokens=5) == engine.recommended
    drawn = SamplingOptions(temperature=0.5).params(engine, max_new_tokens=5)
    assert (drawn.num_beams, drawn.temperature, drawn.max_new_tokens) == (1, 0.5, 9)
    engine.recommended = SamplingParams(temperature=0.8, top_p=0.9)
    beams = SamplingOptions(num_beams=2).params(engine, max_new_tokens=5)
    assert (beams.temperature, beams.top_p, beams.num_beams, beams.max_new_tokens) == (0.0, None, 2, 5)


def test_a_model_that_recommends_several_completions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are shown together: a stream is one completion. A conversation has one answer."""
    engine = Engine.load(folder)
    engine.recommended = SamplingParams(num_beams=2, num_return_sequences=2, max_new_tokens=4)
    monkeypatch.setattr(ModelOptions, "load", lambda *_: engine)
    assert main(["generate", str(folder), "The "]) == 0
    assert "--- sample 2 of 2 ---" in capsys.readouterr().out
    talk = PlainTalk(engine, SamplingOptions(), json_lines=False, adapter=None, system="")
    assert (talk.params.num_beams, talk.params.num_return_sequences) == (2, 1)


def test_a_text_that_the_tokenizer_cannot_write_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "The ", "--regex", "[0-9]{2}-[a-c]", "--json"]) == 2
    captured = capsys.readouterr()
    assert "grammar" in captured.err and "panic" not in captured.err and captured.out == ""
