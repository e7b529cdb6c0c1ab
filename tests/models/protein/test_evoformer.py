"""The EvoFormer equals its published algorithms, written out in loops, and has their shapes and counts."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.io import model_folder
from quatrain.models.protein.evoformer import Evoformer, EvoformerBlock, EvoformerConfig

SIZES = {"vocab_size": 20, "hidden_size": 12, "pair_size": 10, "num_hidden_layers": 2, "msa_heads": 3,
         "pair_heads": 2, "head_size": 4, "outer_size": 3, "triangle_size": 5, "expansion": 2, "recycles": 2,
         "max_length": 16}  # fmt: skip


def model(**changes):
    """A model whose weights are all drawn, so that every part matters."""
    made = Evoformer(EvoformerConfig(**SIZES | changes)).initialize(0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def alignment(rows=3, length=6, batch=2):
    return torch.randint(0, 20, (batch, rows, length), generator=torch.Generator().manual_seed(2))


# The algorithms of the supplementary information of Jumper et al. 2021, one entry at a time.


def attention(part, entries, biases):
    """Lines 2 to 7 of algorithm 7: each of N entries attends to all of them; biases[h][n][m] are added."""
    size, found = part.q_proj.weight.shape[0] // part.heads, []
    for n, own in enumerate(entries):
        gate, heads = torch.sigmoid(part.gate_proj(own)), []
        for h in range(part.heads):
            cut = slice(h * size, (h + 1) * size)
            query = (part.q_proj.weight[cut] @ own) / math.sqrt(size)
            scores = torch.stack([query @ (part.k_proj.weight[cut] @ other) + biases[h][n][m]
                                  for m, other in enumerate(entries)])  # fmt: skip
            weights = scores.softmax(0)
            heads.append(sum(weights[m] * (part.v_proj.weight[cut] @ other) for m, other in enumerate(entries)))
        found.append(part.o_proj(gate * torch.cat(heads)))
    return torch.stack(found)


def none(heads, count):
    return torch.zeros(heads, count, count)


def row_attention(part, msa, pair):  # algorithm 7
    length, x = msa.shape[1], part.norm(msa)
    bias = torch.stack([torch.stack([part.bias_proj(part.pair_norm(pair[i, j])) for j in range(length)])
                        for i in range(length)]).permute(2, 0, 1)  # fmt: skip
    return torch.stack([attention(part.attention, row, bias) for row in x])


def column_attention(part, msa):  # algorithm 8
    x = part.norm(msa)
    columns = [attention(part.attention, x[:, i], none(part.attention.heads, len(msa))) for i in range(msa.shape[1])]
    return torch.stack(columns, dim=1)


def transition(part, x):  # algorithms 9 and 15
    return part.down_proj(F.relu(part.up_proj(part.norm(x))))


def outer_product_mean(part, msa):  # algorithm 10
    x, length = part.norm(msa), msa.shape[1]
    rows = []
    for i in range(length):
        row = []
        for j in range(length):
            outer = sum(torch.outer(part.left_proj(s[i]), part.right_proj(s[j])) for s in x) / len(x)
            row.append(part.o_proj(outer.flatten()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def triangle_update(part, pair, outgoing):  # algorithms 11 and 12
    x, length = part.norm(pair), len(pair)
    left = torch.sigmoid(part.left_gate(x)) * part.left_proj(x)
    right = torch.sigmoid(part.right_gate(x)) * part.right_proj(x)
    rows = []
    for i in range(length):
        row = []
        for j in range(length):
            total = sum(left[i, k] * right[j, k] if outgoing else left[k, i] * right[k, j] for k in range(length))
            row.append(torch.sigmoid(part.gate_proj(x[i, j])) * part.o_proj(part.inner_norm(total)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def triangle_attention(part, pair, starting):  # algorithms 13 and 14
    x, length, heads = part.norm(pair), len(pair), part.attention.heads
    found = torch.empty_like(pair)
    for fixed in range(length):
        biases = torch.empty(heads, length, length)
        for n in range(length):
            for m in range(length):
                # The third edge: from j to k where i is fixed; from k to i where j is.
                biases[:, n, m] = part.bias_proj(x[n, m] if starting else x[m, n])
        if starting:
            found[fixed] = attention(part.attention, x[fixed], biases)
        else:
            found[:, fixed] = attention(part.attention, x[:, fixed], biases)
    return found


def block_in_loops(block, msa, pair):  # algorithm 6
    msa = msa + row_attention(block.row_attention, msa, pair)
    msa = msa + column_attention(block.column_attention, msa)
    msa = msa + transition(block.msa_transition, msa)
    pair = pair + outer_product_mean(block.outer_product_mean, msa)
    pair = pair + triangle_update(block.outgoing, pair, True)
    pair = pair + triangle_update(block.incoming, pair, False)
    pair = pair + triangle_attention(block.starting, pair, True)
    pair = pair + triangle_attention(block.ending, pair, False)
    return msa, pair + transition(block.pair_transition, pair)


def in_loops(made, ids):
    """Contact logits of one alignment (S, L), with recycling."""
    length, target = ids.shape[1], ids[0]
    first_msa = torch.stack([torch.stack([made.embed_msa(row[i]) + made.embed_target(target[i]) for i in range(length)])
                             for row in ids])  # fmt: skip
    first_pair = torch.empty(length, length, made.config.pair_size)
    for i in range(length):
        for j in range(length):
            distance = torch.tensor(min(max(j - i, -32), 32) + 32)
            first_pair[i, j] = made.embed_left(target[i]) + made.embed_right(target[j]) + made.embed_distance(distance)
    msa, pair = torch.zeros_like(first_msa), torch.zeros_like(first_pair)
    for _ in range(made.config.recycles + 1):
        recycled = first_msa.clone()
        recycled[0] += made.recycled_msa_norm(msa[0])
        msa, pair = recycled, first_pair + made.recycled_pair_norm(pair)
        for block in made.blocks:
            msa, pair = block_in_loops(block, msa, pair)
    pair = made.contact_norm(pair)
    return torch.stack([torch.stack([made.contact_proj(pair[i, j] + pair[j, i])[0] for j in range(length)])
                        for i in range(length)])  # fmt: skip


@torch.no_grad()
def test_contacts_are_those_of_the_algorithms_in_loops():
    made, ids = model(), alignment()
    logits, loss = made(ids)
    assert loss is None and logits.shape == (2, 6, 6)
    torch.testing.assert_close(logits[0], in_loops(made, ids[0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, logits.transpose(1, 2))
    torch.testing.assert_close(made(ids[1:])[0], logits[1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_block_is_that_of_the_loops_to_1e_5():
    block = model().blocks[0]
    msa, pair = torch.randn(2, 3, 5, 12, generator=torch.Generator().manual_seed(3)), torch.randn(2, 5, 5, 10)
    for part, expected in zip(block(msa, pair), block_in_loops(block, msa[1], pair[1]), strict=True):
        torch.testing.assert_close(part[1], expected, atol=1e-5, rtol=1e-5)


PUBLISHED = {
    "row_attention": 329_984, "column_attention": 328_704, "msa_transition": 526_080, "outer_product_mean": 148_160,
    "outgoing": 99_584, "incoming": 99_584, "starting": 82_944, "ending": 82_944, "pair_transition": 131_968,
}  # fmt: skip
"""Weights of each part with c_m = 256, c_z = 128, 8 and 4 heads of 32, outer products of 32 and transitions of 4."""


def test_sizes_are_those_of_alphafold_2():
    config = EvoformerConfig()
    with torch.device("meta"):
        block = EvoformerBlock(config)
        made = Evoformer(config)
    counted = {name: sum(p.numel() for p in getattr(block, name).parameters()) for name in PUBLISHED}
    assert counted == PUBLISHED
    assert sum(p.numel() for p in block.parameters()) == sum(PUBLISHED.values()) == 1_829_952
    assert sum(p.numel() for p in made.blocks.parameters()) == 48 * 1_829_952 == 87_837_696
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters()}
    assert shapes["row_attention.bias_proj.weight"] == (8, 128)
    assert shapes["outer_product_mean.o_proj.weight"] == (128, 1024)
    assert shapes["starting.attention.q_proj.weight"] == (128, 128)
    assert shapes["outgoing.left_proj.weight"] == (128, 128)


def test_only_the_last_pass_has_gradients_and_training_draws_their_number():
    made = model().train()
    ids = alignment()
    calls = []
    for block in made.blocks:
        block.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    torch.manual_seed(0)
    counts = set()
    for _ in range(12):
        calls.clear()
        made(ids)
        assert calls[-2:] == [True, True] and not any(calls[:-2])
        counts.add(len(calls) // 2)
    assert counts == {1, 2, 3}


def test_the_loss_leaves_out_pairs_without_a_label():
    made, ids = model(), alignment(batch=1)
    labels = torch.randint(0, 2, (1, 6, 6))
    labels[0, 0] = -100
    logits, loss = made(ids, labels)
    expected = F.binary_cross_entropy_with_logits(logits[0, 1:], labels[0, 1:].float(), reduction="none")
    torch.testing.assert_close(loss[0, 1:], expected)
    assert not loss[0, 0].any()


def test_fresh_weights_follow_the_seed_and_blocks_begin_as_the_identity():
    fresh = [Evoformer(EvoformerConfig(**SIZES)).initialize(seed) for seed in (5, 5, 6)]
    states = [made.state_dict() for made in fresh]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["embed_msa.weight"], states[2]["embed_msa.weight"])
    msa, pair = torch.randn(1, 3, 5, 12), torch.randn(1, 5, 5, 10)
    after = fresh[0].eval().blocks[0](msa, pair)
    torch.testing.assert_close(after[0], msa)
    torch.testing.assert_close(after[1], pair)


def test_folders_give_the_model_back(tmp_path):
    made, ids = model(), alignment()
    model_folder.save(made, tmp_path)
    back = model_folder.load(tmp_path)
    assert isinstance(back, Evoformer) and back.config == made.config
    assert torch.equal(made.contacts(ids), back.contacts(ids))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.full((1, 2, 4), 20), "outside the vocabulary of 20"),
        (torch.zeros(1, 2, 17, dtype=torch.long), "at most 16 residues"),
        (torch.zeros(2, 4, dtype=torch.long), "must be (batch, sequences, residues)"),
    ],
)
def test_wrong_alignments_are_refused(ids, words):
    with pytest.raises(InputError) as error:
        model()(ids)
    assert words in str(error.value)


def test_dropout_has_one_mask_for_a_row():
    made = model(dropout=0.5).train()
    x = torch.ones(1, 4, 5, 6)
    torch.manual_seed(0)
    dropped = made.blocks[0]._drop(x, 1)
    assert (dropped == dropped[:, :1]).all() and 0 < int((dropped == 0).sum()) < x.numel()
    assert isinstance(made.blocks[0].row_attention.norm, nn.LayerNorm) and np.isfinite(dropped.numpy()).all()
