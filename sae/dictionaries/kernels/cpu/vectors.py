"""Loop bodies that LLVM does not find by itself, written in its own vector types: every CPU has instructions for them.

bits_above     which of 64 upper bounds p + t exceed the floor, as the bits of one number
lowest_bit     the place of the lowest bit set
prefetch_row   bring a row of a matrix into the cache while something else is computed
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

GROUP = 64
"""Entries that `bits_above` looks at."""
_LANES, _LINE_BYTES = 16, 64
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(ir.IntType(32), _LANES)
_MAY_FUSE = ("contract", "nsz")


def _load(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """16 entries of a float32 or int32 array from `offset` on, as floats."""
    element = ir.FloatType() if isinstance(kind.dtype, types.Float) else ir.IntType(32)
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
    loaded = builder.load(builder.bitcast(pointer, ir.VectorType(element, _LANES).as_pointer()), align=4)
    return loaded if element == ir.FloatType() else builder.sitofp(loaded, _FLOATS)


def _splat(builder: Any, scalar: Any) -> Any:
    kind = ir.VectorType(scalar.type, _LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * _LANES))


@intrinsic
def bits_above(typing_context, rough, scale, bias, spread, start, x_scale, slack, floor, mask):
    """Bit i is set where |p|_mask + slack spread[start + i] > floor, p = x_scale scale[start + i] rough[start + i] + bias[start + i].

    `mask` is -1 for p itself and 0x7fffffff for its absolute value.
    """

    def emit(context, builder, signature, arguments):
        arrays, (start_, x_scale_, slack_, floor_, mask_) = arguments[:4], arguments[4:]
        x_scale_, slack_, floor_, mask_ = (_splat(builder, scalar) for scalar in (x_scale_, slack_, floor_, mask_))
        result = ir.Constant(ir.IntType(64), 0)
        for u in range(GROUP // _LANES):
            offset = builder.add(start_, ir.Constant(start_.type, _LANES * u))
            r, s, b, t = (_load(context, builder, kind, array, offset) for kind, array in zip(signature.args[:4], arrays, strict=True))
            p = builder.fadd(builder.fmul(builder.fmul(x_scale_, s), r, flags=_MAY_FUSE), b, flags=_MAY_FUSE)
            p = builder.bitcast(builder.and_(builder.bitcast(p, _INTS), mask_), _FLOATS)
            upper = builder.fadd(p, builder.fmul(slack_, t, flags=_MAY_FUSE), flags=_MAY_FUSE)
            bits = builder.zext(builder.bitcast(builder.fcmp_ordered(">", upper, floor_), ir.IntType(_LANES)), result.type)
            result = builder.or_(result, builder.shl(bits, ir.Constant(result.type, _LANES * u)))
        return result

    scalars = (types.intp, types.float32, types.float32, types.float32, types.int32)
    return types.uint64(rough, scale, bias, spread, *scalars), emit


@intrinsic
def lowest_bit(typing_context, bits):
    """The place of the lowest bit set in a number other than 0."""

    def emit(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), emit


@intrinsic
def prefetch_row(typing_context, rows, row):
    """Ask for the lines of rows[row] of a contiguous matrix."""

    def emit(context, builder, signature, arguments):
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        width = builder.extract_value(array.shape, 1)
        start = builder.gep(array.data, [builder.mul(arguments[1], width)])
        place = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [place] + 3 * [ir.IntType(32)]), "llvm.prefetch.p0i8"
        )
        per_line = ir.Constant(width.type, _LINE_BYTES // (kind.dtype.bitwidth // 8))
        with cgutils.for_range_slice(builder, ir.Constant(width.type, 0), width, per_line) as (i, _):
            line = builder.bitcast(builder.gep(start, [i]), place)
            builder.call(function, [line] + [ir.Constant(ir.IntType(32), n) for n in (0, 3, 1)])
        return context.get_dummy_value()

    return types.void(rows, types.intp), emit
