"""The words of this part: questions, networks, measures."""

OVERFITTING, TIME, RECURRENCE = "overfitting", "time", "recurrence"
UNCERTAINTY, CONNECTIONS = "uncertainty", "connections"
QUESTIONS = {
    OVERFITTING: "does holding still matter where networks overfit, and how much?",
    TIME: "does the difference grow with the number of time steps?",
    RECURRENCE: "what if recurrent spikes are dropped?",
    UNCERTAINTY: "are probabilities better, and outliers told from clothes?",
    CONNECTIONS: "and DropConnect?",
}

FEED_FORWARD = "feed-forward"  # the network, and what is dropped in a recurrent one:
OUTPUTS, RECURRENT, BOTH = "outputs", "recurrent spikes", "both"

ENSEMBLE = "ensemble"
STOPPED = "stopped early"
TRAINING_LOSS = "training loss (nats)"
BEST_UPDATE = f"updates until {STOPPED}"
OUTLIERS = "outliers (area under the ROC curve)"
MASKED_OUTLIERS = "outliers under masks (area under the ROC curve)"
DISAGREEMENT = "outliers by mutual information (area under the ROC curve)"
