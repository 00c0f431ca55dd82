"""First letters with planted absorption and planted splits, and the measures on a model with a vocabulary of words."""

import itertools

import numpy as np
import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from scipy import sparse
from word_model import SITE, word_model

from probes.evaluation.codes import directions, lengths, site_of
from probes.evaluation.letters import ABSORPTION, SPLITTING, LettersConfig, letter_absorption
from probes.evaluation.splits import LetterLatents, Splits, letter_latents
from probes.evaluation.words import LETTERS, WordsConfig, f1_score, probed_words, read_words, split_words, vocabulary_words
from sae.dictionaries.activations import ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.absorption import full_absorption, n_split
from sae.evaluation.batteries import Inputs
from sae.storage import ResultCache

N_LETTERS, N_WORDS, D_IN = 6, 50, 64


def planted(*, absorbed=(), split=(), seed=0):
    """Words of six letters: (words, codes, atoms, which words are absorbed).

    Latent l stands for letter l, a word has a latent of its own besides, and four latents fire at random. Of a letter in `absorbed` a third of
    the words have the letter's direction in the latent of the word, and the letter's latent silent. A letter in `split` is two latents, one for each half
    of its words, l and 6 + l.
    """
    rng = np.random.default_rng(seed)
    n = N_LETTERS * N_WORDS
    letter = np.repeat(np.arange(N_LETTERS), N_WORDS)
    basis = np.linalg.qr(rng.normal(size=(D_IN, D_IN)))[0]
    atoms = np.concatenate([basis[:12], basis[12:16], np.zeros((n, D_IN))])
    codes = np.zeros((n, len(atoms)))
    codes[np.arange(n), letter] = rng.uniform(4, 5, n)
    codes[:, 12:16] = (rng.random((n, 4)) < 0.3) * rng.uniform(0.5, 1, (n, 4))
    own = basis[16:][rng.integers(0, D_IN - 16, n)] * rng.choice((-1, 1), (n, 1))
    atoms[16:] = own
    codes[np.arange(n), 16 + np.arange(n)] = rng.uniform(1, 1.5, n)
    taken = np.isin(letter, absorbed) & (np.arange(n) % 3 == 0)
    for i in np.flatnonzero(taken):
        codes[i, letter[i]] = 0
        atoms[16 + i] = (0.6 * own[i] + 0.8 * basis[letter[i]]) * rng.uniform(0.5, 2)
        codes[i, 16 + i] = rng.uniform(5, 6) / np.linalg.norm(atoms[16 + i])
    for i in np.flatnonzero(np.isin(letter, split) & (np.arange(n) % 2 == 0)):
        codes[i, 6 + letter[i]], codes[i, letter[i]] = codes[i, letter[i]], 0
    acts = codes @ atoms + 0.05 * rng.normal(size=(n, D_IN)) + rng.normal(size=D_IN)
    names = tuple(f" {LETTERS[number]}{i:03d}" for i, number in enumerate(letter))
    made = probed_words(names, torch.tensor(acts, dtype=torch.float32), config=WordsConfig(), seed=seed)
    return made, codes.astype(np.float32), torch.tensor(atoms, dtype=torch.float32), taken


def sparse_codes(z):
    z = torch.as_tensor(z)
    return SparseCodes.of_slots(torch.arange(z.shape[1]).expand_as(z).contiguous(), z, z.shape[1])


def scores(words, codes, atoms, *, n_null=5):
    splits = letter_latents(sparse.csr_matrix(codes), words.letter, words.is_train, asked=words.letters)
    return splits, letter_absorption(words, sparse_codes(codes), atoms, splits, letters=words.counted, n_null=n_null, seed=0)


def test_letters_with_one_latent_each_are_neither_absorbed_nor_split():
    words, codes, atoms, _ = planted()
    splits, found = scores(words, codes, atoms)
    assert words.counted == list(range(N_LETTERS))
    assert [each.own for each in splits.letters] == [(number,) for number in range(N_LETTERS)]
    assert all(each.means.tolist() == [0, 0] for each in found)


def test_absorbed_words_are_found_one_by_one_and_no_others():
    words, codes, atoms, taken = planted(absorbed=(1, 4))
    splits, found = scores(words, codes, atoms)
    assert {each.letter: each.own for each in splits.letters}[1][0] == 1
    for each in found:
        truth = taken[words.known(each.letter)]
        assert each.fraction.tolist() == pytest.approx(truth.astype(float).tolist())
        assert each.full.tolist() == truth.tolist()
    assert found[1].means[0] > 0.2 and found[0].means[0] == 0
    assert np.mean([each.null for each in found if each.letter in (1, 4)]) < 0.1  # permuted atoms do not carry the letter


def test_a_letter_of_two_latents_is_split_in_two():
    words, codes, _, _ = planted(split=(2, 5))
    splits = letter_latents(sparse.csr_matrix(codes), words.letter, words.is_train, asked=words.letters)
    assert [each.n_own for each in splits.letters] == [1, 1, 2, 1, 1, 2]
    assert {each.letter: set(each.own) for each in splits.letters}[2] == {2, 8}


def test_permuted_and_rescaled_latents_have_the_same_scores():
    words, codes, atoms, _ = planted(absorbed=(1,), split=(2,))
    splits, found = scores(words, codes, atoms)
    rng = np.random.default_rng(1)
    order, scale = rng.permutation(codes.shape[1]), rng.uniform(0.1, 10, codes.shape[1])
    factor = torch.tensor(scale[order, None], dtype=torch.float32)
    other_splits, other = scores(words, (codes / scale)[:, order].astype(np.float32), atoms[order] * factor)
    assert [each.n_own for each in other_splits.letters] == [each.n_own for each in splits.letters]
    assert [order[list(each.own)].tolist() for each in other_splits.letters] == [list(each.own) for each in splits.letters]
    np.testing.assert_allclose([each.means for each in other], [each.means for each in found], atol=1e-6)


@pytest.mark.parametrize("what", ["codes", "atoms"])
def test_a_dictionary_of_zeros_absorbs_nothing_and_has_no_latents(what):
    words, codes, atoms, _ = planted(absorbed=(1,))
    codes, atoms = (0 * codes, atoms) if what == "codes" else (codes, 0 * atoms)
    splits, found = scores(words, codes, atoms)
    assert all(each.means.tolist() == [0, 0] for each in found)
    if what == "codes":
        assert [each.n_own for each in splits.letters] == [0] * N_LETTERS


@pytest.mark.parametrize(
    ("main", "absorber", "cosine", "total", "expected"),
    [
        (0, 5, 0.5, 10, True),
        (1e-9, 5, 0.5, 10, True),
        (0.1, 5, 0.5, 10, False),
        (0, 3.9, 0.5, 10, False),
        (0, 5, 0.03, 10, True),
        (0, 5, 0.02, 10, False),
        (0, 5, 0.5, -1, False),
    ],
)
def test_full_absorption_has_its_unit_values(main, absorber, cosine, total, expected):
    atoms = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5], [0.0, 3.0]])
    codes = SparseCodes(torch.tensor([[0, 1, 2]]), torch.tensor([[main, absorber / cosine, 50.0]]), torch.tensor([3]), 3)
    acts, probe = torch.tensor([[float(total), 4.0]]), torch.tensor([2.0, 0.0])
    assert full_absorption(acts, codes, atoms, probe, [0]).tolist() == [expected]


def slow_full(x, z, atoms, probe, main):
    unit = probe / np.linalg.norm(probe)
    along = z * (atoms @ unit)
    others = [j for j in range(len(z)) if j not in main and z[j] != 0]
    if any(abs(z[j]) >= 1e-8 for j in main) or not others:
        return False
    top = max(others, key=lambda j: along[j])
    return along[top] / np.linalg.norm(atoms[top]) / z[top] >= 0.025 and along[top] >= 0.4 * (x @ unit) and x @ unit > 0


def test_full_absorption_equals_a_slow_computation():
    rng = np.random.default_rng(2)
    z = rng.uniform(0.1, 3, (300, 12)) * (rng.random((300, 12)) < 0.4)
    atoms, probe = rng.normal(size=(12, 5)), rng.normal(size=5)
    acts = z @ atoms + rng.normal(size=(300, 5))
    made = full_absorption(*(torch.tensor(each) for each in (acts,)), sparse_codes(z), torch.tensor(atoms), torch.tensor(probe), [3, 5])
    expected = [bool(slow_full(acts[i], z[i], atoms, probe, {3, 5})) for i in range(300)]
    assert made.tolist() == expected
    assert 20 < sum(expected) < 280


@pytest.mark.parametrize(
    ("f1", "expected"),
    [((), 0), ((0.0, 0.5), 0), ((0.5,), 1), ((0.5, 0.529), 1), ((0.5, 0.531), 2), ((0.5, 0.5, 0.9), 1), ((0.2, 0.4, 0.6, 0.61), 3)],
)
def test_latents_count_while_f1_grows_by_more_than_three_hundredths(f1, expected):
    assert n_split(f1) == expected
    assert LetterLatents(0, tuple(range(10, 10 + len(f1))), f1).own == tuple(range(10, 10 + expected))


def test_lengths_are_what_latents_add_whatever_the_scaling_and_the_normalisation():
    from sae.dictionaries.scaling import Scaling

    generator = torch.Generator().manual_seed(3)
    acts = 3 * torch.randn(20, 8, generator=generator) + 1
    for normalisation in ("none", "layer_norm", "constant_norm"):
        config = AutoencoderConfig(d_in=8, d_sae=16, activation=ReLU(), normalisation=normalisation)
        dictionary = Autoencoder(config, scaling=Scaling(torch.randn(8, generator=generator), 0.37), seed=1).eval()
        with torch.no_grad():
            for parameter in dictionary.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        added = lengths(dictionary, acts).dense() @ directions(dictionary)
        whole = dictionary.decode(dictionary.encode(acts)).detach()
        without = dictionary.encode(acts)
        nothing = dictionary.decode(SparseCodes(without.indices, 0 * without.values, without.counts, 16, without.rows)).detach()
        torch.testing.assert_close(added, whole - nothing, rtol=1e-4, atol=1e-4)


def test_a_dictionary_that_only_knows_the_mean_adds_nothing():
    dictionary = dictionary_of(random_atoms(16, 8), k=4)
    with torch.no_grad():
        dictionary.W_dec.zero_()
    codes = lengths(dictionary, torch.randn(9, 8))
    assert codes.d_sae == 16 and codes.counts.tolist() == [0] * 9
    assert not directions(dictionary).any()


def test_words_are_split_letter_by_letter_and_f1_is_that_of_its_definition():
    letter = np.repeat(np.arange(4), (10, 20, 2, 40))
    is_train = split_words(letter, test_share=0.3, seed=0)
    assert [int((~is_train[letter == number]).sum()) for number in range(4)] == [3, 6, 1, 12]
    rng = np.random.default_rng(0)
    for predicted, truth in itertools.product([rng.random(50) < 0.4, np.zeros(50, bool)], repeat=2):
        tp, fp, fn = (predicted & truth).sum(), (predicted & ~truth).sum(), (~predicted & truth).sum()
        assert f1_score(predicted, truth) == (0 if tp == 0 else pytest.approx(2 / ((tp + fp) / tp + (tp + fn) / tp)))


def test_a_vocabulary_gives_words_with_a_space_and_no_others():
    vocabulary = [" dog", "dog", " Dog", " d", " do2", " dot", " cat", " éa", " dig"]
    assert vocabulary_words(vocabulary, n_per_letter=2, seed=0).tolist() == sorted(vocabulary_words(vocabulary, n_per_letter=2, seed=0))
    assert set(vocabulary_words(vocabulary, n_per_letter=5, seed=0).tolist()) == {0, 5, 6, 8}
    assert len(vocabulary_words(vocabulary, n_per_letter=2, seed=0)) == 3


def inputs_of(tmp_path, dictionary, model):
    return Inputs(cache=ResultCache(tmp_path / "cache"), dictionary=dictionary, model=model, site=SITE)


CONFIG = LettersConfig(words=WordsConfig(n_per_letter=20), k_max=4, n_null=5)


def test_both_measures_run_on_a_model_and_read_it_once(tmp_path, monkeypatch):
    model = word_model()
    inputs = inputs_of(tmp_path, dictionary_of(random_atoms(64, 32), k=6, site=SITE), model)
    made = ABSORPTION.compute(inputs, CONFIG)
    monkeypatch.setattr(type(model), "capture", lambda *_: pytest.fail("the model ran again"))
    split = SPLITTING.compute(inputs, CONFIG)
    other = ABSORPTION.compute(inputs_of(tmp_path, dictionary_of(random_atoms(64, 32, seed=5), k=6), model), CONFIG)
    words = read_words(inputs, model.site(SITE), CONFIG.words)
    whole = {number.quantity: number for number in made.numbers if not number.subject}
    assert set(whole) == {quantity.name for quantity in ABSORPTION.quantities}
    assert 0 <= whole["absorption fraction"].value <= 1 and whole["absorption fraction"].n_null == 5
    assert whole["F1 of letter probes"].value == pytest.approx(np.mean(words.f1[words.letters]))
    assert "NOT valid" in made.notes[0] and "20 are asked for" in made.notes[0]
    assert {number.quantity for number in split.numbers} == {quantity.name for quantity in SPLITTING.quantities}
    assert other.numbers[0] != made.numbers[0]
    again = ABSORPTION.compute(inputs, CONFIG)
    assert again == made
    letters = [number for number in made.numbers if number.subject and number.quantity == "absorption fraction"]
    assert whole["absorption fraction"].value == pytest.approx(np.mean([number.value for number in letters]))


def test_what_cannot_be_measured_is_refused_in_words(tmp_path):
    model = word_model()
    atoms = random_atoms(64, 32)
    with pytest.raises(ConfigError, match="width 32"):
        site_of(inputs_of(tmp_path, dictionary_of(random_atoms(64, 16)), model))
    nowhere = Inputs(cache=ResultCache(tmp_path / "cache"), dictionary=dictionary_of(atoms), model=model)
    with pytest.raises(ConfigError, match="site is not in its provenance"):
        site_of(nowhere)
    foreign = dictionary_of(atoms, site=SITE)
    foreign.provenance["model_digest"] = "0" * 64
    with pytest.raises(ConfigError, match="trained on a model of digest 000"):
        site_of(inputs_of(tmp_path, foreign, model))
    transcoder = Autoencoder(AutoencoderConfig(d_in=32, d_sae=64, activation=TopK(k=4), d_out=32, apply_b_dec_to_input=False), seed=0)
    with pytest.raises(ConfigError, match="transcoder"):
        ABSORPTION.compute(inputs_of(tmp_path, transcoder, model), CONFIG)
    with pytest.raises(ConfigError, match="template must hold"):
        WordsConfig(template="no word")
    with pytest.raises(ConfigError, match="two letters or more"):
        probed_words((" ab", " ac", " bd"), torch.randn(3, 4), config=WordsConfig(), seed=0)
    with pytest.raises(ConfigError, match="must begin with a letter"):
        probed_words((" ab", " 9c"), torch.randn(2, 4), config=WordsConfig(), seed=0)


def test_results_survive_json():
    from sae.fingerprint import from_json, to_json

    made = Splits((LetterLatents(2, (5, 3), (0.4, 0.9)), LetterLatents(3, (), ())))
    assert from_json(Splits, to_json(made)) == made


@pytest.mark.slow
def test_the_default_model_knows_how_most_of_its_words_begin_and_random_atoms_absorb_as_permuted_ones_do(tmp_path):
    from sae.models.assets import default_model
    from sae.models.language_model import LanguageModel

    model, site = LanguageModel.load(default_model(), dtype=torch.float32), "blocks.15.hook_resid_post"
    dictionary = Autoencoder(AutoencoderConfig(d_in=576, d_sae=2048, activation=TopK(k=32)), seed=0).eval()
    inputs = Inputs(cache=ResultCache(tmp_path / "cache"), dictionary=dictionary, model=model, site=site)
    words = read_words(inputs, model.site(site), WordsConfig())
    assert len(words.counted) >= 20 and "valid here" in words.validity()
    assert {word[1] for word in words.words} == set(LETTERS) and len(words.words) > 4000
    made = {number.quantity: number for number in ABSORPTION.compute(inputs, ABSORPTION.config).numbers if not number.subject}
    for name in ("absorption fraction", "full absorption rate"):
        assert abs(made[name].value - made[name].null_mean) < 0.1
