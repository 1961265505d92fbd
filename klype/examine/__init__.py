"""The examination: measures with intervals, and the report that shows them."""
