"""cfg.json: what it says, in the names of SAELens 6 whichever version wrote it, and what of it is known."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.dictionaries.scaling import Normalisation
from sae.errors import FormatError
from sae.interop.files import check_keys
from sae.interop.saelens import before_6

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.54.12"
"""The version of SAELens whose form is written, and with which it was checked."""
BASE = frozenset(
    {"d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "metadata", "architecture"}
)
"""Keys of every architecture."""
VERSIONS = frozenset({"sae_lens_version", "sae_lens_training_version"})
"""Keys that SAELens also looks for outside the metadata."""
TOP_K = frozenset({"k", "rescale_acts_by_decoder_norm", "use_sparse_activations", "aux_loss_coefficient", "decoder_init_norm"})
BATCH_TOP_K = TOP_K | {"topk_threshold_lr"}
ARCHITECTURES: dict[str, frozenset[str]] = {
    "standard": frozenset({"l1_coefficient", "lp_norm", "l1_warm_up_steps", "decoder_init_norm"}),
    "gated": frozenset({"l1_coefficient", "l1_warm_up_steps", "decoder_init_norm"}),
    "topk": TOP_K,
    "abstopk": TOP_K,
    "batchtopk": BATCH_TOP_K,
    "matryoshka_batchtopk": BATCH_TOP_K | {"matryoshka_widths", "use_matryoshka_aux_loss"},
    "jumprelu": frozenset(
        {
            "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "l0_coefficient", "l0_warm_up_steps",
            "pre_act_loss_coefficient", "jumprelu_tanh_scale", "jumprelu_ste_to_input", "target_l0", "decoder_init_norm",
        }
    ),
    "matching_pursuit": frozenset({"residual_threshold", "max_iterations", "stop_on_duplicate_support", "decoder_init_norm"}),
    "transcoder": frozenset({"d_out"}),
    "jumprelu_transcoder": frozenset({"d_out"}),
    "skip_transcoder": frozenset({"d_out"}),
    "jumprelu_skip_transcoder": frozenset({"d_out"}),
}  # fmt: skip
"""Architecture -> its own keys, of its inference and of its training configuration."""
NORMALISATIONS: dict[str, Normalisation] = {
    "none": "none", "expected_average_only_in": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm",
}  # fmt: skip
"""normalize_activations -> what SAELens' own forward does to every row."""
ADVICE = {
    "temporal": "its codes depend on earlier tokens, which no dictionary here does",
    "covariance_whitening": "fold the whitening in SAELens (sae.fold_activation_whitening), save it there, and read that",
}


@dataclass(frozen=True)
class Header:
    """What cfg.json says."""

    path: Path
    """The file, for messages."""
    settings: dict[str, Any]
    """Everything but the metadata, in the names of version 6."""
    metadata: dict[str, Any]
    """What it says about model, site and training."""
    original: dict[str, Any]
    """The file's object, untouched."""
    notes: tuple[str, ...]
    """What had to be decided."""

    @property
    def architecture(self) -> str:
        """The name of the architecture, a key of ARCHITECTURES."""
        return self.settings["architecture"]

    @property
    def is_transcoder(self) -> bool:
        """Whether it explains another site's activations."""
        return self.architecture.endswith("transcoder")

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1. Raises FormatError for anything else."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FormatError(f"{self.path}: {name} must be a whole number of at least 1, got {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number. Raises FormatError for anything else."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise FormatError(f"{self.path}: {name} must be a number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false. Raises FormatError for anything else."""
        value = self.settings.get(name, default)
        if not isinstance(value, bool):
            raise FormatError(f"{self.path}: {name} must be true or false, got {value!r}")
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed words. Raises FormatError for anything else."""
        value = self.settings.get(name, default)
        if value not in allowed:
            advice = f"; {ADVICE[value]}" if isinstance(value, str) and value in ADVICE else ""
            raise FormatError(f"{self.path}: {name} must be one of {', '.join(allowed)}, got {value!r}{advice}")
        return value

    @property
    def normalize_activations(self) -> str:
        """How activations are normalised, in SAELens' words."""
        return self.choice("normalize_activations", "none", tuple(NORMALISATIONS))


def header(config: dict[str, Any], path: Path) -> Header:
    """What a configuration says. Raises FormatError for an unknown architecture and for unknown keys, which it lists."""
    notes: list[str] = []
    settings, metadata = {name: value for name, value in config.items() if name != "metadata"}, config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise FormatError(f"{path}: metadata must be an object, got {metadata!r}")
    old = _is_before_6(config.get("sae_lens_version") or metadata.get("sae_lens_version"), path)
    if old:
        settings, metadata, notes = before_6.in_current_form(config, path)
    architecture = settings.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        advice = f": {ADVICE[architecture]}" if isinstance(architecture, str) and architecture in ADVICE else ""
        raise FormatError(f"{path} has architecture {architecture!r}, which cannot be read{advice}; known are {', '.join(ARCHITECTURES)}")
    own = ARCHITECTURES[architecture]
    known = BASE | VERSIONS | own | (before_6.NAMES if old else frozenset())
    required = {"d_in", "d_sae"} | ({"d_out"} & own) | (set() if old else {"architecture"})
    check_keys(config, known=known, required=required, path=path)
    return Header(path, settings, metadata, config, tuple(notes))


def _is_before_6(version: Any, path: Path) -> bool:
    """As SAELens decides it: a file that states no version is old, and 6.0.0-rc.0 is new."""
    if not version:
        return True
    found = re.match(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(.*)", version) if isinstance(version, str) else None
    if found is None:
        raise FormatError(f"{path}: sae_lens_version must be a version such as {VERSION}, got {version!r}")
    numbers = tuple(int(part or 0) for part in found.groups()[:3])
    early = re.match(r"[-_.]?(a|b|alpha|beta|dev)", found[4]) is not None
    return numbers < (6, 0, 0) or (numbers == (6, 0, 0) and early)
