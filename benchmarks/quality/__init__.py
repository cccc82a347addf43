"""The comparison of perplexities: its training runs, and what runs them."""
