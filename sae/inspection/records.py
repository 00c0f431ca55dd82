"""The schema of what is shown: frozen records, plain JSON both ways through `sae.fingerprint.to_json` and `from_json`.

The card, the report, the notebook and every program that asks about a feature read these records and nothing else. Numbers are Python
floats and ints, texts are strings, sequences are tuples. A *value* is what the dictionary gives a latent at a token: an activation for an
autoencoder, a coefficient (which may be negative) for a matching pursuit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TokenEffect:
    """A token whose logit the latent's decoder direction moves."""

    token: str
    """Text of the vocabulary item."""
    token_id: int
    """Its id."""
    effect: float
    """Change of its logit, in the convention the record states."""


@dataclass(frozen=True)
class DrivingToken:
    """A vocabulary item on which the latent fires."""

    token: str
    """Text of the vocabulary item."""
    token_id: int
    """Its id."""
    n_active: int
    """Occurrences of it on which the latent fires."""
    n_occurrences: int
    """Occurrences of it among the tokens looked at."""
    mass: float
    """Sum of |value| over those firings."""
    share: float
    """mass divided by the latent's whole mass, 0..1."""

    @property
    def precision(self) -> float:
        """P(latent fires | token) = n_active / n_occurrences."""
        return self.n_active / self.n_occurrences


@dataclass(frozen=True)
class Neighbour:
    """A latent that is close to another, in one of the senses of `RELATIONS`."""

    index: int
    """Latent id."""
    value: float
    """How close: a cosine, phi or Pearson's r, each -1..1."""
    n_together: int | None = None
    """Tokens on which both fire, exact; None where closeness is one of directions."""

    @property
    def cosine(self) -> float:
        """`value`, for readers of neighbours by cosine."""
        return self.value


RELATIONS: Mapping[str, str] = {
    "decoder_cosine": "Cosine between the two decoder directions, over the whole dictionary.",
    "encoder_cosine": "Cosine between the two encoder directions, over the whole dictionary.",
    "coactivation": "Phi coefficient of firing on the same token: Pearson's correlation of the two 0/1 variables over all tokens looked at, "
    "from exact counts, among all latents that ever fire on the same token.",
    "correlation": "Pearson's correlation of the two latents' values over all tokens looked at (0 where a latent does not fire), among all "
    "latents that ever fire on the same token.",
}
"""What each kind of closeness is."""

NEAR_MISS_DEFINITION = (
    "Tokens on which the latent does not fire although they are among its driving tokens: occurrences of each driving token in turn, drawn "
    "uniformly with a seed, at most one per document, near-duplicates removed. Values just below the firing threshold are not kept in sparse "
    "codes, so these are not the next strongest ones."
)
"""What a near miss is."""


@dataclass(frozen=True)
class Histogram:
    """Counts of the latent's non-zero values in equal-width bins."""

    edges: tuple[float, ...]
    """Bin edges, ascending, one more than the counts."""
    counts: tuple[int, ...]
    """Values in [edge_i, edge_i+1); the last bin holds its upper edge too."""


@dataclass(frozen=True)
class Example:
    """One passage in which the latent fires."""

    document: int
    """Document id."""
    row: int
    """Row of the activation store."""
    position: int
    """Position of the peak token within the row."""
    tokens: tuple[str, ...]
    """Texts of the tokens shown: a window around the peak, clipped to the row and to the document."""
    values: tuple[float, ...]
    """The latent's value at each of them (0 where it does not fire, or where the token is masked)."""
    peak: int
    """Place of the peak token within `tokens`."""
    labels: Mapping[str, str | int]
    """Labels of the document."""

    @property
    def value(self) -> float:
        """The latent's value at the peak."""
        return self.values[self.peak]


@dataclass(frozen=True)
class Interval:
    """Samples of the firings whose value lies in (low, high]: zero is never among them."""

    low: float
    """Lower end, excluded."""
    high: float
    """Upper end, included."""
    n_active: int
    """Firings within."""
    examples: tuple[Example, ...]
    """Seeded uniform samples of them, strongest first."""


@dataclass(frozen=True)
class FeatureSource:
    """What a feature belongs to, and on what it was looked at."""

    dictionary: str
    """Short name of the dictionary, as shown."""
    kind: Literal["activation", "coefficient"]
    """What a value is: an autoencoder's activation, or the coefficient of a matching pursuit."""
    d_sae: int
    """Latents of the dictionary."""
    site: str
    """TransformerLens name of the activations."""
    dictionary_digest: str
    """SHA-256 of the dictionary."""
    store_digest: str
    """SHA-256 of the activation store."""
    n_tokens: int
    """Tokens looked at: those of the store that are not masked."""
    n_documents: int
    """Documents they come from."""
    effects_convention: str
    """What the logit effects are, in words; empty when there are none."""


@dataclass(frozen=True, kw_only=True)
class FeatureRecord:
    """Everything a card shows about one latent."""

    index: int
    """Latent id, 0..d_sae-1."""
    source: FeatureSource
    """Its dictionary, site and corpus."""
    n_active: int
    """Tokens on which it fires, exact."""
    n_documents: int
    """Documents in which it fires, exact."""
    density: float
    """n_active / n_tokens."""
    density_low: float
    """Lower end of the 95 % interval of the density (Wilson, at the effective sample size of tokens clustered in documents)."""
    density_high: float
    """Upper end of it."""
    max: float
    """Largest value; 0 for a dead latent."""
    min: float
    """Smallest non-zero value; negative where a pursuit subtracts the atom."""
    mean: float
    """Mean over its firings."""
    quantiles: Mapping[str, float]
    """Quantiles of the non-zero values, keyed by probability ("0.5" is the median); empty for a dead latent."""
    token_bits: float
    """Held-out information of a firing about the token it is on, in bits."""
    next_bits: float
    """The same about the token that follows."""
    histogram: Histogram
    """Its non-zero values."""
    examples: tuple[Example, ...]
    """Strongest passages, at most one per document, near-duplicates removed."""
    negative_examples: tuple[Example, ...]
    """Most negative passages, chosen alike."""
    intervals: tuple[Interval, ...]
    """Equal-width intervals of (0, max], highest first, each with samples."""
    driving_tokens: tuple[DrivingToken, ...]
    """Vocabulary items by share of the latent's mass, largest first."""
    promoted: tuple[TokenEffect, ...]
    """Largest logit effects, descending."""
    suppressed: tuple[TokenEffect, ...]
    """Smallest logit effects, ascending."""
    neighbours: tuple[Neighbour, ...]
    """Nearest atoms by decoder cosine, descending."""
    steps: tuple[int, ...]
    """Matching pursuit: entry s counts the firings in which the latent was first selected at step s + 1. Empty otherwise."""
    mean_square: float = 0.0
    """Mean of the squared values over its firings."""
    random_examples: tuple[Example, ...] = ()
    """Firings drawn uniformly (seeded), strongest first, at most one per document, near-duplicates removed."""
    near_miss_examples: tuple[Example, ...] = ()
    """Passages around tokens on which the latent does not fire though one might expect it to: see `near_miss_definition`."""
    near_miss_definition: str = ""
    """What a near miss is, in words; empty when none were looked for."""
    related: Mapping[str, tuple[Neighbour, ...]] = field(default_factory=dict)
    """Close latents by the relations that the index has, closest first; `RELATIONS` says what each is."""

    @property
    def alive(self) -> bool:
        """Whether it fires on any token looked at."""
        return self.n_active > 0

    @property
    def peak(self) -> float:
        """Largest |value|: the end of the colour scale."""
        return max(abs(self.max), abs(self.min))

    @property
    def signed(self) -> bool:
        """Whether any of its values is negative."""
        return self.min < 0
