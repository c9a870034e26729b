"""What the evaluator runs."""
