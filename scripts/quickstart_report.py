"""From results to a report: sections, tables with their definitions, figures with their nulls, and the features."""

from typing import Any

from quickstart_stages import NAMES, SITE, Results

from sae.inspection.metrics import metric_table
from sae.inspection.query import TELLING_DEFINITION, telling_features
from sae.inspection.report_data import Axis, Column, Fact, FeatureList, Figure, ReportData, Row, Rule, Section, Series, Table


def report_data(results: Results) -> ReportData:
    """The whole report. Nothing in it depends on when or how fast the run was, so the same run gives the same report."""
    store, settings = results.store, results.settings
    manifest = store.manifest
    facts = [
        Fact("Language model", results.model["name"], f"{results.model['dtype']}, digest {results.model['digest'][:12]}"),
        Fact("Site", SITE, f"{store.site(SITE).width} dimensions"),
        Fact("Text", "State of the Union addresses (excerpts) and docstrings of installed packages", manifest.corpus.digest[:12]),
        Fact("Tokens", f"{store.n_tokens:,}", f"{store.statistics(SITE).n:,} usable: not first in a row, norm at most 6 times the median"),
        Fact(
            "Dictionaries",
            f"{settings.d_sae} latents, k = {settings.k}",
            "; ".join(f"{NAMES[k]} {d.digest[:12]}" for k, d in results.dictionaries.items()),
        ),
        Fact("Measured on", "held-out documents", "a tenth of the documents, never trained on"),
    ]
    return ReportData(
        title="SAE workbench: quickstart",
        subtitle=f"A TopK autoencoder and a matching pursuit of {settings.d_sae} latents on {results.model['name']}, side by side.",
        facts=tuple(facts),
        sections=(_dictionaries(results), _probes(results), _geometry(results)),
        features=tuple(_features(results, kind) for kind in results.indexes),
        footer=(
            "Text: State of the Union addresses, public domain; docstrings under the licences of their packages.",
            "Model: SmolLM2-135M-Instruct, Apache-2.0.",
        ),
    )


def _dictionaries(results: Results) -> Section:
    evaluation, settings = results.evaluation, results.settings
    values: dict[str, dict[str, float]] = {}
    for kind, scores in _ordered(evaluation["scores"]):
        down = evaluation["downstream"][kind]
        losses = {name: down[name] for name in ("ce_clean", "ce_spliced", "ce_recovered_mean", "ce_recovered_zero", "kl")}
        losses |= {"ce_mean_ablated": down["ce_mean"], "ce_zero_ablated": down["ce_zero"]}
        values[NAMES[kind]] = _scores(scores, settings.d_sae) | losses
    for kind, scores in _ordered(evaluation["untrained"]):
        values[f"{NAMES[kind]}, untrained"] = _scores(scores, settings.d_sae)
    at_k = evaluation["pca"]["fvu"][evaluation["pca"]["k"].index(settings.k)]
    values[f"PCA, {settings.k} components"] = {"fvu": at_k, "explained_variance": 1 - at_k, "l0": float(settings.k)}
    n_tokens = next(iter(evaluation["scores"].values()))["n_tokens"]
    notes = [
        "Untrained: random unit atoms, with a tied encoder for TopK: what the architecture gives by itself. "
        "PCA: the best linear code with as many real coefficients per token.",
        *(
            f"{NAMES[kind]}: CE spliced - CE clean = {down['ce_spliced'] - down['ce_clean']:.3f} ± {down['ce_increase_se']:.3f} nats per token "
            f"(standard error over rows), on {down['n_tokens']:,} predictions."
            for kind, down in _ordered(evaluation["downstream"])
        ),
        "First positions and norm outliers keep their own activation when the reconstruction is spliced in, and are not counted.",
    ]
    caption = f"Measured on {n_tokens:,} tokens of documents that training did not see."
    text = (
        "How much of an activation a sparse code keeps, and what the language model loses when the reconstruction takes the activation's place. Both "
        "dictionaries have the same number of latents and the same k; a pursuit chooses its latents one after the other, each for what the earlier "
        "ones left over."
    )
    table = metric_table(values, title="Both dictionaries, and what they are held against", caption=caption, notes=tuple(notes))
    return Section("Dictionaries", text, (table,), (_error_figure(results), _training_figure(results)))


def _scores(scores: dict[str, float], d_sae: int) -> dict[str, float]:
    kept = {name: scores[name] for name in ("fvu", "explained_variance", "cosine", "norm_ratio", "l0")}
    return kept | {"density": scores["l0"] / d_sae, "alive": 1 - scores["dead_share"]}


def _error_figure(results: Results) -> Figure:
    curves = [Series(NAMES[kind], _floats(curve["k"]), _floats(curve["fvu"])) for kind, curve in _ordered(results.evaluation["curves"])]
    pca = results.evaluation["pca"]
    return Figure(
        "Error against the number of active latents",
        Axis("latents per token, k", scale="log"),
        Axis("FVU"),
        (Series("PCA", _floats(pca["k"]), _floats(pca["fvu"]), role="null"), *curves),
        (Rule("x", float(results.settings.k), "k in training"),),
        "Each dictionary was trained at one k and is read here at others. Past it a TopK code gains little, or loses, since latents that training never "
        "let through come in; a pursuit goes on, since every further step can only lower its error.",
    )


def _training_figure(results: Results) -> Figure:
    series = tuple(Series(NAMES[kind], _floats(curve["step"]), _floats(curve["fvu"])) for kind, curve in results.training.items())
    return Figure(
        "Training",
        Axis("step", "1,024 tokens each", "log"),
        Axis("FVU of the batch"),
        series,
        caption="Before each step's update, on that step's batch.",
    )


def _probes(results: Results) -> Section:
    task, rows = results.probes["task"], results.probes["rows"]
    columns = (
        Column("Coordinates"),
        Column("Method", "", "How the k coordinates are chosen; a ranking sees the training documents of each fold only."),
        Column("k"),
        Column(
            "AUC", "", "Probability that a text of the positive class ranks above one of the other, within a fold; 0.5 by chance.", "higher"
        ),
        Column("95 % interval", "", "Bootstrap over documents."),
        Column("AUC, labels shuffled", "", "Mean ± standard deviation of the whole protocol on shuffled labels."),
        Column("Accuracy", "", "", "higher"),
        Column("F1", "", "2 TP / (2 TP + FP + FN); always saying yes gives 2p / (1 + p).", "higher"),
    )
    lines = []
    for row in rows:
        auc, role = row.scores.auc, "result"
        if row.control:
            role = "baseline" if row.method == "dense" else "control"
        null = "–" if auc.null_mean is None else f"{auc.null_mean:.3f} ± {auc.null_sd or 0:.3f}"
        cells = (row.features, row.method.replace("_", " "), row.k, auc.value, f"{auc.low:.3f} – {auc.high:.3f}", null)
        lines.append(Row((*cells, row.scores.accuracy.value, row.scores.f1.value), role))
    scores = rows[0].scores
    text = (
        f"Can {task['classes'][1]} be told from {task['classes'][0]} from a few coordinates? {task['n']} texts ({task['source']}), activations and latents "
        "averaged over each text's tokens. Sparse probes read k coordinates; the dense probe reads all and is what they are held against. The layer's MLP "
        "neurons, the coordinates of the residual stream, and latents are ranked, chosen and scored alike."
    )
    notes = (
        f"{scores.n_groups} documents in 5 folds that split documents; at least {scores.n_train} texts to train on in each. {task['licence']}.",
    )
    return Section("Sparse probes", text, (Table(f"Task: {task['name']}", columns, tuple(lines), "", notes),))


def _geometry(results: Results) -> Section:
    geometry = results.geometry
    columns = (
        Column("Dictionary"),
        Column("Coherence", "", "Largest |cosine| between two different atoms."),
        Column("Random coherence", "", "Mean of the same over dictionaries of random directions."),
        Column("Welch bound", "", "No dictionary of this size can have a smaller coherence: sqrt((n - d) / (d (n - 1)))."),
        Column("Nearest cosine", "", "Median over atoms of the cosine with the nearest other atom."),
        Column("Random nearest", "", "Median of the same for random directions."),
        Column("Effective rank", "", "exp of the entropy of the shares of W_dec^T W_dec's eigenvalues; at most the input width."),
        Column("Participation ratio", "", "(sum l)^2 / sum l^2 of the same eigenvalues."),
    )
    rows = []
    for kind in results.dictionaries:
        one = geometry[kind]
        near = one["nearest"]
        cells = (one["coherence"]["value"], one["coherence"]["null_mean"], one["welch"], near["median"], near["null_median"])
        rows.append(Row((NAMES[kind], *cells, one["effective_rank"], one["participation_ratio"])))
    acts = geometry["activations"]
    two, null = acts["two_nn"], acts["two_nn_gaussian"]
    dimension = Table(
        "Dimension of the activations",
        (Column("Points"), Column("TwoNN dimension", "", "From the ratio of the distances to the two nearest neighbours (Facco et al. 2017)."),
         Column("95 % low"), Column("95 % high"), Column("Participation ratio", "", "Linear dimension: of the covariance's eigenvalues."),
         Column("Effective rank", "", "Linear dimension: exp of the entropy of the eigenvalues' shares.")),
        (Row(("activations", two["value"], two["low"], two["high"], acts["participation_ratio"], acts["effective_rank"])),
         Row(("Gaussian with the same spectrum", null["value"], null["low"], null["high"], None, None), "control", "no curvature, no clusters")),
        f"{two['n_points']:,} held-out activations. Above about 10 a nearest-neighbour estimate from this many points is a lower bound.",
    )  # fmt: skip
    title = "Atoms against random directions"
    return Section(
        "Geometry",
        "How the atoms lie to one another. Every number stands beside what random directions of the same number and width give.",
        (Table(title, columns, tuple(rows)), dimension),
        (_babel_figure(geometry), _together_figure(geometry), _nearest_figure(geometry), _spectrum_figure(acts)),
    )


def _babel_figure(geometry: dict[str, Any]) -> Figure:
    series = []
    for kind, name in NAMES.items():
        values = geometry[kind]["babel"]["values"]
        series.append(Series(name, _floats(range(1, len(values) + 1)), _floats(values)))
    null = geometry["top_k"]["babel"]["null_mean"]
    series.insert(0, Series("random directions", _floats(range(1, len(null) + 1)), _floats(null), role="null"))
    return Figure(
        "Babel function of all atoms", Axis("other atoms, r", scale="log"), Axis("largest sum of r |cosines| of one atom"), tuple(series),
        caption="The worst case: how much r other atoms together can look like one atom.",
    )  # fmt: skip


def _together_figure(geometry: dict[str, Any]) -> Figure:
    series = []
    for kind, name in NAMES.items():
        curve = geometry[kind]["babel_coactivated"]
        x = _floats(range(1, len(curve["values"]) + 1))
        series.append(Series(f"{name}, atoms dealt at random", x, _floats(curve["null_mean"]), role="null"))
        series.append(Series(name, x, _floats(curve["values"])))
    return Figure(
        "Babel function of atoms that fire together", Axis("other atoms, r", scale="log"), Axis("mean over tokens"), tuple(series),
        caption="The same over the atoms of one token's code, averaged over tokens; in grey when the dictionary's atoms are dealt to the latents at random.",
    )  # fmt: skip


def _nearest_figure(geometry: dict[str, Any]) -> Figure:
    edges = _floats(geometry["top_k"]["nearest"]["edges"])
    series = [Series("random directions", edges, _floats(geometry["top_k"]["nearest"]["null"]), mark="bars", role="null")]
    series += [Series(name, edges, _floats(geometry[kind]["nearest"]["atoms"]), mark="bars") for kind, name in NAMES.items()]
    caption = "Latents whose nearest atom is far closer than chance come in families: split, inflected or synonymous features."
    return Figure("Cosine with the nearest atom", Axis("cosine"), Axis("atoms"), tuple(series), caption=caption)


def _spectrum_figure(acts: dict[str, Any]) -> Figure:
    shares = [share for share in acts["eigenvalue_shares"] if share > 0]
    return Figure(
        "Spectrum of the activations", Axis("principal component", scale="log"), Axis("share of the variance", scale="log"),
        (Series("activations", _floats(range(1, len(shares) + 1)), _floats(shares)),),
        caption="A straight line is a power law: no number of components is a natural place to stop.",
    )  # fmt: skip


def _features(results: Results, kind: str) -> FeatureList:
    index = results.indexes[kind]
    chosen = telling_features(index, results.settings.n_cards)
    return FeatureList(NAMES[kind], TELLING_DEFINITION, tuple(index[feature.index].record for feature in chosen))


def _ordered(by_kind: dict[str, Any]) -> list[tuple[str, Any]]:
    """The entries in the order in which dictionaries are shown."""
    return [(kind, by_kind[kind]) for kind in NAMES]


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
