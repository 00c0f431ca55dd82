"""Stitching two dictionaries of one site: the dictionaries between a small and a large one, and what the large one's latents add.

    between       some latents of the small, some of the large, each with its own encoder, bias and threshold;  b_dec = (1 - s) small + s large
    curve         error and L0 along a plan of insertions, swaps and removals (sae.geometry.atoms.stitching)
    insertion     FVU(small + a class of large latents) - FVU(small), beside as many large latents drawn at random

Leask et al. 2025 (2502.04878). Everything is in activation units, so the two may have been trained under different scalings. Elementwise
dictionaries (ReLU, JumpReLU, and BatchTopK with its threshold, which become one JumpReLU) are followed exactly, step by step. TopK and
pursuit let all latents compete: there the dictionary between is built and encodes anew, with k = (1 - s) k(small) + s k(large) rounded. Gated
dictionaries have two sets of pre-activations and are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.activations import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError
from sae.evaluation.reconstruction import reconstruction
from sae.geometry.atoms.stitching import Latents, Order, StitchingCurve, Swap, latent_classes, latents, stitching_curve, stitching_plan
from sae.geometry.nulls import NullStatistic, compare

Batches = Sequence[Float[Tensor, "_ d_in"]]


@dataclass(frozen=True, eq=False)
class Stitching:
    """The way from a small to a large dictionary."""

    plan: tuple[Swap, ...]
    """Its steps."""
    curve: StitchingCurve
    """Error (activation units) and L0 at the points that were measured."""
    fvu: Float[Tensor, " n_points"]
    """Error over the variance of the activations about their mean, float64."""
    n_novel: int
    """Latents of the large dictionary that resemble none of the small one."""
    n_swaps: int
    """Groups with latents of both."""
    n_lost: int
    """Latents of the small dictionary that resemble none of the large one."""


@dataclass(frozen=True)
class Insertions:
    """What the two classes of a large dictionary's latents do to the small one's FVU, each beside as many latents drawn from both classes."""

    novel: NullStatistic
    """Change of FVU when all novel latents are added; negative: they carry what the small dictionary lacks."""
    reconstruction: NullStatistic
    """Change of FVU when all reconstruction latents are added, their matches still there."""
    n_novel: int
    """Novel latents."""
    n_reconstruction: int
    """Reconstruction latents."""
    fvu: float
    """FVU of the small dictionary alone."""


@torch.no_grad()
def stitched(
    small: Dictionary, large: Dictionary, kept: Int[Tensor, " n_kept"], added: Int[Tensor, " n_added"], *, share: float
) -> Dictionary:
    """The dictionary of latents `kept` of the small one followed by `added` of the large one, in activation units; see the module's text.

    `share` in [0, 1] is s: 0 takes b_dec and k of the small one, 1 of the large one. Every latent's pre-activation is what it was in its own
    dictionary. Raises ConfigError for dictionaries of different widths or kinds, Gated ones, transcoders, and no latents at all.
    """
    _check_pair(small, large)
    if not 0 <= share <= 1 or not len(kept) + len(added):
        raise ConfigError(f"share must be in [0, 1] and some latent be chosen, got {share} and {len(kept) + len(added)} latents (stitched)")
    first, second = small.fold(), large.fold()
    atoms = torch.cat([first.W_dec[kept], second.W_dec[added]])
    offset = torch.lerp(first.b_dec, second.b_dec, share)
    k = None if small.k is None or large.k is None else min(len(atoms), max(1, round((1 - share) * small.k + share * large.k)))
    if isinstance(small, MatchingPursuit):
        config = PursuitConfig(
            d_in=small.d_in, d_sae=len(atoms), k=k or 1, selection=small.config.selection, orthogonal=small.config.orthogonal
        )
        made: Dictionary = MatchingPursuit(config)
        made.load_state_dict({**made.state_dict(), "W_dec": atoms, "b_dec": offset})
        return made.eval()
    assert isinstance(first, Autoencoder)
    assert isinstance(second, Autoencoder)
    encoders = torch.cat([first.W_enc[:, kept], second.W_enc[:, added]], dim=1)
    biases = torch.cat([_moved(first, offset)[kept], _moved(second, offset)[added]])
    own: dict[str, Tensor] = {}
    activation: TopK | AbsTopK | JumpReLU
    if isinstance(first.config.activation, TopK | AbsTopK):
        activation = type(first.config.activation)(k=k or 1)
    else:
        activation = JumpReLU()
        thresholds = torch.cat([_thresholds(first)[kept], _thresholds(second)[added]])
        own = {"log_threshold": thresholds.clamp_min(torch.finfo(torch.float32).tiny).log()}
    made = Autoencoder(AutoencoderConfig(d_in=small.d_in, d_sae=len(atoms), activation=activation))
    state = {"W_enc": encoders, "b_enc": biases, "W_dec": atoms, "b_dec": offset, **own}
    made.load_state_dict({**made.state_dict(), **state})
    return made.eval()


@torch.no_grad()
def latents_of(dictionary: Autoencoder) -> Latents:
    """An elementwise dictionary's latents in activation units, float64. Raises ConfigError for TopK, AbsTopK and Gated, and transcoders."""
    _check_pair(dictionary, dictionary)
    if not _is_elementwise(dictionary):
        raise ConfigError(
            f"dictionary must be ReLU, JumpReLU or BatchTopK, whose latents answer one by one, got {_kind(dictionary)}; use stitching (latents_of)"
        )
    folded = dictionary.fold()
    weights = [each.double() for each in (folded.W_enc, folded.b_enc, folded.W_dec, folded.b_dec)]
    return latents(*weights, _thresholds(folded).double(), subtracted=weights[3])


@torch.no_grad()
def stitching(
    small: Dictionary, large: Dictionary, batches: Batches, *, tau: float = 0.7, order: Order = "inserts first", n_points: int = 21
) -> Stitching:
    """Error and L0 on the way from the small to the large dictionary, on activations that neither was trained on.

    Elementwise dictionaries are measured after every step; the others at `n_points` evenly spaced ones, both ends included. Raises
    ConfigError as `stitched`, for n_points < 2, no rows, and activations that do not vary.
    """
    _check_pair(small, large)
    if n_points < 2:
        raise ConfigError(f"n_points must be at least 2, got {n_points} (stitching)")
    plan = stitching_plan(small.W_dec, large.W_dec, tau=tau, order=order)
    if _is_elementwise(small):
        assert isinstance(small, Autoencoder)
        assert isinstance(large, Autoencoder)
        curve = stitching_curve(latents_of(small), latents_of(large), batches, plan)
    else:
        curve = _encoded_curve(small, large, batches, plan, n_points)
    return Stitching(
        plan=tuple(plan),
        curve=curve,
        fvu=curve.mse / _variance(batches),
        n_novel=sum(not len(step.out) for step in plan),
        n_swaps=sum(bool(len(step.out) and len(step.into)) for step in plan),
        n_lost=sum(len(step.out) for step in plan if not len(step.into)),
    )


@torch.no_grad()
def compare_insertions(
    small: Dictionary, large: Dictionary, batches: Batches, *, tau: float = 0.7, n_null: int = 19, generator: torch.Generator
) -> Insertions:
    """Whether novel latents help the small dictionary and reconstruction latents hurt it, beside as many latents drawn from the whole large one.

    b_dec and k stay those of the small dictionary. Each draw encodes all batches. Raises ConfigError as `stitched`, and where one of the
    classes is empty.
    """
    novel = latent_classes(small.W_dec, large.W_dec, tau=tau).novel
    classes = (novel.nonzero()[:, 0], (~novel).nonzero()[:, 0])
    if not len(classes[0]) or not len(classes[1]):
        raise ConfigError(f"both classes must have latents at tau={tau}, got {len(classes[0])} novel of {len(novel)} (compare_insertions)")
    everything = torch.arange(small.d_sae)

    def fvu(added: Tensor) -> float:
        return reconstruction(stitched(small, large, everything, added, share=0.0), batches).scores.fvu

    alone = fvu(classes[0][:0])
    compared = []
    for ids in classes:
        draws = [fvu(torch.randperm(len(novel), generator=generator)[: len(ids)]) - alone for _ in range(n_null)]
        compared.append(compare(fvu(ids) - alone, draws))
    return Insertions(compared[0], compared[1], len(classes[0]), len(classes[1]), alone)


def _encoded_curve(small: Dictionary, large: Dictionary, batches: Batches, plan: Sequence[Swap], n_points: int) -> StitchingCurve:
    steps = torch.linspace(0, len(plan), min(n_points, len(plan) + 1), dtype=torch.float64).round().long()
    variance = _variance(batches)
    mse, l0, sizes = [], [], []
    for step in steps.tolist():
        out, into = (torch.cat([getattr(each, name) for each in plan[:step]] + [plan[0].out[:0]]) for name in ("out", "into"))
        kept = torch.ones(small.d_sae, dtype=torch.bool)
        kept[out] = False
        between = stitched(small, large, kept.nonzero()[:, 0], into, share=step / len(plan))
        scores = reconstruction(between, batches).scores
        mse.append(scores.fvu * variance)
        l0.append(scores.l0)
        sizes.append(between.d_sae)
    return StitchingCurve(torch.tensor(mse, dtype=torch.float64), torch.tensor(l0, dtype=torch.float64), torch.tensor(sizes), steps)


def _variance(batches: Batches) -> float:
    """Mean squared distance of the rows from their mean."""
    rows = sum(len(each) for each in batches)
    if not rows:
        raise ConfigError("batches must hold at least one row, got none (stitching)")
    mean = sum(each.double().sum(dim=0) for each in batches) / rows
    variance = float(sum(float((each.double() - mean).square().sum()) for each in batches)) / rows
    if not variance > 0:
        raise ConfigError(f"activations must vary for FVU to be defined, got {rows} equal rows (stitching)")
    return variance


def _is_elementwise(dictionary: Dictionary) -> bool:
    return isinstance(dictionary, Autoencoder) and isinstance(dictionary.config.activation, ReLU | JumpReLU | BatchTopK)


def _kind(dictionary: Dictionary) -> str:
    return type(dictionary.config.activation if isinstance(dictionary, Autoencoder) else dictionary).__name__


def _check_pair(small: Dictionary, large: Dictionary) -> None:
    """Raises ConfigError unless the two can be mixed."""
    for name, each in (("small", small), ("large", large)):
        allowed = isinstance(each, MatchingPursuit) or (
            isinstance(each, Autoencoder) and isinstance(each.config.activation, ReLU | JumpReLU | BatchTopK | TopK | AbsTopK)
        )
        if not allowed or (isinstance(each, Autoencoder) and each.is_transcoder):
            raise ConfigError(
                f"{name} must be a pursuit or an autoencoder of its own input other than Gated, got {_kind(each)} (stitching)"
            )
    same = _is_elementwise(small) == _is_elementwise(large) and (_is_elementwise(small) or _kind(small) == _kind(large))
    if isinstance(small, MatchingPursuit) and isinstance(large, MatchingPursuit):
        one, two = ((each.config.selection, each.config.orthogonal) for each in (small, large))
        same = one == two
    if not same or small.d_in != large.d_in:
        raise ConfigError(
            f"small and large must read the same activations in the same way, got {_kind(small)} of width {small.d_in} and {_kind(large)} of "
            f"width {large.d_in}; both elementwise, both TopK, both AbsTopK or both the same pursuit can be mixed (stitching)"
        )


def _thresholds(folded: Autoencoder) -> Float[Tensor, " d_sae"]:
    """theta of every latent of an elementwise dictionary; 0 for ReLU."""
    activation = folded.config.activation
    if isinstance(activation, JumpReLU):
        return folded.log_threshold.exp()
    zeros = torch.zeros_like(folded.b_enc)
    return zeros + folded.threshold if isinstance(activation, BatchTopK) else zeros


def _moved(folded: Autoencoder, offset: Float[Tensor, " d_in"]) -> Float[Tensor, " d_sae"]:
    """b_enc that gives the same pre-activations when `offset` is subtracted from x instead of b_dec."""
    return folded.b_enc + (offset - folded.b_dec) @ folded.W_enc
