"""Chosen features as a folder of pages that needs nothing else: no server, no network; open `index.html` from the disk, or put it on any host.

    <folder>/index.html                          every feature with its driving tokens, density, largest value and bits
             features/<latent>.html              its card, with the previous and the next
             assets/report.css  export.css  export.js
             manifest.json

Links are relative. The script finds and sorts, and turns pages with the arrow keys; without it everything is still there. It is a classic
script, since browsers refuse to load modules from `file:`. Up to 1,000 features the table also shows each one's strongest passage.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sae.inspection.display import PAGE_LIMITS, FeatureCard, Look, environment
from sae.inspection.exports.folder import Export, chosen, clean, export_folder
from sae.inspection.exports.provenance import NOT_RECORDED, Provenance, provenance_of
from sae.inspection.format import number
from sae.inspection.index import FeatureIndex
from sae.inspection.records import RELATIONS, FeatureRecord

FORMAT = "html"
ASSETS = ("report.css", "export.css", "export.js")
MAX_SNIPPETS = 1000
"""Features up to which the table shows passages: each is about three kilobytes of the page."""


NAMES = {"coactivation": "Co-active", "correlation": "Correlated", "encoder_cosine": "Encoder neighbours"}
"""Relations that a page lists below the card, which has the decoder's."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What every page says."""

    title: str
    """Heading."""
    lead: str
    """Sentence below it."""
    n_features: int
    """Features in the folder."""
    snippets: bool
    """Whether the table shows passages."""
    facts: tuple[tuple[str, str], ...]
    """Names and values: site, model, texts."""
    footer: tuple[str, ...]
    """Closing lines."""


def write_html(
    index: FeatureIndex,
    folder: str | Path,
    *,
    latents: Iterable[int] | None = None,
    title: str | None = None,
    provenance: Provenance | None = None,
) -> Path:
    """Write pages of the chosen latents (None: all), in their order; returns the folder.

    Everything on a card is there, signed values and selection steps included. Raises ConfigError for a bad latent, FormatError when the
    folder holds something else.
    """
    selected, texts = chosen(index, latents), provenance or provenance_of(index)
    with export_folder(index, folder, format=FORMAT, latents=selected, provenance=texts) as export:
        site = _site(index, selected, texts, title)
        for name in ASSETS:
            source = resources.files("sae.inspection") / "assets" / name
            export.file(f"assets/{name}").write_bytes(source.read_bytes())
        page = environment().get_template("export/index.html")
        with open(export.file("index.html"), "wb") as file:
            rows = _pages(index, selected, site, export)
            page.stream(site=site, root="", rows=rows, look=Look("page")).dump(file, encoding="utf-8", errors="backslashreplace")
        export.notes.append("The values at every token are not on the pages; the Parquet export has them.")
    return Path(folder)


def _site(index: FeatureIndex, selected: Sequence[int], texts: Provenance, title: str | None) -> Site:
    source = index.manifest.source
    which = "All" if len(selected) == index.d_sae else f"{number(len(selected))} of the"
    facts = {
        "Site": source.site,
        "Model": texts.model or NOT_RECORDED,
        "Texts": texts.dataset or NOT_RECORDED,
        "Licence of the texts": texts.licence or NOT_RECORDED,
        "Looked at": f"{number(source.n_tokens)} tokens of {number(source.n_documents)} documents",
    }
    digests = f"Dictionary {source.dictionary_digest}. Activations {source.store_digest}. Index {index.digest}."
    return Site(
        title=clean(title or source.dictionary),
        lead=f"{which} {number(index.d_sae)} latents, and what was seen of them.",
        n_features=len(selected),
        snippets=len(selected) <= MAX_SNIPPETS,
        facts=tuple(facts.items()),
        footer=(f"Passages are quoted from: {'; '.join(texts.lines()[1:])}.", digests),
    )


def _pages(index: FeatureIndex, selected: Sequence[int], site: Site, export: Export) -> Iterator[FeatureRecord]:
    """Each record for its row of the table, after its page has been written."""
    template = environment().get_template("export/feature.html")
    links = {latent: f"{latent}.html" for latent in selected}
    for place, latent in enumerate(selected):
        record = index.record(latent)
        page = template.render(
            site=site,
            root="../",
            record=record,
            place=place,
            before=selected[place - 1] if place else None,
            after=selected[place + 1] if place + 1 < len(selected) else None,
            card=FeatureCard(record).html(skin="page", links=links),
            links=links,
            look=Look("page"),
            limits=PAGE_LIMITS,
            related=[(name, near) for name, near in record.related.items() if near and name in NAMES],
            names=NAMES,
            definitions=RELATIONS,
        )
        export.file(f"features/{latent}.html").write_bytes(page.encode("utf-8", "backslashreplace"))
        yield record
