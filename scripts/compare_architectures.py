"""Every architecture at one width and one sparsity, trained on one pass over the same activations, and what came of it.

    FVU           share of the variance of held-out activations that the reconstruction leaves
    L0            active latents per held-out token; where an activation does not fix it, training steers it to the others'
    CE recovered  share of the damage of mean ablation that splicing the reconstruction into the language model avoids
    silent        latents that no held-out token activates;      dead: latents that had not fired for `dead_tokens` at the end of training
    bits          bits per token for codes quantised until all dictionaries have the same FVU, `--distortion` (sae.evaluation.choose)
    ms            milliseconds of a training step, median; only meaningful on a machine without other work

Beside them stand codes that nobody trained: the 32 first principal components, an untrained dictionary, the mean. Activations are the
store of the quickstart, made where it is missing, or `--store FOLDER --site NAME --model PATH`, or `--acts FILE` with the matrices "acts" and
"held_out" (then nothing is spliced into a model). `--only` and `--skip` name architectures, `--quick` is a short version, `--json FILE` writes rows
of name, value and unit.
"""

import argparse
import copy
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from quickstart_measure import downstream_scores
from quickstart_stages import DEFAULT, Workbench
from rich.console import Console
from torch import Tensor

from sae.activations.store import ActivationStore
from sae.dictionaries.activations import AbsTopK, Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.init import initialise_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import SaeError
from sae.evaluation.description_length import choose
from sae.evaluation.reconstruction import reconstruction
from sae.models.language_model import LanguageModel
from sae.storage import load_tensors, write_json
from sae.training.feed import FeedConfig, held_out_batches, sample, train_batches
from sae.training.loop import Step, TrainConfig, train
from sae.training.objectives import MatryoshkaObjective, MultiTopKObjective, Objective, ReconstructionObjective
from sae.training.revival import Resampling
from sae.training.sweep import Run, sweep

SAMPLE = 20_000
"""Tokens that dictionaries, their scaling and the principal components are fitted on."""
TOP_K_BAR, TOP_K_STEPS = (0.212, 0.218), 900
"""Held-out FVU of TopK in two other libraries after that many steps: the quickstart's activations, 2,048 latents, k = 32, batches of 1,024."""
PURSUIT_BAR, PURSUIT_STEPS = 0.229, 150
"""The same for matching pursuit in its authors' form."""
SHORT_PURSUIT = f"pursuit, {PURSUIT_STEPS} steps"
SEEN = """
What is to be seen: how well each form uses the same width, the same number of active latents and the same tokens, under one short training
budget; what the language model loses; and what a code costs once all are as exact as each other, which FVU at equal L0 does not say. What is
not: whether the latents mean anything. A lower FVU is not a better feature: a pursuit step may spend a latent on what the others left, a signed
latent may stand for two directions, and Matryoshka pays in FVU for an order of its latents that none of these columns rewards. One seed, one
site and one small model say nothing about others, a short run nothing about a long one, and small differences may be the seed's."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What dictionaries are trained and measured on."""

    sample: Tensor
    """Training rows that starts are fitted on."""
    batches: Callable[[], Iterator[Tensor]]
    """Training batches without end."""
    held_out: list[Tensor]
    """Held-out rows in blocks."""
    splice: Callable[[Mapping[str, Dictionary]], dict[str, Any]] | None
    """Downstream scores by name; absent without a language model."""
    source: str
    """Where they are from."""
    scaling: Scaling = field(init=False)
    """Fitted on the sample."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", Scaling.fitted(self.sample))


def parse() -> argparse.Namespace:
    """The command line; `--quick` fills in what is not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="folder of an activation store; the quickstart's if absent")
    parser.add_argument("--site", default="blocks.15.hook_resid_post", help="site of the store")
    parser.add_argument("--model", type=Path, help="folder of the language model, with --store")
    parser.add_argument("--acts", type=Path, help="safetensors file with the matrices acts and held_out, instead of a store")
    parser.add_argument("--d-sae", type=int, help="latents (2048; quick: 512)")
    parser.add_argument("--l0", type=int, default=32, help="active latents per token")
    parser.add_argument("--learning-rate", type=float, help="peak rate of every run (each architecture's own)")
    parser.add_argument("--steps", type=int, help="training steps (900; quick: 60)")
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--held-out", type=int, help="held-out tokens measured (16384; quick: 4096)")
    parser.add_argument("--rows", type=int, help="rows of text spliced into the model (32; quick: 8); 0 for none")
    parser.add_argument("--distortion", type=float, default=0.3, help="FVU at which descriptions are compared")
    parser.add_argument("--timed-steps", type=int, help="steps timed per architecture (12; quick: 3); 0 for none")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures to train")
    parser.add_argument("--skip", nargs="+", metavar="NAME", default=[], help="architectures to leave out")
    parser.add_argument("--threads", type=int, help="threads")
    parser.add_argument("--quick", action="store_true", help="a short version")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    defaults = {"d_sae": (2048, 512), "steps": (900, 60), "held_out": (16_384, 4_096), "rows": (32, 8), "timed_steps": (12, 3)}
    for name, values in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, values[options.quick])
    return options


# --- activations -------------------------------------------------------------------------------------------------------------------------


def activations(options: argparse.Namespace, console: Console) -> Activations:
    """From a file, a store, or the quickstart's store."""
    if options.acts:
        return from_file(options)
    if options.store:
        store, model = ActivationStore.open(options.store), options.model
    else:
        bench = Workbench(DEFAULT, console)
        store, model = bench.capture(), bench.folder
    feed = FeedConfig(site=options.site, batch_size=options.batch)
    splice = None
    if model and options.rows:

        def splice(dictionaries: Mapping[str, Dictionary]) -> dict[str, Any]:
            loaded = LanguageModel.load(model)
            return downstream_scores(loaded, store, options.site, dictionaries, options.rows, lambda done: None)

    blocks = -(-options.held_out // 2048)
    return Activations(
        sample=sample(store, feed, SAMPLE),
        batches=lambda: train_batches(store, feed),
        held_out=list(itertools.islice(held_out_batches(store, feed), blocks)),
        splice=splice,
        source=f"{store.n_tokens:,} tokens at {options.site}",
    )


def from_file(options: argparse.Namespace) -> Activations:
    """The matrices of `--acts`, drawn with replacement."""
    tensors = load_tensors(options.acts)
    acts, held_out = tensors["acts"], tensors["held_out"][: options.held_out].float()

    def batches() -> Iterator[Tensor]:
        draw = torch.Generator().manual_seed(0)
        while True:
            yield acts[torch.randint(len(acts), (options.batch,), generator=draw)].float()

    chosen = torch.randperm(len(acts), generator=torch.Generator().manual_seed(1))[:SAMPLE]
    return Activations(
        sample=acts[chosen].float(), batches=batches, held_out=list(held_out.split(2048)), splice=None,
        source=f"{len(acts):,} rows of {options.acts.name}",
    )  # fmt: skip


# --- architectures -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One way to make a sparse code, with what was found to train it well in short runs."""

    make: Callable[[int, int, int, Scaling], Dictionary]
    """The untrained dictionary, from d_in, d_sae and L0."""
    objective: Callable[[int], Objective] = lambda l0: ReconstructionObjective()
    """What is minimised, from L0."""
    learning_rate: float = 4e-3
    """The optimiser's peak rate."""
    resampling: Resampling | None = None
    """How unused latents are started anew, where AuxK cannot."""


def autoencoder(activation: Callable[[int], Activation]) -> Callable[[int, int, int, Scaling], Dictionary]:
    """Makes an autoencoder with the activation that belongs to L0."""
    return lambda d_in, d_sae, l0, scaling: Autoencoder(AutoencoderConfig(d_in=d_in, d_sae=d_sae, activation=activation(l0)), scaling)


def pursuit(**options: Any) -> Callable[[int, int, int, Scaling], Dictionary]:
    """Makes a matching pursuit of L0 steps."""
    return lambda d_in, d_sae, l0, scaling: MatchingPursuit(PursuitConfig(d_in=d_in, d_sae=d_sae, k=l0, **options), scaling)


def codebook(reduce: Any) -> Callable[[int, int, int, Scaling], Dictionary]:
    """Makes a codebook that chooses L0 codes."""
    return lambda d_in, d_sae, l0, scaling: Codebook(CodebookConfig(d_in=d_in, d_sae=d_sae, k=l0, reduce=reduce), scaling)


def steered(l0: int) -> Objective:
    """Reconstruction with the sparsity penalty that leads to L0."""
    return ReconstructionObjective(target_l0=float(l0))


ARCHITECTURES = {
    "relu": Architecture(make=autoencoder(lambda l0: ReLU()), objective=steered),
    "gated": Architecture(make=autoencoder(lambda l0: Gated()), objective=steered),
    "jump_relu": Architecture(make=autoencoder(lambda l0: JumpReLU()), objective=steered),
    "top_k": Architecture(make=autoencoder(TopK)),
    "abs_top_k": Architecture(make=autoencoder(AbsTopK)),
    "batch_top_k": Architecture(make=autoencoder(BatchTopK)),
    "multi_top_k": Architecture(make=autoencoder(TopK), objective=lambda l0: MultiTopKObjective()),
    "matryoshka_top_k": Architecture(make=autoencoder(TopK), objective=lambda l0: MatryoshkaObjective()),
    "matryoshka_batch_top_k": Architecture(make=autoencoder(BatchTopK), objective=lambda l0: MatryoshkaObjective()),
    "matryoshka_sampled": Architecture(make=autoencoder(BatchTopK), objective=lambda l0: MatryoshkaObjective(n_sampled=5)),
    "pursuit": Architecture(make=pursuit()),
    "pursuit_signed": Architecture(make=pursuit(selection="signed")),
    "pursuit_orthogonal": Architecture(make=pursuit(orthogonal=True)),
    "codebook_sum": Architecture(make=codebook("sum"), resampling=Resampling()),
    "codebook_mean": Architecture(make=codebook("mean"), resampling=Resampling()),
}


def runs(options: argparse.Namespace, acts: Activations) -> dict[str, Run]:
    """One run per chosen architecture, started; with pursuit also a short one that its bar belongs to."""
    unknown = [name for name in [*(options.only or []), *options.skip] if name not in ARCHITECTURES]
    if unknown:
        raise SaeError(f"--only and --skip take {', '.join(ARCHITECTURES)}; got {', '.join(unknown)}")
    chosen = {name: a for name, a in ARCHITECTURES.items() if name in (options.only or ARCHITECTURES) and name not in options.skip}
    made = {name: start(architecture, options.steps, options, acts) for name, architecture in chosen.items()}
    if "pursuit" in chosen and options.steps > PURSUIT_STEPS:
        made[SHORT_PURSUIT] = start(chosen["pursuit"], PURSUIT_STEPS, options, acts)
    return made


def start(architecture: Architecture, n_steps: int, options: argparse.Namespace, acts: Activations) -> Run:
    """A run of `n_steps` from a fresh dictionary."""
    dictionary = architecture.make(acts.sample.shape[1], options.d_sae, options.l0, acts.scaling)
    initialise_(dictionary, acts.sample)
    rate = options.learning_rate or architecture.learning_rate
    config = TrainConfig(n_steps=n_steps, learning_rate=rate, resampling=architecture.resampling)
    return Run(dictionary, architecture.objective(options.l0), config)


def principal_components(acts: Activations, k: int) -> Dictionary:
    """The first k principal components of the sample as a dictionary of k signed latents that are all active."""
    x = acts.scaling.apply(acts.sample).double()
    mean = x.mean(0)
    components = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors.flip(1)[:, :k].float()
    made = Autoencoder(AutoencoderConfig(d_in=x.shape[1], d_sae=k, activation=AbsTopK(k)), acts.scaling)
    with torch.no_grad():
        made.W_enc.copy_(components)
        made.W_dec.copy_(components.T)
        made.b_dec.copy_(mean.float())
    return made


# --- training and measuring --------------------------------------------------------------------------------------------------------------


def train_all(planned: Mapping[str, Run], acts: Activations) -> dict[str, Step]:
    """Train every run in place on one pass; the last step of each."""
    last: dict[str, Step] = {}
    started = time.perf_counter()
    for n, steps in enumerate(sweep(acts.batches(), planned), start=1):
        last |= steps
        if n % 50 == 0:
            fvus = " ".join(f"{name} {step.fvu:.3f}" for name, step in steps.items())
            print(f"step {n}, {time.perf_counter() - started:.0f} s: {fvus}", file=sys.stderr, flush=True)
    return last


def milliseconds(run: Run, batch: Tensor, n_steps: int) -> float:
    """Median time of a training step of a copy of the dictionary, three warm-up steps aside."""
    config = replace(run.config, n_steps=n_steps + 3, resampling=None)
    steps = train(copy.deepcopy(run.dictionary), itertools.repeat(batch), run.objective, config)
    times = []
    for _ in range(n_steps + 3):
        started = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[3:])


Row = dict[str, float | None]


def measure(dictionaries: Mapping[str, Dictionary], acts: Activations, options: argparse.Namespace) -> dict[str, Row]:
    """Held-out scores by name: FVU, L0, silent latents, bits, and cross-entropy where there is a model."""
    table: dict[str, Row] = {}
    for name, dictionary in dictionaries.items():
        scores = reconstruction(dictionary.eval(), acts.held_out).scores
        table[name] = {"fvu": scores.fvu, "l0": scores.l0, "silent": scores.dead_share, "bias": scores.reconstruction_bias}
    choice = choose(dictionaries.items(), acts.held_out, target_fvu=options.distortion)
    for candidate in choice.candidates:
        table[str(candidate.name)]["bits"] = candidate.length.bits if candidate.length else None
    spliced = acts.splice(dictionaries) if acts.splice else {}
    for name, scores in spliced.items():
        table[name] |= {"ce": scores["ce_recovered_mean"], "kl": scores["kl"]}
    x = torch.cat(acts.held_out)
    error = (x - acts.sample.mean(0)).square().sum() / (x - x.mean(0)).square().sum()
    table["mean"] = {"fvu": float(error), "l0": 0.0, "ce": 0.0 if spliced else None}
    table["principal components, rounded"] = {"fvu": options.distortion, "bits": choice.baselines.pca_bits}
    return table


COLUMNS = {
    "fvu": ("FVU", "9.4f", ""), "l0": ("L0", "8.2f", "latents"), "ce": ("CE rec.", "9.4f", ""), "kl": ("KL", "8.4f", "nats"),
    "silent": ("silent", "8.3f", ""), "dead": ("dead", "8.3f", ""), "bias": ("bias", "8.4f", ""), "bits": ("bits", "8.1f", "bits"),
    "ms": ("ms", "8.1f", "ms"),
}  # fmt: skip
"""Title, format and unit of each column."""


def print_table(table: Mapping[str, Row]) -> None:
    """One line per dictionary; what was not measured stays empty."""
    widths = {key: int(form.split(".")[0]) for key, (_, form, _) in COLUMNS.items()}
    print(f"\n{'':<32}" + "".join(f"{title:>{widths[key]}}" for key, (title, _, _) in COLUMNS.items()))
    for name, row in table.items():
        cells = ((row.get(key), form, widths[key]) for key, (_, form, _) in COLUMNS.items())
        print(f"{name:<32}" + "".join(" " * width if value is None else f"{value:{form}}" for value, form, width in cells))


def print_bars(table: Mapping[str, Row], options: argparse.Namespace) -> None:
    """How TopK and pursuit stand to other libraries, where the settings are those of the comparison."""
    if (options.d_sae, options.l0, options.batch) != (2048, 32, 1024) or options.store:
        return
    if "top_k" in table and options.steps == TOP_K_STEPS:
        print(f"\nTopK after {TOP_K_STEPS} steps: {table['top_k']['fvu']:.4f}; other libraries {TOP_K_BAR[0]}-{TOP_K_BAR[1]}")
    short = table.get(SHORT_PURSUIT, table.get("pursuit") if options.steps == PURSUIT_STEPS else None)
    if short:
        print(f"pursuit after {PURSUIT_STEPS} steps: {short['fvu']:.4f}; other library {PURSUIT_BAR}")


def compare(options: argparse.Namespace, console: Console) -> dict[str, Row]:
    """Train, measure, time; the table."""
    acts = activations(options, console)
    planned = runs(options, acts)
    print(f"{acts.source}; {options.d_sae} latents, L0 {options.l0}, {options.steps} steps of {options.batch} tokens", flush=True)
    baselines = {f"PCA of rank {options.l0}": principal_components(acts, options.l0)}
    untrained = Architecture(make=autoencoder(TopK))
    baselines["untrained top_k"] = start(untrained, 1, options, acts).dictionary
    last = train_all(planned, acts)
    table = measure({name: run.dictionary for name, run in planned.items()} | baselines, acts, options)
    batch = next(acts.batches())
    for name, run in planned.items():
        table[name]["dead"] = last[name].dead_share
        if options.timed_steps:
            table[name]["ms"] = milliseconds(run, batch, options.timed_steps)
    return table


def main() -> None:
    options, console = parse(), Console(highlight=False, soft_wrap=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        table = compare(options, console)
    except SaeError as error:
        console.print(f"[red]error:[/red] {error}")
        raise SystemExit(2) from None
    print_table(table)
    print_bars(table, options)
    print(SEEN)
    if options.json:
        rows = [
            {"name": f"{name} {title}", "value": row[key], "unit": unit}
            for name, row in table.items()
            for key, (title, _, unit) in COLUMNS.items()
            if row.get(key) is not None
        ]
        write_json(options.json, rows)
        print(json.dumps({"rows": len(rows), "file": str(options.json)}), file=sys.stderr)


if __name__ == "__main__":
    main()
