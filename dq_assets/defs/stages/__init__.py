"""One function per table: read the inputs, call one function of `audit`, publish the answer.

No Dagster and no algorithm here. Each returns the version that it published; its metrics become metadata that Dagster plots.
"""
