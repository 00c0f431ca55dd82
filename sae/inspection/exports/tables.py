"""Parquet files written piece by piece: exact row groups, declared order, page index, Zstandard.

The same tables give the same bytes with the same version of pyarrow, which writes its name into the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE_BYTES = 1 << 16
"""Size of a page: what is read for one row with the page index."""
ENCODINGS = {"token": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"}
"""How columns of that name are written: token indices nearly ascend, and of floats only the leading bytes repeat."""


class TableWriter:
    """Writes one Parquet file; a context manager, the file is complete after it. Only one row group is held in memory."""

    def __init__(self, path: Path, schema: Any, *, sorted_by: Sequence[str], group_rows: int, facts: Mapping[str, str]) -> None:
        import pyarrow.parquet as pq

        encodings = {field.name: ENCODINGS[field.name] for field in schema if field.name in ENCODINGS}

        self.schema, self.group_rows, self.n_rows = schema.with_metadata(dict(facts)), group_rows, 0
        self.waiting: list[Any] = []
        self.n_waiting = 0
        self.writer = pq.ParquetWriter(
            path,
            self.schema,
            compression="zstd",
            use_dictionary=[field.name for field in schema if field.name not in encodings],
            column_encoding=encodings or None,
            version="2.6",
            write_page_index=True,
            data_page_size=PAGE_BYTES,
            sorting_columns=[pq.SortingColumn(schema.get_field_index(name)) for name in sorted_by],
        )

    def append(self, columns: Mapping[str, Any]) -> None:
        """Add rows: an array or a list for each column of the schema."""
        import pyarrow as pa

        arrays = [pa.array(columns[field.name], field.type) for field in self.schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        self.waiting.append(batch)
        self.n_waiting += batch.num_rows
        self.n_rows += batch.num_rows
        if self.n_waiting >= self.group_rows:
            self._write(self.n_waiting - self.n_waiting % self.group_rows)

    def _write(self, n: int) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self.waiting, self.schema)
        self.writer.write_table(table.slice(0, n), row_group_size=self.group_rows)
        rest = table.slice(n).combine_chunks()  # a copy, so that what was written can be given back
        self.waiting, self.n_waiting = rest.to_batches(), rest.num_rows

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None and self.n_waiting:
            self._write(self.n_waiting)
        self.writer.close()
