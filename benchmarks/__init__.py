"""Benchmarks: `python -m benchmarks [NAME ...] [--size quick|standard|large|N]`.

Each module asks one question and says how it is answered; where a peer exists it is measured in the same run and the answer is a ratio.
Not tests: nothing here fails because a machine was slow. What the figures were is in docs/benchmarks.md and, per run, in results.jsonl.
"""
