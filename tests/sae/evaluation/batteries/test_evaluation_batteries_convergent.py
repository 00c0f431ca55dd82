"""Convergent learning as a measure: copies, halves and split latents are told apart; what only documents share does not stand out."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from tiny_store import D_IN, SITES, tiny_store

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.batteries import MEASURES, CodeSample, Inputs, Outcome, gather, perform, plan
from sae.evaluation.batteries.measures.convergence import CONVERGENT, ConvergentConfig
from sae.fingerprint import from_json, to_json
from sae.geometry.atoms import sparse_prediction
from sae.storage import ResultCache

N, LENGTH = 3000, 150
FEW = ConvergentConfig(n_latents=40, n_targets=10, n_blocks=8, n_null=19)


class Documents:
    """What the measure asks of a store: the document of every token."""

    def __init__(self, length):
        self.length = length

    def document_ids(self):
        return (torch.arange(N) // self.length)[:, None]


@dataclass(frozen=True, eq=False)
class PlantedInputs(Inputs):
    """Codes as they are given."""

    planted: tuple = ()
    length: int = LENGTH

    def codes(self, n_tokens, which="dictionary"):
        dense = self.planted[which == "other"]
        codes = SparseCodes.of_slots(torch.arange(dense.shape[1]).repeat(N, 1), dense, dense.shape[1])
        return CodeSample(codes, torch.arange(N), torch.arange(N) // 16)

    @property
    def stored(self):
        return Documents(self.length)


def firings(n, *, seed, rate=0.1, rates=None):
    """Latents that fire on a tenth of the tokens each, on its own."""
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(N, n, generator=generator) < (rate if rates is None else rates)
    return fires * (0.5 + torch.rand(N, n, generator=generator))


def measured(tmp_path, x, y, config=FEW, **options):
    """Numbers by quantity, and the outcome."""
    outcome = CONVERGENT.compute(PlantedInputs(ResultCache(tmp_path), planted=(x.float(), y.float()), **options), config)
    return {number.quantity: number for number in outcome.numbers}, outcome


def test_a_permuted_copy_is_one_for_one(tmp_path):
    x = firings(30, seed=1)
    found, outcome = measured(tmp_path, x, 3 * x[:, torch.randperm(30, generator=torch.Generator().manual_seed(2))])
    assert found["one-to-one correlation"].value == pytest.approx(1)
    assert found["best-partner correlation"].value == pytest.approx(1)
    assert found["loss of one-to-one"].value == pytest.approx(0, abs=1e-9)
    assert found["variance predicted"].value > 0.99
    assert found["latents needed"].value == 1
    assert found["overlap of blocks"].value == pytest.approx(1)
    for name in ("one-to-one correlation", "best-partner correlation", "variance predicted", "overlap of blocks"):
        assert found[name].p == pytest.approx(1 / 20), name
    assert found["loss of one-to-one"].p > 0.5  # smaller than chance, which is not the side that counts
    assert found["one-to-one correlation"].null_mean < 0.1
    assert found["overlap of blocks"].null_mean < 0.8
    assert from_json(Outcome, json.loads(json.dumps(to_json(outcome)))) == outcome
    assert outcome.notes == ("The 30 and 30 latents that fire most often, 10 of them predicted; rarer latents are not looked at.",)


def test_dictionaries_without_relation_do_not_stand_out(tmp_path):
    found, _ = measured(tmp_path, firings(30, seed=3), firings(30, seed=4))
    assert all(each.p is None or each.p > 0.05 for each in found.values()), found
    assert found["variance predicted"].value < 0.02


def test_half_a_copy_is_half_predicted(tmp_path):
    x = firings(30, seed=5)
    y = torch.cat([x[:, :15], firings(15, seed=6)], dim=1)
    found, _ = measured(tmp_path, x, y, dataclasses.replace(FEW, n_targets=30))
    assert found["one-to-one correlation"].value == pytest.approx(0.5, abs=0.03)
    assert found["variance predicted"].value == pytest.approx(0.5, abs=0.01)
    assert found["latents needed"].note.endswith("of 30 latents can be predicted")


def test_a_latent_that_has_split_needs_two_and_its_halves_want_one_partner(tmp_path):
    halves, others = firings(20, seed=7, rate=0.05), firings(10, seed=8)
    whole = halves[:, ::2] + halves[:, 1::2]
    found, _ = measured(tmp_path, whole, halves)
    assert found["latents needed"].value == 2
    assert found["variance predicted"].value > 0.99
    assert found["one-to-one correlation"].value == pytest.approx(0.5**0.5, abs=0.05)
    back, _ = measured(tmp_path, halves, torch.cat([whole, others], dim=1))
    assert back["loss of one-to-one"].value == pytest.approx(0.35, abs=0.05)
    assert back["loss of one-to-one"].p == pytest.approx(1 / 20)
    assert back["latents needed"].value == 1


def test_what_only_the_documents_share_does_not_stand_out(tmp_path):
    generator = torch.Generator().manual_seed(9)
    rates = (0.4 * (torch.rand(N // LENGTH, 20, generator=generator) < 0.3)).repeat_interleave(LENGTH, dim=0)
    found, _ = measured(tmp_path, firings(20, seed=10, rates=rates), firings(20, seed=11, rates=rates))
    assert found["one-to-one correlation"].value > 0.1  # far beyond shuffled tokens
    assert found["one-to-one correlation"].null_mean > 0.1
    assert all(each.p is None or each.p > 0.05 for each in found.values()), found


def test_the_most_active_latents_are_chosen(tmp_path):
    x = torch.cat([firings(12, seed=12, rate=0.01), firings(8, seed=13, rate=0.2)], dim=1)
    y = torch.cat([firings(12, seed=14, rate=0.01), x[:, 12:]], dim=1)
    found, outcome = measured(tmp_path, x, y, dataclasses.replace(FEW, n_latents=8))
    assert found["one-to-one correlation"].value == pytest.approx(1)
    assert outcome.notes[0].startswith("The 8 and 8 latents that fire most often, 8 of them")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x: x * 0, {}, "dictionary must have at least 2 latents that fire, got 0"),
        (lambda x: x * (torch.arange(10) < 1), {}, "dictionary must have at least 2 latents that fire, got 1"),
        (lambda x: torch.ones_like(x), {}, "a latent that fires both"),
        (lambda x: x, {"length": N}, "at least 2 documents for one to be held out, got 1"),
        (lambda x: x, {"length": 1}, "a document of at least 2 tokens"),
    ],
    ids=["dead", "one", "constant", "one document", "documents of a token"],
)
def test_codes_that_cannot_be_compared_are_refused(tmp_path, change, options, message):
    x = firings(10, seed=15)
    with pytest.raises(ConfigError, match=message):
        measured(tmp_path, change(x), x, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small real store."""
    return tiny_store(tmp_path_factory.mktemp("convergent") / "acts")


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_dictionaries_on_a_store_are_compared_with_either_settings(tmp_path, store, quick):
    atoms = random_atoms(64, D_IN)
    other = atoms[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    inputs = Inputs(
        ResultCache(tmp_path / "cache"), 0, dictionary_of(atoms), dictionary_of(other), store, (SITES[0],), SITES[0],
        names={"dictionary": "one", "other": "two"},
    )  # fmt: skip
    settings = MEASURES["convergent"].quick if quick else MEASURES["convergent"].config
    configs = {"convergent": dataclasses.replace(settings, n_null=3)}
    (task,) = [task for task in plan(["pair"], inputs, configs=configs) if task.measure is CONVERGENT]
    done = perform(task, inputs)
    assert done.outcome is not None, done.reason
    found = {each.name: each for each in gather([done], seed=0).findings}
    assert found["one-to-one correlation"].value > 0.9
    assert found["variance predicted"].subject == "one from two"
    assert found["variance predicted"].value > 0.8
    assert len(done.outcome.figures) == 2


def test_rows_to_be_held_out_can_be_given(tmp_path):
    x = firings(6, seed=16).double()
    held_out = torch.arange(N) >= 2000
    y = torch.where(held_out, -1.0, 1.0)[:, None] * x[:, :1]  # the sign turns where it is not fitted on
    given = sparse_prediction(x, y, held_out=held_out)
    assert given.r_squared.max() < 0
    assert sparse_prediction(x, y, held_out=0.25).r_squared.max() > 0.02
    with pytest.raises(ConfigError, match=f"each of the {N} rows"):
        sparse_prediction(x, y, held_out=held_out[1:])
