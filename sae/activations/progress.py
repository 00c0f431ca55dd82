"""How far a capture is, and what every step of one shares."""

from typing import Literal, NamedTuple


class CaptureProgress(NamedTuple):
    """How far a capture is."""

    stage: Literal["tokens", "capture", "statistics"]
    """What is being done: writing the tokens of all shards, running the model over them, two passes over what was stored."""
    n_tokens: int
    """Tokens done in this stage, those of earlier runs and other processes included."""
    n_tokens_total: int
    """Tokens there are to do in this stage."""
    n_tokens_run: int
    """Tokens that this run put through the model."""
