"""What runs wrote, as tables, charts and pages: for studies and comparisons. Nothing here reaches what is right."""
