"""Loops over pairs of latents that fire on the same token: counts and products of values, exact, over the whole dictionary.

    C_ij = sum_t [z_ti != 0][z_tj != 0],    S_ij = sum_t z_ti z_tj

Latent by latent, the tokens where it fires are walked and their other latents added to a row of F pairs of numbers, (sum over tokens of
(latents of t)^2) additions in all; of every row only the largest are kept, so nothing of size F x F exists.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from sae.dictionaries.kernels.cpu.loops import compiled

FAR, NEAR = 24, 12
"""How many tokens ahead the place of a token's entries, and the entries themselves, are asked for."""


@intrinsic
def load(typing: object, bits: types.Type) -> object:
    """A stored value as float32: float16 comes as uint16, whose bits are put into their places; float32 as itself."""

    def generate(context: object, builder: object, signature: object, values: tuple) -> object:
        if not isinstance(bits, types.Integer):
            return values[0]
        word = ir.IntType(32)
        wide = builder.zext(values[0], word)
        magnitude = builder.shl(builder.and_(wide, ir.Constant(word, 0x7FFF)), ir.Constant(word, 13))
        sign = builder.shl(builder.and_(wide, ir.Constant(word, 0x8000)), ir.Constant(word, 16))
        number = builder.bitcast(builder.or_(magnitude, sign), ir.FloatType())
        return builder.fmul(number, ir.Constant(ir.FloatType(), 2.0**112))

    return types.float32(bits), generate


@intrinsic
def prefetch(typing: object, array: types.Type, place: types.Type) -> object:
    """Ask for the memory of array[place], without waiting for it."""

    def generate(context: object, builder: object, signature: object, values: tuple) -> object:
        made = context.make_array(array)(context, builder, values[0])
        pointer = builder.gep(made.data, [values[1]])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.bitcast(pointer, byte), ir.Constant(word, 0), ir.Constant(word, 2), ir.Constant(word, 1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@compiled
def add_pairs(
    begin: int, end: int, tokens: np.ndarray, own: np.ndarray, first_token: int, scale: float,
    start: np.ndarray, latents: np.ndarray, values: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """sums[j] += (1, z_i z_j) for all j at the tokens of latent i in one segment; its entries are begin..end-1, `own` its values there."""
    for p in range(begin, end):
        if p + FAR < end:
            prefetch(start, np.int64(tokens[p + FAR]) - first_token)
        if p + NEAR < end:
            t = np.int64(tokens[p + NEAR]) - first_token
            low, high = np.int64(start[t]), np.int64(start[t + 1]) - 1
            prefetch(latents, low)
            prefetch(latents, high)
            prefetch(values, low)
            prefetch(values, high)
        t = np.int64(tokens[p]) - first_token
        mine = np.float64(load(own[p])) * scale
        for q in range(np.int64(start[t]), np.int64(start[t + 1])):
            j = latents[q]
            sums[j, 0] += 1.0
            sums[j, 1] += mine * np.float64(load(values[q]))


@compiled
def insert(place: int, r: float, j: int, n: float, ids: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> None:
    """Put (j, r, n) before all lower scores; the last place falls out."""
    while place > 0 and r > scores[place - 1]:
        ids[place], scores[place], counts[place] = ids[place - 1], scores[place - 1], counts[place - 1]
        place -= 1
    ids[place], scores[place], counts[place] = j, r, np.int64(n)


@compiled
def keep_largest(
    sums: np.ndarray, i: int, n: float, firing: np.ndarray, firing_inverse: np.ndarray, totals: np.ndarray, totals_inverse: np.ndarray,
    phi_ids: np.ndarray, phi: np.ndarray, phi_counts: np.ndarray, r_ids: np.ndarray, r: np.ndarray, r_counts: np.ndarray,
) -> None:  # fmt: skip
    """The latents j != i that share a token with i, by phi and by r, largest first, then by id; `sums` is set to 0 for the next latent.

    Both are (n sum_ij - total_i total_j) / (spread_i spread_j); the inverse spreads are given.
    """
    n_phi = n_r = 0
    most, least_phi, least_r = len(phi), -np.inf, -np.inf
    for j in range(sums.shape[0]):
        both = sums[j, 0]
        if both > 0:
            if j != i:
                value = (n * both - firing[i] * firing[j]) * firing_inverse[i] * firing_inverse[j]
                if n_phi < most or value > least_phi:
                    insert(min(n_phi, most - 1), value, j, both, phi_ids, phi, phi_counts)
                    n_phi = min(n_phi + 1, most)
                    least_phi = phi[n_phi - 1]
                value = (n * sums[j, 1] - totals[i] * totals[j]) * totals_inverse[i] * totals_inverse[j]
                if n_r < most or value > least_r:
                    insert(min(n_r, most - 1), value, j, both, r_ids, r, r_counts)
                    n_r = min(n_r + 1, most)
                    least_r = r[n_r - 1]
            sums[j, 0] = sums[j, 1] = 0.0


@intrinsic
def pointer(typing: object, address: types.Type) -> object:
    """An address as a pointer."""

    def generate(context: object, builder: object, signature: object, values: tuple) -> object:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@compiled
def relate(
    first: int, last: int, n: float, view_start: np.ndarray, view_tokens: np.ndarray, own: np.ndarray,
    bounds: np.ndarray, scales: np.ndarray, addresses: np.ndarray, sizes: np.ndarray,
    start_like: np.ndarray, latents_like: np.ndarray, values_like: np.ndarray, sums: np.ndarray,
    firing: np.ndarray, firing_inverse: np.ndarray, totals: np.ndarray, totals_inverse: np.ndarray,
    phi_ids: np.ndarray, phi: np.ndarray, phi_counts: np.ndarray, r_ids: np.ndarray, r: np.ndarray, r_counts: np.ndarray,
) -> None:  # fmt: skip
    """`add_pairs` over all segments and `keep_largest`, for latents first..last-1.

    Segment s has the tokens bounds[s] .. bounds[s + 1]; its start, latents and values are sizes[s] elements at addresses[s], of the types of
    the arrays that are `like` them. Their owner keeps them in memory.
    """
    for i in range(first, last):
        begin, end = view_start[i], view_start[i + 1]
        for s in range(len(scales)):
            stop = begin
            while stop < end and np.int64(view_tokens[stop]) < bounds[s + 1]:
                stop += 1
            if stop > begin:
                start = carray(pointer(addresses[s, 0]), (sizes[s, 0],), start_like.dtype)
                latents = carray(pointer(addresses[s, 1]), (sizes[s, 1],), latents_like.dtype)
                values = carray(pointer(addresses[s, 2]), (sizes[s, 1],), values_like.dtype)
                add_pairs(begin, stop, view_tokens, own, bounds[s], scales[s], start, latents, values, sums)
            begin = stop
        keep_largest(
            sums, i, n, firing, firing_inverse, totals, totals_inverse, phi_ids[i], phi[i], phi_counts[i], r_ids[i], r[i], r_counts[i]
        )
