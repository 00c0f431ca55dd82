"""`sae train` as a user runs it: options from the configurations, one dictionary or a sweep, lines on the screen, scores at the end."""

import dataclasses
import itertools
import json
import sys
import types
import typing

import pytest
import torch
from tiny_store import SITES, tiny_store
from typer.testing import CliRunner

import sae.cli.train as program
from sae.cli import app, main
from sae.cli.options import Source, field_docs, flags
from sae.cli.screen import clock
from sae.dictionaries.checkpoint import load_dictionary
from sae.errors import ConfigError
from sae.evaluation.reconstruction import reconstruction
from sae.evaluation.transcoding import linear_fvu, transcoding
from sae.storage import read_json
from sae.training.feed import FeedConfig, held_out_batches, train_batches, usable_tokens
from sae.training.log import read_log
from sae.training.plans import ACTIVATIONS, ARCHITECTURES, OBJECTIVES, Plan

SMALL = ("--d-sae", "48", "--n-steps", "8", "--batch-size", "64", "--held-out", "0.2", "--warmup-steps", "2", "--dead-tokens", "200")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("tiny") / "store")


def train(store, out, *arguments, small=True):
    """The program's result; an error of the workbench is raised."""
    site = () if "--site" in arguments else ("--site", SITES[0])
    command = ["train", str(store.path), "--out", str(out), *site, *(SMALL if small else ()), *map(str, arguments)]
    result = CliRunner().invoke(app, command, terminal_width=150)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plan_of(out):
    stored = read_json(out / "run.json")
    return Plan.parse({key: stored[key] for key in ("architecture", "dictionary", "objective", "loss", "training", "atoms")})


# --- options -----------------------------------------------------------------------------------------------------------------------------


def leaves(owner, path=()):
    """Every field of a configuration that is a value, with its path; the walk of the options written another way."""
    hints = typing.get_type_hints(owner)
    for field in dataclasses.fields(owner):
        kinds = [kind for kind in (typing.get_args(hints[field.name]) or (hints[field.name],)) if kind is not type(None)]
        if len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]):
            yield from leaves(kinds[0], (*path, field.name))
        elif not any(dataclasses.is_dataclass(kind) for kind in kinds):
            yield (*path, field.name)


def test_every_field_of_every_configuration_has_an_option():
    reached = {(choice, path) for flag in program.FLAGS.values() for choice, path in flag.places.items()}
    for source in program.SOURCES:
        for path in leaves(source.owner, source.path):
            if path[-1] in ("d_in", "d_out", *program.FOREIGN) or (path[-1] == "kind" and path[-2] == "activation"):
                continue
            assert (source.choice, path) in reached, path
    assert {source.choice for source in program.SOURCES} == {"", *ARCHITECTURES, *OBJECTIVES}
    assert set(typing.get_args(program.Architecture)) == set(ARCHITECTURES)
    assert set(typing.get_args(program.ObjectiveName)) == set(OBJECTIVES)


def test_help_says_what_every_option_means_with_its_default():
    text = " ".join(CliRunner().invoke(app, ["train", "--help"], terminal_width=200).stdout.replace("│", " ").split())
    for flag in program.FLAGS.values():
        assert flag.option in text
    assert "Tokens without firing after which a latent is dead (default 20000)" in text
    assert "Decay rates of the first and second moment (default 0.9 0.999)" in text
    assert "then be negative (only pursuit)" in text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    kind: typing.Literal["a", "b"] = "a"
    """Which."""
    size: int = 3
    """How
    big."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """A whole."""

    name: str
    """Its name."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """A part that is always there."""
    maybe: Inner | None = None
    """A part that may be absent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    """Another whole."""

    size: float = 2.5
    """Its size."""


def test_nested_fields_are_flattened_and_take_their_path_where_names_clash():
    found = {
        flag.name: flag for flag in flags([Source(Outer, ("outer",), "P"), Source(Other, ("other",), "Q")], left_out=(), swept=("size",))
    }
    assert list(found) == ["name", "kind", "inner_size", "maybe", "maybe_kind", "maybe_size", "size"]
    assert found["kind"].places == {"": ("outer", "inner", "kind")}
    assert found["inner_size"].places == {"": ("outer", "inner", "size")}
    assert found["maybe"].switch and found["maybe"].kind is bool
    assert found["size"].swept and not found["inner_size"].swept
    assert found["inner_size"].help == "How big (default 3)"
    assert field_docs(Inner) == {"kind": "Which.", "size": "How big."}


def named(value, *path):
    for name in path:
        value = getattr(value, name)
    return value


GIVEN = {
    "k": (["--k", 5], {"dictionary.activation.k": 5}),
    "nothing": ([], {"dictionary.activation.k": 32, "dictionary.skip": False, "training.resampling": None, "training.annealing": None}),
    "betas": (["--betas", 0.5, 0.75], {"training.optimiser.betas": (0.5, 0.75)}),
    "optimiser": (["--optimiser-kind", "adam_rows", "--clip-norm", 2], {"training.optimiser.kind": "adam_rows", "training.optimiser.clip_norm": 2.0}),
    "resampling": (["--resampling"], {"training.resampling.every": 100}),
    "resampling every": (["--resampling-every", 3], {"training.resampling.every": 3, "training.resampling.until": 0.8}),
    "annealing": (["--annealing-start", 40], {"training.annealing.start": 40.0, "training.annealing.shape": "linear"}),
    "loss": (["--aux-coefficient", 0.25], {"objective.aux_coefficient": 0.25}),
    "terms": (["--objective", "matryoshka", "--aux-coefficient", 0.25, "--shares", 0.5, "--shares", 1],
              {"objective.terms.aux_coefficient": 0.25, "objective.shares": (0.5, 1.0)}),
    "multi": (["--objective", "multi_top_k", "--factor", 1.5], {"objective.factor": 1.5}),
    "rate": (["--learning-rate", 0.01], {"training.learning_rate": 0.01}),
    "atoms": (["--atoms", "data"], {"atoms": "data"}),
    "pursuit": (["--architecture", "pursuit", "--k", 3, "--orthogonal", "--selection", "signed"],
                {"dictionary.k": 3, "dictionary.orthogonal": True, "dictionary.selection": "signed"}),
    "codebook": (["--architecture", "codebook", "--reduce", "sum"], {"dictionary.reduce": "sum"}),
    "jump": (["--architecture", "jump_relu", "--bandwidth", 0.5, "--target-l0", 4],
             {"dictionary.activation.bandwidth": 0.5, "objective.target_l0": 4.0}),
    "batch": (["--architecture", "batch_top_k", "--k", 2.5], {"dictionary.activation.k": 2.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_sets_the_field_of_its_name(store, tmp_path, name):
    arguments, expected = GIVEN[name]
    result = train(store, tmp_path, *arguments, "--n-steps", 1, "--evaluation-tokens", 0)
    assert result.exit_code == 0, result.output
    assert {path: named(plan_of(tmp_path), *path.split(".")) for path in expected} == expected


@pytest.mark.parametrize(("arguments", "named"), [
    (["--selection", "signed"], "--selection does not apply to --architecture top_k --objective reconstruction; it belongs to pursuit"),
    (["--architecture", "relu", "--k", 3], "--k does not apply to --architecture relu"),
    (["--factor", 3], "--factor does not apply to .* it belongs to multi_top_k"),
    (["--k", 0], r"k must be in 1..d_sae=48, got 0 \(TopK\)"),
    (["--k", 2.5], r"activation.k must be of type int, got 2.5"),
    (["--k", 3, "--k", 3], r"--k must be given distinct values, got \[3.0, 3.0\]"),
    (["--annealing-share", 0.5], "missing key 'start' in training.annealing"),
    (["--learning-rate", -1], "learning_rate must be positive, got -1.0"),
    (["--target-site", SITES[1], "--architecture", "pursuit"], "unknown key 'd_out' in dictionary|d_out must be 32"),
    (["--threads", 0], "--threads must be at least 1, got 0"),
    (["--device", "abacus"], "--device abacus cannot be used"),
    (["--site", "blocks.7.hook_resid_post"], "site must be one of blocks.0.hook_resid_post, blocks.1.hook_mlp_out"),
    (["--architecture", "pursuit", "--objective", "matryoshka"], "objective must not be matryoshka for pursuit"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_anything_is_written(store, tmp_path, arguments, named):
    with pytest.raises(ConfigError, match=named):
        train(store, tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("left_out", "named"), [("--d-sae", r"--d-sae must be given, or dictionary.d_sae"), ("--n-steps", "--n-steps must be given")]
)
def test_what_has_no_default_must_be_given(store, tmp_path, left_out, named):
    given = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    del given[left_out]
    with pytest.raises(ConfigError, match=named):
        train(store, tmp_path, *(part for pair in given.items() for part in pair), small=False)


def test_the_site_must_be_given_where_there_are_several(store, tmp_path):
    result = CliRunner().invoke(app, ["train", str(store.path), "--out", str(tmp_path), *SMALL])
    assert isinstance(result.exception, ConfigError)
    assert f"--site must be given, one of {SITES[0]}, {SITES[1]}" in str(result.exception)


def test_an_error_is_one_line_and_status_2(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sae", "train", str(store.path), "--out", str(tmp_path), "--site", SITES[0], *SMALL, "--k", "99"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["error: k must be in 1..d_sae=48, got 99 (TopK)"]


# --- runs --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ACTIVATIONS, "pursuit", "codebook"])
def test_every_architecture_is_trained_shown_and_measured(store, tmp_path, architecture):
    k = ("--k", 4) if "k" in dataclasses.asdict(plan_default(architecture)) else ()
    result = train(store, tmp_path, "--architecture", architecture, *k, "--ema-decay", 0.5)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("step")]
    assert len(lines) == 8
    for part in ("step 8/8", "loss ", "FVU ", "L0 ", "dead ", "tokens/s", "left"):
        assert part in lines[-1]
    scores = {row["name"].split(",")[0]: row for row in read_json(tmp_path / "scores.json")["rows"]}
    assert set(scores) == {"dictionary", "averaged", "untrained", "PCA"}
    feed = FeedConfig(site=SITES[0], held_out=0.2)
    measured = reconstruction(load_dictionary(tmp_path / "dictionary"), held_out_batches(store, feed)).scores
    assert scores["dictionary"]["fvu"] == pytest.approx(measured.fvu)
    assert scores["dictionary"]["l0"] == measured.l0
    assert scores["dictionary"]["dead_share"] == measured.dead_share
    for row in scores.values():
        assert f"{row['fvu']:.4f}" in result.output
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(8))


def plan_default(architecture):
    kind = ARCHITECTURES[architecture]
    return ACTIVATIONS[architecture]() if architecture in ACTIVATIONS else kind(d_in=8, d_sae=64)


def test_a_transcoder_is_trained_and_read_against_a_linear_map(store, tmp_path):
    result = train(store, tmp_path, "--target-site", SITES[1], "--skip", "--k", 4)
    assert result.exit_code == 0, result.output
    made = load_dictionary(tmp_path / "dictionary")
    assert made.config.d_out == 32 and made.config.skip
    scores = {row["name"]: row for row in read_json(tmp_path / "scores.json")["rows"]}
    feed = FeedConfig(site=SITES[0], target_site=SITES[1], held_out=0.2, batch_size=64)
    assert scores["dictionary"]["fvu"] == pytest.approx(transcoding(made, held_out_batches(store, feed)).fvu)
    linear = linear_fvu(
        itertools.islice(train_batches(store, feed), len(usable_tokens(store, feed)) // 64), held_out_batches(store, feed), [4]
    )
    assert scores["linear map, 4 numbers"]["fvu"] == pytest.approx(linear.fvu[0], rel=1e-6)
    assert f"{SITES[0]} -> {SITES[1]}" in result.output


def test_repeated_options_make_a_sweep_in_sub_folders(store, tmp_path):
    result = train(store, tmp_path / "sweep", "--k", 2, "--k", 4, "--learning-rate", 0.01, "--learning-rate", 0.02)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert names == ["k_2-learning_rate_0.01", "k_2-learning_rate_0.02", "k_4-learning_rate_0.01", "k_4-learning_rate_0.02"]
    train(store, tmp_path / "alone", "--k", 4, "--learning-rate", 0.02)
    swept, alone = (load_dictionary(folder / "dictionary") for folder in (tmp_path / "sweep" / names[3], tmp_path / "alone"))
    assert swept.digest == alone.digest
    assert "k_4-learning_rate_0.02: dictionary" in result.output


def test_a_run_is_repeated_from_its_file_and_options_override_it(store, tmp_path):
    train(store, tmp_path / "a", "--k", 4, "--betas", 0.5, 0.9, "--objective", "matryoshka", "--aux-coefficient", 0.5, "--seed", 7)
    given = ("--config", tmp_path / "a" / "run.json")
    train(store, tmp_path / "b", *given, small=False)
    assert load_dictionary(tmp_path / "b" / "dictionary").digest == load_dictionary(tmp_path / "a" / "dictionary").digest
    train(store, tmp_path / "c", *given, "--k", 3, "--aux-share", 0.25, small=False)
    a, c = plan_of(tmp_path / "a"), plan_of(tmp_path / "c")
    assert (c.dictionary.activation.k, c.objective.terms.aux_share, c.objective.terms.aux_coefficient) == (3, 0.25, 0.5)
    assert c.training == a.training
    assert read_json(tmp_path / "c" / "run.json")["feed"] == read_json(tmp_path / "a" / "run.json")["feed"]


@pytest.mark.parametrize(("text", "named"), [
    ("[]", "must hold a JSON object"), ('{"speed": 3}', "has an unknown key 'speed'"), ("{", "is not valid JSON"),
    ('{"training": 3}', "training in .* must be an object, got 3"), ('{"training": {"n_stps": 3}}', "unknown key 'n_stps' in training"),
    ('{"feed": {"batch": 3}}', "unknown key 'batch' in feed"), ('{"architecture": "top_q"}', "architecture must be one of .*, got 'top_q'"),
    ('{"dictionary": {"d_in": 9}}', "d_in must be 32, the width of blocks.0.hook_resid_post, got 9"),
])  # fmt: skip
def test_a_bad_file_of_settings_is_refused(store, tmp_path, text, named):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=named):
        train(store, tmp_path / "run", "--config", tmp_path / "settings.json")


def test_the_same_command_goes_on_and_a_finished_one_shows_its_scores_again(store, tmp_path, monkeypatch):
    whole = train(store, tmp_path / "whole", "--checkpoint-every", 3)
    seen = []

    class Stopping(program.display(8, 64).__class__):
        def show(self, records):
            seen.append(records["."].step)
            if len(seen) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(program, "display", Stopping)
    cut = train(store, tmp_path / "cut", "--checkpoint-every", 3)
    assert cut.exit_code == 130
    assert "stopped; the same command goes on from the last checkpoint" in cut.output
    monkeypatch.undo()
    rest = train(store, tmp_path / "cut", "--checkpoint-every", 3)
    assert [line.split()[1] for line in rest.output.splitlines() if line.startswith("step")] == ["4/8", "5/8", "6/8", "7/8", "8/8"]
    assert load_dictionary(tmp_path / "cut" / "dictionary").digest == load_dictionary(tmp_path / "whole" / "dictionary").digest
    monkeypatch.setattr("sae.cli.scores.reconstruction", None)  # nothing is measured again
    again = train(store, tmp_path / "whole", "--checkpoint-every", 3)
    assert "finished already" in again.output
    assert again.output.splitlines()[-7:] == whole.output.splitlines()[-7:]


def test_measuring_can_be_left_out(store, tmp_path):
    assert "not measured: not asked for" in train(store, tmp_path / "a", "--evaluation-tokens", 0).output
    assert "not measured: no documents are held out" in train(store, tmp_path / "b", "--held-out", 0).output
    assert not (tmp_path / "a" / "scores.json").exists()


def test_threads_are_those_asked_for(store, tmp_path):
    before = torch.get_num_threads()
    try:
        train(store, tmp_path / "a", "--threads", 2, "--evaluation-tokens", 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_gets_every_step_of_every_run_of_a_sweep(store, tmp_path, monkeypatch, kind):
    runs = []

    def init(**options):
        run = types.SimpleNamespace(options=options, logged=[], finished=False)
        run.log = lambda metrics, step: run.logged.append((step, metrics))
        run.finish = lambda: setattr(run, "finished", True)
        runs.append(run)
        return run

    monkeypatch.setitem(sys.modules, kind, types.SimpleNamespace(init=init))
    train(store, tmp_path / "s", "--k", 2, "--k", 4, "--tracker", kind, "--offline", "--project", "p")
    assert [run.options["name"][:5] for run in runs] == ["s/k_2", "s/k_4"]
    for run, k in zip(runs, (2, 4), strict=True):
        assert run.options["project"] == "p" and run.options["config"]["dictionary"]["activation"]["k"] == k
        assert run.finished
        lines = read_log(tmp_path / "s" / f"k_{k}" / "log.jsonl")
        assert [(step, metrics) for step, metrics in run.logged] == [
            (line["step"], {n: v for n, v in line.items() if v is not None}) for line in lines
        ]
    train(store, tmp_path / "s", "--k", 2, "--k", 4, "--tracker", kind, "--offline", "--project", "p")
    assert len(runs) == 2  # a finished run is not reported again


def test_a_terminal_gets_live_numbers(store, tmp_path, monkeypatch):
    from io import StringIO

    from rich.console import Console

    terminal = Console(file=StringIO(), force_terminal=True, width=140, color_system=None)
    for module in ("sae.cli.screen", "sae.cli.train", "sae.cli.scores"):
        monkeypatch.setattr(f"{module}.console", terminal)
    train(store, tmp_path, "--k", 2, "--k", 4)
    shown = terminal.file.getvalue()
    for part in ("k_2", "k_4", "8/8", "loss", "FVU", "L0", "dead", "tokens/s", "0:00:00 left", "untrained", "PCA, 2 numbers"):
        assert part in shown


def test_the_clock_is_hours_minutes_and_seconds():
    assert [clock(0.0), clock(61.4), clock(3 * 3600 + 59.0), clock(float("nan"))] == ["0:00:00", "0:01:01", "3:00:59", "-"]


def test_records_on_disk_are_strict_json(store, tmp_path):
    train(store, tmp_path, "--evaluation-tokens", 0)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    assert len(records) > 1
    assert all({"loss", "fvu", "l0"} <= set(record) for record in records)
