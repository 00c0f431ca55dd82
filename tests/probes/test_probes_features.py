import numpy as np
import pytest
import torch
from scipy import sparse

from probes.features import pooled_activations, pooled_features, read_features, write_features
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.models.sites import Site

SITE = Site(name="blocks.2.hook_resid_post", layer=2, kind="resid_post", width=6)
TEXTS = ["b c", "a b c d e", "d", "e e a c", "a b"]


class FakeModel:
    """Activation = a random vector of the token, plus its position; what lies after the text is `padding`; position 0 is massive."""

    separator_id = 9

    def __init__(self, padding=0.0):
        self.padding = padding
        self.vectors = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
        self.passes = 0

    def tokenize(self, texts):
        return [[ord(word) - ord("a") for word in text.split()] for text in texts]

    def capture(self, tokens, sites):
        self.passes += 1
        acts = self.vectors[tokens] + 0.1 * torch.arange(tokens.shape[1])[:, None].bfloat16()
        acts[:, 0] = 2e4
        for i, row in enumerate(tokens):
            acts[i, int((row != row[0]).nonzero().max()) + 1 :] = self.padding
        return dict.fromkeys(sites, acts)


def expected(model, text):
    ids = [ord(word) - ord("a") for word in text.split()]
    return torch.stack([(model.vectors[t] + torch.tensor(0.1 * (p + 1)).bfloat16()).float() for p, t in enumerate(ids)])


def dictionaries(d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scaling = Scaling(torch.randn(d, generator=generator), 0.7)
    autoencoder = Autoencoder(AutoencoderConfig(d_in=d, d_sae=20, activation=TopK(k=3)), scaling)
    pursuit = MatchingPursuit(PursuitConfig(d_in=d, d_sae=15, k=2, selection="signed"), scaling)
    with torch.no_grad():
        for dictionary in (autoencoder, pursuit):
            for parameter in dictionary.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            dictionary.normalise_()
    return {"TopK": autoencoder, "pursuit": pursuit}


POOLS = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "last": lambda x: x[-1]}


@pytest.mark.parametrize("pooling", list(POOLS))
@pytest.mark.parametrize("batch_rows", [1, 3, 16])
def test_activations_and_codes_are_pooled_over_each_texts_own_tokens(pooling, batch_rows):
    model = FakeModel(padding=1e9)
    found = pooled_features(model, TEXTS, SITE, dictionaries(), pooling=pooling, batch_rows=batch_rows, max_norm_ratio=np.inf)
    assert model.passes == -(-len(TEXTS) // batch_rows)
    assert found.n_tokens.tolist() == [2, 5, 1, 4, 2]
    assert found.acts.dtype == np.float32
    for i, text in enumerate(TEXTS):
        tokens = expected(model, text)
        np.testing.assert_allclose(found.acts[i], POOLS[pooling](tokens.numpy().astype(np.float64)), rtol=1e-6)
        for name, dictionary in dictionaries().items():
            dense = dictionary.encode(tokens).dense().detach().numpy()
            assert (dense != 0).any()
            np.testing.assert_allclose(found.codes[name][i].toarray()[0], POOLS[pooling](dense), rtol=1e-4, atol=1e-6)
    for name, width in (("TopK", 20), ("pursuit", 15)):
        assert isinstance(found.codes[name], sparse.csr_matrix)
        assert (found.codes[name].shape, found.codes[name].dtype) == ((5, width), np.float32)


@pytest.mark.parametrize("padding", [1e9, float("nan")])
def test_padding_changes_nothing(padding):
    plain, padded = (pooled_features(FakeModel(p), TEXTS, SITE, dictionaries()) for p in (0.0, padding))
    np.testing.assert_array_equal(plain.acts, padded.acts)
    for name in plain.codes:
        np.testing.assert_array_equal(plain.codes[name].toarray(), padded.codes[name].toarray())


def test_long_texts_are_cut_and_without_separator_the_first_token_is_left_out():
    model = FakeModel()
    cut = pooled_features(model, ["a b c d e"], SITE, context=3)
    assert cut.n_tokens.tolist() == [2]
    np.testing.assert_allclose(cut.acts[0], expected(model, "a b").mean(0), rtol=1e-6)
    bare = pooled_features(FakeModel(), ["a b c d e"], SITE, separator=False)
    assert bare.n_tokens.tolist() == [4]


class SpikyModel(FakeModel):
    """The token d is massive wherever it stands."""

    def capture(self, tokens, sites):
        return {site: torch.where((tokens == 3)[..., None], 5e3, acts) for site, acts in super().capture(tokens, sites).items()}


def test_tokens_of_massive_norm_are_left_out():
    model = SpikyModel()
    kept = pooled_features(model, ["a b c d e"], SITE)
    assert kept.n_tokens.tolist() == [4]
    np.testing.assert_allclose(kept.acts[0], expected(model, "a b c d e")[[0, 1, 2, 4]].mean(0), rtol=1e-5)
    assert pooled_features(model, ["a b c d e"], SITE, max_norm_ratio=np.inf).acts.max() > 900


def test_pooled_activations_are_those_of_pooled_features():
    for pooling in POOLS:
        acts = pooled_features(FakeModel(), TEXTS, SITE, pooling=pooling).acts
        np.testing.assert_array_equal(pooled_activations(FakeModel(), TEXTS, SITE, pooling=pooling), acts)


def test_real_model_gives_each_text_what_it_gives_it_alone():
    from tiny import tiny_language_model

    model = tiny_language_model()
    site = model.site("blocks.2.hook_resid_post")
    texts = ["the war was over", "a dog is an animal, and a robin is a bird", "peace", "My fellow citizens of the Senate"]
    found = pooled_features(model, texts, site, dictionaries(d=32), batch_rows=3, max_norm_ratio=np.inf)
    for i, text in enumerate(texts):
        tokens = torch.tensor([[model.separator_id, *model.tokenize([text])[0]]])
        acts = model.capture(tokens, [site])[site][0, 1:]
        assert found.n_tokens[i] == len(acts)
        np.testing.assert_allclose(found.acts[i], acts.mean(0), rtol=1e-4, atol=1e-5)
        for name, dictionary in dictionaries(d=32).items():
            np.testing.assert_allclose(
                found.codes[name][i].toarray()[0], dictionary.encode(acts).dense().mean(0).detach(), rtol=1e-3, atol=1e-4
            )


def problem():
    rng = np.random.default_rng(0)
    features = {"neurons": rng.normal(size=(6, 4)), "TopK latents": sparse.random(6, 9, density=0.3, random_state=0, format="csr")}
    return features, np.array([0, 1, 0, 1, 1, 0]), np.array([3, 3, 1, 1, 0, 0])


def test_features_survive_the_disk(tmp_path):
    features, y, groups = problem()
    write_features(tmp_path / "f.npz", features, y, groups)
    found = read_features(tmp_path / "f.npz")
    np.testing.assert_array_equal(found.features["neurons"], features["neurons"])
    assert sparse.issparse(found.features["TopK latents"])
    np.testing.assert_array_equal(found.features["TopK latents"].toarray(), features["TopK latents"].toarray())
    assert (found.y.tolist(), found.groups.tolist()) == (y.tolist(), groups.tolist())
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, ["is not an .npz file"]),
        ({"y": np.arange(3)}, ["must hold the array 'groups'", "['y']"]),
        ({"y": np.arange(3), "groups": np.arange(3)}, ["one matrix or more", "[]"]),
        ({"y": np.arange(3), "groups": np.arange(3), "X": np.arange(3)}, ["X must be a matrix of floats", "[3]"]),
        ({"y": np.arange(3), "groups": np.arange(3), "Z.data": np.ones(3)}, ["Z is not a sparse matrix", "Z.indices"]),
        ({"y": np.ones(3), "groups": np.arange(3), "X": np.ones((3, 2))}, ["integer labels y"]),
        ({"y": np.arange(3), "groups": np.array(["a", None, "c"], dtype=object), "X": np.ones((3, 2))}, ["plain arrays"]),
    ],
)
def test_files_that_are_not_features_are_refused(tmp_path, arrays, words):
    path = tmp_path / "f.npz"
    if arrays is None:
        path.write_bytes(b"not a zip file at all")
    else:
        np.savez(path, **arrays)
    with pytest.raises(FormatError) as caught:
        read_features(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), caught.value


@pytest.mark.parametrize("name", ["y", "groups", "a.b", "a/b"])
def test_taken_matrix_names_are_refused(tmp_path, name):
    _, y, groups = problem()
    with pytest.raises(ConfigError, match="must not be named"):
        write_features(tmp_path / "f.npz", {name: np.ones((6, 2))}, y, groups)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pooled_features(FakeModel(), [], SITE), ["non-empty sequence", "[]"]),
        (lambda: pooled_features(FakeModel(), ["a", "", "b"], SITE), ["texts[1]", "1 tokens", "''"]),
        (lambda: pooled_features(FakeModel(), ["a"], SITE, separator=False), ["texts[0]", "1 tokens"]),
        (lambda: pooled_features(FakeModel(), TEXTS, SITE, context=1), ["context must be at least 2", "context=1"]),
        (lambda: pooled_features(FakeModel(), TEXTS, SITE, batch_rows=0), ["batch_rows=0"]),
        (lambda: pooled_features(FakeModel(), TEXTS, SITE, max_norm_ratio=0.5), ["max_norm_ratio=0.5"]),
        (lambda: pooled_features(FakeModel(), TEXTS, SITE, dictionaries(d=5)), ["dictionaries['TopK']", "d_in=6", "hook_resid_post", "5"]),
        (lambda: pooled_features(BrokenModel(), TEXTS, SITE), ["must be finite", "texts[2]", "hook_resid_post"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


class BrokenModel(FakeModel):
    """The token d, alone in texts[2], gives NaN."""

    def capture(self, tokens, sites):
        return {site: torch.where((tokens == 3)[..., None], torch.nan, acts) for site, acts in super().capture(tokens, sites).items()}
