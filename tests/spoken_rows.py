"""Rows of tokens for a tiny model, and the mask of the predictions that count."""

import torch


def rows(model, n, context, seed):
    tokens = torch.randint(0, model.shape.d_vocab, (n, context), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    mask[0, 4:6] = False
    return tokens, mask


def spoken(model, n, context, seed):
    """Rows that the model itself says are likely, so that it has something to lose."""
    tokens, mask = rows(model, n, context, seed)
    for place in range(1, context):
        tokens[:, place] = model.run(tokens[:, :place])[:, -1].argmax(-1)
    return tokens, mask
