"""`sae convert`: a dictionary of one format as one of another.

sae convert gemma/layer_12/width_16k/average_l0_82 mine/gemma --format sae
sae convert runs/topk out/for_saelens --format saelens
sae convert trainer_0 out --format saelens --from-format dictionary_learning
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float
from torch import Tensor

from sae.cli.terminal import console, stoppable
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, FormatError, SaeError
from sae.interop.card import facts, one_line
from sae.interop.formats import FORMATS, Format, files_of, identify, named
from sae.storage.atomic import replace_folder

N_NAMES = 4
"""Last parts of a path that a format may look at."""
N_ROWS = 256
SEED = 0
TOLERANCE = 1e-3
"""Largest relative difference of outputs that passes; what a format holds exactly differs by some 1e-6."""
MAX_CHANGED_ROWS = 0.05
"""Largest share of rows whose active latents may differ: rounding moves a value over a threshold now and then."""


def convert_command(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="Folder or file of a dictionary.")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="Folder (or file) to write.")],
    *,
    format: Annotated[str, typer.Option(help=f"What to write: {', '.join(FORMATS)}.")],
    from_format: Annotated[str | None, typer.Option(help="What FROM is, where its files do not tell.")] = None,
) -> None:
    """Read a dictionary of any known format and write it in another.

    What was written is read again, and its codes and outputs on random rows are compared with the original's, before TO appears.
    """
    wanted, source, target = named(format), source.expanduser().resolve(), target.expanduser().resolve()
    found = from_format or identify(source)
    _refuse_foreign(source, target, wanted)
    dictionary = named(found).read(source)
    _print([("read", f"{source}: {found}"), *facts(dictionary)])
    with stoppable("nothing was written"), tempfile.TemporaryDirectory(prefix=".partial-", dir=_parent(target)) as workplace:
        made = Path(workplace).joinpath(*target.parts[1:][-N_NAMES:])  # some formats say in the path what a file holds
        made.parent.mkdir(parents=True, exist_ok=True)
        wanted.write(dictionary, made)
        written = wanted.read(made)
        agreement = compare(dictionary, written)
        agreement.check(wanted)
        _move(made, target)
    _print([("written", f"{target}: {format}"), *agreement.rows(), *_lost(dictionary, written, wanted)])


@dataclass(frozen=True)
class Agreement:
    """How far what was written does the same as what was read."""

    codes: float
    """Largest difference of codes, relative to the largest code of the row."""
    outputs: float
    """Largest difference of outputs, relative to the largest output of the row."""
    changed: float
    """Share of rows whose active latents are others; they are left out of the differences."""
    folded: bool
    """Whether the codes are those of the original with its scaling folded into its weights."""

    def check(self, format: Format) -> None:
        """Raises FormatError when the difference is more than rounding."""
        if self.changed > MAX_CHANGED_ROWS or self.outputs > TOLERANCE:
            raise FormatError(
                f"what was written as {format.name} does not do the same as the original: outputs differ by {self.outputs:.1e} of the "
                f"row's largest and {self.changed:.1%} of {N_ROWS} rows have other active latents; nothing was kept"
            )

    def rows(self) -> list[tuple[str, str]]:
        """What to print of it."""
        rows = [("codes", f"largest difference {self.codes:.1e} of the row's largest code, on {N_ROWS} random rows")]
        rows += [("outputs", f"largest difference {self.outputs:.1e} of the row's largest output")]
        if self.changed:
            rows.append(("note", f"{self.changed:.1%} of the rows have other active latents: values that rounding moved over a threshold"))
        if self.folded:
            rows.append(
                ("note", "the scaling was folded into the weights: codes are in units of activations, 1/scale times the original's")
            )
        if self.codes > TOLERANCE:
            rows.append(("note", "codes differ by more than rounding while outputs agree: the format keeps latents in other units"))
        return rows


@torch.no_grad()
def compare(original: Dictionary, written: Dictionary) -> Agreement:
    """How far two dictionaries agree on random rows of norms from 0.1 to 1000 times what the scaling expects."""
    if (original.d_in, original.d_sae, original.W_dec.shape[1]) != (written.d_in, written.d_sae, written.W_dec.shape[1]):
        raise FormatError(
            f"what was written has other widths: {written.d_in} and {written.d_sae}, not {original.d_in} and {original.d_sae}"
        )
    acts = random_rows(original)
    found = written.encode(acts).dense()
    as_read = original.encode(acts).dense()
    candidates = [(as_read, False)]
    if not original.scaling.is_identity and written.scaling.is_identity:
        candidates.append((as_read / original.scaling.scale, True))
    expected, folded = min(candidates, key=lambda candidate: float((candidate[0] - found).abs().max()))
    same = ((expected != 0) == (found != 0)).all(1)
    outputs, back = original(acts)[same], written(acts)[same]
    return Agreement(_relative(expected[same], found[same]), _relative(outputs, back), 1 - float(same.float().mean()), folded)


def random_rows(dictionary: Dictionary) -> Float[Tensor, "n d_in"]:
    """Random directions of many lengths, around the scaling's mean."""
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randn(N_ROWS, dictionary.d_in, generator=generator)
    lengths = 10 ** (4 * torch.rand(N_ROWS, 1, generator=generator) - 1)
    return dictionary.scaling.undo(rows / rows.norm(dim=1, keepdim=True) * lengths)


def _relative(expected: Float[Tensor, "n d"], found: Float[Tensor, "n d"]) -> float:
    """The largest difference of a row relative to its largest expected value; rows that are expected to be 0 are compared as they are."""
    if not len(expected):
        return 0.0
    largest = expected.abs().amax(1)
    return float(((expected - found).abs().amax(1) / torch.where(largest > 0, largest, 1.0)).max())


def _refuse_foreign(source: Path, target: Path, format: Format) -> None:
    """Raises ConfigError when something is at `target` that is not an older dictionary of this format alone, or when it is the source."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if target == source or target in source.parents:
        raise ConfigError(f"TO must be another place than FROM, got {target} for both")
    folder, own = files_of(target, format.name)
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()] if target.is_dir() else own[:1]
    strange = sorted(set(there) - set(own))
    if not own or strange or identify(target) != format.name:
        what = f"it holds {', '.join(strange[:5])}" if strange else "it holds something else"
        raise ConfigError(f"TO must be new, empty, or an older dictionary of the format {format.name} and nothing else; {target}: {what}")


def _parent(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaeError(f"{target.parent} cannot be made: {error}") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise SaeError(f"{target.parent} cannot be written: choose a folder you may write to, or change its permissions")
    return target.parent


def _move(made: Path, target: Path) -> None:
    """Give what was made its name; what was there before goes."""
    if made.is_dir():
        replace_folder(made, target)
    else:
        made.replace(target)


def _lost(original: Dictionary, written: Dictionary, format: Format) -> list[tuple[str, str]]:
    """What was known of the original and is not in what was written."""
    kept = written.provenance
    missing = [key for key, value in original.provenance.items() if key != "foreign" and kept.get(key) != value]
    return [("note", f"{format.name} does not hold {', '.join(missing)} of what is known of the dictionary")] if missing else []


def _print(rows: list[tuple[str, str]]) -> None:
    for label, text in rows:
        console.print(f"{label:<10} {one_line(text)}", highlight=False, soft_wrap=True, markup=False)
