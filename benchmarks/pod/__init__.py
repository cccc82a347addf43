"""Training steps compiled for slices of TPU pods, and what the compiled programs hold."""
