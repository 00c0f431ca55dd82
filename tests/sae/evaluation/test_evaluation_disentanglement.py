"""Disentanglement: 1 for an oracle, 1/2 for nothing, everything and what is entangled, without a language model and through one."""

import dataclasses

import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from sklearn.feature_selection import f_classif
from tiny import tiny_language_model

from sae.dictionaries.activations import ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.errors import ConfigError
from sae.evaluation.attribute_orders import order_by_effect, order_by_mask, order_by_separation, separation
from sae.evaluation.batteries import Battery, Inputs, perform, plan
from sae.evaluation.disentanglement import (
    DirectionExchange,
    LatentExchange,
    Margins,
    Questions,
    choose,
    draw_pairs,
    effects,
    first_pairs,
    first_units,
    principal_directions,
    random_units,
    scores,
    split_entities,
)
from sae.evaluation.entities import EntityTable, LanguageReader, ask, cities
from sae.evaluation.suite.attributes import DISENTANGLEMENT, DisentanglementConfig
from sae.models.edits import Edit
from sae.models.language_model import LanguageModel
from sae.models.sites import ModelShape, Site
from sae.storage import ResultCache

SIZES = (4, 3, 5)
STARTS = (0, 4, 7)
D_IN = 16
FEATURES = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(5))).Q


class LinearReader:
    """Answers by the direction of the largest inner product among those of the attribute."""

    def __init__(self, questions):
        self.questions = questions

    def answers(self, x, questions):
        shown, attribute = x @ FEATURES[: sum(SIZES)].T, self.questions.attribute[questions]
        own = torch.stack(
            [(torch.arange(sum(SIZES)) >= s) & (torch.arange(sum(SIZES)) < s + n) for s, n in zip(STARTS, SIZES, strict=True)]
        )
        return torch.where(own[attribute], shown, -torch.inf).argmax(dim=1)

    def margins(self, x, questions, towards, away):
        slopes = FEATURES[towards] - FEATURES[away]
        return Margins((x * slopes).sum(dim=1), slopes)


def planted_questions(n_entities=60, seed=0):
    """Entities with an answer to each of three attributes, drawn independently; activations are the sums of the answers' directions, and of the
    sentence's."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([s + torch.randint(n, (n_entities,), generator=generator) for s, n in zip(STARTS, SIZES, strict=True)], dim=1)
    entity, attribute, half = (
        each.flatten() for each in torch.meshgrid(torch.arange(n_entities), torch.arange(3), torch.arange(2), indexing="ij")
    )
    template = 2 * attribute + half
    sentences = torch.randn(6, D_IN - sum(SIZES), generator=generator) @ FEATURES[sum(SIZES) :]
    acts = FEATURES[values[entity]].sum(dim=1) + sentences[template]
    return Questions(("a", "b", "c"), entity, attribute, template, values[entity, attribute], values, acts)


def relu_dictionary(atoms, encoder=None, bias=-0.1, decoder_bias=0.02):
    """x -> relu(W_enc (x - b_dec) + b_enc)."""
    made = Autoencoder(AutoencoderConfig(d_in=atoms.shape[1], d_sae=len(atoms), activation=ReLU()))
    with torch.no_grad():
        made.W_dec.copy_(atoms)
        made.W_enc.copy_((atoms if encoder is None else encoder).T)
        made.b_enc.fill_(bias)
        made.b_dec.copy_(decoder_bias * FEATURES.sum(dim=0)[: atoms.shape[1]] if atoms.shape[1] == D_IN else torch.zeros(atoms.shape[1]))
    return made.eval()


def parts(questions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    training = split_entities(len(questions.values), 0.5, generator=generator)
    return training, draw_pairs(questions, training, 40, generator=generator), draw_pairs(questions, ~training, 60, generator=generator)


def measured(questions, exchange, order="effect", sizes=(1, 2, 3, 4, 5, 8, 16)):
    training, first, second = parts(questions)
    reader = LinearReader(questions)
    if order == "effect":
        ranked = order_by_effect(reader, questions, first, exchange)
    elif order == "mask":
        ranked = order_by_mask(reader, questions, first, exchange, n_steps=12, generator=torch.Generator().manual_seed(0))
    else:
        ranked = order_by_separation(questions, exchange.coordinates, training[questions.entity])
    choice = choose(reader, questions, first, exchange, ranked, sizes)
    return choice, effects(reader, questions, second, exchange, choice.chosen)


@pytest.mark.parametrize("order", ["effect", "mask", "separation"])
def test_an_oracle_scores_one_with_exactly_the_latents_of_each_attribute(order):
    questions = planted_questions()
    exchange = LatentExchange(relu_dictionary(FEATURES[: sum(SIZES)]), questions.acts)
    choice, found = measured(questions, exchange, order)
    assert torch.equal(found.table(), torch.ones(3, 3, dtype=torch.float64))
    assert choice.sizes == SIZES and choice.training == (1.0, 1.0, 1.0)
    for mask, start, size in zip(choice.chosen, STARTS, SIZES, strict=True):
        assert exchange.latents[mask].tolist() == list(range(start, start + size))


def test_latents_of_whole_entities_score_exactly_one_half():
    questions = planted_questions()
    atoms = torch.unique(questions.acts, dim=0)
    one = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=len(atoms), activation=TopK(k=1)))
    with torch.no_grad():
        one.W_dec.copy_(atoms)
        one.W_enc.copy_((atoms / atoms.norm(dim=1, keepdim=True) ** 2).T)
        one.b_enc.fill_(0.03)
        one.b_dec.zero_()
    for order in ("effect", "separation"):
        _, found = measured(questions, LatentExchange(one.eval(), questions.acts), order)
        assert found.table()[:, 2].tolist() == pytest.approx([0.5] * 3, abs=0.1)


def test_directions_without_relation_to_the_attributes_score_far_less_than_the_oracle():
    questions = planted_questions()
    values = []
    for seed in range(6):
        turned = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(seed))).Q
        atoms = torch.cat([turned, -turned])
        exchange = LatentExchange(relu_dictionary(atoms, bias=0.0), questions.acts)
        units = random_units(exchange.coordinates.shape[1], (16, 16, 16), generator=torch.Generator().manual_seed(seed))
        _, _, second = parts(questions)
        values.append(effects(LinearReader(questions), questions, second, exchange, units).table()[:, 2].mean())
    assert float(torch.stack(values).mean()) == pytest.approx(0.5, abs=0.06)


def test_nothing_gives_cause_zero_and_isolation_one_and_everything_the_reverse():
    questions = planted_questions()
    _, _, pairs = parts(questions)
    turned = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(1))).Q
    lossless = relu_dictionary(torch.cat([turned, -turned]), bias=0.0)
    exchanges = (
        LatentExchange(lossless, questions.acts),
        DirectionExchange(turned, questions.acts),
        DirectionExchange(torch.eye(D_IN), questions.acts),
    )
    for exchange in exchanges:
        n = exchange.coordinates.shape[1]
        nothing, everything = (torch.full((3, n), value) for value in (False, True))
        found = effects(LinearReader(questions), questions, pairs, exchange, nothing).table()
        assert torch.equal(found, torch.tensor([[0.0, 1.0, 0.5]] * 3, dtype=torch.float64))
        found = effects(LinearReader(questions), questions, pairs, exchange, everything).table()
        assert torch.equal(found, torch.tensor([[1.0, 0.0, 0.5]] * 3, dtype=torch.float64))


def test_order_and_scale_of_the_latents_change_no_answer():
    questions = planted_questions()
    generator = torch.Generator().manual_seed(3)
    atoms = torch.cat([FEATURES[: sum(SIZES)], random_atoms(10, D_IN)])
    order, scale = torch.randperm(len(atoms), generator=generator), 0.2 + 3 * torch.rand(len(atoms), generator=generator)
    plain, other = relu_dictionary(atoms), relu_dictionary(atoms)
    with torch.no_grad():
        other.W_enc.copy_((plain.W_enc * scale)[:, order])
        other.b_enc.copy_((plain.b_enc * scale)[order])
        other.W_dec.copy_((plain.W_dec / scale[:, None])[order])
    for ranked in ("effect", "separation"):
        (one, found), (two, again) = (measured(questions, LatentExchange(each, questions.acts), ranked) for each in (plain, other))
        assert one.sizes == two.sizes
        assert torch.equal(found.good, again.good)


def test_atoms_of_zero_change_nothing_and_without_the_error_lose_every_answer():
    questions = planted_questions()
    _, _, pairs = parts(questions)
    zero = relu_dictionary(torch.zeros(12, D_IN), encoder=FEATURES[:12], decoder_bias=0.0)
    kept, lost = (LatentExchange(zero, questions.acts, keep_error=keep) for keep in (True, False))
    everything = torch.ones(3, kept.coordinates.shape[1], dtype=torch.bool)
    assert effects(LinearReader(questions), questions, pairs, kept, everything).table()[:, 2].tolist() == [0.5] * 3
    base, source = pairs.unbind(dim=1)
    assert torch.equal(kept.exchanged(base, source, everything[0]), questions.acts[base])
    assert float(lost.exchanged(base, source, everything[0]).abs().max()) == 0


def test_an_exchange_is_the_dense_sum_of_the_equation():
    generator = torch.Generator().manual_seed(2)
    dictionary = dictionary_of(random_atoms(40, D_IN), k=5)
    with torch.no_grad():
        dictionary.b_enc.copy_(0.1 * torch.randn(40, generator=generator))
    acts = torch.randn(30, D_IN, generator=generator)
    dense = dictionary.encode(acts).dense().detach()
    base, source = torch.randperm(30, generator=generator)[:12], torch.randperm(30, generator=generator)[:12]
    for keep in (True, False):
        exchange = LatentExchange(dictionary, acts, keep_error=keep)
        chosen = torch.rand(len(exchange.latents), generator=generator) < 0.5
        z, other = dense[base].clone(), dense[source]
        z[:, exchange.latents[chosen]] = other[:, exchange.latents[chosen]]
        written = z @ dictionary.W_dec.detach() + dictionary.b_dec.detach()
        expected = acts[base] + written - (dense[base] @ dictionary.W_dec + dictionary.b_dec).detach() if keep else written
        assert torch.allclose(exchange.exchanged(base, source, chosen), expected, atol=1e-6)
        shares = torch.rand(len(exchange.latents), generator=generator)
        whole = torch.zeros(40).index_add(0, exchange.latents, shares)
        half = (dense[base] + whole * (other - dense[base])) @ dictionary.W_dec.detach() + dictionary.b_dec.detach()
        expected = acts[base] + half - (dense[base] @ dictionary.W_dec + dictionary.b_dec).detach() if keep else half
        assert torch.allclose(exchange.blended(base, source, shares), expected, atol=1e-6)
    assert torch.equal(exchange.coordinates, dense[:, exchange.latents])


def test_what_a_slope_gains_along_each_unit_is_what_its_exchange_alone_gains():
    generator = torch.Generator().manual_seed(4)
    acts = torch.randn(20, D_IN, generator=generator)
    dictionary = dictionary_of(random_atoms(30, D_IN, seed=2), k=6)
    base, source, slope = torch.arange(5), torch.arange(10, 15), torch.randn(5, D_IN, generator=generator)
    for exchange in (
        LatentExchange(dictionary, acts),
        DirectionExchange(torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator)).Q, acts),
    ):
        n = exchange.coordinates.shape[1]
        alone = [((exchange.exchanged(base, source, unit) - acts[base]) * slope).sum(dim=1) for unit in torch.eye(n, dtype=torch.bool)]
        assert torch.allclose(exchange.along(base, source, slope), torch.stack(alone, dim=1), atol=1e-5)


def test_separation_is_the_f_statistic_of_scikit_learn():
    generator = torch.Generator().manual_seed(6)
    coordinates, groups = torch.randn(50, 9, generator=generator), torch.randint(4, (50,), generator=generator) * 7
    coordinates[:, 3] += groups
    expected = f_classif(coordinates.double().numpy(), groups.numpy())[0]
    assert torch.allclose(separation(coordinates, groups), torch.from_numpy(expected), rtol=1e-3)
    coordinates[:, 5] = 2.5
    assert float(separation(coordinates, groups)[5]) == 0
    exact = separation(groups[:, None].float(), groups)
    assert torch.isfinite(exact).all() and float(exact) > 1e5


def test_effects_and_scores_are_those_counted_pair_by_pair():
    questions = planted_questions(seed=7)
    _, _, pairs = parts(questions, seed=1)
    exchange = DirectionExchange(principal_directions(questions.acts), questions.acts)
    masks = random_units(exchange.coordinates.shape[1], (6, 7, 8), generator=torch.Generator().manual_seed(0))
    reader = LinearReader(questions)
    found = effects(reader, questions, pairs, exchange, masks)
    table = found.table()
    for a in range(3):
        hits = {q: [] for q in range(3)}
        for base, source in pairs:
            x = exchange.exchanged(base[None], source[None], masks[a])
            asked = int(questions.attribute[base])
            aim = source if asked == a else base
            hits[asked].append(float(reader.answers(x, base[None])[0] == questions.said[aim]))
        cause = sum(hits[a]) / len(hits[a])
        isolation = sum(sum(hits[q]) / len(hits[q]) for q in range(3) if q != a) / 2
        assert table[a].tolist() == pytest.approx([cause, isolation, (cause + isolation) / 2])
    assert torch.equal(scores(found.sums().sum(dim=0)[None])[0], table)
    assert len(found.sums()) == len(questions.entity[pairs[:, 0]].unique())


def test_pairs_ask_the_same_of_two_different_entities_that_are_both_known():
    questions = planted_questions(seed=8)
    wrong = torch.rand(len(questions), generator=torch.Generator().manual_seed(0)) < 0.3
    questions = dataclasses.replace(questions, said=torch.where(wrong, 99, questions.said))
    entities = split_entities(60, 0.4, generator=torch.Generator().manual_seed(1))
    assert int(entities.sum()) == 24
    pairs = draw_pairs(questions, entities, 30, generator=torch.Generator().manual_seed(2))
    base, source = pairs.unbind(dim=1)
    assert torch.bincount(questions.attribute[base]).tolist() == [30, 30, 30]
    assert len(torch.unique(pairs, dim=0)) == len(pairs)
    assert torch.equal(first_pairs(questions, pairs, 4), torch.cat([pairs[:4], pairs[30:34], pairs[60:64]]))
    assert torch.equal(questions.template[base], questions.template[source])
    assert bool(questions.known[pairs].all()) and bool(entities[questions.entity[pairs]].all())
    assert bool((questions.values[questions.entity[base]] != questions.values[questions.entity[source]]).all())
    assert questions.accuracy(1) == pytest.approx(float((~wrong)[questions.attribute == 1].double().mean()))


def test_what_cannot_be_measured_is_refused():
    questions = planted_questions()
    reader, exchange = LinearReader(questions), DirectionExchange(torch.eye(D_IN), questions.acts)
    training, pairs, _ = parts(questions)
    order = order_by_effect(reader, questions, pairs, exchange)
    for sizes in ((), (0, 3)):
        with pytest.raises(ConfigError, match="sizes must be one or more"):
            choose(reader, questions, pairs, exchange, order, sizes)
    with pytest.raises(ConfigError, match="units and training pairs, got 16 and 0"):
        choose(reader, questions, pairs[:0], exchange, order, (4,))
    with pytest.raises(ConfigError, match="about every attribute, got"):
        order_by_effect(reader, questions, pairs[questions.attribute[pairs[:, 0]] != 1], exchange)
    with pytest.raises(ConfigError, match="n_steps must be at least 1, got 0"):
        order_by_mask(reader, questions, pairs, exchange, n_steps=0, generator=torch.Generator())
    single = dataclasses.replace(questions, attributes=("a",))
    with pytest.raises(ConfigError, match="two or more, got \\['a'\\]"):
        order_by_separation(single, exchange.coordinates, training[questions.entity])
    with pytest.raises(ConfigError, match="groups must be two or more, and fewer than the 5 rows, got 1"):
        separation(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))
    transcoder = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=20, activation=ReLU(), d_out=8))
    with pytest.raises(ConfigError, match="must write where it reads, got d_in=16 and atoms of width 8"):
        LatentExchange(transcoder, questions.acts)
    assert first_units(order, [0, 16, 3]).sum(dim=1).tolist() == [0, 16, 3]


TABLE = EntityTable(
    ("the dog", "a robin", "the nation"),
    ("what", "where"),
    (("animal", "war"), ("bird", "law"), ("people", "peace")),
    (("The kind of {} is", "All of {} are"), ("My {} has been good to",)),
)


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"])
def test_a_language_model_answers_as_with_the_activation_put_in_place(name):
    model = tiny_language_model()
    site = model.site(name)
    asked = ask(model, site, TABLE)
    questions, reader = asked.questions, LanguageReader(model, site, asked)
    assert (
        len(questions) == 9
        and questions.attribute.tolist() == [0] * 6 + [1] * 3
        and questions.template.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    )
    every = torch.arange(9)
    assert torch.equal(reader.answers(questions.acts, every), questions.said)
    sources = torch.tensor([1, 2, 0, 4, 5, 3, 7, 8, 6])
    said = reader.answers(questions.acts[sources], every)
    for i in every.tolist():
        length, place = int(asked.lengths[i]), int(asked.places[i])
        tokens = asked.tokens[i : i + 1, :length]
        clean = model.capture(tokens, [site])[site]
        assert torch.allclose(clean[0, place], questions.acts[i], atol=1e-5)
        assert int(model.run(tokens)[0, -1].argmax()) == int(questions.said[i])
        clean[0, place] = questions.acts[sources[i]]
        assert int(model.run(tokens, [Edit.replace(site, clean)])[0, -1].argmax()) == int(said[i])


def test_the_slope_of_a_language_model_is_the_change_of_its_logits():
    model = tiny_language_model()
    site = model.site("blocks.1.hook_resid_post")
    asked = ask(model, site, TABLE)
    questions, reader = asked.questions, LanguageReader(model, site, asked)
    every, generator = torch.arange(9), torch.Generator().manual_seed(0)
    towards, away = torch.arange(9) + 20, torch.arange(9) + 90
    values, slopes = reader.margins(questions.acts, every, towards, away)
    step = 1e-2 * torch.randn(questions.acts.shape, generator=generator)

    def margin(x):
        found = []
        for i in every.tolist():
            acts = asked.acts[i : i + 1, : int(asked.lengths[i])].clone()
            acts[0, asked.places[i]] = x[i]
            scores = model.resume(acts, site)[0, -1]
            found.append(scores[towards[i]] - scores[away[i]])
        return torch.stack(found)

    difference = margin(questions.acts + step) - margin(questions.acts - step)
    assert torch.allclose(margin(questions.acts), values, atol=1e-5)
    assert torch.allclose(difference, 2 * (slopes * step).sum(dim=1), atol=2e-4)


def test_sentences_are_cut_at_the_entity_and_answers_begin_after_them():
    model = tiny_language_model()
    asked = ask(model, model.site("blocks.0.hook_resid_post"), TABLE)
    words = model.vocabulary()
    for i, sentence in enumerate([s.replace("{}", n) for several in TABLE.sentences for s in several for n in TABLE.names]):
        tokens = asked.tokens[i, : int(asked.lengths[i])].tolist()
        assert tokens[0] == model.separator_id
        assert "".join(words[t] for t in tokens[1:]) == sentence
        name = TABLE.names[i % 3]
        assert "".join(words[t] for t in tokens[1 : int(asked.places[i]) + 1]) == sentence[: sentence.index(name) + len(name)]
    for e, answers in enumerate(TABLE.answers):
        for a, answer in enumerate(answers):
            assert f" {answer}".startswith(words[int(asked.questions.values[e, a])])


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="one \\{\\} for the entity, got 'no place'"):
        dataclasses.replace(TABLE, sentences=(("no place",), ("{}",)))
    with pytest.raises(ConfigError, match="answers and sentences must be of the attributes"):
        dataclasses.replace(TABLE, attributes=("what",))
    with pytest.raises(ConfigError, match="names must be different"):
        dataclasses.replace(TABLE, names=("x", "x", "y"))


def test_the_shipped_cities_have_several_of_every_country():
    table = cities()
    assert table.attributes == ("country", "continent", "language") and len(table.names) == 128
    counts = {}
    for country, *_ in table.answers:
        counts[country] = counts.get(country, 0) + 1
    assert min(counts.values()) >= 3
    assert len({row[:2] for row in table.answers}) == len(counts) == len(set(table.answers))
    assert table.answers[table.names.index("Vienna")] == ("Austria", "Europe", "German")
    assert table.digest == cities().digest != TABLE.digest


class KnowingModel(LanguageModel):
    """Words are tokens. A city's last word is the sum of the directions of its answers, a word that only the sentences of one attribute have is that
    attribute's direction; a logit is the product of what the position and those before it say of attribute and answer."""

    shape = dtype = device = separator_id = None

    def __init__(self, *, ignorant=False):
        self.name, self.digest, self.separator_id, self.dtype, self.device = (
            "knowing",
            "k" * 64 if not ignorant else "i" * 64,
            0,
            torch.float32,
            "cpu",
        )
        self.table, self.words, self.n_passes = cities(), {"": 0}, 0
        self.shape = ModelShape(n_layers=2, d_model=64, d_mlp=8, n_heads=1, d_head=4, d_vocab=600, n_ctx=64)
        basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(9))).Q
        answers = sorted({(a, row[a]) for row in self.table.answers for a in range(3)})
        self.features, self.markers = basis[: len(answers)], basis[-3:]
        self.attribute = torch.tensor([a for a, _ in answers])
        self.token = torch.tensor([self.tokenize([answer])[0][0] for _, answer in answers])
        self.embedding = torch.zeros(600, 64)
        own = [{word for sentence in several for word in sentence.split()} for several in self.table.sentences]
        for a, marker in enumerate(self.markers):
            for word in own[a] - set().union(*(own[b] for b in range(3) if b != a)):
                self.embedding[self.tokenize([word])[0][0]] = marker
        for name, row in zip(self.table.names, self.table.answers, strict=True):
            which = [answers.index((a, answer)) for a, answer in enumerate(row)]
            self.embedding[self.tokenize([name])[0][-1]] = 0.0 if ignorant else self.features[which].sum(dim=0)

    def site(self, name):
        return Site.parse(name, self.shape)

    def tokenize(self, texts, *, special_tokens=False):
        return [[self.words.setdefault(word, len(self.words)) for word in text.split()] for text in texts]

    def capture(self, tokens, sites, *, edits=(), document_ids=None):
        self.n_passes += 1
        return dict.fromkeys(sites, self.embedding[tokens])

    def resume(self, acts, site):
        seen = acts.cumsum(dim=1)
        product = (seen @ self.markers.T)[..., self.attribute] * (seen @ self.features.T)
        return torch.zeros(*acts.shape[:2], 600).index_add(2, self.token, product)


SITE = "blocks.1.hook_resid_post"
BATTERY = Battery("attributes", "Attributes", "attributes", (DISENTANGLEMENT,), "evaluation")
SMALL = DisentanglementConfig(n_pairs=30, n_training_pairs=30, n_random=3)


def outcome_of(tmp_path, dictionary, model=None, config=SMALL, **options):
    inputs = Inputs(ResultCache(tmp_path / "cache"), 0, dictionary, site=SITE, model=model or KnowingModel(), **options)
    (task,) = plan(["attributes"], inputs, known={"attributes": BATTERY}, configs={"disentanglement": config})
    return perform(task, inputs)


def number(done, name, subject=""):
    (found,) = [each for each in done.outcome.numbers if (each.quantity, each.subject) == (name, subject)]
    return found


def test_the_measure_gives_an_oracle_one_and_the_others_what_they_deserve(tmp_path):
    model = KnowingModel()
    done = outcome_of(tmp_path, relu_dictionary(model.features), model)
    score = number(done, "disentanglement")
    assert score.value > 0.95 and score.low > 0.9 and score.high <= 1
    assert score.null_mean < 0.75 and score.n_null == 3 and score.p == 0.25
    for name in cities().attributes:
        assert number(done, "right answers", name).value == 1
        assert number(done, "cause of the whole activation", name).value == 1
        cause, isolation = number(done, "cause", name).value, number(done, "isolation", name).value
        assert number(done, "disentanglement", name).value == pytest.approx((cause + isolation) / 2)
    assert number(done, "disentanglement of principal components").value < 0.95
    assert "64 entities to choose latents on, 64 held out" in done.outcome.notes[0]


def test_the_language_model_is_run_once_for_all_dictionaries_of_a_site(tmp_path):
    model = KnowingModel()
    outcome_of(tmp_path, relu_dictionary(model.features), model)
    n_passes = model.n_passes
    assert n_passes > 0
    turned = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1))).Q
    other = outcome_of(tmp_path, relu_dictionary(torch.cat([turned, -turned]), bias=0.0), model)
    assert model.n_passes == n_passes
    assert number(other, "disentanglement").value < 0.9
    again = outcome_of(tmp_path, relu_dictionary(torch.cat([turned, -turned]), bias=0.0), model)
    assert again.cached and again.outcome == other.outcome


def test_a_model_that_does_not_know_the_answers_is_not_measured(tmp_path):
    done = outcome_of(tmp_path, relu_dictionary(KnowingModel().features), KnowingModel(ignorant=True))
    assert done.outcome is None
    assert "must answer two attributes rightly" in done.reason and "knows country 5%, continent 7%, language 2%" in done.reason


def test_dictionaries_that_do_not_belong_or_never_fire_are_refused(tmp_path):
    narrow = outcome_of(tmp_path, relu_dictionary(FEATURES))
    assert "activations of width 64 like blocks.1.hook_resid_post, got d_in=16" in narrow.reason
    silent = outcome_of(tmp_path, relu_dictionary(torch.zeros(5, 64)))
    assert "latents that fire on an entity's token, got none" in silent.reason


@pytest.mark.slow
def test_the_default_model_knows_cities_and_keeps_them_at_their_last_token():
    from sae.models.assets import default_model

    model = LanguageModel.load(default_model())
    site = model.site("blocks.15.hook_resid_post")
    asked = ask(model, site, cities())
    questions = asked.questions
    assert min(questions.accuracy(a) for a in range(3)) > 0.6
    pairs = draw_pairs(questions, torch.ones(128, dtype=torch.bool), 20, generator=torch.Generator().manual_seed(0))
    whole = DirectionExchange(torch.eye(site.width), questions.acts)
    found = effects(LanguageReader(model, site, asked), questions, pairs, whole, torch.ones(3, site.width, dtype=torch.bool))
    assert float(found.table()[:, 0].min()) > 0.6
