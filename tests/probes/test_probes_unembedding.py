import numpy as np
import pytest
import torch
from tiny import tiny_hf_model, tiny_language_model, tiny_tokenizer

from probes.unembedding import FinalNorm, clean_unembedding, read_unembedding
from sae.errors import ConfigError


def rows(n=6, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_unused_rows_rows_of_zeros_and_copies_are_left_out_and_the_rest_keep_their_ids():
    matrix = rows(7)
    matrix[2], matrix[5], matrix[4] = 0.0, matrix[1], -0.0
    unembedding = clean_unembedding(matrix.astype(np.float32), ["a", " b", "c", None, "e", " b", " g"])
    assert unembedding.tokens == ("a", " b", " g")
    assert unembedding.token_ids.tolist() == [0, 1, 6]
    assert unembedding.n_vocab == 7 and len(unembedding) == 3
    assert unembedding.rows.dtype == np.float64
    np.testing.assert_array_equal(unembedding.rows, matrix[[0, 1, 6]].astype(np.float32))


def test_a_word_is_the_token_with_a_space_before_it_and_a_token_is_its_exact_text():
    unembedding = clean_unembedding(torch.tensor(rows(4)), ["dog", " dog", " Dog", " dog"])
    assert unembedding.row_of_word("dog") == 1 and unembedding.row_of("dog") == 0
    assert unembedding.row_of_word("cat") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, t: (m, t[:-1]), ["tokens must name every row", "6", "5"]),
        (lambda m, t: (np.where(np.arange(6)[:, None] == 3, np.nan, m), t), ["finite", "row 3"]),
        (lambda m, t: (np.where(np.arange(6)[:, None] == 0, np.inf, m), t), ["finite", "row 0"]),
        (lambda m, t: (np.ones((6, 3)), t), ["at least 2 that are distinct", "got 1 of 6"]),
        (lambda m, t: (m, [None] * 6), ["at least 2", "got 0"]),
    ],
)
def test_an_unembedding_that_cannot_be_used_is_refused(change, words):
    with pytest.raises(ConfigError) as caught:
        clean_unembedding(*change(rows(), list("abcdef")))
    assert all(word in str(caught.value) for word in words)


def test_a_norm_of_another_width_is_refused():
    with pytest.raises(ConfigError, match="width of the rows, 3, got 4"):
        clean_unembedding(rows(), list("abcdef"), norm=FinalNorm(np.ones(4), np.zeros(4), 1e-5, True))
    with pytest.raises(ConfigError, match="eps must be at least 0"):
        FinalNorm(np.ones(4), np.zeros(4), -1.0, True)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_models_unembedding_and_norm_give_its_logits(architecture):
    model = tiny_language_model(seed=3, architecture=architecture)
    unembedding = read_unembedding(model)
    residual = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)) * 0.01  # short, so that epsilon counts
    logits = model.resume(residual, model.site("blocks.3.hook_resid_post"))
    mine = unembedding.norm.apply(residual.numpy()) @ unembedding.rows.T
    np.testing.assert_allclose(mine, logits.numpy()[..., unembedding.token_ids], rtol=2e-4, atol=2e-5)
    assert unembedding.norm.centred == (architecture == "gpt2")
    assert unembedding.norm.eps == pytest.approx(1e-6 if architecture == "llama" else 1e-5, rel=1e-4)


def test_padded_vocabulary_rows_are_left_out(tmp_path):
    model = tiny_hf_model(d_model=16, n_layers=1)
    model.resize_token_embeddings(416)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    unembedding = read_unembedding(tmp_path)
    assert unembedding.n_vocab == 416 and len(unembedding) == 400
    np.testing.assert_array_equal(unembedding.rows, model.get_output_embeddings().weight.detach().double().numpy()[:400])
