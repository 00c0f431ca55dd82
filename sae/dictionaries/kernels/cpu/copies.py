"""Rows that lie anywhere in memory, copied into one array and widened on the way.

    out[i] = the `width` numbers at address a_i           bfloat16, float16 and int8 as float32, anything else byte by byte

    a_i = base[s] + (t_i - start[s]) * bytes of a row,    s the shard with start[s] <= t_i < start[s + 1]

A row that the cache does not hold takes longer to arrive than to copy, so the lines of a row some kilobytes ahead are asked for before each
is copied. Addresses instead of arrays, because a list of a thousand arrays costs more to hand to a loop than the loop takes.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae.dictionaries.kernels.cpu.loops import compiled

LINE = 64
"""Bytes of a cache line; where lines are longer, some are asked for twice."""
AHEAD_BYTES = 4608
"""How far ahead rows are asked for: about what a core can wait for at once."""


@intrinsic
def _ask_for(typing_context, address):
    """Ask for the cache line at an address, without waiting for it; an address that is not there does no harm."""

    def emit(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), (pointer.type, number, number, number))
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, second_level, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(function, (pointer, to_read, second_level, data))
        return context.get_dummy_value()

    return types.void(types.intp), emit


@intrinsic
def _copy_bytes(typing_context, target, offset, address, n_bytes):
    """target[offset : offset + n_bytes] = the bytes at an address; `target` is flat, of bytes."""

    def emit(context, builder, signature, arguments):
        target_, offset_, address_, n_bytes_ = arguments
        data = context.make_array(signature.args[0])(context, builder, target_).data
        source = builder.inttoptr(address_, ir.IntType(8).as_pointer())
        cgutils.raw_memcpy(builder, builder.bitcast(builder.gep(data, [offset_]), source.type), source, n_bytes_, 1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp, types.intp), emit


@intrinsic
def _pointer(typing_context, address, like):
    """The address as a pointer to what the array `like` holds."""

    def emit(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_data_type(like.dtype).as_pointer())

    return types.CPointer(like.dtype)(types.intp, like), emit


@intrinsic
def _widened_half(typing_context, bits):
    """The float32 equal to the float16 of these 16 bits."""

    def emit(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@compiled
def locate(numbers: np.ndarray, shards: np.ndarray, first_shard: np.ndarray, shift: int, row_bytes: int, addresses: np.ndarray) -> int:
    """addresses[i] = where row t = numbers[i] begins, of `row_bytes` in shards that begin at shards[1]; -1, or the first i whose t is in none.

    shards[0] are the numbers of the shards' first rows, with the total behind the last; `first_shard[b]` is the shard of row b << shift,
    and of the last row behind the last b.
    """
    starts, bases = shards[0], shards[1]
    n_rows = starts[-1]
    for i in range(len(numbers)):
        t = numbers[i]
        if t < 0 or t >= n_rows:
            return i
        low, high = np.int64(first_shard[t >> shift]), np.int64(first_shard[(t >> shift) + 1])
        while low < high:
            middle = (low + high + 1) >> 1
            if starts[middle] <= t:
                low = middle
            else:
                high = middle - 1
        addresses[i] = bases[low] + (t - starts[low]) * row_bytes
    return -1


@compiled
def _ask_for_row(addresses: np.ndarray, i: int, row_bytes: int) -> None:
    if i < len(addresses):
        for offset in range(0, row_bytes, LINE):
            _ask_for(addresses[i] + offset)
        _ask_for(addresses[i] + row_bytes - 1)  # a row need not begin where a line does


@compiled
def _rows_ahead(row_bytes: int) -> int:
    return min(max(AHEAD_BYTES // max(row_bytes, 1), 1), 16)


@compiled
def copy_rows(numbers: np.ndarray, shards: np.ndarray, first_shard: np.ndarray, shift: int, row_bytes: int, out: np.ndarray) -> int:
    """Row i of `out`, bytes, is row numbers[i] as it is. Returns what `locate` does."""
    addresses = np.empty(len(numbers), np.int64)
    wrong, ahead, flat = locate(numbers, shards, first_shard, shift, row_bytes, addresses), _rows_ahead(row_bytes), out.reshape(-1)
    if wrong >= 0:
        return wrong
    for i in range(len(addresses)):
        _ask_for_row(addresses, i + ahead, row_bytes)
        _copy_bytes(flat, i * row_bytes, addresses[i], row_bytes)
    return -1


@compiled
def widen_bfloat16(numbers: np.ndarray, shards: np.ndarray, first_shard: np.ndarray, shift: int, out: np.ndarray) -> int:
    """Row i of `out`, the memory of float32 numbers as uint32, is bfloat16 row numbers[i]: upper halves. Returns what `locate` does."""
    width, like, addresses = out.shape[1], np.empty(0, np.uint16), np.empty(len(numbers), np.int64)
    wrong, ahead = locate(numbers, shards, first_shard, shift, 2 * width, addresses), _rows_ahead(2 * width)
    if wrong >= 0:
        return wrong
    for i in range(len(addresses)):
        _ask_for_row(addresses, i + ahead, 2 * width)
        source, target = numba.carray(_pointer(addresses[i], like), (width,)), out[i]
        for c in range(width):
            target[c] = np.uint32(source[c]) << np.uint32(16)
    return -1


@compiled
def widen_float16(numbers: np.ndarray, shards: np.ndarray, first_shard: np.ndarray, shift: int, out: np.ndarray) -> int:
    """Row i of `out`, float32, is float16 row numbers[i]. Returns what `locate` does."""
    width, like, addresses = out.shape[1], np.empty(0, np.uint16), np.empty(len(numbers), np.int64)
    wrong, ahead = locate(numbers, shards, first_shard, shift, 2 * width, addresses), _rows_ahead(2 * width)
    if wrong >= 0:
        return wrong
    for i in range(len(addresses)):
        _ask_for_row(addresses, i + ahead, 2 * width)
        source, target = numba.carray(_pointer(addresses[i], like), (width,)), out[i]
        for c in range(width):
            target[c] = _widened_half(source[c])
    return -1


@compiled
def scale_int8(
    numbers: np.ndarray, shards: np.ndarray, norm_shards: np.ndarray, first_shard: np.ndarray, shift: int, out: np.ndarray
) -> int:
    """Row i of `out`, float32, is q |a| / |q| for int8 row q = numbers[i] and its float32 norm |a|; 0 where q is 0. Returns what `locate` does."""
    width, like, like_norm = out.shape[1], np.empty(0, np.int8), np.empty(0, np.float32)
    addresses, norm_addresses = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
    wrong, ahead = locate(numbers, shards, first_shard, shift, width, addresses), _rows_ahead(width)
    if wrong >= 0:
        return wrong
    locate(numbers, norm_shards, first_shard, shift, 4, norm_addresses)
    for i in range(len(addresses)):
        _ask_for_row(addresses, i + ahead, width)
        _ask_for_row(norm_addresses, i + ahead, 4)
        source, target = numba.carray(_pointer(addresses[i], like), (width,)), out[i]
        squares = np.int32(0)
        for c in range(width):
            squares = np.int32(squares + np.int32(source[c]) * np.int32(source[c]))  # numba would add in 64 bits
        norm = numba.carray(_pointer(norm_addresses[i], like_norm), (1,))[0]
        scale = np.float32(np.float64(norm) / np.sqrt(np.float64(squares))) if squares > 0 else np.float32(0)
        for c in range(width):
            target[c] = np.float32(source[c]) * scale
    return -1
