"""Two test sets, a comparison of heard onsets with true events, and the paper's ablations."""
