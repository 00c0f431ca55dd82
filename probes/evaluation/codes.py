"""Codes as lengths in the activations: what every latent adds to the reconstruction, in the units of the model.

    acts_hat = b + sum_j c_j u_j,      u_j = d_j / |d_j|,      c_j = z_j |d_j| s           s: what decoding multiplies by, for this row

d_j is the row j of W_dec, s undoes the dictionary's scaling and the normalisation of the row. SAEBench takes decoders to have unit norm and reads z_j;
c_j is that number for them, and is the same however the scale of a latent is shared out between encoder and decoder. A latent with d_j = 0 adds
nothing: c_j = 0.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from probes.problem import Features
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs
from sae.models.sites import Site

ROWS = 4096
"""Rows encoded at a time."""


def directions(dictionary: Dictionary) -> Float[Tensor, "d_sae d_in"]:
    """u_j: the unit vectors along the rows of W_dec, float32; 0 where the row is. Raises ConfigError for a transcoder, which writes elsewhere."""
    if getattr(dictionary, "is_transcoder", False):
        raise ConfigError("dictionary must write to the site that it reads, got a transcoder: its atoms are directions of another site")
    W_dec = dictionary.W_dec.detach().float().cpu()
    norms = torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
    return torch.where(norms > 0, W_dec / norms.clamp_min(torch.finfo(W_dec.dtype).tiny), 0.0)


def lengths(dictionary: Dictionary, acts: Float[Tensor, "n d_in"]) -> SparseCodes:
    """c of the module's text for every row, a latent at most once in a row; on the CPU. Encoded `ROWS` rows at a time."""
    norms = torch.linalg.vector_norm(dictionary.W_dec.detach().float(), dim=1) / dictionary.scaling.scale
    parts = []
    with torch.no_grad():
        for start in range(0, max(len(acts), 1), ROWS):
            codes = dictionary.encode(acts[start : start + ROWS].float().to(dictionary.W_dec.device)).merged()
            values = codes.values.float() * norms[codes.indices.long()]
            if codes.rows is not None:
                values = values * codes.rows.scale[:, None].to(values)
            parts.append(SparseCodes.of_slots(codes.indices, values * codes.active(), codes.d_sae).to("cpu"))
    return SparseCodes.concatenate(parts)


def pooled_lengths(
    dictionary: Dictionary, acts: Float[Tensor, "n d_in"], pool: Callable[[sparse.csr_matrix], Features]
) -> sparse.csr_matrix:
    """c as a CSR matrix, pooled over the tokens of rows by `pool`; float32."""
    return sparse.csr_matrix(pool(sparse.csr_matrix(lengths(dictionary, acts).csr(), dtype=np.float32)), dtype=np.float32)


def site_of(inputs: Inputs) -> Site:
    """The site that the dictionary reads in the model: the one looked at, or the one in its provenance.

    Raises ConfigError where none is named, the widths differ, or the dictionary says that it was trained on another model.
    """
    dictionary, model = inputs.chosen("dictionary"), inputs.language_model
    name = inputs.site or dictionary.provenance.get("site")
    if not isinstance(name, str):
        raise ConfigError("the dictionary's site is not in its provenance: name it with --site (site_of)")
    site = model.site(name)
    if dictionary.d_in != site.width:
        raise ConfigError(f"dictionary must take activations of width {site.width} like {site.name}, got d_in={dictionary.d_in} (site_of)")
    trained_on = dictionary.provenance.get("model_digest")
    if trained_on and trained_on != model.digest:
        raise ConfigError(f"dictionary was trained on a model of digest {trained_on}, this one's is {model.digest} (site_of)")
    return site
