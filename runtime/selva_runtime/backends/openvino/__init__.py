"""OpenVINO on the CPU, and the rewriting that makes its graphs faster."""
