"""`selva-bench gpu-check`: what works on the GPU in this machine, and how fast."""
