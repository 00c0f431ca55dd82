"""`sae doctor`: what a dictionary is, how it does on a few thousand tokens, and what looks wrong with it, in plain words.

sae doctor downloads/gemma-scope/params.npz                      what was read, and how
sae doctor downloads/sae --store acts                            and how it does on the store's activations, at each of its sites
sae doctor downloads/sae --model default                         and what it does to the language model; texts are shipped
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import state_of_the_union
from sae.activations.store import ActivationStore
from sae.cli.machine import compute_device, load_model, set_threads
from sae.cli.paths import load_any_dictionary, open_store
from sae.cli.screen import console
from sae.dictionaries.activations import JumpReLU
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.evaluation.doctor import Diagnosis, examine, examine_transcoder
from sae.evaluation.downstream import Downstream, downstream
from sae.evaluation.reconstruction import Reconstruction
from sae.fingerprint import to_json
from sae.interop.card import facts, one_line
from sae.interop.formats import identify, named
from sae.models.language_model import LanguageModel

CONTEXT = 128
NEIGHBOURS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
LAYERS_AROUND = (-2, -1, 1, 2)


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Where activations are taken from."""

    store: ActivationStore
    site: str
    elsewhere: tuple[str, ...]
    target: str = ""


def doctor_command(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A dictionary in any format.")],
    *,
    store: Annotated[Path | None, typer.Option(help="Folder of an activation store to try it on.")] = None,
    model: Annotated[str | None, typer.Option(help="Language model to try it in (`default`, a folder, a .gguf file, a hub name).")] = None,
    site: Annotated[str | None, typer.Option(help="Where in the model (default: where the dictionary says it was trained).")] = None,
    format: Annotated[str | None, typer.Option(help="Its format (default: found out).")] = None,
    n_tokens: Annotated[int, typer.Option(help="Tokens to encode.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sample of tokens.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads (default: torch's).")] = None,
) -> None:
    """Say what a dictionary is, how it does on a few thousand tokens, and what looks wrong with it.

    Ends with status 1 when something looks wrong.
    """
    if n_tokens < 64:
        raise ConfigError(f"--n-tokens must be at least 64, got {n_tokens}")
    set_threads(threads)
    found = format or identify(Path(path).expanduser())
    dictionary = load_any_dictionary(path, found)
    language_model = load_model(model, stored=None, dtype=None, device=compute_device(None)) if model else None
    read, notes = described(dictionary, found), notes_of(dictionary)
    if not as_json:
        _print_read(read, notes)
    if store is None and language_model is None:
        if as_json:
            typer.echo(json.dumps({"read": read, "notes": notes}, indent=1))
        else:
            console.print("Give --store or --model (`default` for the default one) to see how it does on text.", soft_wrap=True)
        return
    with _tokens(dictionary, store, language_model, site, n_tokens) as tokens:
        diagnosis = _examined(dictionary, tokens, n_tokens, seed)
        effect = None if language_model is None or tokens.target else _effect(dictionary, language_model, tokens, n_tokens)
        mismatch = _mismatch(dictionary, tokens, language_model)
    if as_json:
        record = {
            "read": read,
            "notes": notes,
            "site": tokens.site,
            "scores": to_json(diagnosis.scores),
            "downstream": to_json(effect) if effect else None,
        }
        complaints = [to_json(complaint) for complaint in diagnosis.complaints] + [{"name": "origin", "text": text} for text in mismatch]
        typer.echo(json.dumps({**record, "complaints": complaints, "tried": dict(diagnosis.tried)}, indent=1))
    else:
        _print_scores(diagnosis, effect, tokens.site)
        _print_complaints(diagnosis, mismatch)
    if not diagnosis.is_sound or mismatch:
        raise typer.Exit(1)


def described(dictionary: Dictionary, format: str) -> dict[str, str]:
    """What was read, as names and values."""
    read = {"format": named(format).title} | {
        name: one_line(text) for name, text in facts(dictionary) if name not in ("digest", "read from", "note")
    }
    read["decoder norms"] = _span(torch.linalg.vector_norm(dictionary.W_dec.detach(), dim=1))
    if isinstance(dictionary, Autoencoder) and isinstance(dictionary.config.activation, JumpReLU):
        read["thresholds"] = _span(dictionary.log_threshold.detach().exp())
    return read


def notes_of(dictionary: Dictionary) -> list[str]:
    """What its reader had to decide, and what a user should know."""
    foreign = dictionary.provenance.get("foreign")
    return [one_line(str(note)) for note in foreign.get("notes", [])] if isinstance(foreign, dict) else []


def _span(values: torch.Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"all {low:.4g}" if high - low <= 1e-3 * abs(high) else f"{low:.3g} to {high:.3g}"


@contextmanager
def _tokens(dictionary: Dictionary, folder: Path | None, model: LanguageModel | None, site: str | None, n_tokens: int) -> Iterator[_Tokens]:
    """A store with the site, and with others of its width: the one given, or a small one that the model fills."""
    if folder is not None:
        store = open_store(folder)
        fitting = tuple(name for name in store.site_names if store.site(name).width == dictionary.d_in)
        yield _Tokens(store, _chosen(dictionary, fitting, store.site_names, site), fitting, _target(dictionary, store.site_names))
        return
    assert model is not None
    every = tuple(name.name for name in model.sites(["blocks.*.*", "blocks.*.*.*"]) if name.width == dictionary.d_in)
    chosen = _chosen(dictionary, every, every, site)
    target = _target(dictionary, [name.name for name in model.sites(["blocks.*.*", "blocks.*.*.*"])])
    near = [target] if target else _around(chosen, every)
    sites = (chosen, *(name for name in near if name != chosen))
    with tempfile.TemporaryDirectory() as temporary:
        config = CaptureConfig(sites=sites, n_tokens=2 * n_tokens, context=min(CONTEXT, model.shape.n_ctx))
        for _ in collect(model, state_of_the_union(), Path(temporary) / "acts", config):
            pass
        yield _Tokens(ActivationStore.open(Path(temporary) / "acts"), chosen, sites, target)


def _chosen(dictionary: Dictionary, fitting: Sequence[str], there: Sequence[str], asked: str | None) -> str:
    """The site asked for, or the stated one, or the only one. Raises ConfigError naming those of the right width."""
    stated = str(dictionary.provenance.get("site") or "")
    found = asked or (stated if stated in fitting else "") or (fitting[0] if len(fitting) == 1 else "")
    if found in fitting:
        return found
    what = f"got {asked}" if asked else f"the dictionary states {stated}" if stated else "the dictionary states none"
    few = ", ".join(fitting[:8]) + (" …" if len(fitting) > 8 else "")
    raise ConfigError(f"--site must be a site of width {dictionary.d_in} ({few or 'there is none among ' + ', '.join(there[:8])}), {what}")


def _target(dictionary: Dictionary, there: Sequence[str]) -> str:
    """The site that a transcoder explains; empty for an autoencoder. Raises ConfigError where it is not stated or not there."""
    if not (isinstance(dictionary, Autoencoder) and dictionary.is_transcoder):
        return ""
    stated = str(dictionary.provenance.get("target_site") or "")
    if stated not in there:
        what = f"states {stated}" if stated else "states none"
        raise ConfigError(f"a transcoder needs the activations of the site that it explains: it {what}, there are {', '.join(there[:8])}")
    return stated


def _around(chosen: str, every: Sequence[str]) -> list[str]:
    """Sites near the chosen one: the same kind some layers away, other kinds of its layer."""
    parts = chosen.split(".")
    if len(parts) < 3 or not parts[1].isdecimal():
        return []
    layer = int(parts[1])
    near = [".".join([parts[0], str(layer + step), *parts[2:]]) for step in LAYERS_AROUND]
    near += [f"blocks.{layer}.hook_{kind}" for kind in NEIGHBOURS]
    return [name for name in near if name in every]


def _examined(dictionary: Dictionary, tokens: _Tokens, n_tokens: int, seed: int) -> Diagnosis:
    store = tokens.store

    def sample(site: str) -> torch.Tensor:
        usable = store.mask(site).nonzero().squeeze(1)
        order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))[:n_tokens]
        return store.gather(site, usable[order].sort().values, dtype=torch.float32)

    if tokens.target:
        joint = (store.mask(tokens.site) & store.mask(tokens.target)).nonzero().squeeze(1)
        rows = joint[torch.randperm(len(joint), generator=torch.Generator().manual_seed(seed))[:n_tokens].sort().values]
        acts, targets = (store.gather(name, rows, dtype=torch.float32) for name in (tokens.site, tokens.target))
        return examine_transcoder(dictionary, acts, targets)
    elsewhere = {name: sample(name)[:1024] for name in tokens.elsewhere if name != tokens.site}
    return examine(dictionary, sample(tokens.site), elsewhere=elsewhere, site=tokens.site, l0=_stated_l0(dictionary))


def _stated_l0(dictionary: Dictionary) -> float | None:
    """The L0 that the maker of a foreign dictionary reports, where the file has one."""
    foreign = dictionary.provenance.get("foreign")
    config = foreign.get("config", {}) if isinstance(foreign, dict) else {}
    metadata = config.get("metadata", {}) if isinstance(config, dict) else {}
    value = metadata.get("l0") if isinstance(metadata, dict) else None
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _effect(dictionary: Dictionary, model: LanguageModel, tokens: _Tokens, n_tokens: int) -> Downstream:
    store = tokens.store
    n_rows = max(1, min(store.n_rows, n_tokens // store.context))
    mask = store.mask(tokens.site).view(-1, store.context)[:n_rows]
    mean = store.statistics(tokens.site).mean.float()
    rows = store.tokens()[:n_rows].long()
    *_, (_, scores) = downstream(model, {"it": dictionary}, model.site(tokens.site), rows, mask, mean)
    return scores["it"]


def _mismatch(dictionary: Dictionary, tokens: _Tokens, model: LanguageModel | None) -> list[str]:
    """What the dictionary says of its origin that is not so here."""
    said, found = dictionary.provenance, []
    stated, record = said.get("site"), tokens.store.manifest.model
    if stated and stated != tokens.site:
        found.append(f"it states the site {stated}, and was tried at {tokens.site}")
    here = model.digest if model is not None else record.digest if record is not None else None
    if said.get("model_digest") and here and said["model_digest"] != here:
        found.append(f"it was trained on a model of digest {str(said['model_digest'])[:12]}, and was tried on one of digest {here[:12]}")
    name = model.name if model is not None else record.name if record is not None else None
    if said.get("model") and name and str(said["model"]).split("/")[-1].lower() not in str(name).lower().replace("_", "-"):
        found.append(f"it states the model {said['model']}, and was tried on {name}")
    return found


def _print_read(read: Mapping[str, str], notes: Sequence[str]) -> None:
    for name, value in (*read.items(), *(("note", note) for note in notes)):
        console.print(f"{name:<14} {value}", highlight=False, markup=False, soft_wrap=True)


def _print_scores(diagnosis: Diagnosis, effect: Downstream | None, site: str) -> None:
    s = diagnosis.scores
    console.print(f"\nOn {s.n_tokens:,} tokens at {site}:", highlight=False, markup=False)
    rows = [
        ("FVU", f"{s.fvu:.4f}", "share of the variance that is not explained; 1 is predicting the mean"),
        ("L0", f"{s.l0:.1f}", "active latents per token"),
        ("dead", f"{s.dead_share:.1%}", "latents that fired on none of these tokens"),
    ]
    if isinstance(s, Reconstruction):
        rows += [
            ("norm ratio", f"{s.norm_ratio:.3f}", "norm of the reconstruction over that of the activation"),
            ("cosine", f"{s.cosine:.3f}", "between the two"),
        ]
    if effect is not None:
        rows += [
            (
                "CE recovered",
                f"{effect.ce_recovered_zero:.3f}",
                f"against zeros; {effect.ce_recovered_mean:.3f} against the mean activation",
            ),
            ("CE increase", f"{effect.ce_spliced - effect.ce_clean:.3f}", f"nats per token, on {effect.n_tokens:,} predictions"),
        ]
    for name, value, meaning in rows:
        console.print(f"  {name:<14}{value:>9}   [dim]{meaning}[/dim]", highlight=False, soft_wrap=True)


def _print_complaints(diagnosis: Diagnosis, mismatch: Sequence[str]) -> None:
    if diagnosis.is_sound and not mismatch:
        console.print(
            f"\nNothing looks wrong: {len(diagnosis.tried)} other ways to use it were tried, and none does much better.", soft_wrap=True
        )
        return
    console.print("\n[bold]What looks wrong[/bold]")
    for text in (*(complaint.text for complaint in diagnosis.complaints), *mismatch):
        console.print(f"- {text}", highlight=False, markup=False, soft_wrap=True)
