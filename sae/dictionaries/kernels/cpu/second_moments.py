"""Sums of products of bfloat16 rows on CPUs that multiply them in hardware (AVX512-BF16), twice as fast as float32 products.

    S[i, j] += sum over rows of y_i y_j,     y = x - c rounded to bfloat16,     i <= j

A product of two bfloat16 numbers is exact in float32, and products are added up there over one call, then in float64. x - c is exact wherever
x lies between c / 2 and 2 c (Sterbenz, "Floating-point computation", 1974), or where c = 0: a shift is for columns whose mean is several
times their spread, and for no others.

Rows are packed two by two, sixteen columns together, as the instruction takes them; a group of 48 columns is multiplied with all columns
up to itself, eight at a time, so that 24 vectors of sums stay in registers.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae.dictionaries.kernels.cpu.loops import compiled

LANES, LEFT, RIGHT = 16, 8, 3
"""Columns in a vector; columns on the left and vectors on the right that are multiplied at a time."""
GROUP = LANES * RIGHT
"""Columns of a group."""
PAIRS = 128
"""Pairs of rows that stay in the first cache while columns go by."""

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_INDEX = ir.IntType(64)


class _BFloat16(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    null = "0.0"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


_HALVES = ir.VectorType(_BFloat16(), 2 * LANES)


def is_fast() -> bool:
    """Whether the CPU has the instruction."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return check is not None and bool(check())


def padded(width: int) -> int:
    """The width with the last group filled up."""
    return -(-width // GROUP) * GROUP


@intrinsic
def _add_tile(typing_context, pairs, left, right, panel, n, out, place):
    """out[place + 48 r + 16 v + l] += sum over p < n of dot(pair p of column r on the left, pair p of lane l of vector v on the right)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left_, right_, panel_, n_, place_ = (arguments[i] for i in (1, 2, 3, 4, 6))
        words = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        floats = context.make_array(signature.args[5])(context, builder, arguments[5]).data
        dot = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, (_FLOATS, _HALVES, _HALVES)), "llvm.x86.avx512bf16.dpbf16ps.512"
        )
        sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(RIGHT)] for _ in range(LEFT)]
        for slot in (slot for row in sums for slot in row):
            builder.store(ir.Constant(_FLOATS, [0.0] * LANES), slot)

        def at(base: Any, step: int | Any) -> Any:
            return builder.add(base, ir.Constant(_INDEX, step) if isinstance(step, int) else step)

        with cgutils.for_range(builder, n_) as loop:
            pair = builder.mul(loop.index, ir.Constant(_INDEX, LANES))
            vectors = []
            for v in range(RIGHT):
                place_v = at(at(right_, pair), builder.mul(panel_, ir.Constant(_INDEX, v)))
                pointer = builder.bitcast(builder.gep(words, [place_v]), _WORDS.as_pointer())
                vectors.append(builder.bitcast(builder.load(pointer, align=4), _HALVES))
            for r in range(LEFT):
                word = builder.load(builder.gep(words, [at(at(left_, pair), r)]))
                first = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), word, ir.Constant(ir.IntType(32), 0))
                splat = builder.shuffle_vector(first, ir.Constant(_WORDS, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))
                for v in range(RIGHT):
                    slot = sums[r][v]
                    builder.store(builder.call(dot, (builder.load(slot), builder.bitcast(splat, _HALVES), vectors[v])), slot)
        for r in range(LEFT):
            for v in range(RIGHT):
                target = builder.bitcast(builder.gep(floats, [at(place_, GROUP * r + LANES * v)]), _FLOATS.as_pointer())
                builder.store(builder.fadd(builder.load(target, align=4), builder.load(sums[r][v])), target, align=4)
        return context.get_dummy_value()

    return types.void(pairs, *[types.intp] * 4, out, types.intp), emit


@compiled
def pack(bits, rows, shift, total, words, floats, pairs, n_pairs, first, last):
    """Pairs `first`..`last` - 1 of the rows numbered `rows` of `bits` (uint16 [n, width]), less `shift`, into `pairs`; an odd last row is
    paired with zeros. `total` (float64) gains the rows' sum before the shift. `words` and `floats` are one scratch row seen as both, as wide
    as `shift` and `total`: the padded width, zeros beyond the columns that there are.
    """
    width = words.shape[0]
    for p in range(first, last):
        for half in range(2):
            here = 2 * p + half < rows.shape[0]
            if here:
                row = rows[2 * p + half]
                for j in range(bits.shape[1]):
                    words[j] = np.uint32(bits[row, j]) << np.uint32(16)
                for j in range(width):
                    total[j] += np.float64(floats[j])
                for j in range(width):
                    floats[j] -= shift[j]
                for j in range(width):
                    word = words[j]
                    words[j] = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            for panel in range(width // 16):
                base = (panel * n_pairs + p) * 16
                if half == 0:
                    for lane in range(16):
                        pairs[base + lane] = words[16 * panel + lane]
                elif here:
                    for lane in range(16):
                        pairs[base + lane] |= words[16 * panel + lane] << np.uint32(16)


@compiled
def add_group(pairs, n_pairs, group, out):
    """out[i, j] += the products of columns i < 48 (group + 1) and 48 group + j, j < 48; `out` is flat."""
    panel = n_pairs * 16
    for start in range(0, n_pairs, PAIRS):
        n = min(PAIRS, n_pairs - start)
        right = RIGHT * group * panel + start * 16
        for i in range(0, GROUP * (group + 1), LEFT):
            left = (i // 16) * panel + start * 16 + i % 16
            _add_tile(pairs, left, right, panel, n, out, i * GROUP)


@compiled
def centred_length_sum(bits, rows, mean, words, floats):
    """The sum over the rows numbered `rows` of |x - mean|, in float64; `words` and `floats` are one scratch row seen as both."""
    width, total = bits.shape[1], 0.0
    for number in range(rows.shape[0]):
        row = rows[number]
        for j in range(width):
            words[j] = np.uint32(bits[row, j]) << np.uint32(16)
        square = np.float32(0.0)
        for j in range(width):
            d = floats[j] - mean[j]
            square += d * d
        total += np.sqrt(np.float64(square))
    return total
