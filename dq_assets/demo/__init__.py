"""The demonstration: sources that need no download (`sources`), known issues planted into a copy (`planting`),
and how many of them an audit found (`scoreboard`). No Dagster here, and no store: folders and frames in and out."""
