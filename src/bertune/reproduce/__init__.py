"""Published tables, made again: recipes in YAML, trainings that resume, and what their findings come to."""
