"""A training run from a store to a folder: started, stopped anywhere, gone on with, finished.

    folder/run.json          what is trained on what: the plan, the feed, the digest of the store
           log.jsonl         one line a step
           step-00000200/    the newest checkpoints; removed once the dictionary is saved
           dictionary/       the trained dictionary, written last
           averaged/         with `ema_decay`, the dictionary with the running averages of its weights

    for records in train_from_store(store, plan, FeedConfig(site="blocks.15.hook_resid_post"), "runs/top_k"):
        print(records["."].fvu)

The same call goes on where the last one stopped, from the newest whole checkpoint: on a CPU, with the same number of threads, to the same
bits. Several plans are trained on one pass over the store, each in a sub-folder of its own.

Nothing that is broken is saved. Before every checkpoint all weights and moments must be finite and the dictionary must reconstruct a sample
of the store; a run that fails leaves its last good checkpoint, a line in its log, and an error that names the step. A run whose latents are
all dead goes on while something can revive them: a round of resampling that is still to come, or AuxK, which is given `PATIENCE` times as long
as it takes to be called dead. After that, or at the end of the run, it is an error.
"""

import contextlib
import fcntl
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sae.activations.scaling import fit_scaling
from sae.activations.store import ActivationStore
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import LATER_FIELDS, Dictionary
from sae.dictionaries.checkpoint import save_dictionary
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.init import initialise_, initialise_transcoder_
from sae.dictionaries.pursuit import MatchingPursuit
from sae.errors import ConfigError, FormatError, SaeError
from sae.fingerprint import to_json
from sae.storage import read_json, write_json
from sae.storage.atomic import TEMPORARY_PREFIX
from sae.training.feed import FeedConfig, sample, train_batches
from sae.training.log import Log, Pace, Record
from sae.training.loop import DIVERGED_FVU, Batch, Step, TrainState, averaged
from sae.training.plans import Plan
from sae.training.resume import checkpoints, load_training, remove_checkpoint, save_training
from sae.training.sweep import Run, sweep

FORMAT = 1
PATIENCE = 4
"""How many times `dead_tokens` AuxK is given to bring back a dictionary whose latents are all dead."""
MAX_SAMPLE = 65_536
"""Tokens that a dictionary is started from, unless it has more latents."""
N_PROBE = 512
"""Tokens on which a dictionary is tried before it is saved."""


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What a run leaves on disk as it goes; may be another when a run is resumed, and changes nothing in its result."""

    checkpoint_every: int = 100
    """Steps between two checkpoints (steps)."""
    keep: int = 2
    """Checkpoints that are kept; runs on one pass need two, or a kill while the first of them saves would leave them none in common."""
    log_every: int = 1
    """Steps per line of the log (steps)."""

    def __post_init__(self) -> None:
        for name, least in (("checkpoint_every", 1), ("keep", 2), ("log_every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)} (Upkeep)")


def train_from_store(
    store: ActivationStore,
    plans: Plan | Mapping[str, Plan],
    feed: FeedConfig,
    folder: str | Path,
    *,
    upkeep: Upkeep | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[dict[str, Record]]:
    """Train what is planned into `folder`; yields the records of every step by name, `"."` for a single plan, and ends when all is saved.

    Call it again after any interruption; a finished run yields nothing. A plan in a mapping is trained in the sub-folder of its name. Raises
    ConfigError for plans that do not fit the store or each other, and when `folder` holds a run of another plan, feed or store, naming what
    differs; SaeError for what goes wrong in a step, see the module's text, and while another process trains in the folder.
    """
    members = {".": plans} if isinstance(plans, Plan) else dict(plans)
    _check(store, members, feed)
    return _session(store, members, feed, Path(folder), upkeep or Upkeep(), torch.device(device))


def finished(folder: str | Path) -> bool:
    """Whether the run in `folder` has saved its dictionary."""
    return (Path(folder) / "dictionary" / "config.json").exists()


def untrained(store: ActivationStore, plan: Plan, feed: FeedConfig) -> Dictionary:
    """The dictionary of a plan with random atoms and the scaling of the store: what training starts from before it has seen data."""
    scaling = fit_scaling(store, feed.site)
    model = store.manifest.model
    provenance: dict[str, Any] = {"site": feed.site, "store_digest": store.digest, **({"model_digest": model.digest} if model else {})}
    provenance["training"] = {**plan.json(), "feed": to_json(feed)}
    if isinstance(plan.dictionary, AutoencoderConfig):
        target = None if feed.target_site is None else fit_scaling(store, feed.target_site)
        return Autoencoder(plan.dictionary, scaling, target_scaling=target, seed=feed.seed, provenance=provenance)
    if isinstance(plan.dictionary, CodebookConfig):
        return Codebook(plan.dictionary, scaling, seed=feed.seed, provenance=provenance)
    return MatchingPursuit(plan.dictionary, scaling, seed=feed.seed, provenance=provenance)


@dataclass(eq=False)
class _Member:
    """One of the dictionaries that are trained together."""

    plan: Plan
    path: Path
    dictionary: Dictionary
    state: TrainState
    log: Log
    dead: Bool[Tensor, "d_sae"]


def _check(store: ActivationStore, plans: Mapping[str, Plan], feed: FeedConfig) -> None:
    if not plans:
        raise ConfigError("plans must hold at least one plan, got none (train_from_store)")
    widths = [store.site(site).width for site in feed.sites]
    for name, plan in plans.items():
        if name != "." and (not re.fullmatch(r"[\w.=,+-]+", name) or name.startswith(".")):
            raise ConfigError(f"the name of a plan must be that of a folder, of letters, digits and any of _.=,+-, got {name!r}")
        if plan.dictionary.d_in != widths[0]:
            raise ConfigError(f"d_in must be {widths[0]}, the width of {feed.site}, got {plan.dictionary.d_in} (train_from_store)")
        d_out = getattr(plan.dictionary, "d_out", None)
        if d_out != (widths[1] if len(widths) > 1 else None):
            wanted = f"{widths[1]}, the width of {feed.target_site}" if len(widths) > 1 else "absent without a target_site"
            raise ConfigError(f"d_out must be {wanted}, got {d_out} for {plan.architecture} (train_from_store)")
    lengths = {name: plan.training.n_steps for name, plan in plans.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"plans on one pass must have the same n_steps, got {lengths} (train_from_store)")


def _session(
    store: ActivationStore, plans: dict[str, Plan], feed: FeedConfig, folder: Path, upkeep: Upkeep, device: torch.device
) -> Iterator[dict[str, Record]]:
    paths = {name: folder / name for name in plans}
    with contextlib.ExitStack() as stack:
        for path in paths.values():
            stack.enter_context(_alone(path))
        _claim({paths[name]: _identity(store, plan, feed) for name, plan in plans.items()})
        for path in paths.values():
            _sweep_up(path)
        open_paths = {name: path for name, path in paths.items() if not finished(path)}
        if not open_paths:
            return
        start = _common_step(list(open_paths.values()))
        members: dict[str, _Member] = {}
        for name, path in open_paths.items():
            members[name] = _member(store, plans[name], feed, path, start, device)
            stack.callback(members[name].log.close)
        yield from _steps(store, members, feed, upkeep, start, device)
        for member in members.values():
            _finish(member)
        for member in members.values():
            _sweep_up(member.path)


def _steps(
    store: ActivationStore, members: dict[str, _Member], feed: FeedConfig, upkeep: Upkeep, start: int, device: torch.device
) -> Iterator[dict[str, Record]]:
    runs = {name: Run(m.dictionary, m.plan.objective, m.plan.training, m.state) for name, m in members.items()}
    batches = (_to(batch, device) for batch in train_batches(store, feed, skip=start))
    probe, pace = _to(sample(store, feed, N_PROBE), device), Pace()
    at_work: str | None = None
    try:
        for steps in sweep(batches, runs):
            done = next(iter(steps.values())).state.step
            rate = pace.at(time.perf_counter(), done * feed.batch_size)
            records = {name: _take_record_(members[name], step, rate) for name, step in steps.items()}
            last = done == next(iter(members.values())).plan.training.n_steps
            for at_work, member in members.items():
                if last or (done - 1) % upkeep.log_every == 0:
                    member.log.write(records[at_work])
                _check_alive(member, last)
                if last or done % upkeep.checkpoint_every == 0:
                    _save(member, probe, upkeep.keep)
            at_work = None
            yield records
    except SaeError as error:
        # Runs go in order, so the one that failed in a step is the first that is behind.
        name = at_work or min(members, key=lambda name: members[name].state.step)
        raise _explained(error, name, members[name]) from error


def _take_record_(member: _Member, step: Step, rate: float) -> Record:
    dead = step.state.dead
    n_revived, member.dead = int((member.dead & ~dead).sum()), dead
    return Record.of(step, n_revived=n_revived, tokens_per_second=rate)


def _check_alive(member: _Member, last: bool) -> None:
    """Raises SaeError if all latents are dead and will stay so."""
    state, plan = member.state, member.plan
    if not bool(member.dead.all()):
        return
    resampling, silent = plan.training.resampling, int(state.since_fired.min())
    until = 0.0 if resampling is None else resampling.until * plan.training.n_steps
    if resampling is not None and (state.step // resampling.every + 1) * resampling.every <= until:
        return
    can_answer = plan.terms.aux_coefficient > 0 and not isinstance(plan.dictionary, CodebookConfig)
    if can_answer and silent <= PATIENCE * plan.training.dead_tokens and not last:
        return
    why = "AuxK has not revived them" if can_answer else "nothing can revive them: set aux_coefficient or resampling"
    raise SaeError(
        f"all {plan.dictionary.d_sae} latents are dead after step {state.step - 1}: none has fired for {silent} tokens, and {why}"
    )


def _explained(error: SaeError, name: str, member: _Member) -> SaeError:
    """The error with the run that failed and what is left of it."""
    member.log.fail(member.state.step, str(error))
    left = checkpoints(member.path)
    where = "" if name == "." else f"{name}: "
    kept = f"the last good checkpoint is {left[-1]}" if left else "no checkpoint had been written"
    return SaeError(f"{where}{error}; {kept}")


# --- what is on disk ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the folder against other processes; the lock falls with the process."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SaeError(f"{path} is in use: another process, or another iterator of this one, trains there") from error
        yield


def _identity(store: ActivationStore, plan: Plan, feed: FeedConfig) -> dict[str, Any]:
    return {"format": FORMAT, "store": store.digest, "feed": to_json(feed), **plan.json()}


def _claim(identities: dict[Path, dict[str, Any]]) -> None:
    """Write `run.json` where it is not there yet; nothing is written if one of them differs. Raises ConfigError naming what."""
    for path, identity in identities.items():
        if (path / "run.json").exists():
            stored = read_json(path / "run.json")
            problems = [f"{key} is {old!r} there, {new!r} now" for key, old, new in _differences("", stored, identity)]
            if problems:
                raise ConfigError(f"{path} holds another run, choose another folder or remove it: " + "; ".join(problems))
        elif finished(path) or checkpoints(path):
            raise FormatError(f"{path} has a dictionary or checkpoints but no run.json that says what they are; choose another folder")
    for path, identity in identities.items():
        if not (path / "run.json").exists():
            write_json(path / "run.json", identity)


def _differences(key: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(name for name in {*old, *new} if name in old or (name, new[name]) not in LATER_FIELDS)
        return [found for name in names for found in _differences(f"{key}.{name}".lstrip("."), old.get(name), new.get(name))]
    return [] if old == new else [(key, old, new)]


def _sweep_up(path: Path) -> None:
    """Remove what killed runs left half-written, and the checkpoints of a run that is finished."""
    for checkpoint in checkpoints(path) if finished(path) else []:
        remove_checkpoint(checkpoint)
    for leftover in path.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _common_step(paths: list[Path]) -> int:
    """The newest step of which every run has a checkpoint; 0 if there is none."""
    steps = [{int(found.name.removeprefix("step-")) for found in checkpoints(path)} for path in paths]
    return max(set.intersection(*steps), default=0)


def _member(store: ActivationStore, plan: Plan, feed: FeedConfig, path: Path, start: int, device: torch.device) -> _Member:
    if start:
        dictionary, state = load_training(path / f"step-{start:08d}")
        dictionary.to(device)
        _move_(state, device)
    else:
        dictionary = untrained(store, plan, feed).to(device)
        _initialise_(dictionary, store, plan, feed, device)
        state = TrainState.start(dictionary, plan.training)
    return _Member(plan, path, dictionary, state, Log.open(path / "log.jsonl", start=start), state.dead)


def _initialise_(dictionary: Dictionary, store: ActivationStore, plan: Plan, feed: FeedConfig, device: torch.device) -> None:
    d_sae = plan.dictionary.d_sae
    start = _to(sample(store, feed, max(d_sae, 8192, min(4 * d_sae, MAX_SAMPLE))), device)
    try:
        if isinstance(start, tuple):
            assert isinstance(dictionary, Autoencoder)
            initialise_transcoder_(dictionary, *start, seed=feed.seed)
        else:
            initialise_(dictionary, start, atoms=plan.atoms, seed=feed.seed)
    except SaeError as error:
        raise SaeError(f"{store.path} at {', '.join(feed.sites)}: {error}") from error


def _move_(state: TrainState, device: torch.device) -> None:
    state.since_fired = state.since_fired.to(device)
    state.averages = {name: tensor.to(device) for name, tensor in state.averages.items()}
    for moments in state.optimiser.moments.values():
        for name, tensor in moments.items():
            moments[name] = tensor.to(device)


def _to(batch: Batch, device: torch.device) -> Batch:
    return (batch[0].to(device), batch[1].to(device)) if isinstance(batch, tuple) else batch.to(device)


def _save(member: _Member, probe: Batch, keep: int) -> None:
    """Write a checkpoint if what would be in it is sound."""
    state, moments = member.state, member.state.optimiser.moments
    tensors = {**member.dictionary.state_dict(), **{f"average of {name}": tensor for name, tensor in state.averages.items()}}
    tensors |= {f"{moment} of {name}": tensor for name, several in moments.items() for moment, tensor in several.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise SaeError(f"the weights diverged at step {state.step - 1}: {name} is not finite (train_from_store)")
    candidates = [("the dictionary", member.dictionary)]
    if state.averages:
        candidates.append(("the averaged dictionary", averaged(member.dictionary, state)))
    for name, dictionary in candidates:
        fvu = _fvu(dictionary, probe)
        if not fvu <= DIVERGED_FVU:
            raise SaeError(
                f"the weights diverged at step {state.step - 1}: {name} has fvu {fvu:.4g} on a sample of the store (train_from_store)"
            )
    member.log.sync()
    save_training(member.path, member.dictionary, state, keep=keep)


@torch.no_grad()
def _fvu(dictionary: Dictionary, batch: Batch) -> float:
    acts, target = batch if isinstance(batch, tuple) else (batch, batch)
    target = target.double()
    variance = float((target - target.mean(0)).square().sum())
    return float((target - dictionary(acts).double()).square().sum()) / variance if variance else math.inf


def _finish(member: _Member) -> None:
    """Save the result; the folder `dictionary` is written last and says that the run is finished."""
    if member.state.averages:
        save_dictionary(averaged(member.dictionary, member.state), member.path / "averaged")
    save_dictionary(member.dictionary, member.path / "dictionary")
