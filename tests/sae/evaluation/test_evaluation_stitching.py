"""Stitching dictionaries: what lies between two of them, the way from one to the other, and what the large one's latents add."""

import pytest
import torch

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.evaluation.reconstruction import reconstruction
from sae.evaluation.stitching import compare_insertions, latents_of, stitched, stitching

D = 12
NONE = torch.zeros(0, dtype=torch.long)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def autoencoder(d_sae, activation, seed, d=D):
    """All parameters random, and a scaling of its own."""
    generator = seeded(seed)
    made = Autoencoder(
        AutoencoderConfig(d_in=d, d_sae=d_sae, activation=activation), Scaling(torch.randn(d, generator=generator), 0.5 + seed), seed=seed
    )
    with torch.no_grad():
        made.W_enc.copy_(made.W_dec.T + 0.1 * torch.randn(d, d_sae, generator=generator))
        made.b_enc.copy_(0.3 * torch.randn(d_sae, generator=generator))
        made.b_dec.copy_(torch.randn(d, generator=generator))
        if isinstance(activation, BatchTopK):
            made.threshold.fill_(0.4)
        if isinstance(activation, JumpReLU):
            made.log_threshold.copy_(torch.randn(d_sae, generator=generator) - 1)
    return made.eval()


def pursuit(d_sae, seed, k=3):
    generator = seeded(seed)
    made = MatchingPursuit(PursuitConfig(d_in=D, d_sae=d_sae, k=k), Scaling(torch.randn(D, generator=generator), 0.5 + seed), seed=seed)
    with torch.no_grad():
        made.b_dec.copy_(torch.randn(D, generator=generator))
    return made.eval()


def activations(n=200, seed=9):
    return 2 * torch.randn(n, D, generator=seeded(seed)) + 1


PAIRS = {
    "ReLU": (autoencoder(15, ReLU(), 0), autoencoder(26, ReLU(), 1)),
    "JumpReLU": (autoencoder(15, JumpReLU(), 0), autoencoder(26, JumpReLU(), 1)),
    "BatchTopK and ReLU": (autoencoder(15, BatchTopK(k=4.0), 0), autoencoder(26, ReLU(), 1)),
    "TopK": (autoencoder(15, TopK(k=3), 0), autoencoder(26, TopK(k=5), 1)),
    "AbsTopK": (autoencoder(15, AbsTopK(k=3), 0), autoencoder(26, AbsTopK(k=5), 1)),
    "pursuit": (pursuit(15, 0, 3), pursuit(26, 1, 6)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_ends_of_the_way_are_the_two_dictionaries(name):
    small, large = PAIRS[name]
    x = activations()
    for kept, added, share, end in ((torch.arange(15), NONE, 0.0, small), (NONE, torch.arange(26), 1.0, large)):
        between = stitched(small, large, kept, added, share=share)
        torch.testing.assert_close(between(x), end(x), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(between.encode(x).dense(), end.encode(x).dense() / end.scaling.scale, atol=2e-5, rtol=1e-5)
        assert between.scaling.is_identity
    way = stitching(small, large, [x[:90], x[90:]], tau=0.55, n_points=4)
    ends = [reconstruction(each, [x]).scores for each in (small, large)]
    assert way.fvu[[0, -1]].tolist() == pytest.approx([each.fvu for each in ends], rel=1e-4)
    assert way.curve.l0[[0, -1]].tolist() == pytest.approx([each.l0 for each in ends], rel=1e-3)
    assert way.curve.n_latents[[0, -1]].tolist() == [15, 26]
    assert len(way.plan) == way.n_novel + way.n_swaps + way.n_lost
    assert min(way.n_novel, way.n_swaps, way.n_lost) > 0


@pytest.mark.parametrize("name", ["ReLU", "JumpReLU", "BatchTopK and ReLU"])
def test_an_elementwise_way_equals_dictionaries_built_and_encoded_anew(name):
    small, large = PAIRS[name]
    x = activations(80)
    way = stitching(small, large, [x], tau=0.55, order="swaps first")
    kept, added = list(range(15)), []
    for point, step in enumerate(way.plan[:-1], start=1):
        kept = [i for i in kept if i not in step.out.tolist()]
        added += step.into.tolist()
        if point % 6 == 1:
            between = stitched(
                small, large, torch.tensor(kept, dtype=torch.long), torch.tensor(added, dtype=torch.long), share=point / len(way.plan)
            )
            scores = reconstruction(between, [x]).scores
            assert way.fvu[point].item() == pytest.approx(scores.fvu, rel=1e-4)
            assert way.curve.l0[point].item() == pytest.approx(scores.l0, rel=1e-3)


def test_latents_of_an_elementwise_dictionary_have_its_codes_and_residual():
    for name in ("ReLU", "JumpReLU"):
        dictionary, x = PAIRS[name][1], activations(50)
        made = latents_of(dictionary)
        torch.testing.assert_close(made.codes(x), (dictionary.encode(x).dense() / dictionary.scaling.scale).double(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(made.residual(x), (x - dictionary(x)).double(), atol=2e-5, rtol=1e-4)


def test_k_of_a_dictionary_between_moves_from_one_to_the_other():
    small, large = PAIRS["TopK"]
    ks = [stitched(small, large, torch.arange(15), torch.arange(26), share=share).k for share in (0.0, 0.5, 1.0)]
    assert ks == [3, 4, 5]
    few = stitched(*PAIRS["pursuit"], torch.arange(2), NONE, share=1.0)
    assert few.k == 2  # no more than there are atoms


def planted(seed=3):
    """Ten orthogonal truths; the small dictionary has six, the large one all ten."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=seeded(seed))).Q[:10]
    made = []
    for atoms, order in ((basis[:6], torch.arange(6)), (basis, torch.randperm(10, generator=seeded(1)))):
        dictionary = autoencoder(len(atoms), ReLU(), 0)
        state = {"W_enc": atoms[order].T, "b_enc": torch.zeros(len(atoms)), "W_dec": atoms[order], "b_dec": torch.zeros(D)}
        dictionary.load_state_dict({**dictionary.state_dict(), **state, "scaling_mean": torch.zeros(D)})
        made.append(dictionary)
    codes = torch.rand(400, 10, generator=seeded(2)) * (torch.rand(400, 10, generator=seeded(4)) < 0.4)
    return *made, codes @ basis


def test_novel_latents_help_and_reconstruction_latents_hurt_more_than_random_ones():
    small, large, x = planted()
    found = compare_insertions(small, large, [x], n_null=19, generator=seeded())
    assert (found.n_novel, found.n_reconstruction) == (4, 6)
    assert found.novel.value == pytest.approx(-found.fvu, abs=1e-5)  # all that was missing
    assert found.novel.value < found.novel.null_mean
    assert found.novel.p_less == pytest.approx(1 / 20, abs=0.051)
    assert found.reconstruction.value > 0.1
    assert found.reconstruction.value > found.reconstruction.null_mean
    way = stitching(small, large, [x])
    assert (way.n_novel, way.n_swaps, way.n_lost) == (4, 6, 0)
    assert way.fvu[-1] < 1e-9
    assert (way.fvu[:5].diff() < 0).all()


@pytest.mark.parametrize("name", ["TopK", "ReLU"])
def test_insertions_leave_k_and_offset_of_the_small_dictionary_as_they_are(name):
    small, large = PAIRS[name]
    x = activations(60)
    found = compare_insertions(small, large, [x], tau=0.55, n_null=2, generator=seeded())
    assert found.fvu == pytest.approx(reconstruction(small, [x]).scores.fvu, rel=1e-4)


def test_what_cannot_be_stitched_is_refused():
    relu, topk, mp = PAIRS["ReLU"][0], PAIRS["TopK"][0], PAIRS["pursuit"][0]
    x = [activations(20)]
    gated = autoencoder(9, Gated(), 0)
    signed = MatchingPursuit(PursuitConfig(d_in=D, d_sae=15, k=3, selection="signed"))
    transcoder = Autoencoder(AutoencoderConfig(d_in=D, d_sae=9, activation=ReLU(), d_out=5))
    cases = [
        (lambda: stitching(relu, gated, x), "other than Gated"),
        (lambda: stitching(relu, transcoder, x), "autoencoder of its own input"),
        (lambda: stitching(relu, topk, x), "in the same way"),
        (lambda: stitching(mp, signed, x), "in the same way"),
        (lambda: stitching(relu, autoencoder(9, ReLU(), 0, d=5), x), "of width 12 and ReLU of width 5"),
        (lambda: stitching(topk, topk, x, n_points=1), "n_points must be at least 2"),
        (lambda: stitching(topk, topk, []), "at least one row"),
        (lambda: stitching(topk, topk, [torch.ones(4, D)]), "must vary"),
        (lambda: stitched(relu, relu, NONE, NONE, share=0.0), "some latent be chosen"),
        (lambda: stitched(relu, relu, torch.arange(3), NONE, share=1.5), r"share must be in \[0, 1\]"),
        (lambda: latents_of(topk), "answer one by one"),
        (lambda: compare_insertions(relu, relu, x, generator=seeded()), "both classes must have latents"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError, match=message):
            call()
