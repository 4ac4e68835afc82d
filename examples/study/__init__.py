"""The parts of ``ablation.py``: each file is one step from data to page."""
