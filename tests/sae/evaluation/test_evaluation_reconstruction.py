import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.evaluation.reconstruction import error_versus_k, pca_fvu, reconstruction


def random_autoencoder(d_in=12, d_sae=40, k=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scaling = Scaling(torch.randn(d_in, generator=generator), 0.7)
    dictionary = Autoencoder(AutoencoderConfig(d_in=d_in, d_sae=d_sae, activation=TopK(k=k)), scaling)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return dictionary


def identity_pursuit(d_in, k):
    dictionary = MatchingPursuit(PursuitConfig(d_in=d_in, d_sae=d_in, k=k, selection="signed"), Scaling.identity(d_in))
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.eye(d_in))
        dictionary.b_dec.zero_()
    return dictionary


def activations(n=300, d=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + 3 * torch.randn(d, generator=generator)


def test_scores_equal_a_slow_float64_computation_from_the_definitions():
    dictionary, x = random_autoencoder(), activations()
    measured = reconstruction(dictionary, [x[:100], x[100:101], x[101:]])
    dense = dictionary.encode(x).dense().detach().double().numpy()
    a, b = x.double().numpy(), dictionary(x).detach().double().numpy()
    fvu = ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    scores = measured.scores
    assert scores.fvu == pytest.approx(fvu, rel=1e-5)
    assert scores.explained_variance == pytest.approx(1 - fvu, abs=1e-6)
    assert scores.cosine == pytest.approx(((a * b).sum(1) / (norms[0] * norms[1])).mean(), rel=1e-5)
    assert scores.norm_ratio == pytest.approx((norms[1] / norms[0]).mean(), rel=1e-5)
    assert scores.reconstruction_bias == pytest.approx((b**2).sum() / (a * b).sum(), rel=1e-5)
    assert scores.l0 == pytest.approx((dense != 0).sum(1).mean())
    assert scores.dead_share == pytest.approx((dense == 0).all(0).mean())
    assert measured.firing_counts.tolist() == (dense != 0).sum(0).tolist()
    assert scores.n_tokens == 300


def test_a_complete_orthonormal_dictionary_explains_everything_and_half_of_it_explains_its_share():
    x = activations(400, 8)
    assert reconstruction(identity_pursuit(8, 8), [x]).scores.fvu == pytest.approx(0, abs=1e-10)
    half = reconstruction(identity_pursuit(8, 4), [x]).scores
    kept = x.double().square().sort(1).values[:, :4].sum() / (x.double() - x.double().mean(0)).square().sum()
    assert half.fvu == pytest.approx(float(kept), rel=1e-5)
    assert half.l0 == 4


def test_predicting_the_mean_has_fvu_one():
    dictionary, x = random_autoencoder(), activations()
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6)
        dictionary.b_dec.copy_(dictionary.scaling.apply(x.mean(0, keepdim=True))[0])
    scores = reconstruction(dictionary, [x]).scores
    assert scores.fvu == pytest.approx(1, abs=1e-6)
    assert scores.l0 == 0
    assert scores.dead_share == 1


def test_measuring_leaves_the_dictionary_in_the_mode_it_was_in():
    dictionary = random_autoencoder().train()
    reconstruction(dictionary, [activations()])
    assert dictionary.training


def test_no_tokens_and_constant_activations_are_errors():
    with pytest.raises(ConfigError, match="at least one row"):
        reconstruction(random_autoencoder(), [])
    with pytest.raises(ConfigError, match="must vary"):
        reconstruction(random_autoencoder(), [torch.ones(5, 12)])


@pytest.mark.parametrize("pursuit", [False, True])
def test_cutting_one_encode_gives_the_curve_of_encoding_anew_with_each_k(pursuit):
    x = activations(200, 12, seed=4)
    dictionary = random_autoencoder(k=3)
    if pursuit:
        generator = torch.Generator().manual_seed(9)
        dictionary = MatchingPursuit(PursuitConfig(d_in=12, d_sae=40, k=3), Scaling(x.mean(0), 0.5))
        with torch.no_grad():
            dictionary.W_dec.copy_(torch.nn.functional.normalize(torch.randn(40, 12, generator=generator), dim=1))
            dictionary.b_dec.copy_(torch.randn(12, generator=generator) * 0.1)
    curve = error_versus_k(dictionary, [x[:50], x[50:]], [6, 1, 3])
    assert curve.k == (1, 3, 6)
    variance = (x.double() - x.double().mean(0)).square().sum()
    for k, fvu in zip(curve.k, curve.fvu, strict=True):
        codes = dictionary.encode(x, k=k) if pursuit else dictionary.with_activation(TopK(k=k)).encode(x)
        anew = dictionary.decode(codes).detach()
        assert fvu == pytest.approx(float((x - anew).double().square().sum() / variance), rel=1e-4)


def test_the_pca_baseline_equals_scikit_learn():
    x, y = activations(300, 12, 1), activations(200, 12, 1) + 0.1
    curve = pca_fvu([x[:100], x[100:]], [y], [1, 4, 12])
    for k, fvu in zip(curve.k, curve.fvu, strict=True):
        pca = PCA(n_components=k, svd_solver="full").fit(x.double().numpy())
        back = pca.inverse_transform(pca.transform(y.double().numpy()))
        expected = ((y.double().numpy() - back) ** 2).sum() / ((y - y.mean(0)).double().square().sum())
        assert fvu == pytest.approx(float(expected), rel=1e-5, abs=1e-9)


def test_a_k_below_one_is_refused():
    with pytest.raises(ConfigError, match="positive integers"):
        error_versus_k(random_autoencoder(), [activations()], [0, 3])
