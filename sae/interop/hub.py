"""The Hugging Face hub: the one module of interop that reaches the network.

    hub.push(dictionary, "me/sae-layer-12")                            writes the files and a card, and uploads them
    dictionary = formats.read(hub.pull("me/sae-layer-12"))             downloads what the format needs, and nothing else

A download is chosen by the names of the files in one folder of the repository; torch files are fetched only where no other weights are there.
Whoever wants to be asked for access, or has a private repository, logs in with the hub's own program (`hf auth login`).
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, FormatError, SaeError
from sae.interop.card import check_repository, model_card
from sae.interop.formats import FORMATS, OWN, WEIGHTS, files_of, fitting, identify, named, read

CARD = "README.md"
PICKLES = (".pt", ".pth")


def push(
    dictionary: Dictionary | str | Path,
    repo_id: str,
    *,
    format: str = OWN,
    card: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    private: bool = False,
) -> str:
    """Upload a dictionary, or the folder or file of one, to a repository that is made if need be; returns the address of the upload.

    It is written in `format` and read again before anything is sent; a folder that is of this format already is sent as it is. Without a
    `card` a generated one is sent, unless the repository has one. Raises ConfigError for what the format cannot hold, SaeError when the hub
    cannot be reached or refuses.
    """
    check_repository(repo_id)
    with tempfile.TemporaryDirectory(prefix="sae-workbench-") as workplace:
        folder = Path(workplace) / "upload"
        folder.mkdir()
        known = _lay_down(dictionary, format, folder)
        with _explained(repo_id):
            from huggingface_hub import HfApi

            hub = HfApi(endpoint=endpoint, token=token)
            hub.create_repo(repo_id, private=private, exist_ok=True)
            if card is not None or not hub.file_exists(repo_id, CARD):
                text = card or model_card(known, scores=None, name=repo_id.rsplit("/", maxsplit=1)[-1], repo_id=repo_id)
                (folder / CARD).write_text(text, encoding="utf-8")
            done = hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Add a dictionary in the format of {format}")
    return str(done.commit_url)


def _lay_down(source: Dictionary | str | Path, format: str, folder: Path) -> Dictionary:
    """Put the files into the folder; returns the dictionary in them."""
    if isinstance(source, Dictionary) or identify(source) != format:
        dictionary = source if isinstance(source, Dictionary) else read(source)
        named(format).write(dictionary, folder)
    else:
        home, names = files_of(source, format)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(home / name, folder / name)
    return read(folder, format)


def pull(
    repo_id: str,
    *,
    subfolder: str = "",
    revision: str | None = None,
    cache: str | Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """The folder (or the one file) of a dictionary on the hub, downloaded into the hub's own cache or `cache`; for `formats.read`.

    `subfolder` is the folder in the repository, or a file of weights in it. Raises FormatError when it holds no known format, SaeError when
    the repository does not exist, is not open to you, or the hub cannot be reached.
    """
    check_repository(repo_id)
    with _explained(repo_id, revision):
        from huggingface_hub import HfApi, hf_hub_download

        found = HfApi(endpoint=endpoint, token=token).model_info(repo_id, revision=revision)
        choice = _choice([sibling.rfilename for sibling in found.siblings or []], subfolder.strip("/"), repo_id)
        options: dict[str, Any] = {"revision": found.sha, "cache_dir": cache, "endpoint": endpoint, "token": token}
        paths = [Path(hf_hub_download(repo_id, (choice.folder / name).as_posix(), **options)) for name in choice.names]
    folder = paths[0].parents[choice.names[0].count("/")]
    place = folder / choice.file if choice.file else folder
    identify(place)
    return place


class _Choice(NamedTuple):
    """Files of a repository that are worth downloading."""

    folder: PurePosixPath
    """The folder in the repository."""
    names: list[str]
    """The files, from there."""
    file: str
    """The one of them that was asked for by name; empty where the folder was."""


def _choice(names: Sequence[str], subfolder: str, repo_id: str) -> _Choice:
    """What to download of the repository's files. Raises FormatError where `subfolder` holds no dictionary, or more than one."""
    names = [name for name in names if not name.startswith("/") and "\\" not in name and ".." not in name.split("/")]
    asked = subfolder if subfolder in names else ""
    folder = PurePosixPath(asked).parent if asked else PurePosixPath(subfolder)
    inside = _below(names, folder)
    others = [name for name in inside if not name.endswith(WEIGHTS)]
    fits = fitting([asked.rsplit("/", maxsplit=1)[-1], *others] if asked else inside)
    plain = {name: files for name, files in fits.items() if not any(file.endswith(PICKLES) for file in files)}
    chosen = sorted({file for files in (plain or fits).values() for file in files})
    where = f"{repo_id}{f', folder {subfolder}' if subfolder else ''}"
    if not chosen:
        homes = sorted({str(PurePosixPath(name).parent) for name in names if name.endswith(WEIGHTS)} - {str(folder), "."})
        elsewhere = (
            f"; there are weights in {', '.join(homes[:8])}{' ...' if len(homes) > 8 else ''}: give one as subfolder" if homes else ""
        )
        raise FormatError(f"{where} holds no dictionary of a known format ({', '.join(FORMATS)}){elsewhere}")
    weights = [file for file in chosen if file.endswith(WEIGHTS)]
    if any(file.count("/") == other.count("/") and file != other for file in weights for other in weights):
        raise FormatError(f"{where} holds several files of weights: {', '.join(weights[:8])}; give one as subfolder")
    return _Choice(folder, chosen, asked.rsplit("/", maxsplit=1)[-1])


def _below(names: Sequence[str], folder: PurePosixPath) -> list[str]:
    """The files in a folder and one level below it, by their names from there."""
    head = "" if folder == PurePosixPath(".") else f"{folder}/"
    return [name.removeprefix(head) for name in names if name.startswith(head) and name.removeprefix(head).count("/") <= 1]


@contextlib.contextmanager
def _explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns the hub's failures inside the block into SaeErrors in plain words."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise SaeError(f"{repo_id} is gated: ask for access on its page, log in with `hf auth login`, and try again") from error
    except errors.RepositoryNotFoundError as error:
        raise SaeError(f"{repo_id} does not exist on the hub, or is private and you are not logged in (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise SaeError(f"{repo_id} has no revision {revision!r} on the hub") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"repo_id must be a name on the hub such as owner/name, got {repo_id!r}: {_first_line(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise SaeError(f"the hub is not asked about {repo_id}: HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        raise SaeError(f"the hub refused what was asked about {repo_id}: {_first_line(error)}") from error
    except (errors.HTTPError, errors.XetDownloadError, errors.EntryNotFoundError, OSError) as error:
        raise SaeError(f"the hub could not be reached for {repo_id}, or broke off: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", maxsplit=1)[0]
