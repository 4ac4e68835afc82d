"""The part of the study whose networks hardly overfit: data sets that packages ship."""
