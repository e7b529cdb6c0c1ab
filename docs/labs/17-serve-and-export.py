# ---
# jupyter:
#   quatrain:
#     data: ["gutenberg:1661"]
#     extras: [plot, export, serve]
# ---

# %% [markdown]
# # Lab 17: serve it, export it, run it in Ollama
#
# **You learn** to put a model to use: a file for llama.cpp and Ollama, what its formats keep and lose, and how a file proves itself; a server that speaks OpenAI's API; and why it answers eight at once almost as fast as
# one. Before this: [quantization by hand](09-quantization.md).

# %%
import json
import shutil
import struct
import threading
import time
import urllib.request
from pathlib import Path

import matplotlib.pyplot as plt

import quatrain
from quatrain.core.labs import at_size, check
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import loads

recipe = f"""
name = "served"
[data]
source = "gutenberg:1661"
validation = 0.1
[tokenizer]
kind = "bpe"
vocab_size = {at_size(1024, 400)}
chat_template = "chatml"
[model]
family = "llama"
hidden_size = {at_size(128, 32)}
num_hidden_layers = 2
num_attention_heads = {at_size(4, 2)}
intermediate_size = {at_size(384, 64)}
max_position_embeddings = 256
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = {{ steps = {at_size(250, 2)}, batch_tokens = {at_size(2048, 256)}, learning_rate = 0.006, optimizer = "muon", schedule = "wsd", warmup_steps = {at_size(20, 0)} }}
"""
run = quatrain.run(loads(recipe), reporter=SilentReporter())
print(f"{run.results[-1]['parameters']:,} parameters, validation loss {run.results[-1]['validation_loss']:.2f}")

# %% [markdown]
# ## A file for other programs
#
# A model folder is a configuration, tensors and a tokenizer. **GGUF** puts all of it into one file that llama.cpp, Ollama and LM Studio read, with weights in blocks: `Q8_0` has 32 weights of 8 bits and
# one scale of 16, `Q4_0` the same with 4 bits.
#
# ### Exercise 1
#
# How many bits is a weight in Q8_0 and in Q4_0? How many GB (10⁹ bytes) are 7 billion weights in Q4_0?

# %%
q8, q4, seven = None, None, None
check(1, q8 and [q8, q4, seven], [8.5, 4.5, 3.9375], hint="(32 · 8 + 16) / 32; (32 · 4 + 16) / 32; 7e9 · q4 / 8 / 1e9")

# %% tags=["solution"]
q8, q4 = (32 * 8 + 16) / 32, (32 * 4 + 16) / 32
seven = 7 * q4 / 8
check(1, [q8, q4, seven], [8.5, 4.5, 3.9375], hint="(32 · 8 + 16) / 32; (32 · 4 + 16) / 32; 7e9 · q4 / 8 / 1e9")

# %%
from quatrain.export.exporter import ExportSettings, export

sizes = {}
shutil.rmtree("files", ignore_errors=True)  # of an earlier run of this lab
for format in at_size(("F32", "F16", "Q8_0", "Q5_0", "Q4_0"), ("F16", "Q4_0")):
    done = export("runs/served/model", "gguf", f"files/{format}", ExportSettings(format=format))
    path = Path(next(file for file in done.files if str(file).endswith(".gguf")))
    sizes[format] = (path.stat().st_size, path)
    print(f"{format}: {path.stat().st_size / 1e6:.2f} MB")
    for each in done.checks:
        print(f"   {each.name}: {each.result}")

# %% [markdown]
# **A file proves itself**: it was opened again, and its tokens, logits and greedy text were compared with the model's. A file that does not agree is not kept.
#
# ### Exercise 2
#
# Open the file yourself. A GGUF begins with the bytes `GGUF`, a version (unsigned 32 bits), the number of tensors and the number of metadata entries (64 bits each, little endian). Give the three numbers.


# %%
def header(path):
    """(version, tensors, entries)"""
    return None


path = sizes["F16"][1]
from quatrain.core.gguf_file import GgufFile

opened = GgufFile(path)
wanted = list(struct.unpack("<IQQ", path.read_bytes()[4:24]))
check(2, header(path), wanted, tolerance=0, hint='struct.unpack("<IQQ", …) of the 20 bytes after the first four')


# %% tags=["solution"]
def header(path):
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
        return list(struct.unpack("<IQQ", file.read(20)))


check(2, header(path), wanted, tolerance=0, hint='struct.unpack("<IQQ", …) of the 20 bytes after the first four')
for key in ("general.architecture", "llama.block_count", "llama.embedding_length", "tokenizer.ggml.model"):
    print(key, "=", opened.metadata[key])

# %% [markdown]
# A GGUF file is a model here too. How far are the logits of each format from those of the model?

# %%
import torch

from quatrain.loading.model import load_model

model, tokenizer = load_model("runs/served/model")
ids = torch.tensor([tokenizer.encode("It was a dark night, and the lamp was lit when Holmes came in.")])
with torch.no_grad():
    expected = model.eval()(ids)[0]
    errors = {}
    for format, (_, path) in sizes.items():
        logits = load_model(path)[0].eval()(ids)[0]
        errors[format] = float((logits - expected).pow(2).mean().sqrt() / expected.std())
figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.1))
left.bar(list(sizes), [size / 1e6 for size, _ in sizes.values()], color="#2f6fbf")
left.set(title="Size of the file, MB")
right.bar(list(errors), list(errors.values()), color="#e08a1e")
right.set(title="Error of the logits, relative")
plt.show()

# %% [markdown]
# ## Ollama
#
# The target `ollama` adds a `Modelfile` with the chat template in Go's language and the stop tokens. `ollama create` reads it.

# %%
done = export("runs/served/model", "ollama", "files/ollama", ExportSettings(format="Q8_0"))
for each in done.files:
    if Path(each).name == "Modelfile":
        print(Path(each).read_text(encoding="utf-8")[:600])

# %% [markdown]
# <!-- not run: needs software from elsewhere: ollama create, ollama run -->
# ```sh
# quatrain export runs/served/model --to ollama
# ollama create served -f runs/served/model-ollama/Modelfile
# ollama run served
# ```
#
# ## A server
#
# `quatrain serve runs/served/model` answers OpenAI's and Anthropic's clients. Here it runs in a thread of the notebook, on a free port:

# %%
from quatrain.serving.models import entries_of
from quatrain.serving.server import Server
from quatrain.serving.settings import ServerSettings

server = Server(entries_of(["served=runs/served/model"]), ServerSettings(port=0))
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
for _ in range(600):
    try:
        if server.started and urllib.request.urlopen(f"{server.address}/health").status == 200:
            break
    except OSError:
        pass
    time.sleep(0.1)


def ask(**fields):
    """A request to the route of completions, as any client of OpenAI's API sends it."""
    body = json.dumps({"model": "served", "temperature": 0, "ignore_eos": True, **fields}).encode()
    request = urllib.request.Request(f"{server.address}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


answer = ask(prompt="It was a dark night, and", max_tokens=at_size(20, 3))
print(answer["choices"][0]["text"])
print(answer["usage"])

# %% [markdown]
# ### Many at once
#
# Generating one token reads all weights once, whether for one text or for eight. **Continuous batching** lets each request join and leave the batch at every token, so the weights are read for all of them together.


# %%
def tokens_per_second(clients, count=at_size(48, 3)):
    workers = [
        threading.Thread(target=ask, kwargs={"prompt": f"Number {n}:", "max_tokens": count}) for n in range(clients)
    ]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return clients * count / (time.perf_counter() - began)


tokens_per_second(2)  # the first call warms up
clients = at_size([1, 2, 4, 8, 16], [1, 2])
speeds = [tokens_per_second(number) for number in clients]
server.stop()
thread.join(30)
figure, ax = plt.subplots(figsize=(4.6, 2.1))
ax.plot(clients, speeds, "o-", color="#2f6fbf", markersize=3, label="all together")
ax.plot(
    clients,
    [speed / number for speed, number in zip(speeds, clients)],
    "o-",
    color="#c8ccd2",
    markersize=3,
    label="each client",
)
ax.set(title="Tokens a second by clients", xlabel="clients at once", ylim=0)
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# ### Exercise 3
#
# A model of 7 billion weights in 4.5 bits runs on memory of 100 GB/s. How many tokens a second can one client get at most, if each token reads all weights once? And 8 clients together, if reading is all that counts?

# %%
one, eight = None, None
check(
    3,
    one and [one, eight],
    [100 / 3.9375, 800 / 3.9375],
    tolerance=0.01,
    hint="100 GB/s divided by the GB of the weights; the weights are read once for all eight",
)

# %% tags=["solution"]
one = 100 / (7 * 4.5 / 8)
eight = 8 * one
check(3, [one, eight], [100 / 3.9375, 800 / 3.9375], tolerance=0.01, hint="100 GB/s divided by the GB of the weights")

# %% [markdown]
# ## At size
#
# ```sh
# quatrain run quickstart
# quatrain serve runs/quickstart/model                      # then open http://127.0.0.1:8000
# quatrain export runs/quickstart/model --to ollama
# quatrain export runs/quickstart/model --to gguf --format Q8_0
# quatrain export runs/quickstart/model --to onnx
# ```
#
# A larger model is a name: `quatrain export meta-llama/Llama-3.2-1B --to gguf --format Q4_K`, `quatrain serve meta-llama/Llama-3.2-1B --quantize int8`. [Export](../export.md), [serving](../serving.md).
