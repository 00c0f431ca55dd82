"""Up to the hub and down again, against a hub on this machine; what a card says; and that nothing else reaches the network."""

import ast
import socket
import textwrap
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from fake_hub import fake_hub
from foreign_files import CASES, GOLDEN, place_of, random_autoencoder
from markdown_it import MarkdownIt

from sae.dictionaries.activations import JumpReLU, TopK
from sae.dictionaries.checkpoint import save_dictionary
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError, FormatError, SaeError
from sae.interop import hub as client
from sae.interop.card import code, facts, model_card, one_line
from sae.interop.formats import FORMATS, identify, read

ROOT = Path(__file__).parents[3]
NETWORK = {
    "huggingface_hub",
    "urllib.request",
    "urllib3",
    "requests",
    "httpx",
    "httpx2",
    "aiohttp",
    "socket",
    "http.client",
    "ftplib",
    "smtplib",
}
MAY_REACH = {
    "sae/interop/hub.py": "pushes and pulls dictionaries",
    "sae/models/text_encoder.py": "an encoder by its name on the hub",
    "sae/cli/serve.py": "listens on this machine",
}


@pytest.fixture
def hub(monkeypatch):
    """A running fake hub, and a library that may ask it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with fake_hub() as running:
        yield running


def folder_files(folder, under=""):
    """The files of a folder, as a repository has them."""
    head = f"{under}/" if under else ""
    return {f"{head}{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_pushed_is_pulled_again(hub, tmp_path):
    dictionary = random_autoencoder(TopK(k=4))
    dictionary.provenance["site"] = "blocks.3.hook_resid_post"
    address = client.push(dictionary, "me/layer-3", endpoint=hub.endpoint, token="hf_secret", private=True)
    assert address.startswith(f"{hub.endpoint}/me/layer-3/commit/")
    repository = hub.repositories["me/layer-3"]
    assert repository["private"]
    assert set(repository["files"]) == {".gitattributes", "README.md", "config.json", "weights.safetensors", "provenance.json"}
    card = repository["files"]["README.md"].decode()
    assert "# layer\\-3" in card and 'hub.pull("me/layer-3")' in card and "blocks.3.hook_resid_post" in card
    assert hub.tokens == {"Bearer hf_secret"}
    found = read(client.pull("me/layer-3", endpoint=hub.endpoint, cache=tmp_path / "cache"))
    assert found.digest == dictionary.digest and found.provenance == dictionary.provenance


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "sae"])
def test_every_format_goes_up_and_comes_down(hub, tmp_path, name):
    case = next(case for case in CASES if case.startswith(f"{name}/"))
    client.push(place_of(case), "me/foreign", format=name, endpoint=hub.endpoint)
    sent = hub.repositories["me/foreign"]["files"]
    assert all(sent[Path(file).name] == data for file, data in folder_files(GOLDEN / case).items() if Path(file).name in sent)  # as it was
    assert "expected.safetensors" not in sent
    place = client.pull("me/foreign", endpoint=hub.endpoint, cache=tmp_path)
    assert identify(place) == name
    assert read(place).digest == read(place_of(case)).digest


def test_a_dictionary_is_written_in_the_format_that_is_asked_for(hub, tmp_path):
    save_dictionary(random_autoencoder(TopK(k=4)), tmp_path / "run" / "dictionary")
    client.push(tmp_path / "run", "me/lens", format="saelens", endpoint=hub.endpoint)
    assert {"cfg.json", "sae_weights.safetensors"} <= set(hub.repositories["me/lens"]["files"])
    client.push(tmp_path / "run", "me/own", endpoint=hub.endpoint)
    assert {"config.json", "weights.safetensors", "provenance.json"} <= set(hub.repositories["me/own"]["files"])


def test_nothing_is_sent_that_the_format_cannot_hold(hub, tmp_path):
    pursuit = MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=4))
    with pytest.raises(ConfigError, match="Autoencoder"):
        client.push(pursuit, "me/mp", format="gemma_scope", endpoint=hub.endpoint)
    with pytest.raises(ConfigError, match="format must be one of"):
        client.push(pursuit, "me/mp", format="gemma", endpoint=hub.endpoint)
    with pytest.raises(ConfigError, match="repo_id must be a name on the hub"):
        client.push(pursuit, "me/my/mp", endpoint=hub.endpoint)
    with pytest.raises(FormatError, match="is of no format"):
        client.push(tmp_path, "me/mp", endpoint=hub.endpoint)
    assert hub.requests == []


def test_a_card_by_hand_stays_and_one_that_is_given_is_sent(hub):
    hub.add("me/x", {"README.md": b"by hand"})
    client.push(random_autoencoder(), "me/x", endpoint=hub.endpoint)
    assert hub.repositories["me/x"]["files"]["README.md"] == b"by hand"
    client.push(random_autoencoder(), "me/x", card="# given\n", endpoint=hub.endpoint)
    assert hub.repositories["me/x"]["files"]["README.md"] == b"# given\n"


def test_only_what_the_format_needs_is_downloaded(hub, tmp_path):
    extra = {"README.md": b"x", "model.bin": b"x", "train.py": b"x", "optimizer.pt": b"x", "other/ae.pt": b"x", ".gitattributes": b"x"}
    hub.add("them/sae", folder_files(GOLDEN / "gemma_scope/v2") | extra)
    place = client.pull("them/sae", endpoint=hub.endpoint, cache=tmp_path)
    assert hub.downloads() == ["config.json", "params.safetensors"]
    assert read(place).digest == read(GOLDEN / "gemma_scope/v2").digest


def test_a_folder_of_a_repository_is_chosen(hub, tmp_path):
    files = {}
    for case in ("gemma_scope/v1", "sparsify/layers.5", "llama_scope/plain"):
        files |= folder_files(GOLDEN / case, f"layer_1/{case.split('/')[0]}")
    files |= folder_files(GOLDEN / "dictionary_learning/top_k", "trainer_0")
    hub.add("them/many", files)
    pulled = {}
    for folder in ("layer_1/gemma_scope", "layer_1/sparsify/", "layer_1/llama_scope", "trainer_0", "trainer_0/ae.pt"):
        pulled[folder] = client.pull("them/many", subfolder=folder, endpoint=hub.endpoint, cache=tmp_path)
    assert [identify(place) for place in pulled.values()] == ["gemma_scope", "sparsify", "llama_scope", *["dictionary_learning"] * 2]
    assert pulled["trainer_0/ae.pt"].name == "ae.pt"
    assert read(pulled["layer_1/llama_scope"]).digest == read(GOLDEN / "llama_scope/plain").digest
    with pytest.raises(FormatError, match=r"them/many holds no dictionary .*: give one as subfolder") as caught:
        client.pull("them/many", endpoint=hub.endpoint, cache=tmp_path)
    assert "layer_1/gemma_scope" in str(caught.value)


def test_several_weights_in_one_folder_must_be_told_apart(hub, tmp_path):
    weights = place_of("openai_topk/tied").read_bytes()
    hub.add("them/openai", {"resid/5.pt": weights, "resid/6.pt": weights})
    with pytest.raises(FormatError, match=r"holds several files of weights: 5\.pt, 6\.pt; give one as subfolder"):
        client.pull("them/openai", subfolder="resid", endpoint=hub.endpoint, cache=tmp_path)
    assert hub.downloads() == []
    assert read(client.pull("them/openai", subfolder="resid/6.pt", endpoint=hub.endpoint, cache=tmp_path)).d_in > 0
    assert hub.downloads() == ["resid/6.pt"]


def test_a_download_with_code_in_it_is_refused_and_not_run(hub, tmp_path):
    class Marks:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"encoder.weight": torch.ones(2), "x": Marks()}, tmp_path / "ae.pt")
    hub.add("them/evil", {"ae.pt": (tmp_path / "ae.pt").read_bytes()})
    with pytest.raises(FormatError, match="never run"):
        client.pull("them/evil", endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_names_that_lead_out_of_the_folder_are_left_alone(hub, tmp_path):
    hub.add("them/evil", {"../ae.pt": b"x", "a/../../ae.pt": b"x", "/ae.pt": b"x"})
    for subfolder in ("", "..", "a/.."):
        with pytest.raises(FormatError, match="holds no dictionary"):
            client.pull("them/evil", subfolder=subfolder, endpoint=hub.endpoint, cache=tmp_path)
    assert hub.downloads() == []


def test_a_second_download_is_the_first_and_a_revision_is_kept(hub, tmp_path):
    hub.add("them/sae", folder_files(GOLDEN / "gemma_scope/v1"))
    first = client.pull("them/sae", endpoint=hub.endpoint, cache=tmp_path)
    assert all(f"/resolve/{first.name}/" in path for _, path in hub.requests if "/resolve/" in path)  # the state that was listed
    n = len([request for request in hub.requests if request[0] == "GET" and "resolve" in request[1]])
    assert client.pull("them/sae", revision=first.name, endpoint=hub.endpoint, cache=tmp_path) == first
    assert len([request for request in hub.requests if request[0] == "GET" and "resolve" in request[1]]) == n


def test_failures_are_said_in_plain_words(hub, tmp_path, monkeypatch):
    def fails(words, repo="them/sae", **options):
        with pytest.raises(SaeError) as caught:
            client.pull(repo, **{"endpoint": hub.endpoint, "cache": tmp_path} | options)
        assert words in str(caught.value) and repo in str(caught.value), str(caught.value)

    hub.add("them/sae", folder_files(GOLDEN / "gemma_scope/v1"), gated=True)
    fails("is gated: ask for access")
    fails("does not exist on the hub, or is private", repo="them/nothing")
    fails("no revision 'v9'", revision="v9")
    fails("must be a name on the hub", repo="https://example.org/x")
    hub.broken = True
    fails("the hub refused")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        fails("could not be reached", endpoint=f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fails("HF_HUB_OFFLINE is set")


def test_a_push_that_is_refused_is_said_in_plain_words(hub):
    hub.broken = True
    with pytest.raises(SaeError, match="the hub refused what was asked about me/x"):
        client.push(random_autoencoder(), "me/x", endpoint=hub.endpoint)


# cards


def test_a_card_says_what_is_known_and_that_the_rest_is_not():
    dictionary = random_autoencoder(JumpReLU())
    dictionary.provenance.update(
        site="blocks.3.hook_resid_post", model="openai-community/gpt2", store_digest="ab" * 32, training={"steps": 7}
    )
    card = model_card(dictionary, scores=[("FVU", "0.12", "1 - explained variance")], name="mine", licence="MIT", repo_id="me/mine")
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "license": "mit", "base_model": "openai-community/gpt2", "library_name": "sae-workbench", "tags": ["sparse-autoencoder", "interpretability"],
    }  # fmt: skip
    for text in (
        "- Latents: `24`",
        "`JumpReLU`",
        "`blocks.3.hook_resid_post`",
        "`FVU`: `0.12`; `1 - explained variance`",
        '"steps": 7',
        "ab" * 32,
        dictionary.digest,
    ):
        assert text in card
    bare = model_card(random_autoencoder(), scores=None, name="mine")
    for text in (
        "Site: not known",
        "Model: not known",
        "Licence: not stated",
        "Not known: none were given",
        "How it was trained is not known",
    ):
        assert text in bare
    assert "base_model" not in bare and "license" not in bare and "hub.pull" not in bare


def test_the_snippet_of_a_card_loads_the_dictionary(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "pull", lambda repo_id: tmp_path / repo_id.replace("/", "_"))
    dictionary = random_autoencoder(TopK(k=4))
    save_dictionary(dictionary, tmp_path / "me_mine")
    snippet = model_card(dictionary, scores=None, name="mine", repo_id="me/mine").split("```python\n")[1].split("```")[0]
    names = {"acts": torch.randn(3, 8)}
    exec(textwrap.dedent(snippet), names)
    assert torch.equal(names["codes"].dense(), dictionary.encode(names["acts"]).dense())


def test_a_card_of_a_foreign_dictionary_names_format_config_and_notes():
    for case in CASES[::4]:
        dictionary = read(place_of(case))
        card = model_card(dictionary, scores=None, name=case)
        assert f"Read from: `{case.split('/')[0]}`" in card
        for note in dictionary.provenance["foreign"]["notes"]:
            assert one_line(note) in card


HOSTILE = [
    "---\nlicense: evil\n---", "</code><script>alert(1)</script>", "[x](javascript:alert(1))", "` <b>x</b> `", "``` \n# heading\n", "![x](http://a/b.png)",
    "a\n\n# heading", "http://example.org/x", "@everyone", "x\u2028# y", "\u202eevil", "a: b\n- c", "\\` <i>", "``", "|a|b|", "<!-- x", "&lt;b&gt;",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_of_the_provenance_becomes_markup(text):
    dictionary = random_autoencoder()
    clean = model_card(dictionary, scores=[("a", "b", "c")], name="name")
    foreign = {"format": text, "config": {text: [text]}, "notes": [text]}
    dictionary.provenance.update(
        site=text, model=text, model_digest=text, store_digest=text, training={text: text}, target_site=text, foreign=foreign
    )
    card = model_card(dictionary, scores=[(text, text, text)], name=text)
    assert yaml.safe_load(card.split("\n---\n")[0]) == yaml.safe_load(clean.split("\n---\n")[0])
    assert all(character.isprintable() or character == "\n" for character in card)
    tokens = MarkdownIt("commonmark").parse(card.split("\n---\n", 1)[1])
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {
        "heading_open", "heading_close", "inline", "paragraph_open", "paragraph_close", "bullet_list_open", "bullet_list_close", "list_item_open",
        "list_item_close", "text", "text_special", "code_inline", "fence",
    }  # fmt: skip
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["What it is", "Scores", "Training", "Configuration in the file it was read from", "Loading it"]
    spans = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    assert one_line(text).strip() in {span.strip() for span in spans}


def test_code_spans_hold_any_backticks():
    for text in ("a", "`", "``a`", "a`` b```", "` x", "x `"):
        token = MarkdownIt("commonmark").parse(code(text))[1].children
        assert [(child.type, child.content) for child in token] == [("code_inline", text)]


def test_a_licence_or_a_repository_that_is_none_is_refused():
    for options in ({"licence": "MIT\nx: y"}, {"licence": ""}, {"repo_id": 'a/b")'}, {"repo_id": "../x"}):
        with pytest.raises(ConfigError, match="must be"):
            model_card(random_autoencoder(), scores=None, name="x", **options)


def test_long_texts_and_configurations_are_cut_and_it_is_said():
    dictionary = random_autoencoder()
    dictionary.provenance.update(site="s" * 10_000, training={"x": "y" * 30_000})
    card = model_card(dictionary, scores=None, name="n")
    assert len(card) < 5_000 and "…" in card and "too long for this page" in card


def test_facts_name_every_kind_of_dictionary():
    transcoder = dict(facts(random_autoencoder(TopK(k=4), d_out=6, skip=True, apply_b_dec_to_input=False)))
    assert (
        transcoder["kind"] == "transcoder with a linear path"
        and transcoder["width"] == "8 in, 6 out"
        and transcoder["activation"] == "TopK (k 4)"
    )
    pursuit = dict(facts(MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=4, selection="signed"))))
    assert pursuit["kind"] == "matching pursuit" and "k 4, selection signed" in pursuit["activation"]


# the network


def imported(path):
    """Names of modules that a file imports, wherever in it."""
    text = path.read_text()
    if not any(name.split(".")[0] in text for name in NETWORK):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_hub_reaches_the_network():
    reaching = {}
    for path in sorted([*ROOT.glob("sae/**/*.py"), *ROOT.glob("probes/**/*.py")]):
        found = sorted({name for name in imported(path) for root in NETWORK if name == root or name.startswith(f"{root}.")})
        if found:
            reaching[path.relative_to(ROOT).as_posix()] = found
    assert reaching.keys() == MAY_REACH.keys(), reaching


def test_the_hubs_library_is_imported_when_it_is_used():
    for node in ast.parse((ROOT / "sae/interop/hub.py").read_text()).body:
        assert "huggingface_hub" not in ast.unparse(node) or isinstance(node, ast.FunctionDef) or "import" not in ast.unparse(node)
