"""Which width and sparsity describe handwritten digits most shortly, after Ayonrinde, Pearce & Sharkey 2024 (2410.11179) section 4.

    DL(d_sae, k; D) + d_sae d B / N          bits per digit, at the same distortion D for every dictionary

The paper's MNIST is not shipped with any library of this project; the 1797 digits of 8 x 8 pixels that come with scikit-learn stand in for
it, so the numbers are not the paper's. TopK autoencoders of every width and k (and pursuits of some) are trained on all digits, their codes
are quantised until the same share of variance is lost, and the lengths are compared with and without the price of the dictionary, with raw
pixels and with principal components. A second, smaller grid is trained on 1200 digits and tried on the other 597. Prints the tables and writes
a page with the curves and atoms.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from markupsafe import Markup
from sklearn.datasets import load_digits
from torch import Tensor

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.init import initialise_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.evaluation.description_length import Candidate, Choice, choose, grid
from sae.inspection.charts import colour_places, figure_chart
from sae.inspection.report import asset
from sae.inspection.report_data import Axis, Figure, Series
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
SPARSITIES = (1, 2, 4, 8, 16)
PURSUITS = ((16, 32, 64, 128), (2, 4, 8))
TARGETS = (0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
SPLIT = ((32, 64, 128, 256), (1, 2, 4, 8))
N_SPLIT = 1200
COUNTS = (500, 1797, 10_000, 60_000, 1_000_000)


def shuffled(rows: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of 256 rows drawn with replacement, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield rows[torch.randint(len(rows), (256,), generator=generator)]


def trainer(rows: Tensor, make: Callable[[int, int, Scaling], Dictionary], n_steps: int) -> Callable[[int, int], Dictionary]:
    """A function that trains a dictionary of width d_sae and sparsity k on the rows."""
    scaling = Scaling.fitted(rows)

    def trained(d_sae: int, k: int) -> Dictionary:
        dictionary = make(d_sae, k, scaling)
        initialise_(dictionary, rows, atoms="data", seed=1)
        for _ in train(dictionary, shuffled(rows, 0), ReconstructionObjective(), TrainConfig(n_steps=n_steps, learning_rate=4e-3)):
            pass
        return dictionary.eval()

    return trained


def autoencoder(d_sae: int, k: int, scaling: Scaling) -> Dictionary:
    return Autoencoder(AutoencoderConfig(d_in=len(scaling.mean), d_sae=d_sae, activation=TopK(k=k)), scaling)


def matching_pursuit(d_sae: int, k: int, scaling: Scaling) -> Dictionary:
    return MatchingPursuit(PursuitConfig(d_in=len(scaling.mean), d_sae=d_sae, k=k), scaling)


def total(candidate: Candidate) -> float:
    """Bits per digit with the dictionary's share."""
    assert candidate.length
    return candidate.length.bits + candidate.length.dictionary_bits


def print_table(title: str, choice: Choice, cost: Callable[[Candidate], float]) -> None:
    cells = {each.name: each for each in choice.candidates}
    print(f"\n{title}")
    print(f"{'d_sae':>8}" + "".join(f"{f'k={k}':>10}" for k in sorted({k for _, k in cells})))
    for width in sorted({d_sae for d_sae, _ in cells}):
        row = [cells.get((width, k)) for k in sorted({k for _, k in cells})]
        print(f"{width:>8}" + "".join(f"{'' if c is None else f'{cost(c):.1f}' if c.length else f'({c.fvu:.2f})':>10}" for c in row))


def describe(name: str, candidate: Candidate | None) -> None:
    if candidate is None or candidate.length is None:
        print(f"  {name:<34} none reaches the distortion")
        return
    length, (d_sae, k) = candidate.length, candidate.name
    print(
        f"  {name:<34} d_sae={d_sae} k={k}: {length.bits:.1f} bits (indices {length.index_bits:.1f}, values {length.value_bits:.1f}) "
        f"+ dictionary {length.dictionary_bits:.1f} = {total(candidate):.1f}; FVU {length.fvu:.3f} -> {length.fvu_quantised:.3f}; "
        f"learnt on the way {length.adaptive_bits:.1f}, as subsets {length.subset_bits:.1f}, fixed-length {length.naive_bits:.1f}"
    )


def rounded_atoms_error(dictionary: Dictionary, rows: Tensor, weight_bits: int) -> float:
    """By what share the squared error grows when every atom is rounded to `weight_bits` bits over its own range."""
    before = float((rows - dictionary(rows)).detach().square().sum())
    codes, exact = dictionary.encode(rows).detach(), dictionary.W_dec.detach().clone()
    step = 2 * exact.abs().amax(1, keepdim=True) / (2**weight_bits - 1)
    with torch.no_grad():
        dictionary.W_dec.copy_((exact / step).round() * step)
        after = float((rows - dictionary.decode(codes)).square().sum())
        dictionary.W_dec.copy_(exact)
    return after / before - 1


def curves(choice: Choice, cost: Callable[[Candidate], float]) -> tuple[Series, ...]:
    """Cost against width, one line for every k."""
    lines = []
    for k in sorted({k for _, k in (each.name for each in choice.candidates)}):
        cells = [each for each in choice.candidates if each.name[1] == k and each.length]
        if cells:
            mark = "points" if len(cells) == 1 else "line"
            lines.append(Series(f"k = {k}", tuple(c.d_sae for c in cells), tuple(cost(c) for c in cells), mark=mark))
    return tuple(lines)


def level(name: str, choice: Choice, bits: float) -> Series:
    """A dashed line across the widths that were reached."""
    reached = [each.d_sae for each in choice.candidates if each.length]
    return Series(name, (min(reached), max(reached)), (bits, bits), role="null")


def parts(choice: Choice) -> Figure:
    """Where the bits go at the chosen sparsity."""
    k = choice.shortest_with_dictionary.name[1]
    lengths = [each.length for each in choice.candidates if each.length and each.name[1] == k]
    widths = tuple(length.d_sae for length in lengths)
    series = (
        Series("indices", widths, tuple(length.index_bits for length in lengths)),
        Series("values", widths, tuple(length.value_bits for length in lengths)),
        Series("dictionary", widths, tuple(length.dictionary_bits for length in lengths)),
    )
    caption = "A wider dictionary needs longer indices and more atoms; it can afford coarser values at the same distortion."
    return Figure(f"Where the bits go, k = {k}", Axis("width d_sae", scale="log"), Axis("bits per digit"), series, caption=caption)


def figures(main: Choice, held_out: Choice, by_target: dict[float, Choice]) -> list[Figure]:
    width, bits, lost = Axis("width d_sae", scale="log"), Axis("bits per digit", scale="log"), Axis("share of variance lost")
    base = main.baselines
    n_all, n_test = (next(each.length.n_tokens for each in c.candidates if each.length) for c in (main, held_out))
    pca = level("PCA + basis", main, base.pca_bits + base.pca_basis_bits)
    first = Figure(
        f"Codes and dictionary, {n_all:,} digits", width, bits, (pca, *curves(main, total)),
        caption=f"Two-part length at {main.target_fvu:.0%} of variance lost: the codes of all digits and, once, the atoms. Points that are missing "
        "cannot reach the distortion however finely they are quantised. Dashed: principal components.",
    )  # fmt: skip
    second = Figure(
        f"Codes alone, {n_test} digits not trained on", width, Axis("bits per digit"),
        (level("PCA", held_out, held_out.baselines.pca_bits), *curves(held_out, lambda each: each.length.bits)),
        caption="The same distortion on new digits, from a smaller grid. Missing points reach it on the digits they were trained on, if at all: "
        "with k = 1 no width does.",
    )  # fmt: skip
    reached = {t: choice.shortest_with_dictionary for t, choice in by_target.items()}
    targets = [t for t, best in reached.items() if best]
    series = (
        Series("raw pixels", tuple(targets), tuple(by_target[t].baselines.dense_bits for t in targets)),
        Series("PCA + basis", tuple(targets), tuple(by_target[t].baselines.pca_bits + base.pca_basis_bits for t in targets)),
        Series("PCA", tuple(targets), tuple(by_target[t].baselines.pca_bits for t in targets)),
        Series("Gaussian bound", tuple(targets), tuple(by_target[t].baselines.gaussian_bits for t in targets), role="null"),
        Series("dictionary + codes", tuple(targets), tuple(total(reached[t]) for t in targets)),
    )
    third = Figure(
        "The shortest against the alternatives", lost, Axis("bits per digit"), series,
        caption="At every distortion the dictionary with the least codes + dictionary. The Gaussian bound is the least any code can use for "
        "a Gaussian of the same covariance, basis not paid.",
    )  # fmt: skip
    return [first, second, parts(main), third]


def atom_pictures(dictionary: Dictionary, rows: Tensor, most: int = 26) -> Markup:
    """The atoms that are active most often, as 8 x 8 pictures, and under each the mean digit with that atom at its mean strength."""
    codes = dictionary.encode(rows).detach()
    firings = torch.bincount(codes.indices[codes.values != 0], minlength=dictionary.d_sae)
    strength = codes.dense().sum(0) / firings.clamp(min=1)
    pictures = []
    for latent in firings.argsort(descending=True, stable=True)[:most].tolist():
        atom = dictionary.W_dec[latent].detach()
        alone = SparseCodes(torch.tensor([[latent]]), strength[latent].view(1, 1), torch.tensor([1]), dictionary.d_sae)
        digit = dictionary.decode(alone).detach()[0].clamp(0, 16)
        share = float(firings[latent]) / len(rows)
        label = f"atom {latent}, active on {share:.0%} of digits"
        both = picture(atom / atom.abs().max(), label) + picture(digit / 16, f"the mean digit with atom {latent}", ink=True)
        pictures.append(f"<figure>{both}<figcaption>{share:.0%}</figcaption></figure>")
    return Markup(f'<div class="atoms">{"".join(pictures)}</div>')


def picture(pixels: Tensor, label: str, *, ink: bool = False) -> str:
    """64 numbers in [-1, 1] as coloured cells, or in [0, 1] as ink."""
    if ink:
        cells = "".join(f'<i style="opacity:{value:.2f}"></i>' for value in pixels.tolist())
    else:
        steps = (31 * pixels).round().int().tolist()
        cells = "".join(f'<i class="{"a" if step > 0 else "b"}{abs(step)}"></i>' if abs(step) > 1 else "<i></i>" for step in steps)
    return f'<div class="atom{" ink" if ink else ""}" role="img" aria-label="{label}" title="{label}">{cells}</div>'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><link rel="icon" href="data:,"><style>{css}
.atoms {{ display: grid; grid-template-columns: repeat(auto-fill, 76px); gap: 14px 16px; margin: 12px 0 0; }}
.atoms figure {{ width: 76px; }} .atoms figcaption {{ text-align: center; font-size: 12px; margin: 3px 0 0; }}
.atom {{ display: grid; grid-template-columns: repeat(8, 1fr); aspect-ratio: 1; background: var(--panel); border: 1px solid var(--line); }}
.atom + .atom {{ margin-top: 3px; }} .ink i {{ background: var(--fg); }}
</style></head><body><main><div class="title"><h1>{title}</h1><p class="lead">{lead}</p></div>
<section class="part"><h2>Lengths</h2><div class="figures">{figures}</div></section>{atoms}</main></body></html>
"""


def write_page(path: Path, lead: str, drawn: list[Figure], shown: list[tuple[str, str, Markup]]) -> None:
    places = colour_places(drawn[:2])  # a k has one colour
    blocks = [
        f"<figure><h3>{f.title}</h3>{figure_chart(f, places if i < 2 else None)}<figcaption>{f.caption}</figcaption></figure>"
        for i, f in enumerate(drawn)
    ]
    parts = [f'<section class="part"><h2>{title}</h2><p class="prose">{text}</p>{pictures}</section>' for title, text, pictures in shown]
    title = "Which dictionary describes digits most shortly?"
    path.write_text(PAGE.format(title=title, css=asset("report.css"), lead=lead, figures="".join(blocks), atoms="".join(parts)))


def shown_atoms(dictionaries: dict, choice: Choice, rows: Tensor) -> list[tuple[str, str, Markup]]:
    """Atoms of the best dictionary that is too sparse, of the chosen one, and of one that is too dense."""
    reached = [each for each in choice.candidates if each.length]
    chosen = choice.shortest_with_dictionary
    most = max(k for _, k in (each.name for each in reached))
    least = min(k for _, k in (each.name for each in reached))
    sparse = min((each for each in reached if each.name[1] == least), key=total)
    dense = min((each for each in reached if each.name[1] == most), key=total)
    out = []
    for title, each in (("Too sparse", sparse), ("Chosen", chosen), ("Too dense", dense)):
        length = each.length
        text = (
            f"d_sae = {each.name[0]}, k = {each.name[1]}: {length.index_bits:.1f} bits of indices + {length.value_bits:.1f} of values + "
            f"{length.dictionary_bits:.1f} of dictionary = {total(each):.1f} bits per digit. Above, the atoms that are active most often, "
            "with the share of digits (orange adds ink, blue takes it away); below, the mean digit with the atom at its mean strength."
        )
        out.append((title, text, atom_pictures(dictionaries[each.name], rows)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=0.25, help="share of variance lost at which dictionaries are compared")
    parser.add_argument("--weight-bits", type=int, default=8, help="price of one weight of the dictionary")
    parser.add_argument("--steps", type=int, default=400, help="training steps of 256 digits per dictionary")
    parser.add_argument("--page", type=Path, default=Path("mdl.html"))
    parser.add_argument("--quick", action="store_true", help="fewer widths and steps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    widths, steps = (WIDTHS[1:5], 150) if options.quick else (WIDTHS, options.steps)
    digits = torch.tensor(load_digits().data, dtype=torch.float32)
    digits = digits[torch.randperm(len(digits), generator=torch.Generator().manual_seed(3))]
    dictionaries = dict(grid(trainer(digits, autoencoder, steps), widths, SPARSITIES))
    pursuits = dict(grid(trainer(digits, matching_pursuit, steps), PURSUITS[0][: 2 if options.quick else 4], PURSUITS[1]))
    some, new = digits[:N_SPLIT], digits[N_SPLIT:]
    split = dict(grid(trainer(some, autoencoder, steps), SPLIT[0][: 2 if options.quick else 4], SPLIT[1]))
    n_trained = len(dictionaries) + len(pursuits) + len(split)
    print(f"trained {n_trained} dictionaries in {time.perf_counter() - started:.0f} s")

    def compare(which: dict, data: Tensor, target: float) -> Choice:
        return choose(which.items(), data, target_fvu=target, weight_bits=options.weight_bits)

    by_target = {t: compare(dictionaries, digits, t) for t in sorted({*TARGETS, options.target})}
    main_choice, held_out = by_target[options.target], compare(split, new, options.target)
    with_pursuit = compare(pursuits, digits, options.target)
    what = f"FVU {options.target:g}; in brackets the FVU of dictionaries that do not reach it"
    print_table(
        f"Bits per digit, codes + dictionary, {len(digits)} digits, {options.weight_bits} bits a weight, {what}", main_choice, total
    )
    print_table(f"Bits per digit, codes alone, the same digits, {what}", main_choice, lambda each: each.length.bits)
    print_table(f"Bits per digit, codes alone, {len(new)} digits not trained on, {what}", held_out, lambda each: each.length.bits)
    print_table(f"Bits per digit, codes + dictionary, matching pursuit, {what}", with_pursuit, total)
    report_baselines(main_choice)
    print("\nShortest")
    describe("codes + dictionary", main_choice.shortest_with_dictionary)
    describe("codes alone", main_choice.shortest)
    describe("codes alone, new digits", held_out.shortest)
    describe("codes + dictionary, pursuit", with_pursuit.shortest_with_dictionary)
    print("\nAs the dictionary is shared by more digits (codes as on digits not trained on), the shortest is")
    for n in COUNTS:
        costs = [(c.length.bits + c.length.dictionary_bits * len(new) / n, c.name) for c in held_out.candidates if c.length]
        print(
            "".join(f"  {n:>9,} digits   d_sae={name[0]:<4} k={name[1]:<3} {cost:.1f} bits per digit" for cost, name in sorted(costs)[:1])
        )
    best = main_choice.shortest_with_dictionary
    if best is None:
        raise SystemExit(f"no dictionary loses as little as {options.target:.0%} of the variance; raise --target")
    untrained = choose([(best.name, trainer(digits, autoencoder, 1)(*best.name))], digits, target_fvu=options.target).candidates[0]
    grown = rounded_atoms_error(dictionaries[best.name], digits, options.weight_bits)
    print(
        f"  the chosen one before training: FVU {untrained.fvu:.2f}, {'reaches' if untrained.length else 'does not reach'} the distortion"
    )
    print(f"  rounding its atoms to {options.weight_bits} bits changes its squared error by {grown:+.2%}")
    lead = (
        f"scikit-learn's 8 x 8 digits as a stand-in for MNIST. At {options.target:.0%} of variance lost, {best.name[0]} atoms with {best.name[1]} active "
        f"per digit need {total(best):.1f} bits per digit with the dictionary ({len(digits)} digits, {options.weight_bits} bits a weight); principal "
        f"components need {main_choice.baselines.pca_bits + main_choice.baselines.pca_basis_bits:.1f}."
    )
    write_page(options.page, lead, figures(main_choice, held_out, by_target), shown_atoms(dictionaries, main_choice, digits))
    print(f"\n{options.page} written; {time.perf_counter() - started:.0f} s in all")
    if options.json:
        found = [
            {"name": f"{d_sae} x {k}", "value": total(each), "unit": "bits"}
            for each in main_choice.candidates
            if each.length
            for d_sae, k in [each.name]
        ]
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def report_baselines(choice: Choice) -> None:
    base = choice.baselines
    print("\nWithout a dictionary, same distortion, bits per digit")
    print(f"  raw pixels, rounded and entropy-coded  {base.dense_bits:.1f}")
    print(
        f"  principal components                   {base.pca_bits:.1f} + basis {base.pca_basis_bits:.1f} = {base.pca_bits + base.pca_basis_bits:.1f}"
    )
    print(f"  bound for a Gaussian of this covariance {base.gaussian_bits:.1f}")
    print(f"  every digit memorised, no distortion   {base.memorised_bits:.1f} + atoms {base.memorised_atoms_bits:.1f}")


if __name__ == "__main__":
    main()
