"""Blocks of 128 floats as eight vectors of 16, written out for the compiler.

LLVM vectorises neither a loop that updates an array and keeps its maxima by lane, nor a search for the places above a threshold. These
functions emit those two bodies in LLVM's own vector types, which every CPU has instructions for (AVX-512: one each; AVX2: two; NEON: four).

    a block is c[128 b : 128 b + 128];    its lane maxima are m[16 b + l] = max over u < 8 of score(c[128 b + 16 u + l])

`score` is the value itself, or for signed selection its absolute value.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Floats in a vector."""
BLOCK = 128
"""Floats in a block: eight vectors share one vector of lane maxima."""

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_MAY_FUSE = ("contract", "nsz", "nnan")


def _vector_pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any, element: ir.Type) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), ir.VectorType(element, LANES).as_pointer())


def _loaded(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """16 numbers from array[offset] on, as floats. Integers are converted."""
    if isinstance(kind.dtype, types.Float):
        return builder.load(_vector_pointer(context, builder, kind, array, offset, ir.FloatType()), align=4)
    element = ir.IntType(kind.dtype.bitwidth)
    whole = builder.load(_vector_pointer(context, builder, kind, array, offset, element), align=kind.dtype.bitwidth // 8)
    if kind.dtype.bitwidth < 32:
        whole = builder.sext(whole, _INTS)
    return builder.sitofp(whole, _FLOATS)


def _splat(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, ir.Constant(first.type, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _score(builder: Any, value: Any, mask: Any) -> Any:
    """The value with the bits outside `mask` cleared: 0x7fffffff makes it absolute."""
    return builder.bitcast(builder.and_(builder.bitcast(value, _INTS), mask), _FLOATS)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, (_FLOATS, _FLOATS))
    maximum = cgutils.get_or_insert_function(builder.module, kind, f"llvm.maxnum.v{LANES}f32")
    return builder.call(maximum, (x, y), fastmath=("nnan", "nsz"))


def _lane_maxima(builder: Any, vectors: list[Any]) -> Any:
    while len(vectors) > 1:
        vectors = [_larger(builder, a, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _emit_block(builder: Any, value_of: Any, c_pointer: Any, m_pointer: Any, mask: Any) -> None:
    """c[16 u ..] = value_of(u) for u = 0..7 and m = the lane maxima of their scores."""
    scores = []
    for u in range(BLOCK // LANES):
        value = value_of(u)
        builder.store(value, c_pointer(u), align=4)
        scores.append(_score(builder, value, mask))
    builder.store(_lane_maxima(builder, scores), m_pointer, align=4)


def _block_pointers(context: Any, builder: Any, c_kind: Any, c: Any, m: Any, b: Any) -> tuple[Any, Any, Any]:
    start = builder.mul(b, ir.Constant(b.type, BLOCK))
    lanes = builder.mul(b, ir.Constant(b.type, LANES))

    def at(u: int) -> Any:
        return builder.add(start, ir.Constant(b.type, LANES * u))

    def c_pointer(u: int) -> Any:
        return _vector_pointer(context, builder, c_kind, c, at(u), ir.FloatType())

    return at, c_pointer, _vector_pointer(context, builder, c_kind, m, lanes, ir.FloatType())


@intrinsic
def scale_block(typing_context, c, m, b, source, offset, factor, scale, mask):
    """Block b of c = scale * factor[block b] * source[offset + block b], and its lane maxima; `source` may hold integers."""

    def emit(context, builder, signature, arguments):
        c_, m_, b_, source_, offset_, factor_, scale_, mask_ = arguments
        at, c_pointer, m_pointer = _block_pointers(context, builder, signature.args[0], c_, m_, b_)
        scale_, mask_ = _splat(builder, scale_), _splat(builder, mask_)

        def value_of(u):
            raw = _loaded(context, builder, signature.args[3], source_, builder.add(offset_, at(u)))
            by_atom = _loaded(context, builder, signature.args[5], factor_, at(u))
            return builder.fmul(builder.fmul(raw, scale_), by_atom)

        _emit_block(builder, value_of, c_pointer, m_pointer, mask_)
        return context.get_dummy_value()

    return types.void(c, m, types.intp, source, types.intp, factor, types.float32, types.int32), emit


@intrinsic
def lower_block(typing_context, c, m, b, row, offset, a, mask):
    """Block b of c -= a * row[offset + block b], and its lane maxima; `row` may hold integers."""

    def emit(context, builder, signature, arguments):
        c_, m_, b_, row_, offset_, a_, mask_ = arguments
        at, c_pointer, m_pointer = _block_pointers(context, builder, signature.args[0], c_, m_, b_)
        a_, mask_ = _splat(builder, a_), _splat(builder, mask_)

        def value_of(u):
            entry = _loaded(context, builder, signature.args[3], row_, builder.add(offset_, at(u)))
            old = builder.load(c_pointer(u), align=4)
            return builder.fsub(old, builder.fmul(a_, entry, flags=_MAY_FUSE), flags=_MAY_FUSE)

        _emit_block(builder, value_of, c_pointer, m_pointer, mask_)
        return context.get_dummy_value()

    return types.void(c, m, types.intp, row, types.intp, types.float32, types.int32), emit


@intrinsic
def lanes_at_least(typing_context, m, b, threshold):
    """Bit l is set where m[16 b + l] >= threshold."""

    def emit(context, builder, signature, arguments):
        m_, b_, threshold_ = arguments
        offset = builder.mul(b_, ir.Constant(b_.type, LANES))
        values = _loaded(context, builder, signature.args[0], m_, offset)
        bits = builder.fcmp_ordered(">=", values, _splat(builder, threshold_))
        return builder.zext(builder.bitcast(bits, ir.IntType(LANES)), ir.IntType(32))

    return types.int32(m, types.intp, types.float32), emit


@intrinsic
def largest_of_block(typing_context, m, b):
    """max of m[128 b : 128 b + 128]."""

    def emit(context, builder, signature, arguments):
        m_, b_ = arguments
        start = builder.mul(b_, ir.Constant(b_.type, BLOCK))
        offsets = [builder.add(start, ir.Constant(b_.type, LANES * u)) for u in range(BLOCK // LANES)]
        maxima = _lane_maxima(builder, [_loaded(context, builder, signature.args[0], m_, offset) for offset in offsets])
        kind = ir.FunctionType(ir.FloatType(), (_FLOATS,))
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fmax.v{LANES}f32")
        return builder.call(reduce, (maxima,), fastmath=("nnan", "nsz"))

    return types.float32(m, types.intp), emit


@intrinsic
def prefetch(typing_context, array, index):
    """Ask for the cache line of array[index], without waiting for it."""

    def emit(context, builder, signature, arguments):
        array_, index_ = arguments
        data = context.make_array(signature.args[0])(context, builder, array_).data
        pointer = builder.bitcast(builder.gep(data, [index_]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), (ir.IntType(8).as_pointer(), number, number, number))
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, second_level, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(function, (pointer, to_read, second_level, data))
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def mirror_square(typing_context, matrix, width, row, column):
    """matrix[column + q, row + p] = matrix[row + p, column + q] for p, q < 16; `matrix` is flat, of 16-bit integers, rows of `width`.

    Interleaving line p with line p + 8 and keeping the order, four times, turns a square of 16 round.
    """

    def emit(context, builder, signature, arguments):
        matrix_, width_, row_, column_ = arguments
        kind, element = signature.args[0], ir.IntType(16)
        halves = [ir.Constant(_INTS, [start + lane // 2 + LANES * (lane % 2) for lane in range(LANES)]) for start in (0, LANES // 2)]

        def pointers(first, offset):
            for p in range(LANES):
                line = builder.mul(builder.add(first, ir.Constant(first.type, p)), width_)
                yield _vector_pointer(context, builder, kind, matrix_, builder.add(line, offset), element)

        lines = [builder.load(pointer, align=2) for pointer in pointers(row_, column_)]
        for _ in range(4):
            pairs = zip(lines[: LANES // 2], lines[LANES // 2 :], strict=True)
            lines = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in halves]
        for line, pointer in zip(lines, pointers(column_, row_), strict=True):
            builder.store(line, pointer, align=2)
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp, types.intp), emit
