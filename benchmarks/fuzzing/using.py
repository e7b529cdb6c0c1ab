"""Inputs of the verbs that use, change and compare models: valid tiny commands of which something is broken.

Each kind is a table of valid command lines, the files that they read, and options with values. An input takes a command
and copies its files; then it breaks a file, a word or an option, or several of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.case import ANY, Bench, Case
from fuzzing.materials import LABELS
from fuzzing.values import BYTES, STRINGS, dump, mutated_tree, shown

NUMBERS = ("0", "1", "2", "-1", "0.5", "nan", "inf", "1e9", "", "x", "1000000000", "9" * 400)
LINES = (".jsonl", ".csv", ".txt", ".md")


@dataclass(frozen=True)
class Verb:
    """Valid command lines, the files of the materials that they name, and further options with their values.

    `{model}` in a word becomes a path of a model of one of `heads`, `{NAME}` the path of something of the materials.
    """

    commands: Sequence[str]
    files: Sequence[str] = ()
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    heads: Sequence[str] = ("causal",)
    typed: bytes = b"the cat\nno dog\n"


def _case(bench: Bench, verb: Verb) -> Case:
    draw = bench.draw
    about: list[str] = []
    for name in verb.files:
        bench.copy(name)
    command = draw.choice(verb.commands)
    words = [_filled(bench, word, verb.heads) for word in command.split()]
    if verb.files and bench.chance(0.55):
        about.append(_broken(bench, draw.choice([name for name in verb.files if name in command] or verb.files)))
    if verb.options and bench.chance(0.6):
        for name in draw.sample(sorted(verb.options), draw.choice((1, 1, 2))):
            value = draw.choice(verb.options[name] if bench.chance(0.6) else (*NUMBERS, *STRINGS))
            words += [name] if value == "" and "" in verb.options[name] else [f"{name}={value}"]
    if bench.chance(0.12):
        place = draw.randrange(len(words))
        words[place] = draw.choice(STRINGS)
    if bench.chance(0.05):
        words.pop()
    typed = draw.choice(
        (verb.typed, verb.typed, verb.typed, b"", b"\xff\xfe\n", b"\n\n", b"x" * 5000 + b"\n", b"a\0b\n")
    )
    return Case(words, "; ".join(about) or "of words", ANY, typed)


def _filled(bench: Bench, word: str, heads: Sequence[str]) -> str:
    """A word of a command with its paths."""
    if word == "{model}":
        names = [name for name, head in bench.materials.models.items() if head in heads]
        return str(bench.materials.path("models", bench.draw.choice(names)))
    if word.startswith("{"):
        name, _, rest = word[1:].partition("}")
        return str(bench.materials.path(*name.split("/"))) + rest
    return word.replace("_", " ") if word.startswith("the_") else word


def _broken(bench: Bench, name: str) -> str:
    """Break a copied file, or one within a copied folder; what was done in words."""
    draw = bench.draw
    path = Path(name)
    if path.is_dir():
        path = draw.choice([each for each in sorted(path.rglob("*")) if each.is_file()])
    way = draw.randrange(6)
    if way == 0:
        path.unlink()
        return f"{path} is missing"
    if way <= 2 and path.suffix in (".json", ".jsonl"):
        return f"{path}: {_mutated(bench, path)}"
    if way == 3 and bench.chance(0.3):
        path.unlink()
        path.mkdir()
        return f"{path} is a folder"
    kind = draw.choice(list(BYTES))
    path.write_bytes(BYTES[kind][0](path.read_bytes(), draw))
    return f"{path}: {kind}"


def _mutated(bench: Bench, path: Path) -> str:
    """Put a bad value into a line of JSON, or into a whole file of it."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    number = bench.draw.randrange(len(lines) or 1)
    try:
        tree, place, value = mutated_tree(json.loads(lines[number]), bench.draw, ("x", "text", "id", "kind", "event"))
    except (IndexError, KeyError, TypeError, ValueError):
        return "as it is"
    lines[number] = dump(tree)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"line {number + 1}: {'.'.join(map(str, place))} = {shown(value)}"


SAMPLING = {"--temperature": ("0", "1"), "--max-new-tokens": ("1", "2"), "--seed": ("1",), "--top-k": ("2",)}
INDEX = Verb(
    ["index documents to --quiet", "index documents to --dense lsa", "index documents to --json",
     "index documents index", "index data to --columns text=text --quiet"],
    ["documents", "index", "data"],
    {"--chunks": ("headings", "sentences", "tokens", "characters", "whole"), "--size": ("5", "50"),
     "--overlap": ("0", "3"), "--language": ("english", "german", "none"), "--dense": ("lsa",), "--quiet": ("",),
     "--columns": ("text=answer", "text=text,title=title"), "--store": ("sqlite",)},
)  # fmt: skip
ASK = Verb(
    ["ask index the_cat", "ask index the_cat --json", "ask index -", "ask index the_cat --model {models/llama}",
     "ask index the_cat --show-hits", "ask index --image documents/a.txt"],
    ["index", "documents"],
    {"--k": ("1", "3"), "--retriever": ("bm25", "dense", "hybrid", "feedback"), "--where": ("source=a.txt", "x=y"),
     "--threshold": ("0", "0.9", "1"), "--show-prompt": ("",), "--rerank": ("nowhere",), **SAMPLING},
)  # fmt: skip
EXPORT = Verb(
    [f"export {{model}} --to {target} --out out" for target in ("gguf", "hf", "ollama", "mlx", "gguf-adapter")]
    + ["export {models/adapter-lora} --to gguf-adapter --out out", "export {model} --to hf --out out --json",
       "export {models/llama} --to onnx --out text.txt", "export {models/llama} --to onnx --out out --format Q8_0"],
    options={"--format": ("F16", "Q8_0", "Q4_K", "float32", "int8", "F32"), "--context": ("8", "48"), "--force": ("",),
             "--calibration": ("text.txt",)},
    files=["text.txt"],
    heads=("causal", "seq2seq", "masked", "sequence_classification", "embedding"),
)  # fmt: skip
COMPRESSING = {"--calibrate": ("text.txt",), "--text": ("text.txt",), "--samples": ("1", "2"), "--json": ("",)}
QUANTIZE = Verb(
    ["quantize {model} --out out --text text.txt", "quantize {model} --text text.txt --samples 1",
     "quantize {model} --method int4 --calibration gptq --calibrate text.txt --samples 1 --out out",
     "quantize {models/sharded} --method w8a8 --calibration smoothquant --calibrate text.txt --samples 1"],
    ["text.txt"],
    {"--method": ("int8", "int4", "nf4", "fp8", "w8a8"), "--calibration": ("nearest", "gptq", "awq", "smoothquant"),
     "--group": ("32", "64"), "--layout": ("gptq", "awq", "compressed-tensors"), **COMPRESSING},
    heads=("causal", "causal", "masked"),
)  # fmt: skip
PRUNE = Verb(
    ["prune {model} --out out --method magnitude --sparsity 0.5 --text text.txt",
     "prune {model} --sparsity 0.5 --calibrate text.txt --samples 1", "prune {model} --layers 0.5 --text text.txt",
     "prune {model} --heads 0.5 --calibrate text.txt --samples 1 --out out",
     "prune {model} --pattern 2:4 --method sparsegpt --calibrate text.txt --samples 1"],
    ["text.txt"],
    {"--method": ("magnitude", "magnitude-global", "wanda", "sparsegpt"), "--sparsity": ("0", "0.5", "1"),
     "--pattern": ("2:4", "1:4", "4:2"), "--heads": ("0.5", "1"), "--units": ("0.5", "1"), "--layers": ("0.5", "1"),
     "--uncorrected": ("",), **COMPRESSING},
    heads=("causal", "causal", "masked"),
)  # fmt: skip
AGENT = Verb(
    ["agent run {models/long} the_cat --steps 1 --max-new-tokens 4 --quiet",
     "agent run {models/long} the_cat --tool calculator --steps 2 --max-new-tokens 4 --json",
     "agent run {models/long} - --tool files=folder --steps 1 --max-new-tokens 4", "agent tools", "agent tools --json",
     "agent show record.jsonl", "agent show record.jsonl --page page.html", "agent replay record.jsonl",
     "agent replay record.jsonl --quiet", "agent serve --tool calculator", "agent show record.jsonl --page /nowhere/x"],
    ["record.jsonl"],
    {"--tool": ("calculator", "plan", "person", "files=.", "sql=x.sqlite", "http=x.invalid", "search=index", "nosuch",
                "predict=x", "calculator=1", "mcp=nosuch", "mcp=http://x.invalid"),
     "--style": ("auto", "tools", "react", "code"), "--allow": ("calculator", "nosuch"), "--steps": ("1", "0"),
     "--tokens": ("1", "50"), "--seconds": ("1", "0"), "--money": ("0", "1"), "--prices": ("1,2", "1"),
     "--record": ("new.jsonl", "record.jsonl", "/nowhere/x"), "--system": ("sat",), **SAMPLING},
    typed=b'{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}\n{"jsonrpc": "2.0", "id": 2}\nx\n',
)  # fmt: skip
PREDICT: dict[str, tuple[str, ...]] = {
    "sequence_classification": ("labelled", "text-classification", "zero-shot-classification", "reward"),
    "token_classification": ("tagged", "ner", "token-classification"),
    "question_answering": ("qa", "question-answering"),
    "multiple_choice": ("choice", "multiple-choice"),
    "embedding": ("pair", "sentence-similarity", "sentence-embeddings", "paraphrase"),
    "seq2seq": ("text", "summarization", "translation", "text2text-generation"),
    "masked": ("text", "fill-mask", "feature-extraction"),
    "causal": ("prompts", "text-generation", "code-completion", "table-question-answering"),
}
"""For a head the format of a file of inputs, and its tasks."""
PREDICTING = {
    "--columns": ("text=text", "text=x", "context=context,question=question"), "--pair": ("sat", ""), "--json": ("",),
    "--question": ("saw the cat",), "--batch-size": ("1", "2"), "--output": ("out.jsonl", "/nowhere/x"),
    "--top-k": ("1", "3"), "--candidate-labels": LABELS, "--function-to-apply": ("softmax", "sigmoid", "none"),
    "--stride": ("2",), "--max-new-tokens": ("2",), "--dtype": ("float16", "bfloat16"), "--quantize": ("int8", "nf4"),
    "--aggregation-strategy": ("simple", "words"), "--doc-stride": ("2",), "--max-answer-len": ("1",),
}  # fmt: skip
PROMPT = Verb(
    ["prompt preview {models/long} data/labelled.jsonl --pool data/labelled.jsonl",
     "prompt preview {model} data/pair.jsonl --pool data/pair.jsonl --json",
     "prompt preview {models/long} data/qa.jsonl --pool data/qa.jsonl --shots 1",
     "prompt preview {model} data/sql.jsonl",
     "prompt compare {models/long} data/labelled.jsonl --pool data/labelled.jsonl --examples 2 --max-new-tokens 2",
     "prompt search {models/long} data/labelled.jsonl --pool data/labelled.jsonl --examples 2 --max-new-tokens 2",
     "prompt preview {models/long} data/labelled.jsonl --pool data/labelled.jsonl --templates templates.toml"],
    ["data", "templates.toml"],
    {"--number": ("1", "3"), "--pool": ("data/labelled.jsonl", "data/text.jsonl"), "--prompt": ("templates.toml", "x"),
     "--templates": ("plain", "sentiment", "sql", "arithmetic", "templates.toml"), "--template": ("a", "nosuch"),
     "--shots": ("0", "1", "5"), "--selection": ("random", "similar", "balanced"), "--votes": ("1", "3"),
     "--style": ("chat", "text"), "--decide": ("likelihood", "calibrated"), "--too-long": ("refuse",),
     "--temperature": ("1",), "--max-new-tokens": ("2",), "--out": ("out.toml",), "--embedder": ("x",),
     "--seed": ("1",)},
)  # fmt: skip
COMPARE = Verb(
    ["compare {models/llama} {models/llama}@quantize=int8 --suite perplexity:text.txt --limit 2 --output answers",
     "compare {models/classifier} {models/classifier}@quantize=int8 --suite classification:data/labelled.jsonl",
     "compare {models/spans} {models/spans}@quantize=int8 --suite qa:data/qa.jsonl --limit 2 --output answers",
     "compare {models/llama} {models/long} --text text.txt --batch-size 1", "compare .", "compare runs", "compare data",
     "compare bm25 feedback --documents documents --limit 2"],
    ["text.txt", "data", "documents"],
    {"--suite": ("labelled:data/labelled.jsonl", "qa:data/qa.jsonl", "nosuch"), "--limit": ("1", "2"),
     "--shots": ("0", "1"), "--max-new-tokens": ("1", "2"), "--batch-size": ("1", "2"), "--output": ("answers",),
     "--page": ("page.html", "/nowhere/x"), "--fresh": ("",), "--json": ("",), "--kv-cache": ("",)},
)  # fmt: skip
LABEL = Verb(
    ["label {model} --max-new-tokens 2 --prompts data/prompts.jsonl", "label {models/llama} --max-new-tokens 2",
     "label {models/llama} --prompts data/chat.jsonl --out choices.jsonl --max-new-tokens 2 --json",
     "label {models/llama} --page --port 0 --prompts data/prompts.jsonl"],
    ["data"],
    {"--rater": ("me", ""), "--out": ("choices.jsonl", "data/preference.jsonl", "data"), "--json": ("",), **SAMPLING},
    typed=b"a\nb\ntie\nundo\nskip\n?\nnosuch\nthe cat\na\n",
)  # fmt: skip
CURATE = Verb(
    ["data curate curation.toml --output out", "data curate curation.toml --output out --json",
     "data curate curation.toml --plan", "data curate web --source data/text.jsonl --plan",
     "data check data/labelled.jsonl --json", "data check data", "data list --json", "data get nosuch"],
    ["data", "curation.toml"],
    {"--source": ("data/text.jsonl", "data", "text.txt"), "--processes": ("1", "0"), "--keep-work": ("",),
     "--truth": ("data/text.jsonl",), "--plan": ("",), "--format": ("labelled", "text"), "--columns": ("text=text",)},
)  # fmt: skip
SWEEP = Verb(
    ["sweep tiny.toml --over seed=1,2 --name s --minutes 0.0001 stage.pretrain.train.steps=1",
     "sweep tiny.toml --over model.hidden_size=16,x --name s --minutes 0.0001", "sweep tiny.toml --over tokens=1k",
     "sweep tiny.toml --minutes 0.0001"],
    ["tiny.toml", "text.txt"],
    {"--over": ("x=1", "seed=", "tokens=1,2", "flops=1e6", "seed=1,1", "model.hidden_size=16"),
     "--minutes": ("0.0001",),
     "--predict": ("seed=3",), "--best": ("seed", "x"), "--json": ("",), "--runs-dir": ("runs", "text.txt")},
)  # fmt: skip
NEW = Verb(
    ["new mine.toml --goal text --data text.txt --size small", "new", "new mine.toml", "new --goal classify --json",
     "new mine.toml --goal answer --data data/qa.jsonl --json", "new tiny.toml --goal text --force"],
    ["tiny.toml", "text.txt", "data"],
    {"--goal": tuple("text database classify tag answer translate summarize embed instruct prefer".split()),
     "--data": ("example", "text.txt", "data/labelled.jsonl", "hf:x/y", "wikitext-2"), "--force": ("",),
     "--size": ("small", "medium", "large")},
    typed=b"text\nexample\nsmall\n",
)  # fmt: skip
SMALL = Verb(
    ["numbers 1 2 3", "numbers 0.5 -1 1e30 --bits 4", "numbers 0", "numbers 1 --symmetric --json", "completion bash",
     "completion x", "recipes", "doctor --nosuch", "numbers nan inf"],
    options={"--bits": ("2", "8", "16"), "--symmetric": ("",), "--json": ("",)},
)  # fmt: skip


def _of(*verbs: Verb) -> Callable[[Bench], Case]:
    """A kind that draws one of these verbs."""
    return lambda bench: _case(bench, bench.draw.choice(verbs))


def predictions(bench: Bench) -> Case:
    """`predict` with a model of some head, on texts and files that it may not read."""
    draw = bench.draw
    head = draw.choice(list(PREDICT))
    format, *tasks = PREDICT[head]
    name = draw.choice([name for name, each in bench.materials.models.items() if each == head])
    source = bench.copy("data", f"{format}.jsonl")
    if bench.chance(0.2):
        source = Path(shutil.copy(source, f"inputs{draw.choice(LINES)}"))
    verb = Verb(
        [f"predict {{models/{name}}} {source}", f"predict {{models/{name}}} the_cat",
         f"predict {{models/{name}}} {source} --task {draw.choice(tasks)}",
         f"predict {{models/{name}}} - --task {draw.choice(draw.choice(list(PREDICT.values()))[1:])}"],
        options=PREDICTING,
    )  # fmt: skip
    about = f"{source}: {_mutated(bench, source)}" if bench.chance(0.5) else _broken(bench, str(source))
    case = _case(bench, verb)
    case.about = f"{about}; {case.about}"
    return case


ENTRIES: dict[str, dict[str, tuple[Callable[[Bench], Case], float]]] = {
    "retrieval": {"index documents": (_of(INDEX), 2), "ask": (_of(ASK), 3)},
    "conversions": {"export": (_of(EXPORT), 2), "quantize": (_of(QUANTIZE), 2), "prune": (_of(PRUNE), 2)},
    "agents": {"agent": (_of(AGENT), 4)},
    "predictions": {"predict": (predictions, 5), "compare": (_of(COMPARE), 1.5), "label": (_of(LABEL), 1.5)},
    "prompts": {"prompt tasks": (_of(PROMPT), 3)},
    "data": {"curate": (_of(CURATE), 3)},
    "recipes": {"sweep": (_of(SWEEP), 1)},
    "command line": {"new": (_of(NEW), 2), "small verbs": (_of(SMALL), 0.5)},
}
"""What makes an input, and its share, by entry point."""
