"""Read frames from any media file, write stems as WAV, and copy the video with a stem."""
