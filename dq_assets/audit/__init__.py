"""The algorithms: arrays and frames in, arrays and frames out. No Dagster, no store, no files but images."""
