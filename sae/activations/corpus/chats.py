"""Conversations as documents: rows of messages, written out by the chat template of a tokenizer.

    [{role, content}, ...] --template--> "<|im_start|>user\\nHello<|im_end|>\\n..." = the text of one document

The tags that the template writes are special tokens, so these documents are tokenised with `special_tokens=True`; as in the model's own
training, a message that spells a tag is then read as that tag too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.activations.corpus.documents import Corpus, EncodingErrors
from sae.activations.corpus.files import Reading
from sae.activations.corpus.tables import Origin, Rendering, corpus_from, decoded
from sae.errors import ConfigError, FormatError
from sae.fingerprint import canonical

if TYPE_CHECKING:
    import datasets

CLOCK = "strftime_now"  # the function by which a template asks for today's date
OWN_OPTIONS = ("conversation", "chat_template", "tokenize", "return_dict", "return_tensors", CLOCK)


@dataclass(frozen=True, kw_only=True)
class ChatText(Rendering):
    """The text is what a chat template makes of a list of messages."""

    tokenizer: Any = field(repr=False, compare=False)
    """A Hugging Face tokenizer."""
    template: str
    """The template, in Jinja."""
    role_key: str
    """Under which key a message has its role."""
    content_key: str
    """Under which key a message has its content."""
    roles: Mapping[str, str]
    """What roles of the data are called in the template, where that differs."""
    options: Mapping[str, Any]
    """Further variables of the template."""

    def identity(self) -> Mapping[str, Any]:
        """The template, the tokenizer's special tokens (which templates write), and the options."""
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        keys = {"messages_column": self.column, "role_key": self.role_key, "content_key": self.content_key, "roles": dict(self.roles)}
        rest = {"special_tokens": special, "template_options": dict(self.options), "encoding_errors": self.encoding_errors}
        return {"chat_template": self.template, **keys, **rest}

    def text(self, value: Any, place: str) -> str | None:
        """The conversation as the template writes it; None when it has no message. Raises FormatError for what is no conversation."""
        import jinja2

        messages = self._messages(value, place)
        if not messages:
            return None
        clock = {CLOCK: None} if CLOCK in self.template else {}
        try:
            text = self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False, **self.options, **clock)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            if clock and isinstance(error, TypeError) and "not callable" in str(error):
                advice = (
                    "give the date under the name that the template takes it by, such as template_options={'date_string': '26 Jul 2024'}"
                )
                raise ConfigError(f"the chat template asks for today's date, so its text would differ from day to day; {advice}") from error
            found = ", ".join(message["role"] for message in messages)
            advice = "leave such rows out, rename roles (roles={'human': 'user'}), or give another template"
            raise FormatError(
                f"the chat template does not take the conversation of {place}, with roles {found}: {error}; {advice}"
            ) from error
        return decoded(text, f"{self.column!r} of {place}", "utf-8", self.encoding_errors)

    def _messages(self, value: Any, place: str) -> list[dict[str, Any]]:
        """A fresh list of messages with role and content; keys without a value, which tables fill in, are dropped."""
        if value is None:
            return []
        if isinstance(value, Mapping) and all(isinstance(items, list) for items in value.values()):
            value = [dict(zip(value, items, strict=False)) for items in zip(*value.values(), strict=False)]  # a struct of lists
        if not isinstance(value, (list, tuple)):
            what = f"{self.column!r} of {place} is a {type(value).__name__}"
            raise FormatError(f"messages_column must hold lists of messages, {what}; name the column of conversations")
        return [self._message(message, f"message {index} in {self.column!r} of {place}") for index, message in enumerate(value)]

    def _message(self, message: Any, where: str) -> dict[str, Any]:
        if not isinstance(message, Mapping):
            raise FormatError(f"{where} must have a role and a content, it is the {type(message).__name__} {str(message)[:40]!r}")
        known = {key: item for key, item in message.items() if item is not None}
        role, content = known.pop(self.role_key, None), known.pop(self.content_key, None)
        if not isinstance(role, str):
            advice = (
                "say with role_key, content_key and roles what they are called (role_key='from', content_key='value' in ShareGPT's form)"
            )
            raise FormatError(f"{where} must have a role under {self.role_key!r}, its keys are {', '.join(map(str, message))}; {advice}")
        if not isinstance(content, str) and not (content is None and known):
            what = "none" if content is None else f"a {type(content).__name__}"
            raise FormatError(
                f"{where} must have a string under {self.content_key!r}, got {what}; leave the row out or write its text there"
            )
        return {"role": self.roles.get(role, role), "content": content, **known}


def from_chats(
    source: "str | Path | Sequence[str | Path] | datasets.Dataset | datasets.IterableDataset",
    tokenizer: Any,
    *,
    messages_column: str = "messages",
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] | None = None,
    template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    label_columns: Sequence[str] = (),
    subset: str | None = None,
    split: str = "train",
    streaming: bool = True,
    revision: str | None = None,
    licence: str = "not stated",
    encoding_errors: EncodingErrors = "strict",
    shuffle_seed: int | None = None,
    max_documents: int | None = None,
) -> Corpus:
    """The conversations of a dataset, each as the chat template of `tokenizer` (a Hugging Face tokenizer) writes it out.

    Every row has in `messages_column` a list of messages with a role and a content, under `role_key` and `content_key`; `roles` renames
    roles (`{"human": "user", "gpt": "assistant"}`), and what else a message has goes to the template too. `template` is another template
    than the tokenizer's, as text or by name, `template_options` are further variables of it, JSON values. A conversation without
    messages is left out. All other arguments are those of `from_dataset`; the source can be JSON or Parquet files.

    The digest covers the template and the tokenizer's special tokens. Raises ConfigError for a tokenizer without a template and for a
    template that asks for today's date, FormatError for a malformed message or one that the template refuses, naming the row.

    >>> corpus = from_chats("conversations.jsonl", model.tokenizer)
    >>> next(corpus.documents()).text
    '<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n'
    """
    options = dict(template_options or {})
    for name in OWN_OPTIONS:
        if name in options:
            raise ConfigError(f"template_options must not have {name!r}, which from_chats gives itself")
    canonical(options)  # refuses what has no JSON form, and so no digest
    rendering = ChatText(
        column=messages_column,
        tokenizer=tokenizer,
        template=_template(tokenizer, template),
        role_key=role_key,
        content_key=content_key,
        roles=dict(roles or {}),
        options=options,
        encoding_errors=encoding_errors,
        special_tokens=True,
    )
    origin = Origin(
        source=source,
        label_columns=tuple(label_columns),
        subset=subset,
        split=split,
        streaming=streaming,
        revision=revision,
        licence=licence,
        shuffle_seed=shuffle_seed,
        max_documents=max_documents,
    )
    return corpus_from(origin, rendering, Reading(columns=(messages_column, *label_columns), encoding_errors=encoding_errors))


def _template(tokenizer: Any, template: str | None) -> str:
    """The text of the template, which the tokenizer may know by name."""
    if not hasattr(tokenizer, "apply_chat_template"):
        raise ConfigError(f"tokenizer must be a Hugging Face tokenizer (model.tokenizer), got a {type(tokenizer).__name__} (from_chats)")
    try:
        found = tokenizer.get_chat_template(template)
    except ValueError as error:
        known = tokenizer.chat_template
        advice = f"give template= one of {', '.join(sorted(known))}" if isinstance(known, dict) else "give template= the text of one"
        raise ConfigError(
            f"the tokenizer has no chat template to use; {advice}, or use the tokenizer of a chat model (from_chats)"
        ) from error
    if "{" not in found:
        known = sorted(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else "none"
        raise ConfigError(
            f"template must be a Jinja template or the name of one the tokenizer has ({known}), got {template!r} (from_chats)"
        )
    return found
