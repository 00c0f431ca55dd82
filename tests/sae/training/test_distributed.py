"""Two processes under torchrun against one that sees the same global batches: rows shared, latents shared, both; failures end all of them."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae.dictionaries import kernels
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import AutoencoderConfig
from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
from sae.dictionaries.explained import Ask
from sae.dictionaries.init import best_gain
from sae.errors import ConfigError, FormatError
from sae.storage import load_tensors, read_json, save_tensors
from sae.training.distributed import launched
from sae.training.loop import train
from sae.training.peers import Peers, bounds, n_of_largest
from sae.training.resume import load_training, save_training
from sae.training.sharded import ShardedAutoencoder
from sae.training.sharded_checkpoint import load_sharded, load_sharded_training, save_sharded
from sae.training.world import World

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("distributed_program", HERE / "distributed_program.py")
program = importlib.util.module_from_spec(_spec)
sys.modules["distributed_program"] = program
_spec.loader.exec_module(program)

METRICS = ("loss", "fvu", "l0", "gradient_norm", "pressure", "dead_share", "n_tokens")


def torchrun(n: int, folder: Path, *parts: str, seconds: float = 120.0) -> tuple[int, str]:
    """(status, output) of n processes of the program; all are ended if they take longer."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", str(HERE / "distributed_program.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    output = folder / "output.txt"
    with open(output, "wb") as file:
        child = subprocess.Popen([*command, str(folder), *parts], env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.terminate()  # torchrun ends its processes, by force after 30 seconds
            child.wait(40.0)
            pytest.fail(f"the processes had not ended after {seconds} s:\n{output.read_text()[-6000:]}")
    return status, output.read_text()


def launch(n: int, folder: Path, *parts: str) -> Path:
    status, output = torchrun(n, folder, *parts)
    assert status == 0, output[-6000:]
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    program.single(folder)
    return folder


@pytest.fixture(scope="module")
def pair(single, tmp_path_factory) -> Path:
    """After `single`, which compiles the kernels for all: the time of the two processes is limited."""
    return launch(2, tmp_path_factory.mktemp("pair"), "rows", "latents")


def tolerance(case) -> float:
    return 1e-9 if case.dtype == torch.float64 else 1e-5


def check_curves(ours: dict, theirs: dict, relative: float) -> None:
    for name in METRICS:
        assert ours[name] == pytest.approx(theirs[name], rel=relative, abs=0), name


def whole(folder: Path, name: str, ranks: range) -> dict[str, torch.Tensor]:
    """The tensors of all shards put together; what is not spread must be the same in all."""
    parts = [load_tensors(folder / f"{name}-{rank}.safetensors") for rank in ranks]
    together = {}
    for key in parts[0]:
        parameter = key.rsplit(".", 1)[-1]
        if parameter in ("W_enc", "b_enc", "W_dec"):
            by_column = parameter == "W_enc" and parts[0][key].ndim == 2
            together[key] = torch.cat([part[key] for part in parts], dim=1 if by_column else 0)
        else:
            assert all(torch.equal(part[key], parts[0][key]) for part in parts), key
            together[key] = parts[0][key]
    return together


def check_tensors(ours: dict, theirs: dict, case) -> None:
    assert set(ours) == set(theirs)
    assert torch.equal(ours["since_fired"], theirs["since_fired"])
    atol, rtol = (1e-9, 1e-7) if case.dtype == torch.float64 else (1e-4, 1e-4)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", program.CASES)
def test_two_processes_that_share_rows_train_as_one(single, pair, name):
    case = program.CASES[name]
    alone = read_json(single / "rows" / f"{name}-0.json")
    ranks = [read_json(pair / "rows" / f"{name}-{rank}.json") for rank in (0, 1)]
    assert alone["n_tokens"] == [program.N_ROWS * (i + 1) for i in range(program.N_STEPS)]  # an odd number of rows, 17 and 16
    assert ranks[0] == ranks[1]
    check_curves(ranks[0], alone, tolerance(case))
    tensors = [load_tensors(pair / "rows" / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    for key in tensors[0]:
        assert torch.equal(tensors[0][key], tensors[1][key]), key
    check_tensors(tensors[0], load_tensors(single / "rows" / f"{name}-0.safetensors"), case)


def test_the_runs_that_are_compared_have_dead_latents_that_are_asked_and_ranks_that_differ(single, pair):
    for name, case in program.CASES.items():
        alone = read_json(single / "rows" / f"{name}-0.json")
        if case.training.resampling:
            assert any(later < earlier - 0.1 for earlier, later in itertools.pairwise(alone["dead_share"])), name
            continue
        assert min(alone["dead_share"][2:]) > 0.04, name
        if case.objective != program.PLAIN and name != "transcoder":
            assert all(loss > fvu for loss, fvu in zip(alone["loss"][3:], alone["fvu"][3:], strict=True)), name
    case = program.CASES["batch_top_k"]
    made, acts = program.fresh(case, seed=1), program.batches(case)[0]
    with kernels.using("reference"):
        counts = made.explain(made.scaled(acts), Ask()).codes.counts
    n_early, n_late = int(counts[:17].sum()), int(counts[17:].sum())
    assert n_early > 2 * n_late  # so that BatchTopK on each rank's rows alone would keep other values


@pytest.mark.parametrize(
    ("what", "where", "elsewhere"),
    [
        ("nan", "SaeError: bad batch at step 3: acts must be finite, got NaN or Inf in 1 of 16 rows", "bad batch at step 3: acts must be"),
        ("short", "SaeError: batches ended after 5 steps", "batches ended after 5 steps"),
        ("broken", "ZeroDivisionError: the shard's reader", "an error that is no SaeError; its own output names it"),
        ("config", "ConfigError: dictionary.config, config, objective and state must be those of process 0", "must be those of process 0"),
    ],
)
def test_what_fails_in_one_process_ends_all_with_its_message(pair, what, where, elsewhere):
    first, last = (read_json(pair / "rows" / f"failures-{rank}.json") for rank in (0, 1))
    assert last[what].startswith(where)
    assert first[what].startswith("SaeError: process 1 of 2 failed: ")
    assert elsewhere in first[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("drift", "SaeError: the processes have drifted apart: gradient norms from"),
        ("few rows", "ConfigError: batch must have a row for each of 2 processes, got 1"),
        ("unsharded", "ConfigError: dictionary must be sharded over the world's 1 processes, got 2"),
    ],
)
def test_what_is_wrong_between_processes_is_told_to_all(pair, what, message):
    for rank in (0, 1):
        assert read_json(pair / "rows" / f"failures-{rank}.json")[what].startswith(message)


def test_a_world_is_of_no_use_after_its_block(pair):
    for part in ("rows", "latents"):
        for rank in (0, 1):
            assert read_json(pair / part / f"parted-{rank}.json").startswith("the processes have parted")


def test_a_process_that_dies_ends_the_run(tmp_path):
    status, output = torchrun(2, tmp_path, "crash")
    assert status != 0
    assert "KeyError: 'no such thing'" in output


@pytest.mark.parametrize("name", program.SHARDED)
def test_two_processes_that_share_latents_train_as_one(single, pair, name):
    case = program.SHARDED[name]
    alone = read_json(single / "latents" / f"{name}-0.json")
    ranks = [read_json(pair / "latents" / f"{name}-{rank}.json") for rank in (0, 1)]
    assert [(rank["first"], rank["last"]) for rank in ranks] == [(0, 31), (31, 61)]
    for rank in ranks:
        check_curves(rank, alone, tolerance(case))
    check_tensors(whole(pair / "latents", name, range(2)), load_tensors(single / "latents" / f"{name}-0.safetensors"), case)
    assert max(alone["dead_share"]) > 0.1


def test_each_process_holds_its_share_of_parameters_and_moments(pair):
    sizes = []
    for rank in (0, 1):
        tensors = load_tensors(pair / "latents" / f"top_k-{rank}.safetensors")
        spread = {name: tensor for name, tensor in tensors.items() if name.rsplit(".", 1)[-1] in ("W_enc", "b_enc", "W_dec")}
        assert len(spread) == 3 * 4  # a parameter, two moments, an average
        sizes.append(sum(tensor.numel() for tensor in spread.values()))
        rest = sum(tensor.numel() for name, tensor in tensors.items() if name not in spread)
        assert rest == 5 * program.D_IN + program.D_SAE  # b_dec likewise, the scaling's mean, the counts
    assert sizes == [4 * m * (2 * program.D_IN + 1) for m in (31, 30)]


@pytest.mark.parametrize("name", ["resumed", "resumed from one step's folder"])
def test_a_sharded_run_that_was_stopped_ends_with_the_same_bits(pair, name):
    for rank in (0, 1):
        ends = load_tensors(pair / "latents" / f"top_k-{rank}.safetensors")
        for key, tensor in load_tensors(pair / "latents" / f"{name}-{rank}.safetensors").items():
            assert torch.equal(tensor, ends[key]), key
        assert read_json(pair / "latents" / f"{name}-{rank}.json")["loss"] == read_json(pair / "latents" / f"top_k-{rank}.json")["loss"][4:]


def test_a_sharded_dictionary_is_saved_whole_and_read_in_parts(pair):
    made = load_dictionary(pair / "latents" / "dictionary")  # checks the digest of the whole
    assert all(read_json(pair / "latents" / f"same-{rank}.json") for rank in (0, 1))
    parts = whole(pair / "latents", "resumed", range(2))
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, parts[name]), name
    smooth = load_dictionary(pair / "latents" / "averaged")
    torch.testing.assert_close(smooth.W_enc.detach(), parts["average.W_enc"], atol=0, rtol=0)
    torch.testing.assert_close(smooth.W_dec.detach(), torch.nn.functional.normalize(parts["average.W_dec"]))


def test_a_sharded_checkpoint_goes_on_in_one_process_and_back(single, pair, tmp_path):
    case = program.SHARDED["top_k"]
    made, state = load_training(pair / "latents" / "run")
    assert state.step == 4
    list(train(made, program.batches(case)[4:], case.objective, case.training, state=state))
    check_tensors({**made.state_dict(), **state.tensors()}, load_tensors(single / "latents" / "top_k-0.safetensors"), case)
    save_training(tmp_path, made, state)
    back, its_state = load_sharded_training(tmp_path, World())
    for name, tensor in {**back.state_dict(), **its_state.tensors()}.items():
        assert torch.equal(tensor, {**made.state_dict(), **state.tensors()}[name]), name


def test_a_sharded_start_from_data_is_that_of_a_whole_with_its_best_gain(pair):
    made = load_dictionary(pair / "latents" / "initialised")
    x = torch.cat(program.batches(program.CASES["top_k in float32"]))
    with kernels.using("reference"):
        assert best_gain(made, made.scaled(x)) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(program.D_SAE))
    assert float((made.W_dec @ made.W_dec.T - torch.eye(program.D_SAE)).detach().max()) < 0.99  # shards start from other atoms
    codes = [load_tensors(pair / "latents" / f"codes-{rank}.safetensors") for rank in (0, 1)]
    with kernels.using("reference"):
        expected = made.encode(x[: program.N_ROWS])
    for each in codes:
        assert torch.equal(each["indices"], expected.indices)
        torch.testing.assert_close(each["values"], expected.values.detach())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("activation", "activation must be TopK to be sharded, got ReLU"),
        ("transcoder", "d_out must be absent: transcoders are not sharded, got 4"),
        ("narrow", "d_sae must be at least 1 for each of 2 processes, got 1"),
        ("resampling", "resampling must be absent for a sharded dictionary"),
        ("prefixes", "prefixes must be absent (ShardedAutoencoder)"),
        ("whole", "dictionary must be sharded over the world's 2 processes, got 1"),
        ("digest", "dictionary must be whole to have a digest"),
        ("fold", "dictionary must be whole to be folded"),
    ],
)
def test_what_a_sharded_dictionary_cannot_do_is_refused(pair, what, message):
    for rank in (0, 1):
        assert message in read_json(pair / "latents" / f"failures-{rank}.json")[what]


@pytest.mark.parametrize(
    ("what", "first", "other"),
    [
        ("save: start", "FileExistsError", "an error that is no SaeError"),
        ("save: a shard", "KeyError", "an error that is no SaeError"),
        ("save: end", "ConfigError: JSON numbers must be finite", "JSON numbers must be finite"),
    ],
)
def test_a_save_that_fails_ends_in_all_processes_and_leaves_what_was_there(pair, what, first, other):
    told = [read_json(pair / "latents" / f"failures-{rank}.json")[what] for rank in (0, 1)]
    assert told[0].startswith(first)
    assert told[1].startswith("SaeError: process 0 of 2 failed: ")
    assert other in told[1]
    assert load_dictionary(pair / "latents" / "dictionary").provenance == {}
    assert not [path.name for path in (pair / "latents").iterdir() if path.name.startswith(".partial")]


def test_rows_and_latents_can_be_shared_at_once(single, tmp_path):
    case = program.SHARDED["top_k"]
    folder = launch(4, tmp_path, "grid") / "grid"
    alone = read_json(single / "latents" / "top_k-0.json")
    expected = load_tensors(single / "latents" / "top_k-0.safetensors")
    for rank in range(4):
        ours = read_json(folder / f"top_k-{rank}.json")
        assert ours["first"] == (0, 31)[rank % 2]
        check_curves(ours, alone, tolerance(case))
    for ranks in (range(2), range(2, 4)):
        check_tensors(whole(folder, "top_k", ranks), expected, case)
    made, state = load_training(folder / "run")
    check_tensors({**made.state_dict(), **state.tensors()}, expected, case)


def test_a_plain_process_is_a_world_of_one():
    with launched() as world:
        acts = torch.randn(5, 3)
        assert torch.equal(world.rows(acts), acts)
        assert world.is_first
        assert world.everyone.size == world.along_rows.size == world.along_latents.size == 1
    with launched(latent_shards="all") as world:
        assert world.along_latents.size == 1
    with pytest.raises(ConfigError, match="latent_shards must divide the number of processes 1, got 2"), launched(latent_shards=2):
        pass


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT must be set as torchrun does"), launched():
        pass


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 2), (8, 3), (3, 3), (100, 7)])
def test_shares_are_consecutive_cover_everything_and_differ_by_one_at_most(n, size):
    parts = [bounds(n, rank, size) for rank in range(size)]
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert parts[-1][1] == n
    assert {stop - start for start, stop in parts} <= {n // size, n // size + 1}


def test_only_positive_values_are_counted_among_the_largest():
    values = torch.tensor([0.0, 3.0, -1.0, 2.0, 0.0])
    assert [n_of_largest(values, n, Peers()) for n in (1, 2, 4, 9)] == [1, 2, 2, 2]


def test_a_damaged_or_foreign_folder_is_not_sharded(tmp_path):
    case = program.CASES["top_k in float32"]
    made = program.fresh(case, seed=1)
    save_dictionary(made, tmp_path / "whole")
    own = load_sharded(tmp_path / "whole", Peers())
    save_sharded(own, tmp_path / "again")
    assert load_dictionary(tmp_path / "again").digest == made.digest
    tensors = load_tensors(tmp_path / "whole" / "weights.safetensors")
    tensors["W_dec"][3, 1] += 1
    save_tensors(tmp_path / "whole" / "weights.safetensors", tensors)
    with pytest.raises(FormatError, match="is damaged: its weights do not have the digest"):
        load_sharded(tmp_path / "whole", Peers())
    save_dictionary(program.fresh(program.CASES["pursuit"], seed=1), tmp_path / "pursuit")
    with pytest.raises(FormatError, match="must describe an Autoencoder of format 1 to be sharded"):
        load_sharded(tmp_path / "pursuit", Peers())
    for forms in ({"apply_b_dec_to_input": False}, {"normalisation": "layer_norm"}):
        with pytest.raises(ConfigError, match=r"apply_b_dec_to_input must be True and normalisation 'none' to be sharded"):
            ShardedAutoencoder(AutoencoderConfig(d_in=8, d_sae=16, activation=TopK(2), **forms), Peers())
    save_dictionary(program.fresh(program.CASES["relu"], seed=1), tmp_path / "relu")
    with pytest.raises(ConfigError, match="activation must be TopK to be sharded, got ReLU"):
        load_sharded(tmp_path / "relu", Peers())
