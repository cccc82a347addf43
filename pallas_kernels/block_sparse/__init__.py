"""The product of an input and the kept blocks of a weight, and its gradients: one file per implementation."""
