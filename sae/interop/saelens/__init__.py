"""SAELens: a folder with cfg.json and sae_weights.safetensors, as its versions 0 to 6 write it (checked with sae-lens 6.54.12).

    x = norm(acts) - b_dec (or norm(acts) where not apply_b_dec_to_input)        z = activation(x W_enc + b_enc)        out = unnorm(z W_dec + b_dec)
    W_enc [d_in, d_sae]   b_enc [d_sae]   W_dec [d_sae, d_in]   b_dec [d_in]

    standard                              ReLU
    topk, abstopk                         TopK, AbsTopK
    batchtopk, matryoshka_batchtopk       BatchTopK, read from checkpoints of training (topk_threshold)
    jumprelu                              JumpReLU (threshold [d_sae], log_threshold in checkpoints of old versions); what BatchTopK is saved as
    gated                                 Gated (b_gate, b_mag, r_mag)
    matching_pursuit                      MatchingPursuit (W_dec and b_dec only; b_dec not at all without apply_b_dec_to_input)
    transcoder, jumprelu_transcoder       with d_out: W_dec [d_sae, d_out], b_dec [d_out], nothing subtracted from the input
    skip_transcoder, jumprelu_skip_...    and W_skip [d_out, d_in]: out = z W_dec + b_dec + acts W_skip^T

What the owner's inference form does is what is read: decoder norms that rank activations are folded into the weights, a negative threshold is
zero. A factor for the activations becomes the dictionary's scaling where activation_scaler.json states it; without one, activations are taken as
they are. `provenance["foreign"]["notes"]` says which of these happened.

`write` makes the inference form. A dictionary with a scaling is folded first (`fold`), so its codes there are in units of the activations;
BatchTopK is written as jumprelu with its threshold for every latent.
"""

from sae.interop.saelens.reading import read
from sae.interop.saelens.writing import write

__all__ = ["read", "write"]
