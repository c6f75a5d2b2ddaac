"""Benchmarks: what one request costs each server, in CPU time of the server's own processes.

Floor plan: ``contenders/`` holds one file per server, written as its documentation would have a user write it;
``roster`` lists them; ``process`` starts one as a subprocess and reads its meters; ``client`` is the load,
``datagram_client`` the load in datagrams and ``flood`` the accounts of a flood;
``scenarios`` says what is done and what is read off; ``measure`` runs the rounds; ``pairs`` and ``report`` put the
figures side by side. Run with ``python -m benchmarks``. Nothing here is imported by ``aserver`` or ``compat``.
"""
