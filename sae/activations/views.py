"""A store as other libraries see it: for torch's `DataLoader`, for `datasets`, and token by token for probes and inspection.

    token t = row * context + position,      offset = t - the first token of its document

Nothing here holds activations: they stay in the mapped files until a batch of them is asked for, and what travels to another process is the
store's path.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from sae.errors import ConfigError

if TYPE_CHECKING:
    import datasets

TOKENS_PER_PIECE = 4096
"""What `as_dataset` reads at a time: its unit of shuffling, of sharing among workers, and what a resumed pass reads again at most."""


@runtime_checkable
class Readable(Protocol):
    """What the views ask of a store; `ActivationStore` is one."""

    path: Path

    @property
    def context(self) -> int:
        """Tokens per row."""
        ...

    @property
    def n_tokens(self) -> int:
        """All tokens."""
        ...

    @property
    def has_tokens(self) -> bool:
        """Whether there are token ids."""
        ...

    def tokens(self) -> Int[Tensor, "n_rows context"]:
        """Token ids."""
        ...

    def document_ids(self) -> Int[Tensor, "n_rows context"]:
        """The document of every token."""
        ...

    def site(self, site: Any) -> Any:
        """The site of this name; its `width`."""
        ...

    def gather(self, site: Any, token_index: Int[Tensor, "n"], *, dtype: torch.dtype | None = None) -> Float[Tensor, "n width"]:
        """Activations of the given tokens."""
        ...


@dataclass(frozen=True)
class TokenView:
    """Some tokens of a store, one entry per token in each array. Made by `TokenTable.at`."""

    index: Int[Tensor, "n"]
    """Number in the store, t."""
    token: Int[Tensor, "n"]
    """Token id; -1 where the store has none."""
    document: Int[Tensor, "n"]
    """Number of its document."""
    position: Int[Tensor, "n"]
    """Place in its row, from 0."""
    offset: Int[Tensor, "n"]
    """Tokens of its document before it, in this row and the rows before."""
    table: "TokenTable"
    """Where they are from."""

    def neighbours(self, radius: int) -> Int[Tensor, "n window"]:
        """Token ids from `radius` places before to `radius` places after each token, itself in the middle: [n, 2 radius + 1], int32.

        -1 stands for places in another row or another document. Raises ConfigError when `radius` is negative.
        """
        if radius < 0:
            raise ConfigError(f"radius must be at least 0, got {radius} (neighbours)")
        steps = torch.arange(-radius, radius + 1)
        places = self.position[:, None] + steps
        around = (self.index[:, None] + steps).clamp(0, self.table.document_ids.numel() - 1)
        same = self.table.document_ids.view(-1)[around] == self.document[:, None]
        inside = (places >= 0) & (places < self.table.tokens.shape[1]) & same
        return torch.where(inside, self.table.tokens.reshape(-1)[around], -1)


@dataclass(frozen=True)
class TokenTable:
    """Token and document of every place in a store, in memory: 8 bytes per token. Made by `TokenTable.of`."""

    tokens: Int[Tensor, "n_rows context"]
    """Token ids, int32; -1 everywhere where the store has none."""
    document_ids: Int[Tensor, "n_rows context"]
    """The document of every token."""
    starts: Int[Tensor, "runs"]
    """The first token of each run of one document, ascending."""

    @staticmethod
    def of(store: Readable) -> "TokenTable":
        """The tokens of a store. A document that goes on in the next row is one run."""
        document_ids = store.document_ids()
        flat = document_ids.view(-1)
        tokens = store.tokens() if store.has_tokens else torch.tensor(-1, dtype=torch.int32).expand(document_ids.shape)
        changes = (flat[1:] != flat[:-1]).nonzero().squeeze(1) + 1
        return TokenTable(tokens, document_ids, torch.cat([changes.new_zeros(1), changes]))

    def at(self, index: Int[Tensor, "n"]) -> TokenView:
        """The tokens with these numbers, in this order, which may repeat. Raises ConfigError when one is out of range."""
        n, index = self.document_ids.numel(), index.long()
        bad = index[(index < 0) | (index >= n)]
        if len(bad):
            raise ConfigError(f"token_index must be in 0..n_tokens-1={n - 1}, got {int(bad[0])} (TokenTable.at)")
        starts = self.starts[torch.searchsorted(self.starts, index, right=True) - 1]
        row, position = index // self.tokens.shape[1], index % self.tokens.shape[1]
        return TokenView(index, self.tokens[row, position], self.document_ids[row, position], position, index - starts, self)


class ActivationDataset(Dataset):
    """One site's activations, token by token, for torch's `DataLoader`: an item is a row in float32.

    `token_index` chooses the tokens and their order (`store.usable_tokens(site)` leaves out the masked ones); without it, all. Fetching is
    by batch, in each worker; a worker gets the store's path and opens it. Fastest with batches of indices instead of items:

        batches = BatchSampler(RandomSampler(dataset), batch_size=4096, drop_last=True)
        for acts in DataLoader(dataset, sampler=batches, batch_size=None): ...

    Raises ConfigError for a site the store does not have, and for an index out of range.
    """

    def __init__(self, store: Readable, site: str, token_index: Int[Tensor, "n"] | None = None):
        self.site = store.site(site).name
        self.token_index = token_index
        self._n = _checked_length(store.n_tokens, token_index)
        self._path, self._kind = store.path, type(store)
        self._store: Readable | None = store

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, items: int | Sequence[int]) -> Float[Tensor, "*n width"]:
        """The row of an item, or the rows of several."""
        index = self.numbers([items] if isinstance(items, int) else items)
        acts = self.store.gather(self.site, index, dtype=torch.float32)
        return acts[0] if isinstance(items, int) else acts

    def __getitems__(self, items: Sequence[int]) -> list[Float[Tensor, "width"]]:
        """The rows of several items, as `DataLoader` asks for them."""
        return list(self[items].unbind())

    @property
    def store(self) -> Readable:
        """The store, opened again in another process."""
        if self._store is None:
            self._store = self._kind.open(self._path)
        return self._store

    def numbers(self, items: Sequence[int]) -> Int[Tensor, "n"]:
        """The tokens' numbers in the store. Raises IndexError, which ends a loop over items, for one beyond the end."""
        index = torch.as_tensor(items, dtype=torch.int64)
        if len(index) and (int(index.min()) < -self._n or int(index.max()) >= self._n):
            raise IndexError(f"items must be in 0..{self._n - 1}, got {int(index.min())}..{int(index.max())} (ActivationDataset)")
        index = torch.where(index < 0, index + self._n, index)
        return index if self.token_index is None else self.token_index[index].long()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}


class LabelledDataset(Dataset):
    """The same with what each row is: an item is {"acts", "token", "document", "position"}; see ActivationDataset and TokenView."""

    def __init__(self, store: Readable, site: str, token_index: Int[Tensor, "n"] | None = None):
        self.acts = ActivationDataset(store, site, token_index)
        self._table: TokenTable | None = None

    def __len__(self) -> int:
        return len(self.acts)

    def __getitem__(self, items: int | Sequence[int]) -> dict[str, Tensor]:
        """The columns of an item, or of several."""
        if self._table is None:
            self._table = TokenTable.of(self.acts.store)
        view = self._table.at(self.acts.numbers([items] if isinstance(items, int) else items))
        columns = {"token": view.token, "document": view.document, "position": view.position}
        if isinstance(items, int):
            columns = {name: values[0] for name, values in columns.items()}
        return {"acts": self.acts[items], **columns}

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Tensor]]:
        """The columns of several items, one by one, as `DataLoader` asks for them."""
        columns = {name: values.unbind() for name, values in self[items].items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}


def as_dataset(store: Readable, site: str, token_index: Int[Tensor, "n"] | None = None) -> "datasets.IterableDataset":
    """A streaming `datasets` view of one site: rows of token, document, position and acts (float32), read from the store as they are used.

    Nothing is copied to a cache. `shuffle` shuffles pieces of TOKENS_PER_PIECE tokens and then within its buffer, so a buffer of some
    pieces does not mix as `store.batches` does; `state_dict` and `load_state_dict` resume at a row. Raises ConfigError as ActivationDataset.
    """
    import datasets
    from datasets.iterable_dataset import ArrowExamplesIterable

    rows = LabelledDataset(store, site, token_index)
    features = {name: datasets.Value("int32") for name in ("token", "document", "position")}
    acts = datasets.Sequence(datasets.Value("float32"), length=store.site(site).width)
    pieces = [(start, min(start + TOKENS_PER_PIECE, len(rows))) for start in range(0, len(rows), TOKENS_PER_PIECE)]
    # `IterableDataset.from_generator` takes rows one by one, at milliseconds each for wide ones; tables cost nothing to hand over.
    tables = ArrowExamplesIterable(_tables, {"rows": rows, "pieces": pieces})
    return datasets.IterableDataset(tables, info=datasets.DatasetInfo(features=datasets.Features({**features, "acts": acts})))


def _tables(rows: LabelledDataset, pieces: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Any]]:
    """An Arrow table for each piece, with a name for it."""
    import pyarrow

    for start, stop in pieces:
        columns = rows[range(start, stop)]
        acts = columns.pop("acts")
        arrays = {name: pyarrow.array(values.to(torch.int32).numpy()) for name, values in columns.items()}
        flat = pyarrow.array(acts.reshape(-1).numpy())
        yield (start, stop), pyarrow.table({**arrays, "acts": pyarrow.FixedSizeListArray.from_arrays(flat, acts.shape[1])})


def _checked_length(n_tokens: int, token_index: Tensor | None) -> int:
    if token_index is None:
        return n_tokens
    bad = token_index[(token_index < 0) | (token_index >= n_tokens)]
    if len(bad):
        raise ConfigError(f"token_index must be in 0..n_tokens-1={n_tokens - 1}, got {int(bad[0])} (ActivationDataset)")
    return len(token_index)
