"""`sae doctor` as a user runs it: on a dictionary in order, on one that was spoilt, on one without a site, in a language model."""

import json

import pytest
import torch
from tiny import tiny_hf_model, tiny_tokenizer
from tiny_store import D_IN, SITES, tiny_store
from typer.testing import CliRunner

from sae.cli import app
from sae.dictionaries.activations import JumpReLU, ReLU
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.checkpoint import save_dictionary
from sae.errors import ConfigError


def both_signs(mean, scale=1.0, activation=None, **provenance):
    """z = ReLU(±(x - b_dec)): every activation is reconstructed exactly."""
    config = AutoencoderConfig(d_in=len(mean), d_sae=2 * len(mean), activation=activation or ReLU())
    dictionary = Autoencoder(config, provenance=provenance)
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.cat([torch.eye(len(mean)), -torch.eye(len(mean))]))
        dictionary.W_enc.copy_(dictionary.W_dec.T * scale)
        dictionary.b_dec.copy_(mean)
    return dictionary


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    store = tiny_store(folder / "acts")
    mean = store.statistics(SITES[0]).mean.float()
    save_dictionary(both_signs(mean, site=SITES[0]), folder / "sound")
    save_dictionary(both_signs(mean), folder / "nameless")
    silent = JumpReLU(threshold=float(store.norms(SITES[0]).max()))
    save_dictionary(both_signs(mean, activation=silent, site=SITES[0], model="gpt2", model_digest="0" * 64), folder / "spoilt")
    save_dictionary(both_signs(torch.zeros(D_IN), site="blocks.1.hook_resid_post"), folder / "of the model")
    transcoder = AutoencoderConfig(d_in=D_IN, d_sae=40, activation=ReLU(), d_out=D_IN)
    save_dictionary(Autoencoder(transcoder, provenance={"site": SITES[0], "target_site": SITES[1]}), folder / "transcoder")
    save_dictionary(Autoencoder(transcoder, provenance={"site": SITES[0]}), folder / "aimless transcoder")
    tiny_hf_model(0, n_layers=2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


def doctor(*arguments):
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments)], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_without_tokens_it_says_what_was_read_and_what_to_give(made):
    result = doctor(made / "sound")
    assert result.exit_code == 0
    for text in ("SAE workbench", "autoencoder", "ReLU", "64", "less b_dec", "all 1", SITES[0], "--store"):
        assert text in result.output


def test_nothing_is_wrong_with_a_dictionary_in_order(made):
    result = doctor(made / "sound", "--store", made / "acts", "--n-tokens", 400)
    assert result.exit_code == 0, result.output
    assert "0.0000" in result.output
    assert "Nothing looks wrong" in result.output


def test_what_is_wrong_is_said_in_words_and_ends_with_status_1(made):
    result = doctor(made / "spoilt", "--store", made / "acts", "--n-tokens", 400)
    assert result.exit_code == 1
    assert "no latent fires" in result.output
    assert "the threshold or k does not belong to these weights" in result.output
    assert "multiplied by" in result.output
    assert "the model gpt2" in result.output
    assert "digest 000000000000" in result.output


def test_the_record_as_json_holds_scores_complaints_and_everything_that_was_tried(made):
    record = json.loads(doctor(made / "spoilt", "--store", made / "acts", "--n-tokens", 400, "--json").output)
    assert {"silent", "FVU", "origin"} <= {complaint["name"] for complaint in record["complaints"]}
    assert record["scores"]["fvu"] == pytest.approx(1, abs=0.05)
    assert len(record["tried"]) > 40
    assert record["site"] == SITES[0]


def test_a_dictionary_that_states_no_site_asks_for_one(made):
    with pytest.raises(ConfigError, match=r"--site must be a site of width 32 .*states none"):
        doctor(made / "nameless", "--store", made / "acts")
    assert doctor(made / "nameless", "--store", made / "acts", "--site", SITES[0]).exit_code == 0


def test_in_a_language_model_it_adds_what_the_reconstruction_does_to_it(made):
    result = doctor(made / "of the model", "--model", made / "model", "--n-tokens", 128)
    assert result.exit_code == 0, result.output
    assert "CE recovered" in result.output
    assert " 1.000 " in result.output


def test_a_transcoder_is_scored_against_the_site_that_it_explains(made):
    result = doctor(made / "transcoder", "--store", made / "acts", "--n-tokens", 400)
    assert result.exit_code == 1
    assert "FVU is" in result.output
    assert "norm ratio" not in result.output
    with pytest.raises(ConfigError, match="states none"):
        doctor(made / "aimless transcoder", "--store", made / "acts")


def test_what_is_no_dictionary_and_too_few_tokens_are_refused(made):
    with pytest.raises(ConfigError, match="--n-tokens"):
        doctor(made / "sound", "--n-tokens", 3)
    with pytest.raises(ValueError, match="no format that is known"):
        doctor(made / "acts")
