"""Requests in greenlets: handlers take turns in the thread of their server's loop.

Theory of operation
===================

The *loop greenlet* is the one that called ``serve_forever()``: it runs the loop. Each request runs in a
RequestGreenlet of the same thread. Only one greenlet of a thread runs at a time; it has the *turn*.

* A turn begins when the loop greenlet switches to a RequestGreenlet, and ends when that one switches back. Two
  RequestGreenlets never switch to each other. Nothing else ends a turn: a handler that computes, or blocks the thread,
  stops all others, and the Watchdog logs where it is.
* A handler gives its turn away where a cooperative socket waits. ``CooperativeSocket.recv()`` tries first. If there is
  nothing to read, its Channel notes the greenlet as its reader, arms the descriptor in the loop (epoll, edge-triggered,
  once for the life of a connection) and switches to the loop greenlet. The event for that descriptor switches back.
* A turn comes from one of four places: an event of a descriptor that the greenlet waits for; the timer of its deadline;
  ``resume()``, which puts the greenlet in a queue that the loop empties once per turn; ``throw()``, when it is killed.
* So a turn may come for nothing. The event and the timer may both be due in one turn of the loop. A ``resume()`` from
  another thread may arrive after the wait that it was for. A new loop tells of each armed descriptor once more. Each
  wait is therefore a loop that looks at its condition, and waits again.
* ``wait_until_idle()`` and its kin may be called in the thread of the greenlets but outside of any: after
  ``serve_forever()``, or in a signal handler. The Hub then runs a loop of its own, so that the greenlets go on until
  what is waited for has happened. In a RequestGreenlet, such a wait pauses that greenlet alone. In another thread it
  blocks that thread.
* The greenlets outlive the loop: if an exception ends ``serve_forever()``, they stand still until code in their thread
  waits for them, or serves again. No other thread can run them: the greenlet library raises an error.

==================================================  ==========================================================
may be called                                       method
==================================================  ==========================================================
in any thread, and in a signal handler              ``Turns.resume()``
in any thread                                       ``Hub.wait()``, ``wait_until_idle()``, ``kill()``, ``others()``,
                                                    ``is_lost()``, ``has_ended()``, ``unreserve()``,
                                                    ``close_threads()``, ``is_here()``, ``is_elsewhere()``;
                                                    ``Channel.close()``, ``Channel.release()``
in any thread but that of the greenlets             ``Hub.stand_still()``
in the thread of the greenlets                      ``begin()``, ``run()``, ``move_to()``, ``dismiss()``,
                                                    ``give_turns_from_here()``; the callbacks of a Channel
in a RequestGreenlet                                ``pause()``, ``listen()``, ``wait_for()``, ``spawn()``,
                                                    ``give_way()``, ``run_in_thread()``
==================================================  ==========================================================

The modules, each of which knows those above it: ``own_thread``, ``signal_origin``, ``blocking_calls`` and ``errand``
help; ``request_greenlet`` is the greenlet and what it can do; ``turns`` gives turns; ``hub`` waits for greenlets and
ends them; ``channel`` is a descriptor that greenlets wait for; ``sockets`` and ``tls_sockets`` are what a handler uses;
``watchdog`` tells of slow handlers; ``mix_in`` makes a server of it all.
"""
