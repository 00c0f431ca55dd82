"""Colours of the pages: every text has a contrast of at least 4.5 on what it stands on, in both themes, on every step of the colour scale."""

import re
from importlib import resources
from itertools import pairwise

import pytest

from sae.inspection.format import N_LEVELS

CSS = (resources.files("sae.inspection") / "assets" / "report.css").read_text()
VARIABLES = {name: pair for name, *pair in re.findall(r"(--[a-z0-9-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)}
TEXTS = ("--fg", "--muted", "--link", "--best", "--control", "--baseline", "--s0", "--s1", "--s2", "--s3", "--s4", "--s5")
STEPS = dict(re.findall(r"\.([ab]\d+) \{ background: color-mix\(in srgb, (var\(--(?:hot|cold)\) [0-9.]+%), transparent\)", CSS))


def colour(name, theme):
    text = VARIABLES[name][theme]
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """WCAG 2.1: (lighter + 0.05) / (darker + 0.05)."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["--bg", "--panel"])
def test_texts_stand_out_from_the_page(theme, ground):
    for name in TEXTS:
        found = contrast(colour(name, theme), colour(ground, theme))
        assert found >= 4.5, f"{name} on {ground}: {found:.2f}"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_step_of_the_colour_scale(theme):
    assert sorted(STEPS) == sorted(f"{side}{i}" for side in "ab" for i in range(N_LEVELS))
    for step, mix in STEPS.items():
        name, share = re.fullmatch(r"var\((--\w+)\) ([0-9.]+)%", mix).groups()
        part = float(share) / 100
        for under in ("--bg", "--panel"):
            ground = tuple(part * a + (1 - part) * b for a, b in zip(colour(name, theme), colour(under, theme), strict=True))
            found = contrast(colour("--fg", theme), ground)
            assert found >= 4.5, f"{step} on {under}: {found:.2f}"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_tooltip_and_the_main_button_can_be_read(theme):
    assert contrast(colour("--bg", theme), colour("--fg", theme)) >= 4.5
    assert contrast(colour("--bg", theme), colour("--link", theme)) >= 4.5


def test_steps_of_the_scale_grow_evenly():
    for side in "ab":
        shares = [float(re.search(r"([0-9.]+)%", STEPS[f"{side}{i}"])[1]) for i in range(N_LEVELS)]
        assert all(2 < b - a < 3.2 for a, b in pairwise(shares))
