"""`sae convert` as a user runs it: what it prints, what it refuses, and that nothing appears that does not do the same."""

import os
import re
import shutil

import pytest
import torch
from foreign_files import CASES, place_of, random_autoencoder
from typer.testing import CliRunner

from sae.cli import app
from sae.cli import convert as program
from sae.dictionaries.activations import ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.checkpoint import save_dictionary
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError, SaeError
from sae.interop import formats
from sae.interop.formats import FORMATS, identify, read

FOREIGN = [name for name in FORMATS if name != "sae"]


def convert(*arguments):
    """The program's result; an error of the workbench is raised."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def differences(output):
    """The largest differences of (codes, outputs) that were printed."""
    return [float(re.search(rf"^{name} +largest difference ([\d.e+-]+) of", output, re.MULTILINE)[1]) for name in ("codes", "outputs")]


@pytest.fixture
def ours(tmp_path):
    """A dictionary of our own with a scaling, saved."""
    scaling = Scaling(torch.randn(8, generator=torch.Generator().manual_seed(3)), 0.25)
    origin = {"site": "blocks.3.hook_resid_post", "model": "gpt2", "store_digest": "ab" * 32}
    dictionary = Autoencoder(AutoencoderConfig(d_in=8, d_sae=24, activation=TopK(k=4)), scaling, provenance=origin)
    with torch.no_grad():
        for parameter in (dictionary.W_enc, dictionary.b_enc, dictionary.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    save_dictionary(dictionary, tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.parametrize("name", FOREIGN)
def test_every_format_comes_in_and_goes_out_again(name, tmp_path):
    source = place_of(next(case for case in CASES if case.startswith(f"{name}/")))
    result = convert(source, tmp_path / "mine", "--format", "sae")
    assert re.search(rf"^read +.*: {name}$", result.output, re.MULTILINE)
    assert differences(result.output) == [0.0, 0.0]
    assert read(tmp_path / "mine").digest == read(source).digest
    back = convert(tmp_path / "mine", tmp_path / "back", "--format", name)
    assert max(differences(back.output)) < 1e-5
    assert identify(tmp_path / "back") == name


def test_what_was_read_is_said_and_what_the_format_does_not_hold(ours, tmp_path):
    output = convert(ours, tmp_path / "out", "--format", "saelens").output
    for pattern in (
        r"read +.*ours: sae", "kind +autoencoder", r"latents +24", "width +8", r"activation TopK \(k 4\)", "input +less a mean, times 0.25; less b_dec",
        r"site +blocks\.3\.hook_resid_post", "model +gpt2", "written +.*out: saelens", "note +the scaling was folded into the weights",
        "note +saelens does not hold store_digest",
    ):  # fmt: skip
        assert re.search(f"^{pattern}", output, re.MULTILINE), pattern
    assert max(differences(output)) < 1e-5
    acts = 3 * torch.randn(20, 8, generator=torch.Generator().manual_seed(5))
    written, original = read(tmp_path / "out"), read(ours)
    assert torch.allclose(written(acts), original(acts), atol=1e-5)
    assert torch.allclose(written.encode(acts).dense(), 4 * original.encode(acts).dense(), atol=1e-4)  # scale 0.25, folded


def test_notes_of_the_file_that_was_read_are_printed(tmp_path):
    noted = [case for case in CASES if read(place_of(case)).provenance.get("foreign", {}).get("notes")]
    source = place_of(noted[0])
    output = convert(source, tmp_path / "mine", "--format", "sae").output
    for note in read(source).provenance["foreign"]["notes"]:
        assert note[:100] in output


def test_what_a_format_cannot_hold_is_an_error_and_leaves_nothing(tmp_path):
    save_dictionary(MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=4)), tmp_path / "pursuit")
    with pytest.raises(ConfigError, match="Autoencoder"):
        convert(tmp_path / "pursuit", tmp_path / "new" / "out", "--format", "gemma_scope")
    assert list((tmp_path / "new").iterdir()) == []


def test_unknown_formats_and_sources_are_named(ours, tmp_path):
    with pytest.raises(ConfigError, match=r"format must be one of sae, saelens, .* got 'saelns'"):
        convert(ours, tmp_path / "out", "--format", "saelns")
    with pytest.raises(ConfigError, match="got 'mine'"):
        convert(ours, tmp_path / "out", "--format", "sae", "--from-format", "mine")
    with pytest.raises(FormatError, match="nowhere does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "out", "--format", "sae")
    with pytest.raises(FormatError, match=r"cfg\.json does not exist"):
        convert(ours, tmp_path / "out", "--format", "saelens", "--from-format", "sparsify")
    assert not (tmp_path / "out").exists()


def test_an_older_conversion_is_replaced_and_nothing_else_is(ours, tmp_path):
    target = tmp_path / "out"
    convert(ours, target, "--format", "saelens")
    before = read(target).digest
    save_dictionary(random_autoencoder(TopK(k=5)), tmp_path / "other")
    convert(tmp_path / "other", target, "--format", "saelens")
    assert read(target).digest != before
    for change in (
        lambda: (target / "notes.txt").write_text("mine"),
        lambda: (target / "sub").mkdir() or (target / "sub" / "notes.txt").write_text("mine"),
    ):
        change()
        files = sorted(path.read_bytes() for path in target.rglob("*") if path.is_file())
        with pytest.raises(ConfigError, match=r"TO must be new, empty, or .*: it holds .*notes\.txt"):
            convert(ours, target, "--format", "saelens")
        assert sorted(path.read_bytes() for path in target.rglob("*") if path.is_file()) == files
        for path in (target / "notes.txt", target / "sub" / "notes.txt"):
            path.unlink(missing_ok=True)
    shutil.rmtree(target)
    target.mkdir()
    convert(ours, target, "--format", "sparsify")
    with pytest.raises(ConfigError, match="TO must be new, empty, or an older dictionary of the format saelens"):
        convert(ours, target, "--format", "saelens")
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(ConfigError, match="TO must be new"):
        convert(ours, tmp_path / "file.txt", "--format", "sae")
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_a_dictionary_is_not_written_over_itself(ours):
    for target in (ours, ours.parent):
        with pytest.raises(ConfigError, match="TO must be"):
            convert(ours, target, "--format", "sae")
    assert read(ours).d_sae == 24


def test_a_format_of_one_file_is_written_as_one(tmp_path):
    source = place_of("openai_topk/topk")
    convert(source, tmp_path / "6.pt", "--format", "openai_topk")
    assert (tmp_path / "6.pt").is_file()
    convert(source, tmp_path / "6.pt", "--format", "openai_topk")
    assert read(tmp_path / "6.pt").digest == read(source).digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6.pt"]


def test_what_a_format_says_in_the_path_is_kept(tmp_path):
    source = place_of("openai_topk/topk")
    target = tmp_path / "resid_post_mlp_v5_32k" / "autoencoders" / "6.pt"
    output = convert(source, target, "--format", "openai_topk").output
    assert read(target).provenance == read(source).provenance
    assert "does not hold" not in output


def test_places_that_cannot_be_written_are_named(ours, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaeError, match=r"file cannot be made"):
        convert(ours, tmp_path / "file" / "out", "--format", "saelens")
    monkeypatch.setattr(program.os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(SaeError, match=r"new cannot be written"):
        convert(ours, tmp_path / "new" / "out", "--format", "saelens")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: d.b_dec.add_(0.05), "outputs differ by"),
        (lambda d: d.W_dec.neg_(), "outputs differ by"),
        (lambda d: d.b_enc.sub_(1.0), "other active latents"),
        (lambda d: d.W_enc.copy_(d.W_enc.flip(1)), "other active latents"),
    ],
    ids=range(4),
)
def test_a_writer_that_changes_the_dictionary_is_caught_and_nothing_appears(ours, tmp_path, monkeypatch, damage, words):
    own = formats.Format.write

    def wrong(self, dictionary, path):
        with torch.no_grad():
            changed = dictionary.fold()
            damage(changed)
        own(self, changed, path)

    monkeypatch.setattr(formats.Format, "write", wrong)
    with pytest.raises(FormatError, match=words):
        convert(ours, tmp_path / "out", "--format", "saelens")
    assert sorted(path.name for path in tmp_path.iterdir() if "home" not in path.name) == ["ours"]


def test_the_comparison_sees_codes_that_differ_while_outputs_agree():
    one = random_autoencoder(ReLU())
    other = random_autoencoder(ReLU())
    with torch.no_grad():
        other.W_enc.mul_(2.0)
        other.b_enc.mul_(2.0)
        other.W_dec.div_(2.0)
    found = program.compare(one, other)
    assert found.codes == pytest.approx(1.0)
    assert found.outputs < 1e-6
    assert found.changed == 0.0
    assert any("other units" in text for _, text in found.rows())
    with pytest.raises(FormatError, match="other widths"):
        program.compare(one, random_autoencoder(d_sae=25))
