"""A direction pulled back through a norm.

    N(x) = gain * c / s + bias,   c = C x,   s = sqrt(|c|^2 / d + eps),        C = I - 1 1^T / d where the norm is centred, else I
    J(x)^T n = (1/s) (C v - c (c . v) / (d s^2)),   v = gain * n

Without a gain, J^T n = (1/s) (n less its components along 1 and along c), so that cos^2(J^T n, n) = 1 - cos^2(n, 1) - cos^2(n, c): a norm
turns a direction by little, for most x. J. Dunefsky, A. Cohan, "Observable Propagation", 2023 (arXiv 2312.16291), section 3.2; RMSNorm lacks
the term of 1.
"""

import numpy as np
from jaxtyping import Float

from probes.unembedding import FinalNorm
from sae.errors import ConfigError


def through_norm(norm: FinalNorm, at: Float[np.ndarray, "... d"], directions: Float[np.ndarray, "... d"]) -> Float[np.ndarray, "... d"]:
    """J(x)^T n for every x of `at` and n of `directions`, broadcast: to first order, what n reads of N(x) as a reading of x.

    Raises ConfigError for another width than the norm's.
    """
    for name, rows in (("at", at), ("directions", directions)):
        if rows.shape[-1] != len(norm.gain):
            raise ConfigError(f"{name} must have the norm's width {len(norm.gain)}, got {rows.shape[-1]} (through_norm)")
    c, s, v = norm.centre(at), norm.scale(at), norm.gain * directions
    along = (c * v).sum(axis=-1, keepdims=True) / (at.shape[-1] * s**2)
    return (norm.centre(v) - c * along) / s


def through_gain(norm: FinalNorm | None, directions: Float[np.ndarray, "... d"]) -> Float[np.ndarray, "... d"]:
    """C (gain * n): the same without a reference point, up to the scale 1/s and without the part along x. None is no norm."""
    return directions if norm is None else norm.centre(norm.gain * directions)


def norm_angle(directions: Float[np.ndarray, "... d"], at: Float[np.ndarray, "... d"], *, centred: bool) -> Float[np.ndarray, "..."]:
    """cos^2 between n and J(x)^T n for a norm without gain and epsilon: 1 - cos^2(n, 1) - cos^2(n, c), the middle term where centred.

    For random n and x it is 1 - 2/d on average (1 - 1/d where not centred). A direction along 1 or along x has none: NaN.
    """
    d = at.shape[-1]
    c = at - at.mean(axis=-1, keepdims=True) if centred else at
    n2 = np.square(directions).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        along_c = np.square((directions * c).sum(axis=-1)) / (n2 * np.square(c).sum(axis=-1))
        along_one = np.square(directions.sum(axis=-1)) / (n2 * d) if centred else 0.0
        left = 1 - along_c - along_one
        return np.where(left > 0, left, np.nan)
