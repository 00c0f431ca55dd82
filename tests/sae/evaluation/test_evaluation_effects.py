"""Effects on a tiny language model: the values of exact, mean, zero and scaled reconstructions, and a slow token-by-token computation."""

import copy
import dataclasses

import pytest
import torch
from array_store import constant, linear, perfect, random_dictionary
from tiny import tiny_language_model

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import ReLU, TopK
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs
from sae.evaluation.downstream import Rows, Splice, prediction_terms, share_recovered
from sae.evaluation.suite.effects import DOWNSTREAM, DownstreamConfig, Passage, others
from sae.evaluation.suite.sample import sample
from sae.models.language_model import Edit, LanguageModel
from sae.storage import ResultCache

RESID, MLP = "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"
CONTEXT, D = 12, 32
EVERYTHING = DownstreamConfig(n_tokens=10**6)
WORDS = ["the", "nation", "and", "people", "law", "peace", "war", "was", "over", "a", "dog", "is", "an", "animal", "birds", "can", "fly"]


def texts(n=60, length=9):
    generator = torch.Generator().manual_seed(4)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist()) for _ in range(n)]


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=0)


def captured(path, model, **options):
    config = CaptureConfig(sites=(RESID, MLP), n_tokens=40 * CONTEXT, context=CONTEXT, dtype="float32", **options)
    for _ in collect(model, from_texts(texts()), path, config):
        pass
    return ActivationStore.open(path)


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    return captured(tmp_path_factory.mktemp("effects") / "acts", model)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return ResultCache(tmp_path_factory.mktemp("cache"))


def measure(cache, model, store, dictionary, site=RESID, config=EVERYTHING, seed=0):
    inputs = Inputs(cache, seed, dictionary=dictionary, store=store, sites=(site,), site=site, model=model)
    outcome = DOWNSTREAM.compute(inputs, config)
    for number in outcome.numbers:
        assert DOWNSTREAM.quantity(number.quantity).formula
    return {(n.quantity, n.subject) if n.subject else n.quantity: n for n in outcome.numbers}


def values(numbers):
    return {name: number.value for name, number in numbers.items()}


@pytest.mark.parametrize("site", [RESID, MLP])
def test_a_perfect_dictionary_costs_nothing_and_recovers_everything(cache, model, store, site):
    found = values(measure(cache, model, store, perfect(D), site))
    assert found["CE spliced"] == pytest.approx(found["CE clean"], abs=1e-6)
    assert found["CE increase"] == pytest.approx(0, abs=1e-6)
    assert found["KL"] == pytest.approx(0, abs=1e-6)
    for ablation in ("zero", "mean", "resample"):
        assert found["KL recovered", ablation] == pytest.approx(1, abs=1e-4)
        if found["CE recovered", ablation] is not None:
            assert found["CE recovered", ablation] == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("site", [RESID, MLP])
def test_the_zero_and_the_mean_dictionary_are_their_ablations_and_recover_nothing_against_them(cache, model, store, site):
    for name, value in (("zero", torch.zeros(D)), ("mean", store.statistics(site).mean.float())):
        numbers = measure(cache, model, store, constant(value), site)
        found = values(numbers)
        assert found["CE spliced"] == pytest.approx(found["CE ablated", name], abs=1e-6)
        assert found["KL recovered", name] == pytest.approx(0, abs=1e-6)
        if found["CE ablated", name] > found["CE clean"]:
            assert found["CE recovered", name] == pytest.approx(0, abs=1e-4)
            assert found["CE recovered", "mean" if name == "zero" else "zero"] != pytest.approx(0, abs=1e-4)
        else:
            assert found["CE recovered", name] is None
            assert "no damage" in numbers["CE recovered", name].note


def test_an_ablation_that_does_no_damage_has_no_share_recovered():
    recovered = share_recovered(torch.tensor([5.0, 2.0, 1.0]), torch.tensor([3.0, 3.0, 3.0]), torch.tensor([2.0, 2.0, 2.0]))
    assert float(recovered[0]) == pytest.approx(2 / 3)
    assert recovered[1:].isnan().all()


@torch.no_grad()
def slow(model, store, site, replacement):
    """Cross-entropies, clean and spliced, and KL of every counted prediction by (row, position), through whole passes and softmax in float64."""
    site, tokens = model.site(site), store.tokens().long()
    mask = store.mask(site).view(-1, CONTEXT)
    edit = Edit.replace(site, lambda acts: torch.where(mask[..., None], replacement(acts), acts))
    clean, other = model.run(tokens).double().softmax(-1), model.run(tokens, [edit]).double().softmax(-1)
    found = []
    for row in range(len(tokens)):
        for t in range(CONTEXT - 1):
            if mask[row, t]:
                p, q, target = clean[row, t], other[row, t], tokens[row, t + 1]
                found.append((float(-p[target].log()), float(-q[target].log()), float((p * (p / q).log()).sum())))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("site", [RESID, MLP])
def test_scores_equal_whole_passes_token_by_token(cache, model, store, site):
    dictionary = random_dictionary(TopK(5), d=D, d_sae=64)
    found = values(measure(cache, model, store, dictionary, site))
    expected = slow(model, store, site, lambda acts: dictionary(acts.flatten(0, 1)).view(acts.shape))
    clean, spliced, kl = expected.mean(0).tolist()
    assert found["CE clean"] == pytest.approx(clean, rel=1e-5)
    assert found["CE spliced"] == pytest.approx(spliced, rel=1e-5)
    assert found["CE increase"] == pytest.approx(spliced - clean, rel=1e-3, abs=1e-5)
    assert found["KL"] == pytest.approx(kl, rel=1e-3)
    zero, mean = (
        slow(model, store, site, function).mean(0)
        for function in (torch.zeros_like, lambda acts: store.statistics(site).mean.float().expand_as(acts))
    )
    assert found["CE ablated", "zero"] == pytest.approx(float(zero[1]), rel=1e-5)
    assert found["CE ablated", "mean"] == pytest.approx(float(mean[1]), rel=1e-5)
    assert found["KL recovered", "zero"] == pytest.approx(1 - kl / float(zero[2]), rel=1e-3)


def test_permuted_and_rescaled_latents_have_the_same_effect(cache, model, store):
    plain = random_dictionary(ReLU(), d=D, d_sae=64)
    factors = 0.3 + 2 * torch.rand(64, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    changed = copy.deepcopy(plain)
    with torch.no_grad():
        changed.W_enc.copy_((plain.W_enc * factors)[:, order])
        changed.b_enc.copy_((plain.b_enc * factors)[order])
        changed.W_dec.copy_((plain.W_dec / factors[:, None])[order])
    expected, found = (measure(cache, model, store, dictionary) for dictionary in (plain, changed))
    for name, number in expected.items():
        for field in ("value", "low", "high"):
            value, wanted = getattr(found[name], field), getattr(number, field)
            assert value == (None if wanted is None else pytest.approx(wanted, rel=1e-3, abs=1e-4)), (name, field)


def test_worse_reconstructions_have_more_effect_and_intervals_hold_the_value(cache, model, store):
    last = -1.0
    for c in (0.9, 0.6, 0.2):
        numbers = measure(cache, model, store, linear(c * torch.eye(D), torch.zeros(D)), MLP)
        assert numbers["KL"].value > last
        last = numbers["KL"].value
        assert numbers["KL"].low < numbers["KL"].value < numbers["KL"].high
    n_documents = len(store.document_ids().view(-1)[store.mask(MLP)].unique())
    assert n_documents > 10
    assert f"of {n_documents} documents" in numbers["CE clean"].note


def test_the_resampled_activation_is_always_another_one_and_all_others_are_as_likely():
    usable = torch.tensor([2, 3, 5, 8, 13])
    index = usable.repeat(4000)
    drawn = others(index, usable, torch.Generator().manual_seed(0))
    assert not bool((drawn == index).any())
    counts = torch.bincount(drawn[index == 5], minlength=14)[usable].double() / 4000
    assert counts[2] == 0
    torch.testing.assert_close(counts[[0, 1, 3, 4]], torch.full((4,), 0.25, dtype=torch.float64), atol=0.03, rtol=0)


def test_resample_ablation_has_the_right_lengths_and_is_the_same_for_every_dictionary_of_a_seed(cache, model, store):
    one = values(measure(cache, model, store, perfect(D), MLP))
    two = values(measure(cache, model, store, constant(torch.zeros(D)), MLP))
    other = values(measure(cache, model, store, perfect(D), MLP, seed=1))
    assert one["CE ablated", "resample"] == two["CE ablated", "resample"]
    assert one["CE ablated", "resample"] != other["CE ablated", "resample"]


def test_the_clean_pass_and_the_ablations_are_run_once_for_all_dictionaries(model, store, tmp_path, monkeypatch):
    passes = []
    final = Splice.final
    monkeypatch.setattr(Splice, "final", lambda self, *a: passes.append(1) or final(self, *a))
    fresh = ResultCache(tmp_path / "fresh")
    measure(fresh, model, store, perfect(D))
    first = len(passes)
    measure(fresh, model, store, constant(torch.zeros(D)))
    assert first == 5  # clean, three ablations, and the dictionary, in one batch
    assert len(passes) - first == 1


def test_chunks_of_logits_and_batches_of_rows_do_not_matter(model, store, tmp_path, monkeypatch):
    dictionary = random_dictionary(TopK(5), d=D, d_sae=64)
    whole = measure(ResultCache(tmp_path / "whole"), model, store, dictionary)
    monkeypatch.setattr("sae.evaluation.downstream.LOGITS_PER_CHUNK", 17 * model.shape.d_vocab)
    monkeypatch.setattr("sae.evaluation.suite.effects.TOKENS_PER_BATCH", 5 * CONTEXT)
    parts = measure(ResultCache(tmp_path / "parts"), model, store, dictionary)
    for name, number in whole.items():
        if name not in (("CE ablated", "resample"), ("CE recovered", "resample"), ("KL recovered", "resample")):
            assert parts[name].value == (None if number.value is None else pytest.approx(number.value, rel=1e-5, abs=1e-6)), name
    assert parts["CE ablated", "resample"].value == pytest.approx(whole["CE ablated", "resample"].value, rel=0.2)


def test_isolated_documents_are_kept_apart_in_the_spliced_passes_too(model, tmp_path):
    store = captured(tmp_path / "isolated", model, isolated=True)
    found = values(measure(ResultCache(tmp_path / "cache"), model, store, perfect(D)))
    tokens, ids = store.tokens().long(), store.document_ids()
    mask = store.mask(RESID).view(-1, CONTEXT)[:, :-1]
    log_p = model.run(tokens, document_ids=ids)[:, :-1].log_softmax(-1)
    expected = -log_p.gather(2, tokens[:, 1:, None])[..., 0][mask].double().mean()
    assert found["CE clean"] == pytest.approx(float(expected), rel=1e-5)
    assert found["CE increase"] == pytest.approx(0, abs=1e-5)


def test_a_transcoder_takes_the_place_of_the_site_that_it_explains(cache, model, store):
    dictionary = random_dictionary(TopK(5), d=D, d_sae=64, d_out=D, skip=True, apply_b_dec_to_input=False)
    dictionary.provenance["target_site"] = MLP
    found = values(measure(cache, model, store, dictionary))
    tokens, source, target = store.tokens().long(), model.site(RESID), model.site(MLP)
    mask = (store.mask(RESID) & store.mask(MLP)).view(-1, CONTEXT)
    acts = model.capture(tokens, [source])[source]
    explained = dictionary(acts.flatten(0, 1)).view(acts.shape).detach()
    edit = Edit.replace(target, lambda was: torch.where(mask[..., None], explained, was))
    log_p = model.run(tokens, [edit])[:, :-1].log_softmax(-1)
    expected = -log_p.gather(2, tokens[:, 1:, None])[..., 0][mask[:, :-1]].double().mean()
    assert found["CE spliced"] == pytest.approx(float(expected), rel=1e-5)


def test_terms_of_logits_by_chunk_equal_softmax_in_float64(model):
    splice = Splice(model, model.site(RESID))
    generator = torch.Generator().manual_seed(8)
    clean, other = torch.randn(23, D, generator=generator), torch.randn(23, D, generator=generator)
    targets = torch.randint(model.shape.d_vocab, (23,), generator=generator)
    terms = prediction_terms(splice, clean, [other, clean], targets)
    p, q = (model.resume(final[None], splice.last)[0].double().log_softmax(-1) for final in (clean, other))
    torch.testing.assert_close(terms[0, :, 0].double(), -p.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms[1, :, 0].double(), -q.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms[1, :, 1].double(), (p.exp() * (p - q)).sum(1), rtol=1e-4, atol=1e-5)
    assert not terms[0, :, 1].any()
    assert terms[2, :, 1].abs().max() < 1e-6
    assert torch.equal(terms[2, :, 0], terms[0, :, 0])


def test_the_last_position_of_a_row_is_replaced_but_predicts_nothing(model):
    splice, generator = Splice(model, model.site(RESID)), torch.Generator().manual_seed(1)
    acts = torch.randn(2, 5, D, generator=generator)
    use = torch.tensor([[False, True, True, False, True], [False, False, False, False, True]])
    rows = Rows(torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]), acts, use)
    assert rows.next_tokens.tolist() == [3, 4]
    replacement = torch.randn(4, D, generator=generator)
    before, moved = acts.clone(), acts.clone()
    moved[use] = replacement
    expected = model.carry(moved, splice.site, splice.last)[0, 1:3]
    torch.testing.assert_close(splice.final(rows, replacement), expected)
    assert torch.equal(rows.acts, before)


def test_another_model_than_the_store_s_and_rows_without_predictions_are_refused(cache, store, model, monkeypatch):
    with pytest.raises(ConfigError, match="model must be the one that the store was captured from"):
        measure(cache, tiny_language_model(seed=9), store, perfect(D))
    only_last = torch.zeros(store.n_tokens, dtype=torch.bool)
    only_last[CONTEXT - 1 :: CONTEXT] = True
    monkeypatch.setattr(type(store), "mask", lambda self, site: only_last)
    with pytest.raises(ConfigError, match="a used token before their last"):
        measure(cache, model, store, perfect(D), config=dataclasses.replace(EVERYTHING, n_tokens=7))


@pytest.mark.slow
@pytest.mark.real_model
def test_the_default_model_in_its_own_dtype_is_spliced_without_loss_and_ablated_with_great_damage(tmp_path):
    import sae

    real = LanguageModel.load(sae.default_model())
    site = "blocks.15.hook_resid_post"
    config = CaptureConfig(sites=(site,), n_tokens=12 * 32, context=32, dtype="float32" if real.dtype == torch.float32 else "bfloat16")
    lines = ["My fellow citizens, the state of the Union is strong because the people are free, and the work of peace goes on."] * 20
    for _ in collect(real, from_texts([f"{i}: {line}" for i, line in enumerate(lines)]), tmp_path / "acts", config):
        pass
    store = ActivationStore.open(tmp_path / "acts")
    found = values(measure(ResultCache(tmp_path / "cache"), real, store, perfect(576), site))
    tokens, mask = store.tokens().long(), store.mask(site).view(-1, 32)[:, :-1]
    log_p = real.run(tokens)[:, :-1].log_softmax(-1)
    expected = -log_p.gather(2, tokens[:, 1:, None])[..., 0][mask].double().mean()
    assert found["CE clean"] == pytest.approx(float(expected), rel=0.01)
    assert found["KL"] == pytest.approx(0, abs=1e-4)
    for ablation in ("zero", "mean", "resample"):
        assert found["CE ablated", ablation] > found["CE clean"] + 2
        assert found["CE recovered", ablation] == pytest.approx(1, abs=1e-3)


def test_every_prediction_is_added_to_the_document_of_the_token_that_makes_it(cache, model, store):
    inputs = Inputs(cache, 0, dictionary=perfect(D), store=store, sites=(RESID,), site=RESID, model=model)
    found = torch.cat([unit for _, unit, _ in Passage(inputs, sample(inputs, 10**6)).batches()])
    use, documents = store.mask(RESID).view(-1, CONTEXT), store.document_ids()
    numbers = documents[use].unique()
    assert torch.equal(found, torch.searchsorted(numbers, documents[:, :-1][use[:, :-1]]))
