"""The servers under measurement, one file each, every one a line echo on 127.0.0.1.

A contender is run as ``python -m benchmarks.contenders.NAME [LOOP]``, prints its port on one line and serves until it
is killed. It imports nothing of the benchmarks, so that its memory and its start are its own; ``roster`` names it.
"""
