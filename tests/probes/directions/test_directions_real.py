"""Directions in the default language model: when a speech was given can be read at layer 15, by every reader and above its null."""

import numpy as np
import pytest
import torch

from probes.directions import (
    ComparisonConfig,
    LabelledRows,
    LDADirection,
    LogisticDirection,
    MeanDifferenceDirection,
    compare_readers,
    direction_stability,
    transfer,
)

pytestmark = pytest.mark.slow
READERS = {"mean difference": MeanDifferenceDirection(), "LDA": LDADirection(), "logistic": LogisticDirection(C=0.01)}


@pytest.fixture(scope="module")
def speeches():
    """One passage of every address, its mean activation after layer 15, whether it was given in or after 1900, and the year's parity."""
    from probes.features import pooled_activations
    from probes.tasks import era
    from sae.activations.corpus import state_of_the_union
    from sae.models.assets import default_model
    from sae.models.language_model import LanguageModel

    model = LanguageModel.load(default_model(), dtype=torch.bfloat16)
    task = era(state_of_the_union(), n_per_document=1)
    acts = pooled_activations(model, list(task.texts), model.site("blocks.15.hook_resid_post"))
    return LabelledRows("given in or after 1900", acts, task.y, task.groups)


def test_every_reader_beats_its_null_on_addresses_it_has_not_seen(speeches):
    found = compare_readers(READERS, speeches, ComparisonConfig(n_bootstrap=500))
    for name, score in zip(found.readers, found.scores, strict=True):
        assert score.auc.low > 0.85, name
        assert score.auc.value > score.auc.null_mean + 6 * score.auc.null_sd, name
    assert found.random.auc.value < 0.75
    assert (found.cosine > 3 * found.expected_cosine).all()


def test_directions_of_disjoint_halves_of_the_addresses_agree(speeches):
    found = direction_stability(READERS, speeches, n_draws=6)
    assert found.halves[0].mean() > 0.85  # the mean difference
    assert (found.halves.mean(1) > 3 * np.abs(found.halves_null.mean(1)) + 0.05).all()


def test_a_direction_found_in_one_half_of_the_addresses_reads_the_other_and_not_shuffled_years(speeches):
    even = speeches.groups % 2 == 0
    halves = [speeches.take(np.flatnonzero(even)), speeches.take(np.flatnonzero(~even))]
    sets = [LabelledRows(name, rows.X, rows.y, rows.groups) for name, rows in zip(("even", "odd"), halves, strict=True)]
    meaningless = LabelledRows("shuffled", sets[1].X, np.random.default_rng(0).permutation(sets[1].y), sets[1].groups + 10_000)
    found = transfer(READERS, [*sets, meaningless], n_shuffles=5, n_random=5)
    assert found.auc[:, :2, :2].min() > 0.8
    assert np.abs(found.auc[:, :2, 2] - 0.5).max() < 0.3
    assert found.cosine[0, 0, 1] > 0.8 > 0.6 > abs(found.cosine[0, 0, 2])


def test_a_wrong_next_token_is_read_where_it_is_predicted_and_not_before():
    from probes.directions import TruthfulnessConfig, position_activations, truthfulness_map
    from probes.directions.scoring import auc
    from probes.tasks import era
    from sae.activations.corpus import state_of_the_union
    from sae.models.assets import default_model
    from sae.models.language_model import LanguageModel

    model = LanguageModel.load(default_model(), dtype=torch.bfloat16)
    texts = era(state_of_the_union(), n_per_document=1).texts
    ids = np.array([[model.separator_id, *row][:61] for row in model.tokenize(list(texts)) if len(row) >= 60])
    ends = (16, 32, 48, 60)
    before = torch.tensor(ends) - 1
    tops = [model.run(torch.tensor(batch))[:, before].float().softmax(-1).max(dim=-1) for batch in np.array_split(ids, len(ids) // 16)]
    confidence, predicted = (torch.cat(parts).numpy() for parts in zip(*tops, strict=True))
    wrong = (predicted != ids[:, ends]).astype(np.int64).ravel()
    groups = np.repeat(np.arange(len(ids)), len(ends))
    sites = [model.site(f"blocks.{layer}.hook_resid_post") for layer in (8, 14, 26)]
    named = {f"{end} {back}": end - back for end in ends for back in (1, 2)}
    acts = position_activations(model, ids.tolist(), [named] * len(ids), sites)
    cells = {
        (site.layer, f"-{back}"): np.stack([acts[site.layer, f"{end} {back}"] for end in ends], axis=1).reshape(len(wrong), -1)
        for site in sites
        for back in (2, 1)
    }
    config = TruthfulnessConfig(n_bootstrap=200, n_shuffles=3)
    found = truthfulness_map(cells, wrong, groups, name="wrong next token", reader=LogisticDirection(C=0.001), config=config)
    assert found.chosen[1] == "-1"
    assert found.validation[:, 1].min() > found.validation[:, 0].max()
    assert found.test.value > found.null_test.mean() + 0.05
    baseline = auc(1 - confidence.ravel().astype(np.float64), wrong)
    assert baseline > found.test.value  # the model's own confidence says more: what a baseline is for
