"""Eight schools, as a model for the command line.

Effects of coaching on test scores in eight schools, with their standard errors: Rubin (1981),
table 1; in the non-centred form of Gelman et al., Bayesian Data Analysis (2013), section 5.5.

    driftbridge sample examples/eight_schools.py:model --data examples/eight_schools.json --out DIR
"""

import numpyro
import numpyro.distributions as dist


def model(effect, error):
    """Effects `(8,)` with known standard errors, drawn from one normal law."""
    mean = numpyro.sample("mean", dist.Normal(0, 5))
    spread = numpyro.sample("spread", dist.HalfCauchy(5))
    with numpyro.plate("school", len(effect)):
        standard = numpyro.sample("standard", dist.Normal(0, 1))
        school = numpyro.deterministic("school_effect", mean + spread * standard)
        numpyro.sample("observed", dist.Normal(school, error), obs=effect)
