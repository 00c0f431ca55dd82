"""What the numbers on cards and pages mean: one sentence each, shown where the number is pointed at and listed in full on a page."""

from collections.abc import Mapping

from sae.inspection.records import NEAR_MISS_DEFINITION, RELATIONS

DEFINITIONS: Mapping[str, str] = {
    "density": "Share of the tokens looked at on which the latent is not zero; exact, not an estimate from samples.",
    "95 % CI": "Wilson interval of the density at the effective sample size: tokens of one document are not independent draws.",
    "fires on": "Tokens, and documents, on which the latent is not zero; exact counts.",
    "max": "Largest value of the latent on any token looked at.",
    "min": "Smallest non-zero value; below zero where a pursuit subtracts the atom.",
    "mean": "Mean value over the tokens on which the latent fires.",
    "median": "Median value over the tokens on which the latent fires.",
    "token bits": "Held-out information of a firing about the token it is on: the bits saved per firing by a code for that token that was "
    "learnt on the other half of the documents. A latent without meaning gets about zero, or less.",
    "next bits": "The same about the token that follows.",
    "bits": "Token bits plus next bits: how much a firing tells about the text right there.",
    "rank": "Place among the latents that fire, the largest first.",
    "value": "What the dictionary gives a latent at a token: an activation of an autoencoder, a coefficient of a matching pursuit.",
    "strongest": "Passages around the largest values, at most one per document, near-duplicates removed.",
    "intervals": "Uniform samples of the firings in equal intervals of the value from zero to the largest: what the strongest passages do not show.",
    "random": "Uniform sample of all firings.",
    "near misses": NEAR_MISS_DEFINITION,
    "negative tail": "Passages around the most negative values.",
    "driving tokens": "Vocabulary items on which the latent fires, by their share of the summed size of its values.",
    "mass": "Share of the summed size of the latent's values that falls on the token.",
    "precision": "P(fires | token): firings on the token divided by its occurrences in the corpus.",
    "logit effects": "Tokens whose logits the latent's decoder direction raises and lowers most on the direct path to the output.",
    "decoder cosine": RELATIONS["decoder_cosine"],
    "encoder cosine": RELATIONS["encoder_cosine"],
    "co-activation": RELATIONS["coactivation"],
    "correlation": RELATIONS["correlation"],
    "together": "Tokens on which both fire, over the whole corpus; exact.",
    "phi": "Correlation of firing and not firing over all tokens, -1..1.",
    "jaccard": "Tokens on which both fire divided by those on which either does.",
    "selection step": "Matching pursuit: the step at which the latent was first selected on each of its firings; early steps explain most.",
    "dead": "Latents that fire on none of the tokens looked at.",
}
"""Name -> one or two sentences."""
