"""Read what SAELens has saved; the format is described in the package's text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.activations import AbsTopK, Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.interop.files import Tensors, check_keys, read_json, read_safetensors
from sae.interop.rewriting import provenance
from sae.interop.saelens.config import ADVICE, CONFIG, NORMALISATIONS, SCALER, WEIGHTS, Header, header

MIN_NORM = 1e-8
"""The smallest norm that a decoder row is divided by, as in SAELens."""
UNIT = 1e-6
"""How far from 1 the norms of atoms may be that count as unit vectors."""


@dataclass(frozen=True)
class _Parts:
    """A dictionary in the making."""

    config: AutoencoderConfig | PursuitConfig
    """Its configuration."""
    weights: dict[str, Tensor]
    """Its parameters and state, but the scaling."""
    notes: tuple[str, ...]
    """What had to be decided."""


def read(path: str | Path) -> Dictionary:
    """The dictionary in a folder that SAELens wrote. Raises FormatError for whatever in it is damaged, unknown, missing, or cannot be held here.

    Known architectures, and what of the folder is used, are in the package's text; `provenance` has `site` and `model` where the metadata
    state them, and under `foreign` the configuration as it is and notes on what was decided.
    """
    folder = Path(path)
    head = header(read_json(folder / CONFIG), folder / CONFIG)
    found = Tensors(read_safetensors(folder / WEIGHTS), folder / WEIGHTS)
    _check_scaling_factor(found)
    try:
        parts = _pursuit(head, found) if head.architecture == "matching_pursuit" else _autoencoder(head, found)
    except ConfigError as error:
        raise FormatError(f"{head.path} does not describe a dictionary: {error}") from error
    found.finish()
    scaling, notes = _scaling(folder, head)
    origin = _provenance(head, [*head.notes, *found.notes(), *_dtype_notes(head, found), *parts.notes, *notes])
    kind = MatchingPursuit if isinstance(parts.config, PursuitConfig) else Autoencoder
    dictionary = kind(parts.config, scaling, provenance=origin)  # type: ignore[arg-type]
    with torch.no_grad():
        own = dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())
        for name, tensor in parts.weights.items():
            own[name].copy_(tensor)
    return dictionary.eval()


def _autoencoder(head: Header, found: Tensors) -> _Parts:
    d_in, d_sae = head.whole("d_in"), head.whole("d_sae")
    d_out = head.whole("d_out") if head.is_transcoder else d_in
    skip = "skip" in head.architecture
    bias = "b_gate" if head.architecture == "gated" else "b_enc"
    found.require("W_enc", bias, "W_dec", "b_dec", *(["W_skip"] if skip else []))
    weights = {"W_enc": found.take("W_enc", d_in, d_sae), "b_enc": found.take(bias, d_sae)}
    weights |= {"W_dec": found.take("W_dec", d_sae, d_out), "b_dec": found.take("b_dec", d_out)}
    if skip:
        weights["W_skip"] = found.take("W_skip", d_out, d_in).T
    activation, own, notes = _activation(head, found, d_sae)
    if head.settings.get("rescale_acts_by_decoder_norm") is not None and head.flag("rescale_acts_by_decoder_norm", False):
        weights |= _without_norms(weights)
        notes += (
            "pre-activations are ranked by atom norm times value: norms were folded into W_enc and b_enc, as SAELens' inference save does",
        )
    config = AutoencoderConfig(
        d_in=d_in,
        d_sae=d_sae,
        activation=activation,
        d_out=d_out if head.is_transcoder else None,
        skip=skip,
        apply_b_dec_to_input=_subtracts(head),
        normalisation=NORMALISATIONS[head.normalize_activations],
    )
    return _Parts(config, weights | own, notes)


def _subtracts(head: Header) -> bool:
    """Whether b_dec is subtracted from the input. Raises FormatError for a transcoder that says so, or that normalises its rows."""
    subtracts = head.flag("apply_b_dec_to_input", True)
    if head.is_transcoder and subtracts:
        raise FormatError(f"{head.path}: apply_b_dec_to_input must be false for a {head.architecture}, as SAELens demands")
    if head.is_transcoder and NORMALISATIONS[head.normalize_activations] != "none":
        how = head.normalize_activations
        raise FormatError(
            f"{head.path}: a {head.architecture} with normalize_activations {how!r} cannot be read: its output would not be undone"
        )
    return subtracts


def _without_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unit atoms, and an encoder that gives codes in their units: the same function, ranked alike."""
    norms = torch.linalg.vector_norm(weights["W_dec"], dim=1).clamp_min(MIN_NORM)
    return {"W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms, "W_dec": weights["W_dec"] / norms[:, None]}


def _activation(head: Header, found: Tensors, d_sae: int) -> tuple[Activation, dict[str, Tensor], tuple[str, ...]]:
    """(activation, its parameters and state, notes)."""
    name = head.architecture
    plain: dict[str, Callable[[], Activation]] = {
        "standard": ReLU, "transcoder": ReLU, "skip_transcoder": ReLU,
        "topk": lambda: TopK(k=head.whole("k", 100)), "abstopk": lambda: AbsTopK(k=head.whole("k", 100)),
    }  # fmt: skip
    if name in plain:
        return plain[name](), {}, ()
    if name == "gated":
        return Gated(), {"r_mag": found.take("r_mag", d_sae), "b_mag": found.take("b_mag", d_sae)}, ()
    if name in ("batchtopk", "matryoshka_batchtopk"):
        threshold = found.scalar("topk_threshold")
        note = "a checkpoint of training: rows are encoded with its running threshold, as SAELens' inference save does"
        return BatchTopK(k=head.number("k", 100.0)), {"threshold": torch.tensor(max(threshold, 0.0))}, (note,)
    logarithmic = name == "jumprelu" and found.has("log_threshold")
    threshold = found.take("log_threshold", d_sae).exp() if logarithmic else found.take("threshold", d_sae)
    n_below = int((threshold < 0).sum())
    notes = (f"{n_below} of {d_sae} thresholds are negative: they are read as 0, as what is below 0 is cut off too",) if n_below else ()
    return JumpReLU(), {"log_threshold": threshold.double().clamp_min(0).log().float()}, notes


def _pursuit(head: Header, found: Tensors) -> _Parts:
    d_in, d_sae = head.whole("d_in"), head.whole("d_sae")
    found.require("W_dec", "b_dec")
    atoms, b_dec, notes = found.take("W_dec", d_sae, d_in), found.take("b_dec", d_in), []
    if not head.flag("apply_b_dec_to_input", True):
        b_dec = torch.zeros_like(b_dec)
        notes.append("SAELens neither subtracts nor adds b_dec in a pursuit without apply_b_dec_to_input: it is left out")
    stops = head.flag("stop_on_duplicate_support", True)
    k = d_in if head.settings.get("max_iterations") is None else head.whole("max_iterations")
    if k > d_sae:
        if not stops:
            raise FormatError(f"{head.path}: max_iterations must be at most d_sae={d_sae} without stop_on_duplicate_support, got {k}")
        notes.append(f"max_iterations {k} is read as d_sae={d_sae}: a row stops at its first repeated atom")
        k = d_sae
    norms = torch.linalg.vector_norm(atoms, dim=1)
    config = PursuitConfig(
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        unit_norm=bool(((norms - 1).abs() <= UNIT).all()),
        tolerance=max(head.number("residual_threshold", 1e-2), 0.0),
        stop_on_repeat=stops,
        normalisation=NORMALISATIONS[head.normalize_activations],
    )
    if not config.unit_norm:
        low, high = float(norms.min()), float(norms.max())
        notes.append(f"atoms have norms from {low:.3g} to {high:.3g}: coefficients are d . r, not divided by |d|^2, as in SAELens")
    return _Parts(config, {"W_dec": atoms, "b_dec": b_dec}, tuple(notes))


def _check_scaling_factor(found: Tensors) -> None:
    """Files of some old versions hold a factor for every latent; SAELens 6 reads it where it is 1."""
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if not found.has(name):
            continue
        factor = found.take(name, None)
        if not torch.allclose(factor, torch.ones_like(factor)):
            raise FormatError(
                f"{found.path}: {name} must be 1 for every latent, as in SAELens 6; multiply row i of W_dec by factor i, leave the tensor out and read that"
            )


def _scaling(folder: Path, head: Header) -> tuple[Scaling | None, list[str]]:
    """(the scaling of a dictionary whose trainer multiplies its input, notes)."""
    factor, path = None, folder / SCALER
    if path.exists():
        saved = read_json(path)
        check_keys(saved, known={"scaling_factor", "has_whitening"}, required={"scaling_factor"}, path=path)
        if saved.get("has_whitening"):
            raise FormatError(f"{path} speaks of a whitening that is not folded into the weights; {ADVICE['covariance_whitening']}")
        factor = saved["scaling_factor"]
    averaged = head.normalize_activations == "expected_average_only_in"
    if factor is None:
        note = "normalize_activations is expected_average_only_in and no factor is given: activations are taken as they are, as SAELens' forward does"
        return None, [note] if averaged else []
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
        raise FormatError(f"{path}: scaling_factor must be a positive number or null, got {factor!r}")
    if not averaged or head.is_transcoder:
        raise FormatError(
            f"{path} has scaling_factor {factor}, but {head.path} has normalize_activations {head.normalize_activations!r} and architecture "
            f"{head.architecture!r}: if the factor is folded into the weights already, remove {SCALER}"
        )
    note = f"{SCALER} has the factor {factor:.6g}: SAELens' trainer multiplies activations by it, so it is the scaling of this dictionary"
    return Scaling(torch.zeros(head.whole("d_in")), float(factor)), [note]


def _dtype_notes(head: Header, found: Tensors) -> list[str]:
    """What the file's own dtype would have meant, where it is not that of its weights."""
    stated = str(head.settings.get("dtype", "float32")).removeprefix("torch.")
    if stated == "float32" or f"torch.{stated}" in {str(dtype) for dtype in found.dtypes.values()}:
        return []
    return [f"dtype is {stated} in {CONFIG}: SAELens computes in it, here in float32"]


def _provenance(head: Header, notes: list[str]) -> dict[str, Any]:
    known = {key: value for key, value in head.metadata.items() if isinstance(value, str) and value}
    if head.choice("reshape_activations", "none", ("none", "hook_z")) == "hook_z":
        notes.append("reshape_activations is hook_z: SAELens lays the heads of z end to end, and so must the activations given here be")
    if head.metadata.get("hook_head_index") is not None:
        notes.append(f"it was trained on head {head.metadata['hook_head_index']} of the site alone")
    site, target, model = (known.get(key) for key in ("hook_name", "hook_name_out", "model_name"))
    return provenance("saelens", head.original, notes, site=site, target_site=target, model=model)
