"""Worker: creates an invoice as a PDF with reportlab, and sends it by e-mail.

A job is an object in JSON: ``number``, ``name``, ``email``, ``text`` and ``amount``, all of them texts. The
environment variable ``SMTP_SERVER`` says where to hand in the mail, as ``HOST:PORT``.
"""

from __future__ import annotations

import io
import json
import os
import smtplib
from email.message import EmailMessage

from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from gearman_twisted import Job
from gearman_twisted.errors import RetryLater
from gearman_twisted.worker import in_process

Invoice = dict[str, str]


def make_pdf(invoice: Invoice) -> bytes:
    """Draw the invoice on one page."""
    output = io.BytesIO()
    page = Canvas(output, pagesize=A4)
    page.setTitle(f"Invoice {invoice['number']}")
    page.setFont("Helvetica-Bold", 20)
    page.drawString(72, 760, f"Invoice {invoice['number']}")
    page.setFont("Helvetica", 12)
    page.drawString(72, 720, f"To {invoice['name']}")
    page.drawString(72, 680, invoice["text"])
    page.drawRightString(520, 680, f"{invoice['amount']} EUR")
    page.save()
    return output.getvalue()


def make_mail(invoice: Invoice, pdf: bytes) -> EmailMessage:
    """Return the mail with the PDF attached."""
    mail = EmailMessage()
    mail["From"] = "invoices@example.com"
    mail["To"] = invoice["email"]
    mail["Subject"] = f"Invoice {invoice['number']}"
    # A job may run twice: the same invoice has the same message id.
    mail["Message-ID"] = f"<invoice-{invoice['number']}@example.com>"
    mail.set_content(f"Dear {invoice['name']},\n\nplease find your invoice attached.\n")
    mail.add_attachment(
        pdf, maintype="application", subtype="pdf", filename=f"invoice-{invoice['number']}.pdf"
    )
    return mail


def send_invoice(job: Job) -> None:
    """Create and mail the PDF; retry after ten seconds if the mail server is down."""
    invoice = json.loads(job.workload)
    mail = make_mail(invoice, make_pdf(invoice))
    host, _, port = os.environ["SMTP_SERVER"].rpartition(":")
    try:
        with smtplib.SMTP(host, int(port), timeout=30) as smtp:
            smtp.send_message(mail)
    except (ConnectionError, TimeoutError, smtplib.SMTPServerDisconnected) as error:
        raise RetryLater(10) from error


# Drawing is CPU-bound, and smtplib blocks.
send_invoice_in_process = in_process(send_invoice)
