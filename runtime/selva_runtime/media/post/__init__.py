"""Stems for post-production: Broadcast WAV with timecode, and a level that is safe to play and to broadcast."""
