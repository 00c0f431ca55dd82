"""Search, tables, comparisons and texts against dense oracles, on random small indexes, pursuits with negative values among them."""

import dataclasses
import html.parser
import math
import re
import shutil
import time

import numpy as np
import pytest
import torch

from sae.errors import ConfigError, FormatError
from sae.inspection import FeatureIndex
from sae.inspection.compare import compare
from sae.inspection.encoded import EncodedText
from sae.inspection.listing import strongest
from sae.inspection.query import telling_order
from sae.inspection.search import SearchTable
from sae.inspection.text_features import rank
from tests.sae.inspection import planted_store as ps

WORDS = [" war", "War", " wars", " Peace", "warning", "\n", " ", " software", "<b>", "and", " x", "é"]


@pytest.fixture(scope="module", params=["autoencoder", "pursuit"])
def case(request, tmp_path_factory):
    """(index, dense codes [n_tokens, d_sae], store, dictionary)."""
    store = ps.random_store(seed=11, n_rows=30)
    dictionary = ps.random_autoencoder() if request.param == "autoencoder" else ps.random_pursuit()
    folder = tmp_path_factory.mktemp("questions") / "index"
    index = ps.built(folder, store, dictionary, vocabulary=WORDS, model=ps.random_model())
    return index, ps.dense_codes(store, dictionary)[~store.masked.numpy()].astype(np.float64), store, dictionary


# --- compare -----------------------------------------------------------------------------------------------------------------------------


def test_pairs_equal_numpy_on_the_dense_codes(case):
    index, dense, _, _ = case
    latents = (4, 11, 7, 0)  # 0 is dead in the autoencoder
    found = index.compare(*latents)
    assert found.latents == latents
    assert [card.record.index for card in found.cards] == list(latents)
    for pair in found.pairs:
        v, w = dense[:, pair.a], dense[:, pair.b]
        f, g = (v != 0).astype(float), (w != 0).astype(float)
        assert pair.n_both == int((f * g).sum())
        assert pair.expected == pytest.approx(f.sum() * g.sum() / len(f))
        assert pair.jaccard == pytest.approx((f * g).sum() / max(np.maximum(f, g).sum(), 1))
        assert pair.b_given_a == pytest.approx((f * g).sum() / f.sum() if f.any() else 0.0)
        assert pair.a_given_b == pytest.approx((f * g).sum() / g.sum() if g.any() else 0.0)
        for value, (one, other) in ((pair.phi, (f, g)), (pair.correlation, (v, w))):
            expected = np.corrcoef(one, other)[0, 1] if one.std() and other.std() else 0.0
            assert value == pytest.approx(expected, abs=1e-6)
    assert len(found.pairs) == 6


def test_matrices_are_symmetric_and_hold_every_pair(case):
    index, dense, _, _ = case
    latents = [5, 9, 13]
    found = index.compare(*latents)
    np.testing.assert_allclose(found.matrix("correlation"), np.corrcoef(dense[:, latents].T), atol=1e-6)
    active = (dense[:, latents] != 0).astype(float)
    np.testing.assert_array_equal(found.matrix("n_both"), active.T @ active)
    assert found.pair(13, 5) is found.pair(5, 13)
    with pytest.raises(ConfigError, match="a and b must be two of 5, 9, 13"):
        found.pair(5, 6)
    with pytest.raises(ConfigError, match="name must be"):
        found.matrix("expected")


def test_cosines_are_exact_where_known_and_bounded_where_not(case):
    index, _, _, dictionary = case
    atoms = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1).numpy()
    cosines = atoms @ atoms.T
    n_bounded = 0
    for a in range(4, 20, 3):
        for b in range(a + 1, 20):
            pair = index.compare(a, b).pairs[0]
            if pair.cosine is None:
                n_bounded += 1
                assert cosines[a, b] <= pair.cosine_below + 1e-6
                n = len(index.record(a).neighbours)  # the bound is the tighter of the two lists' last cosines
                last = [np.sort(np.delete(cosines[i], i))[-n] for i in (a, b)]
                assert pair.cosine_below == pytest.approx(min(last), abs=1e-6)
            else:
                assert pair.cosine == pytest.approx(cosines[a, b], abs=1e-6)
    assert n_bounded > 0
    exact = compare(index, [4, 9, 17], atoms=dictionary.W_dec.detach()[[4, 9, 17]].numpy())
    np.testing.assert_allclose(exact.matrix("cosine"), cosines[np.ix_([4, 9, 17], [4, 9, 17])], atol=1e-6)


@pytest.mark.parametrize("latents", [(), (3,), (3, 3), tuple(range(9))], ids=["none", "one", "twice", "nine"])
def test_comparisons_need_two_to_eight_different_latents(case, latents):
    with pytest.raises(ConfigError, match="latents must be 2 to 8 different ones"):
        case[0].compare(*latents)


def test_a_latent_that_does_not_exist_is_not_compared(case):
    with pytest.raises(ConfigError, match=r"latent must be in 0\.\.d_sae-1=19, got 20"):
        case[0].compare(1, 20)


# --- top ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("by", ["density", "n_active", "n_documents", "max", "min", "mean", "token_bits", "next_bits"])
def test_tables_are_sorted_by_the_statistic_and_ties_by_id(case, by, ascending):
    index, dense, _, _ = case
    values = getattr(index.statistics, by)
    found = index.top(by=by, n=9, ascending=ascending)
    alive = [i for i in range(20) if (dense[:, i] != 0).any()]
    expected = sorted(alive, key=lambda i: ((values[i] if ascending else -values[i]), i))[:9]
    assert found.ids.tolist() == expected
    np.testing.assert_allclose(found.values, values[expected])
    assert found.n_allowed == len(alive)
    if by == "max":
        np.testing.assert_allclose(found.values, dense.max(axis=0)[expected], rtol=1e-6)


def test_filters_leave_out_what_they_say(case):
    index, dense, _, _ = case
    density = (dense != 0).mean(axis=0)
    low, high = np.quantile(density[density > 0], [0.3, 0.7])
    found = index.top(by="mean", n=20, min_density=float(low), max_density=float(high))
    assert sorted(found.ids.tolist()) == np.flatnonzero((density >= low) & (density <= high) & (density > 0)).tolist()
    everything = index.top(by="density", n=20, alive=False)
    assert len(everything) == 20
    assert "density from" in found.definition
    assert "never fire" in found.definition
    assert "never fire" not in everything.definition


def test_missing_numbers_come_last_either_way(case):
    index = case[0]
    broken = index.statistics.mean.copy()
    broken[[6, 8]] = np.nan
    with_missing = FeatureIndex.open(index.folder)
    with_missing.__dict__["statistics"] = dataclasses.replace(index.statistics, mean=broken)
    for ascending in (False, True):
        assert with_missing.top(by="mean", n=20, ascending=ascending).ids.tolist()[-2:] == [6, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "leading_token"}, "by must be one of telling, n_active"),
        ({"by": "nonsense"}, "by must be one of telling"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": True}, "n must be at least 1, got True"),
        ({"min_density": 0.5, "max_density": 0.1}, "in order within 0..1"),
        ({"max_density": 1.5}, "in order within 0..1"),
        ({"min_density": math.nan}, "in order within 0..1"),
    ],
    ids=str,
)
def test_orders_and_filters_that_make_no_sense_are_refused(case, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        case[0].top(**options)


def test_telling_is_by_bits_among_those_that_fire_enough(tmp_path):
    store = ps.random_store(seed=3, n_rows=200)
    index = ps.built(tmp_path / "index", store, ps.random_autoencoder(d_sae=60, k=2))
    s = index.statistics
    bits = s.token_bits + s.next_bits
    allowed = [i for i in range(60) if s.n_active[i] >= 50 and s.density[i] <= 0.1]
    taken, expected = {}, []
    for i in sorted(allowed, key=lambda i: (-bits[i], i)):
        token = int(s.leading_token[i])
        if taken.get(token, 0) < 2:
            taken[token] = taken.get(token, 0) + 1
            expected.append(i)
    assert len(expected) >= 3
    assert index.top().ids.tolist() == expected


def test_at_most_two_telling_features_share_their_leading_token(case):
    index = case[0]
    statistics = dataclasses.replace(index.statistics, leading_token=np.repeat([7, 8], 10))
    order = telling_order(statistics, np.ones(20, bool), n=20)
    bits = statistics.token_bits + statistics.next_bits
    best = [sorted(half, key=lambda i: (-bits[i], i))[:2] for half in (range(10), range(10, 20))]
    assert order == sorted(best[0] + best[1], key=lambda i: (-bits[i], i))
    assert telling_order(statistics, np.ones(20, bool), n=20, ascending=True)[0] == int(np.argmin(bits))


# --- search ------------------------------------------------------------------------------------------------------------------------------


def weight(term, text):
    """How well a token matches, by the definition."""
    spelled = text.strip().casefold()
    glyphs = text.replace(" ", "·").replace("\n", "↵").casefold()
    best = 0.0
    for spelling in (spelled, glyphs):
        if spelling == term:
            best = max(best, 1.0)
        elif len(term) >= 2 and spelling.startswith(term):
            best = max(best, 0.1)
        elif len(term) >= 3 and term in spelling:
            best = max(best, 0.05)
    return best


def oracle(index, query, labels):
    terms = query.casefold().split() or [query.replace(" ", "·").replace("\n", "↵")]
    scores = {}
    for latent in range(index.d_sae):
        record, total = index.record(latent), []
        top = max((e.effect for e in record.promoted), default=0.0)
        for term in dict.fromkeys(terms):
            driving = sum(weight(term, d.token) * d.share for d in record.driving_tokens)
            promoted = max((weight(term, e.token) * e.effect / top for e in record.promoted if e.effect > 0), default=0.0)
            label = labels.get(latent, "").casefold()
            in_label = 1.0 if re.search(rf"\b{re.escape(term)}\b", label) else 0.5 if term in label else 0.0
            total.append(driving + promoted / 10 + in_label)
        if min(total) > 0:
            scores[latent] = sum(total)
    return scores


LABELS = {2: "warfare of nations", 6: "a war", 9: "peace <i>"}


@pytest.mark.parametrize("labels", [{}, LABELS], ids=["bare", "labelled"])
@pytest.mark.parametrize("query", ["war", "WAR ", "peace", "wa", "w", "ware", "war peace", "↵", "\n", " ", "·war", "<b>", "é", "war war"])
def test_search_scores_follow_the_definition(case, query, labels):
    index = case[0]
    found, expected = index.search(query, labels=labels), oracle(index, query, labels)
    assert found.n_found == len(expected)
    for hit in found.hits:
        assert hit.score == pytest.approx(expected[hit.index], abs=1e-5)
        assert hit.matches
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    if query in ("war", "peace", "\n"):
        assert expected


def test_the_reasons_are_what_the_record_shows(case):
    index = case[0]
    for hit in index.search("war", labels=LABELS).hits:
        record = index.record(hit.index)
        driving = {(d.token, round(d.share, 4)) for d in record.driving_tokens if weight("war", d.token)}
        promoted = {(e.token, round(e.effect, 4)) for e in record.promoted if weight("war", e.token) and e.effect > 0}
        assert {(m.text, round(m.value, 4)) for m in hit.matches if m.kind == "driving"} == driving
        assert {(m.text, round(m.value, 4)) for m in hit.matches if m.kind == "promoted"} == promoted
        assert [m.text for m in hit.matches if m.kind == "label"] == ([LABELS[hit.index]] if hit.index in (2, 6) else [])


def test_a_number_sign_finds_the_latent_and_the_limit_limits(case):
    index = case[0]
    assert index.search("#7").ids == (7,)
    assert index.search("#700").n_found == 0
    everything = index.search("war", limit=1000)
    assert index.search("war", limit=2).ids == everything.ids[:2]
    assert index.search("war", limit=2).n_found == everything.n_found


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("", {}, "text must be a string that is not empty"),
        ("war", {"limit": 0}, "limit must be at least 1, got 0"),
        ("war", {"limit": True}, "limit must be at least 1, got True"),
        ("war", {"labels": {20: "x"}}, r"labels must be of latents in 0\.\.d_sae-1=19, got one of 20"),
    ],
)
def test_queries_that_make_no_sense_are_refused(case, query, options, message):
    with pytest.raises(ConfigError, match=message):
        case[0].search(query, **options)


def test_regular_expressions_in_a_query_are_plain_text(case):
    for query in ("(", "[a", "\\", "w.r", ".*", "^war", "#", "#x"):
        assert case[0].search(query).n_found == len(oracle(case[0], query, {}))


def test_a_query_over_65536_latents_takes_milliseconds():
    d_sae, n_vocabulary, rng = 65_536, 50_000, np.random.default_rng(0)
    letters = rng.integers(97, 123, (n_vocabulary, 6)).astype(np.uint8)
    texts = [f" {bytes(row).decode()}" for row in letters]
    arrays = {
        "driving_ids": rng.integers(0, n_vocabulary, (d_sae, 12)),
        "driving_share": rng.random((d_sae, 12)),
        "effect_top_ids": rng.integers(0, n_vocabulary, (d_sae, 12)),
        "effect_top": rng.random((d_sae, 12)),
    }
    table = SearchTable(arrays, texts)
    times = []
    for term in ("abc", texts[17].strip(), "ab", "xyz", "qq", "the"):
        table.tokens("warm")
        begin = time.perf_counter()
        found = table.tokens(term)
        scores = table.scores(found, term, {})
        for latent in np.argsort(-scores)[:50].tolist():
            table.matches(latent, frozenset(found.tokens.tolist()))
        times.append(time.perf_counter() - begin)
    assert sorted(times)[len(times) // 2] < 0.2  # ten times the bar: other tests share the machine


# --- texts -------------------------------------------------------------------------------------------------------------------------------


def encoded(case):
    """Two texts made of rows of the store, with values at their masked tokens too."""
    _, _, store, dictionary = case
    texts = []
    for row in (2, 5):
        tokens = store.ids[row].tolist()
        with torch.no_grad():
            codes = dictionary.encode(store.acts[row * 16 : row * 16 + 16]).dense().numpy()
        order = [np.flatnonzero(line) if i else np.zeros(0, int) for i, line in enumerate(codes)]
        latents = tuple(tuple(line.tolist()) for line in order)
        values = tuple(tuple(float(codes[i, j]) for j in line) for i, line in enumerate(latents))
        special = tuple(i == 0 for i in range(16))
        texts.append(EncodedText("x", tuple(WORDS[i] for i in tokens), tuple(tokens), special, latents, values, None))
    return texts


@pytest.mark.parametrize("by", ["value", "of_max", "surprise"])
def test_features_of_texts_equal_the_dense_oracle(case, by):
    index, dense, _, _ = case
    texts = encoded(case)
    values = np.zeros((2, 16, 20))
    for t, text in enumerate(texts):
        for position, (latents, numbers) in enumerate(zip(text.latents, text.values, strict=True)):
            values[t, position, list(latents)] = numbers
    flat, expected = values.reshape(-1, 20), {}
    for latent in np.flatnonzero(flat.any(axis=0)).tolist():
        place = int(np.abs(flat[:, latent]).argmax())
        value, corpus = flat[place, latent], dense[:, latent].astype(np.float32)
        stronger = (corpus >= np.float32(value)).sum() if value > 0 else (corpus <= np.float32(value)).sum()
        peak = np.abs(corpus).max()
        expected[latent] = {
            "value": abs(value),
            "of_max": abs(value) / peak,
            "surprise": -math.log2((1 + stronger) / (1 + index.n_tokens)),
            "where": divmod(place, 16),
            "n": int((flat[:, latent] != 0).sum()),
        }
    found = rank(index, texts, n=7, by=by)
    assert found.n_found == len(expected)
    assert len(found.features) == min(7, len(expected))
    keys = sorted((e[by] for e in expected.values()), reverse=True)[:7]
    for feature, key in zip(found.features, keys, strict=True):
        e = expected[feature.index]
        assert e[by] == pytest.approx(key, rel=1e-4)
        assert abs(feature.value) == pytest.approx(e["value"], rel=1e-5)
        assert (feature.text, feature.position) == e["where"]
        assert feature.n_active == e["n"]
        assert feature.of_max == pytest.approx(e["of_max"], rel=1e-4)
        assert feature.surprise == pytest.approx(e["surprise"], abs=0.2)  # float32 values that tie with themselves
        assert found.values(feature.index, feature.text)[feature.position] == feature.value


def test_dense_features_can_be_left_out_of_the_ranking(case):
    index = case[0]
    bound = float(np.median(index.statistics.density))
    found = rank(index, encoded(case), n=20, max_density=bound)
    assert found.features
    assert all(index.statistics.density[i] <= bound for i in found.ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 0}, "n must be at least 1"), ({"by": "max"}, "by must be one of value"), ({"max_density": 2.0}, "max_density must be in 0..1")],
    ids=str,
)
def test_asking_a_text_for_what_is_not_there_is_refused(case, options, message):
    from sae.inspection.text_features import on_texts

    class Never:
        site_name, dictionary_digest, limit = "s", "d", 5

        def atoms(self, latents):
            raise AssertionError

        def tokenise(self, texts):
            raise AssertionError

        def encode(self, texts, *, top_k=None, masked=False):
            raise AssertionError

        def contrast(self, texts_a, texts_b, *, n=50):
            raise AssertionError

    kind = ConfigError if "by" not in options else Exception  # a literal: checked by type first in tests
    with pytest.raises(kind, match=message if kind is ConfigError else None):
        on_texts(case[0], Never(), "text", **options)


# --- what is shown -----------------------------------------------------------------------------------------------------------------------


class Audit(html.parser.HTMLParser):
    """Collects what must not be in a notebook's HTML."""

    def __init__(self):
        super().__init__()
        self.bad, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "style", "img", "link", "iframe", "b", "i", "a"):
            self.bad.append(tag)
        for name, value in attributes:
            if name.startswith("on") or name in ("src", "href") or "url(" in (value or ""):
                self.bad.append((tag, name, value))
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"


@pytest.fixture(scope="module", params=["autoencoder", "pursuit"])
def hostile(request, tmp_path_factory):
    store = ps.random_store(seed=12, n_rows=30)
    dictionary = ps.random_autoencoder() if request.param == "autoencoder" else ps.random_pursuit()
    options = {"vocabulary": ps.hostile_vocabulary(), "model": ps.random_model(), "name": ps.HOSTILE}
    return ps.built(tmp_path_factory.mktemp("hostile") / "index", store, dictionary, **options)


def shown(index):
    """Everything that these results show."""
    texts = index.reader.texts
    tokens = tuple(texts)
    latents = tuple(() if i == 0 else (i % 20, (i * 7 + 3) % 20) if i % 20 != (i * 7 + 3) % 20 else (i,) for i in range(12))
    values = tuple(tuple(1.5 - j * 3 for j in range(len(line))) for line in latents)
    special = tuple(i == 0 for i in range(12))
    steps = tuple(tuple(range(len(line))) for line in latents)
    text = EncodedText(ps.HOSTILE, tokens, tuple(range(12)), special, latents, values, steps)
    return {
        "search": index.search("alert", labels={5: f"{ps.HOSTILE} alert"}),
        "nothing": index.search("no such token"),
        "top": index.top(by="min", n=20, alive=False),
        "compare": index.compare(0, 4, 5, 6),
        "text": rank(index, [text, text], n=20),
    }


@pytest.mark.parametrize("what", ["search", "nothing", "top", "compare", "text"])
def test_hostile_texts_are_shown_and_never_obeyed(hostile, what):
    result = shown(hostile)[what]
    page = result._repr_html_()
    audit = Audit()
    audit.feed(page)
    assert audit.bad == []
    assert audit.open == []
    assert "\u202e" not in page
    if what in ("search", "compare", "text"):
        assert "&lt;script&gt;" in page
    assert ps.HOSTILE not in page
    assert len(repr(result).splitlines()) >= 1
    assert "object at 0x" not in repr(result)


def test_lists_show_the_passage_of_largest_magnitude(case):
    for latent in range(20):
        record = case[0].record(latent)
        shown = strongest(record)
        assert [abs(example.value) for example in shown] == [record.peak] * record.alive


def test_what_is_shown_states_its_definition(hostile):
    results = shown(hostile)
    for what in ("search", "top", "compare", "text"):
        first = results[what].definition.split(":")[0].split(" / ")[0]
        assert first in results[what]._repr_html_()


def test_reading_a_bundle_without_entries_still_searches_and_lists(case, tmp_path):
    shutil.copytree(case[0].folder, tmp_path / "bundle")
    for name in ("by_token", "by_latent"):
        shutil.rmtree(tmp_path / "bundle" / name)
    bundle = FeatureIndex.open(tmp_path / "bundle")
    assert bundle.search("war").ids == case[0].search("war").ids
    assert bundle.top(by="max").ids.tolist() == case[0].top(by="max").ids.tolist()
    found = rank(bundle, encoded(case), n=5)
    assert [feature.surprise for feature in found.features] == [None] * 5
    assert "–" in found._repr_html_()
    with pytest.raises(FormatError, match="summary bundle"):
        bundle.compare(4, 5)
