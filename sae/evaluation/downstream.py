"""What a reconstruction does to the language model: cross-entropy and KL with the reconstruction spliced in.

    CE(v)           = mean over tokens of -log p_v(next token)        v: clean, spliced, zero-ablated, mean-ablated
    CE recovered    = (CE(ablated) - CE(spliced)) / (CE(ablated) - CE(clean))      against the zero and against the mean ablation
    KL              = mean over tokens of KL(p_clean || p_spliced), in nats

Every variant replaces the site's activation at the same positions: the ones the mask allows (not the first of a row, no norm outliers); the
others keep their clean activation. Only predictions made at those positions are counted. The ablations are part of the definition: against
zero almost anything recovers nearly all, so several are given. Zero ablation is the convention of SAEBench, SAELens and dictionary_learning;
mean ablation is stricter, and resample ablation puts the activation of another token, of a right length and place but with no information
on this one. The standard error of `downstream` treats rows of the token matrix as independent.

`Splice` and `prediction_terms` are the parts of a cheaper way for activations that are stored: passes start at the site and end with the last
residual stream, which is small enough to keep, and logits are made for some hundred positions at a time. With l the logits of a variant, l' those
of the clean model and p' = softmax(l'),

    CE_t = logsumexp(l) - l[next token]        KL_t = p' . (l' - l) - logsumexp(l') + logsumexp(l)
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.models.language_model import Edit, LanguageModel
from sae.models.sites import Site


@dataclasses.dataclass(frozen=True)
class Downstream:
    """Cross-entropies in nats per token, and what they say about one dictionary."""

    ce_clean: float
    """The untouched model."""
    ce_spliced: float
    """With the reconstruction in place of the activation."""
    ce_zero: float
    """With zeros in place of the activation."""
    ce_mean: float
    """With the mean activation in place of the activation."""
    ce_recovered_zero: float
    """Share of the zero-ablation damage that the reconstruction avoids."""
    ce_recovered_mean: float
    """Share of the mean-ablation damage that the reconstruction avoids."""
    ce_increase_se: float
    """Standard error of ce_spliced - ce_clean over rows."""
    kl: float
    """KL(clean || spliced), nats per token."""
    n_tokens: int
    """Number of predictions counted."""


def downstream(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    site: Site,
    tokens: Int[Tensor, "n_rows context"],
    mask: Bool[Tensor, "n_rows context"],
    mean: Float[Tensor, " d_in"],
    *,
    batch_rows: int = 8,
) -> Iterator[tuple[int, dict[str, Downstream]]]:
    """Yields (rows done, the scores so far by dictionary name) after each batch of rows; the last one covers all rows.

    One clean pass and two ablations are shared by all dictionaries. Raises ConfigError when the mask leaves no prediction to count.
    """
    counted = mask[:, :-1]
    if tokens.shape != mask.shape or not bool(counted.any()):
        raise ConfigError(
            f"mask must allow at least one position before the last of tokens {tuple(tokens.shape)}, got {int(counted.sum())} (downstream)"
        )
    splice, sums = Splice(model, site), _RowSums(["clean", "zero", "mean", *(f"dictionary {name}" for name in dictionaries)])
    for start in range(0, len(tokens), batch_rows):
        some, use = tokens[start : start + batch_rows], mask[start : start + batch_rows]
        rows = Rows(some, model.capture(some, [site])[site], use)
        acts = rows.acts[use].float()
        replacements = [torch.zeros_like(acts), mean.to(acts).expand_as(acts), *(_explained(each, acts) for each in dictionaries.values())]
        finals = [splice.final(rows, replacement) for replacement in replacements]
        sums.add(prediction_terms(splice, splice.final(rows), finals, rows.next_tokens), rows.counted)
        if sums.n_tokens:
            yield min(start + batch_rows, len(tokens)), {name: sums.scores(f"dictionary {name}") for name in dictionaries}


def _explained(dictionary: Dictionary, acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
    with torch.no_grad():
        return dictionary(acts)


class _RowSums:
    """Per-row sums of cross-entropy and KL, so that the standard error can treat rows as the unit."""

    def __init__(self, names: list[str]):
        self.names = names
        self.terms: list[Tensor] = []
        self.counts: list[Tensor] = []

    def add(self, terms: Float[Tensor, "n_variants n 2"], counted: Bool[Tensor, "n_rows n_positions"]) -> None:
        row = counted.cpu().nonzero()[:, 0]
        sums = torch.zeros(len(counted), len(self.names), 2, dtype=torch.float64)
        self.terms.append(sums.index_add_(0, row, terms.double().transpose(0, 1)))
        self.counts.append(counted.sum(1).cpu())

    @property
    def n_tokens(self) -> int:
        return int(sum(int(c.sum()) for c in self.counts))

    def scores(self, name: str) -> Downstream:
        n, sums, count = self.n_tokens, torch.cat(self.terms), torch.cat(self.counts).double()
        own = self.names.index(name)
        clean, zero, mean, spliced = (float(sums[:, i, 0].sum()) / n for i in (0, 1, 2, own))
        n_rows = len(count)
        spread = float((sums[:, own, 0] - sums[:, 0, 0] - (spliced - clean) * count).square().sum())
        return Downstream(
            ce_clean=clean,
            ce_spliced=spliced,
            ce_zero=zero,
            ce_mean=mean,
            ce_recovered_zero=(zero - spliced) / (zero - clean),
            ce_recovered_mean=(mean - spliced) / (mean - clean),
            ce_increase_se=math.sqrt(spread * n_rows / max(n_rows - 1, 1)) / n,
            kl=float(sums[:, own, 1].sum()) / n,
            n_tokens=n,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of tokens whose activations at a site are known."""

    tokens: Int[Tensor, "n_rows context"]
    """Token ids."""
    acts: Float[Tensor, "n_rows context width"]
    """The site's activations in the untouched model."""
    use: Bool[Tensor, "n_rows context"]
    """Where they are replaced, and predictions counted but for the last position, which has no next token."""
    document_ids: Int[Tensor, "n_rows context"] | None = None
    """The document of every token where documents were kept apart; see `LanguageModel.capture`."""

    @property
    def counted(self) -> Bool[Tensor, "n_rows n_positions"]:
        """The positions whose prediction is counted."""
        return self.use[:, :-1]

    @property
    def next_tokens(self) -> Int[Tensor, " n_counted"]:
        """What is to be predicted there."""
        return self.tokens[:, 1:][self.counted].long()


class Splice:
    """Replaces a site's activations and reads the last residual stream, from which all predictions follow."""

    def __init__(self, model: LanguageModel, site: Site):
        """Raises ConfigError for a site that the model does not have."""
        self.model = model
        self.site = model.site(site.name)
        self.last = model.site(f"blocks.{model.shape.n_layers - 1}.hook_resid_post")

    def final(self, rows: Rows, replacement: Float[Tensor, "n_used width"] | None = None) -> Float[Tensor, "n_counted d_model"]:
        """The last residual stream at the counted positions, with `replacement` at the used ones (None: the activations as they are).

        Computes only the blocks behind the site where that is the residual stream and documents are not kept apart; a whole pass otherwise.
        """
        acts = rows.acts
        if replacement is not None:
            acts = acts.clone()
            acts[rows.use] = replacement.to(acts)
        if self.site.kind in ("resid_pre", "resid_post") and rows.document_ids is None:
            final = self.model.carry(acts, self.site, self.last)
        else:
            edits = [Edit.replace(self.site, acts)]
            final = self.model.capture(rows.tokens, [self.last], edits=edits, document_ids=rows.document_ids)[self.last]
        return final[:, :-1][rows.counted.to(final.device)]


@torch.no_grad()
def prediction_terms(
    splice: Splice,
    clean: Float[Tensor, "n d_model"],
    finals: Sequence[Float[Tensor, "n d_model"]],
    next_tokens: Int[Tensor, " n"],
) -> Float[Tensor, "n_variants n 2"]:
    """Cross-entropy and KL from the clean model, in nats, of every prediction: of the clean model itself first, then of each variant.

    Takes last residual streams, as `Splice.final` gives them.
    """
    terms = torch.zeros(1 + len(finals), len(clean), 2)
    if not len(clean):
        return terms
    step = max(1, LOGITS_PER_CHUNK // splice.model.shape.d_vocab)
    for chunk in torch.arange(len(clean)).split(step):
        logits, expected = _final_logits(splice, clean[chunk]), next_tokens[chunk, None].to(splice.model.device)
        total = logits.logsumexp(1)
        terms[0, chunk, 0] = (total - logits.gather(1, expected)[:, 0]).cpu()
        p = (logits - total[:, None]).exp_()
        for i, final in enumerate(finals, start=1):
            other = _final_logits(splice, final[chunk])
            other_total = other.logsumexp(1)
            terms[i, chunk, 0] = (other_total - other.gather(1, expected)[:, 0]).cpu()
            difference = other.neg_().add_(logits)
            terms[i, chunk, 1] = (torch.linalg.vecdot(p, difference) - total + other_total).cpu()
    return terms


LOGITS_PER_CHUNK = 8_000_000
"""Logits in memory at a time, for each of the clean model and the variant."""


def _final_logits(splice: Splice, final: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """Logits of last residual streams; every position is a row of its own, since none needs another."""
    return splice.model.resume(final[:, None], splice.last)[:, 0]


def share_recovered(ablated: Float[Tensor, "*d"], spliced: Float[Tensor, "*d"], clean: Float[Tensor, "*d"]) -> Float[Tensor, "*d"]:
    """(ablated - spliced) / (ablated - clean): the share of an ablation's damage that the reconstruction avoids; nan where it does none."""
    damage = ablated - clean
    return torch.where(damage > 0, (ablated - spliced) / damage, torch.nan)
