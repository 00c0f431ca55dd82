import lzma
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.init import initialise_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.evaluation import description_length as module
from sae.evaluation.code_length import (
    adaptive_bits,
    binary_entropy,
    count_symbols,
    entropy,
    hierarchical_bits,
    hierarchical_index_bits,
    index_bits,
    naive_bits,
    subset_bits,
    value_bits,
)
from sae.evaluation.description_length import baseline_lengths, choose, description_length, gaussian_bits, grid
from sae.evaluation.quantisation import ActiveValues, Quantiser, added_error, coarsest, fitted_quantiser
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective

THEORY = 32 * (scipy.stats.entropy([0.1, 0.9], base=2) + 0.1 * 3)


def eight_levels(n=200_000, n_latents=32, p=0.1, seed=0):
    """Dense symbols: every latent active with probability p, then uniform on 1..8."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 9, (n, n_latents)) * (rng.random((n, n_latents)) < p)


def counted(dense):
    dense = torch.as_tensor(dense)
    latents = torch.arange(dense.shape[1]).expand(dense.shape)
    return count_symbols(latents.reshape(-1), dense.reshape(-1), n_tokens=len(dense), d_sae=dense.shape[1])


def dense_codes(dense):
    """SparseCodes of a dense matrix."""
    order = (dense == 0).to(torch.int8).argsort(dim=1, stable=True)
    return SparseCodes(order * (dense.gather(1, order) != 0), dense.gather(1, order), (dense != 0).sum(1), dense.shape[1])


def random_autoencoder(d_in=12, d_sae=40, k=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scaling = Scaling(torch.randn(d_in, generator=generator), 0.7)
    dictionary = Autoencoder(AutoencoderConfig(d_in=d_in, d_sae=d_sae, activation=TopK(k=k)), scaling)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return dictionary


def fitted_autoencoder():
    """Random atoms, an encoder whose gain fits the activations, random biases: reconstructs badly, but better than the mean."""
    dictionary, generator = random_autoencoder(), torch.Generator().manual_seed(6)
    initialise_(dictionary, activations(), seed=6)
    with torch.no_grad():
        dictionary.b_enc.add_(0.1 * torch.randn(40, generator=generator))
        dictionary.b_dec.add_(0.1 * torch.randn(12, generator=generator))
        dictionary.W_dec.mul_(0.8 + 0.4 * torch.rand(40, 1, generator=generator))
    return dictionary


def pursuit(atoms, k, selection="positive", scaling=None, b_dec=None):
    d_sae, d_in = atoms.shape
    dictionary = MatchingPursuit(PursuitConfig(d_in=d_in, d_sae=d_sae, k=k, selection=selection), scaling or Scaling.identity(d_in))
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.nn.functional.normalize(atoms, dim=1))
        dictionary.b_dec.copy_(torch.zeros(d_in) if b_dec is None else b_dec)
    return dictionary


def random_pursuit(d_in=12, d_sae=40, k=6, selection="signed", seed=3):
    generator = torch.Generator().manual_seed(seed)
    atoms, b_dec = torch.randn(d_sae, d_in, generator=generator), torch.randn(d_in, generator=generator)
    return pursuit(atoms, k, selection, Scaling(torch.randn(d_in, generator=generator), 0.4), b_dec)


def activations(n=700, d=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + 3 * torch.randn(d, generator=generator)


def planted(n, n_features, d_in, k, seed=0, noise=0.05):
    """Exactly k of n_features non-negative unit directions per row, amplitudes in [1, 2], with a little noise; rows and directions."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator), dim=1)
    chosen = torch.rand(n, n_features, generator=generator).argsort(1)[:, :k]
    codes = torch.zeros(n, n_features).scatter(1, chosen, 1 + torch.rand(n, k, generator=generator))
    return codes @ features + noise * torch.randn(n, d_in, generator=generator), features


DICTIONARIES = {
    "autoencoder": fitted_autoencoder,
    "signed pursuit": random_pursuit,
    "positive pursuit": lambda: random_pursuit(selection="positive", k=9),
}


@pytest.fixture(params=DICTIONARIES)
def dictionary(request):
    return DICTIONARIES[request.param]()


# Entropies and codes


def test_independent_latents_with_eight_uniform_levels_cost_what_theory_says():
    counts = counted(eight_levels())
    assert pytest.approx(24.608, abs=5e-4) == THEORY
    assert float((index_bits(counts) + value_bits(counts)).sum()) == pytest.approx(THEORY, abs=0.1)
    assert float(index_bits(counts).sum()) == pytest.approx(32 * 0.468996, abs=0.05)
    assert float(value_bits(counts).sum()) == pytest.approx(9.6, abs=0.05)
    assert naive_bits(3.2, 32, 3) == pytest.approx(25.6)


def test_the_known_wrong_estimators_are_not_what_is_computed():
    dense = eight_levels()
    counts = counted(dense)
    ours = float((index_bits(counts) + value_bits(counts)).sum())
    n = len(dense)

    def faulty(bins, zeros):
        """sum_i H2(p_i) + p_i H(histogram), with bins over a fixed range, or with the zeros in the histogram."""
        total = 0.0
        for column in dense.T:
            p = (column != 0).mean()
            seen = column if zeros else column[column != 0]
            total += scipy.stats.entropy([p, 1 - p], base=2) + p * scipy.stats.entropy(np.histogram(seen, bins)[0], base=2)
        return total

    levels = np.arange(-0.5, 9)
    assert faulty(levels, zeros=False) == pytest.approx(ours, abs=0.02)
    assert faulty(levels, zeros=True) == pytest.approx(32 * (0.469 + 0.1 * 0.769), abs=0.1)
    assert faulty(np.linspace(0, 100, 9), zeros=False) < 15.1
    assert abs(ours - faulty(levels, zeros=True)) > 5
    assert abs(ours - 15.56) > 9
    # An inactive latent that is decoded as the middle of the first bin moves every token.
    quantiser = Quantiser.fitted(torch.full((32,), 8.0), torch.full((32,), 1.0))
    zeros = torch.zeros(n, dtype=torch.long)
    assert float(quantiser.values(zeros, quantiser.symbols(zeros, torch.zeros(n))).abs().max()) == 0


def test_every_latent_s_bits_equal_scipy_entropies_of_dense_columns():
    rng = np.random.default_rng(5)
    scale = rng.uniform(0.2, 4, 20)
    dense = np.rint(rng.normal(0, scale, (3000, 20)) * (rng.random((3000, 20)) < rng.uniform(0, 0.9, 20))).astype(int)
    dense[:, 3], dense[:, 4], dense[:, 5] = 0, 7, 7 * (dense[:, 5] != 0)
    counts = counted(dense)
    plain = (index_bits(counts, corrected=False) + value_bits(counts, corrected=False)).tolist()
    corrected = (index_bits(counts) + value_bits(counts)).tolist()
    for i, column in enumerate(dense.T):
        whole = np.unique(column, return_counts=True)[1]
        # Chain rule: activity and then value say as much as the whole symbol, zero included, says at once.
        assert plain[i] == pytest.approx(scipy.stats.entropy(whole, base=2), abs=1e-9)
        assert corrected[i] == pytest.approx(plain[i] + (len(whole) - 1) / (2 * len(column) * math.log(2)), abs=1e-9)
    assert plain[3] == plain[4] == corrected[3] == corrected[4] == 0
    assert float(value_bits(counts)[5]) == 0


def test_the_correction_removes_most_of_the_bias_of_few_draws():
    rng = np.random.default_rng(0)
    draws = [torch.from_numpy(np.bincount(rng.integers(0, 8, 40), minlength=8)) for _ in range(400)]
    plain = np.mean([entropy(c, corrected=False) for c in draws])
    corrected = np.mean([entropy(c) for c in draws])
    assert plain < 2.9
    assert corrected == pytest.approx(3, abs=0.02)


class RangeCoder:
    """An arithmetic coder with integer frequencies: arbitrary-precision low, so carries need no care; for tests of length and decoding."""

    def __init__(self):
        self.low, self.span, self.bits = 0, 1 << 64, 0

    def encode(self, start, size, total):
        step = self.span // total
        self.low, self.span = self.low + step * start, step * size
        while self.span < 1 << 48:
            self.low, self.span, self.bits = self.low << 16, self.span << 16, self.bits + 16

    def length(self):
        return self.bits + 64 - (self.span.bit_length() - 1) + 1


def coded_length(stream, frequencies):
    """Bits an arithmetic coder writes for a stream of symbols 0..len(frequencies)-1 of these frequencies."""
    coder, ends = RangeCoder(), np.concatenate([[0], np.cumsum(frequencies)]).tolist()
    sizes = [int(f) for f in frequencies]
    for symbol in stream.tolist():
        coder.encode(ends[symbol], sizes[symbol], ends[-1])
    return coder.length()


def adaptively_coded_length(stream, n_symbols):
    """The same, with frequencies learnt on the way: each symbol starts with half a count."""
    coder, twice = RangeCoder(), [1] * n_symbols
    for symbol in stream.tolist():
        coder.encode(sum(twice[:symbol]), twice[symbol], sum(twice))
        twice[symbol] += 2
    return coder.length()


def test_an_arithmetic_coder_writes_as_many_bits_as_the_description_length_says():
    dense = eight_levels(6000, 3, 0.2, seed=2)
    counts = counted(dense)
    fixed = (index_bits(counts, corrected=False) + value_bits(counts, corrected=False)).tolist()
    adaptive = adaptive_bits(counts, torch.full((3,), 8)).tolist()
    for i, column in enumerate(dense.T):
        active, levels = (column != 0).astype(int), column[column != 0] - 1
        written = coded_length(active, np.bincount(active)) + coded_length(levels, np.bincount(levels, minlength=8))
        assert fixed[i] * 6000 <= written <= fixed[i] * 6000 + 8
        learnt = adaptively_coded_length(active, 2) + adaptively_coded_length(levels, 8)
        assert adaptive[i] * 6000 <= learnt <= adaptive[i] * 6000 + 8
        assert adaptive[i] > fixed[i]


def test_a_general_compressor_does_not_beat_the_description_length():
    dense = eight_levels(60_000, 4, seed=4)
    counts = counted(dense)
    ours = float((index_bits(counts) + value_bits(counts)).sum())
    written = sum(8 * len(lzma.compress(column.astype(np.uint8).tobytes())) for column in dense.T) / len(dense)
    assert ours < written < 1.5 * ours


def test_a_random_sign_costs_one_bit_per_active_value():
    dense = eight_levels(100_000, 8)
    signs = np.random.default_rng(9).choice([-1, 1], dense.shape)
    plain, signed = counted(dense), counted(dense * signs)
    extra = value_bits(signed, corrected=False) - value_bits(plain, corrected=False)
    assert float(extra.sum()) == pytest.approx((dense != 0).sum(1).mean(), abs=0.01)
    assert torch.equal(index_bits(signed), index_bits(plain))


def test_counting_gives_back_every_pair_of_latent_and_signed_symbol():
    rng = np.random.default_rng(12)
    dense = rng.integers(-4, 5, (500, 7))
    counts = counted(dense)
    expected = {(i, s): int((dense[:, i] == s).sum()) for i in range(7) for s in range(-4, 5) if s}
    found = zip(zip(counts.latents.tolist(), counts.symbols.tolist(), strict=True), counts.counts.tolist(), strict=True)
    assert dict(found) == expected


def test_the_published_values_of_the_upper_bound():
    assert naive_bits(65, 25_000, 7) == pytest.approx(1404.6, abs=0.05)
    assert naive_bits(1, 2**13_986, 7) == pytest.approx(13_993)


def test_the_subset_code_pays_for_the_choice_and_for_a_size_that_varies():
    k = torch.tensor([3, 0, 10, 3, 7, 3, 1])
    sizes = np.unique(k.numpy(), return_counts=True)[1]
    expected = np.mean([math.log2(math.comb(10, int(i))) for i in k]) + scipy.stats.entropy(sizes, base=2)
    assert subset_bits(k, 10, corrected=False) == pytest.approx(expected, abs=1e-9)
    assert subset_bits(torch.full((50,), 4), 30) == pytest.approx(math.log2(math.comb(30, 4)))
    # One latent, on for every second token: a fixed mean size would price it at nothing.
    assert subset_bits(torch.tensor([0, 1] * 500), 1) == pytest.approx(1, abs=0.002)
    assert subset_bits(torch.full((9,), 40), 100_000) == pytest.approx(math.log2(math.comb(100_000, 40)), abs=1e-6)
    with pytest.raises(ConfigError, match=r"0\.\.d_sae=2"):
        subset_bits(torch.tensor([3]), 2)


def test_a_child_coded_given_its_parent_costs_less():
    parent, child = torch.tensor(0.2), torch.tensor(0.25)
    assert float(hierarchical_bits(parent, child)) == pytest.approx(0.8842, abs=5e-5)
    assert float(binary_entropy(parent) + binary_entropy(parent * child)) == pytest.approx(1.0083, abs=5e-5)
    independent = hierarchical_bits(parent, child, child)
    assert float(independent) == pytest.approx(float(binary_entropy(parent) + binary_entropy(child)), abs=1e-6)


def test_hierarchical_index_bits_equal_conditional_entropies_of_dense_columns():
    rng = np.random.default_rng(8)
    on = rng.random((4000, 6)) < [0.2, 0.25, 0.5, 0.3, 0.1, 1.0]
    on[:, 1] &= on[:, 0]
    on[:, 4] = on[:, 1] & (rng.random(4000) < 0.6) | (rng.random(4000) < 0.01)
    parents = torch.tensor([-1, 0, -1, -1, 1, 2])
    codes = dense_codes(torch.from_numpy(on * rng.normal(1, 0.1, on.shape)))
    found = hierarchical_index_bits(codes, parents, corrected=False).tolist()
    for i, parent in enumerate(parents.tolist()):
        above = np.zeros(4000, int) if parent < 0 else on[:, parent].astype(int)
        joint = np.unique(above * 2 + on[:, i], return_counts=True)[1]
        expected = scipy.stats.entropy(joint, base=2) - scipy.stats.entropy(np.bincount(above), base=2)
        assert found[i] == pytest.approx(expected, abs=1e-9)
    flat = index_bits(counted(on.astype(int)), corrected=False)
    assert float(hierarchical_index_bits(codes, torch.full((6,), -1), corrected=False).sub(flat).abs().max()) < 1e-9
    assert sum(found) < float(flat.sum()) - 0.2
    assert torch.allclose(hierarchical_index_bits(codes, torch.full((6,), -1)), index_bits(counted(on.astype(int))))


def test_parents_that_do_not_form_a_forest_are_refused():
    codes = dense_codes(torch.ones(4, 3))
    with pytest.raises(ConfigError, match="no cycle, got one through latent 1"):
        hierarchical_index_bits(codes, torch.tensor([-1, 2, 1]))
    with pytest.raises(ConfigError, match="parents must hold d_sae=3"):
        hierarchical_index_bits(codes, torch.tensor([-1, 3, 1]))


def test_symbols_that_no_code_can_have_are_refused():
    with pytest.raises(ConfigError, match="latents must be in"):
        count_symbols(torch.tensor([5]), torch.tensor([1]), n_tokens=3, d_sae=5)
    with pytest.raises(ConfigError, match="at most once per token"):
        count_symbols(torch.tensor([0, 0]), torch.tensor([1, 1]), n_tokens=1, d_sae=5)
    with pytest.raises(ConfigError, match=r"p must be in \[0, 1\]"):
        binary_entropy(torch.tensor([1.2]))


# Quantisation


def test_values_are_decoded_as_the_middle_of_their_bin_and_zero_stays_zero():
    quantiser = Quantiser.fitted(torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 0.3, 0.3]))
    assert quantiser.n_bins.tolist() == [4, 4, 0]
    latents = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0])
    values = torch.tensor([0.5, 1.0, 1.01, 4.0, -3.2, 1.0, 0.01, 0.0, 9.0])
    symbols = quantiser.symbols(latents, values)
    assert symbols.tolist() == [1, 1, 2, 4, -4, 4, 1, 0, 4]
    assert quantiser.values(latents, symbols).tolist() == [0.5, 0.5, 1.5, 3.5, -3.5, 0.875, 0.125, 0.0, 3.5]


def test_bins_span_the_largest_value_measured_and_no_value_moves_by_more_than_half_a_bin():
    codes = random_pursuit().encode(activations())
    active = ActiveValues.of(codes)
    dense = codes.dense().detach()
    assert torch.equal(active.largest(), dense.abs().amax(0))
    atoms = torch.randn(40, 12, generator=torch.Generator().manual_seed(2))
    quantiser = fitted_quantiser(active, atoms, 0.9)
    assert torch.allclose(quantiser.widths * quantiser.n_bins, active.largest().double())
    assert bool((quantiser.widths * atoms.norm(dim=1) <= 0.9 * (1 + 1e-6)).all())
    moved = quantiser.values(active.latents, quantiser.symbols(active.latents, active.values)) - active.values
    assert bool((moved.abs() <= quantiser.widths[active.latents] / 2 * (1 + 1e-6)).all())


def test_the_added_error_equals_decoding_the_quantised_codes():
    dictionary, acts = random_autoencoder(), activations(300)
    codes = dictionary.encode(acts).detach()
    atoms = dictionary.W_dec.detach() / dictionary.scaling.scale
    active, residual = ActiveValues.of(codes), (acts - dictionary.decode(codes)).detach().double()
    alignments = (residual @ atoms.double().T)[torch.arange(300).repeat_interleave(active.counts), active.latents]
    quantiser = fitted_quantiser(active, atoms, 3.0)
    dense = codes.dense().double()
    steps, bins = quantiser.widths, quantiser.n_bins
    quantised = (((dense / steps).ceil().minimum(bins) - 0.5) * steps) * (dense > 0)
    after = residual + (dense - quantised) @ atoms.double()
    expected = float(after.square().sum() - residual.square().sum())
    found = added_error(active, atoms, alignments.float(), quantiser)
    assert abs(expected) > 1e-4 * float(residual.square().sum())
    assert found == pytest.approx(expected, abs=1e-6 * float(residual.square().sum()))


def test_the_coarsest_width_is_found_to_one_per_cent_and_has_been_tried():
    tried = []

    def error(width):
        tried.append(width)
        return width**2

    width = coarsest(error, 0.5, 100.0)
    assert width in tried
    assert width <= math.sqrt(0.5) < width * 1.0101
    assert coarsest(error, 1e9, 100.0) == 100.0
    with pytest.raises(ConfigError, match="finest width"):
        coarsest(lambda width: 1.0, 0.5, 1.0)


# A dictionary's description length


def quantised_fvu(dictionary, acts, width):
    """Brute force, dense, float64: quantise every latent over its own range and decode."""
    dense = dictionary.encode(acts).dense().detach().double()
    scale = dictionary.scaling.scale
    norms = dictionary.W_dec.detach().double().norm(dim=1) / scale
    largest = dense.abs().amax(0)
    bins = (largest * norms / width * (1 - 1e-9)).ceil().clamp(min=1)
    step = torch.where(largest > 0, largest / bins, 1.0)
    quantised = dense.sign() * ((dense.abs() / step).ceil().minimum(bins) - 0.5) * step * (dense != 0)
    hat = (quantised @ dictionary.W_dec.detach().double() + dictionary.b_dec.detach().double()) / scale + dictionary.scaling.mean.double()
    return float((acts.double() - hat).square().sum() / (acts.double() - acts.double().mean(0)).square().sum()), quantised / step


@pytest.mark.parametrize(("tolerance", "as_target"), [(0.1, False), (0.01, False), (0.05, True)])
def test_the_quantised_error_is_within_the_tolerance_and_no_coarser_width_would_do(dictionary, tolerance, as_target):
    acts = activations()
    exact = float((acts - dictionary(acts)).detach().double().square().sum() / (acts.double() - acts.double().mean(0)).square().sum())
    allowed = exact * (1 + tolerance)
    length = description_length(dictionary, acts, **({"target_fvu": allowed} if as_target else {"tolerance": tolerance}))
    assert length.fvu == pytest.approx(exact, rel=1e-5)
    found, symbols = quantised_fvu(dictionary, acts, length.bin_width)
    assert found == pytest.approx(length.fvu_quantised, rel=1e-5)
    assert exact < found <= allowed * (1 + 1e-6)
    assert max(quantised_fvu(dictionary, acts, length.bin_width * factor)[0] for factor in np.linspace(1.001, 1.0101, 12)) > allowed
    assert all(quantised_fvu(dictionary, acts, length.bin_width * factor)[0] > allowed for factor in (1.3, 1.6, 2))
    columns = np.rint(symbols.numpy() * 2)
    counts = [np.unique(column, return_counts=True)[1] for column in columns.T]
    expected = sum(scipy.stats.entropy(c, base=2) + (len(c) - 1) / (2 * len(acts) * math.log(2)) for c in counts)
    assert length.bits == pytest.approx(expected, rel=1e-6)


def test_the_parts_add_up_and_the_other_codes_stand_in_their_order(dictionary):
    acts = activations()
    length = description_length(dictionary, acts, weight_bits=8)
    assert length.index_bits + length.value_bits == pytest.approx(length.bits)
    assert float(length.latent_bits.sum()) == pytest.approx(length.bits)
    some = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert float(length.latent_bits[some[:13]].sum() + length.latent_bits[some[13:]].sum()) == pytest.approx(length.bits)
    assert length.dictionary_bits == 40 * 12 * 8 / 700
    assert length.bits < length.adaptive_bits
    assert length.bits < length.naive_bits
    assert length.value_bits < length.subset_bits < length.bits + 2 * math.log2(41)
    assert length.l0 == pytest.approx(float((dictionary.encode(acts).dense() != 0).sum(1).double().mean()))
    assert length.n_alive == int((dictionary.encode(acts).dense() != 0).any(0).sum())
    assert (length.n_tokens, length.d_sae) == (700, 40)
    assert 0 < length.scarce_share <= 1


def test_batches_give_the_same_as_the_whole(dictionary, monkeypatch):
    monkeypatch.setattr(module, "BASELINE_ROWS", 100)
    acts = activations()
    whole = description_length(dictionary, acts)
    for sizes in ([1, 250, 449], [700], [64] * 10 + [60]):
        split = description_length(dictionary, iter(acts.split(sizes)))
        assert split.bits == pytest.approx(whole.bits, rel=1e-6)
        assert torch.allclose(split.latent_bits, whole.latent_bits)
        assert split.baselines.pca_bits == pytest.approx(whole.baselines.pca_bits, rel=1e-5)
        assert split.fvu_quantised == pytest.approx(whole.fvu_quantised, rel=1e-5)
    thinned = baseline_lengths(acts[::8], fvu=whole.fvu_quantised, n_tokens=700)
    assert whole.baselines.dense_bits == pytest.approx(thinned.dense_bits, rel=1e-5)


def test_renumbering_latents_or_rescaling_them_changes_nothing():
    dictionary, acts = random_autoencoder(), activations()
    length = description_length(dictionary, acts)
    generator = torch.Generator().manual_seed(11)
    order, factor = torch.randperm(40, generator=generator), 0.5 + torch.rand(40, generator=generator)
    other = random_autoencoder()
    with torch.no_grad():
        other.W_enc.copy_(dictionary.W_enc[:, order])
        other.b_enc.copy_(dictionary.b_enc[order])
        other.W_dec.copy_(dictionary.W_dec[order])
    permuted = description_length(other, acts)
    assert permuted.bits == pytest.approx(length.bits, rel=1e-6)
    assert torch.allclose(permuted.latent_bits, length.latent_bits[order])
    every = dictionary.with_activation(TopK(k=40))
    before = description_length(every, acts)
    with torch.no_grad():
        other = random_autoencoder(k=40)
        other.W_enc.copy_(dictionary.W_enc * factor)
        other.b_enc.copy_(dictionary.b_enc * factor)
        other.W_dec.copy_(dictionary.W_dec / factor[:, None])
    assert description_length(other, acts).bits == pytest.approx(before.bits, rel=1e-3)


def test_the_unit_of_the_activations_does_not_matter(dictionary):
    acts = activations()
    length = description_length(dictionary, acts)
    scaling = dictionary.scaling
    with torch.no_grad():
        factor = 256.0
        other = type(dictionary)(dictionary.config, Scaling(scaling.mean * factor, scaling.scale / factor))
        for mine, theirs in zip(other.parameters(), dictionary.parameters(), strict=True):
            mine.copy_(theirs)
    larger = description_length(other, acts * factor)
    assert larger.bits == pytest.approx(length.bits, rel=1e-6)
    assert larger.bin_width == pytest.approx(length.bin_width * factor, rel=1e-5)
    assert larger.baselines.dense_bits == pytest.approx(length.baselines.dense_bits, rel=1e-6)


def test_a_latent_that_a_pursuit_selects_twice_is_coded_once():
    acts = activations(400)
    dictionary = random_pursuit(k=30, selection="positive")
    steps = dictionary.pursue(acts).steps
    merged = steps.merged()
    assert int(steps.counts.sum()) > int(merged.counts.sum())
    twice, once = ActiveValues.of(steps), ActiveValues.of(merged)
    assert torch.equal(twice.latents, once.latents)
    assert torch.allclose(twice.values, once.values)
    assert description_length(dictionary, acts).l0 == pytest.approx(merged.mean_l0())


def test_a_dictionary_that_always_predicts_the_mean_costs_nothing():
    acts = activations()
    dictionary = random_autoencoder()
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6)
        dictionary.b_dec.copy_(dictionary.scaling.apply(acts.mean(0, keepdim=True))[0])
    length = description_length(dictionary, acts)
    assert length.bits == length.index_bits == length.value_bits == length.naive_bits == length.subset_bits == 0
    assert length.fvu == pytest.approx(1)
    assert length.n_alive == 0
    assert length.baselines.pca_bits == 0


def test_what_cannot_be_measured_is_an_error():
    dictionary, acts = random_autoencoder(), activations()
    with pytest.raises(ConfigError, match="at least one row"):
        description_length(dictionary, [])
    with pytest.raises(ConfigError, match="must vary"):
        description_length(dictionary, torch.ones(5, 12))
    with pytest.raises(ConfigError, match="tolerance must be at least"):
        description_length(dictionary, acts, tolerance=0.0)
    with pytest.raises(ConfigError, match="target_fvu must be above the dictionary's own"):
        description_length(dictionary, acts, target_fvu=1e-3)
    with pytest.raises(ConfigError, match="target_fvu must be positive"):
        description_length(dictionary, acts, target_fvu=-1.0)
    with pytest.raises(ConfigError, match="reconstructs exactly"):
        description_length(pursuit(torch.eye(12), 12, "signed"), acts)
    with pytest.raises(ConfigError, match="got an iterator"):
        choose([("a", dictionary)], iter([acts]), target_fvu=0.9)
    with pytest.raises(ConfigError, match="at least one, got none"):
        choose([], acts, target_fvu=0.9)


# Baselines


def test_rounded_principal_components_of_a_gaussian_cost_a_quarter_bit_each_above_its_rate_distortion_function():
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(5, 5, generator=generator)
    acts = torch.randn(60_000, 5, generator=generator) @ mix + 10
    found = baseline_lengths(acts, fvu=1e-4)
    assert found.pca_bits - found.gaussian_bits == pytest.approx(5 * 0.5 * math.log2(math.pi * math.e / 6), abs=0.05)
    variances = torch.linalg.eigvalsh(mix.T @ mix)
    exact = 0.5 * math.log2(float(variances.log().mean().exp() / (1e-4 * variances.sum() / 5))) * 5
    assert found.gaussian_bits == pytest.approx(exact, abs=0.05)
    assert found.dense_bits > found.pca_bits
    assert found.memorised_bits == pytest.approx(math.log2(60_000))
    assert baseline_lengths(acts, fvu=1e-4, weight_bits=8, n_tokens=1000).pca_basis_bits == 25 * 8 / 1000


def test_the_gaussian_bound_is_reverse_water_filling():
    assert gaussian_bits(torch.ones(16), 0.25) == pytest.approx(16)
    # Water level 1: components 4 and 2 stick out, 0.5 drowns; distortion 1 + 1 + 0.5 of 6.5.
    assert gaussian_bits(torch.tensor([4.0, 2.0, 0.5]), 2.5 / 6.5) == pytest.approx(1.5)
    assert gaussian_bits(torch.tensor([4.0, 2.0]), 1.0) == 0


# Choosing


def test_true_atoms_are_shorter_than_a_basis_and_than_sums_of_atoms_at_equal_distortion():
    acts, features = planted(4000, 24, 24, 3)
    pairs = torch.stack([a + b for i, a in enumerate(features) for b in features[i + 1 :]])
    dictionaries = {
        "true": pursuit(features, 3),
        "true, twice the selections": pursuit(features, 6),
        "with sums of pairs": pursuit(torch.cat([features, pairs]), 3),
        "basis": pursuit(torch.linalg.qr(features)[0], 24, "signed"),
        "half": pursuit(features[:12], 3),
    }
    choice = choose(dictionaries.items(), acts, target_fvu=0.2)
    found = {each.name: each for each in choice.candidates}
    assert list(found) == list(dictionaries)
    assert choice.shortest.name == choice.shortest_with_dictionary.name == "true"
    true = found["true"].length
    assert true.fvu_quantised <= 0.2
    assert found["true, twice the selections"].length.bits > true.bits + 2
    assert found["with sums of pairs"].length.bits > true.bits + 2
    assert found["basis"].length.bits > 1.5 * true.bits
    assert found["half"].length is None
    assert found["half"].fvu > 0.2
    assert true.bits < choice.baselines.pca_bits
    assert true.bits < choice.baselines.gaussian_bits


def test_the_shortest_depends_on_whether_the_dictionary_is_paid_for():
    acts, features = planted(500, 24, 24, 3)
    choice = choose([("one", pursuit(features, 3))], acts, target_fvu=0.2)
    only = choice.candidates[0]

    def priced(name, bits, dictionary_bits):
        return replace(only, name=name, length=replace(only.length, bits=bits, dictionary_bits=dictionary_bits))

    several = replace(choice, candidates=(priced("wide", 10.0, 5.0), priced("middle", 12.0, 1.0), priced("narrow", 14.0, 0.5)))
    assert several.shortest.name == "wide"
    assert several.shortest_with_dictionary.name == "middle"


def test_a_choice_without_any_dictionary_that_reaches_the_distortion_says_so():
    acts, features = planted(500, 24, 24, 3)
    choice = choose([("half", pursuit(features[:12], 3)), ("quarter", pursuit(features[:6], 3))], acts, target_fvu=0.05)
    assert choice.shortest is None
    assert choice.shortest_with_dictionary is None
    assert [each.length for each in choice.candidates] == [None, None]
    assert choice.baselines.pca_bits > 0


def trainer(acts, features, n_steps):
    scaling = Scaling.fitted(acts)

    def trained(d_sae, k):
        dictionary = Autoencoder(AutoencoderConfig(d_in=acts.shape[1], d_sae=d_sae, activation=TopK(k=k)), scaling)
        initialise_(dictionary, acts, seed=7)
        cosines = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1) @ features.T
        assert float(cosines.amax(0).mean()) < 0.75, "the start must not know the answer"
        generator = torch.Generator().manual_seed(5)
        batches = (acts[torch.randint(len(acts), (256,), generator=generator)] for _ in range(n_steps))
        for _ in train(dictionary, batches, ReconstructionObjective(), TrainConfig(n_steps=n_steps, learning_rate=5e-3)):
            pass
        return dictionary

    return trained


def test_the_planted_width_and_sparsity_are_chosen_among_trained_autoencoders():
    acts, features = planted(6000, 24, 24, 3, seed=1)
    trained = trainer(acts, features, 300)
    names = [(12, 3), (24, 3), (48, 3), (24, 6)]
    choice = choose(((name, trained(*name)) for name in names), acts, target_fvu=0.2)
    table = {each.name: each.length for each in choice.candidates}
    assert list(table) == names
    assert choice.shortest_with_dictionary.name == (24, 3)
    assert choice.shortest.name == (24, 3)
    assert table[12, 3] is None
    assert table[24, 6].bits > table[24, 3].bits + 4


@pytest.mark.slow
def test_the_planted_width_and_sparsity_are_chosen_on_a_whole_grid():
    acts, features = planted(6000, 24, 24, 3, seed=1)
    widths, ks = (12, 24, 48, 96), (1, 3, 6)
    choice = choose(grid(trainer(acts, features, 600), widths, ks), acts, target_fvu=0.2)
    table = {each.name: each.length for each in choice.candidates}
    assert len(table) == 12
    assert choice.shortest.name == choice.shortest_with_dictionary.name == (24, 3)
    for width in (48, 96):
        reached = [table[width, k].bits for k in ks if table[width, k]]
        assert len(reached) >= 2
        assert all(a < b for a, b in pairwise(reached))
    assert table[12, 1] is None
    assert table[12, 3] is None


def test_the_grid_trains_only_what_can_exist_and_only_when_asked():
    asked = []
    cells = grid(lambda d_sae, k: asked.append((d_sae, k)) or random_autoencoder(d_sae=d_sae, k=k), (4, 8), (2, 6))
    assert asked == []
    assert [name for name, _ in cells] == [(4, 2), (8, 2), (8, 6)]
    assert asked == [(4, 2), (8, 2), (8, 6)]
