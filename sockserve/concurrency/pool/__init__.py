"""A pool of threads that serve everything themselves.

Theory of operation
===================

The threads. The one that calls ``serve_forever()``, or runs the loop, *coordinates*: it serves nothing, so that it is
there when all workers are busy. *Workers* wait for events, accept, and run handlers; none hands anything to another.
Rarely there is a *helper*, which ends parked connections while all workers are busy. And any thread, a handler's too,
may call the server's verbs.

The objects, and the threads that may call their methods:

- ``Coordinator``: the coordinator, but for ``may_take()``, ``failed()``, ``recovered()``, ``found_nothing()`` (workers)
  and ``retire()``, ``listener_closes()`` (any).
- ``Pool``: the coordinator starts threads; workers call the rest; ``stop()`` any.
- ``Parking``: ``park()``, ``await_first_word()``, ``is_turn_over()`` and ``detach()`` the thread that serves the
  connection; ``serve()``, ``quiet()``, ``put_back()`` workers; ``look()`` the coordinator; ``claim()`` and ``close()``
  any; what ends connections any but the coordinator, as handlers run then.
- ``Pressure`` and ``Balance``: the coordinator. ``Bench``: the coordinator asks and calls, workers sit; ``close()``
  any.
- ``SharedPoller``: any, but for ``close()``, which is for the last thread that may wait on it.

One event, one owner. All workers wait on one epoll(7). A parked connection is an entry in ``Parking.parked``, by its
descriptor; the thread whose ``pop()`` finds it owns it. Between that and the next parking no other thread touches it.

Two ways to be armed. *Once* (EPOLLONESHOT): parking is a system call, and one event comes of it. *Held*
(level-triggered, without that flag): the descriptor stays armed while its connection is served, parking it again is
an entry in a dict, and input that the handler has left unread is told again by the next wait. (Edge-triggered it would
never be, and no handler can be asked whether it has read all.) Held is for a worker that takes requests alone: beside
others that wait it would be told of what it is just about to read.

The orders, and the race that each prevents:

1. *Held, and told of while it is served.* Another worker finds it absent. It mutes the descriptor in the kernel, then
   takes it out of ``held``, then looks into ``parked`` again. The thread that parks enters it into ``parked`` first and
   looks into ``held`` second; if it is not there any more it takes the connection back and arms it. So at least one
   of the two arms it. With mute and ``held`` exchanged the one that parks could arm it before it is muted.
2. *Told of too often.* Two waits may tell of the same input, and the one that comes late finds a connection whose input
   has been read: its handler would block a worker. So a worker trusts an event only if its wait began after the
   connection was parked. Else it parks it again; the kernel tells again if there is something.
3. *A number that is another's.* A connection may be taken out without an event, by a *claim* (a silence that was too
   long, room for newcomers, the end), and closed, and its descriptor be a newcomer's when an event of it is acted on.
   So an event is not trusted either if its wait began before the last claim ended.
4. *A claim in the middle of arming.* ``ParkingRecord.arming`` is held from the entry to the end of the system call, and
   a claim waits for it before it lets the connection be closed: else a descriptor would be armed that is closed.
5. *The end.* ``close()`` forbids parking first, and ``end_all()`` looks for the parked second; the thread that parks
   enters it first and looks whether it may second.
6. *Closed while it is held.* The kernel forgets a closed descriptor by itself, except where a forked child has a copy;
   then it would tell of it for ever. So it is taken out of the epoll before it is closed.
7. *Taking and pausing.* The thread that forbids taking forbids first and asks which workers take second; a worker says
   that it takes first, and asks whether it may second. After "none takes" nothing is taken.
8. *A worker that dies* of an exception at any bytecode: what it had taken out it parks again; what it was told of, or
   may have been, is armed again. The next worker is told.

The listener is watched level-triggered all the time. What one worker leaves in the backlog the next wait tells again,
and nothing depends on any worker to empty it. A worker takes some requests in a row, then looks for other events.

How many workers. Without pressure all of them wait for events, and the coordinator sleeps without limit. A wait that
tells of two events, or a second request in the backlog, is *pressure*: the worker wakes the coordinator, which ticks
from then on. It keeps one worker standing, which takes events in batches (the rest of one is in ``Pool.ready``, where
every worker looks first), and the others sit on the bench, each on a lock of its own. If in a tick nothing was
served, or handlers wait, all are called; code that computes without the interpreter's lock is found out by trial.
``balance`` has the rules. Ticks end when there is little to do.

A worker sits down first and looks whether it is to second; the coordinator takes back what it asked first, and calls
those that sit second. So every worker that sits is called.

Other platforms have no epoll. There one worker leads: it waits in a selector, the others for its place, and each
connection is armed once, for one event. All workers stand.
"""
