"""What is wrong with a dictionary, found by using it in other ways on the same tokens.

    FVU(use) = sum_t |x_t - use(x_t)|^2 / sum_t |x_t - x_bar|^2

A dictionary that was read without its scaling, without a bias, at another site or before its norms were folded still loads and still gives
numbers. Each such mistake has a use that undoes it: multiply activations by c and divide the output, centre them, normalise every row, subtract b_dec
or do not, multiply encoders by decoder norms, take another site. A use under which FVU falls to less than `MARKED` of what it was names
the mistake. Which uses are tried does not depend on the outcome, and a dictionary that is in order passes them all: none helps it by half.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.activations import Activation, Gated, JumpReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.dictionaries.pursuit import MatchingPursuit
from sae.dictionaries.scaling import normalised, row_statistics
from sae.errors import ConfigError
from sae.evaluation.reconstruction import Reconstruction, reconstruction
from sae.evaluation.transcoding import Transcoding, transcoding

MARKED = 0.6
"""Share of the FVU below which a use counts as a remedy."""
LEAST_GAIN = 0.02
"""FVU that a remedy must take away at least."""
ROWS_TRIED = 1024
"""Tokens that uses are tried on."""
BATCH = 512
FACTORS = tuple(2.0**j for j in range(-10, 11) if j)
"""Factors on activations that are tried besides the usual ones."""
FOLDINGS = (
    (1.0, "multiplied by its decoder's norm and the decoder divided by it"),
    (-1.0, "divided by its decoder's norm and the decoder multiplied by it"),
)
NEARLY_BEST = 1.5
"""How many times the FVU of the best use another one may leave to be named beside it."""
PLAINNESS = (
    "site",
    "b_dec",
    "decoder norms",
    "row mean",
    "centring",
    "scaling",
    "layer norm",
    "constant norm",
    "activation",
    "centred scaling",
)
"""Which of equally good uses is named first."""
Use = Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_in"]]


@dataclass(frozen=True)
class Complaint:
    """One thing that looks wrong, or that a user should know."""

    name: str
    """Short name: one of `PLAINNESS`, or `silent`, `FVU`, `norms`, `sparsity`, `dead`, `alignment`"""
    text: str
    """What is seen and what it suggests, in plain words."""
    fvu: float | None = None
    """FVU when used as suggested; None where nothing was tried."""


@dataclass(frozen=True)
class Diagnosis:
    """The state of a dictionary on a sample of activations."""

    scores: Reconstruction | Transcoding
    """Scores of the dictionary as it is."""
    complaints: tuple[Complaint, ...]
    """What looks wrong; the most telling first, empty where nothing does."""
    tried: Mapping[str, float]
    """FVU of every use that was tried, by name, on the first tokens."""
    fvu_tried: float
    """FVU of the dictionary as it is on those tokens; nan where nothing was tried."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing looks wrong."""
        return not self.complaints


@dataclass(frozen=True, eq=False)
class _Remedy:
    name: str
    detail: str
    text: str
    use: Use


@torch.no_grad()
def examine(
    dictionary: Dictionary,
    acts: Float[Tensor, "n d_in"],
    *,
    elsewhere: Mapping[str, Float[Tensor, "_ d_in"]] | None = None,
    site: str = "",
    l0: float | int | None = None,
) -> Diagnosis:
    """Score `dictionary` on activations and try what could be wrong with it; see the module's text.

    `elsewhere` are activations of the same width at other sites; `l0` is what the dictionary's maker reports. Raises ConfigError for a
    transcoder, whose input is not what it reconstructs, and for activations that do not vary.
    """
    if dictionary.W_dec.shape[1] != dictionary.d_in or getattr(dictionary.config, "d_out", None) is not None:
        raise ConfigError("dictionary must reconstruct its input, got a transcoder: see examine_transcoder (examine)")
    scores = reconstruction(dictionary, acts.split(BATCH)).scores
    x = acts[:ROWS_TRIED].float()
    variance = float((x - x.mean(0)).double().square().sum())
    trial = _Trial(x, _fvu(dictionary, x, variance), variance, {}, {})
    for remedy in _remedies(dictionary, x):
        trial.take(remedy)
    for remedy in _scalings(dictionary, x, trial):
        trial.take(remedy)
    _other_sites(trial, dictionary, elsewhere or {}, site)
    return Diagnosis(scores, (*trial.ranked(), *_plain(dictionary, scores, l0)), trial.tried, trial.fvu)


@torch.no_grad()
def examine_transcoder(dictionary: Dictionary, acts: Float[Tensor, "n d_in"], targets: Float[Tensor, "n d_out"]) -> Diagnosis:
    """Score a transcoder on the activations of its input and of its target; what the scores say is said, and no other uses are tried."""
    scores = transcoding(dictionary, zip(acts.split(BATCH), targets.split(BATCH), strict=True))
    return Diagnosis(scores, tuple(_plain(dictionary, scores, None)), {}, math.nan)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Uses tried on the same tokens, and the best of each name that helped."""

    x: Tensor
    fvu: float
    variance: float
    tried: dict[str, float]
    found: dict[str, Complaint]

    def take(self, remedy: "_Remedy") -> float:
        """Try a use, keep it where it helps, and give its FVU."""
        fvu = self.tried[f"{remedy.name}: {remedy.detail}"] = _fvu(remedy.use, self.x, self.variance)
        self.keep(remedy.name, fvu, f"FVU falls from {self.fvu:.3g} to {fvu:.3g} {remedy.detail}: {remedy.text}")
        return fvu

    def keep(self, name: str, fvu: float, text: str) -> None:
        """Keep a use that helps and is better than others of its name."""
        if helps(fvu, self.fvu) and (name not in self.found or fvu < (self.found[name].fvu or 0.0)):
            self.found[name] = Complaint(name, text, fvu)

    def ranked(self) -> list[Complaint]:
        """The uses that help most, the plainest of equally good ones first; those that help only in part are left out."""
        best = min((complaint.fvu or 0.0 for complaint in self.found.values()), default=0.0)
        near = [complaint for complaint in self.found.values() if (complaint.fvu or 0.0) <= max(NEARLY_BEST * best, best + LEAST_GAIN)]
        as_good = max(1.1 * best, best + LEAST_GAIN / 2)
        return sorted(near, key=lambda complaint: ((complaint.fvu or 0.0) > as_good, PLAINNESS.index(complaint.name)))


def helps(fvu: float, before: float) -> bool:
    """Whether a use with this FVU is a remedy."""
    return math.isfinite(fvu) and fvu < MARKED * before and before - fvu >= LEAST_GAIN


def _fvu(use: Use, x: Tensor, variance: float) -> float:
    try:
        error = sum(float((part - use(part)).double().square().sum()) for part in x.split(BATCH))
    except ConfigError:  # a use may take activations out of range
        return math.inf
    return error / variance if math.isfinite(error) else math.inf


def _remedies(dictionary: Dictionary, x: Tensor) -> Iterator[_Remedy]:
    """Every use that is tried."""
    mean = x.mean(0)
    yield _Remedy(
        "centring", "when the mean activation is subtracted and added again",
        "b_dec or a centring of the activations is missing", lambda a: dictionary(a - mean) + mean,
    )  # fmt: skip
    yield _Remedy(
        "row mean", "when every activation's own mean is subtracted and added again",
        "it was trained on a model whose weights write centred residual streams (TransformerLens folds and centres them unless told not to)",
        lambda a: dictionary(a - a.mean(1, keepdim=True)) + a.mean(1, keepdim=True),
    )  # fmt: skip
    if dictionary.normalisation == "none":
        for how, name in (("layer_norm", "layer norm"), ("constant_norm", "constant norm")):
            yield _Remedy(
                name, f"when every activation is normalised by itself ({name}) and the output is brought back",
                "it was trained on normalised activations, or after a norm layer whose scale is not folded in", _by_rows(dictionary, how),
            )  # fmt: skip
    yield from _rewritten(dictionary)


def _scalings(dictionary: Dictionary, x: Tensor, trial: _Trial) -> Iterator[_Remedy]:
    """Factors on the activations, as they are and about their mean: the usual ones, powers of two, and what lies around the best of these."""
    mean, root = x.mean(0), math.sqrt(x.shape[1])
    about_zero = "when activations are multiplied by {} and the output is divided by it", "scaled activations"
    about_mean = (
        "when the mean activation is subtracted, the rest multiplied by {}, and the output brought back",
        "centred and scaled activations",
    )
    for (detail, what), centre, name in ((about_zero, torch.zeros_like(mean), "scaling"), (about_mean, mean, "centred scaling")):
        mean_norm = float((x - centre).norm(dim=1).mean())
        hints = {root / mean_norm: f" (mean norm sqrt(d_in) = {root:.3g})", 1 / mean_norm: " (mean norm 1)"}
        fvus: dict[float, float] = {}

        def remedy(factor: float, centre=centre, detail=detail, what=what, name=name, hints=hints) -> _Remedy:
            text = f"it was trained on {what}, and that was not given with it or is not applied"
            shown = detail.format(f"{factor:.4g}{hints.get(factor, '')}")
            return _Remedy(name, shown, text, lambda a: dictionary((a - centre) * factor) / factor + centre)

        for factor in (*hints, *FACTORS):
            fvus[factor] = trial.take(remedy(factor))
        best = min(fvus, key=lambda factor: fvus[factor])
        if helps(fvus[best], trial.fvu) and best not in hints:
            yield from (remedy(best * 2.0 ** (step / 8)) for step in range(-7, 8) if step)


def _by_rows(dictionary: Dictionary, how) -> Use:
    return lambda a: row_statistics(a, how).undo(dictionary(normalised(a, how)))


def _rewritten(dictionary: Dictionary) -> Iterator[_Remedy]:
    """The same weights read otherwise."""
    if isinstance(dictionary, MatchingPursuit):
        return
    if not isinstance(dictionary, Autoencoder):
        return
    applied = dictionary.config.apply_b_dec_to_input
    other = Autoencoder(replace(dictionary.config, apply_b_dec_to_input=not applied), dictionary.scaling)
    other.load_state_dict(dictionary.state_dict())
    said = "is not subtracted from the input" if applied else "is subtracted from the input"
    yield _Remedy("b_dec", f"when b_dec {said} before encoding", "the bias is applied the wrong way round", other.eval())
    norms = torch.linalg.vector_norm(dictionary.W_dec, dim=1)
    if float((norms - 1).abs().max()) > 1e-3 and not isinstance(dictionary.config.activation, Gated):
        for power, detail in FOLDINGS:
            yield _Remedy(
                "decoder norms", f"when every latent's encoder is {detail}",
                "the norms of decoder rows were not folded in, or folded twice", _folded(dictionary, norms, power),
            )  # fmt: skip
    for rule, detail in _other_rules(dictionary):
        yield _Remedy(
            "activation", f"when {detail}", "the threshold or k does not belong to these weights", dictionary.with_activation(rule).eval()
        )


def _folded(dictionary: Autoencoder, norms: Tensor, power: float) -> Use:
    factor = norms.clamp_min(torch.finfo(norms.dtype).tiny) ** power
    state = dict(dictionary.state_dict())
    state |= {"W_enc": state["W_enc"] * factor, "b_enc": state["b_enc"] * factor, "W_dec": state["W_dec"] / factor[:, None]}
    other = Autoencoder(dictionary.config, dictionary.scaling)
    other.load_state_dict(state)
    return other.eval()


def _other_rules(dictionary: Autoencoder) -> Iterator[tuple[Activation, str]]:
    activation = dictionary.config.activation
    if isinstance(activation, (Gated, TopK)) or (dictionary.k is None and not isinstance(activation, JumpReLU)):
        return
    for k in (32, 64, 128):
        if k <= dictionary.d_sae:
            yield TopK(k), f"the {k} largest latents are kept instead of those above the threshold"


def _other_sites(trial: _Trial, dictionary: Dictionary, elsewhere: Mapping[str, Tensor], site: str) -> None:
    """Try the dictionary on the activations of other sites."""
    for name, acts in elsewhere.items():
        if name == site:
            continue
        x = acts[:ROWS_TRIED].float()
        fvu = trial.tried[f"site: {name}"] = _fvu(dictionary, x, float((x - x.mean(0)).double().square().sum()))
        here = f" at {site}" if site else ""
        text = f"FVU falls from {trial.fvu:.3g}{here} to {fvu:.3g} at {name}: it was trained there, or on activations like those"
        trial.keep("site", fvu, text)


def _plain(dictionary: Dictionary, scores: Reconstruction | Transcoding, l0: float | int | None) -> Iterator[Complaint]:
    """What the scores and weights say without trying anything."""
    n = scores.n_tokens
    if scores.l0 == 0:
        yield Complaint("silent", f"no latent fires on any of {n:,} tokens")
    if scores.fvu >= 1:
        yield Complaint("FVU", f"FVU is {scores.fvu:.3g}: predicting the mean activation everywhere would be as good (1) or better")
    if isinstance(scores, Reconstruction) and not 0.5 <= scores.norm_ratio <= 1.5:
        yield Complaint("norms", f"reconstructions have {scores.norm_ratio:.3g} times the norm of the activations on average")
    expected = l0 or dictionary.k
    if expected and scores.l0 and not 0.5 <= scores.l0 / expected <= 2:
        yield Complaint("sparsity", f"{scores.l0:.1f} latents are active per token, where the dictionary's maker has {expected:.1f}")
    if scores.dead_share > 0.9:
        yield Complaint(
            "dead", f"{scores.dead_share:.1%} of the latents fire on none of {n:,} tokens: more than a sample of text would explain"
        )
    if isinstance(dictionary, Autoencoder) and not dictionary.is_transcoder:
        cosine = float(torch.cosine_similarity(dictionary.W_enc.T, dictionary.W_dec, dim=1).median())
        if cosine < 0.05:
            yield Complaint(
                "alignment",
                f"encoder and decoder of a latent have the cosine {cosine:.3f} (median): the latents of one of them may be in another order",
            )
