"""python -m selva_bench, for a checkout that is not installed."""

from .cli import main

main()
