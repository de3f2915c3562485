"""The encoder, its heads, and the readers of every checkpoint layout that filbert knows."""
