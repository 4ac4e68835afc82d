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


def drawn_by(jaxpr):
    """The names of what makes random words in it, by Threefry, Philox or XLA."""
    names = {equation.primitive.name for equation in equations(jaxpr)}
    products = {
        "mul"
        for equation in equations(jaxpr)
        if equation.primitive.name == "mul" and equation.outvars[0].aval.dtype == "uint64"
    }
    return products | names & {"random_bits", "threefry2x32", "rng_bit_generator"}
