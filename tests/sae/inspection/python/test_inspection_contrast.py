"""Contrasts of two sets of texts: scores, AUC and order against obvious loops, the null against what it must be, the table as shown."""

import html
import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sae.errors import ConfigError
from sae.inspection.contrast import N_DIVISIONS, ContrastTable, contrast_texts, text_scores
from sae.inspection.encoded import EncodedText
from tests.sae.inspection import planted_store as ps


def random_texts(n, seed, d_sae=20, shift=()):
    """Texts of 3 to 9 tokens on which latents fire at random, with both signs; `shift` adds latents that fire on the second token."""
    rng, texts = np.random.default_rng(seed), []
    for _ in range(n):
        n_tokens = int(rng.integers(3, 10))
        latents, values = [()], [()]
        for position in range(1, n_tokens):
            found = rng.permutation(d_sae)[: rng.integers(0, 4)].tolist()
            found += [latent for latent in shift if position == 1 and latent not in found]
            latents.append(tuple(found))
            values.append(tuple(9.0 if i in shift else float(np.round(rng.normal(), 1)) or 0.5 for i in found))
        special = tuple(i == 0 for i in range(n_tokens))
        texts.append(EncodedText("x", ("t",) * n_tokens, (0,) * n_tokens, special, tuple(latents), tuple(values), None))
    return texts


def loop_score(text, latent, how):
    found = [v for line, row in zip(text.latents, text.values, strict=True) for i, v in zip(line, row, strict=True) if i == latent]
    if how == "mean":
        return sum(found) / (len(text.tokens) - 1)
    return max(found, key=abs, default=0.0)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_scores_are_those_of_a_loop_over_the_tokens(how):
    texts = random_texts(12, seed=0)
    ids, scores = text_scores(texts, score=how)
    for (row, text), (column, latent) in itertools.product(enumerate(texts), enumerate(ids.tolist())):
        expected = loop_score(text, latent, how)
        assert scores[row, column] == pytest.approx(expected) or abs(scores[row, column]) == pytest.approx(abs(expected))  # a tie of signs
    assert set(ids.tolist()) == {i for text in texts for line in text.latents for i in line}


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize(("n_a", "n_b"), [(5, 7), (1, 3)])
def test_auc_and_order_are_those_of_the_definition(how, n_a, n_b):
    a, b = random_texts(n_a, seed=1), random_texts(n_b, seed=2)
    found = contrast_texts(a, b, n=100, score=how)
    ids, scores = text_scores([*a, *b], score=how)
    labels = [1] * n_a + [0] * n_b
    for each in found:
        column = scores[:, ids.tolist().index(each.index)]
        assert each.auc == pytest.approx(roc_auc_score(labels, column))
        assert each.mean_a == pytest.approx(column[:n_a].mean())
        assert each.mean_b == pytest.approx(column[n_a:].mean())
        assert each.share_a == pytest.approx((column[:n_a] != 0).mean())
        assert each.share_b == pytest.approx((column[n_a:] != 0).mean())
    keys = [(-round(abs(c.auc - 0.5), 9), -round(abs(c.mean_a - c.mean_b), 9), c.index) for c in found]
    assert keys == sorted(keys)
    assert len(found) == len(ids)
    assert contrast_texts(a, b, n=3, score=how) == found[:3]


def test_a_latent_that_only_one_set_has_comes_first_with_a_small_p_value():
    a, b = random_texts(8, seed=3, shift=(17,)), random_texts(8, seed=4)
    best, *others = contrast_texts(a, b, n=20)
    assert (best.index, best.auc, best.share_a) == (17, 1.0, 1.0)
    assert best.p_value < 0.05
    assert all(each.p_value >= best.p_value for each in others)
    turned = contrast_texts(b, a, n=1)[0]
    assert (turned.index, turned.auc) == (17, 0.0)


def test_the_p_value_of_the_best_is_uniform_when_both_sets_are_alike():
    p_values = [contrast_texts(random_texts(6, seed=s), random_texts(6, seed=s + 500), n=1)[0].p_value for s in range(60)]
    assert min(p_values) >= 1 / (1 + N_DIVISIONS)
    assert np.mean([p <= 0.1 for p in p_values]) < 0.25  # 0.1 expected; above 0.25 has a probability below 0.001
    assert 0.3 < np.mean(p_values) < 0.8


def test_too_few_texts_get_no_p_value():
    assert contrast_texts(random_texts(3, seed=5), random_texts(9, seed=6), n=1)[0].p_value is None
    assert contrast_texts(random_texts(4, seed=5), random_texts(4, seed=6), n=1)[0].p_value is not None


def test_texts_in_which_nothing_fires_give_nothing():
    silent = EncodedText("x", ("a", "b"), (0, 1), (True, False), ((), ()), ((), ()), None)
    assert contrast_texts([silent] * 4, [silent] * 4, n=5) == []


@pytest.mark.parametrize(("options", "message"), [({"n": 0}, "n must be at least 1"), ({"n": True}, "n must be at least 1")], ids=str)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        contrast_texts(random_texts(2, 0), random_texts(2, 1), **options)


def test_the_table_shows_every_number(tmp_path):
    index = ps.built(tmp_path / "index", ps.random_store(), ps.random_autoencoder(), vocabulary=ps.hostile_vocabulary())
    contrasts = tuple(contrast_texts(random_texts(5, seed=7, shift=(9,)), random_texts(4, seed=8), n=6))
    table = ContrastTable(contrasts, (5, 4), index)
    page = table._repr_html_()
    for word in ("#9", "AUC", "fires in a", "5 texts (a) from 4 (b)"):
        assert word in page
    assert table.definition in html.unescape(page)
    assert ps.HOSTILE not in page
    assert "#9 " in repr(table)
    assert "AUC 1.00" in repr(table)
    with pytest.raises(ConfigError, match="no live encoder"):
        index.contrast(["a"], ["b"])
