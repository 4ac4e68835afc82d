"""The parts of ``ablation.py``: the small data sets, Fashion-MNIST, and what they share."""
