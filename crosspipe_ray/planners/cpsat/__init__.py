"""The optimal order, and proofs of bounds, by OR-Tools CP-SAT."""
