"""`sae store` as a user runs it: what is in a store, whether it is whole, mended, joined, brought out and in."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from tiny import tiny_hf_model, tiny_tokenizer
from tiny_store import SITES, TEXTS, files
from typer.testing import CliRunner

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.cli import app, main
from sae.cli.summary import number
from sae.errors import SaeError
from sae.models.language_model import LanguageModel
from sae.storage import save_tensors

CONFIG = CaptureConfig(sites=SITES, n_tokens=640, context=16, rows_per_shard=8, rows_per_batch=4, dtype="int8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_hf_model(7, n_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture(scope="module")
def original(model, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    run("capture", model, "--corpus", corpus, *[part for site in SITES for part in ("--site", site)], "--out", folder,
        "--n-tokens", 640, "--context", 16, "--rows-per-shard", 8, "--rows-per-batch", 4, "--dtype", "int8")  # fmt: skip
    return ActivationStore.open(folder)


@pytest.fixture
def store(original, tmp_path):
    """A copy that may be damaged."""
    shutil.copytree(original.path, tmp_path / "store")
    return ActivationStore.open(tmp_path / "store")


def run(*arguments, status=0):
    """What the program shows; an error of the workbench is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=150)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


def damage(file, *, at=300):
    content = bytearray(file.read_bytes())
    content[at] ^= 16
    file.write_bytes(content)


# --- info --------------------------------------------------------------------------------------------------------------------------------


def test_info_as_json_has_what_the_store_says_of_itself(original):
    found = json.loads(run("store", "info", original.path, "--json"))
    assert found["complete"] and found["digest"] == original.digest
    assert (found["n_tokens"], found["n_rows"], found["context"], found["dtype"]) == (640, 40, 16, "int8")
    assert found["n_documents"] == len(original.document_ids().unique())
    assert found["n_bytes"] == sum(file.stat().st_size for file in original.path.rglob("*") if file.is_file())
    assert found["overhead"] == pytest.approx(found["shard_bytes"] / (640 * 64) - 1)
    assert [site["name"] for site in found["sites"]] == [*SITES]
    for site in found["sites"]:
        norms, mask = original.norms(site["name"]), original.mask(site["name"])
        assert site["n"] == int(mask.sum())
        assert site["median_norm"] == pytest.approx(float(norms.view(-1, 16)[:, 1:].flatten().median()), rel=0.05)
        assert site["mean_norm"] == pytest.approx(float(norms[mask].double().mean()), rel=1e-5)
        assert 0 < site["storage_fvu"] < 1e-3
    n = found["sites"][0]["n"]
    options = {"batch_size": n // 2, "seed": 0, "held_out": 0.0, "n_batches": 2}
    assert found["batches"]["mixing"] == original.mixing(SITES[0], **options)
    assert found["batches"]["neighbours"]["in_order"]["value"] == original.neighbour_mixing(SITES[0], **options).in_order.value


@pytest.mark.parametrize("width", [80, 150])
def test_info_shows_every_number_on_a_narrow_screen_and_a_table_on_a_wide_one(original, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("store", "info", original.path)
    text = " ".join(shown.split())
    for site in original.site_names:
        found = original.statistics(site)
        assert site in text
        for value in (found.median_norm, found.threshold, found.mean_norm, found.mean_centred_norm, found.total_variance):
            assert number(value) in text
    assert ("median |a| thres" in text.replace("  ", " ")) == (width == 150)
    assert "storage FVU: share of it that rounding to disk lost" in text
    assert "…" not in text


def test_numbers_keep_four_digits():
    assert [number(value) for value in (0.012345, 12.3456, 999.96, 12345.6)] == ["0.01235", "12.35", "1000", "12,346"]


def test_what_is_no_store_is_named(tmp_path, original, model):
    for command in (["info"], ["verify"], ["repair"], ["export", "--out", tmp_path / "x"]):
        with pytest.raises(SaeError, match=r"STORE must be the folder of an activation store, .*empty is none"):
            run("store", command[0], tmp_path / "empty", *command[1:])
    with pytest.raises(SaeError, match="STORE must be the folder of an activation store"):
        run("store", "merge", original.path, tmp_path / "empty", "--out", tmp_path / "x")
    steps = collect(LanguageModel.load(model), from_texts(TEXTS), tmp_path / "begun", CONFIG)
    for _ in range(7):
        next(steps)
    steps.close()
    found = json.loads(run("store", "info", tmp_path / "begun", "--json"))
    assert not found["complete"] and found["tokens_written"] and found["n_shards"] == 5
    with pytest.raises(SaeError, match=r"begun is not complete: .* to go on: sae capture --out"):
        run("store", "verify", tmp_path / "begun")


# --- verify and repair -------------------------------------------------------------------------------------------------------------------


def test_a_sound_store_is_said_to_be_so(store):
    assert run("store", "verify", store.path) == "15 files are as they were written\n"
    assert run("store", "repair", store.path) == "nothing is damaged\n"


def test_every_problem_is_a_line_with_what_to_do_and_status_1_and_repair_mends_it(original, store, model):
    first, second = store.path / f"shards/00001/{SITES[0]}.safetensors", store.path / f"shards/00003/{SITES[1]}.safetensors"
    damage(first)
    second.write_bytes(second.read_bytes()[:100])
    lines = run("store", "verify", store.path, status=1).splitlines()
    assert len(lines) == 3
    assert str(first) in lines[0] and "damaged" in lines[0]
    assert str(second) in lines[1] and "100 bytes" in lines[1]
    assert lines[2] == f"2 problems; to mend: sae store repair {store.path}"
    with pytest.raises(SaeError, match="'tiny' cannot be found by its name: say where it is"):
        run("store", "repair", store.path)
    assert run("store", "repair", store.path, "--model", model).endswith(f"mended: {store.path} is as it was written\n")
    assert files(store.path) == files(original.path)


def test_damaged_tokens_need_the_corpus(original, store, model, corpus):
    damage(store.path / "shards/00002/tokens.safetensors", at=-20)
    assert "1 problem; to mend: sae store repair" in run("store", "verify", store.path, status=1)
    with pytest.raises(SaeError, match=r"--corpus must be given, since tokens are damaged: 'texts.jsonl'"):
        run("store", "repair", store.path, "--model", model)
    run("store", "repair", store.path, "--model", model, "--corpus", corpus)
    assert files(store.path) == files(original.path)


def test_statistics_need_neither(original, store):
    (file,) = (store.path / "statistics").glob(f"{SITES[0]}.*")
    file.unlink()
    run("store", "verify", store.path, status=1)
    run("store", "repair", store.path)
    assert files(store.path) == files(original.path)


# --- merge, export, import ---------------------------------------------------------------------------------------------------------------


def test_merged_stores_hold_the_rows_of_both(original, model, tmp_path):
    for _ in collect(LanguageModel.load(model), from_texts(["other words " * 300]), tmp_path / "b", CONFIG):
        pass
    shown = run("store", "merge", original.path, tmp_path / "b", "--out", tmp_path / "c")
    merged, second = ActivationStore.open(tmp_path / "c"), ActivationStore.open(tmp_path / "b")
    assert torch.equal(merged.tokens(), torch.cat([original.tokens(), second.tokens()]))
    assert "1,280 in 80 rows of 16" in shown
    with pytest.raises(SaeError, match="the same tokens would come twice"):
        run("store", "merge", original.path, original.path, "--out", tmp_path / "d")


@pytest.mark.filterwarnings("ignore")
def test_what_is_exported_is_read_by_datasets(original, tmp_path):
    shown = run("store", "export", original.path, "--site", SITES[1], "--out", tmp_path / "parquet")
    assert f"data_files='{tmp_path / 'parquet'}/*.parquet'" in shown
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "parquet" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 640 and SITES[0] not in rows.column_names
    expected = original.gather(SITES[1], torch.tensor([333]))[0]
    assert torch.equal(torch.tensor(rows[333][SITES[1]]), expected)
    run("store", "export", original.path, "--format", "arrow", "--dtype", "float16", "--out", tmp_path / "arrow")
    assert len(datasets.load_from_disk(str(tmp_path / "arrow"))) == 40
    with pytest.raises(SaeError, match="--dtype does not apply to --format npy"):
        run("store", "export", original.path, "--format", "npy", "--dtype", "float16", "--out", tmp_path / "npy")


def test_exported_arrays_come_back_as_a_store(original, tmp_path):
    run("store", "export", original.path, "--format", "npy", "--out", tmp_path / "npy")
    sources = [f"{site}={tmp_path / 'npy' / site}.npy" for site in SITES]
    ids = ("--tokens", tmp_path / "npy" / "tokens.npy", "--document-ids", tmp_path / "npy" / "document_ids.npy")
    shown = run("store", "import", *sources, *ids, "--out", tmp_path / "back", "--name", "from afar", "--licence", "CC0-1.0")
    assert "model     not known" in shown and "from afar" in shown and "CC0-1.0" in shown
    back = ActivationStore.open(tmp_path / "back")
    assert torch.equal(back.tokens(), original.tokens()) and torch.equal(back.document_ids(), original.document_ids())
    for site in SITES:
        torch.testing.assert_close(back.gather(site, torch.arange(640)), original.gather(site, torch.arange(640)))


def test_files_of_one_site_are_joined_in_their_order_and_keys_pick_tensors(tmp_path):
    acts = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) + 1.0
    np.save(tmp_path / "a.npy", acts[:20].numpy())
    save_tensors(tmp_path / "b.safetensors", {"x": acts[20:], "y": torch.zeros(3)})
    parts = (tmp_path / "a.npy", f"{tmp_path / 'b.safetensors'}:x")
    run("store", "import", *parts, "--site", "clip", "--out", tmp_path / "one")
    run("store", "import", *(f"clip={part}" for part in parts), "--out", tmp_path / "two")
    for name in ("one", "two"):
        assert torch.equal(ActivationStore.open(tmp_path / name).gather("clip", torch.arange(50)), acts)


def test_a_folder_is_taken_for_a_cache_of_saelens(original, tmp_path):
    run("store", "export", original.path, "--format", "arrow", "--out", tmp_path / "cached")
    run("store", "import", tmp_path / "cached", "--site", SITES[0], "--out", tmp_path / "back")
    back = ActivationStore.open(tmp_path / "back")
    assert back.site_names == (SITES[0],)
    torch.testing.assert_close(back.gather(SITES[0], torch.arange(640)), original.gather(SITES[0], torch.arange(640)))
    for arguments, named in (
        ((tmp_path / "cached", "--context", 16), "--context does not apply to --format saelens"),
        ((tmp_path / "cached", tmp_path / "cached"), "FILE must be one folder for --format saelens, got 2"),
        ((tmp_path / "a.npy",), "does not say which site it is: write SITE="),
        ((tmp_path / "a.npy", "--site", "a", "--site", "b"), "--site must be one for files that do not say theirs"),
        ((f"a={tmp_path / 'a.npy'}",), "does not exist; give the path of a file"),
    ):
        with pytest.raises(SaeError, match=named):
            run("store", "import", *arguments, "--out", tmp_path / "x")


def test_imported_activations_cannot_be_captured_again_or_added_to(model, corpus, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    run("store", "import", f"clip={tmp_path / 'a.npy'}", "--out", tmp_path / "store")
    with pytest.raises(SaeError, match="holds imported activations: no model can add to it"):
        run("capture", model, "--corpus", corpus, "--out", tmp_path / "store", "--n-tokens", 100)
    damage(*(tmp_path / "store").glob("shards/*/clip.safetensors"), at=-5)
    assert "were imported: import them again into a new folder" in run("store", "verify", tmp_path / "store", status=1)
    with pytest.raises(SaeError, match="which no model can make again"):
        run("store", "repair", tmp_path / "store")


def test_an_error_is_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sae", "store", "info", str(tmp_path / "[x]")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().out == (
        f"error: STORE must be the folder of an activation store, {tmp_path / '[x]'} is none: it has no manifest.json\n"
    )
