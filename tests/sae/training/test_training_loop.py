"""The training loop: constraints after every step, exact resuming, counting in tokens, refusals."""

import copy
import itertools

import pytest
import torch
from jaxtyping import TypeCheckError

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.init import initialise_
from sae.dictionaries.kernels import reference, using
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError, SaeError
from sae.fingerprint import from_json
from sae.storage import load_tensors, read_json, save_tensors, write_json
from sae.training.firing import tokens_since_fired
from sae.training.loop import TrainConfig, TrainState, describe, train
from sae.training.objectives import ReconstructionObjective
from sae.training.optimisers import OptimiserConfig
from sae.training.resume import checkpoints, load_training, save_training
from sae.training.schedules import learning_rate

D_IN, D_SAE = 16, 48
CONFIG = TrainConfig(n_steps=12, learning_rate=1e-2, warmup_steps=3, decay_share=0.5, dead_tokens=40)
OBJECTIVE = ReconstructionObjective()


def batches(n: int = 12, rows: int = 32, seed: int = 5) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(D_IN, D_IN, generator=draw)
    return [torch.randn(rows, D_IN, generator=draw) @ mix + 1 for _ in range(n)]


def fresh(kind: str) -> Autoencoder | MatchingPursuit:
    scaling = Scaling.fitted(torch.cat(batches()))
    if kind == "top_k":
        made = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(4)), scaling, seed=1)
    else:
        made = MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=4, orthogonal=kind == "orthogonal pursuit"), scaling, seed=1)
    initialise_(made, batches()[0], atoms="random", seed=2)
    return made


KINDS = pytest.mark.parametrize("kind", ["top_k", "pursuit", "orthogonal pursuit"])


@KINDS
def test_training_lowers_the_error_and_keeps_atoms_unit(kind):
    made = fresh(kind)
    config = TrainConfig(n_steps=150, learning_rate=1e-2, dead_tokens=500)
    seen = list(train(made, itertools.cycle(batches()), OBJECTIVE, config))
    assert [step.index for step in seen] == list(range(150))
    assert [step.n_tokens for step in seen] == [32 * (i + 1) for i in range(150)]
    assert seen[-1].fvu < 0.8 * seen[0].fvu
    assert 0 < seen[-1].l0 <= 4
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(D_SAE))


@KINDS
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(kind, stop, tmp_path):
    whole = fresh(kind)
    ends = list(train(whole, batches(), OBJECTIVE, CONFIG))
    half = fresh(kind)
    for step in train(half, batches(), OBJECTIVE, CONFIG):
        if step.index + 1 == stop:
            save_training(tmp_path, half, step.state)
            break
    resumed, state = load_training(tmp_path)
    assert (state.step, state.n_tokens) == (stop, 32 * stop)
    rest = list(train(resumed, batches()[state.step :], OBJECTIVE, CONFIG, state=state))
    assert [step.loss for step in rest] == [step.loss for step in ends[stop:]]
    assert resumed.digest == whole.digest
    assert torch.equal(state.since_fired, ends[-1].state.since_fired)
    for name, parameter in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], parameter)
        for moment, theirs in state.optimiser.moments[name].items():
            assert torch.equal(theirs, ends[-1].state.optimiser.moments[name][moment])


def test_one_step_is_projected_clipped_adam_written_out():
    made, batch = fresh("top_k"), batches()[0]
    with torch.no_grad():
        made.b_enc.add_(0.1 * torch.randn(D_SAE, generator=torch.Generator().manual_seed(0)))
    config = TrainConfig(n_steps=10, learning_rate=1e-2, warmup_steps=4, optimiser=OptimiserConfig(clip_norm=0.05))
    twin = copy.deepcopy(made)
    x = twin.scaling.apply(batch)
    values, indices = ((x - twin.b_dec) @ twin.W_enc + twin.b_enc).topk(4)
    x_hat = torch.zeros(32, D_SAE).scatter(1, indices, values.relu()) @ twin.W_dec + twin.b_dec
    loss = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    names, parameters = zip(*twin.named_parameters(), strict=True)
    grads = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    grads["W_dec"] = grads["W_dec"] - (grads["W_dec"] * twin.W_dec).sum(1, keepdim=True) * twin.W_dec
    norm = torch.stack([g.norm() for g in grads.values()]).norm()
    assert float(norm.detach()) > 0.05
    step = next(train(made, [batch], OBJECTIVE, config))
    assert step.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert step.learning_rate == pytest.approx(1e-2 / 4)
    for name, parameter in twin.named_parameters():
        g = grads[name] * 0.05 / norm
        moved = parameter.detach() - 1e-2 / 4 * g / (g.abs() + 1e-8)  # Adam's first step, both moments bias-corrected
        if name == "W_dec":
            moved = moved / moved.norm(dim=1, keepdim=True)
        torch.testing.assert_close(dict(made.named_parameters())[name].detach(), moved, atol=2e-5, rtol=1e-4)


def test_the_projected_gradient_is_orthogonal_to_every_atom():
    made = fresh("pursuit")
    made(batches()[0]).square().sum().backward()
    before = made.W_dec.grad.clone()
    atoms = made.W_dec.detach()
    reference.project_(made.W_dec.grad, atoms)
    assert float((made.W_dec.grad * atoms).sum(1).abs().max()) < 1e-3 * float(before.abs().max())
    assert float((before * atoms).sum(1).abs().max()) > 0.1


def test_training_draws_no_random_numbers():
    before = torch.get_rng_state()
    list(train(fresh("top_k"), batches(), OBJECTIVE, CONFIG))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_takes_no_batch_more_than_it_uses():
    source = iter(batches(20))
    list(train(fresh("top_k"), source, OBJECTIVE, CONFIG))
    assert len(list(source)) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_names_its_step_and_changes_nothing(bad):
    made, data = fresh("top_k"), batches()
    data[3] = data[3].clone()
    data[3][2, 1] = bad
    digests = []
    run = (made.digest for _ in train(made, data, OBJECTIVE, CONFIG))
    with pytest.raises(SaeError, match="bad batch at step 3: acts must be finite, got NaN or Inf in 1 of 32 rows"):
        digests.extend(run)
    assert len(digests) == 3
    assert made.digest == digests[-1]


def test_a_diverging_loss_names_its_step():
    made = fresh("top_k")
    with torch.no_grad():
        made.W_enc.mul_(1e3)
    with pytest.raises(SaeError, match="the loss diverged at step 0"):
        next(train(made, batches(), OBJECTIVE, CONFIG))


def test_batches_that_end_early_are_an_error():
    with pytest.raises(SaeError, match="batches ended after 7 steps, n_steps=12 were asked for"):
        list(train(fresh("top_k"), batches()[:7], OBJECTIVE, CONFIG))


def test_resuming_with_another_configuration_is_refused_by_name():
    made = fresh("top_k")
    state = TrainState.start(made, CONFIG)
    other = TrainConfig(n_steps=12, learning_rate=2e-2, warmup_steps=3, decay_share=0.5, dead_tokens=40)
    with pytest.raises(ConfigError, match=r"config.learning_rate must be that of the resumed run, 0.01, got 0.02"):
        train(made, batches(), OBJECTIVE, other, state=state)


@pytest.mark.parametrize(("name", "value"), [
    ("n_steps", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("warmup_steps", -1), ("decay_share", 1.5),
    ("dead_tokens", 0), ("final_share", 1.5), ("ema_decay", 1.0),
])  # fmt: skip
def test_training_options_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        TrainConfig(**{"n_steps": 5, name: value})


@pytest.mark.parametrize(("name", "value"), [("kind", "sgd"), ("betas", (0.9, 1.0)), ("epsilon", 0.0), ("clip_norm", 0.0)])
def test_optimiser_options_out_of_range_are_refused(name, value):
    with pytest.raises((ConfigError, TypeCheckError), match=name):
        OptimiserConfig(**{name: value})


def test_the_schedule_rises_holds_and_falls():
    rates = [learning_rate(s, peak=2.0, n_steps=20, warmup_steps=4, decay_share=0.25) for s in range(20)]
    assert rates == pytest.approx([0.5, 1.0, 1.5] + [2.0] * 13 + [1.6, 1.2, 0.8, 0.4])
    assert learning_rate(0, peak=1.0, n_steps=1, warmup_steps=0, decay_share=0.0) == 1.0
    with pytest.raises(ConfigError, match=r"step must be in 0..n_steps-1=19, got 20"):
        learning_rate(20, peak=2.0, n_steps=20, warmup_steps=4, decay_share=0.25)


def obvious_since(codes: SparseCodes, since: list[int]) -> list[int]:
    since = list(since)
    for row in range(len(codes)):
        fired = {int(i) for i, v in zip(codes.indices[row], codes.values[row], strict=True) if v != 0}
        since = [0 if latent in fired else count + 1 for latent, count in enumerate(since)]
    return since


@pytest.mark.parametrize("rows", [1, 7, 30, 60])
def test_tokens_since_firing_do_not_depend_on_the_batch_size(rows):
    draw = torch.Generator().manual_seed(3)
    values = torch.randn(60, 3, generator=draw).relu()
    codes = SparseCodes.of_slots(torch.randint(0, 50, (60, 3), generator=draw), values, 50)
    since = torch.randint(0, 100, (50,), generator=draw)
    expected = obvious_since(codes, since.tolist())
    for start in range(0, 60, rows):
        since = tokens_since_fired(since, codes[start : start + rows])
    assert since.tolist() == expected


def test_a_latent_selected_with_value_zero_has_not_fired():
    codes = SparseCodes(torch.tensor([[3, 1]]), torch.tensor([[2.0, 0.0]]), torch.tensor([2]), 5)
    assert tokens_since_fired(torch.full((5,), 7), codes).tolist() == [8, 8, 8, 0, 8]


def test_old_checkpoints_are_pruned_and_the_newest_is_loaded(tmp_path):
    made = fresh("pursuit")
    for step in train(made, batches(), OBJECTIVE, CONFIG):
        if step.index % 3 == 2:
            path = save_training(tmp_path, made, step.state, keep=2)
            assert path.name == f"step-{step.index + 1:08d}"
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000009", "step-00000012"]
    assert load_training(tmp_path)[1].step == 12
    assert load_training(tmp_path / "step-00000009")[1].step == 9
    with pytest.raises(ConfigError, match="keep must be at least 1, got 0"):
        save_training(tmp_path, made, step.state, keep=0)


def test_a_run_can_be_saved_before_its_first_step(tmp_path):
    made = fresh("top_k")
    save_training(tmp_path, made, TrainState.start(made, CONFIG))
    resumed, state = load_training(tmp_path)
    list(train(made, batches(), OBJECTIVE, CONFIG))
    list(train(resumed, batches(), OBJECTIVE, CONFIG, state=state))
    assert resumed.digest == made.digest


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    made = fresh("top_k")
    state = TrainState.start(made, CONFIG)
    save_training(tmp_path, made, state)
    next(train(made, batches(), OBJECTIVE, CONFIG, state=state))
    monkeypatch.setattr("sae.training.resume.save_tensors", lambda *a, **k: (_ for _ in ()).throw(OSError("disk on fire")))
    with pytest.raises(OSError, match="disk on fire"):
        save_training(tmp_path, made, state)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]
    assert load_training(tmp_path)[1].step == 0


def test_a_damaged_training_checkpoint_is_named(tmp_path):
    with pytest.raises(FormatError, match="has no training checkpoint"):
        load_training(tmp_path)
    made = fresh("top_k")
    step = next(train(made, batches(), OBJECTIVE, CONFIG))
    path = save_training(tmp_path, made, step.state)
    tensors = load_tensors(path / "training.safetensors")
    save_tensors(path / "training.safetensors", {n: t for n, t in tensors.items() if n != "exp_avg.W_dec"})
    with pytest.raises(FormatError, match=r"missing or unexpected tensors \['exp_avg.W_dec'\]"):
        load_training(tmp_path)
    path = save_training(tmp_path, made, step.state)
    record = read_json(path / "training.json")
    write_json(path / "training.json", {**record, "config": {**record["config"], "momentum": 1}})
    with pytest.raises(FormatError, match="'momentum'"):
        load_training(tmp_path)


def test_the_run_describes_itself_as_json():
    description = describe(CONFIG, OBJECTIVE)
    assert description["config"]["learning_rate"] == 1e-2
    assert description["objective"]["aux_coefficient"] == 1 / 32
    assert from_json(ReconstructionObjective, description["objective"]) == OBJECTIVE
    assert from_json(TrainConfig, description["config"]) == CONFIG


@pytest.mark.parametrize("kind", ["top_k", "pursuit"])
def test_what_kernels_keep_of_the_weights_follows_every_step(kind):
    """Rounded weights and Gram matrices are kept between encodings; training in between must make them anew."""
    draw = torch.Generator().manual_seed(0)
    if kind == "top_k":
        made = Autoencoder(AutoencoderConfig(d_in=64, d_sae=512, activation=TopK(4)), seed=1)
    else:
        made = MatchingPursuit(PursuitConfig(d_in=64, d_sae=512, k=4), seed=1)
    x = torch.randn(256, 64, generator=draw)
    for _ in train(made, [torch.randn(256, 64, generator=draw) for _ in range(30)], OBJECTIVE, TrainConfig(n_steps=30, learning_rate=0.1)):
        with torch.no_grad():
            codes = [made.encode(x).dense() for _ in range(2)][-1]
            with using("reference"):
                expected = copy.deepcopy(made).encode(x).dense()
        torch.testing.assert_close(codes, expected, rtol=1e-3, atol=1e-3)
