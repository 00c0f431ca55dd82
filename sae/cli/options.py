"""Command-line options made from configuration dataclasses: a field with its type, default and docstring is one option.

    AutoencoderConfig.d_sae            --d-sae N
    TrainConfig.optimiser.betas        --betas 0.9 0.999                      nested: flattened
    TrainConfig.optimiser.kind         --optimiser-kind adam                  flattened names that clash: the path
    TrainConfig.resampling             --resampling, --resampling-every N     optional parts: the path always, and a switch

A new field of a configuration appears here by itself. An option that is not given leaves the field to its default.
"""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import typer

from sae.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Flag:
    """One option."""

    name: str
    """Its name, with underscores."""
    kind: Any
    """Type of its value."""
    help: str
    """What it says, with its default."""
    panel: str
    """Heading under which help lists it."""
    places: dict[str, tuple[str, ...]]
    """Path of the field in the tree of settings, by the choice that it belongs to; by "" where it always applies."""
    swept: bool = False
    """Whether it may be given several times."""
    switch: bool = False
    """Whether it only says that an optional part is wanted, with its defaults."""

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    def parameter(self) -> inspect.Parameter:
        """It as a parameter of a command."""
        kind = list[self.kind] if self.swept else self.kind
        names = (f"{self.option}/--no-{self.option[2:]}",) if kind is bool else (self.option,)
        info = typer.Option(*names, help=self.help, rich_help_panel=self.panel, show_default=False)
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info])


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataclass whose fields become options."""

    owner: type
    """The dataclass."""
    path: tuple[str, ...]
    """Where its fields lie in the tree of settings."""
    panel: str
    """Heading under which help lists them."""
    choice: str = ""
    """The architecture or objective that it belongs to; empty where it always applies."""


@dataclasses.dataclass(frozen=True)
class _Leaf:
    name: str
    long_name: str
    kind: Any
    doc: str
    default: Any
    path: tuple[str, ...]
    source: Source
    switch: bool = False


def field_docs(owner: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(node, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(after.value).split())
        for field, after in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }


def flags(sources: Iterable[Source], *, left_out: Iterable[str], swept: Iterable[str]) -> list[Flag]:
    """The options of all sources. Fields of one name that belong to different choices are one option."""
    sources, left_out, swept, tags = list(sources), set(left_out), set(swept), set()
    leaves = [leaf for source in sources for leaf in _leaves(source, source.owner, source.path, "", left_out, tags)]
    shared = {leaf.name: set() for leaf in leaves}
    for leaf in leaves:
        shared[leaf.name].add(leaf.long_name)
    found: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        clashes = len(shared[leaf.name]) > 1 or leaf.name in tags
        found.setdefault(leaf.long_name if clashes else leaf.name, []).append(leaf)
    everywhere = {panel: {source.choice for source in sources if source.panel == panel} for panel in {source.panel for source in sources}}
    return [_flag(name, several, name in swept, everywhere[several[0].source.panel]) for name, several in found.items()]


def _leaves(source: Source, owner: type, path: tuple[str, ...], prefix: str, left_out: set[str], tags: set[str]) -> Iterable[_Leaf]:
    hints, docs = typing.get_type_hints(owner), field_docs(owner)
    for field in dataclasses.fields(owner):
        kind, optional = _without_none(hints[field.name])
        inner = (*path, field.name)
        if typing.get_origin(kind) is Literal and len(typing.get_args(kind)) == 1:
            tags.add(field.name)
        elif field.name in left_out or typing.get_origin(kind) in (Union, types.UnionType):
            continue
        elif dataclasses.is_dataclass(kind):
            if optional and all(_default(each) is not dataclasses.MISSING for each in dataclasses.fields(kind)):
                yield _Leaf(prefix + field.name, prefix + field.name, bool, docs[field.name], False, inner, source, switch=True)
            yield from _leaves(source, kind, inner, f"{prefix}{field.name}_" if optional else prefix, left_out, tags)
        else:
            name = prefix + field.name
            within = "_".join(part for part in inner[len(source.path) :] if part != "terms")
            yield _Leaf(name, within, kind, docs[field.name], _default(field), inner, source)


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (Union, types.UnionType) and type(None) in typing.get_args(kind):
        rest = tuple(part for part in typing.get_args(kind) if part is not type(None))
        return (rest[0] if len(rest) == 1 else Union[rest]), True  # noqa: UP007
    return kind, False


def _flag(name: str, leaves: list[_Leaf], swept: bool, choices: set[str]) -> Flag:
    kinds = {leaf.kind for leaf in leaves}
    kind = float if kinds == {int, float} else next(iter(kinds))
    if len(kinds) > 1 and kind is not float:
        raise ConfigError(f"option {name!r} would have several types: {kinds}")
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is Ellipsis:
        kind = list[typing.get_args(kind)[0]]
    places = {leaf.source.choice: leaf.path for leaf in leaves}
    notes = []
    defaults = {_text(leaf.default) for leaf in leaves}
    if "" not in defaults and defaults != {"False"}:
        notes += [f"default {', '.join(sorted(defaults))}"]
    notes += ["repeat to sweep"] if swept else []
    notes += [f"only {', '.join(places)}"] if set(places) != choices else []
    docs = " / ".join(dict.fromkeys(leaf.doc.rstrip(".") for leaf in leaves))
    return Flag(name, kind, f"{docs} ({'; '.join(notes)})" if notes else docs, leaves[0].source.panel, places, swept, leaves[0].switch)


def _text(default: Any) -> str:
    if default is dataclasses.MISSING or default is None:
        return ""
    if isinstance(default, tuple):
        return " ".join(_text(item) for item in default)
    return f"{default:g}" if isinstance(default, (int, float)) and not isinstance(default, bool) else str(default)


def command(function: Callable[..., None], found: Sequence[Flag]) -> Callable[..., None]:
    """`function`, which takes its own parameters and the options' values as a dict `given`, as a command with all of them."""
    own = [parameter for name, parameter in inspect.signature(function).parameters.items() if name != "given"]
    names = [flag.name for flag in found]

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in names}
        function(**values, given={name: value for name, value in given.items() if value not in (None, [])})

    run.__signature__ = inspect.Signature([*own, *(flag.parameter() for flag in found)])  # type: ignore[attr-defined]
    run.__annotations__ = {}
    run.__name__, run.__doc__ = function.__name__, _paragraphs(inspect.getdoc(function) or "")
    return run


def _paragraphs(text: str) -> str:
    """The same with every paragraph on one line, for help to break anew."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def put(tree: dict[str, Any], flag: Flag, value: Any, choices: Mapping[str, str]) -> None:
    """Set what an option gives in the tree of settings, in place. Raises ConfigError for an option that belongs to another choice.

    `choices` are the architecture and objective chosen, by the name of their option.
    """
    places = [flag.places[name] for name in ("", *choices.values()) if name in flag.places]
    if not places:
        chosen = " ".join(f"--{option} {name}" for option, name in choices.items())
        raise ConfigError(f"{flag.option} does not apply to {chosen}; it belongs to {', '.join(flag.places)}")
    (path,) = places
    for part in path[:-1]:
        inner = tree.get(part)
        tree[part] = dict(inner) if isinstance(inner, Mapping) else {}
        tree = tree[part]
    if flag.kind is float and isinstance(value, float) and value.is_integer():
        value = int(value)  # one option may serve fields of either type; a configuration takes an int for a float
    if flag.switch:
        value = (tree.get(path[-1]) or {}) if value else None
    tree[path[-1]] = value
