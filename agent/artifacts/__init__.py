"""What is fetched before a start: weights, one file a source."""
