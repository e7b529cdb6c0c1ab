# ---
# jupyter:
#   quatrain:
#     data: ["spoken-digits"]
#     extras: [plot, classic, vision, audio]
# ---

# %% [markdown]
# # Lab 15: images and sound
#
# **You learn** how a transformer reads what is no text: a picture as patches, a sound as a spectrogram, and a picture beside its caption. The blocks, the trainer and the files are those of texts; only the first layer is
# new. Before this: [attention by hand](03-attention.md).
#
# **Where it loses.** A transformer has to learn from data what a linear model on aligned pixels, or a convolution, assumes. With squares for patches and half the epochs this one was below logistic regression on the pixels of
# spoken digits (0.73 against 0.85); only patches that fit a sound brought it to 0.93 ([results](../../benchmarks/RESULTS.md#pictures)). And the small CLIP below, after a sixth of the recipe's steps, finds the caption of three
# pictures in five.

# %%
import zipfile

import matplotlib.pyplot as plt
import numpy as np
import torch

import quatrain
from quatrain.core.labs import at_size, check
from quatrain.core.progress import SilentReporter
from quatrain.data import catalog
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.pictures import load_pictures, shapes
from quatrain.data.sounds import read_sound
from quatrain.evaluation.inspection.picture_attention import over_picture, patch_maps, side_by_side
from quatrain.models.audio.features import LogMel, mel_filters

# %% [markdown]
# ## A picture is a sequence
#
# ViT ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)) cuts a picture into squares. Each square is a vector of its pixels; one matrix maps it to the width of the model; a learned position says where it was; a
# class token in front collects what the head reads.

# %%
written = load_pictures("digits").held_out["digits"]
processor = ImageProcessor.of(32)
features = torch.from_numpy(processor([written[3].source]))  # (1, 3, 32, 32)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2), width_ratios=(1, 3.2))
left.imshow(written[3].source, cmap="gray_r")
left.set_title(f"A written {written[3].label}")
pixels = features[0, 0].numpy()
gap = np.full((8, 16 * 9 - 1), np.nan)
for number in range(16):
    row, column = divmod(number, 4)
    gap[:, 9 * number : 9 * number + 8] = pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
right.imshow(gap, cmap="gray_r")
right.set_title("Its 16 patches, in the order that a model reads them")
for ax in (left, right):
    ax.set_axis_off()
plt.show()

# %% [markdown]
# ### Exercise 1
#
# Cut pictures (B, 3, H, W) into patches (B, N, 3·P·P), row by row; a patch's values in the order channel, row, column.


# %%
def patches(pictures, size):
    return None


wanted = torch.nn.functional.unfold(features, 8, stride=8).transpose(1, 2)
hint = "reshape to (B, 3, H/P, P, W/P, P), permute to (B, H/P, W/P, 3, P, P), then reshape"
check(1, patches(features, 8), wanted, hint=hint)


# %% tags=["solution"]
def patches(pictures, size):
    batch, channels, height, width = pictures.shape
    cut = pictures.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)


check(1, patches(features, 8), wanted, hint=hint)

# %% [markdown]
# ## A sound is a picture
#
# A recording is a row of numbers, 16,000 a second. A window of 25 ms every 10 ms, and in each the power of every frequency: a **spectrogram**. Our ear hears low pitches finely and high ones coarsely, and loudness by its
# logarithm; so the frequencies are summed in bands of equal width for the ear, and the logarithm is taken: **log-mel features**, what Whisper reads.

# %%
with zipfile.ZipFile(catalog.fetch("spoken-digits")) as archive:
    names = [name for name in sorted(archive.namelist()) if name.endswith("_jackson_0.wav")]
    three = read_sound(archive.read(names[3]), 16_000)
mel = LogMel(chunk_length=1)(three)[0, :, : len(three) // 160].numpy()  # (80 bands, frames)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.1))
axes[0].plot(np.arange(len(three)) / 16_000, three, color="#2f6fbf", linewidth=0.4)
axes[0].set(title="“three”, as samples", xlabel="seconds")
axes[1].plot(mel_filters(80).numpy()[::8].T, linewidth=0.8)
axes[1].set(title="Every eighth of the 80 bands", xlabel="frequency bin")
axes[2].imshow(mel, origin="lower", aspect="auto", cmap="magma")
axes[2].set(title="“three”, as log-mel features", xlabel="frame of 10 ms", ylabel="band")
plt.show()
print(f"{len(three) / 16_000:.2f} s: {len(three):,} samples become {mel.shape[1]} frames of {mel.shape[0]} bands")

# %% [markdown]
# ### Exercise 2
#
# Whisper reads 30 s. With a frame every 10 ms, how many frames is that, and how many vectors does its encoder have after a convolution of stride 2?

# %%
frames, vectors = None, None
check(2, frames and [frames, vectors], [3000, 1500], hint="30 s / 0.01 s, then half of them")

# %% tags=["solution"]
frames = round(30 / 0.01)
vectors = frames // 2
check(2, [frames, vectors], [3000, 1500], hint="30 s / 0.01 s, then half of them")

# %% [markdown]
# ## One transformer for both
#
# The recipe `digits` trains one small ViT on written digits **and** on spectrograms of spoken ones: the same ten classes. A patch need not be a square: in a spectrogram the height is the pitch and the width is time, so the recipe
# cuts columns of 32 x 2 pixels, each a moment with all its pitches. (Squares of 8 x 8 had 0.73 on spoken digits, columns 0.93: [results](../../benchmarks/RESULTS.md#pictures).)

# %%
settings = at_size(
    [],  # the recipe as it is
    [
        "stage.vision.images=digits",
        "stage.vision.patch_size=16",
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=16",
        "stage.vision.train.epochs=none",
        "stage.vision.train.steps=2",
        "stage.vision.train.warmup_steps=0",
        "stage.vision.train.evaluate_every=1",
    ],
)
run = quatrain.run("digits", settings, reporter=SilentReporter())
result = run.results[-1]
for name, scores in result["scores"].items():
    dumb = result["baselines"][name]["accuracy"]
    print(f"{name}: accuracy {scores['accuracy']:.3f} of {scores['count']:.0f}, most frequent class {dumb:.3f}")
print(*(note for note in result["notes"] if "logistic" in note), sep="\n")

# %%
classify = quatrain.pipeline("image-classification", "runs/digits/model")
sets = {
    name: held[: at_size(None, 5)]
    for name, held in load_pictures(at_size("digits + spoken-digits", "digits")).held_out.items()
}
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.9))
for ax, (name, held) in zip(axes, sets.items()):
    table = np.zeros((10, 10))
    for picture, found in zip(held, classify([each.source for each in held], top_k=1)):
        best = found[0] if isinstance(found, list) else found
        table[int(picture.label), int(best["label"])] += 1
    ax.imshow(table, cmap="Blues")
    ax.set(
        title=f"{name}: {np.trace(table) / table.sum():.0%} right",
        xlabel="said",
        ylabel="true",
        xticks=range(10),
        yticks=range(10),
    )
plt.show()

# %% [markdown]
# ## Where it looks
#
# **Attention rollout** ([Abnar & Zuidema 2020](https://arxiv.org/abs/2005.00928)) multiplies the attention of all layers, with the residual: how much of each patch reaches the class token.

# %%
model, processor = quatrain.load("runs/digits/model"), ImageProcessor.load("runs/digits/model")
drawn = []
for name, held in sets.items():
    for picture in held[:3]:
        pixels, rollout, _ = patch_maps(model, processor, picture.source)
        drawn += [over_picture(pixels, np.zeros_like(rollout), side=96), over_picture(pixels, rollout, side=96)]
figure, ax = plt.subplots(figsize=(8, 0.16 + 0.62 * len(drawn) / 6))
ax.imshow(side_by_side(drawn))
ax.set_title("Each picture, and where the class token gets it from (red)")
ax.set_axis_off()
plt.show()

# %% [markdown]
# ## Pictures and words
#
# CLIP ([Radford et al. 2021](https://arxiv.org/abs/2103.00020)) has two transformers, one for pictures and one for texts. Each picture of a batch must find its caption among all captions, and each caption its picture. Then
# any text is a class: no head, no labels. The pictures here are generated: eight colours, eight shapes, two sizes; a quarter of the pairs of colour and shape is never shown. Half of the training pictures have a colour without a name
# (*a small odd star*), so that colour and shape are not learned as one thing.

# %%
shapes.TRAIN, shapes.HELD = at_size((8000, 480), (24, 8))
more = at_size(
    ["stage.image-text.train.steps=1500"],  # the recipe has 9,000
    [
        "stage.image-text.images=shapes",
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=16",
        "stage.image-text.projection=8",
        "stage.image-text.patch_size=16",
        "stage.image-text.train.epochs=none",
        "stage.image-text.train.steps=2",
        "stage.image-text.train.warmup_steps=0",
        "stage.image-text.train.batch_tokens=8",
        "stage.image-text.train.evaluate_every=0",
    ],
)
clip = quatrain.run("clip-shapes", more, reporter=SilentReporter())
for name, scores in clip.results[-1]["scores"].items():
    print(
        f"{name}: {scores['accuracy']:.3f} of {scores['count']:.0f} find their caption among 144 (guessing: {1 / 144:.3f})"
    )

# %%
shown = [shapes.draw_picture((9, 9, number), shapes.PAIRS) for number in range(8)]
name_it = quatrain.pipeline("zero-shot-image-classification", "runs/clip-shapes/model")
captions = [picture.caption for picture in shown]
table = np.zeros((8, 8))
for row, picture in enumerate(shown):
    found = {each["label"]: each["score"] for each in name_it(picture.source, candidate_labels=captions)}
    table[row] = [found[caption] for caption in captions]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), width_ratios=(1, 7))
left.imshow(np.concatenate([picture.source for picture in shown]))
left.set(anchor="E")
left.set_axis_off()
right.imshow(table, cmap="Blues", aspect="auto", vmin=0, vmax=1)
right.set_xticks(range(8), captions, rotation=30, ha="right", fontsize=7)
right.set_yticks([])
right.set_title("Which caption does each picture find?")
plt.show()

# %% [markdown]
# Among these eight captions every picture finds its own. Among all 144 three in five do, and pairs of colour and shape that were never shown fare as well as those that were: the model has learned what the words mean, not which
# captions there are. Without the odd colours it had 0.50 on pairs never shown and 0.85 on the others after as many steps: what is red was never a star, so it took a red star for something else. The recipe's 9,000 steps
# reach 0.975 ([results](../../benchmarks/RESULTS.md#pictures)).
#
# ### Exercise 3
#
# Write CLIP's loss for vectors of length 1: pictures (B, D), captions (B, D), and the factor of the similarities.


# %%
def clip_loss(pictures, captions, factor):
    return None


draw = torch.Generator().manual_seed(0)
a, b = (torch.nn.functional.normalize(torch.randn(6, 4, generator=draw), dim=-1) for _ in range(2))
logits = 10 * a @ b.T
log_rows, log_columns = logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()
wanted = -(log_rows.mean() + log_columns.mean()) / 2
hint = "factor * pictures @ captions.T; the cross-entropy of the diagonal over rows, and over columns; their mean"
check(3, clip_loss(a, b, 10), wanted, hint=hint)


# %% tags=["solution"]
def clip_loss(pictures, captions, factor):
    logits = factor * pictures @ captions.T
    places = torch.arange(len(logits))
    return (torch.nn.functional.cross_entropy(logits, places) + torch.nn.functional.cross_entropy(logits.T, places)) / 2


check(3, clip_loss(a, b, 10), wanted, hint=hint)

# %% [markdown]
# ## At size
#
# In another folder, since the short runs of this lab have the same names:
#
# <!-- not run: downloads a model: google/, openai/ -->
# ```sh
# quatrain run digits                                           # written and spoken digits: this lab's model, a minute
# quatrain run spoken-digits                                    # a small Whisper: from sound to text, 99 % of the digits
# quatrain run clip-shapes                                      # 9,000 steps: eight minutes
# quatrain run images stage.vision.images=FOLDER                # your own: a subfolder of pictures for each class
# quatrain predict google/vit-base-patch16-224 picture.png
# quatrain predict openai/whisper-tiny.en speech.wav --timestamps words
# quatrain predict openai/clip-vit-base-patch32 picture.png --candidate-labels "a cat,a dog"
# ```
#
# The last three are large models behind the same verbs: ViT has seen 14 million pictures, Whisper 680,000 hours of speech, CLIP 400 million pairs. [Pictures](../vision.md), [sound](../audio.md), and
# [the results](../../benchmarks/RESULTS.md#pictures).
