"""What every dictionary promises, whatever its kind."""

import copy
from dataclasses import dataclass

import pytest
import torch

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.fingerprint import canonical, from_json, to_json
from sae.storage import load_tensors, read_json, save_tensors, write_json
from sae.training.objectives import MatryoshkaObjective, Moment, MultiTopKObjective, ReconstructionObjective

D_IN, D_OUT, D_SAE = 24, 18, 64


def autoencoder(activation, **options) -> AutoencoderConfig:
    return AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation, **options)


KINDS = {
    "top_k": autoencoder(TopK(5)),
    "top_k of all": autoencoder(TopK(D_SAE)),
    "abs_top_k": autoencoder(AbsTopK(5)),
    "batch_top_k": autoencoder(BatchTopK(4.5)),
    "relu": autoencoder(ReLU()),
    "jump_relu": autoencoder(JumpReLU(threshold=0.4, bandwidth=0.3)),
    "gated": autoencoder(Gated()),
    "transcoder": autoencoder(TopK(5), d_out=D_OUT),
    "skip transcoder": autoencoder(JumpReLU(threshold=0.4, bandwidth=0.3), d_out=D_OUT, skip=True),
    "top_k of x itself": autoencoder(TopK(5), apply_b_dec_to_input=False),
    "jump_relu of x itself": autoencoder(JumpReLU(threshold=0.4, bandwidth=0.3), apply_b_dec_to_input=False),
    "gated of x itself": autoencoder(Gated(), apply_b_dec_to_input=False),
    "gated transcoder": autoencoder(Gated(), d_out=D_OUT),
    "top_k of layer norm": autoencoder(TopK(5), normalisation="layer_norm"),
    "relu of constant norm": autoencoder(ReLU(), normalisation="constant_norm", apply_b_dec_to_input=False),
    "pursuit that ends early": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=40, tolerance=2.0, stop_on_repeat=True),
    "pursuit of layer norm": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=5, normalisation="layer_norm"),
    "pursuit with atoms of any norm": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=5, unit_norm=False),
    "pursuit": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=5),
    "signed pursuit": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=5, selection="signed"),
    "orthogonal pursuit": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=5, orthogonal=True),
    "signed orthogonal pursuit": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=5, selection="signed", orthogonal=True),
    "codebook": CodebookConfig(d_in=D_IN, d_sae=D_SAE, k=5),
    "codebook of sums": CodebookConfig(d_in=D_IN, d_sae=D_SAE, k=2, reduce="sum"),
}
CLASSES = {AutoencoderConfig: Autoencoder, PursuitConfig: MatchingPursuit, CodebookConfig: Codebook}


def build(config, scaling, **options):
    if getattr(config, "d_out", None) is not None:
        options["target_scaling"] = Scaling(torch.randn(D_OUT, generator=torch.Generator().manual_seed(8)), 0.21)
    return CLASSES[type(config)](config, scaling, **options)


@dataclass
class Case:
    dictionary: torch.nn.Module
    acts: torch.Tensor

    @property
    def transcodes(self) -> bool:
        return self.dictionary.W_dec.shape[1] == D_OUT

    @property
    def skips(self) -> bool:
        return getattr(self.dictionary.config, "skip", False)


@pytest.fixture(params=KINDS)
def case(request) -> Case:
    draw = torch.Generator().manual_seed(7)
    scaling = Scaling(torch.randn(D_IN, generator=draw), 0.37)
    dictionary = build(KINDS[request.param], scaling, seed=3, provenance={"site": "blocks.1.hook_resid_post", "training": {"n_steps": 3}})
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
        for name, buffer in dictionary.named_buffers():
            if name == "threshold":
                buffer.fill_(0.6)
    dictionary.normalise_()
    return Case(dictionary, 3 * torch.randn(40, D_IN, generator=draw) + scaling.mean)


def test_shapes_and_dtypes_are_as_declared(case):
    codes = case.dictionary.encode(case.acts)
    assert len(codes) == 40
    assert codes.d_sae == D_SAE
    assert codes.indices.dtype == torch.long
    assert codes.dense().shape == (40, D_SAE)
    d_out = D_OUT if case.transcodes else D_IN
    assert case.dictionary.decode(codes).shape == (40, d_out)
    assert case.dictionary.W_dec.shape == (D_SAE, d_out)
    assert case.dictionary.b_dec.shape == (d_out,)


def test_slots_after_the_count_are_zero_and_slots_before_it_are_distinct_and_not_zero(case):
    codes = case.dictionary.encode(case.acts)
    active = codes.active()
    assert not codes.values[~active].any()
    assert not codes.indices[~active].any()
    assert (codes.values[active] != 0).all()
    for row in range(len(codes)):
        chosen = codes.indices[row, : codes.counts[row]].tolist()
        assert len(set(chosen)) == len(chosen)


def test_forward_is_decode_of_encode(case):
    expected = case.dictionary.decode(case.dictionary.encode(case.acts))
    if case.skips:  # the linear path is no part of the codes
        expected = expected + case.dictionary.scaled(case.acts) @ case.dictionary.W_skip / 0.21
    torch.testing.assert_close(case.dictionary(case.acts), expected)


def test_decode_is_the_dense_product_in_activation_space(case):
    dictionary, codes = case.dictionary, case.dictionary.encode(case.acts)
    x_hat = codes.dense().double() @ dictionary.W_dec.double() + dictionary.b_dec.double()
    scale, mean = (0.21, dictionary.target_mean) if case.transcodes else (0.37, dictionary.scaling_mean)
    expected = x_hat / scale + mean.double()
    if codes.rows is not None:
        expected = expected * codes.rows.scale[:, None].double() + codes.rows.mean[:, None].double()
    torch.testing.assert_close(dictionary.decode(codes).double(), expected, rtol=1e-5, atol=1e-5)


def test_codes_of_a_row_do_not_depend_on_its_batch(case):
    whole = case.dictionary.eval().encode(case.acts).dense()
    alone = torch.cat([case.dictionary.encode(row[None]).dense() for row in case.acts])
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)
    reordered = case.dictionary.encode(case.acts.flip(0)).dense().flip(0)
    torch.testing.assert_close(reordered, whole, rtol=1e-5, atol=1e-5)


def test_toggling_eval_and_train_changes_nothing(case):
    before = case.dictionary.train()(case.acts)
    digest = case.dictionary.digest
    assert torch.equal(case.dictionary.eval()(case.acts), before)
    assert torch.equal(case.dictionary.train()(case.acts), before)
    assert case.dictionary.digest == digest


def test_no_rows_give_no_rows(case):
    assert case.dictionary(case.acts[:0]).shape == (0, D_OUT if case.transcodes else D_IN)
    assert len(case.dictionary.encode(case.acts[:0])) == 0


def test_bfloat16_activations_are_accepted(case):
    assert case.dictionary(case.acts.bfloat16()).dtype == torch.float32


def test_saving_and_loading_is_bit_equal(case, tmp_path):
    save_dictionary(case.dictionary, tmp_path / "dictionary")
    loaded = load_dictionary(tmp_path / "dictionary")
    assert type(loaded) is type(case.dictionary)
    assert loaded.config == case.dictionary.config
    assert loaded.provenance == case.dictionary.provenance
    assert loaded.digest == case.dictionary.digest
    assert loaded.state_dict().keys() == case.dictionary.state_dict().keys()
    for name, tensor in case.dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].stride() == tensor.stride(), name
    assert torch.equal(loaded(case.acts), case.dictionary(case.acts))


def test_float64_dictionaries_survive_saving(case, tmp_path):
    wide = copy.deepcopy(case.dictionary).double()
    save_dictionary(wide, tmp_path / "wide")
    loaded = load_dictionary(tmp_path / "wide")
    assert loaded.W_dec.dtype == torch.float64
    assert torch.equal(loaded(case.acts), wide(case.acts))


def test_a_deep_copy_is_independent(case):
    twin = copy.deepcopy(case.dictionary)
    before = case.dictionary(case.acts)
    assert torch.equal(twin(case.acts), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.ones_like(parameter))
        twin.normalise_()
    twin.provenance["site"] = "elsewhere"
    assert torch.equal(case.dictionary(case.acts), before)
    assert case.dictionary.provenance["site"] == "blocks.1.hook_resid_post"
    assert twin.digest != case.dictionary.digest


def only_decides(dictionary, name: str) -> bool:
    """Whether a parameter decides which latents are active and nothing else: outside `explain` it has no gradient."""
    gated = isinstance(getattr(dictionary.config, "activation", None), Gated)
    return name == "log_threshold" or (gated and name == "b_enc")


def test_the_gradient_reaches_every_parameter(case):
    case.dictionary(case.acts).square().sum().backward()
    for name, parameter in case.dictionary.named_parameters():
        if only_decides(case.dictionary, name):
            continue
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_the_gradient_of_the_public_forward_agrees_with_finite_differences(case):
    dictionary, acts = copy.deepcopy(case.dictionary).double(), case.acts[:6].double()
    target = torch.randn(6, dictionary.W_dec.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (dictionary(acts) * target).sum().backward()
    draw = torch.Generator().manual_seed(2)
    for name, parameter in dictionary.named_parameters():
        if only_decides(dictionary, name):
            continue
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(dictionary)
            with torch.no_grad():
                dict(moved.named_parameters())[name].add_(sign * 1e-6 * direction)
                ends.append(float((moved(acts) * target).sum()))
        expected = (ends[0] - ends[1]) / 2e-6
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-5), name


def test_the_configuration_survives_json(case):
    config = case.dictionary.config
    assert from_json(type(config), to_json(config)) == config
    assert canonical(from_json(type(config), to_json(config))) == canonical(config)


def test_an_unknown_configuration_key_is_named(case):
    config = case.dictionary.config
    with pytest.raises(ConfigError, match="'d_model'"):
        from_json(type(config), {**to_json(config), "d_model": 3})


def test_folding_gives_the_same_function_with_identity_scaling(case):
    folded = case.dictionary.fold()
    assert folded.scaling.is_identity
    assert not case.dictionary.scaling.is_identity
    torch.testing.assert_close(folded(case.acts), case.dictionary(case.acts), rtol=1e-5, atol=1e-4)
    codes, expected = folded.encode(case.acts), case.dictionary.encode(case.acts)
    assert torch.equal(codes.indices, expected.indices)
    unit = 1.0 if isinstance(folded, Codebook) else 0.37
    torch.testing.assert_close(codes.values, expected.values / unit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, D_IN + 1), (4, 1)])
def test_a_wrong_width_is_refused_by_name(case, shape):
    with pytest.raises(ConfigError, match=rf"acts must have shape \[n, d_in={D_IN}\], got \[4, {shape[1]}\]"):
        case.dictionary.encode(torch.zeros(shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(case, bad):
    acts = case.acts.clone()
    acts[2, 3] = bad
    acts[5, 1] = bad
    with pytest.raises(ConfigError, match="acts must be finite, got NaN or Inf in 2 of 40 rows"):
        case.dictionary(acts)


def test_codes_over_another_number_of_latents_are_refused(case):
    codes = case.dictionary.encode(case.acts)
    wrong = type(codes)(codes.indices, codes.values, codes.counts, D_SAE + 1)
    with pytest.raises(ConfigError, match=f"codes must be over d_sae={D_SAE} latents, got {D_SAE + 1}"):
        case.dictionary.decode(wrong)


def test_construction_neither_draws_nor_moves_the_global_generator(case):
    before = torch.get_rng_state()
    twin = build(case.dictionary.config, None, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(twin.W_dec, build(case.dictionary.config, None, seed=3).W_dec)
    assert not torch.equal(twin.W_dec, build(case.dictionary.config, None, seed=4).W_dec)


def _edit(folder, **changes):
    head = read_json(folder / "config.json")
    write_json(folder / "config.json", {**head, **changes})


def test_a_checkpoint_with_something_wrong_is_named(case, tmp_path):
    folder = tmp_path / "dictionary"

    def fresh():
        save_dictionary(case.dictionary, folder)
        return load_tensors(folder / "weights.safetensors")

    tensors = fresh()
    save_tensors(folder / "weights.safetensors", {**tensors, "W_surplus": torch.zeros(2)})
    with pytest.raises(FormatError, match="unexpected tensor 'W_surplus'"):
        load_dictionary(folder)
    tensors = fresh()
    save_tensors(folder / "weights.safetensors", {name: t for name, t in tensors.items() if name != "b_dec"})
    with pytest.raises(FormatError, match="lacks the tensor 'b_dec'"):
        load_dictionary(folder)
    tensors = fresh()
    save_tensors(folder / "weights.safetensors", {**tensors, "W_dec": tensors["W_dec"][:, :-1].clone()})
    d_out = D_OUT if case.transcodes else D_IN
    with pytest.raises(FormatError, match=rf"W_dec must have shape \[{D_SAE}, {d_out}\], got \[{D_SAE}, {d_out - 1}\]"):
        load_dictionary(folder)
    tensors = fresh()
    save_tensors(folder / "weights.safetensors", {**tensors, "b_dec": tensors["b_dec"] + 1})
    with pytest.raises(FormatError, match="is damaged"):
        load_dictionary(folder)
    fresh()
    _edit(folder, kind="Transcoder")
    with pytest.raises(FormatError, match="kind 'Transcoder'"):
        load_dictionary(folder)
    fresh()
    _edit(folder, format=2)
    with pytest.raises(FormatError, match="format 2"):
        load_dictionary(folder)
    fresh()
    _edit(folder, scale="big")
    with pytest.raises(FormatError, match="scale must be of type float"):
        load_dictionary(folder)
    fresh()
    _edit(folder, surplus=1)
    with pytest.raises(FormatError, match="surplus"):
        load_dictionary(folder)
    fresh()
    with open(folder / "weights.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(FormatError, match="truncated"):
        load_dictionary(folder)
    with pytest.raises(FormatError, match="does not exist"):
        load_dictionary(tmp_path / "nowhere")


@pytest.mark.parametrize("k", [0, 80, -1])
def test_a_k_outside_the_dictionary_is_refused(k):
    with pytest.raises(ConfigError, match=rf"^k must be in 1..d_sae=64, got {k} \(TopK\)$"):
        AutoencoderConfig(d_in=8, d_sae=64, activation=TopK(k))
    with pytest.raises(ConfigError, match=rf"^k must be in 1..d_sae=64, got {k} \(MatchingPursuit\)$"):
        PursuitConfig(d_in=8, d_sae=64, k=k)


OBJECTIVES = {
    "reconstruction": ReconstructionObjective(),
    "Matryoshka": MatryoshkaObjective(shares=(0.25, 0.5, 1.0)),
    "sampled Matryoshka": MatryoshkaObjective(n_sampled=4),
    "Multi-TopK": MultiTopKObjective(factor=2.0),
}


def offered(dictionary, objective) -> bool:
    """Nested prefixes need an encoder of its own, a second k a first one."""
    if isinstance(objective, MatryoshkaObjective):
        return isinstance(dictionary, Autoencoder)
    return not isinstance(objective, MultiTopKObjective) or (dictionary.k is not None and 2 * dictionary.k <= D_SAE)


def loss_of(case, objective, dead):
    target = None
    if case.transcodes:
        target = torch.randn(40, D_OUT, generator=torch.Generator().manual_seed(4))
    return objective(case.dictionary, case.dictionary.scaled(case.acts), target, Moment(dead=dead, step=3))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n_dead", [0, 12])
def test_the_gradient_of_every_objective_reaches_every_parameter(case, objective, n_dead):
    objective = OBJECTIVES[objective]
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))[:n_dead]] = True
    if not offered(case.dictionary, objective):
        if 2 * (case.dictionary.k or 0) <= D_SAE:
            with pytest.raises(ConfigError, match="must"):
                loss_of(case, objective, dead)
        return
    loss_of(case, objective, dead).total.backward()
    for name, parameter in case.dictionary.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_of_every_objective_is_its_derivative(case, objective):
    """Against finite differences in float64, for parameters that act without straight-through estimates."""
    objective, dictionary = OBJECTIVES[objective], copy.deepcopy(case.dictionary).double()
    activation = getattr(dictionary.config, "activation", None)
    if not offered(dictionary, objective) or isinstance(activation, JumpReLU):
        return
    x = dictionary.scaled(case.acts.double())
    target = torch.randn(40, D_OUT, generator=torch.Generator().manual_seed(4), dtype=torch.float64) if case.transcodes else None
    moment = Moment(dead=torch.zeros(D_SAE, dtype=torch.bool), step=3)
    objective(dictionary, x, target, moment).total.backward()
    draw = torch.Generator().manual_seed(2)
    for name, parameter in dictionary.named_parameters():
        if isinstance(activation, Gated) and name in ("W_dec", "b_dec"):
            continue  # held fixed in the gates' own reconstruction
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        if name == "W_dec" and dictionary.unit_atoms:  # along the sphere: pursuit insists on unit atoms
            direction -= (direction * parameter.detach()).sum(1, keepdim=True) * parameter.detach()
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(dictionary)
            with torch.no_grad():
                dict(moved.named_parameters())[name].add_(sign * 1e-6 * direction)
                ends.append(float(objective(moved, x, target, moment).total))
        expected = (ends[0] - ends[1]) / 2e-6
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=2e-5, abs=1e-9), name
