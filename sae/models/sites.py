"""Where in a language model: the residual stream, what writes to it, and two inner activations.

    resid_pre --> + attn_out --> resid_mid --> + mlp_out --> resid_post            attn_out = z W_O,   mlp_out = mlp_post W_out

The names are those of TransformerLens (`blocks.{layer}.hook_resid_post`, ...). The output of block L is `resid_post` of layer L, which the
Hugging Face library counts as hidden_states[L + 1].
"""

import difflib
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sae.errors import ConfigError

Kind = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post", "external"]

SUFFIXES: dict[Kind, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "mlp_post": "mlp.hook_post",
}
"""Kind of site -> the end of its TransformerLens name."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a language model."""

    n_layers: int
    """Number of blocks."""
    d_model: int
    """Width of the residual stream."""
    d_mlp: int
    """Width of the MLP's hidden layer."""
    n_heads: int
    """Attention heads (query heads where keys are shared)."""
    d_head: int
    """Width of one head's z."""
    d_vocab: int
    """Number of logits."""
    n_ctx: int
    """Longest context, tokens."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One activation of a language model, or vectors from elsewhere. Made by `Site.parse`, or by `Site.of` where there is no model to ask."""

    name: str
    """TransformerLens hook name, `blocks.{layer}.{...}`."""
    layer: int
    """Block index, from 0; 0 where there is no block."""
    kind: Kind
    """Which activation of the block; "external" for vectors that no block of a language model computes, such as sentence embeddings."""
    width: int
    """Size of the last axis; for z the heads are laid end to end, n_heads * d_head."""

    @staticmethod
    def parse(name: str, shape: ModelShape) -> "Site":
        """The site that a TransformerLens hook name means in a model of this shape.

        Raises ConfigError for an unknown kind or a layer out of range; the message gives the nearest valid names.
        """
        found = re.fullmatch(r"blocks\.(0|[1-9]\d*)\.(.+)", name)
        kinds: dict[str, Kind] = {suffix: kind for kind, suffix in SUFFIXES.items()}
        if found is None or found[2] not in kinds or int(found[1]) >= shape.n_layers:
            raise ConfigError(
                f"unknown site {name!r}; nearest: {', '.join(_nearest(name, shape))} "
                f"(blocks.L.KIND with L in 0..{shape.n_layers - 1}, KIND one of {', '.join(SUFFIXES.values())})"
            )
        kind = kinds[found[2]]
        return Site(name=name, layer=int(found[1]), kind=kind, width=_width(kind, shape))

    @staticmethod
    def of(name: str, width: int) -> "Site":
        """The site of activations that are already there: what a TransformerLens name says, and "external" for any other name.

        The name becomes that of a file: raises ConfigError when it cannot, and when `width` is not positive.
        """
        if not re.fullmatch(r"[\w-][\w.,=+ -]*", name) or len(name.encode()) > 200:
            allowed = "letters, digits, blanks and any of ._,=+-, not a dot first, at most 200 bytes"
            raise ConfigError(f"the name of a site must be that of a file ({allowed}), got {name!r} (Site.of)")
        if width < 1:
            raise ConfigError(f"width must be at least 1, got {width} (Site.of {name})")
        found = re.fullmatch(r"blocks\.(0|[1-9]\d*)\.(.+)", name)
        kinds: dict[str, Kind] = {suffix: kind for kind, suffix in SUFFIXES.items()}
        if found is None or found[2] not in kinds:
            return Site(name=name, layer=0, kind="external", width=width)
        return Site(name=name, layer=int(found[1]), kind=kinds[found[2]], width=width)


def site_names(shape: ModelShape) -> list[str]:
    """All site names of a model of this shape, block after block."""
    return [f"blocks.{layer}.{SUFFIXES[kind]}" for layer in range(shape.n_layers) for kind in SUFFIXES]


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The `names` that `patterns` match, in the order of the patterns and then of the names; each once.

    Each part of a pattern between dots is a glob (`fnmatch`) for that part of a name, so no `*` stands for a dot. Raises ConfigError for a
    pattern that matches nothing; the message gives the nearest names.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [name for name in names if _matches(pattern, name)]
        if not matches:
            nearest = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
            raise ConfigError(f"no site of the model matches {pattern!r}; nearest: {nearest} (`*` stands for anything but a dot)")
        found.update(dict.fromkeys(matches))
    return list(found)


def _matches(pattern: str, name: str) -> bool:
    globs, parts = pattern.split("."), name.split(".")
    return len(globs) == len(parts) and all(fnmatch.fnmatchcase(part, glob) for part, glob in zip(parts, globs, strict=True))


def _width(kind: Kind, shape: ModelShape) -> int:
    return {"z": shape.n_heads * shape.d_head, "mlp_post": shape.d_mlp}.get(kind, shape.d_model)


def _nearest(name: str, shape: ModelShape) -> list[str]:
    names = site_names(shape)
    number = re.search(r"\d+", name)
    if number is not None and int(number[0]) < shape.n_layers:
        names = [n for n in names if n.startswith(f"blocks.{int(number[0])}.")]
    return difflib.get_close_matches(name, names, n=3, cutoff=0.0)
