"""The SelVA networks in PyTorch."""
