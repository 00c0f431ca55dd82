"""The golden files of every format, and dictionaries with nothing but random parameters."""

from pathlib import Path

import torch

from sae.dictionaries.activations import ReLU
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig

GOLDEN = Path(__file__).parent / "golden" / "interop"
CASES = sorted(f"{path.parent.name}/{path.name}" for path in GOLDEN.glob("*/*/") if (path / "expected.safetensors").is_file())
"""`format/case` of every golden folder."""


def place_of(case):
    """What is given to `read`: the folder, or the file in it where the format is a file."""
    folder = GOLDEN / case
    return next(folder.rglob("*.pt")) if case.startswith("openai_topk/") else folder


def random_autoencoder(activation=None, *, d_in=8, d_sae=24, seed=0, **options):
    """An autoencoder whose parameters are all random and whose atoms are unit vectors."""
    activation = activation or ReLU()
    dictionary = Autoencoder(AutoencoderConfig(d_in=d_in, d_sae=d_sae, activation=activation, **options), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name != "W_dec":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        if hasattr(dictionary, "log_threshold"):
            dictionary.log_threshold.copy_(torch.rand(d_sae, generator=generator) - 1.5)
    return dictionary.eval()
