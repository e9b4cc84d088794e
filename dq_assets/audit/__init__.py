"""The algorithms: arrays and frames in, arrays and frames out. No Dagster, no store; images are read through `dq_assets.sources`."""
