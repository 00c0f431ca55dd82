"""Crystals as a measure: planted relations stand out and are named by their latents, random atoms have none, degenerate dictionaries say why."""

import dataclasses
import json
import re

import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms

from sae.evaluation.batteries import MEASURES, Inputs, Outcome, gather, perform, plan
from sae.evaluation.batteries.measures.crystal import CRYSTALS, CrystalsConfig
from sae.fingerprint import from_json, to_json
from sae.storage import ResultCache

FEW = CrystalsConfig(n_null=39)


def related_atoms(n_pairs=12, n_other=150, d=64, length=0.8, seed=0):
    """Unit atoms, of which n_pairs pairs differ by one vector exactly; the rows of the pairs."""
    axis = random_atoms(1, d, seed)[0]
    across = random_atoms(n_pairs, d, seed + 1)
    across = across - (across @ axis)[:, None] * axis
    across = across / across.norm(dim=1, keepdim=True) * (1 - length**2 / 4) ** 0.5
    rows = torch.cat([random_atoms(n_other, d, seed + 2), across - axis * length / 2, across + axis * length / 2])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    place = order.argsort()
    return rows[order], torch.stack([place[n_other : n_other + n_pairs], place[n_other + n_pairs :]], dim=1)


def measured(tmp_path, atoms, config=FEW, seed=0):
    """(what was done, findings by quantity)."""
    inputs = Inputs(ResultCache(tmp_path / "cache"), seed, dictionary_of(atoms))
    (task,) = [each for each in plan(["atoms"], inputs, configs={"crystals": config}) if each.measure is CRYSTALS]
    done = perform(task, inputs)
    found = {}
    for each in gather([done], seed=seed).findings:
        found.setdefault(each.name, []).append(each)
    return done, found


def test_planted_relations_stand_out_and_are_named_by_their_latents(tmp_path):
    atoms, pairs = related_atoms()
    silent = torch.cat([torch.zeros(3, 64), 2 * atoms])  # dead atoms do not shift the numbers, and lengths do not matter
    done, found = measured(tmp_path, silent)
    (count,), (flat,), (share,) = (found[name] for name in ("crystals", "parallelograms", "share of atoms in crystals"))
    assert 0.9 * 66 < count.value <= 66
    assert flat.value == count.value
    assert share.value == pytest.approx(24 / 174)
    assert (count.null_mean, count.p, count.stands_out) == (0.0, 1 / 40, "yes")
    partner = {a: b for one, two in (pairs + 3).tolist() for a, b in ((one, two), (two, one))}
    named = [[int(i) for i in re.findall(r"\d+", each.subject)] for each in found["loss of a crystal"]]
    assert len(named) == 5
    assert len({latent for row in named for latent in row}) == 20
    for row, each in zip(named, found["loss of a crystal"], strict=True):
        assert {partner[i] for i in row} == set(row)  # two pairs; which sides are named first is free: both are parallel
        assert each.value == pytest.approx(0, abs=1e-3)
        assert each.note.startswith("parallelogram; cosine 1.00")
    (figure,) = done.outcome.figures
    assert sum(figure.series[0].y) == count.value
    assert sum(figure.series[1].y) == 0


def test_lengths_that_differ_make_trapezoids(tmp_path):
    one, _ = related_atoms(n_pairs=6, n_other=100, length=0.5)
    other, _ = related_atoms(n_pairs=6, n_other=0, length=1.3, seed=0)
    turned = torch.cat([one, other.roll(0)])
    _, found = measured(tmp_path, turned, dataclasses.replace(FEW, min_cosine=0.9, n_null=2))
    assert found["crystals"][0].value > found["parallelograms"][0].value + 10
    assert found["parallelograms"][0].value >= 25  # 15 of either length, less what the clusters part


@pytest.mark.parametrize("seed", range(2))
def test_random_atoms_hold_no_crystals(tmp_path, seed):
    done, found = measured(tmp_path, random_atoms(300, 48, seed), seed=seed)
    assert [found[name][0].value for name in ("crystals", "parallelograms", "share of atoms in crystals")] == [0, 0, 0]
    assert {each.stands_out for name in found for each in found[name]} == {"no"}
    assert done.outcome.figures == ()


def test_a_sample_of_many_atoms_is_taken_and_said(tmp_path):
    atoms, _ = related_atoms(n_pairs=30, n_other=100)
    done, found = measured(tmp_path, atoms, dataclasses.replace(FEW, n_atoms=120, n_null=2))
    assert done.outcome.notes == ("Of 160 atoms 120 were searched: crystals with others are not seen.",)
    assert found["crystals"][0].note.startswith("120 atoms, ")
    assert found["crystals"][0].value > 20


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (torch.cat([random_atoms(3, 8), torch.zeros(5, 8)]), "atoms must have at least 4 rows"),
        (torch.zeros(9, 8), "atoms must have at least 4 rows"),
        (torch.ones(9, 8), "remove repeated atoms"),
    ],
    ids=["few", "zero", "repeated"],
)
def test_dictionaries_without_differences_are_left_out_with_the_reason(tmp_path, atoms, reason):
    done, _ = measured(tmp_path, atoms)
    assert done.outcome is None
    assert reason in done.reason


def test_an_atom_that_is_repeated_does_no_harm_and_the_outcome_goes_through_json(tmp_path):
    atoms, _ = related_atoms(n_other=60)
    done, found = measured(tmp_path, torch.cat([atoms, atoms[:5]]), MEASURES["crystals"].quick)
    assert found["crystals"][0].value > 50
    assert from_json(Outcome, json.loads(json.dumps(to_json(done.outcome)))) == done.outcome
