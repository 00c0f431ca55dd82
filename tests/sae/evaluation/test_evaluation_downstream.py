import pytest
import torch
from tiny import tiny_language_model

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.evaluation.downstream import downstream
from sae.models.language_model import Edit

SITES = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=0)


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.shape.d_vocab, (6, 12), generator=torch.Generator().manual_seed(2))


def mask_for(tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    mask[2, 5:8] = False
    return mask


def last(iterator):
    *_, (rows, scores) = iterator
    return rows, scores


def exact(d_in):
    """Reconstructs every vector exactly: signed pursuit over an orthonormal basis."""
    dictionary = MatchingPursuit(PursuitConfig(d_in=d_in, d_sae=d_in, k=d_in, selection="signed"), Scaling.identity(d_in))
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.eye(d_in))
        dictionary.b_dec.zero_()
    return dictionary


def constant(value):
    """Reconstructs every vector as `value`."""
    dictionary = Autoencoder(AutoencoderConfig(d_in=len(value), d_sae=4, activation=TopK(k=1)), Scaling.identity(len(value)))
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e9)
        dictionary.b_dec.copy_(value)
    return dictionary


@pytest.mark.parametrize("name", SITES)
def test_exact_constant_and_zero_reconstructions_score_as_the_definitions_say(model, tokens, name):
    site, mask = model.site(name), mask_for(tokens)
    mean = model.capture(tokens, [site])[site][mask].float().mean(0)
    cases = {"exact": exact(site.width), "mean": constant(mean), "zero": constant(torch.zeros(site.width))}
    rows, scores = last(downstream(model, cases, site, tokens, mask, mean, batch_rows=4))
    assert rows == len(tokens)
    assert scores["exact"].ce_spliced == pytest.approx(scores["exact"].ce_clean, abs=1e-5)
    assert scores["exact"].ce_recovered_zero == pytest.approx(1, abs=1e-3)
    assert scores["exact"].kl == pytest.approx(0, abs=1e-6)
    assert scores["mean"].ce_spliced == pytest.approx(scores["mean"].ce_mean, abs=1e-6)
    assert scores["mean"].ce_recovered_mean == pytest.approx(0, abs=1e-3)
    assert scores["zero"].ce_spliced == pytest.approx(scores["zero"].ce_zero, abs=1e-6)
    assert scores["zero"].ce_recovered_zero == pytest.approx(0, abs=1e-3)
    assert scores["zero"].kl > 1e-5


def test_cross_entropies_equal_a_slow_token_by_token_computation(model, tokens):
    site, mask = model.site(SITES[0]), mask_for(tokens)
    direction = torch.randn(site.width, generator=torch.Generator().manual_seed(5))
    case = constant(direction)
    _, scores = last(downstream(model, {"c": case}, site, tokens, mask, direction, batch_rows=5))
    clean_logits = model.run(tokens).double()
    edited = model.run(tokens, [Edit.replace(site, lambda acts: torch.where(mask[..., None], direction.to(acts), acts))]).double()
    ce, kl, count = 0.0, 0.0, 0
    per_row = []
    for r in range(len(tokens)):
        row = 0.0
        for t in range(tokens.shape[1] - 1):
            if mask[r, t]:
                p, q = clean_logits[r, t].softmax(0), edited[r, t].softmax(0)
                ce -= float(q[tokens[r, t + 1]].log())
                row += float(p[tokens[r, t + 1]].log() - q[tokens[r, t + 1]].log())
                kl += float((p * (p / q).log()).sum())
                count += 1
        per_row.append(row)
    assert scores["c"].n_tokens == count
    assert scores["c"].ce_spliced == pytest.approx(ce / count, rel=1e-4)
    assert scores["c"].kl == pytest.approx(kl / count, rel=1e-3, abs=1e-6)
    assert scores["c"].ce_spliced - scores["c"].ce_clean == pytest.approx(sum(per_row) / count, rel=1e-3, abs=1e-6)


def test_the_standard_error_shrinks_like_one_over_root_n_when_rows_are_repeated(model, tokens):
    site, mask = model.site(SITES[0]), mask_for(tokens)
    case = constant(torch.randn(site.width, generator=torch.Generator().manual_seed(6)))
    mean = torch.zeros(site.width)
    once = last(downstream(model, {"c": case}, site, tokens, mask, mean))[1]["c"]
    many = last(downstream(model, {"c": case}, site, tokens.repeat(4, 1), mask.repeat(4, 1), mean))[1]["c"]
    assert once.ce_increase_se > 0
    assert many.ce_increase_se == pytest.approx(once.ce_increase_se / 2 * ((5 / 6) / (23 / 24)) ** 0.5, rel=1e-3)


def test_a_mask_that_leaves_nothing_to_predict_is_refused(model, tokens):
    site = model.site(SITES[0])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -1] = True
    with pytest.raises(ConfigError, match="mask must allow"):
        last(downstream(model, {"c": exact(site.width)}, site, tokens, mask, torch.zeros(site.width)))
