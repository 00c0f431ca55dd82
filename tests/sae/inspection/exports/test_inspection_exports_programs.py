"""`sae index` and `sae export` as a user runs them."""

import json
import subprocess
import sys

import pytest
import torch
import typer
from tiny import tiny_hf_model, tiny_tokenizer
from tiny_store import TEXTS as CORPUS
from typer.testing import CliRunner

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.cli.export import export_command
from sae.cli.index import index_command
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.checkpoint import save_dictionary
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError, FormatError
from sae.inspection.encoded import recorded_framing
from sae.inspection.exports import provenance_of
from sae.inspection.index import FeatureIndex
from sae.inspection.live import framing_of
from sae.models.language_model import LanguageModel
from tests.sae.inspection.exports.exported import FORMAT_NAMES, content, small_index

SITE, OTHER = "blocks.1.hook_resid_post", "blocks.0.mlp.hook_post"
app = typer.Typer()
app.command("index")(index_command)
app.command("export")(export_command)


def run(*arguments):
    """What the program shows, its spaces made single; an error of the workbench is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_hf_model(7, n_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    config = CaptureConfig(sites=(SITE, OTHER), n_tokens=1600, context=16, rows_per_shard=8, rows_per_batch=4, dtype="float32")
    for _ in collect(LanguageModel.load(str(model)), from_texts(CORPUS, licence="CC0"), folder, config):
        pass
    return ActivationStore.open(folder)


@pytest.fixture(scope="module")
def dictionaries(store, tmp_path_factory):
    """A run with an autoencoder, and a pursuit by itself."""
    folder, width = tmp_path_factory.mktemp("dictionaries"), store.site(SITE).width
    autoencoder = Autoencoder(AutoencoderConfig(d_in=width, d_sae=24, activation=TopK(k=3)), seed=0)
    with torch.no_grad():
        autoencoder.b_enc[:2] = -1e4
    autoencoder.provenance = {"site": SITE}
    save_dictionary(autoencoder, folder / "run" / "dictionary")
    pursuit = MatchingPursuit(PursuitConfig(d_in=width, d_sae=24, k=3, selection="signed"), seed=0)
    save_dictionary(pursuit, folder / "pursuit")
    return folder


@pytest.fixture(scope="module")
def index(store, dictionaries, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes") / "index"
    run("index", dictionaries / "run", "--store", store.path, "--out", folder, "--model", model, "--n-examples", 3)
    return FeatureIndex.open(folder)


def test_an_index_is_built_with_texts_effects_settings_and_provenance(index, store):
    source = index.manifest.source
    assert (source.dictionary, source.site, source.kind, source.d_sae) == ("run", SITE, "activation", 24)
    assert source.store_digest == store.digest
    assert index.manifest.config.n_examples == 3
    assert source.effects_convention
    found = provenance_of(index)
    assert (found.licence, found.revision) == ("CC0", store.manifest.corpus.digest)
    assert found.dataset == store.manifest.corpus.name
    assert found.model == store.manifest.model.name
    assert recorded_framing(index.folder) == framing_of(store, SITE)


def test_the_same_command_finds_it_and_says_what_it_holds_and_how_to_look(index, store, dictionaries, model):
    before = content(index.folder)
    shown = run("index", dictionaries / "run", "--store", store.path, "--out", index.folder, "--model", model, "--n-examples", 3)
    n_dead = int((index.statistics.n_active == 0).sum())
    assert n_dead >= 2
    assert "the index is there already" in shown
    assert f"latents 24, of which {n_dead} ({n_dead / 24:.1%}) never fire" in shown
    assert f"{int(index.statistics.n_active.sum()):,} values over {index.n_tokens:,} tokens" in shown
    assert f"sae serve {index.folder}" in shown
    assert content(index.folder) == before


def test_another_dictionary_does_not_overwrite_an_index(index, store, dictionaries):
    with pytest.raises(FormatError, match="choose another folder"):
        run("index", dictionaries / "pursuit", "--store", store.path, "--site", SITE, "--out", index.folder, "--model", "none")


def test_without_a_model_tokens_are_ids_and_a_pursuit_keeps_its_steps(store, dictionaries, tmp_path):
    shown = run(
        "index", dictionaries / "pursuit", "--store", store.path, "--site", SITE, "--out", tmp_path / "i", "--model", "none", "--name", "MP"
    )
    assert "tokens are shown by their ids" in shown
    made = FeatureIndex.open(tmp_path / "i")
    assert (made.manifest.source.dictionary, made.manifest.source.kind, made.manifest.n_steps) == ("MP", "coefficient", 3)
    assert made.texts[7] == "#7"


def test_what_index_cannot_use_is_named_before_any_work(store, dictionaries, tmp_path):
    out = ("--out", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"DICTIONARY must be .*nothing does not exist"):
        run("index", tmp_path / "nothing", "--store", store.path, *out)
    with pytest.raises(ConfigError, match=r"DICTIONARY must be .* holds no config\.json"):
        run("index", store.path, "--store", store.path, *out)
    with pytest.raises(ConfigError, match="--store must be the folder of an activation store"):
        run("index", dictionaries / "run", "--store", tmp_path, *out)
    with pytest.raises(ConfigError, match=rf"--site must be .* got {OTHER} .*{SITE}"):
        run("index", dictionaries / "run", "--store", store.path, "--site", OTHER, *out)
    with pytest.raises(ConfigError, match="--model must name the store's language model, default or none"):
        run("index", dictionaries / "run", "--store", store.path, "--model", tmp_path / "no-model", *out)
    with pytest.raises(ConfigError, match="n_examples must be an integer of at least 1"):
        run("index", dictionaries / "run", "--store", store.path, "--n-examples", 0, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_every_format_is_exported_and_the_program_says_whose_texts_it_quotes(format, index, tmp_path):
    shown = run("export", index.folder, "--format", format, "--out", tmp_path / "out", "--features", "4, 9-11")
    assert f"4 features as {format}" in shown
    assert "licence: CC0" in shown
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["latents"] == [4, 9, 10, 11]


def test_options_reach_the_formats_that_have_them(index, dictionaries, tmp_path):
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"index": "4", "description": "a label", "typeName": "m"}\n\n', encoding="utf-8")
    ids = ("--model-id", "GPT2", "--source-set", "res", "--layer", 3)
    run("export", index.folder, "--format", "neuronpedia", "--out", tmp_path / "a", "--features", "4", *ids, "--explanations", labels,
        "--dictionary", dictionaries / "run", "--licence", "MIT", "--dataset", "other", "--revision", "7")  # fmt: skip
    assert (tmp_path / "a/gpt2/3-res/explanations/batch-0.jsonl.gz").is_file()
    source = json.loads((tmp_path / "a/gpt2/3-res/source.jsonl").read_text())
    assert source["dataset"] == "other"
    assert "licence: MIT" in source["notes"]
    run("export", index.folder, "--format", "saedashboard", "--out", tmp_path / "b", "--top", 1, "--dictionary", dictionaries / "run")
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    assert manifest["latents"] == index.top(n=1).ids.tolist()
    run("export", index.folder, "--format", "html", "--out", tmp_path / "c", "--features", "4", "--title", "Mine & yours")
    assert "Mine &amp; yours" in (tmp_path / "c/index.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--features", "1,x"), "--features must be numbers and ranges such as 3,17,40-49, got 'x'"),
        (("--features", "24"), r"--features must be in 0\.\.d_sae-1=23"),
        (("--features", "5-3"), r"--features must be in 0\.\.d_sae-1=23"),
        (("--features", "3,3"), "must be different"),
        (("--features", "3", "--top", 2), "must not be given together"),
        (("--top", 0), "n must be at least 1"),
        (("--model-id", "x"), "--model-id belongs to --format saedashboard, neuronpedia, upload, not to json"),
        (("--title", "x"), "--title belongs to --format html"),
    ],
)
def test_what_export_cannot_use_is_named(options, message, index, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run("export", index.folder, "--format", "json", "--out", tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


def test_atoms_of_another_dictionary_and_damaged_labels_are_refused(index, dictionaries, tmp_path):
    out = ("--format", "neuronpedia", "--out", tmp_path / "out")
    with pytest.raises(FormatError, match="is not that of the index"):
        run("export", index.folder, *out, "--dictionary", dictionaries / "pursuit")
    (tmp_path / "labels.jsonl").write_text('{"index": 4, "description": "x"}\n{"index": 4}\n')
    with pytest.raises(FormatError, match=r"labels\.jsonl, line 2, must be a JSON object"):
        run("export", index.folder, *out, "--explanations", tmp_path / "labels.jsonl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis").write_text("x")
    with pytest.raises(FormatError, match="choose another folder"):
        run("export", index.folder, "--format", "json", "--out", tmp_path / "mine")
    with pytest.raises(FormatError, match="holds no feature index"):
        run("export", tmp_path / "mine", "--format", "json", "--out", tmp_path / "out")


def test_exports_duckdb_and_the_program_import_neither_torch_nor_a_language_model(tmp_path):
    program = (
        "import sys\nfrom sae.cli.export import export_command\nfrom sae.inspection.exports import FORMATS, export\n"
        "from sae.inspection.index import FeatureIndex\n"
        f"index = FeatureIndex.open({str(small_index('pursuit').folder)!r})\n"
        f"for format in FORMATS: export(index, format, {str(tmp_path)!r} + '/' + format, latents=None if format == 'parquet' else [1, 4])\n"
        "try: import duckdb\nexcept ImportError: pass\nelse:\n"
        "    from sae.inspection.duckdb_index import DuckDBIndex\n"
        f"    assert DuckDBIndex({str(tmp_path / 'parquet')!r}).top(by='density', n=2).ids.tolist() == index.top(by='density', n=2).ids.tolist()\n"
        "assert not {'torch', 'transformer_lens', 'datasets', 'transformers'} & set(sys.modules), 'torch'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
