"""The index against dense oracles that loop over everything."""

import itertools
import json
import math
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.inspection import FeatureIndex, FeatureRecord, IndexConfig, build_index, coactive, loops, segments, telling_features, top_examples
from sae.inspection.build import IndexProgress
from tests.sae.inspection.planted_store import (
    SITE,
    as_numpy,
    built,
    dense_codes,
    random_autoencoder,
    random_model,
    random_pursuit,
    random_store,
)

DICTIONARIES = {"autoencoder": random_autoencoder, "pursuit": random_pursuit}


@pytest.fixture(scope="module", params=list(DICTIONARIES))
def case(request, tmp_path_factory):
    store, dictionary = random_store(), DICTIONARIES[request.param]()
    folder = tmp_path_factory.mktemp("index") / "index"
    labels = {int(d): {"year": 1900 + int(d)} for d in store.documents.unique()} | {999_999: {"year": 0}}
    index = built(folder, store, dictionary, model=random_model(), labels=labels, name="small")
    return index, store, dictionary, dense_codes(store, dictionary)


def slow_window(store, token, before, after):
    ids, documents, _ = as_numpy(store)
    row, position = divmod(token, ids.shape[1])
    start = stop = position
    while start > 0 and position - start < before and documents[row, start - 1] == documents[row, position]:
        start -= 1
    while stop + 1 < ids.shape[1] and stop - position < after and documents[row, stop + 1] == documents[row, position]:
        stop += 1
    return row, position, start, stop + 1


def slow_top(store, values, n, per_document=1):
    """All positive tokens, strongest first; a document's first ones; the first of equal windows."""
    ids, documents, _ = as_numpy(store)
    ranked = sorted((t for t in range(values.size) if values[t] > 0), key=lambda t: (-values[t], t))
    taken, seen, chosen = Counter(), set(), []
    for token in ranked:
        document = documents.reshape(-1)[token]
        taken[document] += 1
        if taken[document] > per_document:
            continue
        row, position, start, stop = slow_window(store, token, 5, 2)
        window = (position - start, tuple(ids[row, start:stop].tolist()))
        if window not in seen:
            seen.add(window)
            chosen.append(token)
    return chosen[:n]


def test_counts_density_max_and_mean_are_those_of_the_dense_codes(case):
    index, store, _, dense = case
    _, documents, used = as_numpy(store)
    statistics = index.statistics
    assert index.n_tokens == len(used)
    for latent in range(index.d_sae):
        values = dense[used, latent]
        fired = values[values != 0]
        assert statistics.n_active[latent] == len(fired)
        assert statistics.density[latent] == len(fired) / len(used)
        assert statistics.n_documents[latent] == len(set(documents.reshape(-1)[used][values != 0].tolist()))
        if len(fired):
            assert statistics.max[latent] == pytest.approx(fired.max(), rel=1e-5)
            assert statistics.min[latent] == pytest.approx(fired.min(), rel=1e-5)
            assert statistics.mean[latent] == pytest.approx(fired.astype(np.float64).mean(), rel=1e-5)


def test_entries_are_the_non_zero_dense_codes_by_latent_and_by_token(case):
    index, _, _, dense = case
    for latent in range(index.d_sae):
        entries = index.entries(latent)
        assert entries.ids.tolist() == np.flatnonzero(dense[:, latent]).tolist()
        np.testing.assert_allclose(entries.values, dense[entries.ids, latent], rtol=1e-5)
    for token in range(len(dense)):
        entries = index.at_token(token)
        assert sorted(entries.ids.tolist()) == np.flatnonzero(dense[token]).tolist()
        np.testing.assert_allclose(entries.values, dense[token, entries.ids], rtol=1e-5)


def test_strongest_passages_are_exact_one_per_document_and_without_near_duplicates(case):
    index, store, _, dense = case
    for latent in range(index.d_sae):
        column = np.zeros(len(dense), np.float32)
        column[index.entries(latent).ids] = index.entries(latent).values
        for sign, name in ((1, "examples"), (-1, "negative_examples")):
            found = [e.row * 16 + e.position for e in getattr(index.record(latent), name)]
            assert found == slow_top(store, sign * column, 20)
        more = top_examples(index, latent, 7, per_document=3, before=2, after=1)
        assert [e.row * 16 + e.position for e in more] == slow_top(store, column, 7, per_document=3)


def test_an_example_shows_the_tokens_and_values_of_its_window(case):
    index, store, _, dense = case
    ids, documents, _ = as_numpy(store)
    config, shown = index.manifest.config, 0
    for latent in range(index.d_sae):
        record = index.record(latent)
        for e in itertools.chain(record.examples, record.negative_examples, *(i.examples for i in record.intervals)):
            row, position, start, stop = slow_window(store, e.row * 16 + e.position, config.before, config.after)
            assert list(e.tokens) == [f" w{i}" for i in ids[row, start:stop]]
            np.testing.assert_allclose(e.values, dense[row * 16 + start : row * 16 + stop, latent], rtol=1e-5)
            assert (e.peak, e.document) == (position - start, documents[row, position])
            assert e.labels == {"year": 1900 + e.document}
            shown += 1
    assert shown > 100


def test_intervals_partition_the_positive_values_and_samples_lie_in_theirs(case):
    index, _, _, _ = case
    for latent in range(index.d_sae):
        record, values = index.record(latent), index.entries(latent).values.astype(np.float64)
        if record.max <= 0:
            assert record.intervals == ()
            continue
        edges = [record.max * j / 5 for j in range(5)] + [record.max]
        for j, interval in zip(range(4, -1, -1), record.intervals, strict=True):
            within = values[(values > edges[j]) & (values <= edges[j + 1])]
            assert (interval.low, interval.high) == (edges[j], edges[j + 1])
            assert interval.n_active == len(within)
            samples = [e.value for e in interval.examples]
            assert (len(samples) > 0) == (len(within) > 0)
            assert len(samples) <= min(4, len(within))
            assert len({i.document for i in interval.examples}) == len(samples)
            assert samples == sorted(samples, reverse=True)
            assert set(np.float32(samples).tolist()) <= set(within.astype(np.float32).tolist())
        assert sum(i.n_active for i in record.intervals) == (values > 0).sum()


def test_histogram_and_quantiles_are_those_of_the_values(case):
    index, _, _, _ = case
    for latent in range(index.d_sae):
        record, values = index.record(latent), index.entries(latent).values.astype(np.float64)
        assert sum(record.histogram.counts) == len(values) == record.n_active
        assert 0.0 in record.histogram.edges or min(abs(e) for e in record.histogram.edges) < 1e-12
        if len(values):
            assert list(record.histogram.counts) == np.histogram(values, np.array(record.histogram.edges))[0].tolist()
            assert record.quantiles["0.5"] == pytest.approx(np.median(values))
        else:
            assert record.quantiles == {}


def test_driving_tokens_have_the_mass_and_precision_of_a_plain_count(case):
    index, store, _, _ = case
    ids, _, used = as_numpy(store)
    occurrences = Counter(ids.reshape(-1)[used].tolist())
    for latent in range(index.d_sae):
        mass, active = defaultdict(float), Counter()
        entries = index.entries(latent)
        for token, value in zip(entries.ids, entries.values, strict=True):
            mass[int(ids.reshape(-1)[token])] += abs(float(value))
            active[int(ids.reshape(-1)[token])] += 1
        found = index.record(latent).driving_tokens
        assert [d.token_id for d in found] == [i for i, _ in sorted(mass.items(), key=lambda item: (-item[1], item[0]))[:12]]
        for d in found:
            assert (d.n_active, d.n_occurrences) == (active[d.token_id], occurrences[d.token_id])
            assert d.precision == active[d.token_id] / occurrences[d.token_id]
            assert d.share == pytest.approx(mass[d.token_id] / sum(mass.values()))


def test_neighbours_and_logit_effects_are_those_of_a_dense_product(case):
    index, _, dictionary, _ = case
    atoms = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1)
    cosines = (atoms @ atoms.T).fill_diagonal_(-2)
    effects = random_model().logit_effects(atoms)
    for latent in range(index.d_sae):
        record = index.record(latent)
        assert [n.index for n in record.neighbours] == cosines[latent].argsort(descending=True)[:16].tolist()
        assert [e.token_id for e in record.promoted] == effects[latent].argsort(descending=True)[:12].tolist()
        assert [e.token_id for e in record.suppressed] == effects[latent].argsort()[:12].tolist()
        assert record.promoted[0].effect == pytest.approx(effects[latent].max().item(), rel=1e-5)
        assert "unit length" in record.source.effects_convention


def test_coactive_latents_are_counted_exactly(case):
    index, _, _, dense = case
    together = (dense != 0).astype(int).T @ (dense != 0).astype(int)
    for latent in range(index.d_sae):
        found = coactive(index, latent, 4)
        expected = sorted((j for j in range(index.d_sae) if j != latent and together[latent, j]), key=lambda j: (-together[latent, j], j))[
            :4
        ]
        assert found.ids.tolist() == expected
        assert found.n_together.tolist() == [together[latent, j] for j in expected]


def test_pursuit_keeps_the_order_of_selection_negative_values_and_first_steps(tmp_path):
    store, dictionary = random_store(), random_pursuit()
    index = built(tmp_path / "index", store, dictionary)
    steps = dictionary.pursue(store.acts).steps.detach()
    negative, counts = 0, defaultdict(Counter)
    for token in np.flatnonzero(~store.masked.numpy()).tolist():
        order, values = [], defaultdict(float)
        for s in range(int(steps.counts[token])):
            latent = int(steps.indices[token, s])
            if latent not in values:
                order.append((latent, s))
            values[latent] += float(steps.values[token, s])
        entries = index.at_token(token)
        assert list(zip(entries.ids.tolist(), entries.steps.tolist(), strict=True)) == order
        np.testing.assert_allclose(entries.values, [values[latent] for latent, _ in order], rtol=1e-4, atol=1e-6)
        negative += sum(v < 0 for v in values.values())
        for latent, step in order:
            counts[latent][step] += 1
    assert negative > 50
    assert any(
        step < len(order) and step != place for token in range(224) for place, step in enumerate(index.at_token(token).steps.tolist())
    )
    for latent in range(index.d_sae):
        assert list(index.record(latent).steps) == [counts[latent][s] for s in range(index.manifest.n_steps)]
    assert built(tmp_path / "other", store, random_autoencoder()).record(0).steps == ()


def test_the_scatter_in_small_chunks_is_the_scatter_in_one(case, tmp_path, monkeypatch):
    index, store, dictionary, _ = case
    monkeypatch.setattr(loops, "available", lambda: False)
    monkeypatch.setattr(segments, "CHUNK", 7)
    chunked = built(tmp_path / "index", store, dictionary)
    for latent in range(index.d_sae):
        one, other = index.entries(latent), chunked.entries(latent)
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(one.values, other.values, rtol=1e-5)
        assert (one.steps is None) == (other.steps is None)
        assert one.steps is None or one.steps.tolist() == other.steps.tolist()


def test_dead_latents_have_a_record_that_says_so(case):
    index, _, dictionary, _ = case
    dead = [i for i in range(index.d_sae) if index.statistics.n_active[i] == 0]
    if dictionary.__class__.__name__ == "Autoencoder":
        assert {0, 1, 2} <= set(dead)
    for latent in dead:
        record = index.record(latent)
        assert not record.alive
        assert record.examples == record.driving_tokens == record.intervals == ()
        assert 0 < record.density_high < 0.05
        assert "Dead on this corpus" in index[latent].html()


def test_a_record_goes_through_json_and_back(case):
    index, _, _, _ = case
    for latent in range(index.d_sae):
        record = index.record(latent)
        assert from_json(FeatureRecord, json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("bad", [20, 99_999, -1, "3", 2.0, True, None, np.bool_(True)])
def test_a_bad_latent_is_named_with_what_is_allowed(case, bad):
    index, _, _, _ = case
    with pytest.raises(ConfigError, match=r"latent must be .*in 0\.\.d_sae-1=19, got"):
        index[bad]


def test_numpy_integers_are_latents_and_iteration_ends(case):
    index, _, _, _ = case
    assert index[np.int64(3)].record == index.record(3)
    assert [card.record.index for card in index] == list(range(20))
    assert len(index) == 20


def test_a_bad_token_site_batch_or_setting_is_refused_before_any_work(case, tmp_path):
    index, store, dictionary, _ = case
    with pytest.raises(ConfigError, match=r"token must be in 0\.\.223, got 224"):
        index.at_token(224)
    with pytest.raises(ConfigError, match=r"site must be one of blocks\.1\.hook_resid_post, got 'nowhere'"):
        build_index(store, "nowhere", dictionary, tmp_path / "x")
    with pytest.raises(ConfigError, match="batch_tokens must be a positive integer, got 0"):
        build_index(store, SITE, dictionary, tmp_path / "x", batch_tokens=0)
    with pytest.raises(ConfigError, match="n_examples must be an integer of at least 1, got 0"):
        IndexConfig(n_examples=0)
    with pytest.raises(ConfigError, match="vocabulary must have a text for each of the 12 token ids"):
        build_index(store, SITE, dictionary, tmp_path / "x", vocabulary=["a"])
    assert not (tmp_path / "x").exists()


def test_an_interrupted_build_leaves_no_index_and_the_next_one_goes_on(tmp_path):
    folder, store = tmp_path / "deep" / "index", random_store()
    build = build_index(store, SITE, random_autoencoder(), folder, batch_tokens=20, segment_tokens=80)
    assert next(build).stage == "encode"
    build.close()
    assert [path.name for path in folder.parent.iterdir()] == [".building-index"]
    with pytest.raises(FormatError, match=r"holds no feature index .*a build of it was not finished, run it again"):
        FeatureIndex.open(folder)
    built(folder, store, random_autoencoder())
    assert [path.name for path in folder.parent.iterdir()] == ["index"]

    class Failing(type(random_autoencoder())):
        def encode(self, acts):
            raise RuntimeError("stop")

    dictionary = random_autoencoder()
    dictionary.__class__ = Failing
    with pytest.raises(RuntimeError, match="stop"):
        built(tmp_path / "other" / "index", store, dictionary)
    assert not (tmp_path / "other" / "index").exists()


def test_the_same_build_is_found_again_and_another_is_refused(tmp_path):
    store, dictionary = random_store(), random_autoencoder()
    built(tmp_path / "index", store, dictionary)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "index").rglob("*")}
    options = {"segment_tokens": 80, "config": IndexConfig(value_dtype="float32")}
    assert list(build_index(store, SITE, dictionary, tmp_path / "index", batch_tokens=5, **options)) == [IndexProgress("found", 1, 1)]
    for changed in ({"config": IndexConfig(seed=1)}, {"name": "other"}, {"vocabulary": [str(i) for i in range(12)]}):
        with pytest.raises(FormatError, match="holds the index of something else"):
            list(build_index(store, SITE, dictionary, tmp_path / "index", **options | changed))
    with pytest.raises(FormatError, match="holds the index of something else"):
        list(build_index(store, SITE, random_autoencoder(seed=9), tmp_path / "index", **options))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "index").rglob("*")} == before
    (tmp_path / "papers").mkdir()
    with pytest.raises(FormatError, match="holds no feature index"):
        list(build_index(store, SITE, dictionary, tmp_path / "papers"))


def test_open_refuses_a_foreign_digest_when_asked(tmp_path):
    store, dictionary = random_store(), random_autoencoder()
    index = built(tmp_path / "index", store, dictionary)
    FeatureIndex.open(tmp_path / "index", store_digest=store.digest, dictionary_digest=dictionary.digest)
    for name in ("store", "dictionary"):
        with pytest.raises(FormatError, match=f"is the index of another {name}"):
            FeatureIndex.open(tmp_path / "index", **{f"{name}_digest": "0" * 64})
    assert index.digest == FeatureIndex.open(tmp_path / "index").digest


@pytest.mark.parametrize(
    "file", ["summary.safetensors", "tokens.safetensors", "by_latent/entries.safetensors", "by_token/00001.safetensors", "vocabulary.json"]
)
def test_a_truncated_or_missing_file_is_named(tmp_path, file):
    built(tmp_path / "index", random_store(), random_autoencoder())
    path = tmp_path / "index" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=f"{path.name} has .* bytes instead of"):
        FeatureIndex.open(tmp_path / "index")
    path.unlink()
    with pytest.raises(FormatError, match=f"{path.name} is missing"):
        FeatureIndex.open(tmp_path / "index")


def test_a_damaged_or_newer_manifest_is_named(tmp_path):
    built(tmp_path / "index", random_store(), random_autoencoder())
    path = tmp_path / "index" / "manifest.json"
    good = json.loads(path.read_text())
    for change, message in (({"format_version": 3}, "format version 3"), ({"surprise": 1}, "unknown key 'surprise'")):
        path.write_text(json.dumps(good | change))
        with pytest.raises(FormatError, match=message):
            FeatureIndex.open(tmp_path / "index")
    with pytest.raises(FormatError, match="holds no feature index"):
        FeatureIndex.open(tmp_path)


def test_the_summary_bundle_alone_serves_the_cards(case, tmp_path):
    index, _, _, _ = case
    bundle = tmp_path / "bundle"
    shutil.copytree(index.folder, bundle, ignore=shutil.ignore_patterns("by_*"))
    alone = FeatureIndex.open(bundle)
    assert [alone.record(i) for i in range(20)] == [index.record(i) for i in range(20)]
    with pytest.raises(FormatError, match="summary bundle without by_latent/"):
        alone.entries(0)


def test_the_index_does_not_depend_on_the_batch_size_and_its_bytes_repeat(case, tmp_path):
    index, store, dictionary, _ = case
    other = built(tmp_path / "a", store, dictionary, batch_tokens=1000, name="small")
    again = built(tmp_path / "b", store, dictionary, batch_tokens=1000, name="small")
    for file in sorted(p.relative_to(other.folder) for p in other.folder.rglob("*") if p.is_file()):
        assert (other.folder / file).read_bytes() == (again.folder / file).read_bytes(), file
    for latent in range(20):
        assert other.entries(latent).ids.tolist() == index.entries(latent).ids.tolist()
        np.testing.assert_allclose(other.entries(latent).values, index.entries(latent).values, rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1e-7, 3e6], ids=["plain", "tiny", "huge"])
def test_float16_values_are_rounded_to_11_bits_whatever_their_size(tmp_path, factor):
    store, dictionary = random_store(), random_autoencoder()
    with torch.no_grad():
        store.acts.mul_(factor)
        dictionary.b_enc.mul_(factor)
        dictionary.b_dec.mul_(factor)
    exact = built(tmp_path / "exact", store, dictionary)
    half = built(tmp_path / "half", store, dictionary, config=IndexConfig())
    assert half.manifest.value_scale == (1.0 if factor == 1.0 else pytest.approx(factor, rel=10**4))
    assert "1 part in 2048" in half.manifest.precision
    assert "float32, as encoded" in exact.manifest.precision
    for latent in range(20):
        assert half.entries(latent).ids.tolist() == exact.entries(latent).ids.tolist()
        np.testing.assert_allclose(half.entries(latent).values, exact.entries(latent).values, rtol=2**-11)
        for token in half.entries(latent).ids[:3].tolist():
            values = dict(zip(half.at_token(token).ids.tolist(), half.at_token(token).values.tolist(), strict=True))
            assert values[latent] == pytest.approx(half.entries(latent).values[half.entries(latent).ids == token][0], rel=2**-10)


def test_a_store_without_a_usable_token_gives_an_index_of_dead_latents(tmp_path):
    store = random_store()
    store.masked[:] = True
    index = built(tmp_path / "index", store, random_autoencoder())
    assert index.n_tokens == 0
    assert not any(card.record.alive for card in index)
    assert all(math.isfinite(card.record.density_high) for card in index)


def test_telling_features_are_ranked_by_bits_within_the_limits(case):
    index, _, _, _ = case
    statistics = index.statistics
    bits = statistics.token_bits + statistics.next_bits
    found = telling_features(index, 20, min_active=10, max_density=0.5, per_token=1)
    assert [f.bits for f in found] == sorted((f.bits for f in found), reverse=True)
    assert all(statistics.n_active[f.index] >= 10 and statistics.density[f.index] <= 0.5 and f.bits == bits[f.index] for f in found)
    leading = [int(statistics.leading_token[f.index]) for f in found]
    assert len(set(leading)) == len(leading)
    allowed = [i for i in range(20) if statistics.n_active[i] >= 10 and statistics.density[i] <= 0.5]
    assert found[0].index == max(allowed, key=lambda i: (bits[i], -i))
    assert len(found) == len({int(statistics.leading_token[i]) for i in allowed})
    with pytest.raises(ConfigError, match="n must be at least 1, got 0"):
        telling_features(index, 0)
