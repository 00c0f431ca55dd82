"""The properties every measure of a cloud has, for the measures of a spectrum and of the coherence of atoms."""

import pytest
from universal import Measure, check

from sae.geometry.coherence import babel, mutual_coherence
from sae.geometry.spectrum import covariance_eigenvalues, effective_rank, isoscore, participation_ratio, stable_rank

MEASURES = [
    Measure(
        "participation ratio",
        lambda x: participation_ratio(covariance_eigenvalues(x)),
        rotation=True,
        scale=True,
        translation=True,
        linear=False,
    ),
    Measure(
        "effective rank",
        lambda x: effective_rank(covariance_eigenvalues(x), of="eigenvalues"),
        rotation=True,
        scale=True,
        translation=True,
        linear=False,
    ),
    Measure("stable rank", lambda x: stable_rank(covariance_eigenvalues(x)), rotation=True, scale=True, translation=True, linear=False),
    Measure("IsoScore", lambda x: isoscore(covariance_eigenvalues(x)), rotation=True, scale=True, translation=True, linear=False),
    Measure(
        "coherence",
        mutual_coherence,
        rotation=True,
        scale=True,
        translation=False,
        linear=False,
        blocked=lambda x, size: mutual_coherence(x, block_elements=size),
    ),
    Measure(
        "Babel",
        lambda x: babel(x, max_order=4),
        rotation=True,
        scale=True,
        translation=False,
        linear=False,
        blocked=lambda x, size: babel(x, max_order=4, block_elements=size),
    ),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_measure_of_spectra_and_coherence_has_the_properties_of_its_definition(measure):
    check(measure)
