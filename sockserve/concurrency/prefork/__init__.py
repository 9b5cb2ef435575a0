"""Worker processes, made before the first request comes, and the supervisor that keeps them.

Theory of operation
===================

::

    supervisor            serve_forever() of the program's process
    ├── worker 0          a forked process, the holder of place 0
    ├── worker 1
    │   └── (successor)   a second process at place 1, until it is ready and the first one retires
    └── …

* The supervisor takes no request. Its thread runs a loop that sleeps until a worker ends (pidfd_open(2)), a worker
  writes to its socket, a timer is due, or another thread or a signal handler calls one of its verbs.
* A worker runs the server's own ``serve_forever()`` in its main thread: inline, in threads, in a pool, in greenlets.
  A second thread, ``sockserve-control``, waits for the supervisor's orders and does them beside the loop.
* Each pair of supervisor and worker shares one page of memory and one socket pair. What must not be lost is counted
  on the page first; then one byte through the socket wakes the other side. A full socket loses nothing: its reader is
  awake.
* A listener belongs to a place, and the supervisor holds it too, so it outlives the worker. A new worker inherits it.
* Life of a worker: STARTS, READY (it said so: its predecessor may retire), SETTLED (a second later: what ends it now
  is no failed start). Its end is one of the five of ``Outcome``.
* The end of a worker is ordered and measured by the supervisor, in steps: accept no more, end the input of requests,
  cut them, SIGKILL. A worker whose supervisor is gone (it watches that process itself) drains, and ends within 5
  seconds.
* A loop that stands still is found by its heartbeat on the page. A worker with nothing to do announces sleep and
  beats no more; meanwhile the supervisor watches the listeners for it.
* ``end()`` may run without ``run()``: after ``serve_forever()``, or in a signal handler inside of it. It hosts the
  supervisor in a loop of its own, and the innermost loop is the one that counts.

====================================  ======================================================================
may be called                         method
====================================  ======================================================================
in any thread, in a signal handler    ``Supervisor.roll()``, ``more()``, ``fewer()``, ``stop()``, ``active()``,
                                      ``is_idle()``, ``leave_ports()``; ``Pauses.has_come()``
in any thread                         ``Supervisor.drain()``; ``WorkerHandle.has_ended()``; ``Child``, all of it
in the supervisor's thread            ``Supervisor.run()``, ``end()``; ``WorkerHandle``, all else; ``Crew``,
                                      ``Places``, ``Storms``, ``Ending``, ``HangDetector``, ``Run``, ``Service``
in any thread of a worker             ``Link.tell()``, ``stir()``, ``beat_between_requests()``;
                                      ``Duties.begin_one()``, ``end_one()``, ``leave()``, ``on_…()``
in the thread of a worker's loop      ``Link.beat()``, ``beat_in()``, ``rest_in()``
in a worker's control thread          ``Link.next_orders()``; ``Duties``, the other orders; ``Patience``
====================================  ======================================================================

The modules, each of which knows those above it. On both sides: ``protocol``, the words, the page and what is read;
``parent_process``, a supervisor as its workers watch it. In a worker: ``worker_link``, its end of the line;
``worker_commands``, what it counts and does; ``patience``, silent clients; ``worker_main``, its life. In the
supervisor: ``outcomes`` and ``phases`` are tables; ``worker_handle`` is one worker; ``crew`` all of them; ``places``,
``storms`` and ``pauses`` decide; ``hang_detection``, ``time_asleep`` and ``ending`` measure; ``service`` and
``server_service`` are what the workers are for; ``supervisor`` does it, ``signals`` calls it, and ``mix_in`` makes a
server of it all.
"""
