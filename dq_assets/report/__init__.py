"""Results in, pictures and text out: progress, summaries, charts."""
