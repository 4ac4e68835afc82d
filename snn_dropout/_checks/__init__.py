"""Argument checks, a file a subject, and the only place that words their errors.

Every message names the argument, the rule, what was given and what to type
instead. Nothing here knows Flax.
"""
