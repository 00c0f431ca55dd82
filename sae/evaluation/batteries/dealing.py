"""Codes without coincidences, as a null for what fires together."""

import torch

from sae.dictionaries.codes import SparseCodes


def dealt_anew(codes: SparseCodes, generator: torch.Generator) -> SparseCodes:
    """Every token keeps its number of slots, and the latents of all slots are dealt anew over them: every latent fires about as often.

    A latent that falls twice on one token counts there once.
    """
    active = codes.active()
    slots = codes.indices[active]
    indices = torch.zeros_like(codes.indices)
    indices[active] = slots[torch.randperm(len(slots), generator=generator)]
    return SparseCodes(indices, codes.values, codes.counts, codes.d_sae).merged()
