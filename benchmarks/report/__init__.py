"""Pages of docs/ made of the raw results."""
