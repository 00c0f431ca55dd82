"""Activation stores of arrays in memory, and dictionaries whose reconstruction of them is known."""

import torch

from sae.activations.importing import import_arrays
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.scaling import Scaling

SITE = "blocks.1.hook_resid_post"
CONTEXT = 16


def cloud(n_rows=60, d=12, seed=1):
    """Activations [rows, context, d] with a mean, dimensions of different size, and a mood of each row."""
    generator = torch.Generator().manual_seed(seed)
    mixing, mood = torch.randn(d, d, generator=generator), torch.randn(n_rows, 1, d, generator=generator)
    noise = torch.randn(n_rows, CONTEXT, d, generator=generator) @ mixing
    return noise + 0.8 * mood + 2.0 * torch.randn(d, generator=generator)


def array_store(path, *, rows_per_document=1, **arrays):
    """A float32 store of arrays [rows, context, width] by site; `site` is written with underscores for dots. Position 0 is masked."""
    acts = {name.replace("__", "."): value for name, value in arrays.items()}
    n_rows = len(next(iter(acts.values())))
    for _ in import_arrays(acts, path, document_ids=torch.arange(n_rows).div(rows_per_document, rounding_mode="floor"), dtype="float32"):
        pass
    return ActivationStore.open(path)


def resid_store(path, acts, *, rows_per_document=1):
    """A store of one residual stream."""
    return array_store(path, rows_per_document=rows_per_document, **{SITE.replace(".", "__"): acts})


def used(store, site=SITE):
    """The activations that the store's mask keeps."""
    return store.gather(site, store.mask(site).nonzero().squeeze(1), dtype=torch.float32)


def linear(matrix, bias):
    """x_hat = x M + b exactly, through two latents per coordinate: relu(x) - relu(-x) = x."""
    d = len(bias)
    dictionary = Autoencoder(AutoencoderConfig(d_in=d, d_sae=2 * d, activation=ReLU(), apply_b_dec_to_input=False))
    eye = torch.eye(d)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        dictionary.b_enc.zero_()
        dictionary.W_dec.copy_(torch.cat([matrix, -matrix]))
        dictionary.b_dec.copy_(bias)
    return dictionary.eval()


def perfect(d):
    """x_hat = x."""
    return linear(torch.eye(d), torch.zeros(d))


def constant(value, *, d_sae=6):
    """x_hat = value and no latent is ever active."""
    dictionary = Autoencoder(AutoencoderConfig(d_in=len(value), d_sae=d_sae, activation=TopK(1)), Scaling.identity(len(value)))
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e9)
        dictionary.b_dec.copy_(value)
    return dictionary.eval()


def random_dictionary(activation, d=12, d_sae=30, seed=0, **options):
    """An autoencoder with random weights, biases and scaling."""
    generator = torch.Generator().manual_seed(seed)
    scaling = Scaling(torch.randn(d, generator=generator), 0.4)
    dictionary = Autoencoder(AutoencoderConfig(d_in=d, d_sae=d_sae, activation=activation, **options), scaling)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return dictionary.eval()
