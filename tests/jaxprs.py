"""Looking into the traced program."""

from jax.extend.core import jaxprs_in_params


def equations(jaxpr):
    """All equations, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def count(jaxpr, primitive):
    return sum(equation.primitive.name == primitive for equation in equations(jaxpr))
