"""Run folders -> one HTML page that shows them."""
