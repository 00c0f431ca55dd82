"""Options that say what to read: a corpus by its files or its name.

--corpus state_of_the_union | docstrings            what comes with the package, or with the packages installed here
--corpus 'texts/*.jsonl.gz' --text-column body      files
--corpus owner/name --subset en --split train       a data set on the hub
--corpus chats.parquet --chat messages              conversations, as the model's chat template writes them
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sae.activations.corpus import Corpus, beginning, from_chats, from_dataset, installed_docstrings, shuffled, state_of_the_union
from sae.errors import ConfigError
from sae.models.language_model import LanguageModel

DOCSTRINGS = "docstrings"
BUILT_IN = {"state_of_the_union": state_of_the_union, DOCSTRINGS: installed_docstrings}


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How texts are read from files and tables."""

    text_column: str = "text"
    """Column with the text."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What one document of a text file is."""
    encoding: str = "utf-8"
    """Encoding of text and JSON files."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How conversations are read; each becomes one text by the chat template of the model."""

    chat: str | None = None
    """Column with lists of messages, for conversations instead of texts."""
    role_key: str = "role"
    """Under which key a message has its role."""
    content_key: str = "content"
    """Under which key a message has its content."""
    rename_role: tuple[str, ...] = ()
    """A role of the data and what the template calls it, such as human=user; repeat for several."""


@dataclass(frozen=True, kw_only=True)
class CorpusChoice:
    """Which texts, and what of them."""

    corpus: tuple[str, ...] = ()
    """Files or patterns (.txt .md .json .jsonl .parquet, .gz .xz .bz2 .zst; repeatable), a hub name, or state_of_the_union, docstrings."""
    texts: TextOptions = TextOptions()
    """Texts."""
    chats: ChatOptions = ChatOptions()
    """Conversations."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """What happens to bytes that are no text: an error, or U+FFFD."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split of a data set."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""
    streaming: bool = True
    """Read as it goes, without a copy in the cache of `datasets`."""
    shuffle_seed: int | None = None
    """Seed of a random order of documents; left out: as they come."""
    max_documents: int | None = None
    """Documents to read at most."""
    licence: str | None = None
    """Licence of the texts, to be kept with the store."""

    def __post_init__(self) -> None:
        for text in self.chats.rename_role:
            if len(text.split("=")) != 2 or "" in text.split("="):
                raise ConfigError(f"--rename-role must be OLD=NEW, such as human=user, got {text!r}")
        if self.built_in:
            self._check_built_in()
        if self.chats.chat is None:
            self._check_unused(self.chats, "does nothing without --chat")
        else:
            self._check_unused(self.texts, "does nothing with --chat")

    @property
    def built_in(self) -> str | None:
        """The corpus that comes along, where one of those was asked for."""
        return next((name for name in self.corpus if name in BUILT_IN), None)

    def open(self, model: LanguageModel | None) -> Corpus:
        """The corpus; conversations take their chat template from `model`. Raises ConfigError when there is no corpus like that."""
        if self.built_in:
            return self._open_built_in()
        shared: dict[str, Any] = {name: getattr(self, name) for name in ("encoding_errors", "subset", "split", "revision", "streaming")}
        shared |= {"shuffle_seed": self.shuffle_seed, "max_documents": self.max_documents, "licence": self.licence or "not stated"}
        source = self.corpus[0] if len(self.corpus) == 1 else list(self.corpus)
        chats = self.chats
        if chats.chat is None:
            return from_dataset(source, **asdict(self.texts), **shared)
        if model is None:
            raise ConfigError("--chat needs the model, whose tokenizer has the chat template: give it")
        roles = dict(text.split("=") for text in chats.rename_role)
        keys = {"role_key": chats.role_key, "content_key": chats.content_key, "roles": roles}
        return from_chats(source, model.tokenizer, messages_column=chats.chat, **keys, **shared)

    def _open_built_in(self) -> Corpus:
        assert self.built_in
        if self.built_in == DOCSTRINGS and self.shuffle_seed is None:
            return installed_docstrings(max_documents=self.max_documents)  # reads no more than that
        corpus = BUILT_IN[self.built_in]()
        if self.shuffle_seed is not None:
            corpus = shuffled(corpus, seed=self.shuffle_seed)
        return corpus if self.max_documents is None else beginning(corpus, self.max_documents)

    def _check_built_in(self) -> None:
        if len(self.corpus) > 1:
            raise ConfigError(f"--corpus {self.built_in} cannot be joined with others, got {', '.join(self.corpus)}")
        but = ("corpus", "texts", "chats", "shuffle_seed", "max_documents")
        self._check_unused(self, f"does not apply to --corpus {self.built_in}", but=but)
        self._check_unused(self.texts, f"does not apply to --corpus {self.built_in}")
        self._check_unused(self.chats, f"does not apply to --corpus {self.built_in}")

    def _check_unused(self, owner: Any, why: str, but: tuple[str, ...] = ()) -> None:
        for field in fields(owner):
            if field.name not in but and getattr(owner, field.name) != field.default:
                raise ConfigError(f"--{field.name.replace('_', '-')} {why}")


def corpus_option(name: str) -> str:
    """The option that names the corpus of a store again, as far as that is known."""
    names = {"state_of_the_union": "state_of_the_union", "installed_docstrings": "docstrings"}
    return f" --corpus {names[name]}" if name in names else f" --corpus CORPUS, where CORPUS is {name}"
