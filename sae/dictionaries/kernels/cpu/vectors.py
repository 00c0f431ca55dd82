"""A loop body that LLVM does not find by itself, written in its own vector types: every CPU has instructions for them.

list_above     append the places of those of 16 upper bounds p + t that exceed the floor to a list, without a branch
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Entries that `list_above` looks at."""
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_MAY_FUSE = ("contract", "nsz")


def _load(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """16 entries of a float32 or int32 array from `offset` on, as floats."""
    element = ir.FloatType() if isinstance(kind.dtype, types.Float) else ir.IntType(32)
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
    loaded = builder.load(builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer()), align=4)
    return loaded if element == ir.FloatType() else builder.sitofp(loaded, _FLOATS)


def _splat(builder: Any, scalar: Any) -> Any:
    kind = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


@intrinsic
def list_above(typing_context, rough, scale, bias, spread, row, start, x_scale, slack, floor, mask, places, n):
    """Append every i in start..start + 15 where |p|_mask + slack spread[i] > floor to the list `places` of length n; its new length.

    p = x_scale scale[i] rough[row, i] + bias[i] with `rough` contiguous; `mask` is -1 for p itself, 0x7fffffff for its absolute value.
    `places` needs room for 16 more; what lies beyond the new length is arbitrary.
    """

    def emit(context, builder, signature, arguments):
        row_, start_, *scalars = arguments[4:10]
        places_, n_ = arguments[10:]
        x_scale_, slack_, floor_, mask_ = (_splat(builder, scalar) for scalar in scalars)
        kinds = signature.args
        width = builder.extract_value(context.make_array(kinds[0])(context, builder, arguments[0]).shape, 1)
        r = _load(context, builder, kinds[0], arguments[0], builder.add(builder.mul(row_, width), start_))
        s, b, t = (_load(context, builder, kind, array, start_) for kind, array in zip(kinds[1:4], arguments[1:4], strict=True))
        p = builder.fadd(builder.fmul(builder.fmul(x_scale_, s), r, flags=_MAY_FUSE), b, flags=_MAY_FUSE)
        p = builder.bitcast(builder.and_(builder.bitcast(p, _INTS), mask_), _FLOATS)
        above = builder.fcmp_ordered(">", builder.fadd(p, builder.fmul(slack_, t, flags=_MAY_FUSE), flags=_MAY_FUSE), floor_)
        lanes = builder.add(_splat(builder, builder.trunc(start_, ir.IntType(32))), ir.Constant(_INTS, list(range(LANES))))
        compress = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_INTS, (_INTS, ir.VectorType(ir.IntType(1), LANES), _INTS)),
            f"llvm.experimental.vector.compress.v{LANES}i32",
        )
        packed = builder.call(compress, (lanes, above, ir.Constant(_INTS, ir.Undefined)))
        place = builder.gep(context.make_array(kinds[10])(context, builder, places_).data, [n_])
        builder.store(packed, builder.bitcast(place, _INTS.as_pointer()), align=4)
        bits = builder.zext(builder.bitcast(above, ir.IntType(LANES)), n_.type)
        return builder.add(n_, builder.ctpop(bits))

    scalars = (types.intp, types.intp, types.float32, types.float32, types.float32, types.int32)
    return types.intp(rough, scale, bias, spread, *scalars, places, types.intp), emit
