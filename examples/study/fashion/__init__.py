"""The part of the study whose networks overfit: Fashion-MNIST."""
