"""Job stores in SQL databases."""
