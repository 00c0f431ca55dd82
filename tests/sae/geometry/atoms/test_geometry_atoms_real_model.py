"""Dictionaries of layer 15 of the default model, of two starts and of two kinds: they share far more than chance."""

import pytest
import torch

import sae
from sae.geometry.atoms import compare_codes, compare_matching
from sae.models.assets import default_model

SITE = "blocks.15.hook_resid_post"


def trained(kind, seed, store):
    scaling = sae.fit_scaling(store, SITE)
    if kind == "top_k":
        made = sae.Autoencoder(sae.AutoencoderConfig(d_in=576, d_sae=512, activation=sae.TopK(k=16)), scaling, seed=seed)
    else:
        made = sae.MatchingPursuit(sae.PursuitConfig(d_in=576, d_sae=512, k=16), scaling, seed=seed)
    sample = store.usable_tokens(SITE)
    chosen = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(seed))[:4096]]
    sae.initialise_(made, store.gather(SITE, chosen).float(), seed=seed)
    config = sae.TrainConfig(n_steps=300, learning_rate=4e-3)
    for _ in sae.train(made, store.batches(SITE, batch_size=512, seed=seed), sae.ReconstructionObjective(), config):
        pass
    return made.eval()


@pytest.mark.slow
@pytest.mark.real_model
def test_dictionaries_of_two_starts_and_of_two_kinds_share_atoms_and_firing_far_beyond_their_nulls(tmp_path, unchecked):
    model = sae.LanguageModel.load(default_model())
    for _ in sae.collect(model, sae.state_of_the_union(), tmp_path / "store", sae.CaptureConfig(sites=(SITE,), n_tokens=10_000)):
        pass
    store = sae.ActivationStore.open(tmp_path / "store")
    first, second, other = trained("top_k", 0, store), trained("top_k", 1, store), trained("pursuit", 0, store)
    generator = torch.Generator().manual_seed(0)
    seeds, kinds = (
        compare_matching(first.W_dec.detach(), each.W_dec.detach(), thresholds=(0.5,), n_null=9, generator=generator)
        for each in (second, other)
    )
    for found in (seeds, kinds):
        assert found.paired.value > found.paired.null_mean + 10 * found.paired.null_sd
        assert found.paired.p_greater == found.shares[0].p_greater == pytest.approx(1 / 10)
        assert found.shares[0].value > 0.15
    tokens = store.usable_tokens(SITE)[:4000]
    acts = store.gather(SITE, tokens).float()
    with torch.no_grad():
        codes = [each.encode(acts) for each in (first, second)]
    documents = store.document_ids().flatten()[tokens]
    firing = compare_codes(codes[0], codes[1], documents, n_null=9, generator=generator)
    assert firing.paired.p_greater == pytest.approx(1 / 10)
    assert firing.paired.value > firing.paired.null_mean + 0.2
