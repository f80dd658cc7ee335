"""The conditions under which a difference from gearmand is allowed; ``rules`` lists them.

An explanation edits what was received until the allowed difference is gone: what is left is a bug.
"""

from __future__ import annotations

import re
from collections import Counter

from gearman_twisted.engine.states import State
from gearman_twisted.wire.constants import MAX_UNIQUE_BYTES, Priority
from tests.differential.player import Item
from tests.differential.story import NOOP, Difference, Story
from tests.kit.submits import SUBMITS

_NOT_FOUND: Item = (b"ERROR", b"JOB_NOT_FOUND", b"Job given in work result not found")
_FULL: Item = (b"ERROR", b"QUEUE_ERROR", b"Job queue is full")


def explain_lists(d: Difference) -> None:
    """Counts and rows of lists that differ for jobs, uniques or registrations that are explained."""
    for index, (their, our) in enumerate(zip(d.theirs, d.ours, strict=False)):
        if their != our and their[0] == b"text" == our[0]:
            words = their[1].lower().split()
            if words[:1] in ([b"status"], [b"prioritystatus"]):
                rows = _explain_counts(d.story, their[2], our[2])
            elif words[:1] == [b"workers"]:
                rows = _explain_workers(d.story, their[2])
            elif words == [b"show", b"jobs"]:
                rows = _explain_jobs(d.story, their[2], our[2])
            elif words == [b"show", b"unique", b"jobs"]:
                rows = _explain_uniques(d.story, their[2], our[2])
            else:
                continue
            d.theirs[index] = (*their[:2], rows)


def _explain_counts(story: Story, theirs: bytes, ours: bytes) -> bytes:
    rows = []
    our_rows = dict(row.split(b"\t", 1) for row in ours.splitlines()[:-1])
    for row in theirs.splitlines()[:-1]:
        name, *cells = row.split(b"\t")
        our_cells = our_rows.get(name, b"").split(b"\t")
        for at, (cell, our_cell) in enumerate(zip(cells, our_cells, strict=False)):
            extra = int(cell) - int(our_cell)
            if at == len(cells) - 1 and 0 < extra <= max(story.surplus(name)):
                story.used.add("registered twice")
            elif at < len(cells) - 1 and extra and abs(extra) <= len(story.flagged_in(name)):
                story.used.update(story.flagged_in(name))
            else:
                continue
            cells[at] = our_cell
        rows.append(b"\t".join([name, *cells]) + b"\n")
    return b"".join(sorted(rows)) + b".\n"


def _explain_workers(story: Story, theirs: bytes) -> bytes:
    rows = []
    for row in theirs.splitlines()[:-1]:
        head, colon, names = row.rpartition(b" :")
        unique = list(dict.fromkeys(names.split()))
        if any(max(story.surplus(name)) for name in names.split()) and len(unique) < len(names.split()):
            story.used.add("registered twice")
            row = head + colon + b"".join(b" " + name for name in unique)  # noqa: PLW2901
        rows.append(row + b"\n")
    return b"".join(sorted(rows)) + b".\n"


def _explain_jobs(story: Story, theirs: bytes, ours: bytes) -> bytes:
    our_rows = {row.partition(b"\t")[0]: row for row in ours.splitlines()[:-1]}
    rows = []
    for row in theirs.splitlines()[:-1]:
        handle, retries, ignored, stored = row.split(b"\t")
        our_row = our_rows.get(handle)
        if handle in story.flagged:
            story.used.add(story.flagged[handle][0])
            our_rows.pop(handle, None)
            if our_row is not None:
                rows.append(our_row)
            continue
        if (
            our_row == b"%b\t%b\t%b\t1" % (handle, retries, ignored)
            and stored == b"0"
            and not story.born[handle]
        ):
            story.used.add("joined foreground job")
            row = our_row  # noqa: PLW2901
        rows.append(row)
    rows += [row for handle, row in our_rows.items() if handle in story.flagged]
    return b"".join(sorted(row + b"\n" for row in rows)) + b".\n"


def _explain_uniques(story: Story, theirs: bytes, ours: bytes) -> bytes:
    their_rows, our_rows = Counter(theirs.splitlines()[:-1]), Counter(ours.splitlines()[:-1])
    for unique in [unique for unique in our_rows if _is_long(story, unique)]:
        if their_rows[unique[:-1]]:
            their_rows[unique] = their_rows.pop(unique[:-1])
            story.used.add("unique of 64 bytes")
    for rule, job in story.flagged.values():
        for name in (job.unique, job.unique[:-1]):
            extra = their_rows[name] - our_rows[name]
            if extra:
                story.used.add(rule)
                their_rows[name] -= extra
    return b"".join(sorted(row + b"\n" for row in their_rows.elements())) + b".\n"


def _is_long(story: Story, unique: bytes) -> bool:
    """Whether a job's unique has the 64 bytes that gearmand takes and does not keep."""
    return any(job.unique == unique and job.unique_bytes == MAX_UNIQUE_BYTES for job in story.jobs.values())


def explain_flagged(d: Difference) -> None:
    """Answers about jobs that gearmand drops and we do not, or that it keeps and we have ended."""
    flagged = d.story.flagged
    uniques = {job.unique: rule for rule, job in flagged.values()}
    rules = {rule for rule, _ in flagged.values()}

    def is_about_one(their: Item, our: Item) -> bool:
        if their[0] == our[0] == b"STATUS_RES":
            return their[1] == our[1] and their[1].rstrip(b"\0") in flagged
        if their[0] == our[0] == b"STATUS_RES_UNIQUE":
            return their[1] == our[1] and their[1] in uniques
        if their[0] == our[0] == b"text" and their[1].lower().startswith(b"cancel job "):
            return their[1].split()[2].rstrip(b"\0") in flagged
        return False

    # A cancelled job still reports to its clients; cancelled again, it fails again.
    for index in reversed(range(len(d.theirs))):
        item = d.theirs[index]
        if item[0].startswith(b"WORK_") and d.theirs.count(item) > d.ours.count(item):
            rule, _ = flagged.get(item[1].rstrip(b"\0"), ("", None))
            if rule == "cancelled job":
                del d.theirs[index]
                d.story.used.add(rule)
    d.settle(is_about_one, *rules)
    their, our = d.first()
    if not d.is_actor or not flagged or not (their or our):
        return
    handles = {item[1] for item in (their, our) if len(item) > 1}
    assigned = {b"JOB_ASSIGN", b"JOB_ASSIGN_UNIQ", b"JOB_ASSIGN_ALL", b"JOB_CREATED"}
    if {their[:1], our[:1]} & {(name,) for name in assigned} and handles & set(flagged):
        d.end(*(flagged[handle][0] for handle in handles & set(flagged)))
    elif (_FULL in (their, our) or NOOP in (their, our)) and not {their[:1], our[:1]} <= {
        NOOP,
        (b"ERROR",),
    }:
        # A flagged job counts for a limit, and is worth a NOOP, with only one of the two.
        functions = {args[0] for type_, args in d.step.requests if type_ in SUBMITS}
        functions |= {function for conn, function in d.story.registrations if conn == d.step.conn}
        found = [rule for function in functions for rule in d.story.flagged_in(function)]
        if found:
            d.end(*found)


def explain_long_unique(d: Difference) -> None:
    """A unique of 64 bytes loses one in gearmand, which never finds the job by it."""

    def is_shifted(their: Item, our: Item) -> bool:
        if our[0] not in (b"JOB_ASSIGN_UNIQ", b"JOB_ASSIGN_ALL") or not _is_long(d.story, our[3]):
            return False
        shifted = (*our[:3], our[3][:-1], b"\0" + our[4], *our[5:])
        return their == shifted or _is_freed(d, their, shifted)

    d.settle(is_shifted, "unique of 64 bytes")
    _, our = d.first()
    if d.is_actor and our[:1] == (b"JOB_CREATED",) and _is_long(d.story, d.story.jobs[our[1]].unique):
        d.end("unique of 64 bytes")


def explain_freed(d: Difference) -> None:
    """A workload that gearmand freed before it was sent: the job had ended meanwhile."""
    d.settle(lambda their, our: _is_freed(d, their, our), "freed workload")


def _is_freed(d: Difference, their: Item, our: Item) -> bool:
    return (
        our[0].startswith(b"JOB_ASSIGN")
        and their[:-1] == our[:-1]
        and len(their[-1]) == len(our[-1])
        and d.step.is_pipelined
    )


def explain_exception(d: Difference) -> None:
    """The NUL behind the handle of a WORK_FAIL that stands for an exception."""
    d.settle(
        lambda their, our: their[0] == our[0] == b"WORK_FAIL" and their[1] == our[1] + b"\0", "exception"
    )


def explain_failure_after_exception(d: Difference) -> None:
    """The ERROR for a WORK_FAIL that comes behind an exception."""
    for _ in range(d.story.failed_again if d.is_actor else 0):
        for index, their in enumerate(d.theirs):
            if their == _NOT_FOUND and d.ours[index : index + 1] != [their]:
                del d.theirs[index]
                d.story.used.add("failure after exception")
                break


def explain_progress(d: Difference) -> None:
    """Progress numbers beyond 32 bits, and negative ones."""

    def is_wrapped(their: Item, our: Item) -> bool:
        if their[0] != our[0] or our[0] not in (b"STATUS_RES", b"STATUS_RES_UNIQUE"):
            return False
        said = d.story.progress.values()
        return (*their[:4], *their[6:]) == (*our[:4], *our[6:]) and any(
            their[4:6] == tuple(b"%d" % (_number(n) & 0xFFFFFFFF) for n in numbers)
            and our[4:6] == tuple(b"%d" % min(max(_number(n), 0), 0xFFFFFFFF) for n in numbers)
            for numbers in said
        )

    d.settle(is_wrapped, "progress")


def _number(text: bytes) -> int:
    match = re.match(rb"\s*[+-]?[0-9]+", text)
    return int(match[0]) if match else 0


def explain_limits(d: Difference) -> None:
    """A limit that gearmand did not take, because it did not know the function."""
    their, our = d.first()
    functions = {args[0] for type_, args in d.step.requests if type_ in SUBMITS}
    if our == _FULL and their[:1] == (b"JOB_CREATED",) and functions & d.story.unheld:
        d.end("limit of an unknown function")


def explain_hidden(d: Difference) -> None:
    """gearmand 1.1.20 looks at the first priority that has jobs, though none of them may be due."""
    their, our = d.first()
    if our[:1] and our[0].startswith(b"JOB_ASSIGN") and (their == (b"NO_JOB",) or their[:1] == our[:1]):
        job = d.story.jobs[our[1]]
        waiting = (other for other in d.story.jobs.values() if other.state is State.SCHEDULED)
        if job.priority == Priority.LOW and any(other.function == job.function for other in waiting):
            d.end("scheduled job hides")


EXPLANATIONS = (
    explain_hidden,
    explain_flagged,
    explain_long_unique,
    explain_freed,
    explain_exception,
    explain_failure_after_exception,
    explain_progress,
    explain_limits,
    # Behind those that take something out from before a list.
    explain_lists,
)
