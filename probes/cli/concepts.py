"""`probes concepts` and `probes hierarchy`: the linear representation of concepts in a model's unembedding, without a forward pass."""

from typing import Annotated, Literal

import typer

from probes.cli.output import Figures, Json, give, say

Model = Annotated[str, typer.Argument(metavar="MODEL", help="`default`, a folder, a .gguf file or a hub name.")]
Ridge = Annotated[float | None, typer.Option(help="Share of the mean eigenvalue added to the covariance, where it has no inverse.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn.")]


def _whitened(model: str, ridge: float | None):
    from probes.causal import CausalInnerProduct
    from probes.unembedding import read_unembedding
    from sae.models.assets import default_model

    unembedding = read_unembedding(default_model() if model == "default" else model)
    causal = CausalInnerProduct(ridge=ridge).fit(unembedding.rows)
    left_out = unembedding.n_vocab - len(unembedding)
    say(
        f"{len(unembedding):,} tokens of {unembedding.rows.shape[1]} coordinates ({left_out:,} repeated or unused left out); "
        f"condition number of their covariance {causal.condition_number_:,.0f}\n"
    )
    return unembedding, causal


def concepts(model: Model = "default", ridge: Ridge = None, seed: Seed = 0, json: Json = None, figures: Figures = None) -> None:
    """Directions of concepts such as singular => plural in MODEL's unembedding: do they exist, and are different ones orthogonal?

    Counterfactual pairs of words, the causal inner product, the leave-one-out test with random pairs as null, and cosines of concepts
    under the causal, the Euclidean and a random inner product (Park, Choe and Veitch, arXiv 2311.03658).
    """
    from probes.causal import concept_cosines, study_concepts, token_pairs

    unembedding, causal = _whitened(model, ridge)
    pairs = token_pairs(unembedding)
    found = {
        "pairs": pairs,
        "leave_one_out": study_concepts(pairs, unembedding, causal, seed=seed),
        "cosines": concept_cosines(pairs, unembedding, causal, seed=seed),
    }
    give(found, json=json, figures=figures)


def hierarchy(
    model: Model = "default",
    estimator: Annotated[Literal["lda", "mean"], typer.Option(help="How a category's vector is estimated.")] = "lda",
    more_than: Annotated[int, typer.Option(help="Words that a category of WordNet must have more than.", min=2)] = 50,
    edges: Annotated[int, typer.Option(help="Edges drawn for the statistics.", min=2)] = 100,
    categories: Annotated[int, typer.Option(help="Categories drawn for the held-out words.", min=2)] = 100,
    ridge: Ridge = None,
    seed: Seed = 0,
    json: Json = None,
    figures: Figures = None,
) -> None:
    """Categories of WordNet in MODEL's unembedding: does a category's vector hold for words it has not seen, does a child lie along its
    parent?

    Held-out projection and AUC, and the projection on a parent estimated without the child, beside nested random sets, a shuffled
    unembedding, and the orthogonality that random sets show too (Park, Choe, Jiang and Veitch, arXiv 2406.01506).
    """
    from probes.hierarchy import held_out_words, hierarchy_statistics, vocabulary_hierarchy

    unembedding, causal = _whitened(model, ridge)
    tree = vocabulary_hierarchy(unembedding, more_than=more_than)
    say(f"{len(tree)} categories with more than {more_than} words, {len(tree.edges())} edges between them\n")
    g = causal.transform(unembedding.rows)
    found = {
        "held_out_words": held_out_words(g, tree, estimator=estimator, n_categories=categories, seed=seed),
        "edges": hierarchy_statistics(g, tree, unwhitened=unembedding.rows, estimator=estimator, n_edges=edges, seed=seed),
    }
    give(found, json=json, figures=figures)
