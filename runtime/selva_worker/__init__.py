"""A process that keeps the model for host programs: a supervisor that never blocks, and a child that may die.

The supervisor owns the protocol, the queue and the journal, and imports neither NumPy nor ONNX Runtime. The engine is a
child that owns the `Session`. Ending it frees the model's memory for certain, stops a job that does not stop by itself,
and is all that a crash can do.
"""
