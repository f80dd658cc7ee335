"""Programs of Gearman libraries; ``library_runs.py`` says what they have in common."""
