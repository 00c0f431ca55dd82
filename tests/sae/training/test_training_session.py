"""A run from a store to a folder: killed and gone on with to the same bits, refused by name where it is another, never silently broken."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_store import D_IN, SITES, tiny_store

from sae.activations.scaling import fit_scaling
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.checkpoint import load_dictionary
from sae.dictionaries.codebook import CodebookConfig
from sae.dictionaries.init import initialise_
from sae.dictionaries.pursuit import PursuitConfig
from sae.errors import ConfigError, FormatError, SaeError
from sae.fingerprint import to_json
from sae.storage import map_tensors, save_tensors
from sae.training import session
from sae.training.feed import FeedConfig, held_out_batches, sample, train_batches, usable_tokens
from sae.training.log import Log, Pace, Record, read_log
from sae.training.loop import TrainConfig, TrainState, averaged, train
from sae.training.objectives import MatryoshkaObjective, MultiTopKObjective, ReconstructionObjective
from sae.training.plans import ACTIVATIONS, Plan
from sae.training.resume import checkpoints, load_training
from sae.training.revival import Resampling
from sae.training.schedules import KAnnealing
from sae.training.session import Upkeep, finished, train_from_store, untrained

ROOT = Path(__file__).parents[3]
FEED = FeedConfig(site=SITES[0], batch_size=64, held_out=0.2, seed=3)
UPKEEP = Upkeep(checkpoint_every=4)
TRAINING = TrainConfig(n_steps=12, learning_rate=1e-2, warmup_steps=3, dead_tokens=150)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("tiny") / "store")


def plan(activation=None, *, objective=None, d_sae=48, d_out=None, **training):
    config = AutoencoderConfig(d_in=D_IN, d_sae=d_sae, activation=activation or TopK(4), d_out=d_out)
    made = dataclasses.replace(TRAINING, **training)
    return Plan(dictionary=config, training=made, objective=objective or ReconstructionObjective())


def run(store, plans, folder, *, feed=FEED, upkeep=UPKEEP, stop=None):
    """The records of a run, which is abandoned after `stop` steps."""
    return list(itertools.islice(train_from_store(store, plans, feed, folder, upkeep=upkeep), stop))


# --- killed ------------------------------------------------------------------------------------------------------------------------------


def killed_runs(tmp_path, n_points, seed=0):
    program = Path(__file__).with_name("killed_runs.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(n_points), str(seed)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(reports):
    assert {report["name"] for report in reports} == {"top_k", "batch_top_k", "pursuit", "everything", "steered", "transcoder", "sweep"}
    for report in reports:
        assert report["wrong"] == [], report
        assert set(report["codes"]) <= {-signal.SIGKILL, 0} and report["codes"][-1] == 0, report
        assert "seconds" in report["point"] or report["codes"][0] == -signal.SIGKILL, report
        # Old checkpoints are pruned; a kill just before that leaves the two that are kept, and the new one.
        assert all(len(steps) <= 3 for state in report["left"] for steps in state["checkpoints"]), report
        last = report["left"][-1]
        assert last["torn"] == 0 and not any(last["checkpoints"]), report  # nothing is left but the result
        assert report["n_lines"] == 24, report
    facts = {report["name"]: report for report in reports}
    assert facts["everything"]["most_dead"] > 0 and facts["everything"]["n_revived"] > 0
    assert facts["everything"]["l0"][0] > 2 * facts["everything"]["l0"][1]  # annealed
    assert facts["steered"]["n_pressures"] > 12
    assert facts["top_k"]["n_pressures"] == 1
    states = [state for report in reports for state in report["left"][:-1]]
    assert any(state["torn"] for state in states)  # some were killed inside a write,
    assert any(state["checkpoints"] == [[]] for state in states)  # some before the first checkpoint


def test_killed_runs_go_on_to_the_same_bits_and_the_same_log(tmp_path):
    check(killed_runs(tmp_path, 1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_killed_at_many_points_go_on_to_the_same_bits_and_the_same_log(tmp_path):
    reports = killed_runs(tmp_path, 6, seed=1)
    check(reports)
    sweeps = [state["checkpoints"] for report in reports if report["name"] == "sweep" for state in report["left"]]
    assert any(len(state) == 2 and state[0] != state[1] for state in sweeps)  # killed between the saves of one pass


@pytest.mark.parametrize("stop", [1, 4, 7, 11, 12])
def test_an_abandoned_run_goes_on_to_the_same_bits(store, tmp_path, stop):
    wanted = plan(ema_decay=0.8, resampling=Resampling(every=2))
    whole = run(store, wanted, tmp_path / "whole")
    run(store, wanted, tmp_path / "cut", stop=stop)
    rest = run(store, wanted, tmp_path / "cut")
    assert [records["."].step for records in rest] == list(range(4 * (stop // 4), 12))
    for name in ("dictionary", "averaged"):
        for file in ("weights.safetensors", "config.json", "provenance.json"):
            assert (tmp_path / "cut" / name / file).read_bytes() == (tmp_path / "whole" / name / file).read_bytes()
    logs = [[{**line, "tokens_per_second": 0} for line in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [records["."].step for records in whole] == list(range(12))
    assert read_log(tmp_path / "whole" / "log.jsonl")[0]["tokens_per_second"] is None


# --- what a run does ---------------------------------------------------------------------------------------------------------------------


def test_a_session_is_the_plain_loop_on_the_stores_own_batches(store, tmp_path):
    wanted = plan(ema_decay=0.7)
    run(store, wanted, tmp_path)
    made = Autoencoder(wanted.dictionary, fit_scaling(store, SITES[0]), seed=3)
    tokens = store.usable_tokens(SITES[0], held_out=0.2)
    chosen = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(4))[:8192]]
    initialise_(made, store.gather(SITES[0], chosen).float(), seed=3)
    state = TrainState.start(made, wanted.training)
    batches = store.batches(SITES[0], batch_size=64, seed=3, held_out=0.2)
    losses = [step.loss for step in train(made, batches, wanted.objective, wanted.training, state=state)]
    assert load_dictionary(tmp_path / "dictionary").digest == made.digest
    assert load_dictionary(tmp_path / "averaged").digest == averaged(made, state).digest != made.digest
    assert [line["loss"] for line in read_log(tmp_path / "log.jsonl")] == losses


def test_a_trained_dictionary_says_where_it_comes_from(store, tmp_path):
    wanted = plan()
    run(store, wanted, tmp_path)
    provenance = load_dictionary(tmp_path / "dictionary").provenance
    assert provenance["site"] == SITES[0]
    assert provenance["store_digest"] == store.digest
    assert provenance["model_digest"] == store.manifest.model.digest
    assert Plan.parse({key: value for key, value in provenance["training"].items() if key != "feed"}) == wanted
    assert provenance["training"]["feed"] == to_json(FEED)


def test_a_sweep_gives_what_each_run_gives_alone(store, tmp_path):
    swept = {"a": plan(TopK(2)), "b": plan(TopK(6), d_sae=64), "c": plan(ReLU(), learning_rate=3e-3)}
    run(store, swept, tmp_path / "sweep")
    for name, one in swept.items():
        run(store, one, tmp_path / name)
        assert load_dictionary(tmp_path / name / "dictionary").digest == load_dictionary(tmp_path / "sweep" / name / "dictionary").digest


def test_a_sweep_passes_over_the_store_once(store, tmp_path, monkeypatch):
    seen = []
    real = train_batches
    monkeypatch.setattr(session, "train_batches", lambda *a, **k: (seen.append(len(batch)) or batch for batch in real(*a, **k)))
    run(store, {f"k_{k}": plan(TopK(k)) for k in (2, 3, 4)}, tmp_path)
    assert seen == [64] * 12


def test_a_finished_run_is_left_as_it_is(store, tmp_path):
    assert len(run(store, plan(), tmp_path)) == 12
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert run(store, plan(), tmp_path) == []
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_only_what_is_new_in_a_finished_sweep_is_trained(store, tmp_path):
    run(store, {"k_2": plan(TopK(2))}, tmp_path)
    inode = (tmp_path / "k_2" / "dictionary").stat().st_ino
    records = run(store, {"k_2": plan(TopK(2)), "k_4": plan(TopK(4))}, tmp_path)
    assert {name for step in records for name in step} == {"k_4"}
    assert finished(tmp_path / "k_4")
    assert (tmp_path / "k_2" / "dictionary").stat().st_ino == inode


def test_old_checkpoints_are_pruned_and_what_a_kill_left_is_swept_up(store, tmp_path):
    found = [
        [path.name for path in checkpoints(tmp_path)]
        for _ in train_from_store(store, plan(), FEED, tmp_path, upkeep=Upkeep(checkpoint_every=2))
    ]
    assert found[5] == ["step-00000004", "step-00000006"]
    assert max(len(names) for names in found) == 2
    assert checkpoints(tmp_path) == []
    shutil.rmtree(tmp_path / "dictionary")
    half = tmp_path / ".partial-0123456789ab-step-00000099"
    half.mkdir()
    (half / "config.json").write_text("{")
    run(store, plan(), tmp_path)
    assert not half.exists()


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_it(store, tmp_path, monkeypatch):
    def killed(path, **options):
        if not path.exists():
            return  # nothing of an earlier kill to remove
        next(path.rglob("*.json")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sae.training.resume.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(store, plan(), tmp_path, upkeep=Upkeep(checkpoint_every=2))
    assert [load_training(path)[1].step for path in checkpoints(tmp_path)] == [4, 6]
    assert len(list(tmp_path.glob(".partial-*"))) == 1
    assert [records["."].step for records in run(store, plan(), tmp_path)] == [6, 7, 8, 9, 10, 11]
    assert not list(tmp_path.glob(".partial-*"))


def test_upkeep_may_change_when_a_run_goes_on(store, tmp_path):
    run(store, plan(), tmp_path / "cut", upkeep=Upkeep(checkpoint_every=3), stop=7)
    run(store, plan(), tmp_path / "cut", upkeep=Upkeep(checkpoint_every=5, keep=3, log_every=4))
    run(store, plan(), tmp_path / "whole")
    assert load_dictionary(tmp_path / "cut" / "dictionary").digest == load_dictionary(tmp_path / "whole" / "dictionary").digest
    assert [line["step"] for line in read_log(tmp_path / "cut" / "log.jsonl")] == [0, 1, 2, 3, 4, 5, 8, 11]


def test_a_transcoder_is_fed_pairs_of_the_tokens_that_both_masks_keep(store, monkeypatch):
    real = ActivationStore.mask
    outliers = torch.arange(store.n_tokens) % 7 == 3  # as if the second site had outliers of its own
    monkeypatch.setattr(
        ActivationStore, "mask", lambda self, site: real(self, site) & ~(outliers if site == SITES[1] else torch.zeros_like(outliers))
    )
    feed = dataclasses.replace(FEED, target_site=SITES[1], batch_size=30)
    tokens = usable_tokens(store, feed)
    both = store.mask(SITES[0]) & store.mask(SITES[1])
    assert torch.equal(tokens, torch.tensor([t for t in store.split(0.2).train.tolist() if both[t]]))
    where = {tuple(row): t for t, row in enumerate(torch.cat(list(store.shards(SITES[0]))).float().tolist())}
    other = torch.cat(list(store.shards(SITES[1]))).float()
    for acts, acts_out in itertools.islice(train_batches(store, feed, skip=2), 3):
        assert acts.shape == acts_out.shape == (30, D_IN)
        assert torch.equal(acts_out, other[[where[tuple(row)] for row in acts.tolist()]])
    n_held = sum(len(acts) for acts, _ in held_out_batches(store, feed))
    assert n_held == int(both.sum()) - len(tokens)


@pytest.mark.parametrize("architecture", [*ACTIVATIONS, "pursuit", "codebook"])
def test_every_architecture_is_trained_and_its_plan_survives_json(store, tmp_path, architecture):
    if architecture in ACTIVATIONS:
        config = AutoencoderConfig(
            d_in=D_IN,
            d_sae=48,
            activation=ACTIVATIONS[architecture](
                **({"k": 4.0 if architecture == "batch_top_k" else 4} if architecture.endswith("top_k") else {})
            ),
        )
    else:
        config = (PursuitConfig if architecture == "pursuit" else CodebookConfig)(d_in=D_IN, d_sae=48, k=4)
    wanted = Plan(dictionary=config, training=dataclasses.replace(TRAINING, n_steps=60, warmup_steps=5))
    assert wanted.architecture == architecture
    assert Plan.parse(json.loads(json.dumps(wanted.json()))) == wanted
    records = run(store, wanted, tmp_path)
    assert records[-1]["."].fvu < 0.9 * records[0]["."].fvu
    assert load_dictionary(tmp_path / "dictionary").config == config


# --- refusals ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "named"), [
    ({"plan": plan(learning_rate=2e-2)}, r"training.learning_rate is 0.01 there, 0.02 now"),
    ({"plan": plan(TopK(5))}, r"dictionary.activation.k is 4 there, 5 now"),
    ({"plan": plan(objective=MatryoshkaObjective())}, r"objective is 'reconstruction' there, 'matryoshka' now"),
    ({"feed": dataclasses.replace(FEED, seed=4)}, r"feed.seed is 3 there, 4 now"),
    ({"feed": dataclasses.replace(FEED, held_out=0.3)}, r"feed.held_out is 0.2 there, 0.3 now"),
])  # fmt: skip
def test_a_folder_with_another_run_is_refused_by_name(store, tmp_path, change, named):
    run(store, plan(), tmp_path, stop=5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"holds another run, choose another folder or remove it: .*{named}"):
        run(store, change.get("plan", plan()), tmp_path, feed=change.get("feed", FEED))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_from_before_a_configuration_had_all_its_fields_goes_on(store, tmp_path):
    run(store, plan(), tmp_path, stop=5)
    identity = json.loads((tmp_path / "run.json").read_text())
    for name in ("apply_b_dec_to_input", "normalisation"):
        del identity["dictionary"][name]
    (tmp_path / "run.json").write_text(json.dumps(identity))
    assert run(store, plan(), tmp_path)[0]["."].step > 0
    with pytest.raises(ConfigError, match=r"dictionary.normalisation is None there, 'layer_norm' now"):
        run(store, Plan(dictionary=dataclasses.replace(plan().dictionary, normalisation="layer_norm"), training=plan().training), tmp_path)


def test_a_folder_with_a_run_on_another_store_is_refused(store, tmp_path):
    run(store, plan(), tmp_path / "run", stop=5)
    other = tiny_store(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=f"store is '{store.digest}' there, '{other.digest}' now"):
        run(other, plan(), tmp_path / "run")


def test_a_folder_whose_run_is_not_described_is_refused(store, tmp_path):
    run(store, plan(), tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(FormatError, match=r"has a dictionary or checkpoints but no run.json"):
        run(store, plan(), tmp_path)


def test_two_runs_in_one_folder_at_once_are_refused(store, tmp_path):
    first = train_from_store(store, plan(), FEED, tmp_path)
    next(first)
    with pytest.raises(SaeError, match=f"{tmp_path} is in use"):
        run(store, plan(), tmp_path)
    del first
    assert len(run(store, plan(), tmp_path)) == 12


@pytest.mark.parametrize(("plans", "feed", "named"), [
    ({}, FEED, "plans must hold at least one plan"),
    ({"a/b": plan()}, FEED, "the name of a plan must be that of a folder"),
    ({"..": plan()}, FEED, "the name of a plan must be that of a folder"),
    ({"a": plan(), "b": plan(n_steps=13)}, FEED, r"plans on one pass must have the same n_steps, got \{'a': 12, 'b': 13\}"),
    (plan(d_out=D_IN), FEED, "d_out must be absent without a target_site, got 32 for top_k"),
    (plan(), FeedConfig(site=SITES[0], target_site=SITES[1]), f"d_out must be 32, the width of {SITES[1]}, got None"),
    (Plan(dictionary=AutoencoderConfig(d_in=16, d_sae=48), training=TRAINING), FEED, "d_in must be 32, the width of blocks.0.hook_resid_post, got 16"),
    (plan(), FeedConfig(site="blocks.9.hook_resid_post"), "site must be one of blocks.0.hook_resid_post, blocks.1.hook_mlp_out"),
])  # fmt: skip
def test_plans_that_do_not_fit_are_refused_before_anything_is_written(store, tmp_path, plans, feed, named):
    with pytest.raises(ConfigError, match=named):
        train_from_store(store, plans, feed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("make", "named"), [
    (lambda: Plan(dictionary=PursuitConfig(d_in=8, d_sae=9, k=2), training=TRAINING, objective=MatryoshkaObjective()), "matryoshka for pursuit"),
    (lambda: plan(ReLU(), objective=MultiTopKObjective()), "multi_top_k needs an architecture with a fixed k, got relu"),
    (lambda: plan(JumpReLU(), annealing=KAnnealing(start=9.0)), "annealing needs an architecture with a fixed k, got jump_relu"),
    (lambda: Plan.parse({"architecture": "top_q"}), "architecture must be one of top_k, .*, got 'top_q'"),
    (lambda: Plan.parse({"training": {"n_steps": 2}, "dictionary": {"d_in": 4, "d_sae": 40}, "speed": 1}), "unknown key 'speed' in a plan"),
    (lambda: Plan.parse({"training": {"n_stps": 2}, "dictionary": {"d_in": 4, "d_sae": 40}}), "unknown key 'n_stps' in training"),
    (lambda: FeedConfig(site="a", target_site="a"), "target_site must be another site"),
    (lambda: FeedConfig(site="a", batch_size=0), "batch_size must be at least 1, got 0"),
    (lambda: FeedConfig(site="a", held_out=1.0), "held_out must be at least 0 and below 1"),
    (lambda: FeedConfig(site="a", seed=-1), "seed must be at least 0"),
    (lambda: Upkeep(keep=1), "keep must be at least 2, got 1"),
    (lambda: Upkeep(checkpoint_every=0), "checkpoint_every must be at least 1"),
])  # fmt: skip
def test_plans_and_feeds_that_make_no_sense_are_refused(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


# --- what goes wrong in a run ------------------------------------------------------------------------------------------------------------


def poison(store, path, share):
    """A copy of the store with NaN at a share of its tokens, drawn at random; its manifest, and so its digest, is the same."""
    shutil.copytree(store.path, path)
    draw = torch.Generator().manual_seed(0)
    for file in sorted(path.glob(f"shards/*/{SITES[0]}.safetensors")):
        tensors = {name: tensor.clone() for name, tensor in map_tensors(file).items()}
        tensors["acts"][torch.rand(len(tensors["acts"]), generator=draw) < share, 3] = float("nan")
        save_tensors(file, tensors)
    return ActivationStore.open(path)


def test_bad_activations_at_the_start_name_the_store(store, tmp_path):
    with pytest.raises(SaeError, match=r"bad at blocks.0.hook_resid_post: acts must be finite, got NaN or Inf in \d+ of"):
        run(poison(store, tmp_path / "bad", 0.01), plan(), tmp_path / "run")


def test_bad_activations_on_the_way_name_the_step_and_leave_the_last_checkpoint(store, tmp_path, monkeypatch):
    bad = poison(store, tmp_path / "bad", 0.004)
    run(store, plan(), tmp_path / "run", stop=5)
    monkeypatch.setattr(session, "sample", lambda _, feed, n: sample(store, feed, n))  # the bad tokens are not in the sample
    with pytest.raises(SaeError, match=r"bad batch at step (\d+): acts must be finite.*the last good checkpoint is .*step-0000000(4|8)"):
        run(bad, plan(), tmp_path / "run")
    newest = load_training(tmp_path / "run")[1].step
    last = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert last["step"] >= newest and last["error"].startswith(f"bad batch at step {last['step']}")
    assert not finished(tmp_path / "run")
    run(store, plan(), tmp_path / "run")  # with the store mended
    run(store, plan(), tmp_path / "whole")
    assert load_dictionary(tmp_path / "run" / "dictionary").digest == load_dictionary(tmp_path / "whole" / "dictionary").digest
    assert [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl")] == list(range(12))


@pytest.mark.parametrize("rate", [1e4, 1e30])
@pytest.mark.parametrize("n_steps", [1, 12])
def test_weights_that_diverge_are_never_saved(store, tmp_path, rate, n_steps):
    wanted = plan(learning_rate=rate, warmup_steps=0, n_steps=n_steps)
    with pytest.raises(SaeError, match=r"the (weights|loss) diverged at step 0: .*; no checkpoint had been written"):
        run(store, wanted, tmp_path, upkeep=Upkeep(checkpoint_every=1))
    assert checkpoints(tmp_path) == [] and not finished(tmp_path)


@pytest.mark.parametrize(("what", "named"), [
    (lambda member, state: state.optimiser.moments["W_enc"]["exp_avg_sq"], "exp_avg_sq of W_enc is not finite"),
    (lambda member, state: state.averages["b_dec"], "average of b_dec is not finite"),
    (lambda member, state: member.b_enc, "b_enc is not finite"),
])  # fmt: skip
def test_what_is_not_finite_is_named_and_not_saved_though_the_loss_looks_well(store, tmp_path, monkeypatch, what, named):
    real = session.sweep

    def sweep(batches, runs):
        for steps in real(batches, runs):
            if steps["."].index == 5:
                tensor = what(runs["."].dictionary, runs["."].state).detach()
                tensor[(0,) * tensor.ndim] = float("inf")
            yield steps

    monkeypatch.setattr(session, "sweep", sweep)
    with pytest.raises(SaeError, match=f"the weights diverged at step 5: {named} .*the last good checkpoint is .*step-00000003"):
        run(store, plan(ema_decay=0.5), tmp_path, upkeep=Upkeep(checkpoint_every=3))
    assert load_training(tmp_path)[1].step == 3


def test_a_loss_that_diverges_later_leaves_a_checkpoint_that_loads(store, tmp_path):
    wanted = plan(learning_rate=1e3, warmup_steps=1000, n_steps=2000)
    with pytest.raises(SaeError, match=r"diverged at step (\d+).*the last good checkpoint is"):
        run(store, wanted, tmp_path, upkeep=Upkeep(checkpoint_every=1))
    dictionary, state = load_training(tmp_path)
    assert state.step >= 1
    assert session._fvu(dictionary, sample(store, FEED, 512)) <= 1e3
    assert "diverged" in read_log(tmp_path / "log.jsonl")[-1]["error"]


def test_a_sweep_names_the_run_that_fails_and_leaves_the_others_their_checkpoints(store, tmp_path):
    swept = {"good": plan(), "bad": plan(learning_rate=1e30, warmup_steps=0), "fine": plan()}
    with pytest.raises(SaeError, match=r"^bad: the (weights|loss) diverged at step"):
        run(store, swept, tmp_path)
    assert "error" in read_log(tmp_path / "bad" / "log.jsonl")[-1]
    assert "error" not in read_log(tmp_path / "good" / "log.jsonl")[-1]
    run(store, {name: swept[name] for name in ("good", "fine")}, tmp_path)
    run(store, plan(), tmp_path / "alone")
    assert load_dictionary(tmp_path / "good" / "dictionary").digest == load_dictionary(tmp_path / "alone" / "dictionary").digest


def killed_at_birth(monkeypatch):
    """All latents start with a bias that keeps them silent."""

    def start(dictionary, acts, **options):
        initialise_(dictionary, acts, **options)
        with torch.no_grad():
            dictionary.b_enc.fill_(-1e3)

    monkeypatch.setattr(session, "initialise_", start)


def test_a_dictionary_that_nothing_can_revive_is_an_error(store, tmp_path, monkeypatch):
    killed_at_birth(monkeypatch)
    silent = ReconstructionObjective(aux_coefficient=0.0)
    with pytest.raises(
        SaeError, match=r"all 48 latents are dead after step 2: none has fired for 192 tokens, and nothing can revive them: set aux_coeff"
    ):
        run(store, plan(objective=silent, n_steps=40), tmp_path)
    assert read_log(tmp_path / "log.jsonl")[-1]["step"] == 3
    assert not finished(tmp_path)


def test_a_dead_dictionary_that_auxk_does_not_revive_is_an_error_in_the_end(store, tmp_path, monkeypatch):
    killed_at_birth(monkeypatch)
    with pytest.raises(
        SaeError, match=r"all 48 latents are dead after step 9: none has fired for 640 tokens, and AuxK has not revived them"
    ):
        run(store, plan(n_steps=40), tmp_path)
    with pytest.raises(
        SaeError, match=r"all 48 latents are dead after step 7: .*AuxK has not revived them; the last good checkpoint is .*step-00000004"
    ):
        run(store, plan(n_steps=8), tmp_path / "short")  # the patience is not over, but the run is
    assert load_training(tmp_path / "short")[1].step == 4


def test_a_dead_dictionary_is_revived_by_resampling_and_the_log_says_so(store, tmp_path, monkeypatch, caplog):
    killed_at_birth(monkeypatch)
    wanted = plan(objective=ReconstructionObjective(aux_coefficient=0.0), n_steps=20, resampling=Resampling(every=5))
    with caplog.at_level("INFO", logger="sae.training"):
        records = [step["."] for step in run(store, wanted, tmp_path)]
    assert [record.dead_share for record in records[:5]] == [0, 0, 1, 1, 0]
    assert records[4].n_revived == 48
    assert records[-1].dead_share < 1 and records[-1].l0 > 1
    assert "no latent has fired for 150 tokens" in caplog.text and "48 dead latents started anew" in caplog.text
    assert finished(tmp_path)


def test_latents_that_auxk_revives_are_counted_in_the_log(store, tmp_path):
    wanted = plan(TopK(1), objective=ReconstructionObjective(aux_coefficient=1.0), n_steps=60, d_sae=96)
    run(store, wanted, tmp_path)
    lines = read_log(tmp_path / "log.jsonl")
    dead = [round(96 * line["dead_share"]) for line in lines]
    assert max(dead) > 0 and sum(line["n_revived"] for line in lines) > 0
    assert all(before - now <= line["n_revived"] <= before for before, now, line in zip(dead, dead[1:], lines[1:], strict=False))


# --- the log -----------------------------------------------------------------------------------------------------------------------------


def record(step, **values):
    shared = dict.fromkeys([field.name for field in dataclasses.fields(Record)], 0.5)
    return Record(**{**shared, "step": step, "n_tokens": 64, "n_revived": 0, **values})


def test_the_log_is_one_flushed_json_line_a_step_without_nan(tmp_path):
    log = Log.open(tmp_path / "log.jsonl", start=0)
    log.write(record(0, loss=float("nan"), gradient_norm=float("inf")))
    line = json.loads(
        (tmp_path / "log.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name)
    )  # there before the file is closed
    assert line["loss"] is None and line["gradient_norm"] is None and line["fvu"] == 0.5
    log.fail(1, "too bad")
    log.close()
    assert read_log(tmp_path / "log.jsonl")[1] == {"step": 1, "error": "too bad"}


@pytest.mark.parametrize("torn", [b"", b'{"step": 4, "lo', b'{"step": 4}'])
def test_the_log_is_cut_where_a_run_goes_on(tmp_path, torn):
    log = Log.open(tmp_path / "log.jsonl", start=0)
    for step in range(4):
        log.write(record(step))
    log.close()
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [0, 1, 2, 3]
    log = Log.open(tmp_path / "log.jsonl", start=2)
    log.write(record(2, loss=7.0))
    log.close()
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path / "log.jsonl")] == [(0, 0.5), (1, 0.5), (2, 7.0)]


@pytest.mark.parametrize(("text", "named"), [
    ('{"step": 0}\nnonsense\n{"step": 1}\n', "line 2 is not JSON"),
    ('{"step": 0}\n{"step": 2}\n{"step": 2}\n', "line 3 must hold a step after 2, got 2"),
    ('{"step": 0}\n{"loss": 2}\n', "line 2 must hold a step after 0, got None"),
    ('[1]\n', "line 1 must hold a step after -1"),
])  # fmt: skip
def test_a_damaged_log_is_named(tmp_path, text, named):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(FormatError, match=named):
        Log.open(tmp_path / "log.jsonl", start=5)


def test_the_pace_is_that_of_the_last_steps():
    pace = Pace()
    rates = [pace.at(seconds=10.0 + 2 * i, n_tokens=100 * i) for i in range(30)]
    assert rates[0] != rates[0]
    assert rates[1:] == [50.0] * 29
    assert pace.at(seconds=78.0, n_tokens=2900) == pytest.approx((2900 - 1000) / (78 - 30))  # twenty steps back


def test_the_untrained_baseline_has_seen_nothing_but_the_scaling(store):
    made = untrained(store, plan(), FEED)
    twin = Autoencoder(plan().dictionary, fit_scaling(store, SITES[0]), seed=3)
    assert made.digest == twin.digest
