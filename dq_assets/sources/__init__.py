"""Where images come from: listing and reading them. No algorithms, no Dagster, no store."""
