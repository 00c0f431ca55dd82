"""Description length as a measure: what its numbers are, which tokens it is of, and dictionaries whose rows are normalised."""

import copy

import pytest
import torch
from array_store import SITE, cloud, constant, perfect, random_dictionary, resid_store, used

from sae.dictionaries.activations import ReLU, TopK
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs
from sae.evaluation.description_length import description_length
from sae.evaluation.quantisation import ActiveValues
from sae.evaluation.suite.lengths import DESCRIPTION, DescriptionConfig
from sae.storage import ResultCache

D = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return resid_store(tmp_path_factory.mktemp("lengths") / "acts", cloud())


@pytest.fixture
def measured(store, tmp_path):
    def run(dictionary, config=None):
        inputs = Inputs(ResultCache(tmp_path / "cache"), 0, dictionary=dictionary, store=store, sites=(SITE,), site=SITE)
        numbers = DESCRIPTION.compute(inputs, config or DescriptionConfig(n_tokens=10**6)).numbers
        for number in numbers:
            assert DESCRIPTION.quantity(number.quantity).formula
        return {(n.quantity, n.subject) if n.subject else n.quantity: n for n in numbers}

    return run


def test_numbers_are_those_of_the_description_length_of_the_same_tokens(measured, store):
    dictionary = pursuit_of("none")
    found, expected = measured(dictionary), description_length(dictionary, used(store))
    assert expected.fvu < 0.7
    assert found["description length"].value == pytest.approx(expected.bits, rel=1e-6)
    assert found["index bits"].value + found["value bits"].value == pytest.approx(expected.bits, rel=1e-6)
    assert found["distortion"].value == pytest.approx(expected.fvu_quantised, rel=1e-6)
    assert expected.fvu < expected.fvu_quantised <= 1.1 * expected.fvu
    assert found["dictionary bits"].value == pytest.approx(20 * D * 16 / len(used(store)))
    for subject, field in (("dense", "dense_bits"), ("PCA", "pca_bits"), ("Gaussian bound", "gaussian_bits")):
        assert found["bits of another code", subject].value == pytest.approx(getattr(expected.baselines, field), rel=1e-6)
    assert found["bits of another code", "Gaussian bound"].value < found["bits of another code", "PCA"].value


def test_it_is_of_a_sample_of_whole_rows_and_says_so(measured):
    number = measured(random_dictionary(TopK(5)), DescriptionConfig(n_tokens=150))["description length"]
    n = int(number.note.split(" tokens")[0])
    assert 150 <= n < 166
    assert "of 10 documents" in number.note or "of 11 documents" in number.note


def test_latents_in_another_order_or_times_c_with_atoms_over_c_cost_the_same(measured):
    plain = random_dictionary(ReLU())
    factors = 0.3 + 2 * torch.rand(30, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    changed = copy.deepcopy(plain)
    with torch.no_grad():
        changed.W_enc.copy_((plain.W_enc * factors)[:, order])
        changed.b_enc.copy_((plain.b_enc * factors)[order])
        changed.W_dec.copy_((plain.W_dec / factors[:, None])[order])
    expected, found = measured(plain), measured(changed)
    for name, number in expected.items():
        assert found[name].value == pytest.approx(number.value, rel=2e-3), name


def test_the_mean_alone_costs_nothing_and_an_exact_dictionary_has_no_tolerance(measured, store):
    found = measured(constant(used(store).mean(0)))
    assert found["description length"].value == 0
    assert found["bits of rare latents"].value == 0
    assert found["distortion"].value == pytest.approx(1, abs=1e-6)
    with pytest.raises(ConfigError, match="reconstructs exactly"):
        measured(perfect(D))


def test_a_transcoder_is_refused_in_words(store, tmp_path):
    dictionary = random_dictionary(TopK(5), d_out=D, apply_b_dec_to_input=False)
    with pytest.raises(ConfigError, match="got a transcoder"):
        description_length(dictionary, used(store))
    dictionary.provenance["target_site"] = "blocks.1.hook_mlp_out"
    inputs = Inputs(ResultCache(tmp_path / "cache"), 0, dictionary=dictionary, store=store, sites=(SITE,), site=SITE)
    with pytest.raises(ConfigError, match="transcoder"):
        DESCRIPTION.compute(inputs, DescriptionConfig())


def pursuit_of(normalisation):
    dictionary = MatchingPursuit(PursuitConfig(d_in=D, d_sae=20, k=4, normalisation=normalisation))
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.randn(20, D, generator=torch.Generator().manual_seed(1)))
        dictionary.b_dec.copy_(0.3 * torch.randn(D, generator=torch.Generator().manual_seed(2)))
    dictionary.normalise_()
    return dictionary.eval()


@pytest.mark.parametrize(("normalisation", "n_numbers"), [("none", 0), ("constant_norm", 1), ("layer_norm", 2)])
@pytest.mark.parametrize("kind", ["autoencoder", "pursuit"])
def test_rows_that_were_normalised_pay_for_it_and_the_stated_error_is_the_decoded_one(store, normalisation, n_numbers, kind):
    dictionary = pursuit_of(normalisation) if kind == "pursuit" else random_dictionary(TopK(5), normalisation=normalisation)
    x = used(store)
    found = description_length(dictionary, x, tolerance=0.5, weight_bits=16)
    assert found.row_bits == 16 * n_numbers
    assert found.bits == pytest.approx(float(found.latent_bits.sum()) + found.row_bits)
    assert found.fvu < found.fvu_quantised <= 1.5 * found.fvu * (1 + 1e-6)
    # The quantised codes, decoded by the dictionary itself: values are rounded in units of the activations, |atom| = width / bin of a latent.
    codes = dictionary.encode(x).merged()
    scale = torch.ones(len(x)) if codes.rows is None else codes.rows.scale
    atoms = dictionary.W_dec.detach() / dictionary.scaling.scale
    active, z = codes.active() & (codes.values != 0), codes.values.detach() * scale[:, None]
    largest = ActiveValues(codes.indices[active], z[active], active.sum(1), codes.d_sae).largest().double()
    bins = (largest * atoms.norm(dim=1).double() / found.bin_width * (1 - 1e-9)).ceil()
    widths = (largest / bins.clamp(min=1)).float()[codes.indices.long()]
    rounded = torch.where(active, z.sign() * ((z.abs() / widths).ceil().clamp(min=1) - 0.5) * widths, torch.zeros(()))
    exact = dictionary.decode(codes).detach().double()
    quantised = (
        exact + torch.einsum("nk,nkd->nd", (rounded - torch.where(active, z, torch.zeros(()))), atoms[codes.indices.long()]).double()
    )
    variance = (x - x.mean(0)).double().square().sum()
    assert found.fvu == pytest.approx(float((x.double() - exact).square().sum() / variance), rel=1e-5)
    assert found.fvu_quantised == pytest.approx(float((x.double() - quantised).square().sum() / variance), rel=1e-3)
