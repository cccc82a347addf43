"""Times and correctness of kernels, models and training steps on the machine at hand."""
