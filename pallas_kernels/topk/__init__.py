"""The k largest of many scores: the search, and a kernel for each kind of chip."""
