"""The words that all parts share: data sets, conditions, tables, measures."""

DIGITS, DIGITS_200, VOWELS, FASHION = "digits", "digits-200", "vowels", "fashion"
DATA = {
    DIGITS: "digits",
    DIGITS_200: "200 digits",
    VOWELS: "Japanese vowels",
    FASHION: "Fashion-MNIST",
}

NONE, PER_STEP, HELD = "none", "per-step", "held"
CONNECT_FRESH, CONNECT_HELD = "dropconnect-fresh", "dropconnect-held"
CONDITIONS = {
    NONE: "no dropout",
    PER_STEP: "dropout, new mask every step",
    HELD: "dropout, held",
    CONNECT_FRESH: "DropConnect, new masks every step",
    CONNECT_HELD: "DropConnect, held",
}

SELECTION, TEST, MECHANISM = "selection", "test", "mechanism"
INFERENCE, UNCERTAINTY = "inference", "uncertainty"

LIF, RELU = "lif", "relu-lif"  # what a unit does with its current
SCALED_WEIGHTS = "scaled weights"

ACCURACY = "accuracy (%)"
LIKELIHOOD = "negative log-likelihood (nats)"
CALIBRATION = "expected calibration error (%)"
TIME = "time (ms)"
SPREAD = "spread of the averaged scores"
STEP_SPREAD = "spread of the scores of a step"
