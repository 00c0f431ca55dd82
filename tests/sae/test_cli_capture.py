"""`sae capture` as a user runs it: a plan, progress, a store; again to go on, to add tokens or sites; one line for every error."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from tiny import tiny_hf_model, tiny_tokenizer
from tiny_store import TEXTS, files
from typer.testing import CliRunner

import sae.cli.capture as program
from sae.activations.collect import collect
from sae.activations.corpus import from_dataset, state_of_the_union
from sae.activations.manifest import CaptureConfig
from sae.activations.progress import CaptureProgress
from sae.activations.store import ActivationStore
from sae.cli import app, main
from sae.cli.corpora import ChatOptions, CorpusChoice, TextOptions, corpus_option
from sae.cli.disk import bytes_there, check_space, free_bytes, store_bytes, token_bytes
from sae.cli.following import LineFollower, LiveFollower, Pace, Step, follow
from sae.cli.machine import compute_device, load_model, processes
from sae.errors import ConfigError, SaeError
from sae.models.language_model import LanguageModel

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
SMALL = ("--n-tokens", "640", "--context", "16", "--rows-per-shard", "8", "--rows-per-batch", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny model"
    tiny_hf_model(5, n_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture
def texts(corpus):
    return ("--corpus", corpus, "--text-column", "body")


def sae(*arguments):
    """The program's result; an error of the workbench is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=150)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def sites(*names):
    return [part for name in names or SITES for part in ("--site", name)]


@pytest.fixture(scope="module")
def made(model, corpus, tmp_path_factory):
    """A finished store, what was shown, and the library's own of the same."""
    folder = tmp_path_factory.mktemp("made")
    shown = sae("capture", model, "--corpus", corpus, "--text-column", "body", *sites(), *SMALL, "--out", folder / "store")
    config = CaptureConfig(sites=SITES, n_tokens=640, context=16, rows_per_shard=8, rows_per_batch=4)
    for _ in collect(LanguageModel.load(model), from_dataset(corpus, text_column="body"), folder / "own", config):
        pass
    return folder / "store", shown, folder / "own"


# --- captures ----------------------------------------------------------------------------------------------------------------------------


def test_the_store_is_byte_for_byte_that_of_the_library(made):
    store, _, own = made
    assert files(store) == files(own)


def test_the_plan_comes_first_and_the_summary_last(made):
    _, shown, _ = made
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["model", "corpus", "sites", "tokens", "disk"]
    assert "tiny model, " in lines[0]
    assert f"{SITES[0]} (32), {SITES[1]} (32)" in lines[2]
    assert "640 in 40 rows of 16" in lines[3]
    assert "are free there; stored as bfloat16" in lines[4]
    for stage, total in (("tokens", 640), ("capture", 640), ("statistics", 2 * 2 * 640)):
        assert any(line.startswith(stage) and f"{total:,}/{total:,} tokens" in line for line in lines[5:]), stage
    assert any(line.startswith("batches") and "times the documents of a random sample" in line for line in lines)


def test_the_announced_size_is_what_the_store_takes_but_for_headers(made):
    store = ActivationStore.open(made[0])
    n_bytes = store_bytes(store.manifest.capture, store.manifest.sites, 400)
    numbers = 640 * (2 * (32 * 2 + 4) + 2) + 2 * 8 * (32 + 32 * 33 // 2)  # by hand: acts, norms, uint16 tokens; statistics
    assert n_bytes == numbers
    found = sum(file.stat().st_size for file in made[0].rglob("*.safetensors"))
    n_files = len(list(made[0].rglob("*.safetensors")))
    assert numbers < found < numbers + 400 * n_files
    assert bytes_there(made[0]) == sum(file.stat().st_size for file in made[0].rglob("*") if file.is_file())
    assert token_bytes("int8", store.manifest.sites) == 2 * (32 + 4)


def test_more_tokens_later_are_the_store_that_would_have_been_made_at_once(made, model, texts, tmp_path):
    shutil.copytree(made[0], tmp_path / "grown")
    shown = sae("capture", model, "--out", tmp_path / "grown", *texts, "--n-tokens", 1000)
    assert "1,008 in 63 rows of 16" in shown
    more = [*SMALL[2:], "--n-tokens", "1000"]
    sae("capture", model, *texts, *sites(), *more, "--out", tmp_path / "at once")
    assert files(tmp_path / "grown") == files(tmp_path / "at once")


@pytest.mark.parametrize("how", [(), ("--extend",)])
def test_more_sites_need_no_corpus_and_are_those_of_a_capture_of_all(made, model, texts, tmp_path, how):
    new = "blocks.1.hook_resid_post"
    shutil.copytree(made[0], tmp_path / "grown")
    shown = sae("capture", model, "--out", tmp_path / "grown", *sites(new), *how, *(texts if how else ()))
    assert f"sites   {new} (32)\n" in shown
    sae("capture", model, *texts, *sites(*SITES, new), *SMALL, "--out", tmp_path / "at once")
    assert files(tmp_path / "grown") == files(tmp_path / "at once")


def test_a_finished_capture_has_nothing_left_to_do(made, model):
    before = files(made[0])
    assert "0 bytes more" in sae("capture", model, "--out", made[0])
    assert files(made[0]) == before


def interrupted(monkeypatch, stage, *arguments):
    """The output of a run that is stopped at its second progress of the stage."""
    seen = []

    class Stopping(LineFollower):
        def show(self, progress):
            seen.append(progress.stage)
            if seen.count(stage) == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sae.cli.following.LineFollower", Stopping)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 130
    return result.output


def test_a_stopped_capture_says_how_to_go_on_and_the_same_command_does(made, model, texts, tmp_path, monkeypatch):
    command = ("capture", model, *texts, *sites(), *SMALL, "--out", tmp_path / "store")
    shown = interrupted(monkeypatch, "capture", *command)
    assert f"stopped; the same command goes on; what is finished in {tmp_path / 'store'} stays" in shown.replace("\n", " ")
    assert "shards are there; to go on: sae capture --out" in sae("store", "info", tmp_path / "store")
    sae(*command)
    assert files(tmp_path / "store") == files(made[0])


def test_a_capture_whose_tokens_are_written_goes_on_without_its_corpus(made, model, texts, tmp_path, monkeypatch):
    command = ("capture", model, *texts, *sites(), *SMALL, "--out", tmp_path / "store")
    interrupted(monkeypatch, "capture", *command)
    sae("capture", model, "--out", tmp_path / "store")
    assert files(tmp_path / "store") == files(made[0])


def test_a_capture_whose_tokens_are_not_written_needs_its_corpus(model, texts, tmp_path, monkeypatch):
    interrupted(monkeypatch, "tokens", "capture", model, *texts, *sites(), *SMALL, "--out", tmp_path / "store")
    assert "its tokens are not all written; to go on: sae capture --out" in sae("store", "info", tmp_path / "store")
    with pytest.raises(ConfigError, match=r"--corpus must be given: .* needs more of 'texts.jsonl'"):
        sae("capture", model, "--out", tmp_path / "store")


def test_stopped_additions_go_on_with_nothing_said(made, model, tmp_path, monkeypatch):
    shutil.copytree(made[0], tmp_path / "grown")
    interrupted(monkeypatch, "capture", "capture", model, "--out", tmp_path / "grown", *sites("blocks.0.hook_mlp_out"))
    assert "adding" in sae("store", "info", tmp_path / "grown")
    sae("capture", model, "--out", tmp_path / "grown")
    assert ActivationStore.open(tmp_path / "grown").site_names == (*SITES, "blocks.0.hook_mlp_out")


def test_every_other_process_is_silent(model, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes() == (1, 1, 2)
    assert sae("capture", model, *texts, *sites(), *SMALL, "--out", tmp_path / "store") == ""
    assert ActivationStore.open(tmp_path / "store").n_tokens == 640
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK must be a whole number in the environment, got 'first'"):
        processes()


def test_conversations_are_written_out_by_the_template(model, tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [[{"from": "human", "value": "birds can fly " * 30}, {"from": "bot", "value": "but dogs cannot " * 30}]] * 3
    file.write_text("".join(json.dumps({"talk": row}) + "\n" for row in rows))
    talking = tmp_path / "talking model"
    shutil.copytree(model, talking)
    (talking / "chat_template.jinja").write_text("{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}{% endfor %}")
    keys = ("--chat", "talk", "--role-key", "from", "--content-key", "value", "--rename-role", "human=user")
    command = ("capture", talking, "--corpus", file, *keys, *sites(), "--out", tmp_path / "store", "--context", 16, "--n-tokens", 200)
    sae(*command)
    tokens = ActivationStore.open(tmp_path / "store").tokens()
    assert tokens[0, :2].tolist() == [0, 1]
    assert tiny_tokenizer().decode(tokens[0, 2:8]).startswith("user: birds")


@pytest.mark.real_model
def test_the_default_model_over_the_shipped_corpus(tmp_path):
    site = "blocks.3.hook_resid_post"
    shown = sae("capture", "default", "--corpus", "state_of_the_union", *sites(site), "--n-tokens", 2048, "--out", tmp_path / "store")
    assert "smollm2-135m-instruct" in shown
    store = ActivationStore.open(tmp_path / "store")
    assert (store.n_tokens, store.site(site).width) == (2048, 576)
    assert store.manifest.corpus.digest == state_of_the_union().digest
    sae("capture", "--out", tmp_path / "store", *sites("blocks.2.hook_mlp_out"))  # the model by its name in the store
    assert len(ActivationStore.open(tmp_path / "store").site_names) == 2


# --- errors ------------------------------------------------------------------------------------------------------------------------------

REFUSED = [
    ((), ["--n-tokens", 99], "--site must be given: there is no store at"),
    ((), sites(), "--n-tokens must be given: there is no store at"),
    ((), [*sites("blocks.9.hook_resid_post"), *SMALL], "no site of the model matches 'blocks.9.hook_resid_post'"),
    ((), [*sites(), *SMALL, "--context", 1], "context must be in 2..n_ctx=256"),
    ((), [*sites(), *SMALL, "--threads", 0], "--threads must be at least 1, got 0"),
    ((), [*sites(), *SMALL, "--device", "abacus"], "--device abacus cannot be used"),
    ((), [*sites(), *SMALL, "--n-tokens", 10**13], "needs .* more, and .* are free there: ask for fewer tokens or sites"),
    ((), [*sites(), *SMALL, "--n-tokens", 10**5], "n_tokens must be at most [0-9]+, got 100000"),
    ((), [*sites(), *SMALL, "--extend"], "--extend needs a complete store, .* is none"),
    ((), [*sites(), *SMALL, "--sample-by", "line", "--chat", "talk"], "--text-column does nothing with --chat"),
    ((), [*sites(), *SMALL, "--role-key", "from"], "--role-key does nothing without --chat"),
    ((), [*sites(), *SMALL, "--rename-role", "human"], "--rename-role must be OLD=NEW"),
    ((), [*sites(), *SMALL, "--dtype", "int8", "--bos-id", 400], "bos_id must be in 0..d_vocab-1"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "arguments", "named"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_makes_no_sense_is_refused(model, texts, tmp_path, first, arguments, named):
    with pytest.raises(SaeError, match=named):
        sae("capture", model, *first, *texts, *arguments, "--out", tmp_path / "store")
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_what_does_not_fit_the_store_is_refused(made, model, texts, tmp_path):
    before = files(made[0])
    for arguments, named in (
        (["--context", 32, *sites("blocks.0.hook_mlp_out")], "--context must be 16, that of the store, when sites are added to it, got 32"),
        (["--n-tokens", 2000, *sites("blocks.0.hook_mlp_out")], "--n-tokens must be 640.*; for more tokens give --corpus"),
        (["--n-tokens", 2000], "--corpus must be given: .* needs more of 'texts.jsonl'"),
        ([*texts, *sites("blocks.0.hook_mlp_out")], "to add a site to the same tokens use extend"),
        ([*texts, "--max-documents", 2], "corpus.digest is .* in the store"),
        ([*texts, "--model-dtype", "float16", "--n-tokens", 700], "model.dtype is .* in the store, float16 now"),
    ):
        with pytest.raises(ConfigError, match=named):
            sae("capture", model, "--out", made[0], *arguments)
    with pytest.raises(ConfigError, match="'tiny model' cannot be found by its name: say where it is"):
        sae("capture", "--out", made[0])
    with pytest.raises(ConfigError, match=r"MODEL must be given: default, a folder, a \.gguf file or a hub name"):
        sae("capture", "--out", tmp_path / "new", *texts, *sites(), *SMALL)
    assert files(made[0]) == before


def test_an_error_is_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sae", "capture", "[bold]nowhere", "--out", str(tmp_path / "a [red] b"), "--site", "x"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().out.splitlines() == [
        f"error: --corpus must be given: there is no store at {tmp_path / 'a [red] b'} yet to take it from"
    ]


def test_space_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    assert free_bytes(tmp_path / "a" / "b" / "c") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    check_space(tmp_path, 5, 5)
    with pytest.raises(ConfigError, match=r"needs 6.0 GB more, and 5 bytes are free there"):
        check_space(tmp_path, 6_000_000_000, 5)
    assert bytes_there(tmp_path / "nothing") == 0


# --- corpora and models ------------------------------------------------------------------------------------------------------------------


def test_every_field_of_the_configurations_is_an_option():
    expected = {field.name for owner in (CaptureConfig, TextOptions, ChatOptions) for field in dataclasses.fields(owner)} - {"sites"}
    expected |= {field.name for field in dataclasses.fields(CorpusChoice)} - {"texts", "chats"}
    assert set(program.FLAGS) == expected
    text = " ".join(CliRunner().invoke(app, ["capture", "--help"], terminal_width=220).stdout.replace("│", " ").split())
    for name in expected:
        assert "--" + name.replace("_", "-") in text
    assert "adds to the store. What is not given is as in the store." in text


def test_built_in_corpora_take_an_order_and_a_number_and_nothing_else():
    whole = CorpusChoice(corpus=("state_of_the_union",)).open(None)
    assert whole.digest == state_of_the_union().digest
    three = list(CorpusChoice(corpus=("state_of_the_union",), shuffle_seed=3, max_documents=3).open(None).documents())
    again = list(CorpusChoice(corpus=("state_of_the_union",), shuffle_seed=3, max_documents=3).open(None).documents())
    first = [document.id for _, document in zip(range(3), whole.documents(), strict=False)]
    assert three == again and len(three) == 3 and [document.id for document in three] != first
    for options, named in (
        ({"split": "test"}, "--split does not apply to --corpus state_of_the_union"),
        ({"texts": TextOptions(sample_by="line")}, "--sample-by does not apply to --corpus state_of_the_union"),
        ({"corpus": ("state_of_the_union", "a.txt")}, "--corpus state_of_the_union cannot be joined with others"),
    ):
        with pytest.raises(ConfigError, match=named):
            CorpusChoice(**{"corpus": ("state_of_the_union",), **options})
    assert corpus_option("installed_docstrings") == " --corpus docstrings"
    assert "CORPUS is a.txt" in corpus_option("a.txt")


def test_the_options_of_files_reach_the_corpus(tmp_path):
    (tmp_path / "a.txt").write_bytes("Grüße.\n\nZwei.".encode("latin-1"))
    (tmp_path / "b.txt").write_text("Drei.")
    files_of = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    choice = CorpusChoice(corpus=files_of, texts=TextOptions(sample_by="paragraph", encoding="latin-1"), licence="CC0-1.0")
    corpus = choice.open(None)
    assert [document.text.strip() for document in corpus.documents()] == ["Grüße.", "Zwei.", "Drei."]
    assert corpus.licence == "CC0-1.0"
    assert [document.text for document in dataclasses.replace(choice, max_documents=1).open(None).documents()] == ["Grüße."]


def test_a_model_comes_in_the_dtype_asked_for_or_else_that_of_the_store(made, model):
    stored = ActivationStore.open(made[0]).manifest
    device = compute_device("cpu")
    assert load_model(str(model), stored=None, dtype="float16", device=device).dtype == torch.float16
    kept = dataclasses.replace(stored, model=dataclasses.replace(stored.model, dtype="float16"))
    assert load_model(str(model), stored=kept, dtype=None, device=device).dtype == torch.float16
    assert compute_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


# --- progress ----------------------------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def captured(n_tokens, n_run):
    return CaptureProgress("capture", n_tokens, 1000, n_run)


def test_speed_and_time_left_count_only_what_this_run_did():
    clock = Clock()
    pace = Pace(1, 50, clock=clock)
    pace.start(captured(300, 100))  # 200 were there, 100 came before the clock started
    assert "-/s" in pace.text(captured(300, 100))
    clock.now += 4.0
    text = pace.text(captured(500, 300))
    assert re.search(r"  500/1,000 tokens +50/s  0:00:10 left  25.0 kB", text)  # 200 tokens in 4 s, 500 left


def test_other_processes_are_taken_to_be_as_fast():
    clock = Clock()
    pace = Pace(4, 0, clock=clock)
    pace.start(captured(200, 0))
    clock.now += 2.0
    assert re.search(r"600/1,000 tokens +200/s  0:00:02 left$", pace.text(captured(300, 100)))
    assert pace.done(captured(990, 100)) == 990
    assert pace.done(captured(500, 300)) == 1000


def test_lines_come_at_the_end_of_every_stage_and_a_second_apart_before(capsys):
    clock = Clock()
    follower = LineFollower(Pace(1, 1, clock=clock))
    for n_tokens in range(10, 1001, 10):
        clock.now += 0.125
        follower.show(captured(n_tokens, n_tokens))
    follower.show(Step("export", 5, 5))
    follower.close()
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 14
    assert lines[-2].startswith("capture") and "1,000/1,000" in lines[-2]
    assert lines[-1].startswith("export") and "5/5" in lines[-1]


def test_a_terminal_gets_bars_that_fit_eighty_columns(monkeypatch):
    from rich.console import Console

    screen = Console(force_terminal=True, width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for module in ("sae.cli.following", "sae.cli.screen"):
        monkeypatch.setattr(f"{module}.console", screen)
    pace = Pace(1, 4_000)
    follower = LiveFollower(pace)
    follower.show(CaptureProgress("capture", 1_000_000_000, 2_000_000_000, 10))
    pace.began -= 1000.0
    follower.show(CaptureProgress("capture", 1_500_000_000, 2_000_000_000, 500_000_010))
    follower.close()
    text = screen.export_text()
    screen.file.close()
    assert "1,500,000,000/2,000,000,000 tokens" in text
    assert "6.0 TB" in text and "…" not in text


def test_steps_are_gone_through_in_silence_where_nothing_is_to_be_shown(capsys):
    seen = []
    follow((seen.append(n) or captured(n, n) for n in range(5)), shown=False)
    assert seen == [*range(5)] and capsys.readouterr().out == ""
