"""``python -m tests.simulation``: simulates from a seed, and says how to see again what went wrong."""

from __future__ import annotations

import argparse
import secrets
import sys
import time

from twisted.logger import globalLogBeginner

from tests.simulation.run import SimulationFailed, simulate


def main(words: list[str]) -> int:
    """Run the command with these words; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="Simulates the job server, and checks its rules."
    )
    parser.add_argument("--seed", type=int, help="what everything follows from; random unless given")
    parser.add_argument("--steps", type=int, default=1_000_000, help="how many events (default: %(default)s)")
    parser.add_argument("--world", type=int, default=0, help="the number of the world to begin with")
    options = parser.parse_args(words)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    is_shown = sys.stderr.isatty()

    def progress(done: int) -> None:
        if is_shown:
            rate = done / (time.perf_counter() - start)
            sys.stderr.write(f"\r{done:,} of {options.steps:,} steps, {rate:,.0f} a second ")

    sys.stdout.write(f"seed {seed}\n")
    sys.stdout.flush()
    start = time.perf_counter()
    try:
        result = simulate(seed, options.steps, first_world=options.world, progress=progress)
    except SimulationFailed as error:
        sys.stdout.write(f"{error}\n")
        return 1
    finally:
        if is_shown:
            sys.stderr.write("\r\x1b[K")
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f"seed {seed}: {result.steps:,} steps in {result.worlds} worlds with {result.jobs:,} submissions, "
        f"all rules held; {seconds:.1f} s, {result.steps / seconds:,.0f} steps a second\n"
    )
    return 0


if __name__ == "__main__":
    # What the group commit says about a store that fails is no news here.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    sys.exit(main(sys.argv[1:]))
