"""A store through torch's DataLoader and through `datasets`, and what each token of it is."""

import os
import pickle
from collections import Counter

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from sae.activations import views
from sae.activations.views import ActivationDataset, LabelledDataset, TokenTable, as_dataset
from sae.errors import ConfigError

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"


def acts_of(store, site):
    return store.gather(site, torch.arange(store.n_tokens)).float()


def row_counts(acts):
    return Counter(map(tuple, acts.tolist()))


# The view of each token


def test_every_token_is_seen_as_a_loop_over_the_rows_sees_it(store):
    tokens, documents = store.tokens(), store.document_ids()
    index = torch.randperm(store.n_tokens, generator=torch.Generator().manual_seed(0))
    view = TokenTable.of(store).at(index)
    begun, place = {}, 0
    expected = {}
    for row in range(store.n_rows):
        for position in range(store.context):
            document = int(documents[row, position])
            begun.setdefault(document, place)
            expected[place] = (int(tokens[row, position]), document, position, place - begun[document])
            place += 1
    found = zip(view.token.tolist(), view.document.tolist(), view.position.tolist(), view.offset.tolist(), strict=True)
    for t, values in zip(index.tolist(), found, strict=True):
        assert values == expected[t]
    assert torch.equal(view.index, index)


@pytest.mark.parametrize("radius", [0, 1, 5, 40])
def test_neighbours_stop_at_the_ends_of_rows_and_documents(store, radius):
    tokens, documents = store.tokens().tolist(), store.document_ids().tolist()
    index = torch.randint(0, store.n_tokens, (300,), generator=torch.Generator().manual_seed(radius))
    index[:3] = torch.tensor([0, store.n_tokens - 1, store.context])
    found = TokenTable.of(store).at(index).neighbours(radius)
    assert found.shape == (300, 2 * radius + 1)
    for t, window in zip(index.tolist(), found.tolist(), strict=True):
        row, middle = divmod(t, store.context)
        for step, token in zip(range(-radius, radius + 1), window, strict=True):
            place = middle + step
            here = 0 <= place < store.context and documents[row][place] == documents[row][middle]
            assert token == (tokens[row][place] if here else -1)


class Vectors:
    """A store of vectors without tokens, one per row."""

    path, context, n_tokens, has_tokens = None, 1, 5, False

    def tokens(self):
        raise ConfigError("there are none")

    site = gather = tokens

    def document_ids(self):
        return torch.tensor([[3], [3], [8], [8], [8]], dtype=torch.int32)


def test_a_store_without_tokens_has_documents_and_no_ids():
    view = TokenTable.of(Vectors()).at(torch.tensor([4, 1, 2]))
    assert view.token.tolist() == [-1, -1, -1]
    assert view.document.tolist() == [8, 3, 8]
    assert view.offset.tolist() == [2, 1, 0]
    assert view.neighbours(1).tolist() == [[-1, -1, -1]] * 3


def test_tokens_out_of_range_and_a_negative_radius_are_refused(store):
    table = TokenTable.of(store)
    for bad in (-1, store.n_tokens):
        with pytest.raises(ConfigError, match=rf"token_index must be in 0..n_tokens-1={store.n_tokens - 1}, got {bad}"):
            table.at(torch.tensor([0, bad]))
        with pytest.raises(ConfigError, match=rf"token_index must be in 0..n_tokens-1={store.n_tokens - 1}, got {bad}"):
            ActivationDataset(store, RESID, torch.tensor([0, bad]))
    with pytest.raises(ConfigError, match="radius must be at least 0, got -2"):
        table.at(torch.tensor([0])).neighbours(-2)
    with pytest.raises(ConfigError, match="site must be one of"):
        ActivationDataset(store, "blocks.0.hook_resid_pre")


# torch


def test_items_are_rows_in_float32_by_one_and_by_many(store):
    acts, chosen = acts_of(store, RESID), store.usable_tokens(RESID)
    for dataset, expected in ((ActivationDataset(store, RESID), acts), (ActivationDataset(store, RESID, chosen), acts[chosen])):
        assert len(dataset) == len(expected)
        assert dataset[5].dtype == torch.float32
        for item in (0, 7, len(expected) - 1, -1, -len(expected)):
            assert torch.equal(dataset[item], expected[item])
        assert torch.equal(dataset[[3, 9, 3]], expected[[3, 9, 3]])
        assert all(torch.equal(a, b) for a, b in zip(dataset.__getitems__([3, 9]), expected[[3, 9]], strict=True))
        for item in (len(expected), -len(expected) - 1):
            with pytest.raises(IndexError, match="items must be in"):
                dataset[item]
    few = ActivationDataset(store, RESID, chosen[:7])
    assert torch.equal(torch.stack(list(few)), acts[chosen[:7]])


def test_a_pickled_dataset_holds_a_path_and_opens_the_store_again(store):
    for dataset in (ActivationDataset(store, MLP), LabelledDataset(store, MLP)):
        _ = dataset[3]
        packed = pickle.dumps(dataset)
        assert len(packed) < 1000
        again = pickle.loads(packed)  # noqa: S301
        for a, b in zip(flattened(again[[4, 5]]), flattened(dataset[[4, 5]]), strict=True):
            assert torch.equal(a, b)
        assert len(again) == len(dataset)


def flattened(item):
    return list(item.values()) if isinstance(item, dict) else [item]


def test_a_data_loader_reads_in_order_shuffles_and_takes_batches_of_indices(store):
    acts, dataset = acts_of(store, RESID), ActivationDataset(store, RESID)
    assert torch.equal(torch.cat(list(DataLoader(dataset, batch_size=100))), acts)
    shuffled = torch.cat(list(DataLoader(dataset, batch_size=100, shuffle=True, generator=torch.Generator().manual_seed(0))))
    assert not torch.equal(shuffled, acts)
    assert row_counts(shuffled) == row_counts(acts)
    sampler = BatchSampler(RandomSampler(dataset, generator=torch.Generator().manual_seed(0)), batch_size=100, drop_last=False)
    by_batches = torch.cat(list(DataLoader(dataset, sampler=sampler, batch_size=None)))
    assert row_counts(by_batches) == row_counts(acts)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("store", ["bfloat16"], indirect=True)
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_give_what_one_process_gives(store, way):
    dataset = LabelledDataset(store, RESID, store.usable_tokens(RESID))
    own = list(DataLoader(dataset, batch_size=300))
    loaded = list(DataLoader(dataset, batch_size=300, num_workers=2, multiprocessing_context=way, timeout=60))
    assert len(own) == len(loaded)
    for a, b in zip(own, loaded, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_labels_belong_to_their_rows(store):
    index = torch.randperm(store.n_tokens, generator=torch.Generator().manual_seed(1))[:200]
    view, dataset = TokenTable.of(store).at(index), LabelledDataset(store, MLP, index)
    (batch,) = DataLoader(dataset, batch_size=200)
    assert torch.equal(batch["acts"], acts_of(store, MLP)[index])
    for name in ("token", "document", "position"):
        assert torch.equal(batch[name].long(), getattr(view, name).long())
        assert int(dataset[17][name]) == int(getattr(view, name)[17])
    assert set(dataset[0]) == {"acts", "token", "document", "position"}


# datasets


@pytest.fixture
def streamed(store, monkeypatch, tmp_path):
    monkeypatch.setattr(views, "TOKENS_PER_PIECE", 300)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    yield as_dataset(store, RESID)
    assert not (tmp_path / "cache").exists()


def columns(rows):
    return [(row["token"], row["document"], row["position"], tuple(row["acts"])) for row in rows]


@pytest.fixture
def expected(store):
    view, acts = TokenTable.of(store).at(torch.arange(store.n_tokens)), acts_of(store, RESID)
    return [
        (int(a), int(b), int(c), tuple(row)) for a, b, c, row in zip(view.token, view.document, view.position, acts.tolist(), strict=True)
    ]


def test_a_streaming_dataset_has_the_rows_and_their_types_and_no_copy(streamed, expected):
    assert columns(streamed) == expected
    assert streamed.features["acts"].length == 8
    assert {name: feature.dtype for name, feature in streamed.features.items() if name != "acts"} == dict.fromkeys(
        ("token", "document", "position"), "int32"
    )
    (batch,) = streamed.with_format("torch").take(70).iter(batch_size=70)
    assert torch.equal(batch["acts"], torch.tensor([row[3] for row in expected[:70]]))
    assert batch["acts"].dtype == torch.float32


def test_take_skip_filter_and_shuffle_work(streamed, expected):
    assert columns(streamed.take(5)) == expected[:5]
    assert columns(streamed.skip(1000).take(400)) == expected[1000:1400]
    assert columns(streamed.filter(lambda row: row["position"] == 3)) == [row for row in expected if row[2] == 3]
    shuffled = columns(streamed.shuffle(seed=3, buffer_size=200))
    assert shuffled != expected
    assert Counter(shuffled) == Counter(expected)
    assert shuffled == columns(streamed.shuffle(seed=3, buffer_size=200))


@pytest.mark.parametrize("n", [1, 299, 300, 301, 1500])
def test_a_pass_resumes_at_the_row_where_its_state_was_taken(store, streamed, expected, n):
    rows = iter(streamed)
    for _ in range(n):
        next(rows)
    state = streamed.state_dict()
    again = as_dataset(store, RESID)
    again.load_state_dict(state)
    assert columns(again) == expected[n:]


def test_shares_of_two_nodes_are_the_whole(streamed, expected):
    from datasets.distributed import split_dataset_by_node

    assert streamed.num_shards == 6
    shares = [columns(split_dataset_by_node(streamed, rank=rank, world_size=2)) for rank in range(2)]
    assert len(shares[0]) > 0 and len(shares[1]) > 0
    assert Counter(shares[0] + shares[1]) == Counter(expected)


def test_chosen_tokens_stream_in_the_given_order(store, expected):
    index = torch.randperm(store.n_tokens, generator=torch.Generator().manual_seed(2))[:400]
    assert columns(as_dataset(store, RESID, index)) == [expected[int(t)] for t in index]


def test_importing_the_views_does_not_import_datasets():
    import subprocess
    import sys

    program = "import sys, sae.activations.views; print([m for m in ('datasets', 'pyarrow', 'numba') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.strip() == "[]"
