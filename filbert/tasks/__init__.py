"""What each task means: how its rows are read, encoded, learned, decoded and scored."""
