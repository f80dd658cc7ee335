"""Worker: makes images smaller with Pillow.

A job is a line ``WIDTHxHEIGHT``, and behind it the bytes of a JPEG or PNG. The result is the same image in
the same format, made to fit into that many pixels.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from gearman_twisted import Job
from gearman_twisted.worker import in_process

# Untrusted input is opened by no other of Pillow's many readers.
FORMATS = ("JPEG", "PNG")


def resize(job: Job) -> bytes:
    """Return the smaller image. The client gets the error for any other input."""
    size, _, data = job.workload.partition(b"\n")
    width, height = map(int, size.split(b"x"))
    with Image.open(io.BytesIO(data), formats=FORMATS) as original:
        # Apply the orientation of the camera, which is metadata that is lost.
        image = ImageOps.exif_transpose(original)
        image.thumbnail((width, height))
        output = io.BytesIO()
        image.save(output, original.format)
    return output.getvalue()


# CPU-bound, so not in the reactor's thread: one process per processor.
resize_in_process = in_process(resize)
