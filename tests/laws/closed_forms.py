"""Stationary variances of unadjusted schemes on a Gaussian, in closed form.

Each entry returns `(λ Var x, Var v / u)` for step size `h`, friction `g`, `u` and curvature `λ`
(`None` where there is no velocity). `a = hλ`, `L = uλ`, `e = exp(-g h)`.
"""

import numpy as np
from scipy.linalg import expm


def lmc(h, g, u, lam):
    return 1 / (1 - h * lam / 2), None


def randomized_midpoint(h, g, u, lam):
    a = h * lam
    top = 1 - a + a**2 / 2
    return top / (top - a**3 / 6), None


def poisson_midpoint(h, g, u, lam, k=3):
    a, i = h * lam, np.arange(k)
    m = (k - 1 - i) / k
    top = 2 * a / k * np.sum((1 - a * m) ** 2 + a**2 * m * (1 - 1 / k))
    mean = 1 - a + a**2 * (k - 1) / (2 * k)
    return top / (1 - mean**2 - a**4 * (1 - 1 / k) * np.sum(i**2) / k**3), None


def klmc(h, g, u, lam):
    L, e = u * lam, np.exp(-g * h)
    n = g**2 * (1 - e**2) + L * (g * h * e * (1 + e) - 2 * e * (1 - e))
    d1 = g**2 * (1 - e) + L * (e * (1 + g * h) - 1)
    d2 = 2 * g**2 * (1 + e) + L * (2 * (1 - e) - g * h * (1 + e))
    x = 2 * g**2 * n / (d1 * d2)
    return x, word("KLMC", h, g, u, lam)[1]


def obabo(h, g, u, lam):
    return 1 / (1 - h**2 * u * lam / 4), 1.0


def baoab(h, g, u, lam):
    return 1.0, 1 - h**2 * u * lam / 4


def aboba(h, g, u, lam):
    return 1.0, 1 / (1 - h**2 * u * lam / 4)


def bub(h, g, u, lam):
    L, e = u * lam, np.exp(-g * h)
    top = 2 * (g**2 * (1 - e**2) + L * (2 * e * g * h + e**2 - 1))
    x = top / (g * (1 - e) * (2 * g * (1 + e) - h * L * (1 - e)))
    return x, word("BUB", h, g, u, lam)[1]


def free_covariance(t, g, u):
    """Covariance of the free flow over `t`, by the textbook formulas (fine in float64)."""
    e1 = (1 - np.exp(-g * t)) / g
    v = u * (1 - np.exp(-2 * g * t))
    xv = u / g * (1 - np.exp(-g * t)) ** 2
    x = 2 * u / g * (t - 2 * e1 + (1 - np.exp(-2 * g * t)) / (2 * g))
    return np.array([[x, xv], [xv, v]])


def flow(letter, t, g, u, lam):
    """Matrix and noise covariance of one letter over `t`, by matrix exponentials."""
    force, none = -u * lam, np.zeros((2, 2))
    if letter == "A":
        return np.array([[1, t], [0, 1]]), none
    if letter == "B":
        return np.array([[1, 0], [t * force, 1]]), none
    if letter == "O":
        e = np.exp(-g * t)
        return np.diag([1, e]), np.diag([0, u * (1 - e**2)])
    if letter == "U":
        return expm(t * np.array([[0, 1], [0, -g]])), free_covariance(t, g, u)
    # The force of the starting point held through the step: exponential Euler.
    held = expm(t * np.array([[0, 1, 0], [0, -g, 1], [0, 0, 0]]))
    return held[:2, :2] + np.outer(held[:2, 2], [force, 0]), free_covariance(t, g, u)


def lyapunov(maps, covariances, weights=(1.0,)):
    """`S = E[A S A' + Q]`, solved as a linear system."""
    square = sum(w * np.kron(a, a) for w, a in zip(weights, maps, strict=True))
    added = sum(w * q for w, q in zip(weights, covariances, strict=True))
    return np.linalg.solve(np.eye(4) - square, added.reshape(-1)).reshape(2, 2)


def word(letters, h, g, u, lam):
    """A splitting word, letter by letter, none merged."""
    parts = ["KLMC"] if letters == "KLMC" else list(letters)
    matrix, covariance = np.eye(2), np.zeros((2, 2))
    for letter in parts:
        a, q = flow(letter, h / parts.count(letter), g, u, lam)
        matrix, covariance = a @ matrix, a @ covariance @ a.T + q
    s = lyapunov([matrix], [covariance])
    return lam * s[0, 0], s[1, 1] / u


def randomized_midpoint_kinetic(h, g, u, lam, count=40):
    """Quadrature in the uniform, with the joint covariance of midpoint and end by Ito's isometry.

    It is written from the covariances of the three stochastic integrals, not composed from two
    pieces as the implementation does.
    """
    roots, gauss = np.polynomial.legendre.leggauss(count)
    maps, covariances = [], []

    def e1(t):
        return (1 - np.exp(-g * t)) / g

    for fraction in (roots + 1) / 2:
        t = fraction * h
        d = h - t
        c11 = free_covariance(t, g, u)[0, 0]
        c12 = 2 * u * e1(d) * (t - e1(t)) + np.exp(-g * d) * c11
        c13 = np.exp(-g * d) * u / g * (1 - np.exp(-g * t)) ** 2
        joint = np.zeros((3, 3))
        joint[0] = c11, c12, c13
        joint[:, 0] = c11, c12, c13
        joint[1:, 1:] = free_covariance(h, g, u)
        # (x, v, xi1, xi2, xi3) -> midpoint -> end.
        force = -u * lam
        e2 = (t - e1(t)) / g
        midpoint = np.array([1 + force * e2, e1(t), 1, 0, 0])
        x = np.array([1, e1(h), 0, 1, 0]) + h * e1(d) * force * midpoint
        v = np.array([0, np.exp(-g * h), 0, 0, 1]) + h * np.exp(-g * d) * force * midpoint
        both = np.stack([x, v])
        maps.append(both[:, :2])
        covariances.append(both[:, 2:] @ joint @ both[:, 2:].T)
    s = lyapunov(maps, covariances, gauss / 2)
    return lam * s[0, 0], s[1, 1] / u


CLOSED_FORMS = {
    "LMC": lmc,
    "RandomizedMidpoint": randomized_midpoint,
    "PoissonMidpoint": poisson_midpoint,
    "KLMC": klmc,
    "RandomizedMidpointKinetic": randomized_midpoint_kinetic,
    "OBABO": obabo,
    "BAOAB": baoab,
    "ABOBA": aboba,
    "UBU": lambda h, g, u, lam: word("UBU", h, g, u, lam),
    "BUB": bub,
    "BUBUB": lambda h, g, u, lam: word("BUBUB", h, g, u, lam),
    "BOBA": lambda h, g, u, lam: word("BOBA", h, g, u, lam),
}
