"""The end of an update where one rank plays and others learn: the player orders what all do, and they follow."""

from collections.abc import Iterator

from rl.exchange import Exchange, Order
from rl.learners.learner import Samples
from rl.run.run import Run

COMPILED = "Time/trainer_compile_seconds"  # in this update


def order_of(run: Run, done: float) -> Order:
    """What the player, after `done` of the run, orders for the end of this update, whose rollout it has collected."""
    num_steps = run.control.num_steps
    last = run.fraction_done(num_steps) >= 1
    # The best agent's checkpoint, too, has a part of every rank.
    save = run.control.save or (run.evaluates(num_steps) and not last)
    return Order(save, run.control.stop, last, done)


def follow(run: Run, exchange: Exchange) -> Iterator[Samples]:
    """The updates of a trainer: yields the samples of each, up to the one that the player marks as the last.

    Raises:
        StopError: The player ordered it; this rank has given its part of a checkpoint.
    """
    run.signals.in_loop = True
    ended = run.step >= run.last_step
    while not ended:
        compiled_before = run.execution.compile_seconds
        with run.timed("trainer_wait"):
            samples, order = exchange.receive_rows()
        run.anneal(order.done)
        yield samples
        run.learning_rate.adapt()
        run.update += 1
        means = run.averages.take() | {COMPILED: run.execution.compile_seconds - compiled_before}
        run.control.read()
        exchange.send_weights(means | run.control.for_player())
        run.obey(order.save == 1, order.stop)
        ended = order.last == 1
