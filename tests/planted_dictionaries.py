"""Small dictionaries with known geometry: random atoms, and atoms with planted structure."""

import torch

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig


def dictionary_of(atoms, *, k=4, seed=0, site=""):
    """A TopK dictionary with these atoms, tied, and random biases."""
    generator = torch.Generator().manual_seed(seed)
    config = AutoencoderConfig(d_in=atoms.shape[1], d_sae=len(atoms), activation=TopK(k=k))
    dictionary = Autoencoder(config, provenance={"site": site} if site else None)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name == "W_dec":
                parameter.copy_(atoms)
            elif name == "W_enc":
                parameter.copy_(atoms.T)
            else:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    return dictionary.eval()


def random_atoms(n=64, d=32, seed=0):
    """Independent uniform unit vectors."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def structured_atoms(n=64, d=32, seed=0):
    """Atoms of a quarter of the dimensions mostly, in groups of near ones."""
    generator = torch.Generator().manual_seed(seed)
    centres = random_atoms(n // 8, d, seed)
    rows = centres.repeat_interleave(8, dim=0) + 0.12 * torch.randn(n, d, generator=generator)
    rows[:, d // 4 :] *= 0.3
    return rows / rows.norm(dim=1, keepdim=True)
