"""Vector operations that Numba's Python has no words for, written as LLVM instructions: typed loads and stores at
addresses, atomic counters, and products of a few rows of a weight with a few rows of activations.

A product reads each weight from memory once, in the bits in which the layer stores it, and expands it in registers.
Vectors are 64 bytes wide; LLVM splits them on processors with narrower ones. The two dot-product instructions of
AVX-512 (integers, VNNI; bfloat16) are used where the processor has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config as numba_config
from numba.core.cgutils import alloca_once, for_range, get_or_insert_function
from numba.extending import intrinsic

FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, INT4_SMALL_GROUPS = range(6)
"""How a weight is stored. INT4 has groups of 128, INT4_SMALL_GROUPS of 64 or 32."""

F32, I1, I8, I16, I32, I64, HALF = (
    ir.FloatType(),
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.HalfType(),
)
LANES = 16
WIDE, WIDE_INT4 = (8, 2), (4, 4)
"""Rows of a weight and of activations that are multiplied together where there are several of both. Weights of 4 bits
are expanded for twice as many rows of activations."""


class _BFloatType(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    null = "0.0"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloatType)

    def __hash__(self) -> int:
        return hash(_BFloatType)


def _vector(kind: Any, lanes: int) -> Any:
    return ir.VectorType(kind, lanes)


FLOATS, INTS, BYTES, WORDS = _vector(F32, LANES), _vector(I32, LANES), _vector(I8, 64), _vector(I16, 32)


def _processor_features() -> dict[str, bool]:
    """The instructions that Numba compiles for; its settings may name another processor than this one."""
    if numba_config.CPU_NAME or numba_config.CPU_FEATURES:
        wanted = str(numba_config.CPU_FEATURES or "").split(",")
        return {name.lstrip("+"): True for name in wanted if name.startswith("+")}
    return dict(llvm.get_host_cpu_features())


_FEATURES = _processor_features()
HAS_VNNI = bool(_FEATURES.get("avx512vnni"))
HAS_BFLOAT16 = bool(_FEATURES.get("avx512bf16"))


def _constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _call(builder: Any, name: str, returns: Any, arguments: list[Any], fast: tuple[str, ...] = ()) -> Any:
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(get_or_insert_function(builder.module, kind, name), arguments, fastmath=fast)


def _load(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _store(builder: Any, value: Any, address: Any, align: int = 1) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def _at(builder: Any, address: Any, bytes_: int) -> Any:
    return builder.add(address, ir.Constant(I64, bytes_)) if bytes_ else address


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, _constant(_vector(I32, kind.count), 0))


def _prefetch(builder: Any, address: Any) -> None:
    """Fetches the line of an address into the cache; any address will do."""
    byte = builder.inttoptr(address, I8.as_pointer())
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, *(ir.Constant(I32, value) for value in (0, 3, 1))])


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", FLOATS, [a, b, c])


def _shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(_vector(I32, len(lanes)), lanes))


def _sums(builder: Any, values: list[Any]) -> Any:
    """The sum of the 16 lanes of each of 1, 2, 4, 8 or 16 vectors, as one vector of so many lanes.

    The halves of a vector's lanes are added to each other until one is left, so that a sum has the same rounding
    whatever stands beside it.
    """
    count, width = len(values), LANES
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=True)
        values, width = [_halved(builder, a, b, width) for a, b in pairs], width // 2
    value = values[0]
    while width > 1:
        value, width = _halved(builder, value, None, width), width // 2
    return value if count > 1 else builder.extract_element(value, ir.Constant(I32, 0))


def _halved(builder: Any, a: Any, b: Any, width: int) -> Any:
    """Adds the halves of each `width` lanes of one or two vectors."""
    total = a.type.count * (1 if b is None else 2)
    starts = range(0, total, width)
    lower, upper = (
        _shuffled(
            builder, a, a if b is None else b, [start + half + lane for start in starts for lane in range(width // 2)]
        )
        for half in (0, width // 2)
    )
    return builder.fadd(lower, upper)


def _byte_products(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """total (16 int32) + for each lane the sum of four products of unsigned and signed bytes."""
    if HAS_VNNI:
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, [total, unsigned, signed])
    wide = _vector(I16, 64)
    a, b = builder.zext(unsigned, wide), builder.sext(signed, wide)
    for part in range(4):
        lanes = list(range(part, 64, 4))
        left, right = (builder.sext(_shuffled(builder, x, x, lanes), INTS) for x in (a, b))
        total = builder.add(total, builder.mul(left, right))
    return total


def _bfloat16_products(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """total (16 float32) + for each lane the sum of two products of bfloat16 (32 words each)."""
    if HAS_BFLOAT16:
        kind = _vector(_BFloatType(), 32)
        pair = [builder.bitcast(x, kind) for x in (a, b)]
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, [total, *pair])
    left, right = builder.bitcast(a, INTS), builder.bitcast(b, INTS)
    for expand in (
        lambda x: builder.shl(x, _constant(INTS, 16)),
        lambda x: builder.and_(x, _constant(INTS, -65536)),
    ):
        first, second = (builder.bitcast(expand(x), FLOATS) for x in (left, right))
        total = _fma(builder, first, second, total)
    return total


class _Format:
    """A stored weight: `step` elements are read at a time, `weight_bytes` and `input_bytes` of memory."""

    def __init__(self, kind: int):
        self.kind = kind
        sizes = {
            FLOAT32: (16, 64, 64),
            BFLOAT16: (32, 64, 64),
            FLOAT16: (16, 32, 64),
            INT8: (64, 64, 192),
            INT4: (128, 64, 256),
            INT4_SMALL_GROUPS: (128, 64, 256),
        }
        self.step, self.weight_bytes, self.input_bytes = sizes[kind]

    def elements_bytes(self, builder: Any, elements: Any) -> Any:
        """Bytes of so many elements of a row of the weight."""
        if self.kind in (INT4, INT4_SMALL_GROUPS):
            return builder.lshr(elements, ir.Constant(I64, 1))
        return builder.mul(elements, ir.Constant(I64, self.weight_bytes // self.step))

    def weight(self, builder: Any, address: Any) -> Any:
        """A step of a row in registers."""
        if self.kind == FLOAT32:
            return _load(builder, address, FLOATS)
        if self.kind == BFLOAT16:
            return _load(builder, address, WORDS)
        if self.kind == FLOAT16:
            return builder.fpext(_load(builder, address, _vector(HALF, LANES)), FLOATS)
        found = _load(builder, address, BYTES)
        if self.kind == INT8:
            return builder.xor(found, _constant(BYTES, -128))
        upper = builder.lshr(builder.bitcast(found, WORDS), _constant(WORDS, 4))
        mask = _constant(BYTES, 15)
        return builder.and_(found, mask), builder.and_(builder.bitcast(upper, BYTES), mask)

    def input(self, builder: Any, address: Any) -> Any:
        """A step of activations: as floats, or integers with what corrects for the offset of weights, and scales."""
        if self.kind in (FLOAT32, FLOAT16):
            return _load(builder, address, FLOATS)
        if self.kind == BFLOAT16:
            return _load(builder, address, WORDS)
        numbers = [_load(builder, _at(builder, address, 64 * part), BYTES) for part in range(self.step // 64)]
        correction = _load(builder, _at(builder, address, self.step), INTS)
        return numbers, correction, _load(builder, _at(builder, address, self.step + 64), FLOATS)

    def added(self, builder: Any, total: Any, weight: Any, x: Any, scale: Any) -> Any:
        """The total (16 float32) with one step of products added to it."""
        if self.kind in (FLOAT32, FLOAT16):
            return _fma(builder, weight, x, total)
        if self.kind == BFLOAT16:
            return _bfloat16_products(builder, total, weight, x)
        numbers, correction, scales = x
        parts = [weight] if self.kind == INT8 else weight
        for part, number in zip(parts, numbers, strict=True):
            correction = _byte_products(builder, correction, part, number)
        if scale is not None:
            scales = builder.fmul(scales, scale)
        return _fma(builder, builder.sitofp(correction, FLOATS), scales, total)

    def scale(self, builder: Any, row: Any, step: Any, group: Any, last: Any = None) -> Any:
        """The 16 factors of a step of a row of 4-bit weights, whose scales (bfloat16) are at `row`; None for others.

        last: the number of the row's last group, where the step may reach beyond it.
        """
        if self.kind == INT4:
            address = builder.add(row, builder.shl(step, ir.Constant(I64, 1)))
            return _splat(builder, _bfloat16(builder, address), FLOATS)
        if self.kind != INT4_SMALL_GROUPS:
            return None
        values = ir.Constant(FLOATS, ir.Undefined)
        first = builder.shl(step, ir.Constant(I64, 7))
        for part in range(4):
            place = builder.udiv(_at(builder, first, 32 * part), group)
            if last is not None:
                place = builder.select(builder.icmp_unsigned("<", place, last), place, last)
            value = _bfloat16(builder, builder.add(row, builder.shl(place, ir.Constant(I64, 1))))
            values = builder.insert_element(values, value, ir.Constant(I32, part))
        return _shuffled(builder, values, values, [lane // 4 for lane in range(LANES)])


def _bfloat16(builder: Any, address: Any) -> Any:
    word = builder.zext(_load(builder, address, I16), I32)
    return builder.bitcast(builder.shl(word, ir.Constant(I32, 16)), F32)


def _product(kind: int, rows: int, columns: int) -> Callable[..., Any]:
    """An intrinsic that multiplies `rows` rows of a weight with `columns` rows of activations.

    Its arguments are the addresses of the weight and of the activations, and a tuple of int64: bytes of a row of
    either; elements of a row; address of the scales of groups, bytes of a row of them, weights of a group; where to
    write the first row's product of the first column, and bytes between columns; addresses of a factor and an addend
    (float32) for each row, or 0 for none; how far into the next rows to fetch. Products of a column are side by side.
    """
    form = _Format(kind)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weight, x, sizes = arguments
        weight_row, x_row, count, scales, scale_row, group, out, out_row, factor, addend, fetch = (
            builder.extract_value(sizes, place) for place in range(11)
        )
        indices = [ir.Constant(I64, index) for index in range(max(rows, columns))]
        weights = [builder.add(weight, builder.mul(weight_row, indices[row])) for row in range(rows)]
        inputs = [builder.add(x, builder.mul(x_row, indices[column])) for column in range(columns)]
        factors = [builder.add(scales, builder.mul(scale_row, indices[row])) for row in range(rows)]
        # The next rows are fetched meanwhile, which the processor does not foresee while these are read repeatedly:
        # in whole for one column, else two lines in each step, so that all columns share the work. One row after the
        # other is foreseen; 4-bit weights, which take the most work for a byte, are then best left to the processor.
        ahead = builder.mul(weight_row, ir.Constant(I64, 4 if rows == 1 else 2 * rows))
        fetches = rows > 1 or kind not in (INT4, INT4_SMALL_GROUPS)
        fetched = builder.add(builder.add(weight, ahead), fetch)
        totals = [alloca_once(builder, FLOATS) for _ in range(rows * columns)]
        for total in totals:
            builder.store(_constant(FLOATS, 0.0), total)

        def step(number: Any, addresses: list[Any], last: Any = None) -> None:
            offset = builder.mul(number, ir.Constant(I64, form.input_bytes))
            packed = [form.weight(builder, address) for address in addresses]
            if columns == 1:
                for address in addresses if fetches else ():
                    _prefetch(builder, builder.add(address, ahead))
            else:
                line = builder.add(fetched, builder.shl(number, ir.Constant(I64, 7)))
                for address in (line, _at(builder, line, 64)):
                    _prefetch(builder, address)
            scale = [form.scale(builder, row, number, group, last) for row in factors]
            for column in range(columns):
                values = form.input(builder, builder.add(inputs[column], offset))
                for row in range(rows):
                    total = totals[column * rows + row]
                    builder.store(form.added(builder, builder.load(total), packed[row], values, scale[row]), total)

        whole = builder.udiv(count, ir.Constant(I64, form.step))
        with for_range(builder, whole) as loop:
            offset = builder.mul(loop.index, ir.Constant(I64, form.weight_bytes))
            step(loop.index, [builder.add(address, offset) for address in weights])
        rest = builder.sub(count, builder.mul(whole, ir.Constant(I64, form.step)))
        with builder.if_then(builder.icmp_unsigned(">", rest, ir.Constant(I64, 0)), likely=False):
            # The last elements are copied and the last scale repeated, so that nothing beyond the weight is read;
            # activations end in zeros.
            begin = builder.mul(whole, ir.Constant(I64, form.weight_bytes))
            bytes_ = form.elements_bytes(builder, rest)
            copies = [alloca_once(builder, ir.ArrayType(I8, form.weight_bytes)) for _ in range(rows)]
            for row in range(rows):
                builder.store(ir.Constant(ir.ArrayType(I8, form.weight_bytes), None), copies[row])
                target, source = builder.ptrtoint(copies[row], I64), builder.add(weights[row], begin)
                with for_range(builder, bytes_) as loop:
                    byte = _load(builder, builder.add(source, loop.index), I8)
                    _store(builder, byte, builder.add(target, loop.index))
            last = None
            if kind == INT4_SMALL_GROUPS:
                last = builder.udiv(builder.sub(count, ir.Constant(I64, 1)), group)
            step(whole, [builder.ptrtoint(copy, I64) for copy in copies], last)
        _write(builder, [builder.load(total) for total in totals], rows, out, out_row, factor, addend)
        return context.get_dummy_value()

    @intrinsic
    def product(typing_context, weight, x, sizes):
        return types.void(types.int64, types.int64, sizes), generate

    return product


def _write(builder: Any, totals: list[Any], rows: int, out: Any, out_row: Any, factor: Any, addend: Any) -> None:
    """Writes the sums of totals, those of a column side by side, times a factor and plus an addend for each row."""
    kind = _vector(F32, rows) if rows > 1 else F32
    some = ir.Constant(kind, [1.0] * rows if rows > 1 else 1.0), ir.Constant(kind, [0.0] * rows if rows > 1 else 0.0)
    holders = []
    for address, neutral in zip((factor, addend), some, strict=True):
        holder = alloca_once(builder, kind)
        builder.store(neutral, holder)
        with builder.if_then(builder.icmp_unsigned("!=", address, ir.Constant(I64, 0))):
            builder.store(_load(builder, address, kind, 4), holder)
        holders.append(builder.load(holder))
    most = LANES if rows > 1 else 1
    for start in range(0, len(totals), most):
        sums = _sums(builder, totals[start : start + most])
        for place in range(0, min(most, len(totals)), rows):
            value = (
                sums if rows in (1, len(totals)) else _shuffled(builder, sums, sums, list(range(place, place + rows)))
            )
            value = builder.fadd(builder.fmul(value, holders[0]), holders[1])
            column = builder.mul(out_row, ir.Constant(I64, (start + place) // rows))
            _store(builder, value, builder.add(out, column), 4)


def _read_vector(builder: Any, kind: int, address: Any) -> Any:
    """16 elements of a format of floats, as float32."""
    if kind == FLOAT32:
        return _load(builder, address, FLOATS)
    if kind == FLOAT16:
        return builder.fpext(_load(builder, address, _vector(HALF, LANES)), FLOATS)
    words = builder.zext(_load(builder, address, _vector(I16, LANES)), INTS)
    return builder.bitcast(builder.shl(words, _constant(INTS, 16)), FLOATS)


def _scores(kind: int) -> Callable[..., Any]:
    """An intrinsic: a query's products with keys in a row.

    Arguments: address of the query in float32; of the keys; how many keys; size of a head, a multiple of 16; where
    to write the products, with room for a multiple of 4.
    """
    width = 4 if kind == FLOAT32 else 2

    def four(builder: Any, query: Any, keys: list[Any], size: Any) -> Any:
        totals = [alloca_once(builder, FLOATS) for _ in keys]
        for total in totals:
            builder.store(_constant(FLOATS, 0.0), total)
        with for_range(builder, builder.lshr(size, ir.Constant(I64, 4))) as loop:
            place = builder.mul(loop.index, ir.Constant(I64, LANES * width))
            x = _load(builder, builder.add(query, builder.mul(loop.index, ir.Constant(I64, 64))), FLOATS)
            for key, total in zip(keys, totals, strict=True):
                value = _read_vector(builder, kind, builder.add(key, place))
                builder.store(_fma(builder, x, value, builder.load(total)), total)
        return _sums(builder, [builder.load(total) for total in totals])

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        query, keys, count, size, out = arguments
        row = builder.mul(size, ir.Constant(I64, width))
        last = builder.sub(count, ir.Constant(I64, 1))
        blocks = builder.lshr(builder.add(count, ir.Constant(I64, 3)), ir.Constant(I64, 2))
        with for_range(builder, blocks) as loop:
            first, addresses = builder.shl(loop.index, ir.Constant(I64, 2)), []
            for number in range(4):
                place = builder.add(first, ir.Constant(I64, number))
                # Beyond the last key the last one is read again; nobody reads what comes of it.
                place = builder.select(builder.icmp_signed("<", place, last), place, last)
                addresses.append(builder.add(keys, builder.mul(place, row)))
            value = four(builder, query, addresses, size)
            _store(builder, value, builder.add(out, builder.shl(first, ir.Constant(I64, 2))))
        return context.get_dummy_value()

    return generate


def _mixture(kind: int) -> Callable[..., Any]:
    """An intrinsic that adds values in a row, each times its weight, to a head's output.

    Arguments: address of the weights in float32; of the values; how many; size of a head, a multiple of 16; the
    output's address.
    """
    width = 4 if kind == FLOAT32 else 2

    def part(builder: Any, arguments: Any, begin: Any, vectors: int) -> None:
        weights, values, count, size, out = arguments
        row = builder.mul(size, ir.Constant(I64, width))
        totals = [alloca_once(builder, FLOATS) for _ in range(vectors)]
        target = builder.add(out, builder.mul(begin, ir.Constant(I64, 4)))
        source = builder.add(values, builder.mul(begin, ir.Constant(I64, width)))
        for number, total in enumerate(totals):
            builder.store(_load(builder, _at(builder, target, 64 * number), FLOATS), total)
        with for_range(builder, count) as loop:
            weight = _load(builder, builder.add(weights, builder.shl(loop.index, ir.Constant(I64, 2))), F32, 4)
            weight, address = _splat(builder, weight, FLOATS), builder.add(source, builder.mul(loop.index, row))
            for number, total in enumerate(totals):
                value = _read_vector(builder, kind, _at(builder, address, LANES * width * number))
                builder.store(_fma(builder, weight, value, builder.load(total)), total)
        for number, total in enumerate(totals):
            _store(builder, builder.load(total), _at(builder, target, 64 * number))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = arguments[3]
        wide = builder.lshr(size, ir.Constant(I64, 6))
        with for_range(builder, wide) as loop:
            part(builder, arguments, builder.shl(loop.index, ir.Constant(I64, 6)), 4)
        rest = builder.lshr(builder.and_(size, ir.Constant(I64, 63)), ir.Constant(I64, 4))
        with for_range(builder, rest) as loop:
            place = builder.add(builder.shl(wide, ir.Constant(I64, 6)), builder.shl(loop.index, ir.Constant(I64, 4)))
            part(builder, arguments, place, 1)
        return context.get_dummy_value()

    return generate


def _squares(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The sum of squares of 16 `count` float32 at an address, each less a mean."""
    address, count, mean = arguments
    total, mean = alloca_once(builder, FLOATS), _splat(builder, mean, FLOATS)
    builder.store(_constant(FLOATS, 0.0), total)
    with for_range(builder, count) as loop:
        value = _load(builder, builder.add(address, builder.shl(loop.index, ir.Constant(I64, 6))), FLOATS)
        value = builder.fsub(value, mean)
        builder.store(_fma(builder, value, value, builder.load(total)), total)
    return _sums(builder, [builder.load(total)])


def _sum(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The sum of 16 `count` float32 at an address."""
    address, count = arguments
    total = alloca_once(builder, FLOATS)
    builder.store(_constant(FLOATS, 0.0), total)
    with for_range(builder, count) as loop:
        value = _load(builder, builder.add(address, builder.shl(loop.index, ir.Constant(I64, 6))), FLOATS)
        builder.store(builder.fadd(value, builder.load(total)), total)
    return _sums(builder, [builder.load(total)])


def _exp(builder: Any, x: Any) -> Any:
    """e^x of 16 float32 that are not above 0, to 2 units in the last place (Cephes' polynomial)."""
    x = _call(builder, "llvm.maxnum.v16f32", FLOATS, [x, _constant(FLOATS, -87.0)])
    n = _fma(builder, x, _constant(FLOATS, 1.4426950408889634), _constant(FLOATS, 0.5))
    n = _call(builder, "llvm.floor.v16f32", FLOATS, [n])
    r = _fma(builder, n, _constant(FLOATS, -0.693359375), x)
    r = _fma(builder, n, _constant(FLOATS, 2.12194440e-4), r)
    p = _constant(FLOATS, 1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = _fma(builder, p, r, _constant(FLOATS, factor))
    p = builder.fadd(_fma(builder, builder.fmul(p, r), r, r), _constant(FLOATS, 1.0))
    power = builder.shl(builder.add(builder.fptosi(n, INTS), _constant(INTS, 127)), _constant(INTS, 23))
    return builder.fmul(p, builder.bitcast(power, FLOATS))


def _largest(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The largest of 16 `count` float32 at an address; NaN if one of them is."""
    address, count = arguments
    largest = alloca_once(builder, FLOATS)
    builder.store(_load(builder, address, FLOATS), largest)
    with for_range(builder, count) as loop:
        value = _load(builder, builder.add(address, builder.shl(loop.index, ir.Constant(I64, 6))), FLOATS)
        builder.store(_call(builder, "llvm.maximum.v16f32", FLOATS, [builder.load(largest), value]), largest)
    return _call(builder, "llvm.vector.reduce.fmaximum.v16f32", F32, [builder.load(largest)])


def _exponentials(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The sum of e^(x - largest) of 16 `count` float32 at an address, none of them above `largest`."""
    address, count, largest = arguments
    total, largest = alloca_once(builder, FLOATS), _splat(builder, largest, FLOATS)
    builder.store(_constant(FLOATS, 0.0), total)
    with for_range(builder, count) as loop:
        value = _load(builder, builder.add(address, builder.shl(loop.index, ir.Constant(I64, 6))), FLOATS)
        power = _exp(builder, builder.fsub(value, largest))
        builder.store(builder.fadd(builder.load(total), power), total)
    return _sums(builder, [builder.load(total)])


def _affine(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """(x - mean) * scale * weight + bias for 16 `count` float32; weight and bias are addresses, or 0 for none."""
    source, target, count, mean, scale, weight, bias = arguments
    mean, scale = _splat(builder, mean, FLOATS), _splat(builder, scale, FLOATS)
    value = alloca_once(builder, FLOATS)
    with for_range(builder, count) as loop:
        offset = builder.shl(loop.index, ir.Constant(I64, 6))
        x = _load(builder, builder.add(source, offset), FLOATS)
        builder.store(builder.fmul(builder.fsub(x, mean), scale), value)
        with builder.if_then(builder.icmp_unsigned("!=", weight, ir.Constant(I64, 0))):
            factor = _load(builder, builder.add(weight, offset), FLOATS)
            builder.store(builder.fmul(builder.load(value), factor), value)
        with builder.if_then(builder.icmp_unsigned("!=", bias, ir.Constant(I64, 0))):
            addend = _load(builder, builder.add(bias, offset), FLOATS)
            builder.store(builder.fadd(builder.load(value), addend), value)
        _store(builder, builder.load(value), builder.add(target, offset))
    return context.get_dummy_value()


def _in_place(operation: str) -> Callable[..., Any]:
    """Adds or multiplies 16 `count` float32 at an address to or with those at a target."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, count = arguments
        with for_range(builder, count) as loop:
            offset = builder.shl(loop.index, ir.Constant(I64, 6))
            place = builder.add(target, offset)
            values = _load(builder, place, FLOATS), _load(builder, builder.add(source, offset), FLOATS)
            _store(builder, getattr(builder, operation)(*values), place)
        return context.get_dummy_value()

    return generate


def _simple(returns: Any, parameters: int, generate: Callable[..., Any]) -> Any:
    """An intrinsic of int64 parameters (or of other scalars, if `generate` takes them)."""

    # Numba reads the parameters off the function, which may not have a variable number of them.
    def one(typing_context, a):
        return returns(a), generate

    def two(typing_context, a, b):
        return returns(a, b), generate

    def three(typing_context, a, b, c):
        return returns(a, b, c), generate

    def five(typing_context, a, b, c, d, e):
        return returns(a, b, c, d, e), generate

    def seven(typing_context, a, b, c, d, e, f, g):
        return returns(a, b, c, d, e, f, g), generate

    return intrinsic({1: one, 2: two, 3: three, 5: five, 7: seven}[parameters])


def _element(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    return builder.gep(builder.inttoptr(base, kind.as_pointer()), [index])


def _load_float32(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.load(_element(builder, arguments[0], arguments[1], F32), align=4)


def _load_bfloat16(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    word = builder.zext(builder.load(_element(builder, arguments[0], arguments[1], I16), align=2), I32)
    return builder.bitcast(builder.shl(word, ir.Constant(I32, 16)), F32)


def _load_float16(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.fpext(builder.load(_element(builder, arguments[0], arguments[1], HALF), align=2), F32)


def _load_int64(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.load(_element(builder, arguments[0], arguments[1], I64), align=8)


def _store_float32(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    base, index, value = arguments
    builder.store(value, _element(builder, base, index, F32), align=4)
    return context.get_dummy_value()


def _store_int64(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    base, index, value = arguments
    builder.store(value, _element(builder, base, index, I64), align=8)
    return context.get_dummy_value()


def _store_float16(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    base, index, value = arguments
    builder.store(builder.fptrunc(value, HALF), _element(builder, base, index, HALF), align=2)
    return context.get_dummy_value()


def _store_bfloat16(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Rounds to the nearest, half way to even; NaN stays NaN."""
    base, index, value = arguments
    bits = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(I32, 16)), ir.Constant(I32, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, ir.Constant(I32, 0x7FFF))), ir.Constant(I32, 16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    word = builder.select(is_nan, ir.Constant(I32, 0x7FC0), rounded)
    builder.store(builder.trunc(word, I16), _element(builder, base, index, I16), align=2)
    return context.get_dummy_value()


def _bits_to_float32(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], F32)


def _floor(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return _call(builder, "llvm.floor.f32", F32, [arguments[0]])


def _atomic_load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.load_atomic(builder.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)


def _atomic_store(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    address, value = arguments
    builder.store_atomic(value, builder.inttoptr(address, I64.as_pointer()), "seq_cst", 8)
    return context.get_dummy_value()


def _atomic_add(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    address, value = arguments
    return builder.atomic_rmw("add", builder.inttoptr(address, I64.as_pointer()), value, "seq_cst")


def _atomic_swap(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Writes a value where an expected one stands; returns 1 where it did."""
    address, expected, value = arguments
    pointer = builder.inttoptr(address, I64.as_pointer())
    pair = builder.cmpxchg(pointer, expected, value, "seq_cst", "seq_cst")
    return builder.zext(builder.extract_value(pair, 1), I64)


def _pause(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Tells the processor that a loop waits."""
    triple = llvm.get_process_triple()
    if triple.startswith(("x86_64", "i686")):
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
    return context.get_dummy_value()


def _encoded(pairs: bool) -> Callable[..., Any]:
    """Generates the rounding of 32 float32 at an address to 8 bits, with their scale and their correction.

    The numbers are written as INT8 or, in `pairs`, as INT4 weights are read: 128 elements at a time, first those of
    even place, then the others. Arguments: source; the record of the elements; the number of the 32 in it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, record, part = arguments
        halves = [_load(builder, _at(builder, source, 64 * half), FLOATS) for half in range(2)]
        bits = [builder.and_(builder.bitcast(half, INTS), _constant(INTS, 0x7FFFFFFF)) for half in halves]
        larger = builder.select(builder.icmp_signed(">", bits[0], bits[1]), bits[0], bits[1])
        # Magnitudes compare as their bits do, and NaN is larger than any.
        largest = builder.bitcast(_call(builder, "llvm.vector.reduce.umax.v16i32", I32, [larger]), F32)
        scale = builder.fmul(largest, ir.Constant(F32, 1 / 127))
        zero = builder.fcmp_ordered("==", scale, ir.Constant(F32, 0.0))
        inverse = builder.fdiv(ir.Constant(F32, 127.0), builder.select(zero, ir.Constant(F32, 1.0), largest))
        inverse = builder.select(zero, ir.Constant(F32, 0.0), inverse)
        factor, numbers = _splat(builder, inverse, FLOATS), []
        for half in halves:
            whole = _call(builder, "llvm.rint.v16f32", FLOATS, [builder.fmul(half, factor)])
            whole = _call(builder, "llvm.fptosi.sat.v16i32.v16f32", INTS, [whole])
            numbers.append(builder.trunc(whole, _vector(I8, LANES)))
        signed = _shuffled(builder, numbers[0], numbers[1], list(range(32)))
        sixteen = ir.Constant(I64, 16)
        if pairs:
            for odd in range(2):
                chosen = _shuffled(builder, signed, signed, list(range(odd, 32, 2)))
                place = builder.add(builder.add(record, builder.mul(part, sixteen)), ir.Constant(I64, 64 * odd))
                _store(builder, chosen, place)
            lanes, offset, room = 4, 8, 128
            # A lane has 4 even and 4 odd elements: 8 in a row.
        else:
            _store(builder, signed, builder.add(record, builder.mul(part, ir.Constant(I64, 32))))
            lanes, offset, room = 8, 128, 64
        each = 32 // lanes
        sums = builder.sext(_shuffled(builder, signed, signed, list(range(0, 32, each))), _vector(I32, lanes))
        for element in range(1, each):
            chosen = _shuffled(builder, signed, signed, list(range(element, 32, each)))
            sums = builder.add(sums, builder.sext(chosen, _vector(I32, lanes)))
        sums = builder.mul(sums, _constant(_vector(I32, lanes), -offset))
        place = builder.add(_at(builder, record, room), builder.mul(part, ir.Constant(I64, 4 * lanes)))
        _store(builder, sums, place)
        _store(builder, _splat(builder, scale, _vector(F32, lanes)), _at(builder, place, 64))
        return context.get_dummy_value()

    return generate


PRODUCTS = {
    (kind, rows, columns): _product(kind, rows, columns)
    for kind in (FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, INT4_SMALL_GROUPS)
    for rows, columns in ((4, 1), WIDE_INT4 if kind in (INT4, INT4_SMALL_GROUPS) else WIDE, (1, 1))
}
load_float32, load_bfloat16, load_float16 = (
    _simple(types.float32, 2, generate) for generate in (_load_float32, _load_bfloat16, _load_float16)
)
load_int64 = _simple(types.int64, 2, _load_int64)
store_float32, store_bfloat16, store_float16, store_int64 = (
    _simple(types.void, 3, generate) for generate in (_store_float32, _store_bfloat16, _store_float16, _store_int64)
)
squares, sum_float32 = _simple(types.float32, 3, _squares), _simple(types.float32, 2, _sum)
largest_float32, exponentials = _simple(types.float32, 2, _largest), _simple(types.float32, 3, _exponentials)
affine = _simple(types.void, 7, _affine)
add_in_place, multiply_in_place = _simple(types.void, 3, _in_place("fadd")), _simple(types.void, 3, _in_place("fmul"))
floor_float32 = _simple(types.float32, 1, _floor)
bits_to_float32 = _simple(types.float32, 1, _bits_to_float32)
atomic_load, atomic_store = _simple(types.int64, 1, _atomic_load), _simple(types.void, 2, _atomic_store)
atomic_add, atomic_swap = _simple(types.int64, 2, _atomic_add), _simple(types.int64, 3, _atomic_swap)
scores_float32, scores_bfloat16, scores_float16 = (
    _simple(types.void, 5, _scores(kind)) for kind in (FLOAT32, BFLOAT16, FLOAT16)
)
mix_float32, mix_bfloat16, mix_float16 = (
    _simple(types.void, 5, _mixture(kind)) for kind in (FLOAT32, BFLOAT16, FLOAT16)
)
encode_int8, encode_int4 = _simple(types.void, 3, _encoded(False)), _simple(types.void, 3, _encoded(True))


@intrinsic
def pause(typing_context):
    """Tells the processor that a loop waits."""
    return types.void(), _pause
