"""Packing, against a plain list that concatenates everything first."""

import itertools
import time
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.errors import ConfigError
from sae.models.tokens import offsets_in_document, pack

DOCUMENTS = st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(5, 99), max_size=30)), max_size=12)


def plain(documents, context, separator_id, bos_id):
    """The stream as one list of (token, document id), then cut."""
    stream = []
    for document_id, parts in itertools.groupby((pair for pair in documents if pair[1]), key=lambda pair: pair[0]):
        tokens = [token for _, part in parts for token in part]
        stream += [(t, document_id) for t in ([] if separator_id is None else [separator_id]) + tokens]
    room = context - (bos_id is not None)
    rows = [stream[i : i + room] for i in range(0, len(stream) - room + 1, room)]
    return [([(bos_id, row[0][1])] if bos_id is not None else []) + row for row in rows]


@given(DOCUMENTS, st.integers(2, 17), st.sampled_from([None, 0]), st.sampled_from([None, 1]))
def test_packing_equals_cutting_the_concatenation(documents, context, separator_id, bos_id):
    rows = list(pack(documents, context=context, separator_id=separator_id, bos_id=bos_id))
    assert [list(zip(row.tokens.tolist(), row.document_ids.tolist(), strict=True)) for row in rows] == plain(
        documents, context, separator_id, bos_id
    )


@given(DOCUMENTS, st.integers(2, 17))
def test_no_token_is_lost_but_the_last_incomplete_row(documents, context):
    rows = list(pack(documents, context=context, separator_id=0, bos_id=None))
    packed = [t for row in rows for t in row.tokens.tolist() if t != 0]
    tokens = [t for _, document in documents for t in document]
    assert packed == tokens[: len(packed)]
    n_documents = len(list(itertools.groupby(number for number, document in documents if document)))
    assert len(tokens) + n_documents - len(rows) * context < context


def test_a_bos_opens_each_row_and_a_separator_each_document():
    rows = list(pack([(7, [10, 11, 12]), (8, [20]), (9, []), (3, [30, 31])], context=4, separator_id=0, bos_id=1))
    assert [row.tokens.tolist() for row in rows] == [[1, 0, 10, 11], [1, 12, 0, 20], [1, 0, 30, 31]]
    assert [row.document_ids.tolist() for row in rows] == [[7, 7, 7, 7], [7, 7, 8, 8], [3, 3, 3, 3]]


def test_packing_streams_an_endless_corpus():
    endless = ((i, [i % 90 + 5] * 3) for i in itertools.count())
    rows = list(itertools.islice(pack(endless, context=5, separator_id=0, bos_id=None), 4))
    assert len(rows) == 4
    assert next(endless)[0] < 8


def test_packing_twice_gives_the_same_rows():
    documents = [(i, list(range(5, 5 + i))) for i in range(20)]
    first, second = (torch.stack([row.tokens for row in pack(documents, context=8, separator_id=0, bos_id=None)]) for _ in range(2))
    assert torch.equal(first, second)


def test_packing_a_huge_document_holds_a_row_and_not_a_copy_of_it():
    document = range(3_000_000)  # 24 MB as an array of ids
    tracemalloc.start()
    rows = sum(1 for _ in pack([(0, document)], context=10_000, separator_id=0, bos_id=None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == 300
    assert peak < 60 * 10_000 * 8


def test_packing_time_does_not_grow_with_the_context_when_documents_are_small():
    documents = [(i, [i % 90 + 5] * 5) for i in range(20_000)]

    def seconds(context):
        started = time.process_time()
        for _ in pack(documents, context=context, separator_id=0, bos_id=None):
            pass
        return time.process_time() - started

    seconds(64)
    assert min(seconds(60_000) for _ in range(3)) < 3 * min(seconds(64) for _ in range(3))


@pytest.mark.parametrize(("context", "bos_id"), [(0, None), (1, 1), (-3, None)])
def test_a_context_without_room_is_refused_before_anything_is_read(context, bos_id):
    with pytest.raises(ConfigError, match=f"context must be at least .*got {context}"):
        pack([], context=context, separator_id=0, bos_id=bos_id)


def test_offsets_count_from_the_document_start_within_a_row():
    ids = torch.tensor([[4, 4, 4, 5, 5, 4], [4, 6, 6, 6, 7, 7]])
    assert offsets_in_document(ids).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]]


def test_consecutive_parts_of_one_document_are_packed_as_the_whole():
    documents = [(4, list(range(10, 31))), (2, [7, 8]), (4, [5, 6])]
    parts = [(4, [10, 11]), (4, []), (4, list(range(12, 31))), (2, [7]), (2, [8]), (4, [5, 6])]
    for bos_id in (None, 99):
        whole, cut = (list(pack(each, context=7, separator_id=0, bos_id=bos_id)) for each in (documents, parts))
        assert [row.tokens.tolist() for row in whole] == [row.tokens.tolist() for row in cut]
        assert [row.document_ids.tolist() for row in whole] == [row.document_ids.tolist() for row in cut]
        assert sum(int((row.tokens == 0).sum()) for row in whole) == (3 if bos_id is None else 2)
