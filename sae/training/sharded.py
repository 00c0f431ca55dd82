"""An autoencoder whose latents are spread over processes, for widths that do not fit one device.

    process p holds latents first_p .. first_p + m_p - 1 of d_sae: their columns of W_enc, entries of b_enc, rows of W_dec, and all moments

    candidates   each process finds its k largest pre-activations of a row; all gather them; the k largest of these are the row's codes
    decoding     x_hat = b_dec + sum over p of z_p W_dec_p                   one all-reduce of [n, d_in] forward
    gradients    of W_enc_p, b_enc_p and W_dec_p need no exchange; b_dec's, which every encoder sees, is summed over p

A row's k largest pre-activations are among the candidates, so the codes are those of the whole autoencoder. AuxK's k_aux largest answers of
dead latents are found in the same way. All processes see the same rows, and compute the same loss.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sae.dictionaries import kernels
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary, random_atoms
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.explained import Ask, Explained
from sae.dictionaries.init import MAX_GAIN_ROWS, MAX_MEDIAN_ROWS, geometric_median
from sae.dictionaries.kernels.dispatch import difference, kernels_for, products_for
from sae.dictionaries.kernels.reference import Revival, Slots
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.training.peers import Peers, bounds

SHARDED = ("W_enc", "b_enc", "W_dec")
"""The parameters that are spread; b_dec is the same in all processes."""


@final
class ShardedAutoencoder(Dictionary):
    """This process's latents of an Autoencoder with TopK; see the module's text. `config` is that of the whole.

    Its methods are collective: all processes of `shards` call them together, with the same rows. A new one has random unit atoms, a tied
    encoder and zero biases; `shard` cuts a whole autoencoder, `load_sharded` reads a saved one. `save_sharded` writes what `load_dictionary`
    reads. Raises ConfigError for another activation, a transcoder, an input that is normalised or of which b_dec is not subtracted, and
    fewer latents than processes.
    """

    config: AutoencoderConfig

    def __init__(
        self,
        config: AutoencoderConfig,
        shards: Peers,
        scaling: Scaling | None = None,
        *,
        seed: int = 0,
        provenance: Mapping[str, Any] | None = None,
    ):
        super().__init__(config, scaling, provenance)
        if not isinstance(config.activation, TopK):
            raise ConfigError(f"activation must be TopK to be sharded, got {type(config.activation).__name__} (ShardedAutoencoder)")
        if config.d_out is not None:
            raise ConfigError(f"d_out must be absent: transcoders are not sharded, got {config.d_out} (ShardedAutoencoder)")
        if not config.apply_b_dec_to_input or config.normalisation != "none":
            raise ConfigError(
                "apply_b_dec_to_input must be True and normalisation 'none' to be sharded, "
                f"got {config.apply_b_dec_to_input} and {config.normalisation!r} (ShardedAutoencoder)"
            )
        if config.d_sae < shards.size:
            raise ConfigError(f"d_sae must be at least 1 for each of {shards.size} processes, got {config.d_sae} (ShardedAutoencoder)")
        self.shards = shards
        atoms = random_atoms(self.last - self.first, config.d_in, seed + self.first)
        self.W_enc = nn.Parameter(atoms.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(len(atoms)))
        self.W_dec = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def first(self) -> int:
        """Number of this process's first latent."""
        return bounds(self.d_sae, self.shards.rank, self.shards.size)[0]

    @property
    def last(self) -> int:
        """Number after that of this process's last latent."""
        return bounds(self.d_sae, self.shards.rank, self.shards.size)[1]

    @property
    def k(self) -> float:
        """Active latents per row."""
        return float(self.config.activation.k)

    @property
    def digest(self) -> str:
        """Refused: no process holds what would be digested. Raises ConfigError."""
        raise ConfigError("dictionary must be whole to have a digest: save_sharded, then load_dictionary (ShardedAutoencoder)")

    def code(self, x: Float[Tensor, "n d_in"]) -> SparseCodes:
        """Codes of scaled activations over all d_sae latents, by falling value; the same in all processes, without a gradient."""
        with torch.no_grad():
            return self._chosen(x, self.config.activation.k)[0]

    def reconstruct(self, codes: SparseCodes) -> Float[Tensor, "n d_in"]:
        """x_hat = z W_dec + b_dec for codes over all d_sae latents; without a gradient."""
        if codes.d_sae != self.d_sae:
            raise ConfigError(f"codes must be over d_sae={self.d_sae} latents, got {codes.d_sae} (ShardedAutoencoder)")
        own = (codes.indices >= self.first) & (codes.indices < self.last)
        values, indices = codes.values.to(self.W_dec.dtype) * own, (codes.indices - self.first) * own
        return self.shards.total(kernels.weighted_rows(values, indices, self.W_dec)) + self.b_dec.detach()

    def explain(self, x: Float[Tensor, "n d_in"], ask: Ask) -> Explained:
        """What training needs to know about scaled activations, as `Autoencoder.explain` says it of the whole; the same in all processes.

        Raises ConfigError for a target or prefixes.
        """
        if ask.target is not None or ask.prefixes:
            raise ConfigError(f"{'target' if ask.target is not None else 'prefixes'} must be absent (ShardedAutoencoder)")
        asked = None if ask.latents is None else ask.latents[(ask.latents >= self.first) & (ask.latents < self.last)] - self.first
        k_aux = ask.k_aux if ask.latents is None else min(ask.k_aux, len(ask.latents))
        with torch.no_grad():
            codes, own = self._chosen(x, self.config.activation.k if ask.k is None else round(ask.k))
        error, revival, residual = ExplainShard.apply(x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, own, asked, k_aux, self.shards)
        zero = error.new_zeros(())
        return Explained(
            error=error, residual=residual, codes=codes, l0=float(codes.counts.double().mean()), revival=revival,
            penalty=zero, gate_error=zero, prefix_errors=zero.expand(0),
        )  # fmt: skip

    def fold(self) -> "Dictionary":
        """Refused. Raises ConfigError."""
        raise ConfigError("dictionary must be whole to be folded: save_sharded, then load_dictionary (ShardedAutoencoder)")

    def _chosen(self, x: Tensor, k: int) -> tuple[SparseCodes, Slots]:
        rows, ends = self.W_enc.T.contiguous(), [bounds(self.d_sae, rank, self.shards.size) for rank in range(self.shards.size)]
        found = kernels_for(rows).top(x - self.b_dec, rows, self.b_enc, min(k, len(rows)), False)
        widths = [min(k, stop - start) for start, stop in ends]
        values = _side_by_side(found.values, self.shards, widths)
        indices = _side_by_side((found.indices + self.first).int(), self.shards, widths).long()
        order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
        values, indices = values.gather(1, order), indices.gather(1, order)
        # Candidates come by falling value, so those of this process that are kept are its first ones.
        mine = (indices >= self.first) & (indices < self.last) & (values > 0)
        return SparseCodes.of_slots(indices, values, self.d_sae), _first_slots(found, mine.sum(1))


class ExplainShard(torch.autograd.Function):
    """error = sum |x - b_dec - sum_p z_p W_p|^2, and the same of what is left for the asked latents of all shards (AuxK), given this process's
    slots of z; the gradients of this process's parameters, and the whole gradient of b_dec.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, own: Slots, asked: Tensor | None, k_aux: int,
        shards: Peers,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        (values, indices), centred = own, difference(x, b_dec)
        residual = centred - shards.total(products_for(W_dec, values.shape[1]).weighted_rows(values, indices, W_dec))
        rows = W_enc.T.contiguous()
        ctx.revival = None if asked is None else _revive(centred, residual, rows[asked], b_enc[asked], W_dec[asked], k_aux, shards)
        ctx.save_for_backward(centred, W_enc, W_dec, values, indices, residual, asked)
        ctx.shards = shards
        ctx.mark_non_differentiable(residual)
        revival = residual.new_tensor(0.0 if ctx.revival is None else ctx.revival.error)
        return torch.linalg.vector_norm(residual, dim=1).square().sum(), revival, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_error: Tensor, grad_revival: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, W_dec, values, indices, residual, asked = ctx.saved_tensors
        products, g, pull = products_for(W_dec, values.shape[1]), -2 * float(grad_error), float(grad_revival)
        grad = (products.row_dots(residual, indices, W_dec) * (values != 0)).mul_(g).contiguous()
        grad_rows = products.weighted_rows_t(grad, indices, centred, len(W_dec))
        grad_bias = products.scattered_sum(grad, indices, len(W_dec))
        grad_W_dec = products.weighted_rows_t(values * g, indices, residual, len(W_dec))
        # What every encoder subtracts is b_dec: its gradient is a sum over all of them.
        grad_b_dec = residual.sum(0) * g - ctx.shards.total(W_enc @ grad_bias)
        if asked is not None:
            grad_rows.index_add_(0, asked, ctx.revival.grad_enc, alpha=pull)
            grad_bias.index_add_(0, asked, ctx.revival.grad_bias, alpha=pull)
            grad_W_dec.index_add_(0, asked, ctx.revival.grad_dec, alpha=pull)
        return None, grad_rows.T, grad_bias, grad_W_dec, grad_b_dec, None, None, None, None


def _revive(x: Tensor, residual: Tensor, rows_enc: Tensor, bias: Tensor, rows_dec: Tensor, k: int, shards: Peers) -> Revival:
    """`revive` of the kernels where the asked latents are spread over processes: the same error in all, the gradients of this one's rows."""
    kept = _largest_of_shards(torch.addmm(bias, x, rows_enc.T), k, shards)
    product = kernels_for(rows_dec).product
    rest = residual - shards.total(product(kept, rows_dec))
    pull = product(rest, rows_dec.T).mul_(kept > 0).mul_(-2)
    error = float(torch.linalg.vector_norm(rest, dim=1).double().square().sum())
    return Revival(error, product(pull.T, x), pull.sum(0), -2 * product(kept.T, rest))


def shard(whole: Autoencoder, shards: Peers) -> ShardedAutoencoder:
    """This process's latents of `whole`, copied; `whole` must be the same in all processes."""
    own = ShardedAutoencoder(whole.config, shards, whole.scaling, provenance=whole.provenance).to(whole.W_dec)
    latents = slice(own.first, own.last)
    with torch.no_grad():
        own.W_enc.copy_(whole.W_enc[:, latents])
        own.b_enc.copy_(whole.b_enc[latents])
        own.W_dec.copy_(whole.W_dec[latents])
        own.b_dec.copy_(whole.b_dec)
    return own


@torch.no_grad()
def initialise_sharded_(dictionary: ShardedAutoencoder, acts: Float[Tensor, "n d_in"], *, seed: int = 0) -> None:
    """`initialise_` for a shard, in place, from a sample that all processes have: b_dec = its geometric median, encoder tied to the random atoms
    with the best gain. Raises ConfigError for an empty sample.
    """
    x = dictionary.scaled(acts)
    if not len(x):
        raise ConfigError("acts must have at least one row, got 0 (initialise_sharded_)")
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)[:MAX_MEDIAN_ROWS]]
    dictionary.b_dec.copy_(geometric_median(x))
    dictionary.shards.adopt_([dictionary.b_dec])
    dictionary.normalise_()
    dictionary.W_enc.copy_(dictionary.W_dec.T)
    dictionary.b_enc.zero_()
    x = x[:MAX_GAIN_ROWS]
    y = dictionary.reconstruct(dictionary.code(x)) - dictionary.b_dec
    energy = float(y.square().sum())
    dictionary.W_enc.mul_(float(((x - dictionary.b_dec) * y).sum()) / energy if energy else 1.0)


def total_squares(dictionary: Dictionary, squares: Mapping[str, float]) -> float:
    """The sum of squares of the gradient of the whole dictionary, from those of this process's parameters by name."""
    if not isinstance(dictionary, ShardedAutoencoder):
        return sum(squares.values())
    own = sum(value for name, value in squares.items() if name in SHARDED)
    total = float(dictionary.shards.total(torch.tensor(own, dtype=torch.float64)))
    return total + sum(value for name, value in squares.items() if name not in SHARDED)


def _side_by_side(columns: Tensor, shards: Peers, widths: list[int]) -> Tensor:
    """[n, widths[p]] of every process p as one [n, sum of widths]."""
    return shards.concatenated(columns.T.contiguous(), widths).T.contiguous()


def _first_slots(slots: Slots, counts: Int[Tensor, "n"]) -> Slots:
    """The first counts[r] slots of row r, in as many columns as the fullest row needs."""
    width = max(1, int(counts.max())) if len(counts) else 1
    kept = torch.arange(width, device=counts.device) < counts[:, None]
    return Slots((slots.values[:, :width] * kept).contiguous(), (slots.indices[:, :width] * kept).contiguous())


def _largest_of_shards(answers: Tensor, k: int, shards: Peers) -> Tensor:
    """The positive answers that are among the k largest of their row over all shards; 0 in place of the others."""
    own = answers.topk(min(k, answers.shape[1]), dim=1)
    values = own.values.relu()
    widths = shards.counts(values.shape[1])
    everyone = _side_by_side(values, shards, widths)
    start = sum(widths[: shards.rank])
    order = everyone.argsort(dim=1, descending=True, stable=True)[:, :k]
    mine = ((order >= start) & (order < start + widths[shards.rank])).sum(1)
    kept = torch.arange(values.shape[1], device=values.device) < mine[:, None]
    return torch.zeros_like(answers).scatter_(1, own.indices, values * kept)
