"""Stability across seeds: 1 for the same atoms in any order and scale, chance for unrelated ones, and firing as the weight."""

import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from scipy.optimize import linear_sum_assignment
from tiny_store import tiny_store

from sae.evaluation.batteries import Battery, Inputs, perform, plan
from sae.evaluation.suite.seeds import FIRING_STABILITY, STABILITY, FiringStabilityConfig, StabilityConfig, affordable
from sae.storage import ResultCache

BATTERY = Battery("seeds", "Seeds", "two dictionaries", (STABILITY, FIRING_STABILITY), "evaluation")
CONFIGS = {"stability": StabilityConfig(n_null=9), "firing_stability": FiringStabilityConfig(n_tokens=600, n_null=4)}
SITE = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("seeds") / "store")


def measured(tmp_path, one, two, configs=None, **options):
    """(measure, quantity, subject) -> number, and reasons by measure."""
    inputs = Inputs(ResultCache(tmp_path / "cache"), 0, one, two, **options)
    done = [perform(task, inputs) for task in plan(["seeds"], inputs, known={"seeds": BATTERY}, configs=configs or CONFIGS)]
    numbers = {(d.task.measure.name, n.quantity, n.subject): n for d in done if d.outcome for n in d.outcome.numbers}
    return numbers, {d.task.measure.name: d.reason for d in done if d.reason}


def with_latents(dictionary, order, scale):
    """The dictionary with its latents in another order, each atom `scale` times as long and its values as many times smaller."""
    made = dictionary_of(dictionary.W_dec.detach())
    with torch.no_grad():
        made.W_dec.copy_((dictionary.W_dec * scale[:, None])[order])
        made.W_enc.copy_((dictionary.W_enc / scale)[:, order])
        made.b_enc.copy_((dictionary.b_enc / scale)[order])
        made.b_dec.copy_(dictionary.b_dec)
    return made


BOTH = ("dictionary → other", "other → dictionary")
SHARES = ("cosine above 0.7", "cosine above 0.9")


def test_the_same_atoms_in_another_order_and_scale_come_back_entirely(tmp_path):
    dictionary = dictionary_of(random_atoms())
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    other = with_latents(dictionary, order, 0.5 + torch.rand(64, generator=torch.Generator().manual_seed(1)))
    numbers, _ = measured(tmp_path, dictionary, other)
    for key in [("mean largest cosine", name) for name in BOTH] + [
        ("mean cosine of pairs", ""),
        *(("share of atoms found again", s) for s in SHARES),
    ]:
        found = numbers["stability", *key]
        assert found.value == pytest.approx(1, abs=1e-6)
        assert found.p == 0.1 and found.null_mean < 0.6
    assert numbers["stability", "mean cosine of pairs", ""].note == "64 pairs, largest sum of cosines; null: covariance"


def test_half_the_atoms_shared_is_half_found_again_and_the_numbers_are_those_of_all_cosines(tmp_path):
    first, second = random_atoms(48, 32, seed=1), random_atoms(48, 32, seed=2)
    second[:24] = first[torch.randperm(48, generator=torch.Generator().manual_seed(0))[:24]]
    numbers, _ = measured(tmp_path, dictionary_of(first), dictionary_of(second))
    cosines = first.double() @ second.double().T
    pairs = cosines[linear_sum_assignment(cosines.numpy(), maximize=True)]
    assert numbers["stability", "share of atoms found again", SHARES[1]].value == 0.5
    assert numbers["stability", "mean cosine of pairs", ""].value == pytest.approx(float(pairs.mean()), abs=1e-6)
    for axis, subject in ((1, BOTH[0]), (0, BOTH[1])):
        assert numbers["stability", "mean largest cosine", subject].value == pytest.approx(float(cosines.amax(axis).mean()), abs=1e-6)


@pytest.mark.parametrize("null", ["covariance", "rotated", "random"])
def test_unrelated_atoms_give_what_their_null_gives(tmp_path, null):
    configs = {"stability": StabilityConfig(n_null=29, null=null)}
    numbers, _ = measured(tmp_path, dictionary_of(random_atoms(60, 32, seed=3)), dictionary_of(random_atoms(60, 32, seed=4)), configs)
    for name in ("mean largest cosine", "mean cosine of pairs"):
        for (_, quantity, _), found in numbers.items():
            if quantity == name:
                assert abs(found.value - found.null_mean) < 4 * found.null_sd
    assert numbers["stability", "share of atoms found again", SHARES[0]].value == 0


def test_a_dictionary_of_zeros_has_no_atoms_to_find(tmp_path):
    numbers, reasons = measured(tmp_path, dictionary_of(random_atoms()), dictionary_of(torch.zeros(20, 32)))
    assert not numbers and "at least 1" in reasons["stability"]


def test_shares_count_each_latent_as_often_as_it_fires(tmp_path, store):
    one, two = dictionary_of(random_atoms(seed=5), seed=1), dictionary_of(random_atoms(seed=6), seed=2)
    with torch.no_grad():
        two.W_dec[:20] = one.W_dec[30:50]
    numbers, reasons = measured(tmp_path, one, two, store=store, site=SITE)
    assert not reasons
    index = Inputs(ResultCache(tmp_path / "again"), 0, one, store=store, site=SITE).codes(600).token_index
    fired = (one.encode(store.gather(SITE, index, dtype=torch.float32)).dense() != 0).sum(dim=0).double()
    cosines = (one.W_dec @ two.W_dec.T).detach().double()
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    matched = cosines[rows, columns].clamp(min=0)
    mean = numbers["firing_stability", "mean cosine of pairs, by firing", ""]
    assert mean.value == pytest.approx(float((fired * matched).sum() / fired.sum()), abs=1e-5)
    assert numbers["firing_stability", "share of firing found again", SHARES[1]].value == pytest.approx(
        float(fired[30:50].sum() / fired.sum()), abs=1e-9
    )
    assert mean.n_null == 4


def test_the_same_latents_in_another_order_and_scale_answer_alike(tmp_path, store):
    dictionary = dictionary_of(random_atoms(seed=7), seed=3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    numbers, reasons = measured(tmp_path, dictionary, with_latents(dictionary, order, torch.full((64,), 2.0)), store=store, site=SITE)
    assert not reasons
    for name, subject in (
        ("mean cosine of pairs, by firing", ""),
        ("share of firing found again", SHARES[1]),
        ("mean correlation of pairs", ""),
    ):
        assert numbers["firing_stability", name, subject].value == pytest.approx(1, abs=1e-5)


def test_many_atoms_have_fewer_null_draws_and_never_less_than_two():
    assert affordable(19, 2048**2) == 19
    assert affordable(19, 4096**2) == 5
    assert affordable(19, 65_536**2) == 2
    assert affordable(4, 10) == 4
