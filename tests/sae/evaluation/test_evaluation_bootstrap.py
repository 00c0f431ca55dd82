import math

import numpy as np
import pytest
import torch

from sae.errors import ConfigError
from sae.evaluation.bootstrap import DocumentSums, Interval, interval, of_draws, resampled, resampling_units, why_none


def ratio(total):
    return total[:, 0] / total[:, 1]


def documents(n, seed, *, spread=0.6):
    """Sums of losses and numbers of tokens of n documents of very different length; the ratio of expectations is 2."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (20 + 200 * torch.rand(n, generator=generator).double() ** 2).round()
    level = 2 + spread * torch.randn(n, generator=generator).double()  # a document's own mean
    return torch.stack([lengths * level + lengths.sqrt() * torch.randn(n, generator=generator).double(), lengths], dim=1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    for n, trials in ((12, 400), (80, 400)):
        hits = 0
        for trial in range(trials):
            found = interval(documents(n, 1000 * n + trial), ratio, n_draws=400, seed=trial)
            hits += found.low <= 2 <= found.high
        # 95 % within three binomial standard deviations (1.1 points), and one more point for what small samples lack.
        assert 0.91 <= hits / trials <= 0.985, (n, hits / trials)


def test_an_interval_agrees_with_a_slow_explicit_resampling_of_documents():
    sums = documents(40, 7)
    found = interval(sums, ratio, n_draws=20_000, seed=0)
    random, values = np.random.default_rng(5), []
    for _ in range(20_000):
        chosen = sums[random.integers(0, 40, 40)].sum(0)
        values.append(float(chosen[0] / chosen[1]))
    # expanded levels for n = 40: Phi(-t_{0.975, 39} sqrt(40 / 39)) = Phi(-2.0485) = 0.02025
    low, high = np.quantile(values, [0.02025, 1 - 0.02025])
    sd = np.std(values)
    assert found.low == pytest.approx(low, abs=0.08 * sd)
    assert found.high == pytest.approx(high, abs=0.08 * sd)


def test_the_spread_of_resamples_is_the_closed_form_variance_of_a_ratio():
    sums = documents(300, 3, spread=0.2)
    draws = ratio(resampled(sums, n_draws=20_000, seed=1))
    total = sums.sum(0)
    theta = total[0] / total[1]
    # linearised: var = sum_d (y_d - theta n_d)^2 / (sum_d n_d)^2
    expected = (sums[:, 0] - theta * sums[:, 1]).square().sum().sqrt() / total[1]
    assert float(draws.std()) == pytest.approx(float(expected), rel=0.03)
    found = of_draws(draws, 300)
    assert found.high - found.low == pytest.approx(2 * 1.9679 * math.sqrt(300 / 299) * float(expected), rel=0.05)


def test_weights_are_multinomial_they_sum_to_the_number_of_documents_and_chunks_do_not_matter(monkeypatch):
    n = 25
    weights = resampled(torch.eye(n), n_draws=4000, seed=2)
    assert torch.equal(weights.sum(1), torch.full((4000,), float(n), dtype=torch.float64))
    assert float(weights.var(0).mean()) == pytest.approx(1 - 1 / n, abs=0.03)
    covariance = torch.cov(weights.T)
    off = (covariance.sum() - covariance.trace()) / (n * (n - 1))
    assert float(off) == pytest.approx(-1 / n, abs=0.004)
    monkeypatch.setattr("sae.evaluation.bootstrap.WEIGHTS_PER_CHUNK", 137 * n)
    assert torch.equal(resampled(torch.eye(n), n_draws=4000, seed=2), weights)


def test_the_same_seed_and_number_of_documents_resample_alike_and_another_seed_does_not():
    a, b = documents(30, 1), documents(30, 2)
    together = resampled(torch.cat([a, b], dim=1), n_draws=200, seed=4)
    torch.testing.assert_close(resampled(a, n_draws=200, seed=4), together[:, :2])
    assert not torch.equal(resampled(a, n_draws=200, seed=5), together[:, :2])


def test_tokens_of_a_document_resampled_one_by_one_would_give_a_far_too_narrow_interval():
    generator = torch.Generator().manual_seed(11)
    level = torch.randn(50, generator=generator).double()
    tokens = level.repeat_interleave(100) + 0.1 * torch.randn(5000, generator=generator).double()
    unit = torch.arange(50).repeat_interleave(100)
    sums = DocumentSums(50, 2)
    for rows in torch.arange(5000).split(333):
        sums.add_(unit[rows], torch.stack([tokens[rows], torch.ones(len(rows), dtype=torch.float64)], dim=1))
    assert float(sums.total()[0]) == pytest.approx(float(tokens.sum()))
    by_document = interval(sums.sums, ratio, seed=0)
    by_token = interval(torch.stack([tokens, torch.ones(5000, dtype=torch.float64)], dim=1), ratio, seed=0)
    assert (by_document.high - by_document.low) / (by_token.high - by_token.low) == pytest.approx(10, rel=0.2)


def test_more_documents_than_units_are_dealt_out_whole_and_give_the_same_interval():
    sums = documents(3000, 9)
    ids = torch.arange(3000).repeat_interleave(2) * 7 - 4000  # numbers with gaps, and two tokens each
    unit = resampling_units(ids, most=500)
    assert torch.equal(unit[::2], unit[1::2])
    assert torch.equal(unit[::2], torch.arange(3000) % 500)
    grouped = DocumentSums(500, 2)
    grouped.add_(unit[::2], sums)
    coarse, fine = interval(grouped.sums, ratio, n_draws=4000, seed=0), interval(sums, ratio, n_draws=4000, seed=0)
    assert coarse.high - coarse.low == pytest.approx(fine.high - fine.low, rel=0.12)
    assert torch.equal(resampling_units(torch.tensor([5, 5, 2, 9])), torch.tensor([1, 1, 0, 2]))


def test_too_few_documents_and_undefined_draws_have_no_interval_and_words_for_it():
    assert interval(documents(9, 0), ratio, seed=0) is None
    assert "9 documents" in why_none(9)
    assert why_none(10) == ""
    assert isinstance(interval(documents(10, 0), ratio, seed=0), Interval)
    rare = torch.cat([torch.ones(20, 1), torch.eye(20)[:, :1]], dim=1)  # the only document with a denominator is often not drawn
    assert interval(rare, ratio, seed=0) is None


def test_bad_sums_draws_and_statistics_are_refused_by_name():
    with pytest.raises(ConfigError, match="sums must be finite, got NaN or Inf in 1 of 20 documents"):
        interval(torch.ones(20, 2).index_fill(0, torch.tensor([3]), float("nan")), ratio, seed=0)
    with pytest.raises(ConfigError, match="at least 100 draws, got 20 and n_draws=99"):
        interval(torch.ones(20, 2), ratio, n_draws=99, seed=0)
    with pytest.raises(ConfigError, match="one number per draw"):
        interval(torch.ones(20, 2), lambda total: total, seed=0)
    with pytest.raises(ConfigError, match="there must be documents"):
        resampled(torch.ones(0, 2), seed=0)
    with pytest.raises(ConfigError, match="most must be at least 10, got 3"):
        resampling_units(torch.arange(4), most=3)
