"""One decoding step of a transformer in one native call: what `quatrain.models.kernels.decode` runs.

Numba compiles `take_part` for the processor that it runs on. Several threads take part in a step: it is a sequence of
phases, each cut into pieces that the threads claim from a counter. A phase ends once all of its pieces are done, so
that a thread that is late, or asleep, delays nobody: the others do its share. Claims carry the number of the step,
and a thread that was interrupted during an older step finds that it can claim nothing more and leaves.

Everything is passed as addresses (int64) in tables of int64, whose columns are named here. Activations between the
phases are float32. Before each product the inputs are rounded to what the weight's format multiplies: nothing for
float32 and float16 weights, bfloat16 for bfloat16 ones, 8 bits with a scale for each 32 inputs for integer ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from numba import cfunc, float32, int64, njit, types

from quatrain.models.kernels import code_cache, vectors
from quatrain.models.kernels.vectors import (
    WIDE,
    WIDE_INT4,
    add_in_place,
    affine,
    atomic_add,
    atomic_load,
    atomic_store,
    atomic_swap,
    bits_to_float32,
    encode_int4,
    encode_int8,
    exponentials,
    floor_float32,
    largest_float32,
    load_bfloat16,
    load_float16,
    load_float32,
    load_int64,
    mix_bfloat16,
    mix_float16,
    mix_float32,
    multiply_in_place,
    pause,
    scores_bfloat16,
    scores_float16,
    scores_float32,
    squares,
    store_bfloat16,
    store_float16,
    store_float32,
    store_int64,
    sum_float32,
)

FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, INT4_SMALL_GROUPS = range(6)
# A matrix.
M_ADDRESS, M_FORMAT, M_ROWS, M_COLUMNS, M_ROW_BYTES, M_SCALE, M_SCALE_ROW, M_GROUP, M_BIAS, M_SIZE = range(10)
# A layer: matrices, norms (weight and bias in float32, 0 for none), and what differs between layers.
(
    L_QUERY, L_KEY, L_VALUE, L_OUT, L_GATE, L_UP, L_DOWN,
    L_NORM, L_NORM_BIAS, L_MLP_NORM, L_MLP_NORM_BIAS, L_OUT_NORM, L_OUT_NORM_BIAS, L_DOWN_NORM, L_DOWN_NORM_BIAS,
    L_QUERY_NORM, L_QUERY_NORM_BIAS, L_KEY_NORM, L_KEY_NORM_BIAS,
    L_WINDOW, L_COS, L_SIN, L_SCALE, L_SINKS,
    L_EXPERTS, L_ROUTER, L_ROUTER_BIAS, L_SHARED_GATE, L_EXPERT_FORMATS, L_QUERY_B, L_EXPAND, L_SIZE,
) = range(32)  # fmt: skip
# With latent attention L_QUERY gives the queries or, where L_QUERY_B is a matrix, the vector that it projects to them;
# L_KEY gives the latent vector and the key to be rotated; L_EXPAND is what would project the vector to keys and values.
# The matrices of an expert, of which L_EXPERTS has one after the other; the shared expert is the last.
E_GATE, E_UP, E_DOWN, E_SIZE = range(4)
# The model.
(
    G_LAYERS, G_NUM_LAYERS, G_HIDDEN, G_INNER, G_HEADS, G_KV_HEADS, G_HEAD_DIM, G_ROTARY_DIM, G_VOCAB,
    G_LAYER_NORM, G_RESIDUAL, G_ACTIVATION, G_HEAD, G_NORM, G_NORM_BIAS, G_EMBEDDING, G_EMBEDDING_FORMAT,
    G_POSITIONS, G_POSITION_OFFSET, G_EMBEDDING_NORM, G_EMBEDDING_NORM_BIAS, G_ALIBI, G_LOGITS_BIAS, G_FLOATS,
    G_X, G_NORMED, G_MIXED_OUT, G_DOWN_OUT, G_X_STRIDE, G_QKV, G_QKV_STRIDE, G_MIXED, G_MIXED_STRIDE,
    G_WIDE, G_UP, G_WIDE_STRIDE, G_BF16, G_BF16_STRIDE, G_INT8, G_INT8_STRIDE, G_INT4, G_INT4_STRIDE,
    G_THREADS, G_SCRATCH, G_SCRATCH_STRIDE, G_NORMS_WHOLE, G_ROTARY_LAYOUT,
    G_EXPERTS, G_CHOSEN, G_SHARED, G_ROUTER, G_RENORMALIZE, G_GROUPS, G_GROUPS_CHOSEN, G_EXPERT_INNER,
    G_EXPERT_ACTIVATION, G_ROUTES, G_ROUTES_STRIDE, G_PLACES, G_USED, G_GATHERED, G_EXPERT_WIDE, G_EXPERT_UP,
    G_EXPERT_STRIDE, G_EXPERT_OUT, G_PROJECTED, G_MIX_DIM, G_LATENT, G_PLAIN_DIM, G_QUERY_RANK, G_QUERY_VECTOR,
    G_QUERY_VECTOR_STRIDE, G_QUERIES, G_SIZE,
) = range(74)  # fmt: skip
(
    F_EPS, F_EMBEDDING_SCALE, F_SOFTCAP, F_LOGIT_SCALE, F_LOGIT_SOFTCAP, F_RESIDUAL_SCALE, F_ROUTER_SCALE, F_CLAMP,
    F_LATENT_EPS,
) = range(9)  # fmt: skip
# A step.
(
    S_MODEL, S_ROWS, S_TOKENS, S_PLACES, S_POSITIONS, S_SLOTS, S_STARTS, S_ONE_EACH, S_KEYS, S_VALUES, S_ROOMS,
    S_CACHE_FORMAT, S_LOGITS, S_HEAD_COUNT, S_HEAD_ROWS, S_SUMMARY, S_SIZE,
) = range(17)  # fmt: skip
# Control: the number of the step that runs, where its table is, whether threads are to leave; then for each phase, 64
# bytes apart, the claims and the pieces done.
C_STEP, C_TABLE, C_INSIDE, C_PHASES = 0, 8, 16, 24
PHASE_SPACING = 16
MAX_PHASES = 1 << 15
SEQUENTIAL, PARALLEL, PARALLEL_SHARED = range(3)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "tanh", "relu_squared")
CLAMPED = 8
"""The activation of GPT-OSS's experts, which changes gate and up."""
ROTARY_LAYOUTS = ("halves", "interleaved", "swapped")
ROUTERS = ("softmax", "softmax_of_chosen", "sigmoid")
MAX_ROWS = 64
"""The most tokens of one step."""
TOGETHER = 32
"""Rows of activations that are multiplied with a piece of a weight before the next ones."""
PIECE = 8
"""What the rows of a piece of a matrix are a multiple of."""
PIECES = 6
"""Pieces of a matrix for each thread, at most."""
SUMMARY = 3
"""float32 that summarize a row's logits in a piece: the largest, its place, and the sum of e^(x - largest)."""
SPINS = 4096
"""Rounds that a thread waits for another before it lets the system run something else."""

# No "nnan" or "ninf": a model whose logits are not finite has to be recognized.
FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": FAST, "boundscheck": False}
_inline = njit(**_OPTIONS)


def _compiled(returns: Any, parameters: int) -> Callable[[Any], Any]:
    """Compiles a function of int64 parameters now, or takes the code from the cache of an earlier process."""
    signature = returns(*[types.int64] * parameters)

    def compiled(function: Any) -> Any:
        function.__qualname__ = f"{function.__name__}_{code_cache.fingerprint()}"
        try:
            return njit(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError:  # There is no place for a cache.
            return njit(signature, **_OPTIONS)(function)

    return compiled


_OUTLINED: list[Any] = []
"""The code that `_outlined` has compiled, which has to stay."""


def _outlined(parameters: int) -> Callable[[Any], Any]:
    """Compiles a function of int64 parameters by itself, to be called by address: LLVM would copy it to every call."""
    signature = types.void(*[types.int64] * parameters)

    def outlined(function: Any) -> Any:
        function.__qualname__ = f"{function.__name__}_{code_cache.fingerprint()}"
        try:
            code = cfunc(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError:  # There is no place for a cache.
            code = cfunc(signature, **_OPTIONS)(function)
        _OUTLINED.append(code)
        name = f"quatrain{function.__qualname__}"
        llvm.add_symbol(name, code.address)
        return types.ExternalFunction(name, signature)

    return outlined


product_float32, product_float32_wide, product_float32_1 = (
    vectors.PRODUCTS[FLOAT32, 4, 1], vectors.PRODUCTS[FLOAT32, WIDE[0], WIDE[1]], vectors.PRODUCTS[FLOAT32, 1, 1]
)  # fmt: skip
product_bfloat16, product_bfloat16_wide, product_bfloat16_1 = (
    vectors.PRODUCTS[BFLOAT16, 4, 1], vectors.PRODUCTS[BFLOAT16, WIDE[0], WIDE[1]], vectors.PRODUCTS[BFLOAT16, 1, 1]
)  # fmt: skip
product_float16, product_float16_wide, product_float16_1 = (
    vectors.PRODUCTS[FLOAT16, 4, 1], vectors.PRODUCTS[FLOAT16, WIDE[0], WIDE[1]], vectors.PRODUCTS[FLOAT16, 1, 1]
)  # fmt: skip
product_int8, product_int8_wide, product_int8_1 = (
    vectors.PRODUCTS[INT8, 4, 1], vectors.PRODUCTS[INT8, WIDE[0], WIDE[1]], vectors.PRODUCTS[INT8, 1, 1]
)  # fmt: skip
product_int4, product_int4_wide, product_int4_1 = (
    vectors.PRODUCTS[INT4, 4, 1], vectors.PRODUCTS[INT4, WIDE_INT4[0], WIDE_INT4[1]], vectors.PRODUCTS[INT4, 1, 1]
)  # fmt: skip
product_groups, product_groups_wide, product_groups_1 = (
    vectors.PRODUCTS[INT4_SMALL_GROUPS, 4, 1],
    vectors.PRODUCTS[INT4_SMALL_GROUPS, WIDE_INT4[0], WIDE_INT4[1]],
    vectors.PRODUCTS[INT4_SMALL_GROUPS, 1, 1],
)
_yield = types.ExternalFunction("sched_yield", types.int32()) if os.name == "posix" else None


if _yield is not None:

    @_inline
    def _let_others_run():
        _yield()

else:

    @_inline
    def _let_others_run():
        pause()


@_inline
def _claim(control, phase, step, pieces):
    """A piece of a phase that nobody has yet; -1 if there is none, -2 if another step runs."""
    address = control + 8 * (C_PHASES + phase * PHASE_SPACING)
    while True:
        seen = atomic_load(address)
        if seen >> 32 != step:
            return int64(-2)
        piece = seen & 0xFFFFFFFF
        if piece >= pieces:
            return int64(-1)
        if atomic_swap(address, seen, seen + 1) == 1:
            return piece


@_inline
def _done(control, phase):
    atomic_add(control + 8 * (C_PHASES + phase * PHASE_SPACING + 8), 1)


@_inline
def _wait(control, phase, step, pieces):
    """Waits until all pieces of a phase are done; False if another step runs by then."""
    address = control + 8 * (C_PHASES + phase * PHASE_SPACING)
    spins = 0
    while atomic_load(address + 64) < pieces:
        if atomic_load(address) >> 32 != step:
            return False
        pause()
        spins += 1
        if spins > SPINS:
            _let_others_run()
    return atomic_load(address) >> 32 == step


@_inline
def _exp(x):
    """e^x in float32 to 2 units in the last place (Cephes' polynomial), in operations that vectorize."""
    x = min(max(x, float32(-87.0)), float32(88.0))
    n = floor_float32(x * float32(1.4426950408889634) + float32(0.5))
    r = x - n * float32(0.693359375)
    r = r + n * float32(2.12194440e-4)
    p = float32(1.9875691500e-4)
    p = p * r + float32(1.3981999507e-3)
    p = p * r + float32(8.3334519073e-3)
    p = p * r + float32(4.1665795894e-2)
    p = p * r + float32(1.6666665459e-1)
    p = p * r + float32(5.0000001201e-1)
    p = p * r * r + r + float32(1.0)
    return p * bits_to_float32(types.int32((types.int32(n) + 127) << 23))


@_inline
def _tanh(x):
    if abs(x) < float32(0.05):
        square = x * x
        return x * (float32(1.0) - square * (float32(1 / 3) - square * float32(2 / 15)))
    e = _exp(float32(2.0) * x)
    return float32(1.0) - float32(2.0) / (e + float32(1.0))


@_inline
def _activated(x, kind):
    if kind == 0:
        return x / (float32(1.0) + _exp(-x))
    if kind == 1:
        return float32(0.5) * x * (float32(1.0) + math.erf(x * float32(0.7071067811865476)))
    if kind == 2:
        inner = float32(0.7978845608028654) * (x + float32(0.044715) * x * x * x)
        return float32(0.5) * x * (float32(1.0) + _tanh(inner))
    if kind == 3:
        return max(x, float32(0.0))
    if kind == 5:
        return max(x, float32(0.0)) * max(x, float32(0.0))
    return _tanh(x)


@_inline
def _norm(source, target, size, weight, bias, layer_norm, eps):
    """RMSNorm or LayerNorm of a row at an address; without a weight, LayerNorm's statistics alone."""
    whole, mean = size // 16, float32(0.0)
    if layer_norm:
        mean = sum_float32(source, whole)
        for i in range(16 * whole, size):
            mean += load_float32(source, i)
        mean /= float32(size)
    square = squares(source, whole, mean)
    for i in range(16 * whole, size):
        value = load_float32(source, i) - mean
        square += value * value
    scale = float32(1.0) / math.sqrt(square / float32(size) + eps)
    affine(source, target, whole, mean, scale, weight, bias)
    for i in range(16 * whole, size):
        value = (load_float32(source, i) - mean) * scale
        if weight:
            value *= load_float32(weight, i)
        if bias:
            value += load_float32(bias, i)
        store_float32(target, i, value)


@_inline
def _encode(model, row, source, begin, end, size, formats):
    """Rounds inputs `begin` to `end` of the `size` of a row for weights of the formats whose bits are set.

    `source` is the address of the row, which ends in zeros up to a multiple of 128; `begin` is a multiple of 32.
    """
    if formats & (1 << BFLOAT16):
        base = load_int64(model, G_BF16) + row * load_int64(model, G_BF16_STRIDE)
        # Up to a whole vector: what a wider input has left there may not be finite.
        for i in range(begin, (size + 31) // 32 * 32 if end == size else end):
            store_bfloat16(base, i, load_float32(source, i))
    if formats & (1 << INT8):
        base = load_int64(model, G_INT8) + row * load_int64(model, G_INT8_STRIDE)
        for part in range(begin // 32, (size + 63) // 64 * 2 if end == size else (end + 31) // 32):
            encode_int8(source + 128 * part, base + 192 * (part // 2), part % 2)
    if formats & ((1 << INT4) | (1 << INT4_SMALL_GROUPS)):
        base = load_int64(model, G_INT4) + row * load_int64(model, G_INT4_STRIDE)
        # The zeros at the end are rounded too: a missing weight counts as -8.
        for part in range(begin // 32, (size + 127) // 128 * 4 if end == size else end // 32):
            encode_int4(source + 128 * part, base + 256 * (part // 4), part % 4)


@_inline
def _bit(matrix):
    """The bit of a matrix's format; 0 where there is no matrix."""
    if load_int64(matrix, M_ADDRESS) == 0:
        return int64(0)
    return int64(1) << load_int64(matrix, M_FORMAT)


@_inline
def _block(rows, form, weight, x, sizes):
    """Products of 1 or 4 rows with one row of activations, or (0) of several with several (WIDE)."""
    if form == INT8:
        if rows == 1:
            product_int8_1(weight, x, sizes)
        elif rows == 4:
            product_int8(weight, x, sizes)
        else:
            product_int8_wide(weight, x, sizes)
    elif form == INT4:
        if rows == 1:
            product_int4_1(weight, x, sizes)
        elif rows == 4:
            product_int4(weight, x, sizes)
        else:
            product_int4_wide(weight, x, sizes)
    elif form == BFLOAT16:
        if rows == 1:
            product_bfloat16_1(weight, x, sizes)
        elif rows == 4:
            product_bfloat16(weight, x, sizes)
        else:
            product_bfloat16_wide(weight, x, sizes)
    elif form == FLOAT16:
        if rows == 1:
            product_float16_1(weight, x, sizes)
        elif rows == 4:
            product_float16(weight, x, sizes)
        else:
            product_float16_wide(weight, x, sizes)
    elif form == INT4_SMALL_GROUPS:
        if rows == 1:
            product_groups_1(weight, x, sizes)
        elif rows == 4:
            product_groups(weight, x, sizes)
        else:
            product_groups_wide(weight, x, sizes)
    else:
        if rows == 1:
            product_float32_1(weight, x, sizes)
        elif rows == 4:
            product_float32(weight, x, sizes)
        else:
            product_float32_wide(weight, x, sizes)


def _row_by_row(product: Any) -> Any:
    """A function that multiplies rows `first` to `last` with one row of activations.

    Reading one row after the other keeps the processor's own fetching of the next lines busy: 40 % more bytes a second
    than four rows at a time.
    """

    @_inline
    def multiply(first, last, matrix, x, out):
        columns, row_bytes, group = (
            load_int64(matrix, M_COLUMNS), load_int64(matrix, M_ROW_BYTES), load_int64(matrix, M_GROUP)
        )  # fmt: skip
        address, scales, scale_row = (
            load_int64(matrix, M_ADDRESS), load_int64(matrix, M_SCALE), load_int64(matrix, M_SCALE_ROW)
        )  # fmt: skip
        bias, factors = load_int64(matrix, M_BIAS), scales if load_int64(matrix, M_FORMAT) == INT8 else int64(0)
        for row in range(first, last):
            factor, addend = factors + 4 * row if factors else int64(0), bias + 4 * row if bias else int64(0)
            product(address + row * row_bytes, x, (
                row_bytes, int64(0), columns, scales + row * scale_row, scale_row, group, out + 4 * row,
                int64(0), factor, addend, int64(0)))  # fmt: skip

    return multiply


rows_float32, rows_bfloat16, rows_float16, rows_int8, rows_int4, rows_groups = (
    _row_by_row(product)
    for product in (
        product_float32_1, product_bfloat16_1, product_float16_1, product_int8_1, product_int4_1, product_groups_1
    )
)  # fmt: skip


@_inline
def _multiply_one(form, first, last, matrix, x, out):
    """Rows `first` to `last` of a matrix times one row of activations at `x`, which `_encode` has rounded."""
    if form == INT8:
        rows_int8(first, last, matrix, x, out)
    elif form == INT4:
        rows_int4(first, last, matrix, x, out)
    elif form == BFLOAT16:
        rows_bfloat16(first, last, matrix, x, out)
    elif form == FLOAT16:
        rows_float16(first, last, matrix, x, out)
    elif form == INT4_SMALL_GROUPS:
        rows_groups(first, last, matrix, x, out)
    else:
        rows_float32(first, last, matrix, x, out)


@_outlined(10)
def _multiply(model, matrix, first, last, rows, source, stride, encoded, out, out_stride):
    """Rows `first` to `last` of a matrix times `rows` rows of activations, which `_encode` has rounded.

    `source` are the same in float32, `stride` bytes apart; the rounded ones start at row `encoded`. Writes
    out[row][first : last].
    """
    form = load_int64(matrix, M_FORMAT)
    x, x_row = source, stride
    if form == BFLOAT16:
        x_row = load_int64(model, G_BF16_STRIDE)
        x = load_int64(model, G_BF16) + encoded * x_row
    elif form == INT8:
        x_row = load_int64(model, G_INT8_STRIDE)
        x = load_int64(model, G_INT8) + encoded * x_row
    elif form >= INT4:
        x_row = load_int64(model, G_INT4_STRIDE)
        x = load_int64(model, G_INT4) + encoded * x_row
    if rows == 1:
        _multiply_one(form, first, last, matrix, x, out)
        return
    columns, row_bytes, group = (
        load_int64(matrix, M_COLUMNS), load_int64(matrix, M_ROW_BYTES), load_int64(matrix, M_GROUP)
    )  # fmt: skip
    address, scales, scale_row = (
        load_int64(matrix, M_ADDRESS), load_int64(matrix, M_SCALE), load_int64(matrix, M_SCALE_ROW)
    )  # fmt: skip
    bias, factors = load_int64(matrix, M_BIAS), scales if form == INT8 else int64(0)
    tall, across = WIDE_INT4 if form >= INT4 else WIDE
    # 32 rows of activations at a time, so that these and a piece of the weight fit the second cache.
    for start in range(0, rows, TOGETHER):
        stop, row = min(rows, start + TOGETHER), first
        while row < last:
            wide = stop - start >= across and row + tall <= last
            count = tall if wide else 4 if row + 4 <= last else 1
            weight, scale, target = address + row * row_bytes, scales + row * scale_row, out + 4 * row
            factor, addend = factors + 4 * row if factors else int64(0), bias + 4 * row if bias else int64(0)
            column = start
            while column < stop:
                place, begin = target + column * out_stride, x + column * x_row
                if wide and column + across > stop:
                    for part in range(0, tall, 4):
                        _block(4, form, weight + part * row_bytes, begin, (
                            row_bytes, x_row, columns, scale + part * scale_row, scale_row, group, place + 4 * part,
                            out_stride, factor + 4 * part if factor else factor,
                            addend + 4 * part if addend else addend, int64(0)))  # fmt: skip
                    column += 1
                    continue
                _block(0 if wide else count, form, weight, begin, (
                    row_bytes, x_row, columns, scale, scale_row, group, place, out_stride, factor, addend,
                    (column - start) // across * 2 * row_bytes))  # fmt: skip
                column += across if wide else 1
            row += count


@_inline
def _multiply_stacked(model, matrices, begin, end, rows, source, stride, out, out_stride):
    """The products of rows `begin` to `end` of stacked matrices; the results are written side by side."""
    offset = int64(0)
    for matrix in matrices:
        size = load_int64(matrix, M_ROWS)
        low, high = max(begin - offset, 0), min(end - offset, size)
        if low < high:
            _multiply(model, matrix, low, high, rows, source, stride, 0, out + 4 * offset, out_stride)
        offset += size


@_inline
def _rotated(source, target, size, rotary, cos, sin, layout):
    """A head's channels, the first `rotary` of them turned; cos, sin: addresses of rotary / 2 float32.

    `layout` says where the two of a pair are; they are written as halves, as `positions.to_halves` orders them.
    """
    half = rotary // 2
    for i in range(half):
        if layout == 0:
            a, b = load_float32(source, i), load_float32(source, i + half)
        elif layout == 1:
            a, b = load_float32(source, 2 * i), load_float32(source, 2 * i + 1)
        else:
            a, b = load_float32(source, i + half), load_float32(source, i)
        c, s = load_float32(cos, i), load_float32(sin, i)
        store_float32(target, i, a * c - b * s)
        store_float32(target, i + half, b * c + a * s)
    for i in range(rotary, size):
        store_float32(target, i, load_float32(source, i))


@_inline
def _prepared_head(layer, model, row_table, row, source, target, is_key):
    """A query's or a key's head with the norm and the turn that the family has."""
    size, eps = load_int64(model, G_HEAD_DIM), load_float32(load_int64(model, G_FLOATS), F_EPS)
    weight = load_int64(layer, L_KEY_NORM if is_key else L_QUERY_NORM)
    if weight and not load_int64(model, G_NORMS_WHOLE):
        bias = load_int64(layer, L_KEY_NORM_BIAS if is_key else L_QUERY_NORM_BIAS)
        _norm(source, source, size, weight, bias, load_int64(model, G_LAYER_NORM), eps)
    cos = load_int64(layer, L_COS)
    if cos:
        rotary = load_int64(model, G_ROTARY_DIM)
        offset = load_int64(load_int64(row_table, S_POSITIONS), row) * (rotary // 2) * 4
        layout = load_int64(model, G_ROTARY_LAYOUT)
        _rotated(source, target, size, rotary, cos + offset, load_int64(layer, L_SIN) + offset, layout)
    else:
        for i in range(size):
            store_float32(target, i, load_float32(source, i))


@_inline
def _norm_whole(layer, model, row):
    """The norms over all queries and over all keys of a row, in place."""
    size, eps = load_int64(model, G_HEAD_DIM), load_float32(load_int64(model, G_FLOATS), F_EPS)
    queries = load_int64(model, G_QKV) + row * load_int64(model, G_QKV_STRIDE)
    heads, groups = load_int64(model, G_HEADS) * size, load_int64(model, G_KV_HEADS) * size
    kind = load_int64(model, G_LAYER_NORM)
    weight, bias = load_int64(layer, L_QUERY_NORM), load_int64(layer, L_QUERY_NORM_BIAS)
    _norm(queries, queries, heads, weight, bias, kind, eps)
    keys, weight, bias = queries + 4 * heads, load_int64(layer, L_KEY_NORM), load_int64(layer, L_KEY_NORM_BIAS)
    _norm(keys, keys, groups, weight, bias, kind, eps)


@_inline
def _write_cache(base, index, value, form):
    if form == BFLOAT16:
        store_bfloat16(base, index, value)
    elif form == FLOAT16:
        store_float16(base, index, value)
    else:
        store_float32(base, index, value)


@_inline
def _cached(base, index, form):
    if form == BFLOAT16:
        return load_bfloat16(base, index)
    if form == FLOAT16:
        return load_float16(base, index)
    return load_float32(base, index)


@_inline
def _score(query, base, begin, count, size, form, out):
    """Products of a query with `count` keys in a row, the first at element `begin`."""
    if size % 16 == 0 and form == BFLOAT16:
        scores_bfloat16(query, base + 2 * begin, count, size, out)
    elif size % 16 == 0 and form == FLOAT16:
        scores_float16(query, base + 2 * begin, count, size, out)
    elif size % 16 == 0:
        scores_float32(query, base + 4 * begin, count, size, out)
    else:
        for k in range(count):
            total = float32(0.0)
            for i in range(size):
                total += load_float32(query, i) * _cached(base, begin + k * size + i, form)
            store_float32(out, k, total)


@_inline
def _mix_values(weights, base, begin, count, size, form, out):
    """Adds `count` values in a row, the first at element `begin`, times their weights."""
    if size % 16 == 0 and form == BFLOAT16:
        mix_bfloat16(weights, base + 2 * begin, count, size, out)
    elif size % 16 == 0 and form == FLOAT16:
        mix_float16(weights, base + 2 * begin, count, size, out)
    elif size % 16 == 0:
        mix_float32(weights, base + 4 * begin, count, size, out)
    else:
        for k in range(count):
            weight = load_float32(weights, k)
            for i in range(size):
                value = load_float32(out, i) + weight * _cached(base, begin + k * size + i, form)
                store_float32(out, i, value)


@_inline
def _write_keys(table, model, layer, number, row, group, scratch):
    """Puts a row's new key and value of one group of heads into the cache."""
    size, groups, heads = (
        load_int64(model, G_HEAD_DIM), load_int64(model, G_KV_HEADS), load_int64(model, G_HEADS)
    )  # fmt: skip
    room, form = load_int64(load_int64(table, S_ROOMS), number), load_int64(table, S_CACHE_FORMAT)
    place = load_int64(load_int64(table, S_PLACES), row)
    if load_int64(layer, L_WINDOW):
        place -= load_int64(load_int64(table, S_STARTS), row)
    slot = load_int64(load_int64(table, S_SLOTS), row)
    source = load_int64(model, G_QKV) + row * load_int64(model, G_QKV_STRIDE) + 4 * heads * size
    keys, values = load_int64(load_int64(table, S_KEYS), number), load_int64(load_int64(table, S_VALUES), number)
    begin = ((slot * groups + group) * room + place) * size
    _prepared_head(layer, model, table, row, source + 4 * group * size, scratch, True)
    for i in range(size):
        _write_cache(keys, begin + i, load_float32(scratch, i), form)
    value = source + 4 * (groups + group) * size
    for i in range(size):
        _write_cache(values, begin + i, load_float32(value, i), form)


@_inline
def _write_latent(table, model, layer, number, row, scratch):
    """Puts a row's latent vector and its rotated key into the cache, and prepares the vector of its queries."""
    rank, rotary, heads = load_int64(model, G_LATENT), load_int64(model, G_ROTARY_DIM), load_int64(model, G_HEADS)
    query_rank, eps = load_int64(model, G_QUERY_RANK), load_float32(load_int64(model, G_FLOATS), F_LATENT_EPS)
    queries = load_int64(model, G_QKV) + row * load_int64(model, G_QKV_STRIDE)
    latent = queries + 4 * (query_rank if query_rank else heads * load_int64(model, G_HEAD_DIM))
    _norm(latent, latent, rank, load_int64(layer, L_KEY_NORM), int64(0), int64(0), eps)
    offset = load_int64(load_int64(table, S_POSITIONS), row) * (rotary // 2) * 4
    cos, sin = load_int64(layer, L_COS) + offset, load_int64(layer, L_SIN) + offset
    _rotated(latent + 4 * rank, scratch, rotary, rotary, cos, sin, load_int64(model, G_ROTARY_LAYOUT))
    form, place = load_int64(table, S_CACHE_FORMAT), load_int64(load_int64(table, S_PLACES), row)
    if load_int64(layer, L_WINDOW):
        place -= load_int64(load_int64(table, S_STARTS), row)
    place += load_int64(load_int64(table, S_SLOTS), row) * load_int64(load_int64(table, S_ROOMS), number)
    keys, values = load_int64(load_int64(table, S_KEYS), number), load_int64(load_int64(table, S_VALUES), number)
    for i in range(rank):
        _write_cache(keys, place * rank + i, load_float32(latent, i), form)
    for i in range(rotary):
        _write_cache(values, place * rotary + i, load_float32(scratch, i), form)
    if query_rank:
        target = load_int64(model, G_QUERY_VECTOR) + row * load_int64(model, G_QUERY_VECTOR_STRIDE)
        _norm(queries, target, query_rank, load_int64(layer, L_QUERY_NORM), int64(0), int64(0), eps)
        _encode(model, row, target, 0, query_rank, query_rank, _bit(load_int64(layer, L_QUERY_B)))


@_inline
def _reduce_query(table, model, layer, row, head, query, rotated):
    """The product of a head's query with what would project latent vectors to its keys; and its rotated part."""
    size, rank, rotary, plain = (
        load_int64(model, G_HEAD_DIM), load_int64(model, G_LATENT), load_int64(model, G_ROTARY_DIM),
        load_int64(model, G_PLAIN_DIM),
    )  # fmt: skip
    if load_int64(model, G_QUERY_RANK):
        source = load_int64(model, G_QUERIES) + 4 * row * load_int64(model, G_HEADS) * size
    else:
        source = load_int64(model, G_QKV) + row * load_int64(model, G_QKV_STRIDE)
    source += 4 * head * size
    matrix, each = load_int64(layer, L_EXPAND), plain + load_int64(model, G_MIX_DIM)
    for i in range(rank):
        store_float32(query, i, float32(0.0))
    weight, form = load_int64(matrix, M_ADDRESS), load_int64(matrix, M_FORMAT)
    _mix_values(source, weight, head * each * rank, plain, rank, form, query)
    offset = load_int64(load_int64(table, S_POSITIONS), row) * (rotary // 2) * 4
    cos, sin = load_int64(layer, L_COS) + offset, load_int64(layer, L_SIN) + offset
    _rotated(source + 4 * plain, rotated, rotary, rotary, cos, sin, load_int64(model, G_ROTARY_LAYOUT))


@_inline
def _attend(table, model, layer, number, row, head, scratch):
    """Attention of one head of one row over the row's slot; writes its part of `mixed`.

    With latent attention the keys are the latent vectors, to whose scores those of the rotated keys are added, and the
    values are the same vectors, whose mixture is projected at the end.

    The softmax is that of Milakov & Gimelshein 2018 (arXiv 1805.02867): keys are read in blocks of 64, and what was
    added before is scaled down whenever a larger score comes.
    """
    size, groups, heads = (
        load_int64(model, G_HEAD_DIM), load_int64(model, G_KV_HEADS), load_int64(model, G_HEADS)
    )  # fmt: skip
    room, form = load_int64(load_int64(table, S_ROOMS), number), load_int64(table, S_CACHE_FORMAT)
    place, slot = load_int64(load_int64(table, S_PLACES), row), load_int64(load_int64(table, S_SLOTS), row)
    keys, values = load_int64(load_int64(table, S_KEYS), number), load_int64(load_int64(table, S_VALUES), number)
    base = (slot * groups + head // (heads // groups)) * room
    latent, rotary, mix = load_int64(model, G_LATENT), load_int64(model, G_ROTARY_DIM), load_int64(model, G_MIX_DIM)
    target = load_int64(model, G_MIXED) + row * load_int64(model, G_MIXED_STRIDE) + 4 * head * mix
    scale, result, mixed_from = load_float32(load_int64(layer, L_SCALE), 0), target, values
    if latent:
        size, base, mixed_from = latent, slot * room, keys
    query, scores = scratch, scratch + 4 * size
    others, rotated = scores + 256, scores + 512
    if latent:
        target = rotated + 4 * rotary
        _reduce_query(table, model, layer, row, head, query, rotated)
        for i in range(rotary):
            store_float32(rotated, i, load_float32(rotated, i) * scale)
    else:
        source = load_int64(model, G_QKV) + row * load_int64(model, G_QKV_STRIDE) + 4 * head * size
        _prepared_head(layer, model, table, row, source, query, False)
    for i in range(size):
        store_float32(query, i, load_float32(query, i) * scale)
    softcap = load_float32(load_int64(model, G_FLOATS), F_SOFTCAP)
    slope = float32(0.0)
    if load_int64(model, G_ALIBI):
        slope = load_float32(load_int64(model, G_ALIBI), head)
    for i in range(size):
        store_float32(target, i, float32(0.0))
    window, first = load_int64(layer, L_WINDOW), int64(0)
    if window:
        # In the cache, the place is counted from the first token that the layer still holds.
        place -= load_int64(load_int64(table, S_STARTS), row)
        first = max(place - window + 1, first)
    largest, total = float32(-math.inf), float32(0.0)
    if load_int64(layer, L_SINKS):
        largest, total = load_float32(load_int64(layer, L_SINKS), head), float32(1.0)
    block = first
    while block <= place:
        count = min(place + 1 - block, 64)
        begin = (base + block) * size
        _score(query, keys, begin, count, size, form, scores)
        if latent:
            _score(rotated, values, (base + block) * rotary, count, rotary, form, others)
            for k in range(count):
                store_float32(scores, k, load_float32(scores, k) + load_float32(others, k))
        if softcap > 0 or slope != 0:
            for k in range(count):
                score = load_float32(scores, k)
                if softcap > 0:
                    score = softcap * _tanh(score / softcap)
                store_float32(scores, k, score - slope * float32(place - block - k))
        top = largest
        for k in range(count):
            top = max(top, load_float32(scores, k))
        if top > largest:
            factor = _exp(largest - top) if total > 0 else float32(0.0)
            total *= factor
            for i in range(size):
                store_float32(target, i, load_float32(target, i) * factor)
            largest = top
        for k in range(count):
            weight = _exp(load_float32(scores, k) - largest)
            store_float32(scores, k, weight)
            total += weight
        _mix_values(scores, mixed_from, begin, count, size, form, target)
        block += count
    inverse = float32(1.0) / total
    for i in range(size):
        store_float32(target, i, load_float32(target, i) * inverse)
    if latent:
        plain, matrix = load_int64(model, G_PLAIN_DIM), load_int64(layer, L_EXPAND)
        begin = (head * (plain + mix) + plain) * latent
        _score(target, load_int64(matrix, M_ADDRESS), begin, mix, latent, load_int64(matrix, M_FORMAT), result)


@_inline
def _embed(table, model, row):
    """A row's token, and its position where those are learned, as the first hidden state."""
    size, x = load_int64(model, G_HIDDEN), load_int64(model, G_X) + row * load_int64(model, G_X_STRIDE)
    form, base = load_int64(model, G_EMBEDDING_FORMAT), load_int64(model, G_EMBEDDING)
    begin = load_int64(load_int64(table, S_TOKENS), row) * size
    scale, positions = load_float32(load_int64(model, G_FLOATS), F_EMBEDDING_SCALE), load_int64(model, G_POSITIONS)
    place = load_int64(load_int64(table, S_POSITIONS), row) + load_int64(model, G_POSITION_OFFSET)
    for i in range(size):
        if form == BFLOAT16:
            value = load_bfloat16(base, begin + i)
        elif form == FLOAT16:
            value = load_float16(base, begin + i)
        else:
            value = load_float32(base, begin + i)
        value *= scale
        if positions:
            value += load_float32(positions, place * size + i)
        store_float32(x, i, value)
    weight = load_int64(model, G_EMBEDDING_NORM)
    if weight:
        eps = load_float32(load_int64(model, G_FLOATS), F_EPS)
        bias = load_int64(model, G_EMBEDDING_NORM_BIAS)
        _norm(x, x, size, weight, bias, load_int64(model, G_LAYER_NORM), eps)


@_inline
def _add(model, row, source, weight, bias):
    """Adds a part's output to a row's hidden state, after the part's own norm where it has one."""
    size, stride = load_int64(model, G_HIDDEN), load_int64(model, G_X_STRIDE)
    x, part = load_int64(model, G_X) + row * stride, source + row * stride
    if weight:
        eps = load_float32(load_int64(model, G_FLOATS), F_EPS)
        _norm(part, part, size, weight, bias, load_int64(model, G_LAYER_NORM), eps)
    scale = load_float32(load_int64(model, G_FLOATS), F_RESIDUAL_SCALE)
    if scale != 1:
        for i in range(size):
            store_float32(part, i, load_float32(part, i) * scale)
    add_in_place(x, part, (size + 15) // 16)


@_inline
def _normed(model, row, target_row, weight, bias):
    """The norm of a row's hidden state; a copy where the weight is -1. Returns its address."""
    size, stride = load_int64(model, G_HIDDEN), load_int64(model, G_X_STRIDE)
    x, target = load_int64(model, G_X) + row * stride, load_int64(model, G_NORMED) + target_row * stride
    if weight < 0:
        for i in range(size):
            store_float32(target, i, load_float32(x, i))
    else:
        eps = load_float32(load_int64(model, G_FLOATS), F_EPS)
        _norm(x, target, size, weight, bias, load_int64(model, G_LAYER_NORM), eps)
    return target


@_inline
def _end_layer(model, layer, row):
    """Adds what a layer computed and has not added yet."""
    if load_int64(model, G_RESIDUAL) != SEQUENTIAL:
        _add(model, row, load_int64(model, G_MIXED_OUT), int64(0), int64(0))
    norm, bias = load_int64(layer, L_DOWN_NORM), load_int64(layer, L_DOWN_NORM_BIAS)
    _add(model, row, load_int64(model, G_DOWN_OUT), norm, bias)


@_inline
def _before_attention(table, model, layer, previous, row):
    """The inputs of a layer's queries, keys and values, for one row."""
    if previous:
        _end_layer(model, previous, row)
    else:
        _embed(table, model, row)
    source = _normed(model, row, row, load_int64(layer, L_NORM), load_int64(layer, L_NORM_BIAS))
    formats = _bit(load_int64(layer, L_QUERY)) | _bit(load_int64(layer, L_KEY)) | _bit(load_int64(layer, L_VALUE))
    _encode(model, row, source, 0, load_int64(model, G_HIDDEN), load_int64(model, G_HIDDEN), formats)


@_inline
def _route(model, layer, row, source):
    """Chooses the experts of a row, and their weights.

    A row of G_ROUTES holds, in this order: E scores and the logit of the shared expert's gate; what the choice compares
    (E); the weights of the chosen ones and of the shared expert; and their numbers, of which the places follow.
    """
    experts, chosen = load_int64(model, G_EXPERTS), load_int64(model, G_CHOSEN)
    scores = load_int64(model, G_ROUTES) + row * load_int64(model, G_ROUTES_STRIDE)
    choice, weights = scores + 4 * (experts + 1), scores + 4 * (2 * experts + 1)
    numbers = load_int64(model, G_PLACES) + 8 * row * 2 * (chosen + 1)
    kind, floats = load_int64(model, G_ROUTER), load_int64(model, G_FLOATS)
    _multiply(model, load_int64(layer, L_ROUTER), 0, experts, 1, source, 0, row, scores, 0)
    _score_experts(model, layer, scores, choice, experts, kind)
    total = float32(1e-20) if kind == 2 else float32(0.0)
    for k in range(chosen):
        expert, best = int64(-1), float32(-math.inf)
        for e in range(experts):
            if load_float32(choice, e) > best:
                expert, best = int64(e), load_float32(choice, e)
        if expert < 0:  # Nothing compares with NaN, which the weight passes on.
            expert = int64(k)
        store_float32(choice, expert, float32(-math.inf))
        store_int64(numbers, k, expert)
        weight = load_float32(scores, expert)
        if kind == 1:
            weight = _exp(weight - load_float32(scores, load_int64(numbers, 0)))
        store_float32(weights, k, weight)
        total += weight
    scale = load_float32(floats, F_ROUTER_SCALE) if kind != 1 else float32(1.0)
    if kind == 1 or load_int64(model, G_RENORMALIZE):
        scale /= total
    for k in range(chosen):
        store_float32(weights, k, load_float32(weights, k) * scale)
    store_int64(numbers, chosen, experts)
    gate, shared = load_int64(layer, L_SHARED_GATE), float32(1.0)
    if gate:
        _multiply(model, gate, 0, 1, 1, source, 0, row, scores + 4 * experts, 0)
        shared = float32(1.0) / (float32(1.0) + _exp(-load_float32(scores, experts)))
    store_float32(weights, chosen, shared)


@_inline
def _score_experts(model, layer, scores, choice, experts, kind):
    """Probabilities of the logits at `scores`, in place, and at `choice` what decides which experts are chosen."""
    if kind == 0:
        largest, total = float32(-math.inf), float32(0.0)
        for e in range(experts):
            largest = max(largest, load_float32(scores, e))
        for e in range(experts):
            value = _exp(load_float32(scores, e) - largest)
            store_float32(scores, e, value)
            total += value
        for e in range(experts):
            store_float32(scores, e, load_float32(scores, e) / total)
    elif kind == 2:
        for e in range(experts):
            store_float32(scores, e, float32(1.0) / (float32(1.0) + _exp(-load_float32(scores, e))))
    bias = load_int64(layer, L_ROUTER_BIAS)
    for e in range(experts):
        store_float32(choice, e, load_float32(scores, e) + (load_float32(bias, e) if bias else float32(0.0)))
    groups = load_int64(model, G_GROUPS)
    if groups > 1:
        sums = choice + 4 * (experts + load_int64(model, G_CHOSEN) + 1)
        _keep_groups(choice, sums, experts // groups, groups, load_int64(model, G_GROUPS_CHOSEN))


@_inline
def _keep_groups(choice, sums, size, groups, kept):
    """Leaves the experts of the groups whose two best have the largest sums; the others get -inf."""
    for group in range(groups):
        first, second = float32(-math.inf), float32(-math.inf)
        for e in range(group * size, (group + 1) * size):
            value = load_float32(choice, e)
            if value > first:
                first, second = value, first
            elif value > second:
                second = value
        store_float32(sums, group, first + second)
    for group in range(groups):
        own, ahead = load_float32(sums, group), int64(0)
        for other in range(groups):
            value = load_float32(sums, other)
            if value > own or (value == own and other < group):
                ahead += 1
        if ahead >= kept:
            for e in range(group * size, (group + 1) * size):
                store_float32(choice, e, float32(-math.inf))


@_inline
def _arrange(model, layer, rows):
    """Sorts the choices of all rows by expert, and puts the inputs of each expert side by side.

    G_USED holds the number of experts in use, and for each its number, its first place and its rows; behind them are
    the counts that this sorts by. The shared expert has places of its own behind all others, as it may be wider.
    """
    experts, chosen, shared = load_int64(model, G_EXPERTS), load_int64(model, G_CHOSEN), load_int64(model, G_SHARED)
    used, all_places = load_int64(model, G_USED), load_int64(model, G_PLACES)
    counts, each = used + 8 * (1 + 3 * (experts + 1)), 2 * (chosen + 1)
    for e in range(experts + 1):
        store_int64(counts, e, int64(0))
    for row in range(rows):
        for k in range(chosen + shared):
            expert = load_int64(all_places, row * each + k)
            store_int64(counts, expert, load_int64(counts, expert) + 1)
    total, first = int64(0), int64(0)
    for e in range(experts + 1):
        count = load_int64(counts, e)
        if count:
            place = first if e < experts else MAX_ROWS * chosen
            store_int64(used, 1 + 3 * total, int64(e))
            store_int64(used, 2 + 3 * total, place)
            store_int64(used, 3 + 3 * total, count)
            store_int64(counts, e, place)
            total += 1
            first += count
    store_int64(used, 0, total)
    hidden, formats, stride = (
        load_int64(model, G_HIDDEN), load_int64(layer, L_EXPERT_FORMATS), load_int64(model, G_X_STRIDE)
    )  # fmt: skip
    for row in range(rows):
        for k in range(chosen + shared):
            expert = load_int64(all_places, row * each + k)
            place = load_int64(counts, expert)
            store_int64(counts, expert, place + 1)
            store_int64(all_places, row * each + chosen + 1 + k, place)
            if rows > 1:  # One row is read where it is.
                source, target = load_int64(model, G_NORMED) + row * stride, load_int64(model, G_GATHERED)
                for i in range(hidden):
                    store_float32(target + place * stride, i, load_float32(source, i))
                _encode(model, 2 * MAX_ROWS + place, source, 0, hidden, hidden, formats)


@_inline
def _before_feed_forward(model, layer, row):
    """The inputs of a layer's feed-forward, for one row."""
    if load_int64(model, G_RESIDUAL) == SEQUENTIAL:
        norm, bias = load_int64(layer, L_OUT_NORM), load_int64(layer, L_OUT_NORM_BIAS)
        _add(model, row, load_int64(model, G_MIXED_OUT), norm, bias)
    source = _normed(model, row, row, load_int64(layer, L_MLP_NORM), load_int64(layer, L_MLP_NORM_BIAS))
    if load_int64(layer, L_EXPERTS):
        formats = load_int64(layer, L_EXPERT_FORMATS) | _bit(load_int64(layer, L_ROUTER))
        _encode(model, row, source, 0, load_int64(model, G_HIDDEN), load_int64(model, G_HIDDEN), formats)
        _route(model, layer, row, source)
    else:
        formats = _bit(load_int64(layer, L_GATE)) | _bit(load_int64(layer, L_UP))
        _encode(model, row, source, 0, load_int64(model, G_HIDDEN), load_int64(model, G_HIDDEN), formats)


@_inline
def _before_head(table, model, layer, place):
    """The input of the head, for the row whose logits are the `place`-th."""
    row, size = load_int64(load_int64(table, S_HEAD_ROWS), place), load_int64(model, G_HIDDEN)
    _end_layer(model, layer, row)
    source = _normed(model, row, place, load_int64(model, G_NORM), load_int64(model, G_NORM_BIAS))
    scale = load_float32(load_int64(model, G_FLOATS), F_LOGIT_SCALE)
    if scale != 1:
        for i in range(size):
            store_float32(source, i, load_float32(source, i) * scale)
    _encode(model, place, source, 0, size, size, _bit(load_int64(model, G_HEAD)))


@_inline
def _mix(table, model, layer, number, row, head, scratch):
    """Attention of one head, and what its part of the output projection's input is rounded to."""
    _attend(table, model, layer, number, row, head, scratch)
    size = load_int64(model, G_MIX_DIM)
    if size % 32 == 0:
        source = load_int64(model, G_MIXED) + row * load_int64(model, G_MIXED_STRIDE)
        total = load_int64(model, G_HEADS) * size
        _encode(model, row, source, head * size, (head + 1) * size, total, _bit(load_int64(layer, L_OUT)))


@_inline
def _widen(model, layer, begin, end, rows):
    """Inner channels `begin` to `end` of the feed-forward: gate and up, activation, and the rounding for down."""
    matrices = load_int64(layer, L_GATE), load_int64(layer, L_UP), load_int64(layer, L_DOWN)
    wide, second, stride = load_int64(model, G_WIDE), load_int64(model, G_UP), load_int64(model, G_WIDE_STRIDE)
    # Other pieces still read the inputs of gate and up, so that those of down are written behind them.
    _gate_and_up(model, matrices, begin, end, rows, load_int64(model, G_NORMED), 0, (wide, second, stride),
                 load_int64(model, G_ACTIVATION), MAX_ROWS)  # fmt: skip


@_inline
def _gate_and_up(model, matrices, begin, end, rows, source, encoded, targets, kind, place):
    """Inner channels `begin` to `end` of a feed-forward network or an expert, for `rows` rows side by side.

    `source` and `encoded`: the inputs, as in `_multiply`; `targets`: where gate and up are written, and the stride of
    their rows; `place`: the row at which the rounded inputs of down start.
    """
    gate, up, down = matrices
    wide, second, wide_stride = targets
    stride, gated = load_int64(model, G_X_STRIDE), load_int64(gate, M_ADDRESS) != 0
    if gated:
        _multiply(model, gate, begin, end, rows, source, stride, encoded, wide, wide_stride)
        _multiply(model, up, begin, end, rows, source, stride, encoded, second, wide_stride)
    else:
        _multiply(model, up, begin, end, rows, source, stride, encoded, wide, wide_stride)
    for row in range(rows):
        target, other = wide + row * wide_stride, second + row * wide_stride
        if kind == CLAMPED:
            _clamp(target, other, begin, end, load_float32(load_int64(model, G_FLOATS), F_CLAMP))
        else:
            _activate(target, begin, end, kind)
        if gated:
            multiply_in_place(target + 4 * begin, other + 4 * begin, (end - begin + 15) // 16)
        _encode(model, row + place, target, begin, end, load_int64(down, M_COLUMNS), _bit(down))


@_inline
def _clamp(gate, up, begin, end, limit):
    """GPT-OSS's activation of a part of a row of gate, and its change of up, in place."""
    for i in range(begin, end):
        value = min(load_float32(gate, i), limit)
        store_float32(gate, i, value / (float32(1.0) + _exp(float32(-1.702) * value)))
        store_float32(up, i, max(min(load_float32(up, i), limit), -limit) + float32(1.0))


@_inline
def _expert_matrices(layer, expert):
    address = load_int64(layer, L_EXPERTS) + 8 * E_SIZE * expert
    return load_int64(address, E_GATE), load_int64(address, E_UP), load_int64(address, E_DOWN)


@_inline
def _widen_expert(model, layer, number, begin, end, rows):
    """Inner channels `begin` to `end` of the expert that is the `number`-th in use, for the rows that chose it."""
    if number >= load_int64(load_int64(model, G_USED), 0):
        return
    used, stride = load_int64(model, G_USED) + 8 * (1 + 3 * number), load_int64(model, G_EXPERT_STRIDE)
    first, count = load_int64(used, 1), load_int64(used, 2)
    matrices = _expert_matrices(layer, load_int64(used, 0))
    end = min(end, load_int64(matrices[1], M_ROWS))
    if begin >= end:
        return
    source, encoded = load_int64(model, G_NORMED), int64(0)
    if rows > 1:
        source = load_int64(model, G_GATHERED) + first * load_int64(model, G_X_STRIDE)
        encoded = 2 * MAX_ROWS + first
    targets = (
        load_int64(model, G_EXPERT_WIDE) + first * stride, load_int64(model, G_EXPERT_UP) + first * stride, stride
    )  # fmt: skip
    place = MAX_ROWS * (load_int64(model, G_CHOSEN) + 3) + first
    _gate_and_up(model, matrices, begin, end, count, source, encoded, targets,
                 load_int64(model, G_EXPERT_ACTIVATION), place)  # fmt: skip


@_inline
def _narrow_experts(model, layer, begin, end, rows):
    """Channels `begin` to `end` of what the experts of each row give, times their weights."""
    used, wide, wide_stride = (
        load_int64(model, G_USED), load_int64(model, G_EXPERT_WIDE), load_int64(model, G_EXPERT_STRIDE)
    )  # fmt: skip
    stride, out, chosen = load_int64(model, G_X_STRIDE), load_int64(model, G_EXPERT_OUT), load_int64(model, G_CHOSEN)
    for number in range(load_int64(used, 0)):
        entry = used + 8 * (1 + 3 * number)
        first, count, down = (
            load_int64(entry, 1),
            load_int64(entry, 2),
            _expert_matrices(layer, load_int64(entry, 0))[2],
        )
        _multiply(model, down, begin, end, count, wide + first * wide_stride, wide_stride,
                  MAX_ROWS * (chosen + 3) + first, out + first * stride, stride)  # fmt: skip
    for row in range(rows):
        target = load_int64(model, G_DOWN_OUT) + row * stride
        weights = load_int64(model, G_ROUTES) + row * load_int64(model, G_ROUTES_STRIDE)
        weights += 4 * (2 * load_int64(model, G_EXPERTS) + 1)
        places = load_int64(model, G_PLACES) + 8 * (row * 2 + 1) * (chosen + 1)
        for k in range(chosen + load_int64(model, G_SHARED)):
            source, weight = out + load_int64(places, k) * stride, load_float32(weights, k)
            for i in range(begin, end):
                before = load_float32(target, i) if k else float32(0.0)
                store_float32(target, i, before + weight * load_float32(source, i))


@_inline
def _activate(target, begin, end, kind):
    """The activation of a part of a row, in place."""
    if kind == 0:
        for i in range(begin, end):
            store_float32(target, i, _activated(load_float32(target, i), 0))
    elif kind == 1:
        for i in range(begin, end):
            store_float32(target, i, _activated(load_float32(target, i), 1))
    elif kind == 2:
        for i in range(begin, end):
            store_float32(target, i, _activated(load_float32(target, i), 2))
    else:
        for i in range(begin, end):
            store_float32(target, i, _activated(load_float32(target, i), kind))


@_inline
def _predict(table, model, piece, begin, end):
    """Logits `begin` to `end`, piece number `piece`, of every row that wants them, and their summary."""
    rows, head = load_int64(table, S_HEAD_COUNT), load_int64(model, G_HEAD)
    out, stride = load_int64(table, S_LOGITS), 4 * load_int64(model, G_VOCAB)
    source, x_stride = load_int64(model, G_NORMED), load_int64(model, G_X_STRIDE)
    _multiply(model, head, begin, end, rows, source, x_stride, 0, out, stride)
    bias, softcap = load_int64(model, G_LOGITS_BIAS), load_float32(load_int64(model, G_FLOATS), F_LOGIT_SOFTCAP)
    if bias or softcap > 0:
        for row in range(rows):
            for i in range(begin, end):
                value = load_float32(out + row * stride, i)
                if bias:
                    value += load_float32(bias, i)
                if softcap > 0:
                    value = softcap * _tanh(value / softcap)
                store_float32(out + row * stride, i, value)
    for row in range(rows):
        place = row * PIECES * load_int64(model, G_THREADS) + piece
        _summarize(out + row * stride, begin, end, load_int64(table, S_SUMMARY) + 4 * SUMMARY * place)


@_inline
def _summarize(logits, begin, end, summary):
    """Writes what SUMMARY names of a row's logits `begin` to `end`."""
    whole, largest = (end - begin) // 16, load_float32(logits, begin)
    if whole:
        largest = largest_float32(logits + 4 * begin, whole)
    for i in range(begin + 16 * whole, end):
        value = load_float32(logits, i)
        if value > largest or value != value:
            largest = value
    place = begin
    while place < end and load_float32(logits, place) != largest:
        place += 1
    total = float32(0.0)
    if largest != float32(-math.inf):  # Else -inf - -inf would be NaN.
        total = exponentials(logits + 4 * begin, whole, largest)
        for i in range(begin + 16 * whole, end):
            total += _exp(load_float32(logits, i) - largest)
    store_float32(summary, 0, largest)
    store_float32(summary, 1, float32(place))
    store_float32(summary, 2, total)


@_inline
def _piece_rows(matrix_rows, threads, multiple):
    """Rows of a matrix in a piece: at most PIECES for each thread, and a multiple of `multiple`."""
    pieces = PIECES * threads if threads > 1 else 1
    return ((matrix_rows + pieces - 1) // pieces + multiple - 1) // multiple * multiple


# What a phase does; the phases of a layer, in order, then those of the head.
(
    BEFORE_ATTENTION, PROJECT, WRITE_KEYS, PROJECT_QUERIES, ATTEND, ENCODE_MIXED, PROJECT_OUT, BEFORE_FEED_FORWARD,
    ARRANGE, WIDEN, NARROW, LAYER_PHASES,
) = range(12)  # fmt: skip
BEFORE_HEAD, PREDICT = LAYER_PHASES, LAYER_PHASES + 1


@_inline
def _pieces(kind, table, model, layer, rows, threads):
    """How many pieces a phase has, 0 if it is left out; and how many rows of a matrix a piece has."""
    heads, groups, size = (
        load_int64(model, G_HEADS), load_int64(model, G_KV_HEADS), load_int64(model, G_HEAD_DIM)
    )  # fmt: skip
    apart = load_int64(model, G_NORMS_WHOLE) != 0 or load_int64(model, G_LATENT) != 0
    together = load_int64(table, S_ONE_EACH) != 0 and rows * groups >= threads and not apart
    total, each = int64(0), int64(1)
    if kind in (BEFORE_ATTENTION, BEFORE_FEED_FORWARD):
        total = rows
    elif kind == WRITE_KEYS:
        total = 0 if together else rows
    elif kind == ATTEND:
        total = rows * groups if together else rows * heads
    elif kind == ENCODE_MIXED:
        total = rows if load_int64(model, G_MIX_DIM) % 32 else 0
    elif kind == PROJECT:
        total = load_int64(model, G_PROJECTED)
        each = _piece_rows(total, threads, PIECE)
    elif kind == PROJECT_QUERIES:
        total = heads * size if load_int64(model, G_QUERY_RANK) else 0
        each = _piece_rows(total, threads, PIECE)
    elif kind in (PROJECT_OUT, NARROW):
        total, each = load_int64(model, G_HIDDEN), _piece_rows(load_int64(model, G_HIDDEN), threads, PIECE)
    elif kind == ARRANGE:
        total = int64(load_int64(layer, L_EXPERTS) != 0)
    elif kind == WIDEN and load_int64(layer, L_EXPERTS):
        inner = load_int64(model, G_EXPERT_INNER)
        each = _piece_rows(inner, threads, 128)
        # As many experts as may be in use: a late thread must not count those of the next layer instead.
        most = min(rows * load_int64(model, G_CHOSEN), load_int64(model, G_EXPERTS)) + load_int64(model, G_SHARED)
        total = most * ((inner + each - 1) // each) * each
    elif kind == WIDEN:
        total, each = load_int64(model, G_INNER), _piece_rows(load_int64(model, G_INNER), threads, 128)
    elif kind == BEFORE_HEAD:
        total = load_int64(table, S_HEAD_COUNT)
    elif load_int64(table, S_HEAD_COUNT):
        total, each = load_int64(model, G_VOCAB), _piece_rows(load_int64(model, G_VOCAB), threads, PIECE)
    return (total + each - 1) // each, each, total, together


@_inline
def _run_piece(kind, piece, shape, step, layer, previous, number):
    """Runs one piece of a phase."""
    each, total, together = shape
    table, model, rows, scratch = step
    begin, end = piece * each, min((piece + 1) * each, total)
    heads, groups = load_int64(model, G_HEADS), load_int64(model, G_KV_HEADS)
    stride = load_int64(model, G_X_STRIDE)
    if kind == BEFORE_ATTENTION:
        _before_attention(table, model, layer, previous, piece)
    elif kind == PROJECT:
        matrices = load_int64(layer, L_QUERY), load_int64(layer, L_KEY), load_int64(layer, L_VALUE)
        qkv, qkv_stride = load_int64(model, G_QKV), load_int64(model, G_QKV_STRIDE)
        _multiply_stacked(model, matrices, begin, end, rows, load_int64(model, G_NORMED), stride, qkv, qkv_stride)
    elif kind == WRITE_KEYS and load_int64(model, G_LATENT):
        _write_latent(table, model, layer, number, piece, scratch)
    elif kind == WRITE_KEYS:
        if load_int64(model, G_NORMS_WHOLE):
            _norm_whole(layer, model, piece)
        for group in range(groups):
            _write_keys(table, model, layer, number, piece, group, scratch)
    elif kind == PROJECT_QUERIES:
        _multiply(model, load_int64(layer, L_QUERY_B), begin, end, rows, load_int64(model, G_QUERY_VECTOR),
                  load_int64(model, G_QUERY_VECTOR_STRIDE), 0, load_int64(model, G_QUERIES),
                  4 * heads * load_int64(model, G_HEAD_DIM))  # fmt: skip
    elif kind == ATTEND:
        if together:
            row, group, each_group = piece // groups, piece % groups, heads // groups
            _write_keys(table, model, layer, number, row, group, scratch)
            for head in range(group * each_group, (group + 1) * each_group):
                _mix(table, model, layer, number, row, head, scratch)
        else:
            _mix(table, model, layer, number, piece // heads, piece % heads, scratch)
    elif kind == ENCODE_MIXED:
        source = load_int64(model, G_MIXED) + piece * load_int64(model, G_MIXED_STRIDE)
        size = heads * load_int64(model, G_MIX_DIM)
        _encode(model, piece, source, 0, size, size, _bit(load_int64(layer, L_OUT)))
    elif kind == PROJECT_OUT:
        _multiply(model, load_int64(layer, L_OUT), begin, end, rows, load_int64(model, G_MIXED),
                  load_int64(model, G_MIXED_STRIDE), 0, load_int64(model, G_MIXED_OUT), stride)  # fmt: skip
    elif kind == BEFORE_FEED_FORWARD:
        _before_feed_forward(model, layer, piece)
    elif kind == ARRANGE:
        _arrange(model, layer, rows)
    elif kind == WIDEN and load_int64(layer, L_EXPERTS):
        pieces = (load_int64(model, G_EXPERT_INNER) + each - 1) // each
        begin = piece % pieces * each
        _widen_expert(model, layer, piece // pieces, begin, begin + each, rows)
    elif kind == WIDEN:
        _widen(model, layer, begin, end, rows)
    elif kind == NARROW and load_int64(layer, L_EXPERTS):
        _narrow_experts(model, layer, begin, end, rows)
    elif kind == NARROW:
        _multiply(model, load_int64(layer, L_DOWN), begin, end, rows, load_int64(model, G_WIDE),
                  load_int64(model, G_WIDE_STRIDE), MAX_ROWS, load_int64(model, G_DOWN_OUT), stride)  # fmt: skip
    elif kind == BEFORE_HEAD:
        _before_head(table, model, layer, piece)
    else:
        _predict(table, model, piece, begin, end)


@_compiled(types.boolean, 3)
def take_part(control, step, thread):
    """Runs pieces of a step until it is done, as the thread of this number. Returns whether it is."""
    table = load_int64(control, C_TABLE)
    model, rows = load_int64(table, S_MODEL), load_int64(table, S_ROWS)
    threads, layers = load_int64(model, G_THREADS), load_int64(model, G_NUM_LAYERS)
    scratch = load_int64(model, G_SCRATCH) + thread * load_int64(model, G_SCRATCH_STRIDE)
    if atomic_load(control + 8 * C_STEP) != step:
        return False
    for phase in range(layers * LAYER_PHASES + 2):
        number, kind = phase // LAYER_PHASES, phase % LAYER_PHASES
        if number == layers:
            number, kind = layers - 1, kind + LAYER_PHASES
        layer = load_int64(model, G_LAYERS) + 8 * L_SIZE * number
        previous = layer - 8 * L_SIZE if number else int64(0)
        pieces, each, total, together = _pieces(kind, table, model, layer, rows, threads)
        if pieces == 0:
            continue
        while True:
            piece = _claim(control, phase, step, pieces)
            if piece < 0:
                break
            _run_piece(kind, piece, (each, total, together), (table, model, rows, scratch), layer, previous, number)
            _done(control, phase)
        if piece == -2 or not _wait(control, phase, step, pieces):
            return False
    return True


@_compiled(types.int64, 3)
def likeliest(table, model, out):
    """Writes for each row whose logits were wanted its likeliest token, the log-probability of that, the log of the sum
    of all e^x, and the token's logit: (4, N) float32. The last three are NaN if a logit is.
    """
    rows, threads, vocabulary = (
        load_int64(table, S_HEAD_COUNT),
        load_int64(model, G_THREADS),
        load_int64(model, G_VOCAB),
    )
    each = _piece_rows(vocabulary, threads, PIECE)
    pieces = (vocabulary + each - 1) // each
    for row in range(rows):
        base = load_int64(table, S_SUMMARY) + 4 * SUMMARY * PIECES * threads * row
        largest, token = load_float32(base, 0), load_float32(base, 1)
        for piece in range(1, pieces):
            value = load_float32(base, SUMMARY * piece)
            if value > largest or value != value:
                largest, token = value, load_float32(base, SUMMARY * piece + 1)
        total = float32(0.0)
        for piece in range(pieces):
            scale = math.exp(load_float32(base, SUMMARY * piece) - largest)
            total += load_float32(base, SUMMARY * piece + 2) * float32(scale)
        log = float32(math.log(total))
        store_float32(out, row, token)
        store_float32(out, rows + row, -log)
        store_float32(out, 2 * rows + row, largest + log)
        store_float32(out, 3 * rows + row, largest)
    return rows


@_compiled(types.int64, 3)
def start_step(control, table, layers):
    """Makes a step the one that runs; returns its number."""
    step = (load_int64(control, C_STEP) + 1) & 0x7FFFFFFF
    # Nobody may claim anything of the new step before its table is known, nor anything of the old one.
    for phase in range(layers * LAYER_PHASES + 2):
        address = control + 8 * (C_PHASES + phase * PHASE_SPACING)
        atomic_store(address + 64, 0)
        atomic_store(address, step << 32)
    atomic_store(control + 8 * C_TABLE, table)
    atomic_store(control + 8 * C_STEP, step)
    return step


@_compiled(types.int64, 3)
def await_step(control, seen, spins):
    """Waits for so many rounds for a step other than `seen`; returns the number of the last."""
    step = atomic_load(control + 8 * C_STEP)
    for _ in range(spins):
        if step != seen:
            break
        pause()
        step = atomic_load(control + 8 * C_STEP)
    return step
