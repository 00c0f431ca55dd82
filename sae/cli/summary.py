"""What is in a store, on the screen or as JSON.

overhead = bytes on disk / (n_tokens x sum of widths x bytes of a number) - 1
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.measure import Measurement
from rich.table import Table

from sae.activations.manifest import MANIFEST, UNFINISHED, Manifest, read_manifest
from sae.activations.shards import TOKENS_FILE, shard_folder, site_file, sound_files
from sae.activations.store import ActivationStore
from sae.cli.corpora import corpus_option
from sae.cli.disk import bytes_there
from sae.cli.screen import console
from sae.models.sites import Site
from sae.storage import map_tensors

BATCH_SIZE, N_BATCHES, SMALLEST_BATCH = 4096, 4, 3
LEGEND = (
    "usable: tokens that batches are made of; outliers: masked, as their norm |a| is above the threshold; |a - µ|: mean distance from the "
    "mean; variance: of all coordinates together; storage FVU: share of it that rounding to disk lost"
)
SITE_NUMBERS = ("n", "n_outliers", "median_norm", "threshold", "mean_norm", "mean_centred_norm", "total_variance", "storage_fvu")


def summary(store: ActivationStore) -> dict[str, Any]:
    """Everything that is shown of a complete store, as JSON has it."""
    manifest = store.manifest
    n_bytes, shard_bytes = bytes_there(store.path), bytes_there(store.path / "shards")
    n_numbers = store.n_tokens * sum(site.width for site in manifest.sites)
    model = manifest.model
    return {
        "path": str(store.path),
        "complete": True,
        "digest": store.digest,
        "model": None if model is None else {"name": model.name, "digest": model.digest, "dtype": model.dtype},
        "corpus": {"name": manifest.corpus.name, "digest": manifest.corpus.digest, "licence": manifest.corpus.licence},
        "n_tokens": store.n_tokens,
        "n_rows": store.n_rows,
        "context": store.context,
        "n_documents": _n_documents(store),
        "isolated": manifest.capture.isolated,
        "has_tokens": store.has_tokens,
        "dtype": manifest.capture.dtype,
        "n_shards": len(manifest.shards),
        "mask": {"skipped_positions": list(manifest.mask.skipped_positions), "norm_ratio": manifest.mask.norm_ratio},
        "n_bytes": n_bytes,
        "shard_bytes": shard_bytes,
        "overhead": shard_bytes / (n_numbers * store.dtype.itemsize) - 1.0,
        "sites": [_site(site, manifest) for site in manifest.sites],
        "batches": _batches(store),
        "adding": _adding(store.path),
    }


def _site(site: Site, manifest: Manifest) -> dict[str, Any]:
    found = manifest.statistics[site.name]
    return {"name": site.name, "width": site.width, **{name: getattr(found, name) for name in SITE_NUMBERS}}


def _n_documents(store: ActivationStore) -> int:
    found: set[int] = set()
    for index in range(len(store.manifest.shards)):
        found.update(map_tensors(shard_folder(store.path, store.manifest, index) / TOKENS_FILE)["document_ids"].tolist())
    return len(found)


def _batches(store: ActivationStore) -> dict[str, Any]:
    """How well batches of the first site are mixed: over documents, and how alike neighbouring rows are."""
    site = store.site_names[0]
    n_usable = store.manifest.statistics[site].n
    batch_size = max(1, min(BATCH_SIZE, n_usable // 2))
    options = {"batch_size": batch_size, "seed": 0, "held_out": 0.0, "n_batches": min(N_BATCHES, n_usable // batch_size)}
    found: dict[str, Any] = {"site": site, "batch_size": batch_size, "mixing": store.mixing(site, **options), "neighbours": None}
    if batch_size >= SMALLEST_BATCH:
        alike = store.neighbour_mixing(site, **options)
        parts = {"batches": alike.batches, "permutation": alike.permutation, "in_order": alike.in_order}
        found["neighbours"] = {name: {"value": part.value, "standard_error": part.standard_error} for name, part in parts.items()}
    return found


def _adding(path: Path) -> dict[str, Any] | None:
    """What is being added to a complete store."""
    return how_far(path) if (path / UNFINISHED).exists() else None


def how_far(path: Path) -> dict[str, Any]:
    """What has been done of a capture that has not ended, and how to go on, as JSON has it."""
    wanted = read_manifest(path, UNFINISHED)
    needed = {TOKENS_FILE, *(site_file(site.name) for site in wanted.sites)}
    folders = [shard_folder(path, wanted, index) for index in range(len(wanted.shard_rows))]
    n_finished = sum(needed <= sound_files(folder) for folder in folders)
    return {
        "path": str(path),
        "complete": False,
        "model": None if wanted.model is None else wanted.model.name,
        "corpus": wanted.corpus.name,
        "n_tokens": wanted.n_rows * wanted.capture.context or wanted.capture.n_rows * wanted.capture.context,
        "sites": [site.name for site in wanted.sites],
        "tokens_written": bool(wanted.n_rows),
        "n_shards": len(folders),
        "n_finished": n_finished,
        "n_bytes": bytes_there(path),
        "next": _next(path, wanted),
    }


def _next(path: Path, wanted: Manifest) -> str:
    """The command that goes on."""
    if wanted.model is None:
        return "run the same import again"
    if (path / MANIFEST).exists():
        stored = read_manifest(path)
        if stored.capture == wanted.capture:
            return f"sae store repair {path}"
    elif wanted.shards:
        return "run the same `sae store merge` again"
    return f"sae capture --out {path}" + ("" if wanted.n_rows else corpus_option(wanted.corpus.name))


def print_summary(store: ActivationStore, *, as_json: bool = False) -> None:
    """Show a complete store."""
    found = summary(store)
    if as_json:
        console.print_json(json.dumps(found))
        return
    for name, text in _lines(found):
        console.print(f"{name:<9} {text}", highlight=False, soft_wrap=True)
    table = _table(found["sites"])
    if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
        console.print("", table, sep="\n")
    else:
        _print_sites(found["sites"])
    console.print(f"\n{LEGEND}", style="dim", highlight=False)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    model, corpus, batches = found["model"], found["corpus"], found["batches"]
    rows = f"in {found['n_rows']:,} rows of {found['context']}" if found["context"] > 1 else "one by one"
    what = "tokens" if found["has_tokens"] else "vectors"
    skipped = ", ".join(map(str, found["mask"]["skipped_positions"]))
    where = "document" if found["isolated"] else "row"
    masked = f"position {skipped} of every {where}, and norms" if skipped else "norms"
    lines = [
        ("store", f"{found['path']} ({found['digest'][:12]})"),
        ("model", "not known" if model is None else f"{model['name']} ({model['digest'][:12]}), computed in {model['dtype']}"),
        ("corpus", f"{corpus['name']} ({corpus['digest'][:12]}); licence: {corpus['licence']}"),
        (what, f"{found['n_tokens']:,} {rows}, of {found['n_documents']:,} documents" + (", kept apart" if found["isolated"] else "")),
        ("masked", f"{masked} above {found['mask']['norm_ratio']:g} medians"),
        ("on disk", _disk(found)),
        ("batches", f"of {batches['batch_size']:,} hold {batches['mixing']:.3f} times the documents of a random sample"),
    ]
    if batches["neighbours"]:
        lines.append(("", _neighbours(batches["neighbours"])))
    if found["adding"]:
        lines.append(("adding", progress_line(found["adding"])))
    return lines


def _neighbours(found: dict[str, Any]) -> str:
    shown = {name: f"{part['value']:.3f}" for name, part in found.items()}
    error = found["permutation"]["standard_error"]
    return (
        f"neighbouring rows: cosine {shown['batches']}, in random order {shown['permutation']} ± {error:.3f}, in the order of the store "
        f"{shown['in_order']}"
    )


def _disk(found: dict[str, Any]) -> str:
    total, rest = decimal(found["n_bytes"]), decimal(found["n_bytes"] - found["shard_bytes"])
    shards = f"{found['n_shards']:,} shards" if found["n_shards"] != 1 else "1 shard"
    return f"{total} as {found['dtype']}: {shards}, {found['overhead']:.2%} over its numbers alone, and {rest} of statistics"


def progress_line(found: dict[str, Any]) -> str:
    """How far a capture is, and how it goes on."""
    done = (
        f"{found['n_finished']:,} of {found['n_shards']:,} shards are there"
        if found["tokens_written"]
        else "its tokens are not all written"
    )
    command = found["next"]
    return f"{done}; to go on: {command}"


def print_unfinished(path: Path, *, as_json: bool = False) -> None:
    """Show a store that is not complete."""
    found = how_far(path)
    if as_json:
        console.print_json(json.dumps(found))
        return
    for name, text in (
        ("store", f"{path}, not complete: {progress_line(found)}"),
        ("model", found["model"] or "not known"),
        ("corpus", found["corpus"]),
        ("sites", ", ".join(found["sites"])),
        ("wanted", f"{found['n_tokens']:,} tokens"),
        ("on disk", decimal(found["n_bytes"])),
    ):
        console.print(f"{name:<9} {text}", highlight=False, soft_wrap=True)


def _table(sites: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("site", no_wrap=True)
    for name in ("width", "usable", "outliers", "median |a|", "threshold", "mean |a|", "|a - µ|", "variance", "storage FVU"):
        table.add_column(name, justify="right", no_wrap=True)
    for site in sites:
        norms = (number(site[name]) for name in ("median_norm", "threshold", "mean_norm", "mean_centred_norm", "total_variance"))
        table.add_row(site["name"], f"{site['width']:,}", f"{site['n']:,}", f"{site['n_outliers']:,}", *norms, f"{site['storage_fvu']:.2g}")
    return table


def _print_sites(sites: Sequence[dict[str, Any]]) -> None:
    for site in sites:
        median, threshold, mean, centred, variance = (
            number(site[name]) for name in ("median_norm", "threshold", "mean_norm", "mean_centred_norm", "total_variance")
        )
        for line in (
            f"[bold]{site['name']}[/bold]  width {site['width']:,}",
            f"  usable {site['n']:,}, outliers {site['n_outliers']:,}, threshold {threshold}",
            f"  median |a| {median}, mean |a| {mean}, |a - µ| {centred}",
            f"  variance {variance}, storage FVU {site['storage_fvu']:.2g}",
        ):
            console.print(line, highlight=False)


def number(value: float) -> str:
    """Four digits, with thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
