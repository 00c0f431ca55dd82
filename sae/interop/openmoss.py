"""What OpenMOSS's two formats have in common: where weights lie, how sites are stated, and which autoencoders they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.scaling import Normalisation
from sae.errors import ConfigError, FormatError
from sae.interop.files import Tensors, read_safetensors, read_torch

UNKNOWN, UNKNOWN_TARGET = "unknown", "unknown target"
"""What is written for a site that is not known; the libraries want names, and find a transcoder by their being two."""
PLACES = ("sae_weights", "checkpoints/pruned", "checkpoints/final")
"""Where the libraries look for weights, in their order; each may have either suffix."""
SUFFIXES = (".safetensors", ".pt")


@runtime_checkable
class Sites(Protocol):
    """What a configuration states about sites and rows."""

    @property
    def hook_point_in(self) -> str:
        """TransformerLens name of the input's site."""
        ...

    @property
    def hook_point_out(self) -> str | None:
        """That of the output's; the input's where absent."""
        ...

    @property
    def norm_activation(self) -> str:
        """What is done to activations first."""
        ...


def is_transcoder(said: Sites) -> bool:
    """Whether it explains another site than it reads."""
    return said.hook_point_out not in (None, said.hook_point_in)


def stated_sites(said: Sites) -> dict[str, str | None]:
    """`site` and `target_site`, where they are known."""
    sites = {"site": said.hook_point_in, "target_site": said.hook_point_out if is_transcoder(said) else None}
    return {name: None if site in (UNKNOWN, UNKNOWN_TARGET) else site for name, site in sites.items()}


def written_sites(autoencoder: Autoencoder, origin: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """`hook_point_in` and `hook_point_out`: as they were in a file of the format, or those of the provenance."""
    site = origin.get("site") if isinstance(origin.get("site"), str) else UNKNOWN
    target = origin.get("target_site") if isinstance(origin.get("target_site"), str) else UNKNOWN_TARGET
    hook_in = known.get("hook_point_in", site)
    return {"hook_point_in": hook_in, "hook_point_out": known.get("hook_point_out", target) if autoencoder.is_transcoder else hook_in}


def normalisation_of(said: Sites, path: Path) -> Normalisation:
    """The normalisation of rows. Raises FormatError for a transcoder that has one."""
    if said.norm_activation != "token-wise":
        return "none"
    if is_transcoder(said):
        raise FormatError(
            f"{path} has norm_activation 'token-wise' for a transcoder: its output is scaled by a norm that only the target has"
        )
    return "constant_norm"


def weights_in(folder: Path) -> Tensors:
    """The weights, from where the libraries look for them first."""
    for place in PLACES:
        for suffix, reader in zip(SUFFIXES, (read_safetensors, read_torch), strict=True):
            path = folder / f"{place}{suffix}"
            if path.exists():
                found = reader(path)
                if suffix == ".pt":
                    found = found.get("sae")
                    if not isinstance(found, dict):
                        raise FormatError(f"{path} must hold the weights under the name 'sae'")
                return Tensors(found, path)
        if (folder / f"{place}.dcp").exists():
            raise FormatError(
                f"{folder / place}.dcp is in torch's distributed format, which is read by code in it: load it with llamascopium on one device and "
                "save_pretrained it as sae_weights.safetensors"
            )
    raise FormatError(f"{folder} has no weights: none of {', '.join(f'{place}.safetensors or .pt' for place in PLACES)}")


def check_form(config: AutoencoderConfig, format: str) -> None:
    """Raises ConfigError for a linear path, two widths, and a transcoder whose rows are normalised."""
    if config.skip or config.d_out not in (None, config.d_in):
        raise ConfigError(
            f"dictionary must have one width and no linear path for {format}, got d_in={config.d_in}, d_out={config.d_out}, skip={config.skip}; "
            f"`saelens` holds transcoders ({format}.write)"
        )
    if config.d_out is not None and config.normalisation != "none":
        raise ConfigError(f"normalisation must be 'none' for a transcoder in {format}, got {config.normalisation!r} ({format}.write)")
