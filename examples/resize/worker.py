"""Worker: makes images smaller with Pillow.

A job is a line ``WIDTHxHEIGHT``, and behind it the bytes of a JPEG or PNG. The result is the same image in
the same format, made to fit into that many pixels.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from gearman_twisted import Job
from gearman_twisted.worker import in_process

# What the outside sends is opened by no other of Pillow's many readers.
FORMATS = ("JPEG", "PNG")


def resize(job: Job) -> bytes:
    """Returns the smaller image. What it raises for anything else is what the client is told."""
    size, _, data = job.workload.partition(b"\n")
    width, height = map(int, size.split(b"x"))
    with Image.open(io.BytesIO(data), formats=FORMATS) as original:
        # A camera turns the image by a note in the file, which does not survive.
        image = ImageOps.exif_transpose(original)
        image.thumbnail((width, height))
        output = io.BytesIO()
        image.save(output, original.format)
    return output.getvalue()


# Work for a processor, not for the reactor's thread: as many at a time as there are processors.
resize_in_process = in_process(resize)
