# ---
# jupyter:
#   quatrain:
#     data: ["names"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 10: RLHF: reward models, PPO, GRPO, DPO, and how a reward is hacked
#
# **You learn** to turn comparisons by people into a reward model; to train a policy against it with GRPO and PPO; to do without it, with DPO; and to see the reward rise while what
# people wanted falls, and how to notice. Before this: [GPT-2 from scratch](04-gpt2.md).
#
# The model is small so that every step runs in seconds: it invents given names, letter by letter. People like soft names: that is what we want it to learn.

# %%
import copy
import math
import random

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from quatrain.core.labs import at_size, check
from quatrain.data.documents import read_documents
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model

names = "".join(read_documents("names")).split()
LETTERS, LENGTH = ".abcdefghijklmnopqrstuvwxyz", 12  # "." begins and ends a name
names = [name for name in names if len(name) < LENGTH - 1]
rows = torch.tensor([[0] + [LETTERS.index(c) for c in name] + [0] * (LENGTH - len(name)) for name in names])
print(len(names), "names:", ", ".join(names[:8]))

# %% [markdown]
# ## The base: it learns to speak
#
# As any language model, it learns the next letter.


# %%
def inside(ids):
    """True (B, T - 1) for the letters of each name and the first end after them."""
    ended = (ids[:, 1:] == 0).cumsum(1)
    return (ended == 0) | ((ended == 1) & (ids[:, 1:] == 0))


def logprobs(model, ids):
    """The log-probability (B, T - 1) of each letter, 0 after the end."""
    scores = model(ids[:, :-1])[0].log_softmax(-1)
    return scores.gather(-1, ids[:, 1:, None])[..., 0] * inside(ids)


torch.manual_seed(0)
config = ModelConfig(family="llama", vocab_size=27, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=16)  # fmt: skip
base = Model(config).initialize(seed=0)
optimizer = torch.optim.AdamW(base.parameters(), lr=3e-3)
for step in range(at_size(500, 2)):
    batch = rows[torch.randint(len(rows), (128,))]
    loss = -logprobs(base, batch).sum() / inside(batch).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def sample(model, count, generator):
    """`count` names of the policy as ids (count, LENGTH + 1)."""
    ids = torch.zeros(count, 1, dtype=torch.long)
    for _ in range(LENGTH):
        p = model(ids)[0][:, -1].softmax(-1)
        following = torch.multinomial(p, 1, generator=generator)
        following[(ids[:, 1:] == 0).any(1)] = 0
        ids = torch.cat((ids, following), dim=1)
    return ids


def text(ids):
    return ["".join(LETTERS[letter] for letter in row[1:]).split(".")[0] for row in ids.tolist()]


random_names = torch.Generator().manual_seed(0)
print(f"loss {loss.item():.2f} nats a letter:", ", ".join(text(sample(base, 10, random_names))))

# %% [markdown]
# ## What people want
#
# Nobody can write down a taste; people can compare. Our people are a function that the model never sees: soft letters please them, repetitions do not, nor names that are far from six letters.


# %%
def taste(name):
    """How much people like a name: hidden from the model, used only to compare and to measure."""
    soft = sum(letter in "aeilmn" for letter in name) / max(1, len(name))
    repeats = sum(name[at : at + 2] == name[at + 2 : at + 4] for at in range(len(name) - 3))
    repeats += sum(name[at] == name[at + 1] == name[at + 2] for at in range(len(name) - 2))
    return 4 * soft - 2 * repeats - abs(len(name) - 6) / 3


for name in ("elina", "bryx", "lalalala", "jo"):
    print(f"{name:10} {taste(name):.2f}")

# %% [markdown]
# They see two names of the model and choose one. The **Bradley-Terry** model says how likely:
#
# $$P(a \succ b) = \sigma(r(a) - r(b))$$
#
# ### Exercise 1
#
# The rewards of two answers are 1.2 and 0.2. How likely is the first one chosen? And what does the reward model's loss, $-\log \sigma(r_\text{chosen} - r_\text{rejected})$, come to if it gives both the same?

# %%
chosen_first, loss_if_equal = None, None
check(
    1,
    chosen_first and [chosen_first, loss_if_equal],
    [1 / (1 + math.exp(-1)), math.log(2)],
    tolerance=1e-3,
    hint="σ(1); -log σ(0)",
)

# %% tags=["solution"]
chosen_first, loss_if_equal = 1 / (1 + math.exp(-(1.2 - 0.2))), -math.log(0.5)
check(1, [chosen_first, loss_if_equal], [1 / (1 + math.exp(-1)), math.log(2)], tolerance=1e-3, hint="σ(1); -log σ(0)")

# %%
draw, generator = random.Random(0), torch.Generator().manual_seed(1)
first, second = (sample(base, at_size(1500, 64), generator) for _ in range(2))
pairs = []  # (chosen, rejected)
for a, b, one, other in zip(first, second, text(first), text(second)):
    prefers_first = draw.random() < 1 / (1 + math.exp(-2 * (taste(one) - taste(other))))
    pairs.append((a, b) if prefers_first else (b, a))
chosen, rejected = (torch.stack(each) for each in zip(*pairs))
print(len(pairs), "comparisons, such as", text(chosen[:1])[0], "before", text(rejected[:1])[0])

# %% [markdown]
# ## The reward model
#
# It sees how often each letter occurs, and learns from the comparisons alone. (A large reward model is a transformer with one output; the loss is this one.)


# %%
class RewardModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(27, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, ids):
        counts = (F.one_hot(ids[:, 1:], 27) * inside(ids)[..., None]).sum(1).float()
        return self.network(counts)[:, 0]


torch.manual_seed(0)
judge = RewardModel()
optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-2, weight_decay=0.01)
cut = int(0.8 * len(pairs))
for step in range(at_size(300, 5)):
    at = torch.randint(cut, (128,))
    loss = -F.logsigmoid(judge(chosen[at]) - judge(rejected[at])).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    margins = judge(chosen[cut:]) - judge(rejected[cut:])
    accuracy = float((margins > 0).float().mean())
print(f"agrees with {accuracy:.0%} of comparisons that it has not seen (a coin with 50 %)")

# %%
with torch.no_grad():
    good, bad = judge(chosen[cut:]), judge(rejected[cut:])
figure, ax = plt.subplots(figsize=(5, 2.1))
edges = np.linspace(float(min(good.min(), bad.min())), float(max(good.max(), bad.max())), 30)
ax.hist(bad.numpy(), edges, color="#e08a1e", alpha=0.6, label="rejected")
ax.hist(good.numpy(), edges, color="#2f6fbf", alpha=0.6, label="chosen")
ax.set(title="Rewards of held-out names", xlabel="reward", yticks=[])
ax.legend()
plt.show()

# %% [markdown]
# ## GRPO
#
# The policy writes a group of names; each is as good as its reward is above the others' ([Shao et al. 2024](https://arxiv.org/abs/2402.03300)):
#
# $$A_i = \frac{r_i - \operatorname{mean}(r)}{\operatorname{std}(r)}, \qquad
# \mathcal L = -\min\big(\rho A,\ \operatorname{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A\big) + \beta\, \mathrm{KL}(\pi \,\|\, \pi_\text{base})$$
#
# with $\rho$ the ratio of a letter's probability now and when it was drawn. The KL term holds the policy near the base.
#
# ### Exercise 2
#
# Write the advantages of one group (with the unbiased standard deviation, `torch.std`).


# %%
def advantages_of(rewards):
    return None


from quatrain.alignment.grpo import group_advantages
from quatrain.alignment.variants import PolicyVariant

example = torch.tensor([1.0, 2.0, 4.0, 5.0])
library = group_advantages(example, torch.zeros(4, dtype=torch.long), PolicyVariant()).values
check(2, advantages_of(example), library, tolerance=1e-3, hint="(rewards - rewards.mean()) / rewards.std()")


# %% tags=["solution"]
def advantages_of(rewards):
    return (rewards - rewards.mean()) / rewards.std()


check(2, advantages_of(example), library, tolerance=1e-3, hint="(rewards - rewards.mean()) / rewards.std()")


# %%
def reinforce(beta, steps=at_size(120, 2), group=96, value_head=False):
    """Trains a copy of the base against the judge; gives it and a curve of (reward, taste, KL to the base)."""
    policy, generator, curve = copy.deepcopy(base), torch.Generator().manual_seed(2), []
    head = nn.Linear(64, 1)
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW([*policy.parameters(), *head.parameters()], lr=1e-3)
    for step in range(steps):
        ids = sample(policy, group, generator)
        mask = inside(ids)
        with torch.no_grad():
            rewards, old, reference = judge(ids), logprobs(policy, ids), logprobs(base, ids)
            kl = ((old - reference) * mask).sum(1)
            if value_head:  # PPO, which comes below: an advantage for each letter
                advantages = ppo_advantages(
                    rewards, old - reference, mask, head(policy.hidden_states(ids[:, :-1]))[..., 0], beta
                )
            else:
                advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-4))[:, None].expand_as(old)
        curve.append((float(rewards.mean()), float(np.mean([taste(name) for name in text(ids)])), float(kl.mean())))
        for _ in range(2):  # two steps on the same names: the ratio and its clip matter from the second on
            now = logprobs(policy, ids)
            ratio = (now - old).exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            away = (reference - now).exp() - 1 - (reference - now)  # k3: an estimate of KL that is never negative
            penalty = 0.0 if value_head else beta * away
            loss = -((gain - penalty) * mask).sum() / mask.sum()
            if value_head:
                # The value head shall predict the reward that a name ends with.
                wrong = head(policy.hidden_states(ids[:, :-1]))[..., 0] - rewards[:, None]
                loss = loss + 0.1 * (wrong.pow(2) * mask).sum() / mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return policy, curve


runs = {}
for beta in (0.0, 0.15):
    policy, curve = reinforce(beta)
    runs[f"GRPO, β = {beta:g}"] = curve
    shown = text(sample(policy, 8, torch.Generator().manual_seed(5)))
    print(
        f"β = {beta:<5} reward {curve[-1][0]:5.2f}   taste {curve[-1][1]:5.2f}   KL {curve[-1][2]:5.1f}   {', '.join(shown)}"
    )
print(f"the base:  reward {runs['GRPO, β = 0'][0][0]:5.2f}   taste {runs['GRPO, β = 0'][0][1]:5.2f}")

# %% [markdown]
# ## The hack, and the alarm
#
# Without the KL term the policy finds what the judge cannot see: it counts letters, so a repetition costs nothing there. No one showed it names like these, and its judgement of them is worthless. The reward goes on rising;
# people turn away.

# %%
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.3))
for place, title in enumerate(("Reward, by the judge", "Taste, by people", "KL to the base, nats a name")):
    for (name, curve), color in zip(runs.items(), ("#e08a1e", "#2f6fbf")):
        axes[place].plot([point[place] for point in curve], color=color, label=name)
    axes[place].set(title=title, xlabel="step")
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# ### Exercise 3
#
# Write the alarm: the first step at which the mean reward of the last 10 steps is above that of the 10 before, while the taste of the last 10 is below its best mean of 10 so far (from the first 10 on) by more than 5 % of its magnitude.
# Return the number of steps seen by then, or -1.
# (In a project, *taste* is a metric that costs too much to train on: a held-out judge, a test, a person.)


# %%
def alarm(rewards, tastes):
    """The number of steps seen when the alarm is raised; -1 for never."""
    return None


def reference_alarm(rewards, tastes):
    means = [[np.mean(values[end - 10 : end]) for end in range(10, len(rewards) + 1)] for values in (rewards, tastes)]
    for end in range(20, len(rewards) + 1):
        now, before = means[0][end - 10], means[0][end - 20]
        liked, best = means[1][end - 10], max(means[1][: end - 9])
        if now > before and liked < best - 0.05 * abs(best):
            return end
    return -1


hacked = [[point[place] for point in runs["GRPO, β = 0"]] for place in (0, 1)]
rising = [list(range(40)), [0.0] * 10 + [2.0] * 15 + [1.0] * 15]
hint = "for each end from 20: means of [end-20:end-10] and [end-10:end]; the best taste mean begins with that of [0:10]"
answers = alarm(*rising) and [alarm(*rising), alarm(*hacked)]
check(3, answers, [reference_alarm(*rising), reference_alarm(*hacked)], tolerance=0, hint=hint)


# %% tags=["solution"]
def alarm(rewards, tastes):
    best = -math.inf
    for end in range(10, len(rewards) + 1):
        liked = np.mean(tastes[end - 10 : end])
        best = max(best, liked)
        rises = end >= 20 and np.mean(rewards[end - 10 : end]) > np.mean(rewards[end - 20 : end - 10])
        if rises and liked < best - 0.05 * abs(best):
            return end
    return -1


check(3, [alarm(*rising), alarm(*hacked)], [reference_alarm(*rising), reference_alarm(*hacked)], tolerance=0, hint=hint)
print("raised after step", alarm(*hacked))

# %% [markdown]
# Quatrain raises it in every run of PPO and GRPO: `reward_hacking`, and drifts of length, repetition and endings ([online](../online.md)).
#
# ## PPO
#
# PPO ([Schulman et al. 2017](https://arxiv.org/abs/1707.06347)) has a **value head** that predicts the reward from each position; the advantage of a letter is how much better it went than predicted. The KL penalty is part of the reward of each letter.
# Generalized advantage estimation mixes short and long looks ahead:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \sum_k (\gamma \lambda)^k\, \delta_{t+k}$$
#
# ### Exercise 4
#
# A text of two tokens: rewards 0 and 1, values 0.5 and 0.2, $\gamma = 1$, $\lambda = 0.95$. What are the two advantages?

# %%
from quatrain.alignment.advantages import gae

first_advantage, second_advantage = None, None
both = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.2]]), torch.ones(1, 2, dtype=torch.bool))[0]
check(
    4,
    first_advantage and [first_advantage, second_advantage],
    both,
    tolerance=1e-3,
    hint="δ2 = 1 - 0.2; δ1 = 0 + 0.2 - 0.5; A1 = δ1 + 0.95 δ2",
)

# %% tags=["solution"]
second_advantage = 1 - 0.2
first_advantage = (0 + 0.2 - 0.5) + 0.95 * second_advantage
check(4, [first_advantage, second_advantage], both, tolerance=1e-3, hint="A1 = δ1 + 0.95 δ2")


# %%
def ppo_advantages(rewards, log_ratios, mask, values, beta):
    """GAE of the reward at the end and the KL penalty of each letter, brought to mean 0 and deviation 1."""
    letters = -beta * log_ratios * mask
    last = mask.sum(1) - 1
    letters[torch.arange(len(rewards)), last] += rewards
    found = gae(letters, values, mask).float()
    inside_only = found[mask]
    return (found - inside_only.mean()) / (inside_only.std() + 1e-4) * mask


policy, curve = reinforce(0.15, value_head=True)
runs["PPO, β = 0.15"] = curve
print(
    f"PPO: reward {curve[-1][0]:.2f}, taste {curve[-1][1]:.2f}, KL {curve[-1][2]:.1f}: {', '.join(text(sample(policy, 8, torch.Generator().manual_seed(5))))}"
)

# %% [markdown]
# ## DPO: without a reward model
#
# The best policy for a reward with a KL penalty has a closed form; put into Bradley-Terry, the reward disappears ([Rafailov et al. 2023](https://arxiv.org/abs/2305.18290)):
#
# $$\mathcal L = -\log \sigma\left(\beta \log \frac{\pi(y_c)}{\pi_\text{base}(y_c)} - \beta \log \frac{\pi(y_r)}{\pi_\text{base}(y_r)}\right)$$
#
# Its first value is ln 2: the policy is the base.

# %%
policy, beta = copy.deepcopy(base), 0.3
optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4)
with torch.no_grad():
    base_chosen, base_rejected = (logprobs(base, each).sum(1) for each in (chosen, rejected))
losses = []
torch.manual_seed(0)
for step in range(at_size(150, 2)):
    at = torch.randint(len(pairs), (128,))
    margin = (logprobs(policy, chosen[at]).sum(1) - base_chosen[at]) - (
        logprobs(policy, rejected[at]).sum(1) - base_rejected[at]
    )
    loss = -F.logsigmoid(beta * margin).mean()
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert abs(losses[0] - math.log(2)) < 1e-4
written = sample(policy, 400, torch.Generator().manual_seed(6))
with torch.no_grad():
    distance = float((logprobs(policy, written) - logprobs(base, written)).sum(1).mean())
liked = float(np.mean([taste(name) for name in text(written)]))
print(
    f"DPO: loss {losses[0]:.4f} -> {np.mean(losses[-20:]):.2f}, taste {liked:.2f}, KL {distance:.1f}: {', '.join(text(written[:8]))}"
)

# %%
summary = {
    "base": runs["GRPO, β = 0"][0][1],
    **{name: float(np.mean([p[1] for p in curve[-10:]])) for name, curve in runs.items()},
    "DPO, β = 0.3": liked,
}
figure, ax = plt.subplots(figsize=(5, 1.9))
bars = ax.barh(list(summary), list(summary.values()), color=["#c8ccd2", "#e08a1e", "#2f6fbf", "#2f6fbf", "#7aa6d8"])
ax.bar_label(bars, [f" {value:.2f}" for value in summary.values()])
ax.invert_yaxis()
ax.set(title="How much people like the names at the end", xlim=(-6, 6))
plt.show()

# %% [markdown]
# ## At size
#
# ```sh
# quatrain run reward                    # a reward model from comparisons, with its calibration
# quatrain run rlhf                      # pre-training, finetuning, reward model and PPO in one recipe
# quatrain run dpo                       # DPO from pairs of answers, over a small Llama that follows instructions
# quatrain run arithmetic-grpo           # GRPO with a reward that is computed: is the sum right?
# quatrain run sentiment-ppo             # PPO against a judge of film reviews
# ```
#
# For a larger policy the recipe gets `model.folder=` and LoRA in the stage; the reference is then the same model with its adapter switched off, and costs no memory. [Align with preferences](../alignment.md),
# [learn from rewards](../online.md), [rewards](../rewards.md).
