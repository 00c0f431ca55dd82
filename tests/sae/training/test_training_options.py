"""Annealing, averages, resampling, row-wise Adam, penalties under control, sweeps."""

import copy
import itertools
import math

import pytest
import torch

from sae.dictionaries.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.explained import Ask
from sae.dictionaries.init import initialise_, initialise_transcoder_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.training.loop import TrainConfig, TrainState, averaged, train
from sae.training.objectives import MatryoshkaObjective, Moment, MultiTopKObjective, ReconstructionObjective
from sae.training.optimisers import Optimiser, OptimiserConfig
from sae.training.resume import load_training, save_training
from sae.training.revival import Resampling, resample_
from sae.training.schedules import KAnnealing, learning_rate
from sae.training.sweep import Run, sweep

D_IN, D_SAE = 16, 48
OBJECTIVE = ReconstructionObjective()


def batches(n: int = 12, rows: int = 64, seed: int = 5) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(D_IN, D_IN, generator=draw)
    return [torch.randn(rows, D_IN, generator=draw) @ mix + 1 for _ in range(n)]


def fresh(activation=TopK(4), seed: int = 1) -> Autoencoder:  # noqa: B008
    made = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation), Scaling.fitted(torch.cat(batches())), seed=seed)
    initialise_(made, torch.cat(batches()), seed=2)
    return made


def test_k_falls_evenly_or_at_once():
    linear = KAnnealing(start=20.0, share=0.5)
    assert [linear.at(step, end=4.0, n_steps=16) for step in (0, 2, 4, 8, 15)] == [20.0, 16.0, 12.0, 4.0, 4.0]
    sudden = KAnnealing(start=3.0, share=0.25, shape="step")
    assert [sudden.at(step, end=1.36, n_steps=16) for step in (0, 3, 4, 15)] == [3.0, 3.0, 1.36, 1.36]
    for options in ({"start": 0.0}, {"start": 1.0, "share": 0.0}):
        with pytest.raises(ConfigError, match="must be"):
            KAnnealing(**options)


def test_annealed_training_keeps_as_many_latents_as_the_schedule_says():
    config = TrainConfig(n_steps=12, annealing=KAnnealing(start=20.0, share=0.5))
    l0 = [step.l0 for step in train(fresh(BatchTopK(4.0)), batches(), OBJECTIVE, config)]
    expected = [20.0 + (4.0 - 20.0) * min(1, step / 6) for step in range(12)]
    assert l0 == pytest.approx(expected, abs=1 / 64)
    with pytest.raises(ConfigError, match="annealing must be absent for a dictionary without a fixed k"):
        train(fresh(ReLU()), batches(), OBJECTIVE, config)


def test_the_rate_falls_to_its_final_share():
    rates = [learning_rate(s, peak=1.0, n_steps=10, warmup_steps=0, decay_share=0.5, final_share=0.1) for s in range(10)]
    assert rates == pytest.approx([1.0] * 6 + [0.1 + 0.9 * share for share in (0.8, 0.6, 0.4, 0.2)])


def test_the_average_of_the_weights_is_their_exponential_mean_and_survives_a_stop(tmp_path):
    config = TrainConfig(n_steps=12, learning_rate=1e-2, ema_decay=0.7)
    made = fresh()
    expected = {name: p.detach().clone() for name, p in made.named_parameters()}
    for step in train(made, batches(), OBJECTIVE, config):
        keep = min(0.7, (1 + step.index) / (10 + step.index))
        for name, p in made.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * p.detach()
        if step.index == 4:
            save_training(tmp_path, made, step.state)
    for name, average in step.state.averages.items():
        torch.testing.assert_close(average, expected[name])
    mean = averaged(made, step.state)
    torch.testing.assert_close(mean.W_enc.detach(), expected["W_enc"])
    torch.testing.assert_close(mean.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert mean.digest != made.digest
    resumed, state = load_training(tmp_path)
    for _ in train(resumed, batches()[5:], OBJECTIVE, config, state=state):
        pass
    assert averaged(resumed, state).digest == mean.digest
    with pytest.raises(ConfigError, match="set ema_decay"):
        averaged(made, TrainState.start(made, TrainConfig(n_steps=1)))


def test_one_step_of_row_wise_adam_is_its_formula():
    made = fresh()
    names = ("W_enc", "W_dec", "b_enc")
    draw = torch.Generator().manual_seed(0)
    for name, p in made.named_parameters():
        p.grad = torch.randn(p.shape, generator=draw) * (1e-3 if name == "b_dec" else 1e-2)
    before, grads = copy.deepcopy(made), {name: getattr(made, name).grad.clone() for name in names}
    optimiser = Optimiser(made, OptimiserConfig(kind="adam_rows", clip_norm=1e9))
    assert optimiser.moments["W_enc"]["exp_avg_sq"].shape == (D_SAE,)
    assert optimiser.moments["b_enc"]["exp_avg_sq"].shape == (D_SAE,)
    optimiser.step_(made, 1e-3)
    encoder = before.W_enc - 1e-3 * grads["W_enc"] / (grads["W_enc"].square().mean(0).sqrt() + 1e-8)
    torch.testing.assert_close(made.W_enc.detach(), encoder.detach())
    atoms = before.W_dec.detach()
    g = grads["W_dec"] - (grads["W_dec"] * atoms).sum(1, keepdim=True) * atoms
    moved = atoms - 1e-3 * g / (g.square().mean(1, keepdim=True).sqrt() + 1e-8)
    torch.testing.assert_close(made.W_dec.detach(), moved / moved.norm(dim=1, keepdim=True))
    torch.testing.assert_close(made.b_enc.detach(), before.b_enc.detach() - 1e-3 * grads["b_enc"].sign(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["adam", "adam_rows"])
def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(kind):
    made = fresh()
    for p in made.parameters():
        p.grad = torch.zeros_like(p)
    made.W_enc.grad[3, 4] = math.inf
    digest = made.digest
    with pytest.raises(ValueError, match="the gradient is not finite at step 0"):
        Optimiser(made, OptimiserConfig(kind=kind)).step_(made, 1e-3)
    assert made.digest == digest


@pytest.mark.parametrize("kind", ["top_k", "pursuit", "codebook"])
def test_dead_latents_are_started_anew_from_what_is_explained_worst(kind):
    make = {
        "top_k": fresh,
        "pursuit": lambda: MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=4)),
        "codebook": lambda: Codebook(CodebookConfig(d_in=D_IN, d_sae=D_SAE, k=2)),
    }[kind]
    made = make()
    x = batches()[0]
    residual = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))
    residual[10:] = 0  # only ten rows have an error left
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[5:30] = True
    optimiser = Optimiser(made, OptimiserConfig())
    for moments in optimiser.moments.values():
        for moment in moments.values():
            moment.fill_(1.0)
    before = copy.deepcopy(made)
    revived = resample_(made, x, residual, dead, optimiser, seed=7)
    assert revived.nonzero().view(-1).tolist() == list(range(5, 15))
    wanted = x[:10] - made.b_dec.detach() if kind == "codebook" else torch.nn.functional.normalize(residual[:10], dim=1)
    assert float((made.W_dec.detach()[5:15, None] - wanted[None]).norm(dim=2).amin(1).max()) < 1e-5
    assert torch.equal(made.W_dec[~revived], before.W_dec[~revived])
    if kind == "top_k":
        cosine = torch.nn.functional.cosine_similarity(made.W_enc.T[5:15], made.W_dec[5:15])
        torch.testing.assert_close(cosine, torch.ones(10))
        alive_norm = before.W_enc[:, ~dead].norm(dim=0).mean()
        torch.testing.assert_close(made.W_enc.norm(dim=0)[5:15], alive_norm.expand(10))
        assert not optimiser.moments["W_enc"]["exp_avg"][:, 5:15].any()
    assert not optimiser.moments["W_dec"]["exp_avg_sq"][5:15].any()
    assert optimiser.moments["W_dec"]["exp_avg_sq"][15:].all()
    assert optimiser.moments["b_dec"]["exp_avg"].all(), "the shared bias keeps its moments"
    again = copy.deepcopy(before)
    resample_(again, x, residual, dead, Optimiser(again, OptimiserConfig()), seed=7)
    assert again.digest == made.digest
    assert not resample_(made, x, torch.zeros_like(residual), dead, optimiser, seed=7).any()


def test_resampling_brings_dead_latents_back_and_stops_before_the_end():
    made = fresh()
    with torch.no_grad():
        made.b_enc[:20] = -1e3
    config = TrainConfig(n_steps=60, dead_tokens=300, resampling=Resampling(every=10, until=0.5))
    objective = ReconstructionObjective(aux_coefficient=0.0)
    steps = list(train(made, itertools.cycle(batches()), objective, config))
    assert steps[8].dead_share >= 20 / 48
    assert steps[40].dead_share < 0.1
    assert [i for i in range(1, 61) if config.resampling.is_due(i, 60)] == [10, 20, 30]


def clusters(rows: int, centres: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    label = torch.randint(0, len(centres), (rows,), generator=draw)
    return centres[label] + 0.3 * torch.randn(rows, centres.shape[1], generator=draw) / centres.shape[1] ** 0.5, label


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("replaced", [True, False])
def test_a_codebook_finds_clusters_if_unused_codes_are_replaced(replaced):
    draw = torch.Generator().manual_seed(11)
    centres = torch.nn.functional.normalize(torch.randn(40, 32, generator=draw), dim=1)
    made = Codebook(CodebookConfig(d_in=32, d_sae=80, k=1), seed=4)
    resampling = Resampling(every=50, until=0.8) if replaced else None
    config = TrainConfig(n_steps=400, learning_rate=1e-2, dead_tokens=5_000, resampling=resampling)
    for _ in train(made, (clusters(256, centres, draw)[0] for _ in range(400)), OBJECTIVE, config):
        pass
    x, label = clusters(4000, centres, draw)
    with torch.no_grad():
        code, x_hat = made.encode(x).indices[:, 0], made(x)
    table = torch.zeros(80, 40).index_put_((code, label), torch.ones(4000), accumulate=True)
    purity = float(table.amax(1).sum() / 4000)
    fvu = float((x_hat - x).square().sum() / (x - x.mean(0)).square().sum())
    floor = 0.09 / 1.09
    assert (purity == 1.0) == replaced
    assert (fvu < 1.1 * floor) == replaced


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(), Gated()], ids=lambda a: a.kind)
def test_the_number_of_active_latents_is_steered_to_its_target(activation):
    made = fresh(activation)
    config = TrainConfig(n_steps=600, learning_rate=5e-3)
    steps = list(train(made, itertools.cycle(batches(40)), ReconstructionObjective(target_l0=6.0), config))
    l0 = sum(step.l0 for step in steps[-50:]) / 50
    assert l0 == pytest.approx(6.0, rel=0.1)
    assert (steps[-1].pressure != 1) == (activation.kind != "jump_relu")
    free = list(train(fresh(activation), itertools.cycle(batches(40)), ReconstructionObjective(), TrainConfig(n_steps=20)))
    assert all(step.pressure == 1 for step in free)


def test_an_l0_penalty_becomes_the_squared_distance_to_its_target():
    made = fresh(JumpReLU(bandwidth=0.5)).double()
    x, nobody = made.scaled(batches()[0].double()), Moment(dead=torch.zeros(D_SAE, dtype=torch.bool))
    objective = ReconstructionObjective(target_l0=3.0, target_coefficient=0.7)
    losses = objective(made, x, None, nobody)
    assert float(losses.total.detach()) == pytest.approx(float(losses.fvu) + 0.7 * (losses.l0 / 3 - 1) ** 2)
    explained = made.explain(x, Ask())
    fvu = explained.error / (x - x.mean(0)).square().sum()
    expected = torch.autograd.grad(fvu + 0.7 * (explained.penalty / 3 - 1).square(), [made.log_threshold, made.W_enc])
    torch.testing.assert_close(torch.autograd.grad(losses.total, [made.log_threshold, made.W_enc]), expected)


def test_thresholds_are_trained_at_a_rate_of_their_own():
    made = fresh(JumpReLU())
    before = made.log_threshold.detach().clone()
    for p in made.parameters():
        p.grad = torch.ones_like(p)
    Optimiser(made, OptimiserConfig(clip_norm=1e9)).step_(made, 1e-3)
    torch.testing.assert_close(made.log_threshold.detach(), before - 1e-2)


def test_a_run_under_control_resumes_with_its_pressure(tmp_path):
    config, objective = TrainConfig(n_steps=12, learning_rate=1e-2), ReconstructionObjective(target_l0=3.0)
    whole = fresh(ReLU())
    ends = list(train(whole, batches(), objective, config))
    half = fresh(ReLU())
    for step in train(half, batches(), objective, config):
        if step.index == 6:
            save_training(tmp_path, half, step.state)
            break
    resumed, state = load_training(tmp_path)
    rest = list(train(resumed, batches()[7:], objective, config, state=state))
    assert [s.pressure for s in rest] == [s.pressure for s in ends[7:]]
    assert resumed.digest == whole.digest


def test_a_sweep_trains_each_run_as_if_it_were_alone():
    def runs() -> dict[str, Run]:
        return {
            "short": Run(fresh(TopK(3)), OBJECTIVE, TrainConfig(n_steps=7)),
            "long": Run(fresh(BatchTopK(5.0)), OBJECTIVE, TrainConfig(n_steps=12, learning_rate=1e-2)),
        }

    together, alone = runs(), runs()
    source = iter(batches(20))
    seen = list(sweep(source, together))
    assert [sorted(steps) for steps in seen] == [["long", "short"]] * 7 + [["long"]] * 5
    assert len(list(source)) == 8, "no batch more than is used"
    for name, run in alone.items():
        list(train(run.dictionary, batches(20), run.objective, run.config))
        assert run.dictionary.digest == together[name].dictionary.digest
    with pytest.raises(ConfigError, match="runs must hold at least one run"):
        sweep(batches(), {})


def test_every_atom_takes_part_in_the_prefixes_that_reach_it():
    made = fresh(TopK(6)).double()
    x = made.scaled(batches()[0].double())
    objective = MatryoshkaObjective(shares=(0.25, 0.5, 1.0))
    nobody = Moment(dead=torch.zeros(D_SAE, dtype=torch.bool))
    losses = objective(made, x, None, nobody)
    z = made.code(x).dense()
    terms = [(x - made.b_dec - z[:, :m] @ made.W_dec[:m]).square().sum() for m in (12, 24, 48)]
    variance = (x - x.mean(0)).square().sum()
    torch.testing.assert_close(losses.total, sum(terms) / 3 / variance)
    torch.testing.assert_close(losses.fvu, terms[-1].detach() / variance)
    n_terms = torch.zeros(D_SAE)
    for term in terms:
        (grad,) = torch.autograd.grad(term, made.W_dec, retain_graph=True)
        n_terms += (grad != 0).any(1)
    active = (z.detach() != 0).any(0)
    assert active.all()
    assert n_terms.tolist() == [3.0] * 12 + [2.0] * 12 + [1.0] * 24
    got = torch.autograd.grad(losses.total, list(made.parameters()), retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(sum(terms) / 3 / variance, list(made.parameters())))


def test_sampled_prefixes_depend_on_the_step_and_follow_their_law():
    objective = MatryoshkaObjective(n_sampled=5)
    assert objective.prefixes(4096, 7) == objective.prefixes(4096, 7)
    drawn = [objective.prefixes(4096, step) for step in range(4000)]
    assert len({*drawn}) > 1000
    assert all(sizes[-1] == 4096 and list(sizes) == sorted({*sizes}) and sizes[0] >= 1 for sizes in drawn)
    inner = torch.tensor([size for sizes in drawn for size in sizes[:-1]], dtype=torch.float64)
    for size in (4, 64, 1024):  # P(prefix >= s) = (s^-1/2 - n^-1/2) / (1 - n^-1/2); duplicates are merged, so only larger sizes are counted
        expected = (size**-0.5 - 4096**-0.5) / (1 - 4096**-0.5)
        assert float((inner >= size).double().sum()) / (4 * 4000) == pytest.approx(expected, rel=0.12)
    for shares in ((), (0.5, 0.25), (0.5, 1.5), (0.0, 1.0)):
        with pytest.raises(ConfigError, match="shares must rise within"):
            MatryoshkaObjective(shares=shares)


def test_multi_top_k_trains_encoder_and_decoder_of_the_extra_latents():
    made = fresh(TopK(3)).double()
    x = made.scaled(batches()[0][:2].double())
    nobody = Moment(dead=torch.zeros(D_SAE, dtype=torch.bool))
    objective = MultiTopKObjective(factor=4.0, coefficient=0.125)
    losses = objective(made, x, None, nobody)
    pre_acts = (x - made.b_dec) @ made.W_enc + made.b_enc

    def fvu(k):
        top = pre_acts.topk(k)
        z = torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())
        return (x - z @ made.W_dec - made.b_dec).square().sum() / (x - x.mean(0)).square().sum()

    expected = fvu(3) + 0.125 * fvu(12)
    torch.testing.assert_close(losses.total, expected)
    parameters = list(made.parameters())
    got = torch.autograd.grad(losses.total, parameters, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(expected, parameters))
    only_wider = (pre_acts > 0).gather(1, pre_acts.topk(12).indices[:, 3:]).nonzero()
    latent = int(pre_acts.topk(12).indices[only_wider[0, 0], 3 + only_wider[0, 1]])
    if latent not in pre_acts.topk(3).indices:
        assert float(got[0][:, latent].abs().sum()) > 0
        assert float(got[2][latent].abs().sum()) > 0
    with pytest.raises(ConfigError, match="dictionary must have a fixed k"):
        objective(fresh(ReLU()), batches()[0], None, nobody)


def planted_pair(rows: int, draw: torch.Generator, inputs: torch.Tensor, outputs: torch.Tensor, linear: torch.Tensor):
    active = torch.rand(rows, len(inputs), generator=draw) < 3 / len(inputs)
    z = active * (1 + 0.3 * torch.randn(rows, len(inputs), generator=draw)).clamp_min(0.1)
    acts = z @ inputs
    return acts, z @ outputs + acts @ linear


@pytest.mark.usefixtures("unchecked")
def test_a_transcoder_finds_the_latents_between_two_spaces_and_its_skip_the_linear_map():
    draw = torch.Generator().manual_seed(21)
    unit = torch.nn.functional.normalize
    inputs, outputs = unit(torch.randn(40, 24, generator=draw), dim=1), unit(torch.randn(40, 20, generator=draw), dim=1)
    linear = 0.5 * torch.randn(24, 20, generator=draw) / 24**0.5
    acts, acts_out = planted_pair(4000, draw, inputs, outputs, linear)
    fvu = {}
    for skip in (False, True):
        config = AutoencoderConfig(d_in=24, d_sae=80, d_out=20, skip=skip, activation=TopK(4))
        made = Autoencoder(config, Scaling.fitted(acts), target_scaling=Scaling.fitted(acts_out), seed=5)
        assert float((unit(outputs, dim=1) @ made.W_dec.detach().T).amax(1).mean()) < 0.7
        initialise_transcoder_(made, acts, acts_out)
        data = (planted_pair(256, draw, inputs, outputs, linear) for _ in range(500))
        for _ in train(made, data, OBJECTIVE, TrainConfig(n_steps=500, learning_rate=5e-3, dead_tokens=10_000)):
            pass
        with torch.no_grad():
            y_hat = made(acts)
        assert y_hat.shape == acts_out.shape
        fvu[skip] = float((y_hat - acts_out).square().sum() / (acts_out - acts_out.mean(0)).square().sum())
    assert fvu[True] < fvu[False]
    assert fvu[True] < 0.1
    ablated = copy.deepcopy(made)
    with torch.no_grad():
        ablated.W_skip.zero_()
        assert float((ablated(acts) - acts_out).square().sum()) > 2 * float((made(acts) - acts_out).square().sum())
