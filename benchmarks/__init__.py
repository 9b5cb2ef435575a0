"""What a request costs: sockserve's models, the standard library, gevent, asyncio, uvloop, trio, and a C program.

    make bench                                   everything; a table, a verdict per target, JSON, plots
    make bench WORK=ping50 MODEL=greenlet ROUNDS=3     a part

Measured is the processor time, user and system, of the server's whole process tree, as the kernel accounts for it, per
request. Server and clients are pinned to a core each; in a round every server has its turn, so that whatever else the
machine does meets all alike. See docs/explanation/performance-results.md.
"""

# A map; a module knows those above it.
#
#   processes    a server's process tree: started, pinned, its processor time, memory, threads, wake-ups
#   loads        the programs that make the clients, and what they print
#   contenders   the table of servers
#   works        the table of works: what the clients do, and what is measured
#   targets      P1 to P13, and the verdicts
#   report       the tables and the JSON
#   plots        the pictures
#   page         what runs found, in the documents; NOTEBOOK.md is written by hand: what was tried
#   calls        the system calls of a request, by strace
#   __main__     rounds, and the command line
#   servers/     the programs that are measured
