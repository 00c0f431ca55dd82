import pytest
from typer.testing import CliRunner

from sae.cli import app, main
from sae.storage import Key, ResultCache, user_cache_dir, write_json


@pytest.fixture
def cache():
    cache = ResultCache(user_cache_dir() / "results")
    for k in (16, 32):
        cache.build(Key("evaluation.fvu", 1, {"k": k}, {}), lambda folder: write_json(folder / "value.json", {"fvu": 0.2}))
    cache.build(Key("probe", 1, {}, {}), lambda folder: write_json(folder / "value.json", [1]))
    return cache


def run(*arguments):
    return CliRunner().invoke(app, ["cache", *arguments])


def test_ls_lists_every_result(cache):
    result = run("ls")
    assert result.exit_code == 0
    assert result.stdout.count("evaluation.fvu") == 2
    assert "3 results" in result.stdout


def test_verify_finds_nothing_wrong_with_a_sound_cache_and_names_a_damaged_file(cache):
    assert run("verify").exit_code == 0
    path = cache.path(Key("probe", 1, {}, {})) / "value.json"
    path.write_text("[2]\n\n")
    result = run("verify")
    assert result.exit_code == 1
    assert "value.json is damaged" in result.stdout.replace("\n", "")


def test_prune_removes_damaged_results_only_unless_told_otherwise(cache):
    (cache.path(Key("probe", 1, {}, {})) / "value.json").write_text("x")
    run("prune")
    assert [entry.function for entry in cache.entries()] == ["evaluation.fvu"] * 2
    run("prune", "--function", "evaluation.fvu")
    assert list(cache.entries()) == []


def test_an_error_of_the_workbench_is_one_line_and_status_2(cache, monkeypatch, capsys):
    path = cache.path(Key("probe", 1, {}, {})) / "provenance.json"
    path.write_text("{")
    monkeypatch.setattr("sys.argv", ["sae", "cache", "ls"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr().out
    assert "error:" in shown
    assert "provenance.json is not valid JSON" in shown.replace("\n", " ")
