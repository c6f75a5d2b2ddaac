"""The servers under measurement, one file each, every one on 127.0.0.1.

The plain ones echo lines over TCP; the ``_udp`` ones echo datagrams; the ``_udp_flood`` ones take 10 ms for a datagram
and answer nothing, except for the datagram ``statistics``, to which they answer with names and numbers: ``handled 7``,
if that is how many datagrams their handler has got, this one included. ``flood`` has the other names.

A contender is run as ``python -m benchmarks.contenders.NAME [LOOP]``, prints its port on one line and serves until it
is killed. It imports nothing of the benchmarks, so that its memory and its start are its own; ``roster`` names it.
"""
