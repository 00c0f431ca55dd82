"""Reconstruction and densities: the values that planted and degenerate dictionaries have, and slow computations from the definitions."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from array_store import SITE, array_store, cloud, constant, linear, perfect, random_dictionary, resid_store, used
from sklearn.metrics import r2_score

from sae.dictionaries.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.evaluation.batteries import Inputs
from sae.evaluation.reconstruction import pca_fvu, reconstruction
from sae.evaluation.suite.fidelity import DENSITIES, RECONSTRUCTION, FidelityConfig
from sae.evaluation.suite.sample import sample, sums
from sae.evaluation.token_sums import SCALARS, Batch, TokenSums, token_sums
from sae.storage import ResultCache

EVERYTHING = FidelityConfig(n_tokens=10**6)
D = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return resid_store(tmp_path_factory.mktemp("fidelity") / "acts", cloud())


@pytest.fixture
def measured(store, tmp_path):
    def run(dictionary, measure=RECONSTRUCTION, config=EVERYTHING, store=store, seed=0):
        inputs = Inputs(ResultCache(tmp_path / "cache"), seed, dictionary=dictionary, store=store, sites=(SITE,), site=SITE)
        numbers = measure.compute(inputs, config).numbers
        for number in numbers:
            measure.quantity(number.quantity)
        return {(n.quantity, n.subject) if n.subject else n.quantity: n for n in numbers}

    return run


def values(numbers):
    return {name: number.value for name, number in numbers.items()}


def kinds():
    generator = torch.Generator().manual_seed(3)

    def random_(dictionary):
        with torch.no_grad():
            for name, parameter in dictionary.named_parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator) * (1 if name != "log_threshold" else 0.1))
        dictionary.normalise_()
        return dictionary.eval()

    batch_top_k = random_dictionary(BatchTopK(5.0))
    batch_top_k.threshold.fill_(0.3)
    return {
        "top_k": random_dictionary(TopK(5)),
        "batch_top_k": batch_top_k,
        "jump_relu": random_dictionary(JumpReLU(threshold=0.2)),
        "gated": random_(Autoencoder(AutoencoderConfig(d_in=D, d_sae=30, activation=Gated()), Scaling(torch.full((D,), 0.5), 0.3))),
        "layer_norm": random_dictionary(TopK(5), normalisation="layer_norm"),
        "constant_norm": random_dictionary(ReLU(), normalisation="constant_norm", apply_b_dec_to_input=False),
        "pursuit that repeats": random_(MatchingPursuit(PursuitConfig(d_in=D, d_sae=15, k=9), Scaling(torch.full((D,), 0.5), 0.3))),
        "pursuit of layer norm": random_(MatchingPursuit(PursuitConfig(d_in=D, d_sae=15, k=4, normalisation="layer_norm"))),
        "codebook": random_(Codebook(CodebookConfig(d_in=D, d_sae=30, k=4))),
    }


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_every_kind_equal_a_slow_float64_computation_from_the_definitions(measured, store, kind):
    dictionary, x = KINDS[kind], used(store)
    found = values(measured(dictionary))
    a, b = x.double().numpy(), dictionary(x).detach().double().numpy()
    z = dictionary.encode(x).dense().detach().numpy()
    error, deviation = (a - b) ** 2, (a - a.mean(0)) ** 2
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    dimensions = error.sum(0) / deviation.sum(0)
    expected = {
        "FVU": error.sum() / deviation.sum(),
        "explained variance": 1 - error.sum() / deviation.sum(),
        "FVU of the mean": 1.0,  # all usable tokens of the store are evaluated
        "mean FVU of dimensions": dimensions.mean(),
        "median FVU of dimensions": np.sort(dimensions)[(D - 1) // 2],
        "worst FVU of a dimension": dimensions.max(),
        "dimensions above 1": (dimensions > 1).mean(),
        "relative error": (error.sum(1) / (a**2).sum(1)).mean(),
        "cosine": ((a * b).sum(1) / (lengths[0] * lengths[1])).mean(),
        "norm ratio": (lengths[1] / lengths[0]).mean(),
        "reconstruction bias": (b**2).sum() / (a * b).sum(),
        "L0": (z != 0).sum(1).mean(),
        "dead share": (z == 0).all(0).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name
    assert found["L0 quantile", "50 %"] == np.quantile((z != 0).sum(1), 0.5, method="inverted_cdf")
    assert found["L0 quantile", "95 %"] == np.quantile((z != 0).sum(1), 0.95, method="inverted_cdf")
    assert found["mean FVU of dimensions"] == pytest.approx(1 - r2_score(a, b, multioutput="uniform_average"), rel=2e-5)
    assert found["FVU"] == pytest.approx(1 - r2_score(a, b, multioutput="variance_weighted"), rel=2e-5)


def test_the_one_fvu_of_the_project_is_that_of_reconstruction_too(measured, store):
    dictionary, x = KINDS["top_k"], used(store)
    found, scores = values(measured(dictionary)), reconstruction(dictionary, [x[:100], x[100:]]).scores
    names = {"FVU": "fvu", "cosine": "cosine", "norm ratio": "norm_ratio", "reconstruction bias": "reconstruction_bias", "L0": "l0"}
    for name, field in names.items():
        assert found[name] == pytest.approx(getattr(scores, field), rel=1e-6), name


def test_a_perfect_dictionary_has_fvu_0_and_cosine_norm_ratio_and_bias_1(measured):
    found = values(measured(perfect(D)))
    for name, value in {"FVU": 0, "relative error": 0, "worst FVU of a dimension": 0, "dimensions above 1": 0}.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    for name in ("explained variance", "cosine", "norm ratio", "reconstruction bias"):
        assert found[name] == pytest.approx(1, abs=1e-9), name
    assert found["L0"] == D
    assert found["FVU of PCA", f"{D} coefficients"] == pytest.approx(0, abs=1e-6)


def test_the_zero_dictionary_has_the_energy_over_the_variance_and_no_bias(measured, store):
    x = used(store).double()
    numbers = measured(constant(torch.zeros(D)))
    found = values(numbers)
    assert found["FVU"] == pytest.approx(float(x.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-6)
    assert (found["cosine"], found["norm ratio"], found["L0"], found["dead share"]) == (0, 0, 0, 1)
    assert found["relative error"] == pytest.approx(1)
    assert found["reconstruction bias"] is None
    assert numbers["reconstruction bias"].low is None
    assert found["FVU of PCA", "0 coefficients"] == pytest.approx(1)


def test_the_mean_alone_has_fvu_1_in_total_and_in_every_dimension(measured, store):
    found = values(measured(constant(used(store).double().mean(0).float())))
    for name in ("FVU", "mean FVU of dimensions", "median FVU of dimensions", "worst FVU of a dimension"):
        assert found[name] == pytest.approx(1, abs=1e-6), name
    assert found["explained variance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("c", [0.5, 1.3])
def test_a_scaled_reconstruction_has_the_stated_fvu_and_bias(measured, store, c):
    x = used(store).double()
    found = values(measured(linear(c * torch.eye(D), torch.zeros(D))))
    assert found["FVU"] == pytest.approx((1 - c) ** 2 * float(x.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5)
    assert found["reconstruction bias"] == pytest.approx(c, rel=1e-6)
    assert found["norm ratio"] == pytest.approx(c, rel=1e-6)
    assert found["relative error"] == pytest.approx((1 - c) ** 2, rel=1e-5)
    assert found["cosine"] == pytest.approx(1, abs=1e-9)


def test_permuted_latents_and_codes_times_c_over_atoms_by_c_change_nothing(measured):
    plain = random_dictionary(ReLU())
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    factors = 0.3 + 2 * torch.rand(30, generator=torch.Generator().manual_seed(2))
    permuted, scaled = copy.deepcopy(plain), copy.deepcopy(plain)
    with torch.no_grad():
        for dictionary, change in ((permuted, lambda v: v[..., order]), (scaled, lambda v: v * factors)):
            dictionary.W_enc.copy_(change(plain.W_enc))
            dictionary.b_enc.copy_(change(plain.b_enc))
        permuted.W_dec.copy_(plain.W_dec[order])
        scaled.W_dec.copy_(plain.W_dec / factors[:, None])
    for measure in (RECONSTRUCTION, DENSITIES):
        expected = measured(plain, measure)
        for other in (permuted, scaled):
            found = measured(other, measure)
            for name, number in expected.items():
                for field in ("value", "low", "high"):
                    value, wanted = getattr(found[name], field), getattr(number, field)
                    assert value == (None if wanted is None else pytest.approx(wanted, rel=2e-5, abs=1e-9)), (name, field)


def test_sums_are_equal_whatever_the_batch_size(store):
    dictionary, index = KINDS["pursuit that repeats"], store.mask(SITE).nonzero().squeeze(1)
    x, unit, centre = used(store)[:150], index[:150] // 40 % 7, store.statistics(SITE).mean
    reference = None
    for size in (len(x), 3, 64):
        parts = zip(x.split(size), unit.split(size), strict=True)
        found = token_sums(dictionary, (Batch(acts, acts, u) for acts, u in parts), n_units=int(unit.max()) + 1, centre=centre)
        reference = reference or found
        for name, tensor in reference.tensors().items():
            torch.testing.assert_close(getattr(found, name), tensor, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_codes_that_name_a_latent_twice_count_it_once(store, monkeypatch):
    dictionary, x, centre = KINDS["pursuit that repeats"], used(store)[:200], store.statistics(SITE).mean
    batch = Batch(x, x, torch.arange(200) % 3)
    expected = token_sums(dictionary, [batch], n_units=3, centre=centre)
    monkeypatch.setattr(MatchingPursuit, "encode", lambda self, acts: self.pursue(acts, 9).steps)
    assert dictionary.encode(x).counts.sum() > expected.scalars[:, -1].sum()
    found = token_sums(dictionary, [batch], n_units=3, centre=centre)
    torch.testing.assert_close(found.table(), expected.table(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.firings, expected.firings)


def test_sums_of_a_document_are_those_of_its_tokens_alone_and_a_centre_far_off_loses_nothing(store):
    dictionary, x, centre = KINDS["top_k"], used(store), store.statistics(SITE).mean
    unit = (torch.arange(len(x)) * 5 // len(x)).flip(0)
    whole = token_sums(dictionary, [Batch(x, x, unit)], n_units=5, centre=centre)
    for document in range(5):
        own = x[unit == document]
        alone = token_sums(dictionary, [Batch(own, own, torch.zeros(len(own), dtype=torch.long))], n_units=1, centre=centre)
        torch.testing.assert_close(whole.table()[document], alone.table()[0], rtol=1e-6, atol=1e-6)
    assert whole.scalars[:, SCALARS.index("tokens")].tolist() == torch.bincount(unit).tolist()
    shifted = x + 300
    far = token_sums(constant(torch.full((D,), 300.0)), [Batch(shifted, shifted, unit)], n_units=5, centre=torch.full((D,), 299.0))
    total = far.table().sum(0)
    n, s, q = total[0], total[len(SCALARS) : len(SCALARS) + D], total[len(SCALARS) + D : len(SCALARS) + 2 * D]
    torch.testing.assert_close(q - s.square() / n, x.double().var(0, correction=0) * len(x), rtol=1e-4, atol=0)


def test_principal_components_are_the_baseline_of_the_same_number_on_the_same_tokens(measured, store):
    x = used(store)
    found = values(measured(KINDS["top_k"]))
    assert found["FVU of PCA", "5 coefficients"] == pytest.approx(pca_fvu([x], [x], [5]).fvu[0], rel=1e-4)


def test_intervals_are_of_documents_and_agree_with_a_slow_bootstrap(measured, store):
    dictionary, x = KINDS["top_k"], used(store)
    number = measured(dictionary)["FVU"]
    assert number.low < number.value < number.high
    document = (store.mask(SITE).nonzero().squeeze(1) // 16).numpy()
    a, b = x.double().numpy(), dictionary(x).detach().double().numpy()
    rows = [np.flatnonzero(document == d) for d in range(60)]
    random, draws = np.random.default_rng(0), []
    for _ in range(1000):
        chosen = np.concatenate([rows[d] for d in random.integers(0, 60, 60)])
        draws.append(((a[chosen] - b[chosen]) ** 2).sum() / ((a[chosen] - a[chosen].mean(0)) ** 2).sum())
    low, high = np.quantile(draws, [0.0218, 0.9782])  # the levels for 60 documents
    assert number.low == pytest.approx(low, abs=0.35 * np.std(draws))
    assert number.high == pytest.approx(high, abs=0.35 * np.std(draws))


def test_few_documents_have_no_interval_and_the_note_says_why(measured, tmp_path):
    few = resid_store(tmp_path / "few", cloud(n_rows=18), rows_per_document=2)
    number = measured(KINDS["top_k"], store=few)["FVU"]
    assert (number.low, number.high) == (None, None)
    assert "9 documents are fewer than the 10" in number.note


def test_both_measures_share_one_pass_and_another_dictionary_or_sample_has_its_own(measured, monkeypatch):
    calls = []
    monkeypatch.setattr("sae.evaluation.suite.sample.token_sums", lambda *a, **o: calls.append(1) or token_sums(*a, **o))
    measured(KINDS["top_k"])
    measured(KINDS["top_k"], DENSITIES)
    measured(copy.deepcopy(KINDS["top_k"]), DENSITIES)
    assert len(calls) == 1
    measured(KINDS["jump_relu"], DENSITIES)
    measured(KINDS["top_k"], DENSITIES, FidelityConfig(n_tokens=300))
    measured(KINDS["top_k"], DENSITIES, seed=1)
    assert len(calls) == 4


def test_a_sample_is_of_whole_rows_and_says_how_many_documents_it_has(store, tmp_path):
    inputs = Inputs(ResultCache(tmp_path / "cache"), 0, dictionary=KINDS["top_k"], store=store, sites=(SITE,), site=SITE)
    found, chosen = sums(inputs, 100)
    assert chosen.n_documents == len((chosen.index // 16).unique()) == found.n_units
    assert 100 <= found.n_tokens == len(chosen.index) < 116
    assert f"{len(chosen.index)} tokens of {chosen.n_documents} documents" in chosen.note


def test_dimensions_that_do_not_vary_are_left_out_and_said(measured, tmp_path):
    acts = cloud()
    acts[..., 4] = 1.5
    numbers = measured(KINDS["top_k"], store=resid_store(tmp_path / "still", acts))
    assert "1 dimensions that do not vary are left out" in numbers["mean FVU of dimensions"].note
    assert numbers["mean FVU of dimensions"].value < 1e3


def planted_densities(path, shares):
    """A store whose coordinate i is positive on exactly a share of the 800 usable tokens, every document alike."""
    acts = -torch.ones(50, 17, len(shares))
    for i, share in enumerate(shares):
        acts[:, 1 : 1 + round(16 * share), i] = 1.0 + i
    return resid_store(path, acts)


def test_densities_are_the_planted_shares_with_the_rule_of_three_for_what_is_dead(measured, tmp_path):
    shares = (0.0, 0.0625, 0.125, 0.5, 1.0)
    store = planted_densities(tmp_path / "planted", shares)
    gate = Autoencoder(AutoencoderConfig(d_in=5, d_sae=5, activation=ReLU()))
    with torch.no_grad():
        gate.W_enc.copy_(torch.eye(5))
        gate.b_enc.zero_()
    numbers = measured(gate, DENSITIES, store=store)
    found = values(numbers)
    assert found["dead share"] == pytest.approx(0.2)
    assert found["bound on a dead latent"] == 3 / 800
    assert found["median density"] == 0.125  # of 0.0625, 0.125, 0.5, 1
    assert found["share above 10 %"] == pytest.approx(0.6)
    assert found["share always on"] == pytest.approx(0.2)
    expected = 2 * sum(r * f for r, f in enumerate(shares, start=1)) / (5 * sum(shares)) - 6 / 5
    assert found["Gini of densities"] == pytest.approx(expected)
    assert (numbers["share above 10 %"].low, numbers["share above 10 %"].high) == (pytest.approx(0.6), pytest.approx(0.6))


def test_a_dictionary_that_is_always_silent_has_no_median_density(measured):
    found = values(measured(constant(torch.zeros(D)), DENSITIES))
    assert found["dead share"] == 1
    assert found["median density"] is None
    assert found["share above 10 %"] == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    x, mixing = cloud(), torch.randn(12, 7, generator=torch.Generator().manual_seed(4))
    return array_store(tmp_path_factory.mktemp("pair") / "acts", blocks__1__hook_resid_post=x, blocks__1__hook_mlp_out=x.tanh() @ mixing)


def test_a_transcoder_is_held_against_the_site_that_it_explains(measured, pair):
    dictionary = random_dictionary(TopK(5), d_out=7, skip=True, apply_b_dec_to_input=False)
    dictionary.provenance["target_site"] = "blocks.1.hook_mlp_out"
    found = values(measured(dictionary, store=pair))
    both = (pair.mask(SITE) & pair.mask("blocks.1.hook_mlp_out")).nonzero().squeeze(1)
    x, y = (pair.gather(site, both, dtype=torch.float32) for site in (SITE, "blocks.1.hook_mlp_out"))
    assert found["FVU"] == pytest.approx(1 - r2_score(y, dictionary(x).detach(), multioutput="variance_weighted"), rel=1e-4)


def test_a_transcoder_without_a_target_in_the_store_is_refused_in_words(measured, pair, store):
    dictionary = random_dictionary(TopK(5), d_out=7, apply_b_dec_to_input=False)
    with pytest.raises(ConfigError, match="does not say which site it explains"):
        measured(dictionary, store=pair)
    dictionary.provenance["target_site"] = "blocks.1.hook_mlp_out"
    with pytest.raises(ConfigError, match="which the store does not hold"):
        measured(dictionary, store=store)
    dictionary.provenance["target_site"] = SITE
    with pytest.raises(ConfigError, match=r"explains activations of width 7, blocks.1.hook_resid_post has 12"):
        measured(dictionary, store=pair)


def test_no_rows_equal_rows_and_foreign_files_are_refused():
    x = torch.ones(20, D)
    with pytest.raises(ConfigError, match="at least one row"):
        token_sums(KINDS["top_k"], [], n_units=1, centre=torch.zeros(D))
    with pytest.raises(ConfigError, match="must vary"):
        token_sums(KINDS["top_k"], [Batch(x, x, torch.zeros(20, dtype=torch.long))], n_units=1, centre=torch.zeros(D))
    with pytest.raises(FormatError, match=r"sums\.safetensors must hold"):
        TokenSums.of_tensors({"scalars": x}, where="sums.safetensors")


def test_every_quantity_has_its_formula_printed_with_it():
    for measure in (RECONSTRUCTION, DENSITIES):
        for quantity in measure.quantities:
            assert quantity.formula, quantity.name
            assert "\n" not in quantity.formula, quantity.name
        assert dataclasses.replace(measure.config) == measure.config


def test_the_sample_of_a_transcoder_leaves_out_what_either_site_masks(pair, tmp_path, monkeypatch):
    dictionary = random_dictionary(TopK(5), d_out=7, apply_b_dec_to_input=False)
    dictionary.provenance["training"] = {"feed": {"target_site": "blocks.1.hook_mlp_out"}}
    masks = {site: pair.mask(site).clone() for site in pair.site_names}
    masks["blocks.1.hook_mlp_out"][::3] = False
    monkeypatch.setattr(type(pair), "mask", lambda self, site: masks[site])
    inputs = Inputs(ResultCache(tmp_path / "cache"), 0, dictionary=dictionary, store=pair, sites=(SITE,), site=SITE)
    chosen = sample(inputs, 10**6)
    assert torch.equal(chosen.index, (masks[SITE] & masks["blocks.1.hook_mlp_out"]).nonzero().squeeze(1))
