"""Observables of the next token as directions of the residual stream: read by the logit lens, pulled back through norms and heads."""

from probes.observables.attention import AttentionMaps, attention_maps, pull_back, through_attention
from probes.observables.lens import LogitLens, logit_lens
from probes.observables.norms import norm_angle, through_gain, through_norm
from probes.observables.observable import Couplings, Observable, coupling, couplings
from probes.observables.paths import ObservablePaths, observable_paths

__all__ = [
    "AttentionMaps",
    "Couplings",
    "LogitLens",
    "Observable",
    "ObservablePaths",
    "attention_maps",
    "coupling",
    "couplings",
    "logit_lens",
    "norm_angle",
    "observable_paths",
    "pull_back",
    "through_attention",
    "through_gain",
    "through_norm",
]
