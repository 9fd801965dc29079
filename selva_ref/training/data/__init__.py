"""Videos and lists into features on disk, once."""
