"""Splitting schemes for kinetic Langevin dynamics, as words over A, B, O and U."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.batching import outlined_alone
from driftbridge.samplers.base import Facts, Info, unadjusted_info
from driftbridge.samplers.kinetic import (
    Kinetic,
    KineticScoreState,
    KineticState,
    is_unset,
    unset,
    without_friction_where,
)
from driftbridge.samplers.noise import normals
from driftbridge.samplers.ornstein_uhlenbeck import (
    FreeFlight,
    compose,
    drift,
    fly,
    kick,
    normals_of,
    ou_noise,
    refresh,
)
from driftbridge.targets.base import Target


class Stage(NamedTuple):
    """One letter and the fraction of the step over which it acts."""

    letter: str
    fraction: float


@lru_cache(maxsize=128)
def stages(word: str) -> tuple[Stage, ...]:
    """The stages of a word, equal neighbours merged, and an O at both ends too.

    A letter that occurs `k` times acts for `h/k`. Two neighbouring stages of the same flow are one
    over the sum of their times. An O at the end of one step is neighbour to the O at the beginning
    of the next; merging them moves the recorded state ahead of the last O, which leaves positions
    as they are.

    **Raises** `ValueError` for a word that is not a consistent scheme.
    """
    unknown = sorted(set(word) - set("ABOU"))
    if unknown:
        raise ValueError(
            f"A splitting word is made of the letters A, B, O and U; got {''.join(unknown)!r} "
            f"in {word!r}."
        )
    for letters, does in (("B", "applies the force"), ("AU", "moves the position")):
        if not set(letters) & set(word):
            raise ValueError(f"{word!r} has no {' or '.join(letters)}: nothing {does}.")
    if "U" in word and set("AO") & set(word):
        raise ValueError(
            f"{word!r} mixes U, which moves and damps at once, with A or O: that would be done "
            "twice. Use words over A, B, O or over B, U."
        )
    if not set("OU") & set(word):
        raise ValueError(f"{word!r} has no O or U: without noise the energy never changes.")
    merged: list[Stage] = []
    for letter in word:
        fraction = 1 / word.count(letter)
        if merged and merged[-1].letter == letter:
            fraction += merged.pop().fraction
        merged.append(Stage(letter, fraction))
    if merged[0].letter == merged[-1].letter == "O":
        merged[0] = Stage("O", merged[0].fraction + merged.pop().fraction)
    return tuple(merged)


class Part(NamedTuple):
    """Stages between two evaluations of the score, and the number of the first normal they take."""

    stages: tuple[Stage, ...]
    first_normal: int

    @property
    def needs_score(self) -> bool:
        """Whether the force acts in it."""
        return any(stage.letter == "B" for stage in self.stages)

    @property
    def moves(self) -> bool:
        """Whether the position moves in it, after every B."""
        return any(stage.letter in "AU" for stage in self.stages)


@lru_cache(maxsize=128)
def parts(word: str) -> tuple[Part, ...]:
    """A word cut before every B whose position the score is not known at."""
    found: list[Part] = []
    now: list[Stage] = []
    normals = first = 0
    for stage in stages(word):
        if stage.letter == "B" and any(before.letter in "AU" for before in now):
            found.append(Part(tuple(now), first))
            now, first = [], normals
        now.append(stage)
        normals += {"O": 1, "U": 2}.get(stage.letter, 0)
    return (*found, Part(tuple(now), first))


def reuses_score(word: str) -> bool:
    """Whether the last B of a step and the first of the next act at the same position."""
    letters = "".join(stage.letter for stage in stages(word) if stage.letter != "O")
    return letters[0] == letters[-1] == "B" and len(letters) > 1


def count_gradients(word: str) -> int:
    """Positions in one step at which the score is evaluated."""
    letters = "".join(stage.letter for stage in stages(word) if stage.letter != "O")
    runs = sum(a == "B" != b for a, b in zip(letters, letters[1:] + "A", strict=True))
    return runs - reuses_score(word)


@lru_cache(maxsize=128)
def shares(word: str) -> tuple[tuple[int, ...], ...]:
    """For each O or U of a double step, those of its two steps that fill the same time, in order.

    **Raises** `TypeError` where one begins or ends within another.
    """
    lengths = [stage.fraction for stage in stages(word) if stage.letter in "OU"]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    fine = [(step + end) / 2 for step in (0, 1) for end in ends]
    found = [[i for i, end in enumerate(fine) if abs(end - whole) < 1e-9] for whole in ends]
    if not all(found):
        raise TypeError(
            f"two steps of {word!r} do not share the noise of a double one: an O or U of one ends "
            "within that of the other. Use a word whose O or U are equally long, such as UBU."
        )
    last = [-1] + [i for (i,) in found]
    return tuple(tuple(range(a + 1, b + 1)) for a, b in pairwise(last))


class Word(Kinetic):
    """A splitting scheme: the flows of its letters, from left to right.

    - A: `x += t v`; B: `v += t u s(x)`; O: exact friction and noise on `v`;
      U: exact free flow of `(x, v)` with friction and noise, the flow of A and O together.

    The score is evaluated once for each position: a word that ends and begins with B at the same
    position keeps it in the state. Where a word begins and ends with O, the two are one O of the
    whole step and the recorded state is the one before the last O: positions are the same as
    without merging, velocities have the law before the half refreshment.

    A subclass supplies `word`.
    """

    word: ClassVar[str]

    def init(
        self, target: Target, position: Float[Array, " dim"]
    ) -> KineticState | KineticScoreState:
        if reuses_score(self.word):
            return KineticScoreState(position, unset(position), target.score(position))
        return KineticState(position, unset(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> Float[Array, "n dim"]:
        letters = [stage.letter for stage in stages(self.word)]
        count = letters.count("O") + 2 * letters.count("U")
        return normals(key, (count, *like.shape), like.dtype)

    def step(
        self, target: Target, state: KineticState | KineticScoreState, noise: Float[Array, "n dim"]
    ) -> tuple[KineticState | KineticScoreState, Info]:
        fractions = {stage.fraction for stage in stages(self.word) if stage.letter in "OU"}
        flights = {fraction: self.flight(self.step_size * fraction) for fraction in fractions}
        position, velocity = state.position, None
        score = state.score if isinstance(state, KineticScoreState) else None
        for part in parts(self.word):
            if part.needs_score and score is None:
                score = target.score(position)
            position, velocity = _acts(part)(self, flights, state, position, velocity, score, noise)
            score = None if part.moves else score
        new = state._replace(position=position, velocity=velocity)
        if isinstance(new, KineticScoreState):
            assert score is not None  # the word ends with the B that has evaluated it
            new = new._replace(score=score)
        return new, unadjusted_info(position, count_gradients(self.word))

    def coarsen(
        self, first: Float[Array, "n dim"], second: Float[Array, "n dim"]
    ) -> Float[Array, "n dim"]:
        # O is U without the position: its second normal and increment are left out.
        letters = [stage for stage in stages(self.word) if stage.letter in "OU"]
        flights = [self.flight(self.step_size * stage.fraction) for stage in letters] * 2
        width = 2 if "U" in self.word else 1
        pieces = jnp.reshape(jnp.concatenate([first, second]), (-1, width, *first.shape[1:]))
        normals = []
        for stage, share in zip(letters, shares(self.word), strict=True):
            path = _increments(flights[share[0]], pieces[share[0]])
            for i in share[1:]:
                path = compose(path, _increments(flights[i], pieces[i]), flights[i])
            whole = self.flight(2 * self.step_size * stage.fraction)
            normals += normals_of(whole, path)[:width]
        return jnp.stack(normals)


def _increments(flight: FreeFlight, normals: Float[Array, "n dim"]):
    return ou_noise(flight, normals[0], normals[-1])


@lru_cache(maxsize=256)
def _acts(part: Part) -> Callable:
    """The stages of a part as one operation of the compiled loop, flights coming from outside."""

    @outlined_alone
    def act(sampler, flights, state, position, velocity, score, noise):
        # Made here, for what an operation is given is written to memory.
        is_fresh = is_unset(state.velocity)
        velocity = sampler.velocity(state, noise[0]) if velocity is None else velocity
        normals = iter(noise[part.first_normal :])
        for letter, fraction in part.stages:
            time = sampler.step_size * fraction
            if letter == "B":
                velocity = kick(velocity, score, time, sampler.u)
                continue
            if letter == "A":
                position = drift(position, velocity, time)
                continue
            flight = without_friction_where(is_fresh, flights[fraction], time)
            if letter == "O":
                velocity = refresh(velocity, flight, next(normals))
            else:
                position, velocity = fly(position, velocity, flight, next(normals), next(normals))
        return position, velocity

    return act


class Splitting(Word):
    """The splitting scheme of any word over A, B, O or over B, U.

    **Arguments:**

    - `word`: such as `"OBABO"`; letters act from left to right, each of `k` equal ones for `h/k`.
    - `step_size`, `friction`, `u`: as in `Kinetic`.

    **Raises** `ValueError` for a letter that is none of A, B, O, U and for a word that misses a
    part of the dynamics or does one twice.

    Leimkuhler and Matthews (2013), arXiv 1203.5428.
    """

    word: str = eqx.field(static=True, default="OBABO")

    facts: ClassVar[Facts] = Facts(
        summary="Any splitting word over A, B, O or over B, U",
        gradients="one a position with a B",
        bias="of the word",
        kinetic=True,
        source="Leimkuhler & Matthews 2013, arXiv 1203.5428",
    )

    def __init__(self, word: str = "OBABO", step_size=0.1, friction=1.0, u=1.0):
        stages(word)
        self.word = word
        self.step_size = step_size
        self.friction = friction
        self.u = u


class OBABO(Word):
    """Half a refreshment, a leapfrog step, half a refreshment.

    On a Gaussian the stationary variance of the position is `1 / (λ (1 - h²uλ/4))` and that of the
    velocity exactly `u`. One gradient and one normal a coordinate.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`.

    Bussi and Parrinello (2007), arXiv 0803.4083.
    """

    word: ClassVar[str] = "OBABO"

    facts: ClassVar[Facts] = Facts(
        summary="Leapfrog between two half refreshments",
        gradients="1",
        bias="h²/4",
        strong_order=1.0,
        weak_order=2.0,
        kinetic=True,
        source="Bussi & Parrinello 2007, arXiv 0803.4083",
    )


class BAOAB(Word):
    """Half a kick, half a drift, a refreshment, and back: no position bias on Gaussians.

    The velocity's variance is `u (1 - h²uλ/4)`. One gradient and one normal a coordinate.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`.

    Leimkuhler and Matthews (2013), arXiv 1203.5428.
    """

    word: ClassVar[str] = "BAOAB"

    facts: ClassVar[Facts] = Facts(
        summary="Splitting with no position bias on Gaussians",
        gradients="1",
        bias="0",
        strong_order=1.0,
        weak_order=2.0,
        kinetic=True,
        source="Leimkuhler & Matthews 2013, arXiv 1203.5428",
    )


class ABOBA(Word):
    """Half a drift, half a kick, a refreshment, and back: no position bias on Gaussians.

    The velocity's variance is `u / (1 - h²uλ/4)`. One gradient, at the middle of the step, and one
    normal a coordinate.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`.

    Leimkuhler and Matthews (2013), arXiv 1203.5428.
    """

    word: ClassVar[str] = "ABOBA"

    facts: ClassVar[Facts] = Facts(
        summary="BAOAB begun in the middle: the force at the midpoint",
        gradients="1",
        bias="0",
        strong_order=1.0,
        weak_order=2.0,
        kinetic=True,
        source="Leimkuhler & Matthews 2013, arXiv 1203.5428",
    )


class UBU(Word):
    """Half a free flight, a kick, half a free flight: strong order two with one gradient.

    Leading relative bias of the variance on a Gaussian `-h²uλ/6`; stable up to `h` of about `2γ`
    (in units of unit curvature) at high friction. Four normals a coordinate.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`.

    Sanz-Serna and Zygalakis (2021), arXiv 2104.12384.
    """

    word: ClassVar[str] = "UBU"

    facts: ClassVar[Facts] = Facts(
        summary="Free flights around a midpoint kick, strong order 2",
        gradients="1",
        bias="-h²/6",
        strong_order=2.0,
        weak_order=2.0,
        kinetic=True,
        source="Sanz-Serna & Zygalakis 2021, arXiv 2104.12384",
    )


class BUB(Word):
    """Half a kick, a free flight, half a kick.

    Leading relative bias of the variance on a Gaussian `h²uλ/12`. One gradient and two normals a
    coordinate.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`.

    Sanz-Serna and Zygalakis (2021), arXiv 2104.12384.
    """

    word: ClassVar[str] = "BUB"

    facts: ClassVar[Facts] = Facts(
        summary="Half kicks around a free flight",
        gradients="1",
        bias="h²/12",
        strong_order=2.0,
        weak_order=2.0,
        kinetic=True,
        source="Sanz-Serna & Zygalakis 2021, arXiv 2104.12384",
    )
