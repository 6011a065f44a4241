"""Assignment of hash centers to classes: similar classes should get near centers.

The linear assignments score one class at a time; the quadratic one all pairs, as retrieval does.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distill.hash_centers.constructions import Centers
from gallery.errors import InputError

Assignment = Literal["none", "hungarian", "quadratic", "csch"]
Order = NDArray[np.int64]
Reals = NDArray[np.float64]
HEAD_STD = 0.01
QUADRATIC_MOST, MANY = 2000, 200  # classes at most; and above which only the best start climbs
FAQ_STEPS, ROUNDING = 15, 1e-9


def assign(
    centers: Centers, how: Assignment,
    features: NDArray[np.floating] | None = None, positive: NDArray[np.bool_] | None = None, seed: int = 0,
) -> Order:  # fmt: skip
    """The row of `centers` for each class, `[C]`: `centers[assign(...)]` is in class order.

    features `[N, D]` of the training images and their classes `positive` `[N, C]` (none needed for "none"): the
    gallery network's, or for "csch" the query network's, which is what CSCH's code uses.
    hungarian: maximises sum_c mu_c . t_c over class means mu (less their mean, rotated by PCA).
    quadratic: maximises the Gram correlation; at most 2,000 classes.
    csch: hungarian on class means of an untrained head's outputs, weights N(0, .01) sampled from `seed`.
    """
    if how not in get_args(Assignment):
        raise InputError(f"an assignment of {get_args(Assignment)}", how, "Choose one of them.")
    if how == "none" or (how == "quadratic" and is_equidistant(centers)):
        return np.arange(len(centers))
    if features is None or positive is None or positive.shape != (len(features), len(centers)):
        shapes = [None if given is None else given.shape for given in (features, positive)]
        wanted = f"features [N, D] and positive [N, {len(centers)}]"
        raise InputError(wanted, f"shapes {shapes}", "Pass those of the train images.")
    if how == "csch":
        head = np.random.default_rng(seed).normal(0, HEAD_STD, (features.shape[1], centers.shape[1]))
        return _hungarian(centers, class_means(features @ head, positive))
    means = class_means(features, positive)
    return _hungarian(centers, _pca(means, centers.shape[1])) if how == "hungarian" else _quadratic(centers, means)


def class_means(features: NDArray[np.floating], positive: NDArray[np.bool_]) -> Reals:
    """L2-normalized means `[C, D]` of the L2-normalized features of the images that carry each class; 0 if none."""
    return _unit(positive.T.astype(np.float64) @ _unit(features.astype(np.float64)))


def class_similarity(means: Reals) -> Reals:
    """Cosines `[C, C]` between class means."""
    return _unit(means) @ _unit(means).T


def gram_correlation(centers: Centers, means: Reals) -> float:
    """Pearson's correlation of t_a . t_b with cos(mu_a, mu_b), a < b, both with images; 0 if one is constant."""
    nonempty = _nonempty(means)
    pairs = np.triu_indices(int(nonempty.sum()), 1)
    rows = centers[nonempty].astype(np.float64)
    x, y = (rows @ rows.T)[pairs], class_similarity(means[nonempty])[pairs]
    return float(np.corrcoef(x, y)[0, 1]) if len(x) and np.ptp(x) and np.ptp(y) else 0.0


def is_equidistant(centers: Centers) -> bool:
    """Whether all distances are equal, so that an assignment changes nothing (at most bits + 1 classes can be so)."""
    if len(centers) > centers.shape[1] + 1:
        return False
    rows = centers.astype(np.int32)
    return bool(np.ptp((rows @ rows.T)[np.triu_indices(len(rows), 1)]) == 0) if len(rows) > 1 else True


def _hungarian(centers: Centers, means: Reals) -> Order:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(means @ centers[:, : means.shape[1]].T, maximize=True)[1].astype(np.int64)


def _quadratic(centers: Centers, means: Reals) -> Order:
    """The best of three starts (as given, Hungarian, SciPy's FAQ), climbed swap by swap; of over 200 classes, one."""
    from scipy.optimize import quadratic_assignment

    if len(centers) > QUADRATIC_MOST:
        raise InputError(f"at most {QUADRATIC_MOST} classes", str(len(centers)), "Use assignment hungarian or none.")
    rows, nonempty = centers.astype(np.float64), _nonempty(means)
    similarity, gram = class_similarity(means).round(6), rows @ rows.T  # rounded: threads may add in another order
    similarity -= similarity[np.ix_(nonempty, nonempty)].mean().round(6) if nonempty.any() else 0
    similarity[~nonempty] = similarity[:, ~nonempty] = 0  # a class without images takes a remaining center
    np.fill_diagonal(similarity, 0)
    np.fill_diagonal(gram, 0)

    def agreement(order: Order) -> float:
        return float((similarity * gram[np.ix_(order, order)]).sum())

    faq = quadratic_assignment(similarity, gram, options={"maximize": True, "maxiter": FAQ_STEPS}).col_ind
    starts = [np.arange(len(rows)), _hungarian(centers, _pca(means, rows.shape[1])), faq.astype(np.int64)]
    if len(rows) > MANY:
        starts = [max(starts, key=agreement)]
    return max((_swap_ascent(similarity, gram, start) for start in starts), key=agreement)


def _swap_ascent(similarity: Reals, gram: Reals, order: Order) -> Order:
    """Swaps of steepest ascent of sum_ab A_ab B_ab, until none gains; at most 4 C of them.

    A = similarity, B = gram in the present order, both symmetric with zero diagonals, M = A B: swapping a and b gains
    2 (M_ab + M_ba - M_aa - M_bb + 2 A_ab B_ab).  After a swap, M changes by one outer product and two columns.
    """
    order, now = order.copy(), gram[np.ix_(order, order)]
    product = similarity @ now
    for _ in range(4 * len(order)):
        own = np.diag(product)
        gain: Reals = product + product.T - own[:, None] - own + 2 * similarity * now
        a, b = np.unravel_index(gain.argmax(), gain.shape)
        if gain[a, b] <= ROUNDING * len(order):
            break
        product += np.outer(similarity[:, a] - similarity[:, b], now[b] - now[a])
        for axis in (order, now, now.T, product.T):
            axis[[a, b]] = axis[[b, a]]
    return order


def _pca(means: Reals, bits: int) -> Reals:
    """Class means less their mean, on their first `bits` principal axes (or all there are), L2-normalized."""
    nonempty = _nonempty(means)
    centred = np.where(nonempty[:, None], means - means[nonempty].mean(0) if nonempty.any() else 0, 0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    return _unit((left * scale)[:, :bits])


def _nonempty(means: Reals) -> NDArray[np.bool_]:
    """`[C]`: the classes with images; the mean of the others is 0."""
    return np.linalg.norm(means, axis=1) > 0


def _unit(rows: Reals) -> Reals:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-12)
