"""What a dictionary says of itself: as rows of facts, and as a model card.

Everything comes from the dictionary and its provenance; what they do not say is said to be not known. Provenance may come from a stranger's
file, so no text of it reaches a card as Markdown, HTML or YAML: it is shown as code, on one line.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.dictionaries.pursuit import MatchingPursuit
from sae.errors import ConfigError
from sae.fingerprint import to_json

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
MAX_TEXT = 500
"""Characters of a text from the provenance that are shown."""
MAX_CONFIG = 20_000
"""Characters of a configuration that are shown."""
UNKNOWN = "not known"


def facts(dictionary: Dictionary) -> list[tuple[str, str]]:
    """(name, text) of what the dictionary is and where it comes from. The texts are as they were found: escape them for the page they go to."""
    known, foreign = dictionary.provenance, _foreign(dictionary)
    rows = [("kind", _kind(dictionary)), ("latents", f"{dictionary.d_sae:,}"), ("width", _widths(dictionary))]
    rows += [("activation", _activation(dictionary)), ("input", _input(dictionary))]
    rows += [("site", _text(known.get("site"))), *([("explains", _text(known["target_site"]))] if "target_site" in known else [])]
    rows.append(("model", _model(known)))
    rows.append(("read from", _text(foreign["format"]) if foreign else "the workbench's own format"))
    rows += [("note", _text(note)) for note in foreign.get("notes", [])]
    return [*rows, ("digest", dictionary.digest)]


def _foreign(dictionary: Dictionary) -> dict[str, Any]:
    foreign = dictionary.provenance.get("foreign")
    return foreign if isinstance(foreign, dict) and "format" in foreign else {}


def _kind(dictionary: Dictionary) -> str:
    if isinstance(dictionary, Autoencoder):
        return "transcoder" + (" with a linear path" * dictionary.config.skip) if dictionary.is_transcoder else "autoencoder"
    return "matching pursuit" if isinstance(dictionary, MatchingPursuit) else type(dictionary).__name__.lower()


def _widths(dictionary: Dictionary) -> str:
    d_out = dictionary.W_dec.shape[1]
    both = isinstance(dictionary, Autoencoder) and dictionary.is_transcoder
    return f"{dictionary.d_in:,} in, {d_out:,} out" if both else f"{dictionary.d_in:,}"


def _activation(dictionary: Dictionary) -> str:
    """The activation, or the rule of a pursuit, with its options."""
    if isinstance(dictionary, Autoencoder):
        name = type(dictionary.config.activation).__name__
        options = {} if dictionary.k is None else {"k": dictionary.k}
    else:
        name = _kind(dictionary)
        options = {key: value for key, value in to_json(dictionary.config).items() if key not in ("d_in", "d_sae", "normalisation")}
    return f"{name} ({', '.join(f'{key} {_number(value)}' for key, value in options.items())})" if options else name


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _input(dictionary: Dictionary) -> str:
    """What happens to activations before they are encoded."""
    config = to_json(dictionary.config)
    steps = [str(config["normalisation"]).replace("_", " ")] if config.get("normalisation", "none") != "none" else []
    if not dictionary.scaling.is_identity:
        mean = "less a mean" if bool(dictionary.scaling_mean.any()) else "as they are"
        steps.append(f"{mean}, times {dictionary.scaling.scale:.6g}")
    if isinstance(dictionary, Autoencoder) and not dictionary.is_transcoder:
        steps.append("less b_dec" if dictionary.config.apply_b_dec_to_input else "b_dec is not subtracted")
    return "; ".join(steps) or "activations as they are"


def _model(known: Mapping[str, Any]) -> str:
    parts = [str(known["model"])] if known.get("model") else []
    parts += [f"digest {known['model_digest']}"] if known.get("model_digest") else []
    return "; ".join(parts) or UNKNOWN


def _text(value: Any) -> str:
    return UNKNOWN if value in (None, "") else value if isinstance(value, str) else json.dumps(value)


def model_card(
    dictionary: Dictionary,
    *,
    scores: Sequence[tuple[str, str, str]] | None,
    name: str,
    licence: str | None = None,
    repo_id: str | None = None,
) -> str:
    """The README.md of a dictionary: front matter, facts, scores as (name, value, definition), configuration, and how to load it.

    Raises ConfigError for a licence that is no identifier such as apache-2.0, and for a `repo_id` that is none.
    """
    if licence is not None and not LICENCE.fullmatch(licence.lower()):
        raise ConfigError(f"licence must be an identifier such as apache-2.0, got {licence!r} (model_card)")
    check_repository(repo_id)
    title = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", one_line(name)) or "Sparse dictionary"
    parts = [_front_matter(dictionary, licence), f"# {title}", _summary(dictionary), _facts(dictionary, licence), _scores(scores)]
    parts += [_configuration("Training", dictionary.provenance.get("training"), "how it was trained is not known")]
    if foreign := _foreign(dictionary):
        parts.append(_configuration("Configuration in the file it was read from", foreign.get("config"), "it had none"))
    return "\n\n".join([*parts, _loading(repo_id)]) + "\n"


def check_repository(repo_id: str | None) -> None:
    """Raises ConfigError unless it is a name on the hub, or None."""
    if repo_id is not None and not REPOSITORY.fullmatch(repo_id):
        raise ConfigError(f"repo_id must be a name on the hub such as owner/name, got {repo_id!r}")


def one_line(text: str) -> str:
    """The text without line breaks and characters that do not print, cut where it is very long."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= MAX_TEXT else plain[: MAX_TEXT - 1] + "…"


def code(text: str) -> str:
    """The text as a code span of Markdown, in which nothing is markup; what is not known stays plain."""
    plain = one_line(text)
    if plain in ("", UNKNOWN):
        return UNKNOWN
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def _front_matter(dictionary: Dictionary, licence: str | None) -> str:
    model = dictionary.provenance.get("model")
    lines = [f"license: {json.dumps(licence.lower())}"] if licence else []
    lines += [f"base_model: {json.dumps(model)}"] if isinstance(model, str) and REPOSITORY.fullmatch(model) else []
    return "\n".join(["---", *lines, "library_name: sae-workbench", "tags:", "- sparse-autoencoder", "- interpretability", "---"])


def _summary(dictionary: Dictionary) -> str:
    what = f"A sparse dictionary of {dictionary.d_sae:,} latents for activations of width {dictionary.d_in:,}"
    place = f" of the language model at {code(_text(dictionary.provenance.get('site')))}" if dictionary.provenance.get("site") else ""
    return f"{what}{place}. This card was generated from what the dictionary says of itself."


def _facts(dictionary: Dictionary, licence: str | None) -> str:
    rows = [*facts(dictionary), ("activation store", _text(dictionary.provenance.get("store_digest")))]
    lines = [f"- {label[0].upper()}{label[1:]}: {code(text)}" for label, text in rows]
    return "\n".join(["## What it is", "", *lines, f"- Licence: {licence.lower() if licence else 'not stated'}"])


def _scores(scores: Sequence[tuple[str, str, str]] | None) -> str:
    lines = [f"- {code(name)}: {code(value)}" + (f"; {code(definition)}" if definition else "") for name, value, definition in scores or ()]
    return "\n".join(["## Scores", "", *(lines or ["Not known: none were given when this card was made."])])


def _configuration(title: str, config: Any, absent: str) -> str:
    """JSON in a fence: inside a JSON text no line begins with the fence's backticks."""
    if not config:
        return f"## {title}\n\n{absent[0].upper()}{absent[1:]}."
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=True)
    if len(text) > MAX_CONFIG:
        return f"## {title}\n\nIn `provenance.json`; it is too long for this page."
    return f"## {title}\n\n```json\n{text}\n```"


def _loading(repo_id: str | None) -> str:
    place = f'hub.pull("{repo_id}")' if repo_id else '"path/to/this/folder"'
    imports = "formats, hub" if repo_id else "formats"
    return "\n".join(
        [
            "## Loading it", "", "```python", f"from sae.interop import {imports}", "", f"dictionary = formats.read({place})",
            "codes = dictionary.encode(acts)  # acts [n, d_in] in the units of the language model", "```",
        ]
    )  # fmt: skip
