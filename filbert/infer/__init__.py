"""Using a finished model: prediction, evaluation and a look inside."""
