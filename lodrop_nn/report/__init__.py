"""From records to a table, a figure and a page; nothing here needs torch."""
