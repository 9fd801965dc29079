"""Media files in and out: frames from any container, stems as WAV, copies of the video with a stem."""
