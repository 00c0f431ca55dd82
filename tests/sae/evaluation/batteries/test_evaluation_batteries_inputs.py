"""What measures are run on: samples that leave masked tokens out, codes under their own key, generators of their own; and what a task's key holds."""

import dataclasses

import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from tiny_store import SITES, tiny_store

from sae.evaluation.batteries import MEASURES, Inputs, gather, perform, plan
from sae.evaluation.batteries.findings import Number, Quantity, finding
from sae.evaluation.batteries.run import Task
from sae.storage import ResultCache


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("inputs") / "acts")


@pytest.fixture
def inputs(store, tmp_path):
    atoms = {"dictionary": random_atoms(48, 32), "other": random_atoms(40, 32, seed=7)}
    dictionaries = {name: dictionary_of(rows, seed=i) for i, (name, rows) in enumerate(atoms.items())}
    return Inputs(ResultCache(tmp_path / "cache"), 0, store=store, sites=SITES, site=SITES[0], **dictionaries)


def test_points_are_activations_of_different_tokens_that_are_not_masked(store, inputs):
    usable = store.mask(SITES[0]).nonzero().squeeze(1)
    assert 0 < len(usable) < store.n_tokens
    everything = store.gather(SITES[0], usable, dtype=torch.float32)
    assert torch.equal(inputs.points(SITES[0], 10**6), everything)
    few = inputs.points(SITES[0], 50)
    assert few.shape == (50, 32)
    distances = torch.cdist(few.double(), everything.double()).amin(dim=1)
    assert distances.max() == 0
    assert not torch.equal(few, dataclasses.replace(inputs, seed=1).points(SITES[0], 50))


def test_points_of_several_sites_are_of_the_same_tokens_that_none_masks(store, inputs, monkeypatch):
    masks = {site: store.mask(site).clone() for site in SITES}
    masks[SITES[1]][::3] = False
    monkeypatch.setattr(type(store), "mask", lambda self, site: masks[site])
    found = inputs.aligned_points(SITES, 10**6)
    both = (masks[SITES[0]] & masks[SITES[1]]).nonzero().squeeze(1)
    for site in SITES:
        assert torch.equal(found[site], store.gather(site, both, dtype=torch.float32))


def test_codes_are_of_whole_rows_without_masked_tokens(store, inputs):
    sample = inputs.codes(300)
    mask = store.mask(SITES[0])
    assert mask[sample.token_index].all() and (sample.token_index.diff() > 0).all()
    assert torch.equal(sample.row_id, sample.token_index // 16)
    rows = mask.view(-1, 16)
    for row in sample.row_id.unique().tolist():
        assert int((sample.row_id == row).sum()) == int(rows[row].sum())  # whole but for what is masked
    largest = int(rows.sum(dim=1).max())
    assert 300 <= len(sample.codes) < 300 + largest
    acts = store.gather(SITES[0], sample.token_index, dtype=torch.float32)
    expected = inputs.dictionary.encode(acts).dense()
    torch.testing.assert_close(sample.codes.dense(), expected, rtol=1e-5, atol=1e-6)


def test_codes_of_two_dictionaries_are_of_the_same_tokens_and_kept_apart(inputs):
    one, two = inputs.codes(200), inputs.codes(200, "other")
    assert torch.equal(one.token_index, two.token_index)
    assert (one.codes.d_sae, two.codes.d_sae) == (48, 40)
    assert int(one.codes.indices.max()) >= 40 or not torch.equal(one.codes.indices, two.codes.indices)
    assert torch.equal(inputs.codes(200).codes.values, one.codes.values)


def test_atoms_of_length_zero_are_left_out(inputs):
    rows = random_atoms(20, 32)
    rows[[3, 17]] = 0
    kept = dataclasses.replace(inputs, dictionary=dictionary_of(rows)).atoms()
    assert torch.equal(kept, rows[[i for i in range(20) if i not in (3, 17)]])


def test_every_purpose_and_every_seed_has_its_own_generator(inputs):
    def draw(seed, purpose):
        return torch.rand(4, generator=dataclasses.replace(inputs, seed=seed).generator(purpose)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(0, "b")
    assert draw(0, "a") != draw(1, "a")


def test_a_key_holds_the_version_the_sites_and_both_dictionaries(inputs):
    measure = MEASURES["spectrum"]
    battery = next(task.battery for task in plan(["activations"], inputs))

    def key(measure=measure, site="", on=inputs):
        return Task(battery, measure, measure.quick, site).key(on)

    assert key(site=SITES[0]) == key(site=SITES[0]) != key(site=SITES[1])
    assert key() == key(on=dataclasses.replace(inputs, other=None))  # a store's measure does not mind the dictionaries
    assert key() != key(on=inputs.at(SITES[1]))
    assert key() != key(dataclasses.replace(measure, version=measure.version + 1))
    layers = MEASURES["layers"]
    assert key(layers) != key(layers, on=dataclasses.replace(inputs, sites=SITES[::-1]))
    matching = MEASURES["matching"]
    assert key(matching) != key(matching, on=dataclasses.replace(inputs, other=inputs.dictionary))
    assert key(matching) != key(matching, on=dataclasses.replace(inputs, dictionary=inputs.other))


def test_a_measure_of_each_site_looks_at_its_site(store, inputs):
    tasks = [task for task in plan(["activations"], inputs, quick=True) if task.measure.name == "spectrum"]
    done = [perform(task, inputs) for task in tasks]
    found = {f.subject: f.value for f in gather(done, seed=0).findings if f.name == "participation ratio"}
    assert list(found) == list(SITES)
    for site in SITES:
        x = inputs.points(site, 5000).double()
        variances = torch.linalg.eigvalsh(x.T.cov())
        assert found[site] == pytest.approx((variances.sum() ** 2 / variances.square().sum()).item(), rel=1e-4)


def test_a_finding_without_a_null_says_none():
    quantity = Quantity("q", "What it means.", "A source", null="draws")
    assert finding(quantity, Number("q", 1.0), measure="m").null == ""
    assert finding(quantity, Number("q", 1.0, "", 0.0, 1.0, 9, 0.5), measure="m").null == "draws"
