"""The list of the differences from gearmand that are allowed, and of those that no script can show.

Each is the first cell of its row in docs/reference/differences.md; what explains them is in ``allowed``.
"""

from __future__ import annotations

RULES = {
    "joined foreground job": (
        "a background submission that joins a foreground job is not stored, and dies with the last "
        "foreground client"
    ),
    "joined background job": "a background job that foreground clients joined is dropped when they leave",
    "abandoned job": "a job whose clients all left stays in the queue; new submissions join it and hang",
    "cancelled job": (
        "a cancelled job stays in the queue; a running one still reports to its client after WORK_FAIL"
    ),
    "freed workload": (
        "a job that ends in the write in which it was grabbed comes with a workload of freed memory"
    ),
    "unique of 64 bytes": (
        "a unique of 64 bytes is cut to 63, never coalesces, and shifts the workload by a byte"
    ),
    "exception": "WORK_FAIL in place of an exception has a NUL behind its handle",
    "failure after exception": (
        "WORK_FAIL behind the WORK_EXCEPTION of the same job is `JOB_NOT_FOUND`, which ends Perl's worker"
    ),
    "progress": "progress numbers wrap at 32 bits, negative ones too",
    "wakes all": "a job wakes all sleeping workers of its function (`-w 0`)",
    "scheduled job wakes": "a scheduled job wakes workers when it is submitted, too",
    "gives up asleep": "a sleeping worker that gives up the function of a job it runs is woken for that job",
    "scheduled job hides": "a job whose time is to come hides its function's jobs of low priority (1.1.20)",
    "reduce job": (
        "a reduce job whose worker does not know reducers is run without; the reducer is forgotten "
        "at a restart"
    ),
    "registers asleep": "a sleeping worker that registers a function with waiting jobs is not woken",
    "sleeps again": "a woken worker that answers with PRE_SLEEP is never woken again",
    "registered twice": "registering a function twice counts it twice",
    "bad magic": (
        "closes the connection without an answer on bad magic or an unknown packet type, or crashes on the"
        " latter"
    ),
    "too few arguments": "a packet with too few arguments swallows the next one, or hangs",
    "handle without NUL": (
        "a WORK_COMPLETE, WORK_DATA, WORK_WARNING or WORK_EXCEPTION without the NUL behind its "
        "handle costs the worker its connection"
    ),
    "long argument": "an argument longer than 8191 bytes closes the connection",
    "long number": "drops the connection on an over-long timeout or epoch",
    "unknown type": (
        "closes the connection without an answer on bad magic or an unknown packet type, or crashes on the"
        " latter"
    ),
    "long handle": (
        "GET_STATUS of a handle, or GET_STATUS_UNIQUE of a unique, of more than 63 bytes closes the"
        " connection"
    ),
    "long line": "a line of more than 8192 bytes closes the connection",
    "sixth word": "a sixth word closes the connection",
    "limit of an unknown function": "`maxqueue` of an unknown function answers OK and does nothing",
}

# Documented differences that are not rules, each with the reason.
EXCLUDED = (
    ("one CAN_DO_TIMEOUT timer a connection, which may outlive its job", "takes seconds, see test_real_time"),
    (
        (
            "what a worker sends about a job after its time limit is `JOB_NOT_FOUND`, which ends Perl's "
            "worker and PHP's `work()`"
        ),
        "takes seconds, see test_real_time",
    ),
    ("a clean shutdown counts as an attempt for running jobs", "needs a store"),
    ("handles start from 1 at each start; stored jobs get new ones", "handles are compared by their order"),
    (
        ("a running background job that foreground clients joined and left is run again after a restart"),
        "needs a store",
    ),
    (
        ("PRE_SLEEP of a worker that meets a cancelled or abandoned job may destroy another one (2.0)"),
        "not in 1.1.20",
    ),
    (
        (
            "a job whose function's name has about 8180 bytes disconnects each worker that grabs it, "
            "and is queued again for ever"
        ),
        "for ever",
    ),
    (
        "the unique of a reduce job is not checked: bytes from behind it are sent to the worker",
        "whatever is in memory",
    ),
    ("PRE_SLEEP stops the clock of the job that runs", "takes seconds, see test_real_time"),
    ("abandoned jobs count for `maxqueue`, and in all lists", "part of the rule for abandoned jobs"),
    ("of several clients of a job the last one to come is told first", "connections are read one by one"),
    ("a scheduled job has its place from when it was submitted", "takes seconds, see test_real_time"),
    ("the prefix of handles may have 63 bytes", "an option, not a packet"),
    (
        (
            "WORK_FAIL with a handle of more than 63 bytes is `ARGUMENT_TOO_LARGE`, with a text about "
            "gearmand's source"
        ),
        "no script sends it",
    ),
    ("a last argument without data (CAN_DO) may have 8192 bytes", "no script sends it"),
    ("a timeout of 20 digits that 64 bits do not hold drops the connection", "no script sends it"),
    (
        ("a progress denominator of more than 11 characters is not forwarded, and may drop the worker"),
        "may or may not",
    ),
    ("a store that fails to delete a job drops a connection", "needs a store"),
    ("SUBMIT_JOB_SCHED is refused", "what it starts has no counterpart; scripts do not send it"),
    ("a function that has only scheduled jobs loses its turn", "there are no turns in 1.1.20"),
    ("`QUEUE_ERROR` has no reason when the store refuses a job", "needs a store"),
    (
        "`create function NAME` with a bare LF cuts the name's last letter",
        "test_a_bare_line_feed_cuts_a_name",
    ),
    (
        "`create function` without memory for it answers `ERR CREATE_FUNCTION`",
        "test_limits_and_functions_that_operators_set",
    ),
    (
        "`drop function` drops a function with queued jobs, which then never run",
        "test_a_function_with_jobs_can_be_dropped",
    ),
    ("`workers` shows a file descriptor", "it is taken out of the rows"),
    ("control characters in names break the lines", "lists could not be told apart from what follows"),
    ("functions are listed in the order of a hash", "rows are sorted"),
    ("`create function` with an empty name and a bare LF ends gearmand", "test_what_kills_gearmand"),
    (
        "`show jobs` counts attempts up to 255, and marks cancelled jobs",
        "part of the rule for cancelled jobs",
    ),
    ("`workers` shows garbage for IPv6 addresses", "gearmand listens on IPv4 here"),
    ("`show scheduled`, `cancel unique`, `ready` are unknown", "additions; scripts do not send them"),
)

# What our server answers where gearmand closes the connection, or is lost in it.
ANSWERS: dict[str, tuple[bytes, ...]] = {
    "long handle": (b"STATUS_RES",),
    "bad magic": (b"ERROR", b"INVALID_MAGIC"),
    "unknown type": (b"ERROR", b"INVALID_COMMAND"),
    "handle without NUL": (b"ERROR", b"JOB_NOT_FOUND"),
    "too few arguments": (b"ERROR", b"INVALID_PACKET"),
    "long argument": (b"ERROR", b"ARGUMENT_TOO_LARGE"),
    "long number": (b"ERROR", b"INVALID_ARGUMENT"),
    "long line": (b"ERROR", b"INVALID_MAGIC"),
    "sixth word": (b"text",),
}
