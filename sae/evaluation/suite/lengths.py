"""Description length: what tokens cost in bits when they are sent through a dictionary."""

from dataclasses import dataclass

from sae.errors import ConfigError
from sae.evaluation.batteries.findings import Number, Quantity
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.description_length import DescriptionLength, description_length
from sae.evaluation.suite.sample import batches, sample


@dataclass(frozen=True, kw_only=True)
class DescriptionConfig:
    """Settings of `description`."""

    n_tokens: int = 20_000
    """Tokens, whole rows of the store drawn at random; their codes are kept in memory."""
    tolerance: float = 0.1
    """By how much quantising may raise the squared error, relative."""
    weight_bits: int = 16
    """What a weight of the dictionary costs (bits)."""


def description(inputs: Inputs, config: DescriptionConfig) -> Outcome:
    """Bits per token through the dictionary, and through three other codes at the same distortion."""
    chosen = sample(inputs, config.n_tokens)
    if chosen.target != chosen.site:
        raise ConfigError(
            "the dictionary is a transcoder, whose codes are no description of what it reads: description length has no meaning"
        )
    acts = (batch.acts for batch in batches(inputs, chosen))
    found = description_length(inputs.chosen("dictionary"), acts, tolerance=config.tolerance, weight_bits=config.weight_bits)
    note = f"{chosen.note.split(';')[0]}, at FVU {found.fvu_quantised:.4g}; entropies have no interval here: resampled tokens repeat, and repeats cost less"
    return Outcome(tuple(_numbers(found, note)), (), (f"{chosen.note.split(';')[0]}; distortion is FVU {found.fvu_quantised:.4g}",))


def _numbers(found: DescriptionLength, note: str) -> list[Number]:
    row = f"{found.row_bits:.0f} of them for what normalisation takes from each row" if found.row_bits else ""
    return [
        Number("description length", found.bits, note=note),
        Number("index bits", found.index_bits, note=row),
        Number("value bits", found.value_bits),
        Number("dictionary bits", found.dictionary_bits, note=f"at {found.n_tokens:,} tokens; falls with their number"),
        Number("bits of rare latents", found.scarce_share, note="entropies from so few firings are too low"),
        Number("distortion", found.fvu_quantised, note=f"FVU of the exact codes: {found.fvu:.4g}"),
        Number("bits of another code", found.naive_bits, "fixed length"),
        Number("bits of another code", found.baselines.dense_bits, "dense"),
        Number("bits of another code", found.baselines.pca_bits, "PCA"),
        Number("bits of another code", found.baselines.gaussian_bits, "Gaussian bound"),
    ]


PAPER = "Ayonrinde, Pearce & Sharkey 2024, arXiv 2410.11179"
BITS = "bits per token"
DESCRIPTION = Measure(
    name="description",
    title="Description length",
    text=(
        "How many bits a token costs through the dictionary: which latents are active, and how strongly, coded latent by latent. Values are rounded as "
        "coarsely as the error allows. A length means something beside its distortion and beside other codes of that distortion only."
    ),
    needs=("dictionary", "store"),
    quantities=(
        Quantity(
            "description length",
            "Bits of a token, without the dictionary itself: low is good at one distortion.",
            PAPER,
            BITS,
            formula="sum_i [H2(p_i) + p_i H(Q(z_i) | z_i != 0)], Q: the coarsest quantiser with error at most 1.1 times that of the exact codes",
        ),
        Quantity("index bits", "Saying which latents are active.", PAPER, BITS, formula="sum_i H2(p_i), p_i = #{t: z_ti != 0} / N"),
        Quantity("value bits", "Saying how strongly they are.", PAPER, BITS, formula="sum_i p_i H(Q(z_i) | z_i != 0)"),
        Quantity("dictionary bits", "Sending the atoms once, shared by the tokens.", PAPER, BITS, formula="F d B / N"),
        Quantity(
            "bits of rare latents",
            "Share of the length in latents with fewer than 200 firings: how far it can be trusted.",
            "plug-in entropy with the correction of Miller & Madow 1955",
            formula="sum_{i: n_i < 200} L_i / sum_i L_i",
        ),
        Quantity(
            "distortion",
            "FVU of the rounded codes, to which all lengths belong.",
            PAPER,
            formula="sum_t |x_t - x_hat_t(Q(z))|^2 / sum_t |x_t - x_bar|^2",
        ),
        Quantity(
            "bits of another code",
            "At the same distortion: fixed-length codes of the same latents; coordinates rounded; principal components rounded; the least that any code can "
            "use for a Gaussian of this covariance. Below that a dictionary has found structure that covariance does not show.",
            "Cover & Thomas, Elements of Information Theory, theorem 10.3.3",
            BITS,
            formula="L0 (B + log2 F); sum_j H(round(x_j / step)); the same of principal components; sum_j max(0, log2(lambda_j / theta) / 2)",
        ),
    ),
    compute=description,
    config=DescriptionConfig(),
    quick=DescriptionConfig(n_tokens=4000),
)
