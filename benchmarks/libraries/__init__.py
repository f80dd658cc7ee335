"""Programs of Gearman libraries, one of each; ``library_runs.py`` says what they have in common."""
