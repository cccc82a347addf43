"""From scores to gates, and to the gated product as one operation."""
