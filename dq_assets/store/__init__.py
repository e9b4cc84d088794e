"""The lake: one DuckLake with one schema per dataset. Publish, read, audits, verdicts, history, export."""
