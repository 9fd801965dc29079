"""OpenVINO on the CPU, and how its graphs are rewritten to be faster."""
