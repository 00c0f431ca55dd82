"""Autoencoder: one linear map, a sparse activation, and a dictionary.

    z = activation((x - b_dec) W_enc + b_enc)        x_hat = z W_dec + b_dec        (x instead of x - b_dec where not apply_b_dec_to_input)

With TopK this is the k-sparse autoencoder of Makhzani & Frey 2013 (1312.5663) in the form of Gao et al. 2024 (2406.04093) section 2.3.

A transcoder (`d_out` given; Dunefsky et al. 2024, 2406.11944) explains the activations y of another site, its own scaling applied, by those of
its input; with `skip` through a linear path besides the latents (Paulo et al. 2025, 2501.18823):

    z = activation(x W_enc + b_enc)                  y_hat = z W_dec + b_dec (+ x W_skip)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.dictionaries import kernels
from sae.dictionaries.activations import THRESHOLD_RATE, Activation, Active, JumpReLU, TopK
from sae.dictionaries.base import Dictionary, check_widths, random_atoms
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.explained import Ask, Explained, prefix_errors
from sae.dictionaries.scaling import Normalisation, Scaling
from sae.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape and activation of an Autoencoder."""

    d_in: int
    """Input width."""
    d_sae: int
    """Number of latents."""
    activation: Activation = field(default_factory=TopK)
    """What is kept of the pre-activations."""
    d_out: int | None = None
    """Width of the activations that a transcoder explains; absent for an autoencoder, which explains its input."""
    skip: bool = False
    """Whether a transcoder has a linear path from input to output."""
    apply_b_dec_to_input: bool = True
    """Whether b_dec is subtracted from x before encoding; a transcoder never does."""
    normalisation: Normalisation = "none"
    """What is done to every row before the scaling, and undone after decoding."""

    def __post_init__(self) -> None:
        check_widths(self.d_in, self.d_sae, "Autoencoder")
        self.activation.check(self.d_sae)
        if self.d_out is not None:
            check_widths(self.d_out, self.d_sae, "Autoencoder")
        elif self.skip:
            raise ConfigError("skip must be False without d_out: an autoencoder with a linear path would copy its input (Autoencoder)")


@final
class Autoencoder(Dictionary):
    """z = activation((x - b_dec) W_enc + b_enc), x_hat = z W_dec + b_dec; a transcoder where `config.d_out` is given, see the module's text.

    A new one has random unit atoms drawn from `seed`, a tied encoder W_enc = W_dec^T (independent in a transcoder) and zero biases;
    `initialise_` starts it from data. W_enc [d_in, d_sae] is stored column by column, so that one latent's weights are contiguous.
    `scaling` belongs to the input, `target_scaling` to a transcoder's output.
    """

    config: AutoencoderConfig

    def __init__(
        self,
        config: AutoencoderConfig,
        scaling: Scaling | None = None,
        *,
        target_scaling: Scaling | None = None,
        seed: int = 0,
        provenance: Mapping[str, Any] | None = None,
    ):
        super().__init__(config, scaling, provenance)
        d_out = config.d_out or config.d_in
        atoms = random_atoms(config.d_sae, d_out, seed)
        encoder = atoms if config.d_out is None else random_atoms(config.d_sae, config.d_in, seed + 1)
        self.W_enc = nn.Parameter(encoder.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(config.d_in, d_out))
        if config.d_out is not None:
            self._set_target_scaling(target_scaling or Scaling.identity(d_out))
        elif target_scaling is not None:
            raise ConfigError("target_scaling must be absent for an autoencoder: its output has the scaling of its input (Autoencoder)")
        for name, start in config.activation.parameters(config.d_sae).items():
            self.register_parameter(name, nn.Parameter(start))
        for name, start in config.activation.state().items():
            self.register_buffer(name, start)

    @property
    def is_transcoder(self) -> bool:
        """Whether it explains another site's activations."""
        return self.config.d_out is not None

    @property
    def k(self) -> float | None:
        """Active latents per row, where the activation fixes their number."""
        k = getattr(self.config.activation, "k", None)
        return None if k is None else float(k)

    @property
    def target_scaling(self) -> Scaling:
        """The map from the activations that are explained to the space of `reconstruct`."""
        return Scaling(self.target_mean, self._target_scale) if self.is_transcoder else self.scaling

    @property
    def scales(self) -> dict[str, float]:
        """The scale of the input and, for a transcoder, of the output."""
        return {"scale": self._scale, "target_scale": self._target_scale} if self.is_transcoder else {"scale": self._scale}

    def code(self, x: Float[Tensor, "n d_in"]) -> SparseCodes:
        """Codes of scaled activations: by falling value for TopK, falling size for AbsTopK, rising latent otherwise."""
        active, slots = self._activate(x, self.config.activation, training=False)
        return SparseCodes.of_slots(slots.indices, active.values, self.d_sae)

    def forward(self, acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """decode(encode(acts)), and a transcoder's linear path where it has one."""
        x = self.scaled(acts)
        codes = self.of_rows(self.code(x), acts)
        x_hat = self.reconstruct(codes)
        return self._given_back(self.target_scaling.undo(x_hat + x @ self.W_skip if self.config.skip else x_hat), codes)

    def explain(self, x: Float[Tensor, "n d_in"], ask: Ask) -> Explained:
        """What training needs to know about scaled activations; here BatchTopK couples the rows of x. Raises ConfigError where a transcoder
        is given no target, or an autoencoder one.
        """
        if (ask.target is None) == self.is_transcoder:
            wanted = "given for a transcoder" if self.is_transcoder else "absent for an autoencoder"
            raise ConfigError(f"target must be {wanted} (Autoencoder)")
        activation = self.config.activation if ask.k is None else self.config.activation.with_k(ask.k)
        target = x if ask.target is None else ask.target
        if self.config.skip:
            target = target - x @ self.W_skip
        if activation.selects and not ask.prefixes:
            rule, shift = activation.rule(self._weights(), training=True), self._shift
            encoder, decoder = (self.W_enc, self.b_enc), (self.W_dec, self.b_dec)
            errors = kernels.explain(x, shift, encoder, decoder, target, rule, ask.latents, ask.k_aux)
            zero = errors.error.new_zeros(())
            return self._explained(errors.error, errors.residual, errors.slots, errors.revival, zero, zero, zero.expand(0))
        return self._explain_by_parts(x, target, activation, ask)

    def _explain_by_parts(self, x: Tensor, target: Tensor, activation: Activation, ask: Ask) -> Explained:
        active, slots = self._activate(x, activation, training=True)
        residual = target - self.b_dec - kernels.weighted_rows(active.values, slots.indices, self.W_dec)
        error = residual.square().sum()
        zero = error.new_zeros(())
        revival, gate_error, nested = zero, zero, zero.expand(0)
        if ask.latents is not None:
            centred, asked = x if self._shift is None else x - self._shift, ask.latents
            revival = kernels.revive(centred, residual, self.W_enc.T[asked], self.b_enc[asked], self.W_dec[asked], ask.k_aux)
        if active.gates is not None:
            frozen = kernels.weighted_rows(active.gates, slots.indices, self.W_dec.detach()) + self.b_dec.detach()
            gate_error = (target.detach() - frozen).square().sum()
        if ask.prefixes:
            nested = prefix_errors(active.values, slots.indices, self.W_dec, target - self.b_dec, ask.prefixes)
        slots = kernels.Slots(active.values, slots.indices)
        return self._explained(error, residual.detach(), slots, revival, active.penalty, gate_error, nested)

    def _explained(
        self, error: Tensor, residual: Tensor, slots: kernels.Slots, revival: Tensor, penalty: Tensor, gate_error: Tensor, nested: Tensor
    ) -> Explained:
        codes = SparseCodes.of_slots(slots.indices, slots.values.detach(), self.d_sae)
        return Explained(
            error=error, residual=residual, codes=codes, l0=float(codes.counts.double().mean()), revival=revival, penalty=penalty,
            penalty_is_l0=isinstance(self.config.activation, JumpReLU), gate_error=gate_error, prefix_errors=nested,
        )  # fmt: skip

    def rate_factor(self, name: str) -> float:
        """How many times the learning rate a parameter is trained with: more for JumpReLU's thresholds, which live on a logarithmic scale."""
        return THRESHOLD_RATE if name == "log_threshold" else 1.0

    def settle_(self, codes: SparseCodes) -> None:
        """BatchTopK's threshold takes note of the smallest value of a training batch."""
        self.config.activation.settle_(codes.values, self._weights())

    def with_activation(self, activation: Activation) -> "Autoencoder":
        """The same weights (shared, not copied) under another activation, for example TopK with another k at inference. Parameters that only
        the other activation has are new.
        """
        target_scaling = self.target_scaling if self.is_transcoder else None
        config = replace(self.config, activation=activation)
        other = Autoencoder(config, self.scaling, target_scaling=target_scaling, provenance=self.provenance)
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        for name in [*dict(other.named_parameters()), *dict(other.named_buffers())]:
            if name in own:
                setattr(other, name, own[name])
        return other.train(self.training)

    @torch.no_grad()
    def fold(self) -> "Autoencoder":
        """The same function on activations with identity scaling. With input scale s and mean m (of the output t and p for a transcoder)

        b_enc' = b_enc / s, b_dec' = b_dec / s + m, an activation's thresholds and magnitudes / s, weights unchanged. Where b_dec is not subtracted
        b_enc' = b_enc / s - m W_enc, and Gated's b_mag likewise. For a transcoder codes are z / s, so W_enc' = W_enc, b_enc' = b_enc / s - m W_enc,
        and what decodes them (W_dec, W_skip) is multiplied by s / t.
        """
        s, mean = self.scaling.scale, self.scaling.mean
        activation, own = self.config.activation.folded(self._weights(), s)
        folded = Autoencoder(replace(self.config, activation=activation), provenance=self.provenance).to(self.W_dec)
        state = {name: tensor.clone() for name, tensor in folded.state_dict().items()}
        state |= {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_enc": self.b_enc / s, **own}
        if self.is_transcoder or not self.config.apply_b_dec_to_input:
            shift = mean @ self.W_enc
            state["b_enc"] = self.b_enc / s - shift
            if "b_mag" in state:  # Gated's magnitudes are of the same projection
                state["b_mag"] = state["b_mag"] - self.r_mag.exp() * shift
        if self.is_transcoder:
            ratio = s / self._target_scale
            state["W_dec"], state["b_dec"] = self.W_dec * ratio, self.b_dec / self._target_scale + self.target_mean
            if self.config.skip:
                state["W_skip"] = self.W_skip * ratio
                state["b_dec"] = state["b_dec"] - mean @ state["W_skip"]
        else:
            state["b_dec"] = self.b_dec / s + mean
        folded.load_state_dict(state)
        return folded

    def _activate(self, x: Tensor, activation: Activation, *, training: bool) -> tuple[Active, kernels.Slots]:
        weights = self._weights()
        slots = kernels.encode(x, self._shift, self.W_enc, self.b_enc, activation.rule(weights, training=training))
        return activation.activate(slots.values, slots.indices, weights), slots

    @property
    def _shift(self) -> Tensor | None:
        return None if self.is_transcoder or not self.config.apply_b_dec_to_input else self.b_dec

    def _weights(self) -> dict[str, Tensor]:
        names = [*self.config.activation.parameters(self.d_sae), *self.config.activation.state()]
        return {"b_enc": self.b_enc, **{name: getattr(self, name) for name in names}}

    def _set_target_scaling(self, scaling: Scaling) -> None:
        if scaling.mean.shape != (self.config.d_out,):
            raise ConfigError(f"target_scaling.mean must have width d_out={self.config.d_out}, got {scaling.mean.shape[0]} (Autoencoder)")
        self.register_buffer("target_mean", scaling.mean.detach().clone().float())
        self._target_scale = scaling.scale
