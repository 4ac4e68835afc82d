"""What compiled programs say of devices that are not there: memory, kernels, exchanges."""
