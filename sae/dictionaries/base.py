"""Dictionary: a set of directions, and a rule that writes activations as sparse sums of them.

    x = (acts - mean) * scale        z = code(x)        x_hat = z W_dec + b_dec        acts_hat = x_hat / scale + mean

with every row of acts normalised by itself first, and acts_hat the other way, where the configuration has a `normalisation`.

Public methods take and return activations of the language model; the scaling is applied inside. Training works on x through `code` and
`reconstruct`. Row i of `W_dec` is atom i, a unit vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.dictionaries import kernels
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.explained import Ask, Explained
from sae.dictionaries.kernels.dispatch import gathered
from sae.dictionaries.scaling import Normalisation, Scaling, normalised, row_statistics
from sae.errors import ConfigError
from sae.fingerprint import digest, digest_tensors, to_json

LATER_FIELDS = (
    ("apply_b_dec_to_input", True), ("normalisation", "none"), ("unit_norm", True), ("tolerance", 0.0), ("stop_on_repeat", False),
)  # fmt: skip
"""Fields that configurations got later, at the value that changes nothing: it is left out of digests, so that older files keep theirs."""


@runtime_checkable
class Widths(Protocol):
    """The widths that every configuration states."""

    @property
    def d_in(self) -> int:
        """Input width."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        ...


class Dictionary(nn.Module, ABC):
    """Encodes activations sparsely over d_sae atoms and decodes them again; see the module's text for the equations.

    In train and eval mode alike, a row's codes depend on that row only; what couples the rows of a batch (BatchTopK) happens in `explain`
    alone. `provenance` is free-form JSON set by whoever trained it: by
    convention `site`, `model_digest`, `store_digest` and `training`; it is saved, but is not part of `digest`.
    """

    unit_atoms: ClassVar[bool] = True
    """Whether training keeps the rows of W_dec on the unit sphere."""
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, "d_out"]
    scaling_mean: Float[Tensor, "d_in"]

    def __init__(self, config: Widths, scaling: Scaling | None, provenance: Mapping[str, Any] | None):
        super().__init__()
        scaling = scaling or Scaling.identity(config.d_in)
        if scaling.mean.shape != (config.d_in,):
            raise ConfigError(f"scaling.mean must have width d_in={config.d_in}, got {scaling.mean.shape[0]} ({type(self).__name__})")
        self.config = config
        self.provenance: dict[str, Any] = to_json(provenance or {})
        self.register_buffer("scaling_mean", scaling.mean.detach().clone().float())
        self._scale = scaling.scale

    @property
    def d_in(self) -> int:
        """Input width."""
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.d_sae

    @property
    def scaling(self) -> Scaling:
        """The map from activations to the space of `code`, on the dictionary's device."""
        return Scaling(self.scaling_mean, self._scale)

    @property
    def target_scaling(self) -> Scaling:
        """The map from the activations that are explained to the space of `reconstruct`; that of the input except in a transcoder."""
        return self.scaling

    @property
    def scales(self) -> dict[str, float]:
        """The scale of every scaling, by the name that a checkpoint gives it."""
        return {"scale": self._scale}

    @property
    def digest(self) -> str:
        """SHA-256 of what the dictionary computes: its class, configuration, scaling and every parameter, bit for bit."""
        return whole_digest(type(self).__name__, self.config, self.scales, self.state_dict())

    @abstractmethod
    def code(self, x: Float[Tensor, "n d_in"]) -> SparseCodes:
        """Codes of scaled activations; differentiable."""

    @abstractmethod
    def explain(self, x: Float[Tensor, "n d_in"], ask: Ask) -> Explained:
        """What training needs to know about scaled activations; differentiable. Raises ConfigError for what this kind cannot answer."""

    def settle_(self, codes: SparseCodes) -> None:
        """Take note of the codes of a training batch, in place: what a dictionary keeps besides its parameters (BatchTopK's threshold)."""

    @abstractmethod
    def fold(self) -> "Dictionary":
        """A dictionary with identity scaling, equal `forward`, and codes in activation units: codes.values / scaling.scale.

        Exact because every encoder here is positively homogeneous in (x, biases).
        """

    def encode(self, acts: Float[Tensor, "n d_in"]) -> SparseCodes:
        """Codes of activations. Raises ConfigError for the wrong width or values that are not finite."""
        with gathered(self.W_dec):
            return self.of_rows(self.code(self.scaled(acts)), acts)

    def decode(self, codes: SparseCodes) -> Float[Tensor, "n d_out"]:
        """Activations that the codes stand for. Raises ConfigError for codes over another number of latents, and for codes without the
        statistics of their rows where rows are normalised.
        """
        with gathered(self.W_dec):
            return self._given_back(self.target_scaling.undo(self.reconstruct(codes)), codes)

    def forward(self, acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """decode(encode(acts))."""
        return self.decode(self.encode(acts))

    def reconstruct(self, codes: SparseCodes) -> Float[Tensor, "n d_out"]:
        """x_hat = z W_dec + b_dec, in the space of `code`; differentiable."""
        if codes.d_sae != self.d_sae:
            raise ConfigError(f"codes must be over d_sae={self.d_sae} latents, got {codes.d_sae} ({type(self).__name__})")
        return kernels.weighted_rows(codes.values.to(self.W_dec.dtype), codes.indices, self.W_dec) + self.b_dec

    @property
    def normalisation(self) -> Normalisation:
        """What is done to every row of activations by itself, before the scaling."""
        return getattr(self.config, "normalisation", "none")

    def of_rows(self, codes: SparseCodes, acts: Float[Tensor, "n d_in"]) -> SparseCodes:
        """The codes with what the normalisation took from the rows of `acts` that they are of."""
        return codes if self.normalisation == "none" else replace(codes, rows=row_statistics(acts.to(self.W_dec), self.normalisation))

    @property
    def k(self) -> float | None:
        """Active latents per row, where the configuration fixes their number."""
        k = getattr(self.config, "k", None)
        return None if k is None else float(k)

    def scaled_target(self, acts: Float[Tensor, "n d_out"]) -> Float[Tensor, "n d_out"]:
        """Scaled activations of the site that is explained, checked like the input's."""
        return self._checked(acts, self.target_scaling, self.W_dec.shape[1], "d_out")

    def scaled(self, acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """x = scaling.apply(acts), after checking the width and that every value is finite."""
        return self._checked(acts, self.scaling, self.d_in, "d_in")

    def _checked(self, acts: Tensor, scaling: Scaling, width: int, name: str) -> Tensor:
        if acts.ndim != 2 or acts.shape[1] != width:
            raise ConfigError(f"acts must have shape [n, {name}={width}], got {list(acts.shape)} ({type(self).__name__})")
        if name == "d_in":
            acts = normalised(acts.to(self.scaling_mean), self.normalisation) if self.normalisation != "none" else acts
        x = scaling.apply(acts).to(self.W_dec.dtype)
        # A sum is finite only if every term is (an overflow of finite terms is settled by looking at each).
        if not bool(torch.isfinite(x.detach().sum())) and not bool(torch.isfinite(x.detach()).all()):
            n_bad = int((~torch.isfinite(x).all(1)).sum())
            raise ConfigError(f"acts must be finite, got NaN or Inf in {n_bad} of {len(acts)} rows ({type(self).__name__})")
        return x

    def _given_back(self, acts: Tensor, codes: SparseCodes) -> Tensor:
        if self.normalisation == "none":
            return acts
        if codes.rows is None:
            raise ConfigError(
                f"codes must carry the statistics of their rows (normalisation {self.normalisation!r}, {type(self).__name__})"
            )
        return codes.rows.undo(acts)

    def rate_factor(self, name: str) -> float:
        """How many times the learning rate the parameter `name` is trained with."""
        return 1.0

    @torch.no_grad()
    def normalise_(self) -> None:
        """Scale every atom to unit norm, in place; nothing where atoms are not `unit_atoms`."""
        if self.unit_atoms:
            self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny))


def whole_digest(kind: str, config: Any, scales: Mapping[str, float], state: Mapping[str, Tensor]) -> str:
    """`Dictionary.digest` from its parts."""
    said = {name: value for name, value in to_json(config).items() if (name, value) not in LATER_FIELDS}
    return digest([digest({"kind": kind, "config": said, **scales}), digest_tensors(state)])


def check_widths(d_in: int, d_sae: int, owner: str) -> None:
    """Raises ConfigError unless both widths are positive."""
    for name, value in (("d_in", d_in), ("d_sae", d_sae)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value} ({owner})")


def random_atoms(d_sae: int, d_in: int, seed: int) -> Float[Tensor, "d_sae d_in"]:
    """Independent uniform unit vectors, one a row, from their own generator."""
    atoms = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
    return atoms / torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
