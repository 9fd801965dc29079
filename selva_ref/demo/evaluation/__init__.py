"""Two test sets, onsets heard against true events, and the paper's ablations."""
