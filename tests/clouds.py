"""Clouds of points of known dimension."""

import math

import torch


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def cube(n, d, seed=0):
    return torch.rand(n, d, generator=seeded(seed), dtype=torch.float64)


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def swiss_roll(n, ambient, seed=0):
    u, height = cube(n, 2, seed).unbind(dim=1)
    angle = 1.5 * math.pi * (1 + 2 * u)
    roll = torch.stack([angle * angle.cos(), 21 * height, angle * angle.sin()], dim=1)
    return roll @ torch.linalg.qr(gaussian(ambient, 3, seed=99)).Q.T
