"""What is to be trained, as one value: a dictionary's configuration, what it minimises, and how.

    {"architecture": "top_k", "dictionary": {...}, "objective": "reconstruction", "loss": {...}, "training": {...}, "atoms": null}

is its JSON, in which architectures and objectives go by short names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import AutoencoderConfig
from sae.dictionaries.codebook import CodebookConfig
from sae.dictionaries.pursuit import PursuitConfig
from sae.errors import ConfigError
from sae.fingerprint import from_json, to_json
from sae.training.loop import TrainConfig
from sae.training.objectives import MatryoshkaObjective, MultiTopKObjective, ReconstructionObjective

DictionaryConfig = AutoencoderConfig | PursuitConfig | CodebookConfig
PlanObjective = ReconstructionObjective | MatryoshkaObjective | MultiTopKObjective

ACTIVATIONS: dict[str, type] = {
    "top_k": TopK, "abs_top_k": AbsTopK, "batch_top_k": BatchTopK, "relu": ReLU, "jump_relu": JumpReLU, "gated": Gated,
}  # fmt: skip
"""Activations of an autoencoder, by the name of the architecture."""
ARCHITECTURES: dict[str, type] = {
    **dict.fromkeys(ACTIVATIONS, AutoencoderConfig), "pursuit": PursuitConfig, "codebook": CodebookConfig,
}  # fmt: skip
"""The class of the configuration, by the name of the architecture."""
OBJECTIVES: dict[str, type] = {
    "reconstruction": ReconstructionObjective, "matryoshka": MatryoshkaObjective, "multi_top_k": MultiTopKObjective,
}  # fmt: skip
"""The class of the objective, by its name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One dictionary to be trained. Parts that do not go together are refused when it is made."""

    dictionary: DictionaryConfig
    """Its shape and architecture."""
    training: TrainConfig
    """How it is trained."""
    objective: PlanObjective = field(default_factory=ReconstructionObjective)
    """What is minimised."""
    atoms: Literal["data", "random"] | None = None
    """What its atoms start as; absent, what has been found best for its kind."""

    def __post_init__(self) -> None:
        if isinstance(self.objective, MatryoshkaObjective) and not isinstance(self.dictionary, AutoencoderConfig):
            raise ConfigError(f"objective must not be matryoshka for {self.architecture}: it has no prefixes (Plan)")
        for what, wanted in (
            ("objective multi_top_k", isinstance(self.objective, MultiTopKObjective)),
            ("annealing", self.training.annealing),
        ):
            if wanted and self.k is None:
                raise ConfigError(f"{what} needs an architecture with a fixed k, got {self.architecture} (Plan)")
        if self.is_transcoder and self.atoms == "data":
            raise ConfigError("atoms must not be 'data' for a transcoder: what it explains has other directions than its input (Plan)")

    @property
    def architecture(self) -> str:
        """The architecture's name."""
        if isinstance(self.dictionary, AutoencoderConfig):
            return self.dictionary.activation.kind
        return "pursuit" if isinstance(self.dictionary, PursuitConfig) else "codebook"

    @property
    def is_transcoder(self) -> bool:
        """Whether another site's activations are explained."""
        return isinstance(self.dictionary, AutoencoderConfig) and self.dictionary.d_out is not None

    @property
    def k(self) -> float | None:
        """Active latents per token, where the architecture fixes their number."""
        owner = self.dictionary.activation if isinstance(self.dictionary, AutoencoderConfig) else self.dictionary
        k = getattr(owner, "k", None)
        return None if k is None else float(k)

    @property
    def terms(self) -> ReconstructionObjective:
        """The terms that every objective has."""
        return self.objective if isinstance(self.objective, ReconstructionObjective) else self.objective.terms

    def json(self) -> dict[str, Any]:
        """The plan as JSON; the inverse of `parse`."""
        name = next(name for name, kind in OBJECTIVES.items() if type(self.objective) is kind)
        head = {"architecture": self.architecture, "dictionary": to_json(self.dictionary), "objective": name}
        return {**head, "loss": to_json(self.objective), "training": to_json(self.training), "atoms": self.atoms}

    @staticmethod
    def parse(data: Mapping[str, Any]) -> "Plan":
        """The plan that JSON describes. Raises ConfigError naming a key that is unknown, missing or of the wrong type."""
        known = ("architecture", "dictionary", "objective", "loss", "training", "atoms")
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ConfigError(f"unknown key {unknown[0]!r} in a plan; allowed: {', '.join(known)}")
        architecture, objective = data.get("architecture", "top_k"), data.get("objective", "reconstruction")
        for name, value, allowed in (("architecture", architecture, ARCHITECTURES), ("objective", objective, OBJECTIVES)):
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        dictionary = dict(data.get("dictionary", {}))
        if architecture in ACTIVATIONS:
            own = {**dictionary.get("activation", {}), "kind": architecture}
            dictionary["activation"] = to_json(from_json(ACTIVATIONS[architecture], own, where="activation"))
        return Plan(
            dictionary=from_json(ARCHITECTURES[architecture], dictionary, where="dictionary"),
            objective=from_json(OBJECTIVES[objective], data.get("loss", {}), where="loss"),
            training=from_json(TrainConfig, data.get("training", {}), where="training"),
            atoms=from_json(Literal["data", "random"] | None, data.get("atoms"), where="atoms"),
        )
