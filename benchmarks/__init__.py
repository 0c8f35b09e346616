"""Measures throughput, latency, idle cost and memory against stated targets and against peers.

`python -m benchmarks` prints a table and writes JSON. Machines and neighbours vary, so contestants take turns within
one run and ratios are taken turn by turn; absolute numbers are for the machine they are printed with.
"""
