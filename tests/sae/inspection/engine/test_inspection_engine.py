"""The engine against dense oracles, its compiled loops against the plain ones, and what it refuses."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.dictionaries.codes import SparseCodes
from sae.errors import CacheError, ConfigError, FormatError
from sae.inspection import FeatureIndex, IndexConfig, loops
from sae.inspection.entries import Entries
from sae.inspection.manifest import work_folder
from sae.storage import lock
from tests.sae.inspection.engine.random_codes import EXACT, random_codes

ROOT = Path(__file__).parents[4]
CASES = st.builds(
    random_codes,
    st.integers(0, 10**6),
    n_rows=st.integers(1, 7),
    d_sae=st.integers(4, 9),
    signed=st.booleans(),
    pursuit=st.booleans(),
    masked=st.sampled_from([0.0, 0.2, 0.9]),
)


@settings(deadline=None, max_examples=12)
@given(CASES)
def test_views_statistics_and_relations_are_those_of_the_dense_codes(tmp_path_factory, case):
    index, z = case.build(tmp_path_factory.mktemp("index") / "index"), case.dense
    used = case.used.numpy()
    statistics, n = index.statistics, int(used.sum())
    assert index.n_tokens == n
    for token in range(len(z)):
        found = index.at_token(token)
        assert sorted(found.ids.tolist()) == np.flatnonzero(z[token]).tolist()
        np.testing.assert_array_equal(found.values, z[token, found.ids].astype(np.float32))
    for i in range(index.d_sae):
        entries, fired = index.entries(i), z[used, i][z[used, i] != 0]
        assert entries.ids.tolist() == np.flatnonzero(z[:, i]).tolist()
        np.testing.assert_array_equal(entries.values, z[entries.ids, i].astype(np.float32))
        assert statistics.n_active[i] == len(fired)
        if len(fired):
            assert (statistics.max[i], statistics.min[i]) == (fired.max(), fired.min())
            np.testing.assert_allclose(statistics.mean[i], fired.mean())
            np.testing.assert_allclose(statistics.mean_square[i], (fired**2).mean())
            np.testing.assert_allclose(statistics.quantile_50[i], np.median(fired))
    for name, table in (("coactivation", (z[used] != 0).astype(float)), ("correlation", z[used])):
        check_relation(index, name, table, (z[used] != 0).astype(int))


def check_relation(index, name, table, fires):
    together, n = fires.T @ fires, len(table)
    deviation = table - table.mean(axis=0) if n else table
    spread = np.sqrt((deviation**2).sum(axis=0))
    flat = spread < 1e-6 * np.sqrt(np.maximum((table**2).sum(axis=0), 1e-30))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(flat[:, None] | flat[None], 0.0, deviation.T @ deviation / np.outer(spread, spread))
    for i in range(index.d_sae):
        candidates = [j for j in range(index.d_sae) if j != i and together[i, j]]
        found = index.record(i).related[name]
        assert len(found) == min(len(candidates), EXACT.n_neighbours)
        assert sorted(np.round([f.value for f in found], 7), reverse=True) == sorted(np.round([f.value for f in found], 7).tolist())[::-1]
        np.testing.assert_allclose([f.value for f in found], sorted((r[i, j] for j in candidates), reverse=True)[: len(found)], atol=1e-9)
        for f in found:
            assert f.n_together == together[i, f.index]
            np.testing.assert_allclose(f.value, r[i, f.index], atol=1e-9)


@settings(deadline=None, max_examples=12)
@given(CASES)
def test_compiled_loops_and_plain_numpy_give_the_same_index(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "available", lambda: False)
        plain = case.build(folder / "plain")
    fast = case.build(folder / "fast", batch=100)
    assert plain.reader.arrays.keys() == fast.reader.arrays.keys()
    for name, array in plain.reader.arrays.items():
        other = fast.reader.arrays[name]
        assert array.dtype == other.dtype, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, other, rtol=1e-9, atol=1e-9, err_msg=name)
        elif not name.endswith(("coactivation_ids", "correlation_ids", "coactivation_counts", "correlation_counts")):  # ties to rounding
            np.testing.assert_array_equal(array, other, err_msg=name)
    for name in [n for n in plain.manifest.files if n.startswith("by_")]:
        assert (folder / "plain" / name).read_bytes() == (folder / "fast" / name).read_bytes()


@settings(deadline=None, max_examples=12)
@given(CASES)
def test_passages_of_every_group_are_what_they_say(tmp_path_factory, case):
    index, z = case.build(tmp_path_factory.mktemp("index") / "index"), case.dense
    context, documents = case.tokens.shape[1], case.documents.flatten().tolist()
    for i in range(index.d_sae):
        record = index.record(i)
        groups = [record.examples, record.negative_examples, record.random_examples, record.near_miss_examples]
        for group in (*groups, *(interval.examples for interval in record.intervals)):
            assert len({e.document for e in group}) == len(group)
            for e in group:
                flat = e.row * context + e.position
                assert e.value == np.float32(z[flat, i])
                assert (e.document, bool(case.used[flat])) == (documents[flat], True)
        assert len(record.random_examples) > 0 or not record.alive
        assert index.examples(i, "near_miss") == record.near_miss_examples
        driving = {d.token_id for d in record.driving_tokens}
        for e in record.near_miss_examples:
            assert (e.value, int(case.tokens[e.row, e.position]) in driving) == (0.0, True)


def test_near_misses_are_found_where_there_are_any():
    missed = found = 0
    for seed in range(6):
        case = random_codes(seed, n_rows=20, pursuit=False, signed=False)
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            index, z = case.build(Path(folder) / "index"), case.dense
            for i in range(index.d_sae):
                driving = [d.token_id for d in index.record(i).driving_tokens]
                silent = case.used.numpy() & (z[:, i] == 0) & np.isin(case.tokens.flatten().numpy(), driving)
                missed += bool(silent.any())
                found += bool(index.record(i).near_miss_examples)
    assert found == missed > 20


@settings(deadline=None, max_examples=8)
@given(CASES, st.integers(1, 60))
def test_documents_hold_their_tokens_and_all_that_fires_in_them(tmp_path_factory, case, segment_tokens):
    index, z = case.build(tmp_path_factory.mktemp("index") / "index", segment_tokens=segment_tokens), case.dense
    flat = case.documents.flatten().numpy()
    assert index.document_ids.tolist() == np.unique(flat).tolist()
    for document in index.document_ids.tolist():
        view = index.document(document)
        assert view.token_index.tolist() == np.flatnonzero(flat == document).tolist()
        assert view.texts == tuple(f"#{i}" for i in case.tokens.flatten()[view.token_index].tolist())
        assert len(view.start) == len(view.texts) + 1
        assert (view.steps is None) == (not case.pursuit)
        for t, token in enumerate(view.token_index.tolist()):
            part, single = slice(int(view.start[t]), int(view.start[t + 1])), index.at_token(token)
            steps = None if view.steps is None else view.steps[part]
            assert_same(Entries(view.latents[part], view.values[part], steps), single)
            assert len(single.ids) == (z[token] != 0).sum()
    for bad in (10**6, -1, "3", 1.0, True):
        with pytest.raises(ConfigError, match="document must be one of"):
            index.document(bad)


def assert_same(one, other):
    assert one.ids.tolist() == other.ids.tolist()
    assert one.values.tolist() == other.values.tolist()
    assert (None if one.steps is None else one.steps.tolist()) == (None if other.steps is None else other.steps.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_the_places_of_first_selection(tmp_path, seed):
    case = random_codes(seed, n_rows=8)
    index = case.build(tmp_path / "index")
    for r, token in enumerate(np.flatnonzero(case.used.numpy()).tolist()):
        order, total = [], defaultdict(float)
        for s in range(int(case.codes.counts[r])):
            latent = int(case.codes.indices[r, s])
            order += [(latent, s)] if latent not in total else []
            total[latent] += float(case.codes.values[r, s])
        found = index.at_token(token)
        kept = [(latent, s) for latent, s in order if np.float32(total[latent]) != 0]
        assert list(zip(found.ids.tolist(), found.steps.tolist(), strict=True)) == kept


def test_both_views_take_at_most_12_bytes_a_non_zero(tmp_path):
    for pursuit in (False, True):
        case = random_codes(0, n_rows=40, context=64, d_sae=600, k=32, pursuit=False)
        index = case.build(
            tmp_path / str(pursuit), config=IndexConfig(), segment_tokens=1024, kind="coefficient" if pursuit else "activation"
        )
        n_bytes = sum(size for name, size in index.manifest.files.items() if name.startswith("by_"))
        heads = 8 * index.d_sae + 4 * case.tokens.numel() + 500 * len(index.manifest.segments)  # starts and headers
        assert (n_bytes - heads) / index.manifest.n_entries <= (11.1 if pursuit else 10.1)


def test_codes_that_do_not_fit_the_tokens_are_refused(tmp_path):
    case = random_codes(1)
    codes = case.codes
    short, doubled = type(case)(case.tokens, case.documents, case.used, codes[:-1], True), SparseCodes.concatenate([codes, codes[:1]])
    with pytest.raises(ConfigError, match=f"codes must have a row for every token that is used, but ended after {len(codes) - 1}"):
        short.build(tmp_path / "a")
    with pytest.raises(ConfigError, match=f"codes must have a row for every token that is used, {len(codes)}, got more"):
        type(case)(case.tokens, case.documents, case.used, doubled, True).build(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"codes must be over d_sae=9 latents, got 8"):
        case.build(tmp_path / "c", d_sae=9)
    values = codes.values.clone()
    values[0, 0] = float("nan")
    with pytest.raises(FormatError, match=r"not finite \(tokens .*\): nan"):
        type(case)(case.tokens, case.documents, case.used, SparseCodes(codes.indices, values, codes.counts.clamp(min=1), 8), True).build(
            tmp_path / "d"
        )
    indices = codes.indices.clone()
    indices[2, 0] = 8
    with pytest.raises(ConfigError, match=r"codes must name latents in 0\.\.d_sae-1=7, got 8"):
        type(case)(case.tokens, case.documents, case.used, SparseCodes(indices, codes.values, codes.counts, 8), True).build(tmp_path / "e")
    with pytest.raises(ConfigError, match="used must say so of each of the 54 tokens"):
        case.build(tmp_path / "f", used=torch.ones(3, dtype=torch.bool))
    assert not any((tmp_path / name).exists() for name in "abcdef")


def test_two_builds_of_one_index_at_once_are_refused(tmp_path):
    work = work_folder(tmp_path / "index")
    with lock(work / "lock"), pytest.raises(CacheError, match="held by another process"):
        random_codes(0).build(tmp_path / "index")
    random_codes(0).build(tmp_path / "index")


def test_reading_an_index_needs_no_torch_and_opens_at_once(tmp_path):
    random_codes(0).build(tmp_path / "index")
    program = (
        "import sys\nfrom sae.inspection.index import FeatureIndex\n"
        f"index = FeatureIndex.open({str(tmp_path / 'index')!r})\n"
        "index.record(0), index[0]._repr_html_(), index.document(int(index.document_ids[0])), index.entries(1), index.map, index.statistics\n"
        "index.verify()\n"
        "print([m for m in ('torch', 'numba', 'transformer_lens', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_index_is_built_without_numba(tmp_path):
    program = (
        "import sys\nsys.modules['numba'] = None\nfrom pathlib import Path\n"
        "from tests.sae.inspection.engine.random_codes import random_codes\n"
        f"index = random_codes(0).build(Path({str(tmp_path / 'plain')!r}))\n"
        "index.verify()\nprint(index.statistics.n_active.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(random_codes(0).build(tmp_path / "index").statistics.n_active.tolist())


def test_the_benchmark_builds_an_index_for_other_programs(tmp_path):
    from scripts.bench_index import K, benchmark_index

    index = FeatureIndex.open(benchmark_index(tmp_path / "index", n_tokens=1024, d_sae=256))
    assert (index.n_tokens, index.d_sae, index.manifest.n_entries) == (1024, 256, 1024 * K)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert index.record(int(index.statistics.n_active.argmax())).related.keys() >= {"decoder_cosine", "coactivation", "correlation"}
