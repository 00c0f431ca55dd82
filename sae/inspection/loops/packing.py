"""Loops over codes on their way to disk: repeats within a row, and the scatter from the order of tokens to that of latents."""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def any_repeat(indices: np.ndarray, stamp: np.ndarray) -> bool:
    """Whether any row names a latent twice; `stamp` has one place for every latent, all -1."""
    repeats = 0
    for r in range(indices.shape[0]):
        for s in range(indices.shape[1]):
            repeats += stamp[indices[r, s]] == r
            stamp[indices[r, s]] = r
    return repeats > 0


@compiled
def count_latents(latents: np.ndarray, counts: np.ndarray) -> None:
    """counts[i] += entries of latent i."""
    for p in range(len(latents)):
        counts[latents[p]] += 1


@compiled
def scatter(
    low: int, high: int, first_token: int, start: np.ndarray, latents: np.ndarray, values: np.ndarray, steps: np.ndarray,
    place: np.ndarray, token_out: np.ndarray, value_out: np.ndarray, step_out: np.ndarray,
) -> None:  # fmt: skip
    """Move the entries of latents low..high-1 of one segment to place[latent], which ends one past the last.

    Without `steps` (length 0) the step is the place within the token, written only where `step_out` has room.
    """
    write_steps, stored = len(step_out) > 0, len(steps) > 0
    for t in range(len(start) - 1):
        begin = np.int64(start[t])
        for p in range(begin, np.int64(start[t + 1])):
            i = np.int64(latents[p])
            if low <= i and i < high:
                q = place[i]
                token_out[q] = first_token + t
                value_out[q] = values[p]
                if write_steps:
                    step_out[q] = steps[p] if stored else p - begin
                place[i] = q + 1
