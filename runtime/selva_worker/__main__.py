"""`python -m selva_worker` is `selva-worker`, for a host that knows a Python and not its scripts."""

from selva_runtime.command.start import worker

if __name__ == "__main__":
    worker()
