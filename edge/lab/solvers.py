"""The two solvers behind classification heads: multinomial logistic regression and k-means.

L-BFGS (Liu and Nocedal 1989) with a backtracking line search; spherical k-means within one label.
Deterministic for a seed. Pure numpy; knows nothing of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_MEMORY = 8
_PULL = 1.0  # of one observation


def fit_logistic(
    vectors: Floats, targets: NDArray[np.int_], labels: int, *, l2: float, steps: int = 120
) -> tuple[Floats, Floats]:
    """Return weight ``[labels, dimensions]`` and bias ``[labels]`` of a multinomial regression.

    Minimises the summed cross-entropy plus ``l2 / 2`` times the squared weights.
    """
    rows, width = vectors.shape
    design = np.column_stack([vectors, np.ones(rows, dtype=np.float32)])
    truth = np.zeros((rows, labels), dtype=np.float32)
    truth[np.arange(rows), targets] = 1.0
    penalty = np.full(width + 1, l2, dtype=np.float32)
    penalty[-1] = l2 * 1e-2

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(labels, width + 1)
        logits = design @ weights.T
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[np.arange(rows), targets]
        np.exp(logits, out=logits)
        mass = logits.sum(axis=1, keepdims=True)
        loss = float(np.log(mass).sum() - picked.sum())
        logits /= mass
        logits -= truth
        loss += 0.5 * float((penalty * weights * weights).sum())
        gradient: Floats = (logits.T @ design + penalty * weights).ravel().astype(np.float32)
        return loss, gradient

    best = minimise(loss_and_gradient, np.zeros(labels * (width + 1), np.float32), steps)
    weights = best.reshape(labels, width + 1)
    return weights[:, :-1].copy(), weights[:, -1].copy()


def fit_blend(layer: Floats, near: Floats, targets: NDArray[np.int_]) -> tuple[float, float]:
    """Return the weights of two score tables, float32 ``[rows, labels]``, in a softmax.

    Minimises the summed cross-entropy; pulled gently towards 1 and 4, so that a few rows decide
    little.
    """
    rows = np.arange(len(targets))
    start = np.array([1.0, 4.0], dtype=np.float32)

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        logits = flat[0] * layer + flat[1] * near
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        mass = shares.sum(axis=1, keepdims=True)
        loss = float((np.log(mass[:, 0]) - logits[rows, targets]).sum())
        shares /= mass
        shares[rows, targets] -= 1.0
        gradient = np.array([(shares * layer).sum(), (shares * near).sum()], dtype=np.float32)
        away = flat - start
        return loss + 0.5 * _PULL * float(away @ away), gradient + np.float32(_PULL) * away

    sharpness, nearness = minimise(loss_and_gradient, start.copy(), 60)
    return max(float(sharpness), 0.0), max(float(nearness), 0.0)


def minimise(
    objective: Callable[[Floats], tuple[float, Floats]], start: Floats, steps: int
) -> Floats:
    """Return a minimiser; backtracking line search, stops when the loss moves by less than 1e-6."""
    point, (loss, gradient) = start, objective(start)
    moves: list[tuple[Floats, Floats, float]] = []
    for _ in range(steps):
        direction = -_two_loop(gradient, moves)
        slope = float(gradient @ direction)
        size = 1.0 if moves else min(1.0, 1.0 / float(np.abs(gradient).sum() + 1e-12))
        while True:
            trial = point + np.float32(size) * direction
            trial_loss, trial_gradient = objective(trial)
            if trial_loss <= loss + 1e-4 * size * slope or size < 1e-8:  # noqa: PLR2004
                break
            size *= 0.5
        step, change = trial - point, trial_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-10:  # noqa: PLR2004
            moves = [*moves[-_MEMORY + 1 :], (step, change, 1.0 / curvature)]
        done = loss - trial_loss < 1e-6 * max(1.0, abs(loss))
        point, loss, gradient = trial, trial_loss, trial_gradient
        if done:
            break
    return point


def _two_loop(gradient: Floats, moves: Sequence[tuple[Floats, Floats, float]]) -> Floats:
    """Return the inverse Hessian's estimate times the gradient."""
    q = gradient.copy()
    shares = []
    for step, change, inverse in reversed(moves):
        share = inverse * float(step @ q)
        shares.append(share)
        q -= np.float32(share) * change
    if moves:
        step, change, inverse = moves[-1]
        q *= np.float32(1.0 / (inverse * float(change @ change)))
    for (step, change, inverse), share in zip(moves, reversed(shares), strict=True):
        q += np.float32(share - inverse * float(change @ q)) * step
    return q


def spherical_kmeans(vectors: Floats, count: int, *, seed: int, rounds: int = 15) -> Floats:
    """Return up to ``count`` unit vectors that stand for the given ones."""
    if len(vectors) <= count:
        return vectors.copy()
    random = np.random.default_rng(seed)
    centres = vectors[random.choice(len(vectors), count, replace=False)]
    for _ in range(rounds):
        nearest = (vectors @ centres.T).argmax(axis=1)
        sums = np.stack([vectors[nearest == at].sum(axis=0) for at in range(count)])
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.maximum(length, 1e-12), centres)
    return centres.astype(np.float32)
