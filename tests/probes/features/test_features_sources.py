"""Rows of tasks in stores and models, against tokens found by hand: by decoding ever longer beginnings of a text."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from tiny import TEXT, tiny_language_model

from probes.features import ArraySource, RowConfig, from_model, from_store, stored, task_corpus
from probes.problem import FeatureSource
from probes.tasks import Task, token_task
from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import from_texts
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.storage import ResultCache

SITES = ("blocks.1.hook_resid_post", "blocks.2.mlp.hook_post")
WORDS = [*TEXT.replace("\n", " ").split(" "), "café", "日本", "naïve", "🙂", "ab()", "x,y"]


def texts(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(" ".join([f"No {i}", *rng.choice(WORDS, rng.integers(3, 25))]) for i in range(n))


def text_task(n=60, seed=0, name="parity"):
    return Task(name, "text", texts(n, seed), np.arange(n) % 2, np.arange(n) // 3, ("even", "odd"), "here", "none")


def span_task(seed=0, name="words", n_per_text=3):
    """Words of the same texts: is the word long?"""
    rng, spans = np.random.default_rng(seed + 1), []
    for i, text in enumerate(texts(seed=seed)):
        places = [j for j in range(len(text)) if text[j] != " " and (j == 0 or text[j - 1] == " ")]
        for begin in rng.choice(places, min(n_per_text, len(places)), replace=False):
            spans.append((i, begin, begin + len(text[begin:].split(" ")[0])))
    spans = np.array(spans)
    y = (spans[:, 2] - spans[:, 1] > 4).astype(int)
    return Task(name, "token", texts(seed=seed), y, spans[:, 0] // 3, ("short", "long"), "here", "none", spans=spans)


def dictionary(kind, site, width, model, seed=0, **provenance):
    generator = torch.Generator().manual_seed(seed)
    scaling = Scaling(torch.randn(width, generator=generator), 0.7)
    given = {"site": site, "model_digest": model.digest, **provenance}
    made = (
        Autoencoder(AutoencoderConfig(d_in=width, d_sae=40, activation=TopK(k=4)), scaling, provenance=given)
        if kind == "TopK"
        else MatchingPursuit(PursuitConfig(d_in=width, d_sae=30, k=3, selection="signed"), scaling, provenance=given)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        made.normalise_()
    return made.eval()


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


def make_store(model, path, corpus, **options):
    config = CaptureConfig(**{"sites": SITES, "n_tokens": 10**9, "context": 32, "dtype": "float32", "if_short": "accept", **options})
    for _ in collect(model, corpus, path, config):
        pass
    return ActivationStore.open(path)


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    return make_store(
        model, tmp_path_factory.mktemp("packed") / "store", task_corpus(text_task(), span_task(), context=32), rows_per_shard=9
    )


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """The same, where no document sees another."""
    return make_store(
        model, tmp_path_factory.mktemp("isolated") / "store", task_corpus(text_task(), context=250), isolated=True, context=250
    )


def documents(store, model):
    """Text -> its tokens' numbers in the store, found by decoding each document."""
    flat, ids = store.tokens().reshape(-1), store.document_ids().reshape(-1)
    found = {}
    for document in ids.unique().tolist():
        numbers = [t for t in torch.nonzero(ids == document)[:, 0].tolist() if flat[t] not in (model.separator_id, 1)]
        found.setdefault(model.tokenizer.decode(flat[numbers].tolist(), clean_up_tokenization_spaces=False), numbers)
    return found


def tokens_of_span(model, text, begin, end):
    """Numbers of the tokens that share a byte with the span, by lengths of decoded beginnings in bytes."""
    first, last = len(text[:begin].encode()), len(text[:end].encode())
    ids, place, found = model.tokenize([text])[0], 0, []
    pieces = model.tokenizer.convert_ids_to_tokens(ids)  # one character per byte, in this byte-level tokenizer
    for number, piece in enumerate(pieces):
        if place < last and place + len(piece) > first:
            found.append(number)
        place += len(piece)
    assert place == len(text.encode())
    return found


def expected_row(task, row, numbers, counts, config, model):
    """Numbers of the tokens that a row is pooled over; None where none counts."""
    if task.kind == "text":
        used = numbers[config.skip_first :]
        used = [t for t in used if counts[t]]
        return used[-1:] if config.text_pooling == "last" else used
    text, begin, end = task.spans[row]
    places = tokens_of_span(model, task.texts[text], begin, end)
    places = places[-1:] if config.token_pooling == "last" else places
    return [numbers[p] for p in places if counts[numbers[p]] and p >= config.skip_first]


POOLS = {"mean": lambda x: x.double().mean(0), "max": lambda x: x.amax(0), "last": lambda x: x[-1]}


@pytest.mark.parametrize(
    "config",
    [
        RowConfig(),
        RowConfig(text_pooling="max", token_pooling="max", skip_first=2),
        RowConfig(text_pooling="last", token_pooling="mean"),
        RowConfig(text_pooling="mean", token_pooling="mean", skip_first=4),
    ],
)
def test_rows_of_a_store_are_the_pooled_tokens_of_their_text_or_span(store, model, config):
    tasks = [text_task(), span_task()]
    data = from_store(store, tasks, model.tokenizer, config=config)
    counts = (store.mask(SITES[0]) & store.mask(SITES[1])).tolist()
    where, matrices = documents(store, model), {site: data.source.read(site) for site in SITES}
    assert isinstance(data.source, FeatureSource)
    assert data.source.names == SITES
    for task, problem, lost in zip(tasks, data.problems, data.lost, strict=True):
        pooling = config.text_pooling if task.kind == "text" else config.token_pooling
        expected = {}
        for row in range(len(task)):
            text = task.texts[row if task.kind == "text" else task.spans[row, 0]]
            used = expected_row(task, row, where[text], counts, config, model)
            if used:
                expected.setdefault(tuple(used), []).append(row)
        labels = {used: {int(task.y[row]) for row in rows} for used, rows in expected.items()}
        kept = [rows[0] for used, rows in expected.items() if len(labels[used]) == 1]
        assert len(problem) == lost.n_kept == len(kept) > 40
        assert problem.y.tolist() == task.y[sorted(kept)].tolist()
        assert problem.groups.tolist() == task.groups[sorted(kept)].tolist()
        used_by_row = {rows[0]: used for used, rows in expected.items()}
        for site in SITES:
            acts = store.gather(site, torch.arange(store.n_tokens), dtype=torch.float32)
            for row, number in zip(sorted(kept), problem.rows, strict=True):
                np.testing.assert_allclose(matrices[site][number], POOLS[pooling](acts[list(used_by_row[row])]), rtol=2e-6, atol=1e-6)


def test_model_and_a_store_of_documents_alone_give_the_same(alone, model):
    """For documents that are in one row, without a token that either leaves out."""
    counts = (alone.mask(SITES[0]) & alone.mask(SITES[1])).numpy()
    whole = {text for text, t in documents(alone, model).items() if t[0] // alone.context == t[-1] // alone.context and counts[t].all()}
    tasks = [
        replace(text_task(), min_per_class=1).take(np.array([i for i, text in enumerate(texts()) if text in whole])),
        replace(span_task(), min_per_class=1).take(np.array([i for i, (t, _, _) in enumerate(span_task().spans) if texts()[t] in whole])),
    ]
    assert len(tasks[0]) > 30
    kinds = {"TopK": dictionary("TopK", SITES[0], 32, model), "MP": dictionary("MP", SITES[1], 64, model)}
    here = from_store(alone, tasks, model.tokenizer, dictionaries=kinds)
    there = from_model(model, tasks, SITES, dictionaries=kinds, max_norm_ratio=float("inf"), batch_rows=7)
    assert there.source.names == here.source.names == (*SITES, "TopK", "MP")
    assert here.lost == there.lost
    for one, two in zip(here.problems, there.problems, strict=True):
        assert one.y.tolist() == two.y.tolist()
        assert one.groups.tolist() == two.groups.tolist()
        for name in here.source.names:
            a, b = here.source.read(name)[one.rows], there.source.read(name)[two.rows]
            a, b = (x.toarray() if sparse.issparse(x) else x for x in (a, b))
            assert np.abs(b).max() > 0.1
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_codes_of_a_store_are_those_of_its_tokens_pooled(store, model):
    kinds = {"TopK": dictionary("TopK", SITES[0], 32, model), "MP": dictionary("MP", SITES[1], 64, model)}
    for config in (RowConfig(), RowConfig(text_pooling="max", token_pooling="max"), RowConfig(text_pooling="last")):
        data = from_store(store, [text_task(), span_task()], model.tokenizer, dictionaries=kinds, config=config)
        rows = data.source.rows
        for name, site in (("TopK", SITES[0]), ("MP", SITES[1])):
            z = data.source.read(name)
            assert sparse.issparse(z)
            assert (z.format, z.dtype, z.shape) == ("csr", np.float32, (data.source.n_rows, kinds[name].d_sae))
            dense = kinds[name].encode(store.gather(site, torch.from_numpy(rows.tokens), dtype=torch.float32)).dense().detach()
            pool = POOLS["max" if config.text_pooling == "max" else "mean"]
            expected = [
                pool(dense[a:b]) if b > a else torch.zeros(kinds[name].d_sae)
                for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)
            ]
            np.testing.assert_allclose(z.toarray(), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_blocks_change_nothing(store, model, monkeypatch):
    kinds = {"TopK": dictionary("TopK", SITES[0], 32, model)}
    whole = from_store(store, [text_task()], model.tokenizer, dictionaries=kinds).source
    expected = [whole.read(SITES[1]), whole.read("TopK").toarray()]
    monkeypatch.setattr(stored, "TOKENS_PER_BLOCK", 13)
    np.testing.assert_allclose(whole.read(SITES[1]), expected[0], rtol=1e-6)
    np.testing.assert_allclose(whole.read("TopK").toarray(), expected[1], rtol=1e-5, atol=1e-7)


def test_codes_are_encoded_once_and_read_from_the_cache(store, model, tmp_path, monkeypatch):
    made, cache = dictionary("TopK", SITES[0], 32, model), ResultCache(tmp_path)
    calls = []
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, acts: (calls.append(len(acts)), encode(self, acts))[1])
    found = []
    for _ in range(2):
        source = from_store(store, [text_task()], model.tokenizer, dictionaries={"TopK": made}, cache=cache).source
        found += [source.read("TopK"), source.read("TopK")]
    assert sum(calls) == len(source.rows.tokens)
    assert all((each != found[0]).nnz == 0 for each in found)
    from_store(store, [span_task()], model.tokenizer, dictionaries={"TopK": made}, cache=cache).source.read("TopK")
    assert len(calls) > 1  # other rows are other codes


class Padded:
    """The model, with `padding` wherever padding is: after the last token of a row."""

    def __init__(self, model, padding):
        self.model, self.padding, self.tokenizer, self.digest = model, padding, model.tokenizer, model.digest
        self.separator_id, self.dtype, self.sites = model.separator_id, model.dtype, model.sites
        self.n_passes = 0

    def capture(self, tokens, sites):
        self.n_passes += 1
        captured = {site: acts.clone() for site, acts in self.model.capture(tokens, sites).items()}
        for acts in captured.values():
            acts[:, 0] = 1e9
            for i, row in enumerate(tokens):
                acts[i, int((row != row[0]).nonzero().max()) + 1 :] = self.padding
        return captured


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@pytest.mark.parametrize("padding", [1e9, -1e9, float("nan")])
def test_padding_and_the_separator_are_never_read(model, pooling, padding):
    config = RowConfig(text_pooling=pooling, token_pooling="last")
    kinds = {"TopK": dictionary("TopK", SITES[0], 32, model)}
    plain, padded = (
        from_model(m, [text_task(), span_task()], SITES, dictionaries=kinds, config=config) for m in (model, Padded(model, padding))
    )
    for name in plain.source.names:
        a, b = (data.source.read(name) for data in (plain, padded))
        a, b = (x.toarray() if sparse.issparse(x) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


class Spiky(Padded):
    """Every third token of a row is massive at the first site alone."""

    def capture(self, tokens, sites):
        captured = super().capture(tokens, sites)
        for site, acts in captured.items():
            if site.name == SITES[0]:
                acts[:, 3::3] = 3e4
        return captured


def test_massive_tokens_are_left_out_at_every_site(model):
    data = from_model(Spiky(model, 0.0), [text_task(), span_task()], SITES)
    assert max(np.abs(data.source.read(site)).max() for site in SITES) < 1e3
    lost = data.lost[1]
    assert lost.n_masked > 20
    assert lost.n_kept + lost.n_masked + lost.n_ambiguous + lost.n_repeated == lost.n_rows
    kept = from_model(model, [span_task()], SITES, max_norm_ratio=float("inf"))
    assert kept.lost[0].n_masked == 0
    first = text_task().texts[4]
    ids = model.tokenize([first])[0]
    acts = model.capture(torch.tensor([[model.separator_id, *ids]]), [model.site(SITES[1])])[model.site(SITES[1])][0, 1:]
    usable = [j for j in range(len(ids)) if (j + 1) % 3]
    row = data.problems[0].rows[4]
    np.testing.assert_allclose(data.source.read(SITES[1])[row], acts[usable].mean(0), rtol=1e-4, atol=1e-5)


def test_model_runs_once_when_there_is_a_cache(model, tmp_path):
    kinds = {"MP": dictionary("MP", SITES[1], 64, model)}
    first, second = Padded(model, 0.0), Padded(model, 0.0)
    made = [from_model(m, [span_task()], SITES, dictionaries=kinds, cache=ResultCache(tmp_path)) for m in (first, second)]
    assert first.n_passes > 0
    assert second.n_passes == 0
    assert made[0].source.digest == made[1].source.digest
    for name in made[0].source.names:
        a, b = (data.source.read(name) for data in made)
        assert (a != b).nnz == 0 if sparse.issparse(a) else np.array_equal(a, b)
    assert made[0].problems[0].rows.tolist() == made[1].problems[0].rows.tolist()


def test_parts_of_a_task_and_several_tasks_share_a_store(store, model):
    whole = from_store(store, [text_task()], model.tokenizer)
    part = text_task().take(np.arange(59, -1, -1))
    other = replace(part, name="backwards")
    both = from_store(store, [text_task(), other], model.tokenizer)
    np.testing.assert_array_equal(whole.source.read(SITES[0])[whole.problems[0].rows], both.source.read(SITES[0])[both.problems[0].rows])
    assert both.problems[1].rows.tolist() == both.problems[0].rows[::-1].tolist()
    assert both.source.n_rows == 60  # one row for two tasks
    some = from_store(store, [text_task().subsample(20, seed=3)], model.tokenizer)
    assert some.source.n_rows == 40


def test_token_properties_are_labelled_when_they_are_located(store, model):
    made = token_task("has_leading_space", texts(), np.arange(60), n_rows=120)
    data = from_store(store, [made], model.tokenizer)
    vocabulary, flat = model.vocabulary(), store.tokens().reshape(-1)
    problem = data.problems[0]
    tokens = flat[data.source.rows.tokens[data.source.rows.starts[problem.rows]]]
    assert [vocabulary[t].startswith(" ") for t in tokens.tolist()] == problem.y.astype(bool).tolist()


@pytest.mark.parametrize("options", [{"bos_id": 1}, {"separator": False}, {"separator": False, "bos_id": 1}])
def test_store_may_open_rows_with_a_bos_or_have_no_separator(model, tmp_path, options):
    made = make_store(model, tmp_path / "store", task_corpus(text_task(), context=32), context=24, **options)
    data = from_store(made, [text_task(), span_task()], model.tokenizer)
    assert data.lost[0].n_missing == data.lost[1].n_missing == 0
    flat = made.tokens().reshape(-1)
    rows = data.source.rows
    for task_row, row in list(enumerate(data.problems[0].rows))[::7]:
        used = flat[rows.tokens[rows.starts[row] : rows.starts[row + 1]]].tolist()
        ids = model.tokenize([text_task().texts[task_row]])[0]
        assert len(ids) - 3 <= len(used) <= len(ids)
        assert set(used) <= set(ids)


def test_text_that_is_cut_or_not_there_is_an_error_or_left_out(model, tmp_path):
    bare = make_store(model, tmp_path / "store", from_texts(texts()), context=64)  # no filler: the last texts are cut
    with pytest.raises(ConfigError, match=r"rows of task 'parity' are not in the store store.*No 5[89].*task_corpus.*missing='drop'"):
        from_store(bare, [text_task()], model.tokenizer)
    data = from_store(bare, [text_task(), span_task()], model.tokenizer, config=RowConfig(missing="drop"))
    assert 1 <= data.lost[0].n_missing <= 5
    assert data.lost[0].n_kept == len(data.problems[0]) == 60 - data.lost[0].n_missing
    assert "missing" in data.report().columns
    whole = from_store(
        make_store(model, tmp_path / "full", task_corpus(text_task(), context=64), context=64), [text_task()], model.tokenizer
    )
    assert whole.lost[0].n_missing == 0


def test_text_beyond_the_context_is_cut_and_a_span_there_is_missing(model):
    short = from_model(model, [text_task()], SITES[:1], context=6, max_norm_ratio=float("inf"))
    assert short.lost[0].n_missing == 0
    i = 5
    ids = model.tokenize([text_task().texts[i]])[0][:5]
    site = model.site(SITES[0])
    acts = model.capture(torch.tensor([[model.separator_id, *ids]]), [site])[site][0, 1:]
    np.testing.assert_allclose(short.source.read(SITES[0])[short.problems[0].rows[i]], acts.mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="are not in a context of 12 tokens"):
        from_model(model, [span_task()], SITES[:1], context=12)
    assert (
        from_model(model, [replace(span_task(), min_per_class=1)], SITES[:1], context=30, config=RowConfig(missing="drop"))
        .lost[0]
        .n_missing
        > 10
    )


def test_token_with_two_answers_is_left_out_and_with_one_twice_is_kept_once(model):
    """ "()" may be one token: both its characters are labelled, alike in half of the texts."""
    body = [f"value {i} of call() here" for i in range(80)]
    merged = tiny_language_model()
    spans, y = [], []
    for i, text in enumerate(body):
        at = text.index(" of")
        spans += [(i, at, at + 2), (i, at + 2, at + 3)]  # " o" and "f" of the token " of"
        y += [i % 2, i % 2 if i < 40 else 1 - i % 2]
    task = Task("halves", "token", tuple(body), np.array(y), np.repeat(np.arange(80), 2), ("a", "b"), "here", "none", spans=np.array(spans))
    assert " of" in merged.vocabulary()
    lost = from_model(merged, [task], SITES[:1], max_norm_ratio=float("inf")).lost[0]
    assert (lost.n_ambiguous, lost.n_repeated, lost.n_kept) == (80, 40, 40)


def test_digest_changes_with_all_that_decides_the_matrices(store, alone, model):
    top = dictionary("TopK", SITES[0], 32, model)
    other = dictionary("TopK", SITES[0], 32, model, seed=1)
    made = [
        from_store(store, [text_task()], model.tokenizer),
        from_store(alone, [text_task()], model.tokenizer),
        from_store(store, [text_task().take(np.arange(1, 60))], model.tokenizer),
        from_store(store, [text_task()], model.tokenizer, sites=SITES[:1]),
        from_store(store, [text_task()], model.tokenizer, sites=SITES[:1], config=RowConfig(skip_first=3)),
        from_store(store, [text_task()], model.tokenizer, config=RowConfig(text_pooling="last")),
        from_store(store, [text_task()], model.tokenizer, config=RowConfig(text_pooling="max")),
        from_store(store, [text_task()], model.tokenizer, dictionaries={"TopK": top}),
        from_store(store, [text_task()], model.tokenizer, dictionaries={"TopK": other}),
        from_store(store, [text_task()], model.tokenizer, dictionaries={"other": top}),
        from_model(model, [text_task()], SITES),
        from_model(model, [text_task()], SITES[:1]),
        from_model(model, [text_task()], SITES, context=20),
        from_model(model, [text_task()], SITES, max_norm_ratio=3.0),
        from_model(model, [text_task()], SITES, config=RowConfig(text_pooling="max")),
    ]
    digests = [data.source.digest for data in made]
    assert len(set(digests)) == len(digests)
    assert from_store(store, [text_task()], model.tokenizer).source.digest == digests[0]
    assert from_model(model, [text_task()], SITES, batch_rows=3).source.digest == digests[10]


def test_source_travels_to_another_process(store, model):
    source = from_store(store, [text_task()], model.tokenizer, dictionaries={"MP": dictionary("MP", SITES[1], 64, model)}).source
    far = pickle.loads(pickle.dumps(source))  # noqa: S301, as joblib sends it
    assert far.digest == source.digest
    np.testing.assert_array_equal(far.read(SITES[0]), source.read(SITES[0]))
    assert (far.read("MP") != source.read("MP")).nnz == 0


def test_arrays_are_a_source():
    rng = np.random.default_rng(0)
    matrices = {
        "dense": rng.normal(size=(6, 3)).astype(np.float32),
        "sparse": sparse.random(6, 9, density=0.3, format="csr", random_state=0),
    }
    source = ArraySource(matrices)
    assert isinstance(source, FeatureSource)
    assert (source.names, source.n_rows) == (("dense", "sparse"), 6)
    assert source.read("dense") is matrices["dense"]
    assert ArraySource({**matrices, "dense": matrices["dense"] + 1}).digest != source.digest == ArraySource(dict(matrices)).digest
    assert ArraySource(matrices, "abc").digest == "abc"


def slow_tokenizer(texts, **options):
    raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, m: from_store(s, [], m.tokenizer), ["at least one task"]),
        (lambda s, m: from_store(s, [text_task(), text_task()], m.tokenizer), ["names of their own", "parity"]),
        (lambda s, m: from_store(s, [text_task(seed=9)], m.tokenizer), ["60 of 60 rows of task 'parity'", "task_corpus"]),
        (lambda s, m: from_store(s, [text_task()], m.tokenizer, sites=["blocks.0.hook_resid_post"]), ["site must be one of", "blocks.0"]),
        (lambda s, m: from_store(s, [text_task()], slow_tokenizer), ["tokenizer must give offsets", "use_fast=True"]),
        (
            lambda s, m: from_store(s, [text_task(n=60, seed=0), span_task()], m.tokenizer, config=RowConfig(token_pooling="max")),
            ["mean and max"],
        ),
        (lambda s, m: RowConfig(skip_first=-1), ["skip_first must be at least 0", "-1"]),
        (
            lambda s, m: from_store(s, [text_task()], m.tokenizer, dictionaries={SITES[0]: dictionary("TopK", SITES[0], 32, m)}),
            ["names of their own", "is a site"],
        ),
        (
            lambda s, m: from_store(s, [text_task()], m.tokenizer, dictionaries={"d": dictionary("TopK", SITES[1], 32, m)}),
            ["dictionaries['d']", "d_in=64", "got 32"],
        ),
        (
            lambda s, m: from_store(s, [text_task()], m.tokenizer, dictionaries={"d": dictionary("TopK", None, 32, m)}),
            ["dictionaries['d']", "dictionary_sites"],
        ),
        (
            lambda s, m: from_store(
                s, [text_task()], m.tokenizer, dictionaries={"d": dictionary("TopK", SITES[0], 32, m, model_digest="x")}
            ),
            ["dictionaries['d']", "digest x"],
        ),
        (lambda s, m: from_store(s, [text_task()], m.tokenizer).source.read("nothing"), ["name must be one of", "nothing"]),
        (
            lambda s, m: from_store(s, [text_task()], m.tokenizer, config=RowConfig(skip_first=100)),
            ["at least 20 rows", "0 of 'even'", "60 rows 0"],
        ),
        (lambda s, m: from_model(m, [text_task()], SITES, context=1), ["context must be at least 2"]),
        (lambda s, m: from_model(m, [text_task()], ["blocks.77.hook_resid_post"]), ["blocks.77"]),
        (lambda s, m: task_corpus(), ["at least one task"]),
        (lambda s, m: ArraySource({}), ["one or more"]),
        (lambda s, m: ArraySource({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}), ["equally many rows", "4"]),
    ],
)
def test_bad_input_is_named(store, model, call, words):
    with pytest.raises(ConfigError) as caught:
        call(store, model)
    assert all(word in str(caught.value) for word in words), caught.value
