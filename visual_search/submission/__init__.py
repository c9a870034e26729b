"""A submission rehearsed under the evaluator's limits, and checked before it is pushed."""
