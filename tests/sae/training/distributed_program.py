"""What the tests of distributed training run, in one process or under torchrun:   distributed_program.py FOLDER PART...

Every process writes what it ended with to FOLDER/PART/CASE-RANK.{json,safetensors}; the test compares the processes with each other and with
the same program run in one process.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

if __name__ == "__main__":
    from jaxtyping import install_import_hook

    install_import_hook("sae", "beartype.beartype")

import torch

from sae.dictionaries import kernels
from sae.dictionaries.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import SaeError
from sae.storage import save_tensors, write_json
from sae.training import peers, sharded_checkpoint
from sae.training.distributed import launched
from sae.training.loop import TrainConfig, averaged, train
from sae.training.objectives import MatryoshkaObjective, MultiTopKObjective, Objective, ReconstructionObjective
from sae.training.optimisers import OptimiserConfig
from sae.training.revival import Resampling
from sae.training.schedules import KAnnealing
from sae.training.sharded import ShardedAutoencoder, initialise_sharded_, shard
from sae.training.sharded_checkpoint import load_sharded, load_sharded_training, save_sharded, save_sharded_training
from sae.training.world import World

D_IN, D_OUT, D_SAE, N_ROWS, N_STEPS = 16, 10, 61, 33, 10
TRAINING = TrainConfig(n_steps=N_STEPS, learning_rate=2e-2, warmup_steps=3, dead_tokens=60, ema_decay=0.9)
STEERED = ReconstructionObjective(target_l0=5.0, control_rate=0.2)
PLAIN = ReconstructionObjective(aux_coefficient=0.0)  # AuxK may be rounded to bfloat16 by the machine's kernels
RESAMPLED = replace(TRAINING, resampling=Resampling(every=3))
MATRYOSHKA = MatryoshkaObjective(shares=(0.25, 1.0))


@dataclass
class Case:
    config: AutoencoderConfig | PursuitConfig | CodebookConfig
    objective: Objective = field(default_factory=ReconstructionObjective)
    training: TrainConfig = TRAINING
    dtype: torch.dtype = torch.float64
    backend: str = "reference"
    bucket_bytes: int = 1 << 20


def autoencoder(activation, **options) -> AutoencoderConfig:
    return AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation, **options)


CASES = {
    "top_k": Case(autoencoder(TopK(3)), training=replace(TRAINING, annealing=KAnnealing(start=6.0))),
    "top_k, large tensors apart": Case(autoencoder(TopK(3)), bucket_bytes=1000),
    "top_k in float32": Case(autoencoder(TopK(3)), dtype=torch.float32),
    "top_k by the machine's kernels": Case(autoencoder(TopK(3)), PLAIN, dtype=torch.float32, backend="cpu"),
    "relu": Case(autoencoder(ReLU()), STEERED),
    "jump_relu": Case(autoencoder(JumpReLU(bandwidth=0.5)), STEERED),
    "gated": Case(autoencoder(Gated()), STEERED),
    "batch_top_k": Case(autoencoder(BatchTopK(2.5)), MultiTopKObjective()),
    "transcoder": Case(autoencoder(TopK(3), d_out=D_OUT), MATRYOSHKA),
    "pursuit": Case(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=3), training=replace(TRAINING, learning_rate=2e-3)),
    "pursuit, resampled": Case(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=3), PLAIN, RESAMPLED),
    "codebook, resampled": Case(CodebookConfig(d_in=D_IN, d_sae=D_SAE, k=3), PLAIN, RESAMPLED),
}
SHARDED = {
    "top_k": CASES["top_k"],
    "more than a shard holds": replace(CASES["top_k"], config=autoencoder(TopK(40)), training=replace(TRAINING, dead_tokens=10)),
    "dead in both shards": replace(
        CASES["top_k"], objective=ReconstructionObjective(aux_share=0.125), training=replace(TRAINING, dead_tokens=5)
    ),
    "multi_top_k": replace(CASES["top_k"], objective=MultiTopKObjective()),
    "adam_rows": replace(CASES["top_k"], training=replace(TRAINING, optimiser=OptimiserConfig(kind="adam_rows"))),
    "top_k in float32": CASES["top_k in float32"],
    "top_k by the machine's kernels": CASES["top_k by the machine's kernels"],
}


def batches(case: Case, n: int = N_STEPS) -> list:
    """Rows early in a batch are larger than late ones, so that ranks differ in what fires, and in how much."""
    draw = torch.Generator().manual_seed(5)
    mix, out = torch.randn(D_IN, D_IN, generator=draw), torch.randn(D_IN, D_OUT, generator=draw)
    sizes = torch.linspace(3.0, 0.5, N_ROWS)[:, None]
    mix[:, 0] *= 0.01
    acts = [(sizes * torch.randn(N_ROWS, D_IN, generator=draw) @ mix + 1).to(case.dtype) for _ in range(n)]
    return [(x, (x.relu() @ out.to(x))) for x in acts] if getattr(case.config, "d_out", None) else acts


def fresh(case: Case, seed: int):
    scaling = Scaling(torch.linspace(-1, 1, D_IN), 0.3)
    classes = {AutoencoderConfig: Autoencoder, PursuitConfig: MatchingPursuit, CodebookConfig: Codebook}
    made = classes[type(case.config)](case.config, scaling, seed=seed).to(case.dtype)
    draw = torch.Generator().manual_seed(seed)
    a_third = slice(D_SAE // 3)  # of the latents hardly ever fires, all of it in one shard
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name != "W_dec":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter))
        if isinstance(made, Autoencoder):
            made.b_enc[a_third] -= 5.0
        else:
            made.b_dec[0] = 0.6  # nothing is left in coordinate 0
            made.W_dec[a_third, 0] = 5.0
            made.normalise_()
    return made


def record(folder: Path, name: str, world: World, dictionary, steps: list, **more) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = steps[-1].state
    fields = ("loss", "fvu", "l0", "gradient_norm", "pressure", "dead_share", "n_tokens")
    write_json(folder / f"{name}-{world.everyone.rank}.json", {**{f: [getattr(s, f) for s in steps] for f in fields}, **more})
    save_tensors(folder / f"{name}-{world.everyone.rank}.safetensors", {**dictionary.state_dict(), **state.tensors()})


def split_rows(world: World, folder: Path) -> None:
    for name, case in CASES.items():
        made, peers.BUCKET_BYTES = fresh(case, seed=1 + world.everyone.rank), case.bucket_bytes
        with kernels.using(case.backend):
            steps = list(train(made, map(world.rows, batches(case)), case.objective, case.training, world=world))
        record(folder, name, world, made, steps, device=str(world.device))
    write_json(folder / f"failures-{world.everyone.rank}.json", failures(world))


def failures(world: World) -> dict[str, str]:
    """What each process is told when something is wrong in the last one only, or in how they were started."""
    case, last = CASES["top_k"], world.everyone.rank == 1
    told = {}

    def attempt(what: str, run) -> None:
        try:
            run()
            told[what] = "nothing"
        except (SaeError, ZeroDivisionError) as error:
            told[what] = f"{type(error).__name__}: {error}"

    def feed(*, bad=False, short=False, broken=False):
        for i, batch in enumerate(batches(case)):
            rows = world.rows(batch).clone()
            if last and bad and i == 3:
                rows[2, 1] = float("nan")
            if last and short and i == 5:
                return
            if last and broken and i == 2:
                raise ZeroDivisionError("the shard's reader")
            yield rows

    def run(config=TRAINING, dictionary=None, nudge=False, **options):
        made = dictionary or fresh(case, seed=1)
        for step in train(made, feed(**options), case.objective, config, world=world):
            if nudge and last and step.index == 4:
                made.W_dec.data += 0.3

    attempt("nan", lambda: run(bad=True))
    attempt("short", lambda: run(short=True))
    attempt("broken", lambda: run(broken=True))
    attempt("drift", lambda: run(nudge=True))
    attempt("config", lambda: run(replace(TRAINING, learning_rate=1e-3) if last else TRAINING))
    attempt("few rows", lambda: world.rows(torch.zeros(1, D_IN)))
    attempt("unsharded", lambda: run(dictionary=shard(fresh(case, seed=1), world.everyone)))
    return told


def split_latents(world: World, folder: Path) -> None:
    for name, case in SHARDED.items():
        whole = fresh(case, seed=1)
        with kernels.using(case.backend):
            made = shard(whole, world.along_latents)
            steps = list(train(made, map(world.rows, batches(case)), case.objective, case.training, world=world))
        record(folder, name, world, made, steps, first=made.first, last=made.last)
    case = SHARDED["top_k"]
    stop_and_go_on(world, folder, case)
    with kernels.using("reference"):
        made = ShardedAutoencoder(case.config, world.along_latents, seed=3)
        initialise_sharded_(made, torch.cat(batches(CASES["top_k in float32"])), seed=0)
        save_sharded(made, folder / "initialised")
        codes = made.code(made.scaled(batches(CASES["top_k in float32"])[0]))
        save_tensors(folder / f"codes-{world.everyone.rank}.safetensors", {"indices": codes.indices, "values": codes.values})
    write_json(folder / f"failures-{world.everyone.rank}.json", refusals(world, folder))


def stop_and_go_on(world: World, folder: Path, case: Case) -> None:
    """Stop after 4 steps, save, load, and go on; also from a checkpoint of the whole."""
    data = [world.rows(batch) for batch in batches(case)]
    made = shard(fresh(case, seed=1), world.along_latents)
    run = train(made, data, case.objective, case.training, world=world)
    steps = [next(run) for _ in range(4)]
    path = save_sharded_training(folder / "run", made, steps[-1].state, world)
    for name, place in (("resumed", folder / "run"), ("resumed from one step's folder", path)):
        made, state = load_sharded_training(place, world)
        rest = list(train(made, data[state.step :], case.objective, case.training, state=state, world=world))
        record(folder, name, world, made, rest)
    save_sharded(averaged(made, state), folder / "averaged")
    save_sharded(made, folder / "dictionary")
    again = load_sharded(folder / "dictionary", world.along_latents)
    same = all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in made.state_dict().items())
    write_json(folder / f"same-{world.everyone.rank}.json", same)


def refusals(world: World, folder: Path) -> dict[str, str]:
    told = {}

    def attempt(what: str, run) -> None:
        try:
            run()
            told[what] = "nothing"
        except (SaeError, OSError, KeyError) as error:
            told[what] = f"{type(error).__name__}: {error}"

    case, latents = CASES["top_k"], world.along_latents
    made = shard(fresh(case, seed=1), latents)
    attempt("activation", lambda: ShardedAutoencoder(autoencoder(ReLU()), latents))
    attempt("transcoder", lambda: ShardedAutoencoder(autoencoder(TopK(3), d_out=4), latents))
    attempt("narrow", lambda: ShardedAutoencoder(AutoencoderConfig(d_in=4, d_sae=1, activation=TopK(1)), latents))
    attempt("resampling", lambda: train(made, batches(case), case.objective, RESAMPLED, world=world))
    attempt("prefixes", lambda: next(train(made, map(world.rows, batches(case)), MATRYOSHKA, TRAINING, world=world)))
    attempt("whole", lambda: train(fresh(case, seed=1), batches(case), case.objective, TRAINING, world=world))
    attempt("digest", lambda: made.digest)
    attempt("fold", made.fold)
    (folder / "a file").touch()
    attempt("save: start", lambda: save_sharded(made, folder / "a file" / "inside"))
    integers = sharded_checkpoint.INTEGERS
    sharded_checkpoint.INTEGERS = {}
    attempt("save: a shard", lambda: save_sharded(made, folder / "dictionary"))
    sharded_checkpoint.INTEGERS = integers
    made.provenance = {"score": float("nan") if world.is_first else 1.0}
    attempt("save: end", lambda: save_sharded(made, folder / "dictionary"))
    return told


def grid(world: World, folder: Path) -> None:
    """Rows and latents split at once."""
    case = SHARDED["top_k"]
    made = shard(fresh(case, seed=1), world.along_latents)
    steps = list(train(made, map(world.rows, batches(case)), case.objective, case.training, world=world))
    record(folder, "top_k", world, made, steps, first=made.first, last=made.last)
    save_sharded_training(folder / "run", made, steps[-1].state, world)


def crash(world: World, folder: Path) -> None:
    """One process ends between two steps with an error of its own, and nobody is told."""
    case = CASES["top_k"]
    for step in train(fresh(case, seed=1), map(world.rows, batches(case)), case.objective, case.training, world=world):
        if world.everyone.rank == 1 and step.index == 2:
            raise KeyError("no such thing")


def single(folder: Path) -> None:
    """The same runs in one process, unsharded."""
    world = World()
    split_rows(world, folder / "rows")
    for name, case in SHARDED.items():
        with kernels.using(case.backend):
            made = fresh(case, seed=1)
            record(folder / "latents", name, world, made, list(train(made, batches(case), case.objective, case.training)))


PARTS = {"rows": (split_rows, 1), "latents": (split_latents, "all"), "grid": (grid, 2), "crash": (crash, 1)}


kept: list[World] = []
"""Worlds that live until the interpreter ends, as those of a script's top level do."""


def main(folder: str, *parts: str) -> None:
    for part in parts:
        run, latent_shards = PARTS[part]
        with launched(latent_shards=latent_shards, timeout=30.0) as world:
            run(world, Path(folder) / part)
        kept.append(world)
        if not world.everyone.alone:
            write_json(Path(folder) / part / f"parted-{world.everyone.rank}.json", after_the_end(world))


def after_the_end(world: World) -> str:
    try:
        world.everyone.counts(1)
    except SaeError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
