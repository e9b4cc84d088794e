"""The only Dagster code: assets, checks, automation and resources of a dataset."""
